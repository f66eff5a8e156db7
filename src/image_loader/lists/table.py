"""A table becomes rows, as a stream: CSV or TSV, with quoted fields, told apart by its first row (RFC 4180)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from image_loader.errors import UrlFileError
from image_loader.model import Columns
from image_loader.url import printable, redacted, shortened

LIMIT = 1_048_576
"""Longest row, in bytes; the tables of shops have long descriptions."""

_DELIMITERS = "\t;,"  # in this order where nothing else tells: a URL may well hold a comma
_TOO_LONG = "row longer than 1 MiB"
_LONG_FIELD = "field longer than 128 KiB; is a quote not closed?"
_LOOKED_AT = 100_000  # characters that the first row may have
_URL = r"(?i)[\s\"]*https?:[^\t]*"
_BARE_URL = r"(?i)\s*https?:[^\t\"]*"
_SHOWN_COLUMNS = 50
_CELL_OF_DATA = r"(?i)\s*(?:$|www\.|//|[a-z][a-z0-9+.-]*:[/\\]|data:)"
_SEPARATOR_LINE = r"(?i)\s*sep=([,;|\t])\s*"  # Excel's


class Row(NamedTuple):
    """One row: what its cells hold, or what is wrong with it; ``number`` is that of its first line."""

    number: int
    url: str
    name: str | None = None
    fault: str = ""


def rows(groups: Iterable[list[bytes] | None], columns: Columns) -> Iterator[list[Row] | None]:
    """Yield the rows of a table, without its headings, from lines without their ends; None stands for "nothing yet".

    Raises ``UrlFileError`` if there is no such column.
    """
    table = _Table(columns)
    for group in groups:
        yield None if group is None else table.feed(group)
    yield table.feed([], ended=True)


class _StarvedError(Exception):
    """The lines end within a quoted field."""


class _Table:
    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._delimiter = ""
        # Of the first row: how many fields it has, and the places of the columns among them.
        self._width = 0
        self._place, self._name_place = 0, -1
        # The lines from the beginning of a row that has not ended, and the number of the first of them.
        self._held: list[str] = []
        self._number = 1

    def feed(self, raw_lines: list[bytes], *, ended: bool = False) -> list[Row]:
        """Return the rows that end in these lines."""
        lines = [_text(raw) for raw in raw_lines]
        in_quotes = bool(self._held)
        self._held += lines
        if not self._delimiter and not self._begin(ended=ended):
            return []
        # An open quoted field is not read again until a line with a quote comes.
        found = [] if in_quotes and not ended and not any('"' in line for line in lines) else self._rows(ended=ended)
        if sum(map(len, self._held)) > LIMIT:
            found.append(self._bad(0, f"{_TOO_LONG}; is a quote not closed?"))
            self._skip(len(self._held))
        return found

    def _begin(self, *, ended: bool) -> bool:
        """Tell the delimiter by the first row that is not blank, once it is there."""
        self._skip(next((place for place, line in enumerate(self._held) if line.strip("\ufeff \n")), len(self._held)))
        if not self._held:
            return False
        self._held[0] = self._held[0].removeprefix("\ufeff")
        if match := re.fullmatch(_SEPARATOR_LINE, self._held[0]):
            self._delimiter = match[1]
            self._skip(1)
            return True
        row = _until_quotes_are_closed(self._held)
        if row is None and not ended and sum(map(len, self._held)) < _LOOKED_AT:
            return False
        self._delimiter = _delimiter(row or self._held[:1], self._columns)
        return True

    def _skip(self, count: int) -> None:
        del self._held[:count]
        self._number += count

    def _rows(self, *, ended: bool) -> list[Row]:
        found: list[Row | None] = []
        done = 0
        while done < len(self._held):
            begun = done
            reader = csv.reader(
                _lines(self._held, begun, ended=ended), delimiter=self._delimiter, skipinitialspace=True
            )
            try:
                for fields in reader:
                    end = begun + reader.line_num
                    if self._is_stray(done, end, fields):
                        found.append(self._row(done, self._unquoted(self._held[done])))
                        done += 1
                        break
                    found.append(self._row(done, fields))
                    done = end
            except _StarvedError:
                break
            except csv.Error:  # A field is longer than the library takes.
                end = begun + reader.line_num
                is_stray = self._count_rows(done, end) > 1
                found.append(
                    self._row(done, self._unquoted(self._held[done])) if is_stray else self._bad(done, _LONG_FIELD)
                )
                done = done + 1 if is_stray else end
        self._skip(done)
        return [row for row in found if row is not None]

    def _is_stray(self, start: int, end: int, fields: list[str]) -> bool:
        """Whether the first quote of these lines, which quotes make one row, is part of a text.

        So it is where two of the lines are rows of their own, or the first is one and all of them together are none.
        """
        if end - start > 1:
            if self._count_rows(start, end) > 1:
                return True
        elif '"' not in self._held[start] or (len(fields) == self._width and fields[self._place].startswith("http")):
            return False  # Most rows: the searches below would cost them a quarter of their time.
        return not _has_url(fields, self._url_place()) and self._count_rows(start, start + 1, _BARE_URL) == 1

    def _count_rows(self, start: int, end: int, url: str = _URL) -> int:
        """Return how many of the lines are whole rows if their quotes are taken for text."""
        place, width = self._url_place(), self._width or len(self._unquoted(self._held[start]))
        lines = (self._unquoted(line) for line in self._held[start:end])
        return sum(len(fields) == width and _has_url(fields, place, url) for fields in lines)

    def _url_place(self) -> int:
        """Return the place of the URLs; before the headings are read, -1 for a column that is given by its heading."""
        return self._place if self._width else (_number(self._columns.url) or 0) - 1

    def _unquoted(self, line: str) -> list[str]:
        return line.rstrip("\n").split(self._delimiter)

    def _row(self, place: int, fields: list[str]) -> Row | None:
        """Return what a row holds; nothing of a blank one, and of the headings."""
        if not self._width and fields:
            self._width = len(fields)
            self._place, self._name_place = _places(fields, self._columns)
            if not _is_data(fields, self._columns, self._place):
                return None
        if fields == [_TOO_LONG]:
            return self._bad(place, _TOO_LONG)
        url = fields[self._place].strip() if len(fields) > self._place else ""
        if not url:
            return self._bad(place, self._missing(fields)) if any(map(str.strip, fields)) else None
        name = fields[self._name_place].strip() if 0 <= self._name_place < len(fields) else ""
        return Row(self._number + place, url, name or None)

    def _missing(self, fields: list[str]) -> str:
        column = shortened(printable(self._columns.url))
        return f"no URL in column {column}" if len(fields) > self._place else f"no column {column} in this row"

    def _bad(self, place: int, fault: str) -> Row:
        number = self._number + place
        return Row(number, "", None, f"{fault} (line {number})")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape") + "\n" if len(raw) <= LIMIT else _TOO_LONG


def _lines(lines: list[str], start: int, *, ended: bool) -> Iterator[str]:
    for place in range(start, len(lines)):
        yield lines[place]
    if not ended:
        raise _StarvedError


def _until_quotes_are_closed(lines: list[str]) -> list[str] | None:
    quotes = 0
    for count, line in enumerate(lines, 1):
        quotes += line.count('"')
        if quotes % 2 == 0:
            return lines[:count]
    return None


def _delimiter(row: list[str], columns: Columns) -> str:
    """Return what separates the fields of the first row: what makes a column of the one that is asked for."""
    lines = [line[:_LOOKED_AT] for line in row]
    split = {delimiter: _fields(lines, delimiter) for delimiter in _DELIMITERS}
    plain = {delimiter: lines[0].split(delimiter) for delimiter in _DELIMITERS}  # The first quote may be none.

    def likeness(delimiter: str) -> tuple[bool, bool, int]:
        fields = split[delimiter]
        return _fits(fields, columns.url), _fits(plain[delimiter], columns.url), len(fields)

    return max(_DELIMITERS, key=likeness)


def _fields(lines: list[str], delimiter: str) -> list[str]:
    with suppress(csv.Error):  # A field is longer than the library takes.
        return next(csv.reader(lines, delimiter=delimiter, skipinitialspace=True), [])
    return []


def _fits(fields: list[str], column: str) -> bool:
    place = _place(fields, column)
    return place is not None and (_number(column) is None or _has_url(fields, place))


def _has_url(fields: list[str], place: int, url: str = _URL) -> bool:
    return 0 <= place < len(fields) and re.fullmatch(url, fields[place]) is not None


def _place(fields: list[str], column: str) -> int | None:
    """Return the place of a column; None if there is none of this heading or number."""
    number = _number(column)
    if number is not None and 1 <= number <= len(fields):
        return number - 1
    headings = [field.strip() for field in fields]
    folded = [heading.casefold() for heading in headings]
    for names, wanted in ((headings, column.strip()), (folded, column.strip().casefold())):
        if wanted in names:
            return names.index(wanted)
    return None


def _number(column: str) -> int | None:
    return int(column) if re.fullmatch("[0-9]{1,9}", column) else None


def _places(fields: list[str], columns: Columns) -> tuple[int, int]:
    """Return where the URLs are, and the names; the latter is -1 where none are wanted."""
    url = _place(fields, columns.url)
    name = -1 if columns.name is None else _place(fields, columns.name)
    for column, place in ((columns.url, url), (columns.name or "", name)):
        if place is None:
            raise UrlFileError(_no_column(fields, column))
    return url or 0, name or 0


def _is_data(fields: list[str], columns: Columns, place: int) -> bool:
    """Whether the first row is no headings: columns are named by numbers, and that of the URLs holds no name."""
    numbers = _number(columns.url) is not None and (columns.name is None or _number(columns.name) is not None)
    return numbers and re.match(_CELL_OF_DATA, fields[place]) is not None


def _no_column(fields: list[str], column: str) -> str:
    shown = [shortened(redacted(field) if "://" in field else printable(field.strip())) for field in fields]
    more = ", …" if len(shown) > _SHOWN_COLUMNS else ""
    what = f"no column {shortened(printable(column))!r} among the {len(shown)} of the first row"
    return f"{what}: {', '.join(shown[:_SHOWN_COLUMNS])}{more}; name one of them, or its number from 1"
