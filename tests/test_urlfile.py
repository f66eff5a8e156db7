"""Lists: every line of a file, a pipe or an iterable is told once, and none of them can hurt."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asking import seconds
from conftest import open_files
from image_loader.errors import UrlFileError
from image_loader.lists.urlfile import LIMIT, POLL, check, count, from_strings, read
from image_loader.model import Columns, Line

BYTES = st.one_of(
    st.binary(),
    st.lists(
        st.sampled_from(
            [
                b"http://h/a.jpg",
                b"\n",
                b"\r\n",
                b"\r",
                b"\xff\xfe",
                b"a\0",
                b"\t",
                b",",
                b'"',
                b" ",
                b"#",
                b"\xef\xbb\xbf",
                b"\xff",
                b"\0",
                b"\xc2\xa0",
                b"ftp:",
            ]
        ),
    ).map(b"".join),
    st.text().map(str.encode),
)


@pytest.fixture
def urlfile(tmp_path: Path) -> Path:
    return tmp_path / "urls.txt"


def lines(path: Path, batch: int = 100) -> list[Line]:
    return [line for chunk in read(path, batch) for line in chunk or ()]


def urls(path: Path) -> list[str | None]:
    return [line.url.canonical if line.url else None for line in lines(path)]


def before_the_error(path: Path) -> tuple[list[Line], str]:
    """Return what is read of a list up to the error that it must end with."""
    found: list[Line] = []
    with pytest.raises(UrlFileError) as caught:
        for chunk in read(path, 100):
            found.extend(chunk or ())
    return found, str(caught.value)


def written_by_a_thread(pieces: list[bytes], descriptor: int) -> threading.Thread:
    """Start a thread that writes the pieces into a pipe, one by one, and closes it."""

    def write() -> None:
        with os.fdopen(descriptor, "wb", buffering=0) as pipe:
            for piece in pieces:
                pipe.write(piece)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def through_a_pipe(pieces: list[bytes]) -> list[Line]:
    reader, writer = os.pipe()
    thread = written_by_a_thread(pieces, writer)
    try:
        return lines(Path(f"/dev/fd/{reader}"))
    finally:
        thread.join()
        os.close(reader)


def read_or_refused(pieces: list[bytes]) -> list[Line] | str:
    """Return the lines that come through a pipe, or why they are no list."""
    try:
        return through_a_pipe(pieces)
    except UrlFileError as error:
        return str(error).partition(": ")[2]


def test_strings_that_come_slowly_are_handed_on_one_by_one() -> None:
    def slowly() -> Iterator[str]:
        for number in range(3):
            time.sleep(2 * POLL)
            yield f"http://host/{number}.jpg"

    assert [len(group) for group in from_strings(slowly(), 100)] == [1, 1, 1]


def test_blank_lines_and_comments_are_passed_over_but_counted(urlfile: Path) -> None:
    urlfile.write_bytes(b"# a comment\n\n  \t\nhttp://h/a.jpg\n  # another\nhttp://h/b.jpg\n")
    assert [(line.number, line.text) for line in lines(urlfile)] == [(4, "http://h/a.jpg"), (6, "http://h/b.jpg")]


def test_crlf_surrounding_white_space_and_a_missing_last_line_end_are_tolerated(urlfile: Path) -> None:
    urlfile.write_bytes(b"http://h/a.jpg\r\n \thttp://h/b.jpg \t\n\xc2\xa0http://h/c.jpg\xe3\x80\x80\nhttp://h/d.jpg")
    assert urls(urlfile) == ["http://h/a.jpg", "http://h/b.jpg", "http://h/c.jpg", "http://h/d.jpg"]


def test_a_byte_order_mark_is_no_part_of_a_line(urlfile: Path) -> None:
    urlfile.write_bytes(b"\xef\xbb\xbfhttp://h/a.jpg\n\xef\xbb\xbf# joined with cat\n\xef\xbb\xbfhttp://h/b.jpg\n")
    assert urls(urlfile) == ["http://h/a.jpg", "http://h/b.jpg"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_lines_end_with_lf_crlf_or_cr(urlfile: Path, end: bytes, compress: type[bytes]) -> None:
    urlfile.write_bytes(compress(end.join([b"http://h/a.jpg", b"", b"# comment", b"http://h/b.jpg"])))
    assert [(line.number, line.text) for line in lines(urlfile)] == [(1, "http://h/a.jpg"), (4, "http://h/b.jpg")]


def test_line_ends_may_be_mixed_and_come_in_any_pieces() -> None:
    content = b"http://h/1\r\nhttp://h/2\rhttp://h/3\nhttp://h/4\n\rhttp://h/6\r\r\nhttp://h/8\r"
    found = through_a_pipe([content[at : at + 1] for at in range(len(content))])
    assert [(line.number, line.text) for line in found] == [(at, f"http://h/{at}") for at in (1, 2, 3, 4, 6, 8)]


def numbers_read_in_little_memory(urlfile: Path) -> list[int]:
    tracemalloc.start()
    try:
        found = lines(urlfile)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * LIMIT
    return [line.number for line in found]


def test_memory_stays_flat_for_lines_that_end_with_cr(urlfile: Path) -> None:
    urlfile.write_bytes(b"#" + b"x" * 3 * LIMIT + b"\r" + b"# comment\r" * 300_000 + b"http://h/a.jpg\r")
    assert numbers_read_in_little_memory(urlfile) == [300_002]


def test_memory_stays_flat_for_comments_behind_a_first_line_that_may_begin_a_table(urlfile: Path) -> None:
    urlfile.write_bytes(b"name\n" + b"# comment\n" * 300_000)
    assert numbers_read_in_little_memory(urlfile) == [1]


UTF_16 = pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])


@UTF_16
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_utf_16_with_a_mark_is_read_in_any_pieces(encoding: str, end: str) -> None:
    content = end.join(["\ufeff# Bücher", "http://h/\u4e2d\U0001f600.jpg", "", "http://h/\u0a0d\u0d0a.jpg"]).encode(
        encoding
    )
    found = through_a_pipe([content[at : at + 1] for at in range(len(content))])
    assert [(line.number, line.text) for line in found] == [
        (2, "http://h/\u4e2d\U0001f600.jpg"),
        (4, "http://h/\u0a0d\u0d0a.jpg"),
    ]


@UTF_16
def test_utf_16_in_gzip_is_read_and_counted(urlfile: Path, encoding: str) -> None:
    urlfile.write_bytes(gzip.compress("\ufeffhttp://h/a.jpg\r\nhttp://h/b.jpg\r\n".encode(encoding)))
    assert urls(urlfile) == ["http://h/a.jpg", "http://h/b.jpg"]
    assert count(urlfile) == 2


@UTF_16
def test_half_a_character_of_utf_16_is_a_fault_of_its_line_alone(urlfile: Path, encoding: str) -> None:
    urlfile.write_bytes(
        "\ufeffhttp://h/\ud83d.jpg\nhttp://h/a.jpg\nhttp://h/b.jpg".encode(encoding, "surrogatepass") + b"\0"
    )
    first, good, last = lines(urlfile)
    assert "undecodable" in first.fault
    assert good.url is not None
    assert "undecodable" in last.fault


def test_memory_stays_flat_for_utf_16(urlfile: Path) -> None:
    urlfile.write_bytes(("\ufeff" + "x" * 10_000_000 + "\nhttp://h/a.jpg\n").encode("utf-16-le"))
    assert numbers_read_in_little_memory(urlfile) == [1, 2]


def test_commas_quotes_and_spaces_inside_a_url_are_kept(urlfile: Path) -> None:
    urlfile.write_text("http://h/a,b 'c' \"d\".jpg\n")
    [line] = lines(urlfile)
    assert line.text == "http://h/a,b 'c' \"d\".jpg"
    assert line.url is not None
    assert line.url.path == "/a,b%20'c'%20%22d%22.jpg"


def test_a_line_that_is_no_url_tells_its_fault_and_the_next_ones_go_on(urlfile: Path) -> None:
    urlfile.write_bytes(b"photo.jpg\nftp://h/a.jpg\nhttp://h:99999/\nhttp://h/\0.jpg\nhttp://h/a.jpg\n")
    *bad, good = lines(urlfile)
    assert [(line.number, line.url) for line in bad] == [(1, None), (2, None), (3, None), (4, None)]
    assert all(line.fault for line in bad)
    assert (good.number, good.fault) == (5, "")


def test_undecodable_bytes_are_a_fault_of_their_line_alone(urlfile: Path) -> None:
    urlfile.write_bytes("# Bücher\nhttp://h/ä.jpg\nhttp://h/a.jpg\n".encode("latin-1"))
    bad, good = lines(urlfile)
    assert (bad.number, bad.text, bad.url) == (2, "http://h/\ufffd.jpg", None)
    assert "undecodable" in bad.fault
    assert good.url is not None


def test_a_line_of_64_kib_is_a_url_and_one_byte_more_is_a_fault(urlfile: Path) -> None:
    longest = "http://h/".ljust(LIMIT, "x")
    urlfile.write_text(f"{longest}\n{longest}x\nhttp://h/a.jpg\n")
    kept, refused, after = lines(urlfile)
    assert kept.text == longest
    assert kept.url is not None
    assert (refused.number, refused.url, refused.fault) == (2, None, "line longer than 64 KiB")
    assert refused.text == longest[:200]
    assert after.number == 3


def test_a_long_line_without_an_end_is_told_to_be_too_long(urlfile: Path) -> None:
    longest = "http://h/".ljust(LIMIT, "a")
    for text, fault in ((longest, ""), (longest + "a", "line longer than 64 KiB"), (longest[:5000], "")):
        for end in ("", "\n", "\r", "\r\n"):
            urlfile.write_bytes((text + end).encode())
            (line,) = lines(urlfile)
            assert (line.fault, line.text) == (fault, text[:200] if fault else text)


def test_a_long_url_in_a_table_is_a_fault(urlfile: Path) -> None:
    longest = "http://h/".ljust(LIMIT, "a")
    urlfile.write_text(f"id,url\n1,{longest}\n2,{longest}a\n")
    first, second = (line for group in read(urlfile, 10, Columns("url")) for line in group or ())
    assert (first.fault, first.text) == ("", longest)
    assert (second.fault, second.text) == ("URL longer than 64 KiB", longest[:200])


@pytest.mark.parametrize("line", ['"http://h/a.jpg"', "!http://h/a.jpg", "$", "&"])
def test_no_other_character_begins_a_comment(urlfile: Path, line: str) -> None:
    urlfile.write_text(f"http://h/a.jpg\n{line}\n#{line}\n")
    assert [found.text for found in lines(urlfile)] == ["http://h/a.jpg", line]
    assert count(urlfile) == 2


@pytest.mark.parametrize("name", ["+urls", "!", ".urls", "0", "--"])
def test_only_a_dash_alone_is_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UrlFileError, match=f"^{re.escape(name)}: cannot be read: No such file"):
        check(name)
    Path(name).write_text("http://h/a.jpg\n")
    check(name)
    assert [line.text for line in lines(Path(name))] == ["http://h/a.jpg"]
    assert count(name) == 1


def test_standard_input_is_not_looked_at_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check("-")
    assert list(tmp_path.iterdir()) == []


def test_a_long_comment_is_passed_over(urlfile: Path) -> None:
    urlfile.write_bytes(b"#" * 3 * LIMIT + b"\nhttp://h/a.jpg\n")
    assert urls(urlfile) == ["http://h/a.jpg"]


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_memory_stays_flat_for_an_endless_line(urlfile: Path, compress: type[bytes]) -> None:
    urlfile.write_bytes(compress(b"x" * 50_000_000 + b"\nhttp://h/a.jpg\n"))
    assert numbers_read_in_little_memory(urlfile) == [1, 2]


def test_batches_hold_no_more_lines_than_asked_for(urlfile: Path) -> None:
    urlfile.write_text("".join(f"http://h/{number}.jpg\n" for number in range(25)))
    sizes = [len(chunk) for chunk in read(urlfile, 10) if chunk]
    assert sizes == [10, 10, 5]


WITHOUT_URLS = {
    "a long line": b"x" * 5_000_000,
    "comments": b"#\n" * 1_000_000,
    "gzip of comments": gzip.compress(b"#" * 5_000_000),
    "empty gzip members": gzip.compress(b"") * 20_000,
}


@pytest.mark.parametrize("kind", WITHOUT_URLS)
def test_what_has_no_urls_is_handed_on_in_small_parts_and_not_as_nothing_to_read(urlfile: Path, kind: str) -> None:
    urlfile.write_bytes(WITHOUT_URLS[kind])
    parts = list(read(urlfile, 10))
    assert None not in parts
    assert urlfile.stat().st_size / 65536 < len(parts) < 1000


def test_gzip_is_told_by_its_first_bytes_and_read_with_all_its_members(tmp_path: Path) -> None:
    path = tmp_path / "urls.dat"
    path.write_bytes(gzip.compress(b"http://h/a.jpg\nhttp://h/") + gzip.compress(b"") + gzip.compress(b"b.jpg\n"))
    assert urls(path) == ["http://h/a.jpg", "http://h/b.jpg"]


@pytest.mark.parametrize("zeros", [1, 512, 8192, 200_000])
def test_zeros_behind_a_gzip_member_are_passed_over(urlfile: Path, zeros: int) -> None:
    first, second = gzip.compress(b"http://h/a.jpg\nhttp://h/"), gzip.compress(b"b.jpg\n")
    urlfile.write_bytes(first + bytes(zeros) + second + bytes(zeros))
    assert urls(urlfile) == ["http://h/a.jpg", "http://h/b.jpg"]
    assert count(urlfile) == 2
    urlfile.write_bytes(first + bytes(zeros) + b"no gzip")
    assert "incorrect header" in before_the_error(urlfile)[1]


def test_zeros_behind_a_gzip_member_are_passed_over_in_any_pieces() -> None:
    content = gzip.compress(b"http://h/a.jpg\n") + bytes(9)
    pieces = [content[at : at + 1] for at in range(len(content))]
    assert [line.text for line in through_a_pipe(pieces)] == ["http://h/a.jpg"]


def test_a_flood_of_empty_gzip_members_costs_no_more_than_its_length(
    urlfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("image_loader.lists.urlfile._CHUNK", 8_000_000)
    urlfile.write_bytes(gzip.compress(b"") * 400_000)
    found: list[Line] = []
    taken = seconds(lambda: found.extend(lines(urlfile)))
    assert found == []
    assert taken < 10, "with all that follows copied for each member, it takes 50 s"


def test_a_cut_gzip_is_an_error_after_the_lines_before_the_cut(urlfile: Path) -> None:
    text = "".join(f"http://h/{number}.jpg\n" for number in range(20_000))
    urlfile.write_bytes(gzip.compress(text.encode())[:-1000])
    found, message = before_the_error(urlfile)
    assert 10_000 < len(found) < 20_000
    assert [line.text for line in found] == text.splitlines()[: len(found)]
    assert str(urlfile) in message
    assert "cut off" in message


@pytest.mark.parametrize("kept", [2, 5, 12, -8, -1])
def test_a_gzip_cut_anywhere_is_an_error(urlfile: Path, kept: int) -> None:
    urlfile.write_bytes(gzip.compress(b"http://h/a.jpg\n")[:kept])
    assert "cut off" in before_the_error(urlfile)[1]


def test_a_damaged_gzip_is_an_error(urlfile: Path) -> None:
    damaged = bytearray(gzip.compress(b"http://h/a.jpg\n" * 100))
    damaged[-8] ^= 1
    urlfile.write_bytes(damaged)
    assert "damaged" in before_the_error(urlfile)[1]


def test_an_empty_list_has_no_lines(urlfile: Path) -> None:
    urlfile.touch()
    assert lines(urlfile) == []
    assert count(urlfile) == 0


def test_a_missing_list_is_an_error_that_names_it(urlfile: Path) -> None:
    assert before_the_error(urlfile) == ([], f"{urlfile}: cannot be read: No such file or directory")


def test_a_url_in_the_place_of_a_list_is_told_without_its_secrets() -> None:
    with pytest.raises(UrlFileError) as caught:
        check("http://user:secret@h/a.jpg?key=secret")
    assert str(caught.value).startswith("http://h/a.jpg?…: a URL, where a file of URLs is wanted")
    assert "secret" not in str(caught.value)


def test_a_directory_is_an_error_that_names_it(tmp_path: Path) -> None:
    assert before_the_error(tmp_path) == ([], f"{tmp_path}: cannot be read: Is a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_list_is_an_error_that_names_it(urlfile: Path) -> None:
    urlfile.touch(mode=0o000)
    assert before_the_error(urlfile) == ([], f"{urlfile}: cannot be read: Permission denied")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens but cannot be read")
def test_an_error_while_reading_is_told_in_the_same_words() -> None:
    assert before_the_error(Path("/proc/self/mem")) == ([], "/proc/self/mem: cannot be read: Input/output error")


def test_a_pipe_is_read_as_it_comes_in_any_pieces() -> None:
    content = "\ufeffhttp://h/ä.jpg\r\n#\nhttp://h/b.jpg".encode()
    pieces = [content[at : at + 1] for at in range(len(content))]
    assert [line.text for line in through_a_pipe(pieces)] == ["http://h/ä.jpg", "http://h/b.jpg"]


def test_gzip_is_read_from_a_pipe_in_any_pieces() -> None:
    content = gzip.compress(b"http://h/a.jpg\n") + gzip.compress(b"http://h/b.jpg\n")
    pieces = [content[at : at + 1] for at in range(len(content))]
    assert [line.text for line in through_a_pipe(pieces)] == ["http://h/a.jpg", "http://h/b.jpg"]


@pytest.mark.parametrize("content", [b"http://h/a.jpg\n", gzip.compress(b"http://h/a.jpg\n")], ids=["plain", "gzip"])
def test_a_pipe_with_nothing_to_read_is_not_waited_for(content: bytes) -> None:
    reader, writer = os.pipe()
    chunks = read(f"/dev/fd/{reader}", 10)
    assert next(chunks) is None
    os.write(writer, content)
    assert next(chunk for chunk in chunks if chunk)[0].text == "http://h/a.jpg"
    assert next(chunks) is None
    os.close(writer)
    assert [line for chunk in chunks for line in chunk or ()] == []
    os.close(reader)


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_pipe_is_read_on_after_a_pause(compress: type[bytes]) -> None:
    content = compress(b"".join(b"http://h/%d.jpg\n" % number for number in range(100)))
    reader, writer = os.pipe()
    found: list[Line] = []
    with os.fdopen(reader, "rb"):
        groups = read(f"/dev/fd/{reader}", 10)
        with os.fdopen(writer, "wb", buffering=0) as pipe:
            for start in range(0, len(content), 50):
                pipe.write(content[start : start + 50])
                while (group := next(groups)) is not None:
                    found += group
        found += [line for group in groups for line in group or ()]
    assert [line.text for line in found] == [f"http://h/{number}.jpg" for number in range(100)]


def test_a_table_is_known_by_its_second_row_however_late_that_comes() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb"), os.fdopen(writer, "wb", buffering=0) as pipe:
        groups = read(f"/dev/fd/{reader}", 10)
        pipe.write(b"number,url\n")
        while next(groups) is not None:
            pass
        pipe.write(b"1,http://h/a.jpg\n")
        with pytest.raises(UrlFileError, match="a table; name the column of URLs"):
            list(groups)


def test_a_fifo_that_no_one_has_opened_yet_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    chunks = read(path, 10)
    assert next(chunks) is None
    thread = written_by_a_thread([b"http://h/a.jpg\n"], os.open(path, os.O_WRONLY))
    assert [line.text for chunk in chunks for line in chunk or ()] == ["http://h/a.jpg"]
    thread.join()


READ_STANDARD_INPUT = """
from image_loader.lists.urlfile import read
print([line.text for chunk in read("-", 10) for line in chunk or ()])
"""


def test_a_dash_is_standard_input() -> None:
    content = b"http://h/a.jpg\nhttp://h/b.jpg"
    finished = subprocess.run(
        [sys.executable, "-c", READ_STANDARD_INPUT], input=content, capture_output=True, check=True
    )
    assert finished.stdout == b"['http://h/a.jpg', 'http://h/b.jpg']\n"


@pytest.mark.parametrize("redirection", ["<&-", "0>/dev/null"])
def test_standard_input_that_is_closed_or_cannot_be_read_is_an_error_that_names_it(redirection: str) -> None:
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, READ_STANDARD_INPUT]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "UrlFileError: standard input: cannot be read: Bad file descriptor" in finished.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="takes /proc")
def test_a_reader_that_is_left_early_closes_its_file(urlfile: Path) -> None:
    urlfile.write_text("http://h/a.jpg\n" * 100)
    chunks = read(urlfile, 10)
    next(chunks)
    assert str(urlfile) in open_files(os.getpid())
    assert isinstance(chunks, Iterator)
    chunks.close()  # type: ignore[attr-defined]
    assert str(urlfile) not in open_files(os.getpid())


def test_counting_leaves_out_blank_lines_and_comments(urlfile: Path) -> None:
    urlfile.write_text("\ufeff# comment\n\nhttp://h/a.jpg\nnonsense\n   \n#\nhttp://h/b.jpg")
    assert count(urlfile) == 3
    urlfile.write_bytes(gzip.compress(urlfile.read_bytes()))
    assert count(urlfile) == 3


def test_a_pipe_standard_input_and_what_cannot_be_read_have_no_count(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"http://h/a.jpg\n")[:-4])
    assert count("-") is None
    assert [count(tmp_path / name) for name in ("fifo", "cut.gz", "missing", ".")] == [None] * 4


@given(
    content=BYTES.filter(lambda content: not content.startswith(b"\x1f\x8b")),
    batch=st.integers(min_value=1, max_value=3),
)
@settings(max_examples=200, deadline=None)
def test_any_bytes_become_as_many_lines_as_were_counted(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, batch: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-bytes.txt"
    path.write_bytes(content)
    try:
        chunks = [chunk for chunk in read(path, batch) if chunk is not None]
    except UrlFileError:
        assert str(read_or_refused([content])).startswith("not a list of URLs")
        return
    counted = count(path)
    found = [line for chunk in chunks for line in chunk]
    assert max(map(len, chunks)) <= batch
    assert len(found) == counted
    assert [line.number for line in found] == sorted({line.number for line in found})
    for line in found:
        assert (line.url is None) == bool(line.fault)
        line.text.encode()


@given(pieces=st.lists(BYTES, max_size=5).filter(lambda pieces: b"".join(pieces)[:2] != b"\x1f\x8b"))
@settings(max_examples=50, deadline=None)
def test_the_pieces_in_which_a_pipe_is_read_make_no_difference(pieces: list[bytes]) -> None:
    assert read_or_refused(pieces) == read_or_refused([b"".join(pieces)])


@given(texts=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))))
@settings(max_examples=200, deadline=None)
def test_strings_are_treated_as_the_lines_of_a_file(texts: list[str]) -> None:
    found = [line for chunk in from_strings(texts, 2) for line in chunk]
    as_file = read_or_refused(["\n".join(texts).encode()])
    assert found == as_file or str(as_file).startswith("not a list of URLs")


def test_strings_with_lone_surrogates_are_a_fault() -> None:
    [[line]] = from_strings(["http://h/\udc80\ud800.jpg"], 10)
    assert line.url is None
    line.text.encode()


def test_strings_are_taken_as_they_are_needed() -> None:
    taken = iter(f"http://h/{number}.jpg" for number in range(1000))
    assert len(next(from_strings(taken, 10))) == 10
    assert next(taken) == "http://h/10.jpg"


class Odd:
    """What no list should hold; its own description fails."""

    def __repr__(self) -> str:
        """Fail."""
        raise RuntimeError


@pytest.mark.parametrize(
    ("element", "text", "kind"),
    [
        (None, "None", "NoneType"),
        (float("nan"), "nan", "float"),
        (b"http://h/a.jpg", "b'http://h/a.jpg'", "bytes"),
        (("http://h/a.jpg", 1), "('http://h/a.jpg', 1)", "tuple"),
        (Path("a.jpg"), "PosixPath('a.jpg')", "PosixPath"),
        (b"x" * 10**7, "b'xxxxxxxxxxx...xxxxxxxxxxxxx'", "bytes"),
        (["x" * 10**6] * 10**5, None, "list"),
        (Odd(), None, "Odd"),
    ],
)
def test_what_is_no_string_is_a_fault_of_its_own(element: object, text: str | None, kind: str) -> None:
    before, odd, after = (
        line for chunk in from_strings(["http://h/a.jpg", element, "http://h/b.jpg"], 2) for line in chunk
    )
    assert (before.url and before.url.path, after.url and after.url.path) == ("/a.jpg", "/b.jpg")
    assert (odd.number, odd.url, odd.fault) == (2, None, f"a URL is a str; this is: {kind}")
    assert odd.text == text if text else 0 < len(odd.text) < 500


@pytest.mark.parametrize("number", [0, 1, 5])
def test_an_exception_of_the_iterable_comes_after_the_lines_before_it(number: int) -> None:
    def some() -> Iterator[str]:
        yield from (f"http://h/{at}.jpg" for at in range(number))
        raise LookupError("the database is gone")

    found: list[Line] = []
    with pytest.raises(LookupError, match="the database is gone"):
        for chunk in from_strings(some(), 2):
            found += chunk
    assert [line.text for line in found] == [f"http://h/{at}.jpg" for at in range(number)]
