"""Serve the pictures of a folder on 127.0.0.1: print one URL a line, then answer until the end is asked for.

One picture may be kept for an hour without asking (Cache-Control: max-age); about each of the others the server wants
to be asked every time, and answers 304 while it has not changed (RFC 9110, 13; RFC 9111, 5.2.2).
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

MEDIA_TYPES = {
    ".gif": "image/gif",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, and the headers that tell a client how long to keep it and how to ask for it again."""

    body: bytes
    media_type: str
    etag: str
    last_modified: str
    cache_control: str

    def is_unchanged(self, if_none_match: str | None, if_modified_since: str | None) -> bool:
        """Tell whether the client has this very picture; the entity tag outranks the date (RFC 9110, 13.2.2)."""
        if if_none_match is not None:
            return if_none_match == "*" or self.etag in if_none_match
        if if_modified_since is None:
            return False
        try:
            return parsedate_to_datetime(self.last_modified) <= parsedate_to_datetime(if_modified_since)
        except (ValueError, TypeError, OverflowError):  # no date, or one without a time zone: to be ignored
            return False


class PictureHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the pictures it was given."""

    protocol_version = "HTTP/1.1"

    def __init__(self, pictures: dict[str, Picture], *connection: object) -> None:
        self.pictures = pictures
        super().__init__(*connection)  # type: ignore[arg-type]  # as the server hands them on

    def do_GET(self) -> None:
        """Send the picture, or 304 where the client has it already."""
        picture = self.pictures.get(self.path)
        if picture is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        elif picture.is_unchanged(self.headers["If-None-Match"], self.headers["If-Modified-Since"]):
            self.send_head(HTTPStatus.NOT_MODIFIED, picture)
        else:
            self.send_head(HTTPStatus.OK, picture)
            if self.command != "HEAD":
                self.wfile.write(picture.body)

    do_HEAD = do_GET  # noqa: N815  # the name that http.server looks for

    def send_head(self, status: HTTPStatus, picture: Picture) -> None:
        """Send the status and the headers; those of a 304 renew what the client has stored (RFC 9110, 15.4.5)."""
        self.send_response(status)
        self.send_header("Last-Modified", picture.last_modified)
        self.send_header("ETag", picture.etag)
        self.send_header("Cache-Control", picture.cache_control)
        if status is HTTPStatus.OK:
            self.send_header("Content-Type", picture.media_type)
            self.send_header("Content-Length", str(len(picture.body)))
        self.end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002
        """Show each request as one short line."""
        status = code.value if isinstance(code, HTTPStatus) else code
        sys.stderr.write(f"         server: {self.command} {self.path} -> {status}\n")  # at once, unlike print()


def picture(file: Path, cache_control: str) -> Picture:
    """Read one picture."""
    body = file.read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    modified = formatdate(file.stat().st_mtime, usegmt=True)
    return Picture(body, MEDIA_TYPES[file.suffix], etag, modified, cache_control)


def main(folder: str) -> None:
    """Serve the pictures of ``folder`` on a free port."""
    files = sorted(file for file in Path(folder).iterdir() if file.suffix in MEDIA_TYPES)
    lifetimes = ["max-age=3600"] + ["no-cache"] * len(files)
    pictures = {"/" + quote(file.name): picture(file, kept) for file, kept in zip(files, lifetimes, strict=False)}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(PictureHandler, pictures))
    for path in pictures:
        print(f"http://127.0.0.1:{server.server_port}{path}")
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # ends a pipe: its reader knows that the list is whole
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
