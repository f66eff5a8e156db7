"""What is no list: recognised by its beginning, with what to type instead; and never a list of URLs."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_loader.errors import UrlFileError
from image_loader.lists.forms import check_lines, hint
from image_loader.lists.urlfile import count, read


def refusal(path: Path) -> str:
    with pytest.raises(UrlFileError) as caught:
        list(read(path, 10))
    return str(caught.value)


def told(path: Path) -> list[str]:
    return [line.text for chunk in read(path, 10) for line in chunk or ()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "urls"


def spreadsheet(path: Path) -> bytes:
    """Return what the beginning of an xlsx file is: a zip with this entry first."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "kind", "advice"),
    [
        (b"%PDF-1.7\n", "a PDF document", "save its URLs"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a spreadsheet", "--url-column"),
        (b"PAR1\x15\x04\x15\x10", "a Parquet file", "as text"),
        (b"SQLite format 3\0", "an SQLite database", "sqlite3 FILE"),
        (b"\xfd7zXZ\0\0\4", "compressed by xz", "xz -dc FILE | loader - DIRECTORY"),
        (b"BZh11AY&SY", "compressed by bzip2", "bzip2 -dc FILE | loader - DIRECTORY"),
        (b"BZh91AY&SY", "compressed by bzip2", "bzip2 -dc FILE | loader - DIRECTORY"),
        (b"\x28\xb5\x2f\xfd\x24\0\0\0", "compressed by zstd", "zstd -dc FILE | loader - DIRECTORY"),
        ("\ufeffhttp://h/a.jpg\n".encode("utf-32-le"), "UTF-32", "iconv -f UTF-32 -t UTF-8 FILE"),
        ("http://h/a.jpg\n".encode("utf-16-le"), "UTF-16 without", "iconv -f UTF-16LE -t UTF-8 FILE"),
        ("ab\u0100\n".encode("utf-16-le"), "UTF-16 without", "iconv -f UTF-16LE -t UTF-8 FILE"),
        ("http://h/a.jpg\n".encode("utf-16-be"), "UTF-16 without", "iconv -f UTF-16BE -t UTF-8 FILE"),
        (b"<!DOCTYPE html>\n<html>", "HTML", "save its URLs"),
        (b"\n  <html lang='en'>\n", "HTML", "save its URLs"),
        (b"<?xml version='1.0'?>\n<urlset>", "XML", "save its URLs"),
        (b"[\n  'http://h/a.jpg'\n]", "JSON", "jq -r"),
        (b'["http://h/a.jpg"]\n', "JSON", "jq -r"),
        (b'{"url": "http://h/a.jpg"}\n{"url": "http://h/b.jpg"}\n', "JSON", "jq -r"),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_files_of_other_kinds_are_named_with_what_to_type(
    path: Path, content: bytes, kind: str, advice: str, compress: type[bytes]
) -> None:
    path.write_bytes(compress(content))
    message = refusal(path)
    assert message.startswith(f"{path}: not a list of URLs: ")
    assert kind in message
    assert advice in message


@pytest.mark.parametrize("head", [b"h\0\0\0", b"\0\0\0h", b"\0h\0\0", b"h\0t", b"http"])
def test_what_is_not_utf_16_is_not_called_so(path: Path, head: bytes) -> None:
    path.write_bytes(head)
    assert told(path) == [head.decode()]


def test_a_spreadsheet_is_named_with_what_to_type(path: Path) -> None:
    path.write_bytes(spreadsheet(path))
    assert "a zip file or a spreadsheet; save the sheet as CSV" in refusal(path)
    assert "unzip -p FILE | loader - DIRECTORY" in refusal(path)


TABLES = {
    "tab, without heading": (b"a red shoe\thttp://h/a.jpg\na blue shoe\thttp://h/b.jpg\n", "2"),
    "tab, one row": (b"a red shoe\thttp://h/a.jpg", "2"),
    "tab, the URL first": (b"http://h/a.jpg\ta red shoe\nhttp://h/b.jpg\ta blue shoe\n", "1"),
    "tab, with heading": (b"id\tcaption\timage\r\n1\tred\thttp://h/a.jpg\r\n", "image"),
    "comma, with heading": (b"id,caption,image_link\n1,red,http://h/a.jpg\n2,blue,http://h/b.jpg\n", "image_link"),
    "comma, without heading": (b"1,red,http://h/a.jpg\n2,blue,http://h/b.jpg\n", "3"),
    "comma, the URL first": (b"URL,caption\nhttp://h/a.jpg,red\nhttp://h/b.jpg,blue\n", "URL"),
    "semicolon, a mark, quoted line ends": (
        b'\xef\xbb\xbfid;title;image link\r\n1;"Shoe,\r\nred";http://h/a.jpg\r\n', "'image link'"
    ),
    "quoted fields": (b'"1","red","http://h/a.jpg"\n"2","blue","http://h/b.jpg"\n', "3"),
    "quoted URLs": (b'"http://h/a,1.jpg"\n"http://h/b.jpg"\n', "1"),
    "quoted URLs with heading": (b'"link"\n"http://h/a,1.jpg"\n', "link"),
    "quoted fields, the URL first": (b'"url","caption"\n"http://h/a.jpg","Shoe,\nred"\n', "url"),
    "quoted fields and semicolons": (b'"image link";"id"\n"http://h/a,1.jpg";"1"\n', "'image link'"),
    "rows of other lengths": (b"id,image\n1,http://h/a.jpg,,\n", "image"),
    "a row longer than the heading": (b"id,image\n1,red,http://h/a.jpg\n", "COLUMN"),
    "a row much longer than the heading": (b"id,image\n1,red,shoe,http://h/a.jpg\n", "COLUMN"),
    "an empty heading": (b"id,name,\n1,red,http://h/a.jpg\n", "3"),
    "an empty heading in the second place": (b"id,\n1,http://h/a.jpg\n", "2"),
    "two columns, quoted line ends": (b'title,link\n"Shoe,\nred",http://h/a.jpg\n', "link"),
    "two columns of links, quoted line ends": (b'title,image,link\n"Shoe,\nred",http://h/a.jpg,http://h/\n', "image"),
    "comments first": (b"# exported today\n\n1;http://h/a.jpg\n# more\n2;http://h/b.jpg\n", "2"),
    "a heading for a terminal": (b"\x1b[31mid,url\x1b[31m\n1,http://h/a.jpg\n", "'url\\x1b[31m'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_told_with_the_column_to_name(path: Path, kind: str) -> None:
    content, column = TABLES[kind]
    path.write_bytes(content)
    assert refusal(path).endswith(
        f"a table; name the column of URLs, such as: loader --url-column {column} URLFILE DIRECTORY"
    )


@pytest.mark.parametrize(
    "content",
    [
        "http://h/a,b.jpg\nhttp://h/c;d.jpg",
        'http://h/a"b",c.jpg\nhttp://h/"c",d.jpg',
        'http://h/a.jpg,"caption"\nhttp://h/b.jpg,"caption"',
        "http:/h/a.jpg,x\nhttp:h/a.jpg;x",
        "https://h/a.jpg,x\nhttps://h/b.jpg,x",
        'http://h/a.jpg\t"b"c\nhttp://h/b.jpg\t"b"c',
        "HTTPS://h/a.jpg,http://h/b.jpg\nhttp://h/a?u=1,http://h/b",
        "http://h/a,link\n1,http://h/b.jpg",
        'http://h/a;"b"\n1;"http://h/b.jpg"',
        "photo.jpg\nhttp://h/a.jpg",
        "www.h.com/a,b.jpg\nhttp://h/a,b.jpg",
        "list of images, exported today\nhttp://h/a,b.jpg\n1,http://h/b.jpg",
        "image,list\nhttp://h/a.jpg",
        "image,list\nhttp://h/a,b,c.jpg",
        'photos,"best"er\n1,http://h/b.jpg',
        '"my photos"\n"more"\nhttp://h/b.jpg',
        "BZh0.jpg\nhttp://h/b.jpg",
        "list;of;links\nhttp://h/a.jpg",
        "1,red,http://h/a.jpg\nhttp://h/b.jpg",
        "url\nhttp://h/b.jpg",
        "'http://h/a.jpg',\n'http://h/b.jpg',",
        "[a, b]\nhttp://h/b.jpg",
        "<http://h/a.jpg>\nhttp://h/b.jpg",
        "ftp://h/a,b.jpg\nftp://h/c,d.jpg",
        "photo of a cat http://h/a.jpg\nphoto of a dog http://h/b.jpg",
    ],
)
def test_a_list_is_read_whatever_is_in_its_lines(path: Path, content: str) -> None:
    path.write_text(content)
    assert told(path) == content.split("\n")
    assert count(path) == len(told(path))


@given(st.lists(st.text(alphabet="ab,;\"'|= /[]{}<>\\").map("http://h/".__add__).map(str.strip), min_size=1))
@settings(max_examples=300, deadline=None)
def test_a_list_of_urls_is_never_taken_for_a_table(lines: list[str]) -> None:
    assert not _is_refused(lines[0], lines[1] if lines[1:] else None)
    assert not _is_refused("photos", lines[0])
    assert _is_refused("photos,link", f'1,"{lines[0].replace(chr(34), "")}"'), "no table would be seen"


def _is_refused(first: str, second: str | None) -> bool:
    try:
        check_lines(first, second)
    except UrlFileError:
        return True
    return False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h/a.jpg?w=1&amp;h=2", "'&amp;' is how HTML writes '&'"),
        ("http://h/a.jpg?w=1&#38;h=2", "'&#38;' is how HTML writes '&'"),
        ("http://h/a.jpg a red shoe", "text stands after a space"),
        ("http://h/a.jpg 2x", "text stands after a space"),
        ("http://h/a.jpg http://h/b.jpg", "several URLs"),
        ("http://h/a.jpg,http://h/b.jpg", "several URLs"),
        ("http://h/a.jpg,a red shoe", "text stands after a space"),
        ("http://h/a.jpg,red", "text stands after the URL"),
        ("http://h/a.jpg;1", "text stands after the URL"),
        ('http://h/a.jpg"', "text stands after the URL"),
        ('"http://h/a.jpg"', "'\"' stands before the URL"),
        ("'http://h/a.jpg'", '"\'" stands before the URL'),
        ("<http://h/a.jpg>", "'<' stands before the URL"),
        ("red\thttp://h/a.jpg", "a tab stands in the line"),
        ("a red shoe: http://h/a.jpg", "text stands before the URL"),
        ("photo.jpg", ""),
        ('"photo.jpg"', ""),
        ("xhttp://h/a.jpg", ""),
        ("http://h/a.jpg", ""),
        ("http://h/a,b;c.jpg?u=http://h/b.jpg&x=1,2", ""),
        ("http://web.archive.org/web/2015/http://h/a.jpg", ""),
    ],
)
def test_a_hint_says_what_may_be_wrong_with_a_line(text: str, expected: str) -> None:
    assert hint(text).startswith(expected)
    assert bool(hint(text)) == bool(expected)


def test_the_hint_is_part_of_the_fault_of_a_line(path: Path) -> None:
    path.write_text("http://h/a.jpg\nred\thttp://h/a.jpg\nhttp://a b/c.jpg\n")
    faults = [line.fault for chunk in read(path, 10) for line in chunk or ()]
    assert faults[0] == ""
    assert faults[1].endswith("; a tab stands in the line; name a table's column with --url-column")
    assert faults[2] == "bad host name; text stands after a space; write one URL a line"
