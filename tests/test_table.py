"""Tables: every row told once, with its line, as a stream, whatever its delimiter and its quotes."""

from __future__ import annotations

import csv
import gzip
import io
import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_loader.errors import UrlFileError
from image_loader.lists.table import LIMIT, rows
from image_loader.lists.urlfile import count, read
from image_loader.model import Columns, Line

Told = tuple[int, str, str | None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feed"


def lines(path: Path | str, url: str, name: str | None = None) -> list[Line]:
    return [line for chunk in read(path, 10, Columns(url, name)) for line in chunk or ()]


def told(path: Path | str, url: str, name: str | None = None) -> list[Told]:
    return [(line.number, line.text, line.name) for line in lines(path, url, name)]


def refusal(path: Path, url: str, name: str | None = None) -> str:
    with pytest.raises(UrlFileError) as caught:
        lines(path, url, name)
    return str(caught.value)


def through_a_pipe(content: bytes, size: int, url: str, name: str | None = None) -> list[Told]:
    """Return the rows of a table that comes through a pipe in pieces of this size."""
    reader, writer = os.pipe()

    def write() -> None:
        with os.fdopen(writer, "wb", buffering=0) as pipe:
            for at in range(0, len(content), size):
                pipe.write(content[at : at + size])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        return told(f"/dev/fd/{reader}", url, name)
    finally:
        thread.join()
        os.close(reader)


MERCHANT = (
    "\ufeffid;title;link;image link;price\r\n"
    '1;"Shoe, ""red"";\r\nsize 40";http://h/1.html;http://h/1,a;b.jpg;9,90\r\n'.replace("a;b", "a")
    + '2;Shoe;http://h/2.html;"http://h/2;b.jpg";19,90\r\n'
    "\r\n"
    '3;5" heel;http://h/3.html; http://h/3.jpg ;1\r\n'
)
MERCHANT_ROWS = [(2, "http://h/1,a.jpg", "1"), (4, "http://h/2;b.jpg", "2"), (6, "http://h/3.jpg", "3")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_feed_with_a_mark_semicolons_and_quoted_line_ends_is_read(
    path: Path, encoding: str, compress: type[bytes]
) -> None:
    path.write_bytes(compress(MERCHANT.encode(encoding)))
    assert told(path, "image link", "id") == MERCHANT_ROWS
    assert count(path, Columns("image link")) == 3


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_feed_is_read_from_a_pipe_in_any_pieces(size: int) -> None:
    assert through_a_pipe(MERCHANT.encode(), size, "4", "1") == MERCHANT_ROWS


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_captions_without_headings_are_read_by_number(path: Path, end: str) -> None:
    path.write_bytes(end.join(["a red shoe\thttp://h/a.jpg", "", "shoes; blue, green\thttp://h/b.jpg"]).encode())
    assert told(path, "2", "1") == [
        (1, "http://h/a.jpg", "a red shoe"),
        (3, "http://h/b.jpg", "shoes; blue, green"),
    ]
    assert count(path, Columns("2")) == 2


@pytest.mark.parametrize("column", ["image", "Image", " image ", "2"])
def test_a_column_is_given_by_its_heading_or_its_number_and_headings_are_not_counted(path: Path, column: str) -> None:
    path.write_text("id, image \n7,http://h/a.jpg\n")
    assert told(path, column) == [(2, "http://h/a.jpg", None)]
    assert count(path, Columns(column)) == 1


def test_a_number_beyond_the_columns_is_a_heading(path: Path) -> None:
    path.write_text("2025,2026\nhttp://h/a.jpg,http://h/b.jpg\n")
    assert told(path, "2026") == [(2, "http://h/b.jpg", None)]
    assert told(path, "2") == [(2, "http://h/b.jpg", None)]


def test_of_headings_that_differ_in_case_the_exact_one_is_meant(path: Path) -> None:
    path.write_text("URL,url\nhttp://h/a.jpg,http://h/b.jpg\n")
    assert told(path, "url") == [(2, "http://h/b.jpg", None)]


@pytest.mark.parametrize(
    ("first", "column", "is_data"),
    [
        ("1,http://h/a.jpg", "2", True),
        ("1,HTTP:\\\\h\\a.jpg", "2", True),
        ("1,ftp://h/a.jpg", "2", True),
        ("1,//h/a.jpg", "2", True),
        ("1,www.h.com/a.jpg", "2", True),
        ("1,", "2", True),
        ("id,image link", "2", False),
        ("id,g:image_link", "2", False),
        ("id,URL/Link", "2", False),
    ],
)
def test_a_first_row_that_holds_no_heading_is_a_row(path: Path, first: str, column: str, *, is_data: bool) -> None:
    path.write_text(f"{first}\n2,http://h/b.jpg\n")
    assert [line.number for line in lines(path, column)] == ([1, 2] if is_data else [2])


@pytest.mark.parametrize(
    ("content", "url", "name", "expected"),
    [
        ("id;text, of, commas;url\n1;a;http://h/a.jpg\n", "url", None, [(2, "http://h/a.jpg", None)]),
        ("1;a, b, c, d;http://h/a.jpg\n", "3", None, [(1, "http://h/a.jpg", None)]),
        ("1\ta, b; c, d\thttp://h/a,b;c.jpg\n", "3", "2", [(1, "http://h/a,b;c.jpg", "a, b; c, d")]),
        ("http://h/a.jpg,red\n", "1", "2", [(1, "http://h/a.jpg", "red")]),
        ('"http://h/a,b.jpg"\n', "1", None, [(1, "http://h/a,b.jpg", None)]),
        ("url\nhttp://h/a,b.jpg\n", "url", None, [(2, "http://h/a,b.jpg", None)]),
        ("sep=|\nid|url\n1|http://h/a.jpg\n", "url", None, [(3, "http://h/a.jpg", None)]),
        ('"i\nd","u\nrl"\n1,http://h/a.jpg\n', "u\nrl", None, [(4, "http://h/a.jpg", None)]),
        ('id, "a, b", url\n1, "c, d", http://h/a.jpg\n', "url", "a, b", [(2, "http://h/a.jpg", "c, d")]),
        ("\n\n id,url\n1,http://h/a.jpg\n", "url", None, [(4, "http://h/a.jpg", None)]),
        ("id,url\n1,http://h/a.jpg", "url", None, [(2, "http://h/a.jpg", None)]),
        ('id,url\n1,"http://h/a.jpg', "url", None, [(2, "http://h/a.jpg", None)]),
        ("id,url\n#1,http://h/a.jpg\n", "url", "id", [(2, "http://h/a.jpg", "#1")]),
        ("id,url\n,http://h/a.jpg\n", "url", "id", [(2, "http://h/a.jpg", None)]),
        ("url,id\nhttp://h/a.jpg\n", "url", "id", [(2, "http://h/a.jpg", None)]),
        ("", "url", None, []),
        ("\n\n", "1", None, []),
    ],
)
def test_tables_as_people_have_them_are_read(
    path: Path, content: str, url: str, name: str | None, expected: list[Told]
) -> None:
    path.write_text(content)
    assert told(path, url, name) == expected


def test_a_row_without_the_column_is_a_fault_with_its_line_and_blank_rows_are_none(path: Path) -> None:
    path.write_text('id,url\n1\n2,"a\nb"\n,\n3,\n , \n4,http://h/a.jpg\nzebra,\n')
    found = [(line.number, line.text, line.fault.partition(":")[0]) for line in lines(path, "url")]
    assert found == [
        (2, "", "no column url in this row (line 2)"),
        (3, "a\nb", "control character or undecodable byte in the URL"),
        (6, "", "no URL in column url (line 6)"),
        (8, "http://h/a.jpg", ""),
        (9, "", "no URL in column url (line 9)"),
    ]
    assert count(path, Columns("url")) == 5


def test_a_row_that_ends_long_before_the_column_is_a_fault(path: Path) -> None:
    path.write_text('a,b,c,url\nzebra\n"x",y\n1,2,3,http://h/a.jpg\n')
    assert [(line.number, line.text, line.fault) for line in lines(path, "url")] == [
        (2, "", "no column url in this row (line 2)"),
        (3, "", "no column url in this row (line 3)"),
        (4, "http://h/a.jpg", ""),
    ]


def test_a_row_that_ends_before_the_column_of_names_has_none(path: Path) -> None:
    path.write_text("url,b,c,name\nhttp://h/a.jpg\nhttp://h/b.jpg,2,3\nhttp://h/c.jpg,2,3,c\n")
    assert told(path, "url", "name") == [
        (2, "http://h/a.jpg", None), (3, "http://h/b.jpg", None), (4, "http://h/c.jpg", "c")
    ]  # fmt: skip


@pytest.mark.parametrize(("columns", "end"), [(50, "c49; name"), (51, "c49, …; name")])
def test_of_many_columns_fifty_are_told(path: Path, columns: int, end: str) -> None:
    path.write_text(",".join(f"c{number}" for number in range(columns)) + "\n")
    assert f"among the {columns} of the first row: c0, c1," in refusal(path, "url")
    assert end in refusal(path, "url")


@pytest.mark.parametrize("column", ["bild", "0", "3", "9" * 5000, "\x1b[31m"])
def test_a_column_that_is_not_there_is_told_with_those_that_are(path: Path, column: str) -> None:
    path.write_text("id,\x1b[31murl\n1,http://h/a.jpg\n")
    message = refusal(path, column)
    assert message.startswith(f"{path}: no column '")
    assert message.endswith("among the 2 of the first row: id, \\x1b[31murl; name one of them, or its number from 1")
    assert len(message) < 600
    assert "\x1b" not in message
    assert refusal(path, "2", column) == message
    assert count(path, Columns(column)) is None


def test_a_first_row_of_urls_is_told_without_its_secrets(path: Path) -> None:
    path.write_text("1,http://u:secret@h/a.jpg?key=secret\n")
    assert "1, http://h/a.jpg?…" in refusal(path, "url")


@pytest.mark.parametrize(
    "content",
    [
        'caption\turl\n"a stray quote\thttp://h/a.jpg\nb\thttp://h/b.jpg\n"c" or "d\thttp://h/c.jpg\n',
        'caption\turl\n"a stray quote\thttp://h/a.jpg\nb\thttp://h/b.jpg\nc\thttp://h/c.jpg\n',
        'caption,url\n"a stray quote,http://h/a.jpg\nb,http://h/b.jpg\n"c",http://h/c.jpg\n',
        'url,caption\nhttp://h/a.jpg,"a stray quote\nhttp://h/b.jpg,b\nhttp://h/c.jpg,"c"\n',
        'caption\turl\na\thttp://h/a.jpg\nb\thttp://h/b.jpg\n"a stray quote\thttp://h/c.jpg\n',
        'caption\turl\na\thttp://h/a.jpg\nb\thttp://h/b.jpg\n"a stray quote\thttp://h/c.jpg\n\n\n',
        'caption\turl\na\thttp://h/a.jpg\nb\thttp://h/b.jpg\nc "or" ""d" \thttp://h/c.jpg',
    ],
)
def test_a_stray_quote_costs_no_row(path: Path, content: str) -> None:
    path.write_text(content)
    assert [line.text for line in lines(path, "url")] == [f"http://h/{name}.jpg" for name in "abc"]


def test_after_a_stray_quote_a_row_that_is_broken_is_a_fault_of_its_own(path: Path) -> None:
    path.write_text('caption\turl\n"a stray quote\thttp://h/a.jpg\nno URL here, "or so\nc\thttp://h/c.jpg\n')
    found = [(line.number, line.text) for line in lines(path, "url")]
    assert found == [(2, "http://h/a.jpg"), (3, ""), (4, "http://h/c.jpg")]


@pytest.mark.parametrize(
    "content",
    [
        '"a, stray quote\thttp://h/a.jpg\nb\thttp://h/b.jpg\n"c" or "d\thttp://h/c.jpg\n',
        '"a; stray, quote\thttp://h/a.jpg\nb\thttp://h/b.jpg\nc\thttp://h/c.jpg\n',
        'a, b "" "\thttp://h/a.jpg\n"b\thttp://h/b.jpg\nc\thttp://h/c.jpg\n',
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_a_stray_quote_in_the_first_row_costs_no_row(content: str, size: int) -> None:
    found = through_a_pipe(content.encode(), size, "2")
    assert [(number, url) for number, url, _ in found] == [
        (1 + at, f"http://h/{name}.jpg") for at, name in enumerate("abc")
    ]


def test_stray_quotes_in_one_row_after_the_other_cost_no_row(path: Path) -> None:
    path.write_text("".join(f'"{name}\tx\thttp://h/{name}.jpg\n' for name in "abcdef") + "g\tx\thttp://h/g.jpg\n")
    assert told(path, "3") == [(1 + at, f"http://h/{name}.jpg", None) for at, name in enumerate("abcdefg")]


def test_a_quote_on_both_ends_of_a_row_is_part_of_its_text(path: Path) -> None:
    path.write_text('a\turl\tb\n"Shoe\thttp://h/a.jpg\tred"\nx\thttp://h/b.jpg\ty\n')
    assert told(path, "url") == [(2, "http://h/a.jpg", None), (3, "http://h/b.jpg", None)]


def test_a_stray_quote_before_a_long_field_costs_no_row(path: Path) -> None:
    text = "x" * 140_000
    path.write_text(f'text\turl\n"a\thttp://h/a.jpg\n{text}\thttp://h/b.jpg\nc\thttp://h/c.jpg\n')
    first, *_, last = told(path, "url")
    assert (first, last) == ((2, "http://h/a.jpg", None), (4, "http://h/c.jpg", None))


@pytest.mark.parametrize("text", ["http://x", "http://x,y,z"])
def test_lines_of_a_quoted_text_that_begin_with_a_url_are_no_rows(path: Path, text: str) -> None:
    path.write_text(f'http://h/a.jpg,"text\n{text}\nmore"\nhttp://h/b.jpg,"c"\n')
    assert told(path, "1") == [(1, "http://h/a.jpg", None), (4, "http://h/b.jpg", None)]


def test_the_first_line_of_a_first_row_with_a_stray_quote_tells_the_delimiter(path: Path) -> None:
    path.write_text('"a;http://h/a.jpg\nno columns, but a quote"\nb;http://h/b.jpg\n')
    assert [(line.number, line.text) for line in lines(path, "2")] == [
        (1, "http://h/a.jpg"), (2, ""), (3, "http://h/b.jpg")
    ]  # fmt: skip


def test_all_lines_of_the_first_row_tell_the_delimiter(path: Path) -> None:
    path.write_text('"a,b,c,d\n";url;x\n1;http://h/a.jpg;2\n')
    assert told(path, "url") == [(3, "http://h/a.jpg", None)]


def test_spaces_before_a_quoted_heading_are_none_of_it(path: Path) -> None:
    path.write_text('a;b;c, "image url"\n1, http://h/a.jpg\n')
    assert told(path, "image url") == [(2, "http://h/a.jpg", None)]


def test_a_heading_that_looks_like_data_is_a_heading_where_it_names_the_column(path: Path) -> None:
    path.write_text("id,data:image\n1,http://h/a.jpg\n")
    assert told(path, "data:image") == [(2, "http://h/a.jpg", None)]


def told_of(*groups: list[bytes], url: str = "url") -> list[list[int]]:
    """Return the numbers of the rows that are told with each group of lines, and at the end."""
    return [[row.number for row in found or ()] for found in rows(groups, Columns(url))]


def test_rows_are_told_as_soon_as_they_end() -> None:
    plain, quoted = [b"1,http://h/1.jpg", b"2,http://h/2.jpg"], [b'"a', b'b",http://h/3.jpg', b'"c']
    assert told_of([b"id,url"], plain, quoted, [b"d"], [b'e",http://h/4.jpg']) == [[], [2, 3], [4], [], [6], []]
    assert told_of([b"sep=;", b"id;url", b"1;http://h/1.jpg"]) == [[3], []]
    assert told_of([b'"a,b,c,d'], [b'";url;x'], [b"1;http://h/a.jpg;2"]) == [[], [], [3], []]
    assert told_of([b""], [b" ", b"id,url", b"1,http://h/1.jpg"]) == [[], [4], []]


@pytest.mark.parametrize("before", range(4))
def test_a_long_field_behind_a_stray_quote_costs_no_row_wherever_it_stands(before: int) -> None:
    plain = [b"x\thttp://h/x.jpg"] * before
    odd = [b'"a\thttp://h/a.jpg', b"x" * 140_000 + b"\thttp://h/b.jpg"]
    assert told_of([b"text\turl", *plain, *odd, *plain]) == [[*range(2, 4 + 2 * before)], []]


@pytest.mark.parametrize("columns", ["url,text", "text,url"])
def test_a_row_of_more_than_a_mebibyte_is_a_fault(path: Path, columns: str) -> None:
    path.write_text(f"{columns}\nhttp://h/a.jpg,{'x' * LIMIT}\nhttp://h/b.jpg,http://h/b.jpg\n")
    first, second = lines(path, "url")
    assert (first.fault, first.text) == ("row longer than 1 MiB (line 2)", "")
    assert (second.number, second.text) == (3, "http://h/b.jpg")


@pytest.mark.parametrize(("size", "are_read"), [(LIMIT, [2, 3]), (LIMIT + 1, [3])])
def test_a_row_may_have_1_mib_and_not_a_byte_more(path: Path, size: int, are_read: list[int]) -> None:
    row = "http://h/a.jpg," + ("x" * 999 + ",") * 2000  # No field is longer than the library takes.
    path.write_text(f"url,rest\n{row[:size]}\nhttp://h/b.jpg,\n")
    assert [line.number for line in lines(path, "url") if not line.fault] == are_read


def test_an_open_quote_in_the_first_row_does_not_hold_the_whole_list_in_memory() -> None:
    taken = []

    def groups() -> Iterator[list[bytes]]:
        yield [b'1,"a']
        for number in range(10_000):
            taken.append(number)
            yield [b"x" * 999]

    assert next(filter(None, rows(groups(), Columns("1"))))
    assert len(taken) < 2 * LIMIT / 1000


def test_lines_behind_an_open_quote_are_given_up_once_they_are_too_many() -> None:
    text = [b"x" * 1000] * (LIMIT // 4000)
    assert told_of([b"id,url", b'"a'], *[text] * 4, [b"1,http://h/1.jpg"]) == [[], [], [], [], [2], [1051], []]


def test_a_first_row_may_have_line_ends_in_quotes(path: Path) -> None:
    path.write_text('1,http://h/a.jpg,"text\nhttp://h/x.jpg, and so on"\n2,http://h/b.jpg,""\n')
    assert told(path, "2", "1") == [(1, "http://h/a.jpg", "1"), (3, "http://h/b.jpg", "2")]


def test_a_url_within_a_quoted_text_is_not_the_row_s(path: Path) -> None:
    path.write_text('text,url\n"see,http://h/x.jpg",\n"b, see http://h/y.jpg",http://h/b.jpg\n')
    assert [(line.number, line.text) for line in lines(path, "url")] == [(2, ""), (3, "http://h/b.jpg")]


def test_a_stray_quote_in_a_long_table_costs_no_row(path: Path) -> None:
    rows = [f"caption {number}\thttp://h/{number}.jpg" for number in range(30_000)]
    rows[100] = '"' + rows[100]
    path.write_text("\n".join(rows))
    assert [(line.number, line.text) for line in lines(path, "2")] == [
        (number + 1, f"http://h/{number}.jpg") for number in range(30_000)
    ]


@pytest.mark.parametrize("size", [200_000, 3_000_000])
@pytest.mark.parametrize("quote", ["", '"', '"\n'], ids=["plain", "quoted", "lines"])
def test_a_field_that_is_too_long_is_a_fault_of_its_row_alone(path: Path, size: int, quote: str) -> None:
    text = quote.strip() + (("x" * 99 + "\n") if "\n" in quote else "x" * 100) * (size // 100) + quote.strip()
    path.write_text(f"text,url\na,http://h/a.jpg\n{text},http://h/b.jpg\nc,http://h/c.jpg\n")
    tracemalloc.start()
    try:
        found = lines(path, "url")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found[0].text, found[-1].text) == ("http://h/a.jpg", "http://h/c.jpg")
    assert (found[1].number, found[1].url) == (3, None)
    assert peak < 12 * LIMIT


def rows_and_peak(path: Path) -> tuple[int, int]:
    """Return how many rows a table has, and what reading it takes at most, in bytes."""
    tracemalloc.start()
    try:
        found = sum(len(chunk or ()) for chunk in read(path, 100, Columns("url", "id")))
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_stays_flat_for_a_quote_that_is_never_closed(path: Path) -> None:
    path.write_text('id,url\n"' + 50_000 * "just text\n")
    first, *others = lines(path, "url")
    assert (first.number, "is a quote not closed?" in first.fault) == (2, True)
    assert not any(line.url for line in others)
    path.write_text('id,url\n"' + 500 * (LIMIT // 100 * "x" + "\n"))
    assert rows_and_peak(path)[1] < 8 * LIMIT


def test_memory_stays_flat_for_many_rows(path: Path) -> None:
    path.write_text("id,url\n" + "".join(f"{number},http://h/{number}.jpg\n" for number in range(50_000)))
    found, peak = rows_and_peak(path)
    assert found == 50_000
    assert peak < 4 * LIMIT


def test_undecodable_bytes_are_a_fault_of_their_row_alone(path: Path) -> None:
    path.write_bytes("id,url\nä,http://h/a.jpg\nb,http://h/ä.jpg\n".encode("latin-1"))
    first, second = lines(path, "url", "id")
    assert (first.text, first.name) == ("http://h/a.jpg", "\udce4")
    assert (second.text, second.url) == ("http://h/\ufffd.jpg", None)


CELLS = st.text(alphabet='ab"\n ,;\t\r#é=', max_size=8)


@given(
    rows=st.lists(st.tuples(CELLS, st.integers(0, 99).map("http://h/{}.jpg".format), CELLS), max_size=6),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    size=st.integers(1, 50),
)
@settings(max_examples=150, deadline=None)
def test_what_a_program_wrote_as_csv_is_read_as_it_was(
    rows: list[tuple[str, str, str]], delimiter: str, end: str, size: int
) -> None:
    written = io.StringIO(newline="")
    # Unless told to, some versions of the library leave a line end unquoted that is not that of the rows.
    quoting: Literal[0, 1] = csv.QUOTE_MINIMAL if end == "\r\n" else csv.QUOTE_ALL
    writer = csv.writer(written, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([("name", "url", "text"), *rows])
    found = through_a_pipe(written.getvalue().encode(), size, "url", "name")
    expected = [(url, name.replace("\r\n", "\n").replace("\r", "\n").strip() or None) for name, url, _ in rows]
    assert [(url, name) for _, url, name in found] == expected
