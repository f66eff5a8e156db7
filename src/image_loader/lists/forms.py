"""What is not a list of URLs: other kinds of files, known by their first bytes, and lines with more than a URL."""

from __future__ import annotations

import re

from image_loader.errors import UrlFileError
from image_loader.url import printable, shortened

HEAD = 8
"""Bytes from the beginning of a file that ``check_head`` has to see."""

_NOT_A_LIST = "not a list of URLs"
_SHEET = "save the sheet as CSV and name the column of URLs with --url-column"
_UNPACK = "unpack it: {} FILE | loader - DIRECTORY"
_CONVERT = "convert it: iconv -f {} -t UTF-8 FILE | loader - DIRECTORY"
_KINDS = (
    ((b"PK\3\4", b"PK\5\6"), f"a zip file or a spreadsheet; {_SHEET}, or {_UNPACK.format('unzip -p')}"),
    (b"\xd0\xcf\x11\xe0", f"a spreadsheet or another Office file; {_SHEET}"),
    (b"%PDF-", "a PDF document; save its URLs as text, one a line"),
    (b"PAR1", "a Parquet file; write its column of URLs as text, one a line"),
    (b"SQLite f", "an SQLite database; write its URLs as text: sqlite3 FILE 'SELECT url FROM …' | loader - DIRECTORY"),
    (b"\xfd7zXZ\0", "compressed by xz; " + _UNPACK.format("xz -dc")),
    (tuple(b"BZh%d" % level for level in range(1, 10)), "compressed by bzip2; " + _UNPACK.format("bzip2 -dc")),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; " + _UNPACK.format("zstd -dc")),
    ((b"\xff\xfe\0\0", b"\0\0\xfe\xff"), "text in UTF-32; " + _CONVERT.format("UTF-32")),
)
_UTF_16 = "text in UTF-16 without a byte order mark; " + _CONVERT
_MARKUP = r"(?i)<(?:!doctype|\?xml|html|head|body|rss|urlset|svg)\b|<!--"
_JSON = r"[\[{]\s*(?:[\"{\[\]}]|$)"
_URL_START = r"(?i)\s*https?:"
_URL_FIELD = r"(?i)\s*https?:[/\\]"
_URL_HEADING = (
    r"(?i)\s*(?:[\w:.-]+ )?[\w:.-]*(?:ur[li]|link|href|src|image|img|picture|photo|bild)[\w:.-]*(?: [\w:.-]+)?\s*"
)


def check_head(head: bytes) -> None:
    """Raise ``UrlFileError`` for the first ``HEAD`` bytes of a file that is no text, or none that is read here."""
    for beginnings, kind in _KINDS:
        if head.startswith(beginnings):
            raise UrlFileError(f"{_NOT_A_LIST}: {kind}")
    for byte_order, letters, zeros in (("LE", head[:4:2], head[1:4:2]), ("BE", head[1:4:2], head[:4:2])):
        if zeros == b"\0\0" and b"\0" not in letters:
            raise UrlFileError(f"{_NOT_A_LIST}: {_UTF_16.format('UTF-16' + byte_order)}")


def is_url(text: str) -> bool:
    """Whether a line begins as a URL does and is no row of a table: such a first line is a list's."""
    return text[:6].lower().startswith(("http:", "https:")) and "\t" not in text


def check_lines(first: str, second: str | None) -> None:
    """Raise ``UrlFileError`` if these first lines are those of a table or another kind of document.

    A list is never refused for what its URLs contain: its first line is a URL, or the second holds nothing else.
    """
    if is_url(first):
        return
    if re.match(_MARKUP, first):
        raise UrlFileError(f"{_NOT_A_LIST}: an HTML or XML document; save its URLs as text, one a line")
    if re.match(_JSON, first):
        raise UrlFileError(
            f"{_NOT_A_LIST}: JSON; write its URLs as text, such as: jq -r '.[].url' FILE | loader - DIRECTORY"
        )
    for delimiter in "\t;,":
        if column := _url_column(first, second, delimiter):
            raise UrlFileError(
                f"{_NOT_A_LIST}: a table; name the column of URLs, "
                f"such as: loader --url-column {column} URLFILE DIRECTORY"
            )


def hint(text: str) -> str:
    """Return what may be wrong with a line that is no URL, or whose URL a server does not know; empty for nothing.

    >>> hint("http://h/a.jpg?w=1&amp;h=2")
    "'&amp;' is how HTML writes '&'; write '&' instead"
    """
    if match := re.search(r"(?i)&(?:amp|#38|#x26);", text):
        return f"{match[0]!r} is how HTML writes '&'; write '&' instead"
    if text[:1] in "\"'<" and re.match(_URL_START, text[1:]):
        return f"{text[0]!r} stands before the URL; remove it, or name a table's column with --url-column"
    if "\t" in text:
        return "a tab stands in the line; name a table's column with --url-column"
    if re.match(_URL_START, text):
        return _hint_after(text)
    if re.search(r"(?i)\bhttps?://", text):
        return "text stands before the URL; write one URL a line, or name a table's column with --url-column"
    return ""


def _hint_after(text: str) -> str:
    if re.search(r"(?i)[\s,;|]https?://", text):
        return "several URLs stand in the line; write one URL a line"
    if re.search(r"\s", text.strip()):
        return "text stands after a space; write one URL a line"
    if re.search(r"(?i)\.(?:jpe?g|png|gif|webp|avif|svg|tiff?)[,;|\"'>)]", text):
        return "text stands after the URL; write one URL a line, or name a table's column with --url-column"
    return ""


def _url_column(first: str, second: str | None, delimiter: str) -> str:
    """Return how to name the column of URLs, if the lines are rows with this delimiter, else an empty text."""
    one, two = _fields(first, delimiter), _fields(second or "", delimiter)
    if _holds_row(first, one):
        return str(_place(one) + 1) if second is None or _holds_row(second, two) else ""
    if second is None or not (len(one) > 1 or first.startswith('"')):
        return ""
    named = [place for place, heading in enumerate(one) if re.fullmatch(_URL_HEADING, heading[:100])]
    if _holds_row(second, two):
        place = _place(two)
    elif named and is_url(second):
        place = _place(two)
        if len(one) != len(two) or place not in named:
            return ""
    elif len(one) > 1 and (f'{delimiter}"' in second or second.startswith('"')):
        place = named[0] if named else len(one)
    else:
        return ""
    return _shown(one[place].strip(), place) if place < len(one) else "COLUMN"


def _holds_row(line: str, fields: list[str]) -> bool:
    """Whether one of several fields, or a quoted one, is a URL."""
    several = len(fields) > 1 and not is_url(line)
    return (several or line.startswith('"')) and _place(fields) < len(fields)


def _place(fields: list[str]) -> int:
    """Return the place of the first URL among the fields; their number if there is none."""
    return next((place for place, field in enumerate(fields) if re.match(_URL_FIELD, field)), len(fields))


def _fields(line: str, delimiter: str) -> list[str]:
    """Return the fields of a row; none where a quoted one is not followed by this delimiter."""
    import csv

    try:
        # The row may go on in the next line: the second quote is read where the last field is still open.
        return next(csv.reader([line, '"'], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _shown(heading: str, place: int) -> str:
    import shlex

    return shlex.quote(shortened(printable(heading))) if heading else str(place + 1)
