"""One attempt at one image, over real sockets and into real files: what is saved, what is refused, what is resumed."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asking import Asking
from conftest import CLOCK_STEP, SETTINGS, leftovers
from exchange import PNG, End, Request, chunked, head, length, png, whole
from image_loader import freshness
from image_loader.attempt import Downloader
from image_loader.errors import DirectoryError, DownloadError
from image_loader.lists.naming import spares
from image_loader.model import (
    BEING_SAVED,
    SAVED_BEFORE,
    SAVED_MEANWHILE,
    Blame,
    Failure,
    Image,
    Job,
    Lifetime,
    Name,
    NotModified,
    Reason,
    Result,
    Saved,
    Validators,
)
from image_loader.store.directory import Directory
from image_loader.url import parse
from server import Scripted, Server, plays

BODY = png("download", 4000)
TAG = '"strong"'
KEPT = (f"ETag: {TAG}", "Accept-Ranges: bytes")
CUT = plays(whole(BODY, *KEPT)[:-2000], End.CLOSE)
MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"
BUSY = (429, 503)

Script = Callable[[Request], Iterable[Any]]


@dataclass(frozen=True)
class House:
    """A downloader at its directory."""

    asking: Asking
    downloader: Downloader
    directory: Directory

    def attempt(self, job: Job) -> Result:
        """Make an attempt from its beginning to its end, on whatever connections it takes."""
        while True:
            try:
                connection = self.asking.connected((job.hop or job).url.origin)
            except DownloadError as error:
                return error.failure
            try:
                result = self.downloader.attempt(job, connection)
            finally:
                self.asking.give_back(connection)
            if not isinstance(result, Job):
                return result
            job = result

    def failure(self, job: Job) -> Failure:
        """Make an attempt that fails."""
        result = self.attempt(job)
        assert isinstance(result, Failure), result
        return result

    def saved(self, job: Job) -> Image:
        """Make an attempt that saves the image."""
        result = self.attempt(job)
        assert isinstance(result, Saved), result
        return result.image

    def content(self, name: str = "a.png") -> bytes:
        return (self.directory.path / name).read_bytes()


@pytest.fixture
def make_house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    made: list[tuple[Asking, Directory, Downloader]] = []

    def make(processors: frozenset[int] = frozenset(), **changes: Any) -> House:
        settings = SETTINGS._replace(**changes)
        transport, directory = Asking(settings), Directory(tmp_path / "images")
        downloader = Downloader(transport, directory, settings, processors)
        made.append((transport, directory, downloader))
        return House(transport, downloader, directory)

    yield make
    for transport, directory, downloader in made:
        downloader.interrupt()
        transport.close()
        directory.close()


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


def job(server: Server, **changes: Any) -> Job:
    """Return a job for an image of which nothing is known."""
    new = Job(1, parse(server.url("/a.png")), 1, Name("a.png", complete=True), None, Validators(), inode=None)
    return new._replace(**changes)


def known(server: Server, house: House, **changes: Any) -> Job:
    """Return a job for an image that stands in place, as the index knows it."""
    path = house.directory.path / "a.png"
    path.write_bytes(b"old")
    os.utime(path, (1e9, 1e9))
    validators = Validators('"old"', MODIFIED)
    state = path.stat()
    image = Image("a.png", 3, 10**18, state.st_ctime_ns, "image/png", "00" * 32, validators, Lifetime(), 1.0, 2.0)
    return job(server, image=image, validators=validators, inode=state.st_ino, **changes)


def lasts(told: Image | NotModified) -> float:
    """Return for how many seconds from its last check an image is fresh."""
    return freshness.end(told.lifetime, told.checked) - told.checked


def assert_untouched(house: House) -> None:
    """The old image is as it was, and nothing else is there."""
    assert house.content() == b"old"
    assert (house.directory.path / "a.png").stat().st_mtime == 1e9
    assert leftovers(house.directory.path) == []


# Other runs --------------------------------------------------------------------------------------------------------


def save_elsewhere(house: House, name: str = "a.png") -> None:
    """Save an image as another run does, once the file system's clock has come to the time of ours."""
    time.sleep(CLOCK_STEP)
    partial = house.directory.path / "partial"
    partial.write_bytes(b"saved by another run")
    partial.replace(house.directory.path / name)


@pytest.mark.parametrize("forced", [False, True])
def test_an_image_that_another_run_has_saved_meanwhile_is_not_asked_for(house: House, *, forced: bool) -> None:
    with Scripted(plays(whole(BODY))) as server:
        asked = known(server, house)._replace(validators=Validators()) if forced else job(server)
        save_elsewhere(house)
        assert house.attempt(asked) is SAVED_BEFORE
        assert server.requests == []
    assert house.content() == b"saved by another run"


def test_what_another_run_saves_while_it_is_asked_for_is_left_alone(house: House) -> None:
    def script(_: Request) -> Iterable[Any]:
        save_elsewhere(house)
        yield whole(BODY)

    with Scripted(script) as server:
        assert house.attempt(known(server, house)) == SAVED_MEANWHILE
    assert house.content() == b"saved by another run"
    assert leftovers(house.directory.path) == []


def test_an_image_that_bears_its_extension_only_then_is_left_alone_as_well(house: House) -> None:
    first, second = Name("a-0f", complete=False), Name("b-1e", complete=False)
    with Scripted(plays(whole(BODY))) as server:
        save_elsewhere(house, "a-0f.png")
        assert house.attempt(job(server, name=first)) == SAVED_MEANWHILE
        # By now, this one is likely to be a PNG as well.
        save_elsewhere(house, "b-1e.png")
        assert house.attempt(job(server, name=second)) is SAVED_BEFORE
        assert len(server.requests) == 1
    assert house.content("a-0f.png") == house.content("b-1e.png") == b"saved by another run"


def test_what_was_saved_before_the_run_began_is_replaced(make_house: Callable[..., House], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "a-0f.png"):
        (tmp_path / "images" / name).write_bytes(b"saved by an earlier run")
    house = make_house()
    with Scripted(plays(whole(BODY))) as server:
        assert house.saved(job(server, inode=1)).file == "a.png"
        assert house.saved(job(server, name=Name("a-0f", complete=False))).file == "a-0f.png"
    assert house.content("a.png") == house.content("a-0f.png") == BODY


def test_what_another_is_at_is_left_to_him(house: House) -> None:
    with Scripted(plays(whole(BODY))) as server, house.directory.partial("a.png", "a.png"):
        assert house.attempt(job(server)) == BEING_SAVED
    assert not (house.directory.path / "a.png").exists()


# Saved -------------------------------------------------------------------------------------------------------------


def test_an_image_is_saved_with_all_that_was_said_of_it(house: House) -> None:
    answer = whole(BODY, f"ETag: {TAG}", f"Last-Modified: {MODIFIED}", "Cache-Control: max-age=60")
    with Scripted(plays(answer)) as server:
        result = house.attempt(job(server))
    assert isinstance(result, Saved)
    image = result.image
    assert house.content() == BODY
    assert result.http_status == 200
    assert (image.file, image.size, image.media_type) == ("a.png", len(BODY), "image/png")
    assert image.sha256 == hashlib.sha256(BODY).hexdigest()
    assert image.validators == Validators(TAG, MODIFIED)
    assert lasts(image) == pytest.approx(60, abs=2)
    state = house.directory.stat("a.png")
    assert state is not None
    assert (state.st_size, state.st_mtime_ns) == (image.size, image.mtime_ns)
    assert state.st_mtime_ns == 784111777 * 10**9
    assert leftovers(house.directory.path) == []


@pytest.mark.parametrize(
    ("media_type", "file"),
    [("image/jpeg", "a-0f.jpg"), ("image/SVG+xml; charset=utf-8", "a-0f.svg"), ("image/x-php", "a-0f.img")],
)
def test_a_name_without_extension_gets_that_of_its_type(house: House, media_type: str, file: str) -> None:
    with Scripted(plays(head(f"Content-Type: {media_type}", length(BODY)) + BODY)) as server:
        assert house.saved(job(server, name=Name("a-0f", complete=False))).file == file
    assert house.content(file) == BODY


def test_an_encoded_image_is_saved_decoded(house: House) -> None:
    with Scripted(plays(whole(gzip.compress(BODY), "Content-Encoding: gzip"))) as server:
        assert house.saved(job(server)).sha256 == hashlib.sha256(BODY).hexdigest()
    assert house.content() == BODY


# Refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        *[(status, True) for status in (408, 425, 500, 502, 504, *BUSY)],
        *[(status, True) for status in (509, 520, 521, 522, 523, 524, 529, 530)],
        *[(status, False) for status in (201, 204, 205, 206, 226, 300, 304, 400, 401, 403, 404, 410, 416, 451)],
        *[(status, False) for status in (501, 505, 999)],
    ],
)  # fmt: skip
def test_a_status_other_than_200_fails_and_leaves_the_old_image(house: House, status: int, retryable: bool) -> None:
    with Scripted(plays(whole(BODY, status=f"{status} No"))) as server:
        failure = house.failure(known(server, house)._replace(validators=Validators()))
    assert failure.reason is (Reason.PROTOCOL if status == 304 else Reason.HTTP_STATUS)
    assert (failure.http_status, failure.retryable) == (status, retryable)
    assert failure.blame is (Blame.HOST if status in BUSY else Blame.IMAGE)
    assert_untouched(house)


def test_what_to_do_about_a_proxy_that_wants_a_login_is_said(house: House) -> None:
    with Scripted(plays(whole(BODY, status="407 No"))) as server:
        assert "user and password into the proxy's URL" in house.failure(job(server)).detail


@pytest.mark.parametrize(
    ("status", "seconds"), [*[(busy, 7.0) for busy in BUSY], (500, None), (522, None), (404, None)]
)
def test_retry_after_is_heeded_where_it_means_something(house: House, status: int, seconds: float | None) -> None:
    with Scripted(plays(head("Retry-After: 7", "Content-Length: 0", status=f"{status} No"))) as server:
        assert house.failure(job(server)).retry_after == seconds


@pytest.mark.parametrize(
    ("answer", "reason", "retryable"),
    [
        (head("Content-Type: text/html", length(BODY)) + BODY, Reason.NOT_AN_IMAGE, False),
        (head(length(BODY)) + BODY, Reason.NOT_AN_IMAGE, False),
        (whole(b""), Reason.NOT_AN_IMAGE, False),
        (whole(gzip.compress(b""), "Content-Encoding: gzip"), Reason.NOT_AN_IMAGE, False),
        (head(PNG, "Content-Length: 99999999"), Reason.TOO_LARGE, False),
        (whole(bytes(6000)), Reason.TOO_LARGE, False),
        (head(PNG, "Transfer-Encoding: chunked") + chunked(bytes(6000)) + b"0\r\n\r\n", Reason.TOO_LARGE, False),
        (whole(gzip.compress(bytes(6000)), "Content-Encoding: gzip"), Reason.TOO_LARGE, False),
        (whole(BODY, "Content-Encoding: br"), Reason.PROTOCOL, False),
        (whole(BODY)[:-1], Reason.TRUNCATED, True),
        (whole(gzip.compress(BODY)[:-9], "Content-Encoding: gzip"), Reason.TRUNCATED, True),
        (head(PNG, "Content-Length: +4000") + BODY, Reason.PROTOCOL, False),
    ],
)
def test_what_is_no_whole_image_is_refused_and_leaves_the_old_one(
    make_house: Callable[..., House], answer: bytes, reason: Reason, retryable: bool
) -> None:
    house = make_house(max_size=5000)
    with Scripted(plays(answer, End.CLOSE)) as server:
        failure = house.failure(known(server, house))
    assert (failure.reason, failure.retryable, failure.resume) == (reason, retryable, None)
    assert_untouched(house)


@pytest.mark.parametrize("framing", ["Content-Length: 4000", "Transfer-Encoding: chunked", "Connection: close"])
@pytest.mark.parametrize(
    ("status", "place"), [("203 Non-Authoritative", "X: y"), ("206 Partial", "Content-Range: bytes 0-3999/4000")]
)
def test_what_is_the_whole_image_is_saved_whatever_its_status(
    house: House, status: str, place: str, framing: str
) -> None:
    body = chunked(BODY) + b"0\r\n\r\n" if "chunked" in framing else BODY
    with Scripted(plays(head(PNG, framing, place, status=status) + body, End.CLOSE)) as server:
        result = house.attempt(known(server, house)._replace(validators=Validators()))
    assert isinstance(result, Saved)
    assert result.http_status == int(status[:3])
    assert house.content() == BODY


@pytest.mark.parametrize(
    "place",
    ["bytes 0-3999/4001", "bytes 1-3999/4000", "bytes 0-3998/4000", "bytes 0-3999/*", "bytes */4000", "0-3999/4000",
     "bytes 0-3999/4000, bytes 0-3999/4000", "bytes 0-4000/4001"],
)  # fmt: skip
@pytest.mark.parametrize("framing", ["Content-Length: 4000", "Transfer-Encoding: chunked"])
def test_a_part_that_nobody_asked_for_is_refused(house: House, place: str, framing: str) -> None:
    body = chunked(BODY) + b"0\r\n\r\n" if "chunked" in framing else BODY
    answer = head(PNG, framing, f"Content-Range: {place}", status="206 Partial Content") + body
    with Scripted(plays(answer, End.CLOSE)) as server:
        assert house.failure(known(server, house)).http_status == 206
    assert_untouched(house)


UNFRAMED = head(PNG, *KEPT, "Connection: close") + BODY


@pytest.mark.parametrize("cut", [1, 4, 12, 13, 2000])
@pytest.mark.parametrize("verify", [False, True])
def test_a_body_that_only_the_connection_ends_goes_on_to_the_end_of_its_image(
    make_house: Callable[..., House], cut: int, *, verify: bool
) -> None:
    house = make_house(verify=verify)
    with Scripted(plays(UNFRAMED[:-cut], End.CLOSE), plays(UNFRAMED + b"behind", End.CLOSE)) as server:
        failure = house.failure(known(server, house))
        assert (failure.reason, failure.retryable, failure.resume) == (Reason.TRUNCATED, True, None)
        assert_untouched(house)
        house.saved(known(server, house))
    assert house.content() == BODY + b"behind"


def test_within_tls_such_a_body_is_looked_at_as_well(
    make_house: Callable[..., House], tls: ssl.SSLContext, bundle: str
) -> None:
    """The server in front closes as TLS has it, whatever became of the program behind it."""

    def script(request: Request) -> Iterable[Any]:
        yield UNFRAMED[: -2000 if request.number == 1 else None]
        yield End.CLOSE_NOTIFY

    house = make_house(ca_bundle=bundle)
    with Scripted(script, tls=tls) as server:
        failure = house.failure(job(server))
        assert (failure.reason, failure.retryable) == (Reason.TRUNCATED, True)
        assert "before the image did" in failure.detail
        house.saved(job(server))


def test_a_body_that_only_the_connection_ends_may_be_compressed(house: House) -> None:
    """It tells its own end: what it holds is whole, whatever it is."""
    packed = head(PNG, "Content-Encoding: gzip") + gzip.compress(BODY[:2000])
    with Scripted(plays(packed, End.CLOSE)) as server:
        house.saved(job(server))
    assert house.content() == BODY[:2000]


def test_a_body_that_has_a_length_is_not_looked_at_for_its_end(house: House) -> None:
    with Scripted(plays(head(PNG, "Content-Length: 2000") + BODY[:2000])) as server:
        house.saved(job(server))
    assert house.content() == BODY[:2000]


def test_chunks_are_looked_at_as_well(house: House) -> None:
    """A proxy ends them in good order, though the connection behind it broke off."""
    bodies = [chunked(BODY[:size]) + b"0\r\n\r\n" for size in (2000, 4000)]
    with Scripted(*(plays(head(PNG, "Transfer-Encoding: Chunked") + body) for body in bodies)) as server:
        failure = house.failure(job(server))
        assert (failure.reason, failure.retryable) == (Reason.TRUNCATED, True)
        house.saved(job(server))


@pytest.mark.parametrize(("framing", "retryable"), [("Connection: close", True), ("Content-Length: 4000", False)])
def test_what_is_damaged_is_tried_again_where_it_may_have_been_cut(
    make_house: Callable[..., House], framing: str, *, retryable: bool
) -> None:
    damaged = bytearray(BODY)
    damaged[60] ^= 0xFF
    with Scripted(plays(head(PNG, framing) + damaged, End.CLOSE)) as server:
        failure = make_house(verify=True).failure(job(server))
    assert (failure.reason, failure.retryable) == (Reason.DAMAGED, retryable)


PAGE = b"<!DOCTYPE html>\n<title>Sign in</title>" + b"<p>Please sign in</p>" * 200
OCTETS = "Content-Type: application/octet-stream"
SVG = b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>"


def sent(content_type: str, body: bytes, *more: str) -> bytes:
    return head(*(filter(None, [content_type])), length(body), *more) + body


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (sent("Content-Type: image/jpeg", PAGE), "image/jpeg, but the body is HTML"),
        (sent("Content-Type: image/x-unheard-of", PAGE), "HTML"),
        (sent("Content-Type: image/svg+xml", PAGE), "HTML"),
        (sent("Content-Type: image/x+xml", PAGE), "HTML"),
        (sent("Content-Type: image/png", gzip.compress(PAGE), "Content-Encoding: gzip"), "HTML"),
        (head(PNG, "Transfer-Encoding: chunked") + chunked(PAGE, 1) + b"0\r\n\r\n", "HTML"),
        (head(PNG) + b"\n" * 3000 + PAGE, "HTML"),
        (sent("Content-Type: image/svg+xml", b"<Error><Code>AccessDenied</Code></Error>"), "XML"),
        (sent("Content-Type: image/gif", b'{"error": 404}'), "JSON"),
    ],
)
def test_a_page_sent_as_an_image_is_refused_and_named(house: House, answer: bytes, named: str) -> None:
    with Scripted(plays(answer, End.CLOSE)) as server:
        failure = house.failure(known(server, house))
    assert (failure.reason, failure.retryable) == (Reason.NOT_AN_IMAGE, False)
    assert named in failure.detail
    assert_untouched(house)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("image/svg+xml", SVG),
        ("image/png", SVG),
        ("image/x+xml", b"<x>"),
        ("image/x+json", b'{"x": 1}'),
        ("image/png", b"what nobody knows"),
        ("image/x-xpixmap", b"/* XPM */"),
        ("image/png", bytes(100)),
    ],
)
def test_what_may_be_an_image_is_saved(house: House, content_type: str, body: bytes) -> None:
    with Scripted(plays(sent(f"Content-Type: {content_type}", body))) as server:
        house.saved(job(server))
    assert house.content() == body


def test_chunks_that_nobody_announced_are_refused(house: House) -> None:
    with Scripted(plays(head(PNG) + chunked(BODY) + b"0\r\n\r\n", End.CLOSE)) as server:
        failure = house.failure(known(server, house))
    assert (failure.reason, failure.retryable) == (Reason.PROTOCOL, False)
    assert_untouched(house)


@pytest.mark.parametrize("coding", ["UTF-8", "none", "aws-chunked", "binary", "", "identity, utf-8"])
def test_a_coding_that_is_none_does_no_harm(house: House, coding: str) -> None:
    with Scripted(plays(whole(BODY, f"Content-Encoding: {coding}"))) as server:
        house.saved(job(server))
    assert house.content() == BODY


@pytest.mark.parametrize("coding", ["gzip-encoded", "gzip"])
def test_what_comes_out_compressed_is_refused(house: House, coding: str) -> None:
    packed = gzip.compress(gzip.compress(BODY)) if coding == "gzip" else gzip.compress(BODY)
    with Scripted(plays(whole(packed, f"Content-Encoding: {coding}"))) as server:
        failure = house.failure(known(server, house))
    assert (failure.reason, failure.retryable) == (Reason.PROTOCOL, False)
    assert coding in failure.detail
    assert_untouched(house)


UNTYPED = ["", "Content-Type:", OCTETS, "Content-Type: binary/octet-stream", "Content-Type: text/plain",
           "Content-Type: */*", "Content-Type: image", "Content-Type: .png"]  # fmt: skip


@pytest.mark.parametrize("content_type", UNTYPED)
@pytest.mark.parametrize("option", ["sniff", "verify"])
def test_without_a_type_the_first_bytes_decide_if_they_are_asked(
    make_house: Callable[..., House], content_type: str, option: str
) -> None:
    house = make_house(**{option: True})
    with Scripted(plays(sent(content_type, BODY))) as server:
        image = house.saved(job(server, name=Name("a-0f", complete=False)))
        assert len(server.requests) == 1
    assert (image.file, image.media_type) == ("a-0f.png", "image/png")
    assert house.content("a-0f.png") == BODY


@pytest.mark.parametrize(
    ("beginning", "extension", "media_type"),
    [(b"GIF89a", ".gif", "image/gif"), (b"\xff\xd8\xff", ".jpg", "image/jpeg"), (b"<svg>", ".svg", "image/svg+xml")],
)
def test_the_type_that_is_found_gives_the_extension(
    make_house: Callable[..., House], beginning: bytes, extension: str, media_type: str
) -> None:
    house = make_house(sniff=True)
    with Scripted(plays(sent(OCTETS, beginning + BODY))) as server:
        image = house.saved(job(server, name=Name("a-0f", complete=False)))
    assert (image.file, image.media_type) == ("a-0f" + extension, media_type)


def test_the_first_bytes_may_come_one_by_one(make_house: Callable[..., House]) -> None:
    house = make_house(sniff=True)
    with Scripted(plays(head(OCTETS, "Transfer-Encoding: chunked") + chunked(BODY, 1) + b"0\r\n\r\n")) as server:
        assert house.saved(job(server)).media_type == "image/png"
    assert house.content() == BODY


@pytest.mark.parametrize("content_type", UNTYPED)
def test_without_a_type_the_refusal_says_what_would_help(house: House, content_type: str) -> None:
    with Scripted(plays(sent(content_type, BODY))) as server:
        failure = house.failure(known(server, house))
    assert failure.reason is Reason.NOT_AN_IMAGE
    assert "image/png" in failure.detail
    assert "--sniff" in failure.detail
    assert_untouched(house)


@pytest.mark.parametrize(
    ("body", "named"), [(PAGE, "HTML"), (b"neither", "no known image format"), (b"", "no Content-Type")]
)
@pytest.mark.parametrize("sniff", [True, False])
def test_without_a_type_what_is_no_image_is_refused(
    make_house: Callable[..., House], body: bytes, named: str, *, sniff: bool
) -> None:
    house = make_house(sniff=sniff)
    with Scripted(plays(sent("", body))) as server:
        failure = house.failure(known(server, house))
    assert (failure.reason, failure.retryable) == (Reason.NOT_AN_IMAGE, False)
    assert named in failure.detail
    assert "--sniff" not in failure.detail
    assert_untouched(house)


def test_a_body_that_breaks_off_before_its_refusal_is_refused_all_the_same(house: House) -> None:
    with Scripted(plays(sent(OCTETS, BODY)[:-3500], End.CLOSE)) as server:
        failure = house.failure(job(server))
    assert (failure.reason, failure.retryable) == (Reason.NOT_AN_IMAGE, False)


def test_a_body_that_breaks_off_where_its_first_bytes_decide_is_tried_again(make_house: Callable[..., House]) -> None:
    with Scripted(plays(sent(OCTETS, BODY)[:-3500], End.CLOSE)) as server:
        failure = make_house(sniff=True).failure(job(server))
    assert (failure.reason, failure.retryable) == (Reason.TRUNCATED, True)


def test_the_rest_of_a_body_has_the_type_that_its_first_bytes_had(make_house: Callable[..., House]) -> None:
    house = make_house(sniff=True)
    part = head(OCTETS, "Content-Range: bytes 2000-3999/4000", f"ETag: {TAG}", length(BODY[2000:]), status="206 Part")
    script = plays(sent(OCTETS, BODY, *KEPT)[:-2000], End.CLOSE), plays(part + BODY[2000:])
    with Scripted(*script) as server:
        resume = house.failure(job(server)).resume
        assert house.saved(job(server, resume=resume)).media_type == "image/png"
    assert house.content() == BODY


def test_an_image_of_the_largest_size_is_accepted(make_house: Callable[..., House]) -> None:
    with Scripted(plays(whole(BODY))) as server:
        assert make_house(max_size=len(BODY)).saved(job(server)).size == len(BODY)
        assert make_house(max_size=len(BODY) - 1).failure(job(server, inode=1)).reason is Reason.TOO_LARGE


def test_a_deadline_in_mid_body_is_final_and_leaves_the_old_image(make_house: Callable[..., House]) -> None:
    house = make_house(max_time=0.3)
    with Scripted(plays(whole(BODY, *KEPT)[:-10], End.STALL)) as server:
        failure = house.failure(known(server, house))
    assert (failure.reason, failure.retryable, failure.resume) == (Reason.DEADLINE, False, None)
    assert_untouched(house)


def test_a_damaged_image_is_refused_where_it_is_verified(make_house: Callable[..., House]) -> None:
    house = make_house(verify=True)
    damaged = bytearray(BODY)
    damaged[60] ^= 0xFF
    with Scripted(plays(whole(bytes(damaged)))) as server:
        assert house.failure(known(server, house)).reason is Reason.DAMAGED
    assert_untouched(house)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a thread choose its processors")
@pytest.mark.skipif(os.cpu_count() == 1, reason="takes two processors")
@pytest.mark.parametrize(("chunk", "spread"), [(1000, True), (65536, False)])
def test_a_thread_has_all_processors_as_long_as_it_receives_a_large_body(
    make_house: Callable[..., House], *, chunk: int, spread: bool
) -> None:
    allowed = frozenset(os.sched_getaffinity(0))
    bound = {min(allowed)}
    house = make_house(chunk=chunk, processors=allowed)
    meanwhile: list[set[int]] = []

    def script(_: Request) -> Iterable[Any]:
        yield whole(BODY)[:-10]
        while not any(file.stat().st_size for file in house.directory.path.glob(".image_loader/partial/*")):
            time.sleep(0.01)
        meanwhile.append(os.sched_getaffinity(threads[0]))
        yield BODY[-10:]

    def work() -> set[int]:
        threads.append(threading.get_native_id())
        os.sched_setaffinity(0, bound)
        house.saved(job(server))
        return os.sched_getaffinity(0)

    threads: list[int] = []
    with Scripted(script) as server, ThreadPoolExecutor(1) as executor:
        assert executor.submit(work).result() == bound
    assert meanwhile == [allowed if spread else bound]


def test_what_ends_the_run_is_raised(house: House, tmp_path: Path) -> None:
    house.directory.path.rename(tmp_path / "moved")
    with Scripted(plays(whole(BODY))) as server, pytest.raises(DirectoryError):
        house.attempt(job(server))


def test_a_surprise_fails_one_image_and_is_logged_without_its_secrets(
    make_house: Callable[..., House], caplog: pytest.LogCaptureFixture
) -> None:
    house = make_house(headers={"X-Surprise": "\u20ac"})
    with Scripted(plays(whole(BODY))) as server, caplog.at_level(logging.ERROR):
        secret = parse(server.url("/a.png?hush").replace("://", "://user:hush@"))
        failure = house.failure(job(server)._replace(url=secret))
    assert (failure.reason, failure.retryable) == (Reason.PROTOCOL, False)
    assert "/a.png?…" in caplog.text
    assert "hush" not in caplog.text


# 304 ---------------------------------------------------------------------------------------------------------------


def test_a_304_renews_what_is_known_and_touches_nothing(house: House) -> None:
    answer = head('ETag: W/"old"', "Cache-Control: max-age=60", status="304 Not Modified")
    with Scripted(plays(answer)) as server:
        result = house.attempt(known(server, house))
        (request,) = server.requests
    assert (request.headers["if-none-match"], request.headers["if-modified-since"]) == ('"old"', MODIFIED)
    assert isinstance(result, NotModified)
    assert result.validators == Validators('W/"old"', MODIFIED)
    assert lasts(result) == pytest.approx(60, abs=2)
    assert result.checked > 2.0
    assert (result.image.saved, result.image.sha256) == (1.0, "00" * 32)
    assert_untouched(house)


def test_a_304_about_a_file_that_was_deleted_meanwhile_is_asked_again(house: House) -> None:
    def script(_: Request) -> Iterable[Any]:
        (house.directory.path / "a.png").unlink()
        yield head('ETag: "old"', status="304 Not Modified")

    with Scripted(script, plays(whole(BODY))) as server:
        house.saved(known(server, house))
        assert "if-none-match" not in server.requests[1].headers
    assert house.content() == BODY


def test_a_file_that_was_edited_while_its_image_is_asked_for_is_replaced(house: House) -> None:
    """An editor that writes into the file leaves it its inode; a run never does."""

    def script(_: Request) -> Iterable[Any]:
        time.sleep(CLOCK_STEP)
        (house.directory.path / "a.png").write_bytes(b"")
        yield head('ETag: "old"', status="304 Not Modified")

    with Scripted(script, plays(whole(BODY))) as server:
        house.saved(known(server, house))
    assert house.content() == BODY


@pytest.mark.parametrize(
    ("option", "control"), [("force", "no-cache"), ("revalidate", "max-age=0"), ("insecure", None)]
)
def test_who_wants_more_than_freshness_wants_it_from_the_server_itself(
    make_house: Callable[..., House], option: str, control: str | None
) -> None:
    """Not from a cache on the way (RFC 9111, 5.2.1)."""
    house = make_house(**{option: True})
    with Scripted(plays(whole(BODY))) as server:
        house.saved(known(server, house))
        assert server.requests[0].headers.get("cache-control") == control


def test_a_304_about_a_file_that_another_run_has_replaced_tells_nothing(house: House) -> None:
    def script(_: Request) -> Iterable[Any]:
        save_elsewhere(house)
        yield head('ETag: "old"', status="304 Not Modified")

    with Scripted(script) as server:
        assert house.attempt(known(server, house)) == SAVED_MEANWHILE
        assert len(server.requests) == 1
    assert house.content() == b"saved by another run"


def test_a_304_about_another_version_is_asked_again_without_conditions(house: House) -> None:
    with Scripted(plays(head('ETag: "other"', status="304 Not Modified")), plays(whole(BODY))) as server:
        house.saved(known(server, house))
        again = server.requests[1].headers
    assert house.content() == BODY
    assert "if-none-match" not in again
    assert "if-modified-since" not in again
    assert again["cache-control"] == "no-cache"


def test_what_is_asked_again_without_conditions_has_the_time_that_is_left(make_house: Callable[..., House]) -> None:
    slow = plays(0.2, head('ETag: "other"', status="304 Not Modified"))
    with Scripted(slow, plays(whole(BODY))) as server:
        house = make_house(delay=0.001)
        connection = house.asking.connected(server.origin)
        result = house.downloader.attempt(known(server, house), connection)
        assert isinstance(result, Job)
        assert result.hop is not None
        assert result.hop.left <= SETTINGS.max_time - 0.2
        house.asking.give_back(connection)


def test_a_server_that_closes_after_a_304_about_another_version_is_asked_without_conditions(house: House) -> None:
    closing = plays(head('ETag: "other"', status="304 Not Modified"), End.CLOSE)
    with Scripted(closing, plays(whole(BODY))) as server:
        house.saved(known(server, house))
        assert ["if-none-match" in request.headers for request in server.requests] == [True, False]


@pytest.mark.parametrize("forced", [False, True])
def test_a_304_to_an_unconditional_request_is_asked_once_more_and_then_fails(house: House, forced: bool) -> None:
    with Scripted(plays(head(status="304 Not Modified"))) as server:
        asked = known(server, house)._replace(validators=Validators()) if forced else job(server)
        failure = house.failure(asked)
        assert len(server.requests) == 2
    assert (failure.reason, failure.http_status, failure.retryable) == (Reason.PROTOCOL, 304, False)


def test_a_304_to_a_request_for_the_rest_says_nothing_of_the_old_image(house: House) -> None:
    """The server had answered that the image changed; then it was cut off."""
    with Scripted(CUT, plays(head(status="304 Not Modified")), plays(whole(BODY))) as server:
        first = known(server, house)
        resume = house.failure(first).resume
        assert resume is not None
        house.saved(first._replace(resume=resume))
        assert len(server.requests) == 3
    assert house.content() == BODY


# Resumed -----------------------------------------------------------------------------------------------------------


def resumed(house: House, server: Server, **changes: Any) -> Job:
    """Make the first attempt, which is cut off; return the job for the next one."""
    failure = house.failure(job(server, **changes))
    assert (failure.reason, failure.retryable) == (Reason.TRUNCATED, True)
    assert failure.resume is not None
    assert failure.resume.validators.etag == TAG
    assert len(leftovers(house.directory.path)) == 1
    return job(server, resume=failure.resume, **changes)


def rest(place: str = "bytes 2000-3999/4000", body: bytes = BODY[2000:], *more: str, tag: str = TAG) -> bytes:
    return whole(body, f"Content-Range: {place}", f"ETag: {tag}", *more, status="206 Partial Content")


def test_the_rest_of_a_body_is_asked_for_and_joined(house: House) -> None:
    with Scripted(CUT, plays(rest())) as server:
        image = house.saved(resumed(house, server))
        request = server.requests[1]
    assert (request.headers["range"], request.headers["if-range"]) == ("bytes=2000-", TAG)
    assert house.content() == BODY
    assert (image.size, image.sha256) == (4000, hashlib.sha256(BODY).hexdigest())
    assert leftovers(house.directory.path) == []


def test_a_rest_of_another_size_than_was_announced_is_refused(house: House) -> None:
    with Scripted(CUT, plays(rest("bytes 2000-2999/3000", BODY[2000:3000]))) as server:
        failure = house.failure(resumed(house, server))
    assert (failure.reason, failure.retryable, failure.resume) == (Reason.PROTOCOL, True, None)
    assert not (house.directory.path / "a.png").exists()


LATER = "Date: Sun, 06 Nov 1994 08:50:37 GMT"
DATED = (LATER, f"Last-Modified: {MODIFIED}", "Accept-Ranges: bytes")


@pytest.mark.parametrize(
    ("told", "same"),
    [
        ((f"Last-Modified: {MODIFIED}",), True),
        ((f"Last-Modified: {MODIFIED}", f"ETag: {TAG}"), False),
        (("Last-Modified: Sun, 06 Nov 1994 08:49:38 GMT",), False),
        ((), False),
    ],
)
def test_without_an_etag_a_strong_date_joins_a_body(house: House, told: tuple[str, ...], *, same: bool) -> None:
    place = "Content-Range: bytes 2000-3999/4000"
    part = whole(BODY[2000:], place, *told, status="206 Partial Content")
    with Scripted(plays(whole(BODY, *DATED)[:-2000], End.CLOSE), plays(part), plays(whole(BODY))) as server:
        asked = job(server, resume=house.failure(job(server)).resume)
        assert isinstance(house.attempt(asked), Saved) is same
        headers = server.requests[1].headers
    assert (headers["range"], headers["if-range"]) == ("bytes=2000-", MODIFIED)
    assert not same or house.content() == BODY


def test_a_date_that_is_not_strong_joins_nothing(house: House) -> None:
    told = f"Date: {MODIFIED}", *DATED[1:]
    with Scripted(plays(whole(BODY, *told)[:-2000], End.CLOSE)) as server:
        assert house.failure(job(server)).resume is None


def test_a_rest_may_come_without_what_was_told_with_the_beginning(house: House) -> None:
    """RFC 9110, 15.3.7: an answer to If-Range leaves out what the client knows by then."""
    short = head(
        "Content-Range: bytes 2000-3999/4000", f"ETag: {TAG}", length(BODY[2000:]), status="206 Partial Content"
    )
    told = whole(BODY, *KEPT, f"Last-Modified: {MODIFIED}")
    with Scripted(plays(told[:-2000], End.CLOSE), plays(short + BODY[2000:])) as server:
        failure = house.failure(job(server))
        image = house.saved(job(server, resume=failure.resume))
    assert house.content() == BODY
    assert (image.media_type, image.validators) == ("image/png", Validators(TAG, MODIFIED))


def test_a_body_that_is_cut_twice_is_resumed_twice(house: House) -> None:
    second = plays(rest("bytes 2000-3999/4000", BODY[2000:], "Accept-Ranges: bytes")[:-1000], End.CLOSE)
    third = plays(rest("bytes 3000-3999/4000", BODY[3000:]))
    with Scripted(CUT, second, third) as server:
        again = resumed(house, server)
        again = again._replace(resume=house.failure(again).resume)
        assert again.resume is not None
        house.saved(again)
        assert [request.headers.get("range") for request in server.requests] == [None, "bytes=2000-", "bytes=3000-"]
    assert house.content() == BODY


def test_a_beginning_goes_when_another_image_is_begun(house: House) -> None:
    other = whole(BODY, *KEPT).replace(b"image/png", b"image/gif")
    with Scripted(CUT, plays(other[:-1000], End.CLOSE), plays(other)) as server:
        first = resumed(house, server, name=Name("a", complete=False))
        second = first._replace(resume=house.failure(first).resume)
        assert first.resume is not None
        assert second.resume is not None
        assert second.resume.key != first.resume.key
        assert not house.directory.is_kept(first.resume)
        assert house.directory.is_kept(second.resume)


WRONG_RANGES = [
    rest("bytes 0-1999/4000", BODY[:2000]),
    rest("bytes 1999-3999/4000", BODY[1999:]),
    rest("bytes 2001-3999/4000", BODY[2001:]),
    rest("bytes 2000-2999/4000", BODY[2000:3000]),
    rest("bytes 2000-3999/5000"),
    rest("bytes 2000-3999/*"),
    rest("bytes */4000"),
    rest(""),
    rest("2000-3999/4000"),
    rest("items 2000-3999/4000"),
    rest("bytes 2000-\u00b2\u00b3/\u00b2"),
    rest(f"bytes 2000-{'9' * 5000}/{'9' * 5000}"),
    rest(f"bytes {'9' * 5000}-3999/4000"),
    rest("bytes 2000-3999/4000, bytes 2000-3999/4000"),
    rest("bytes 2000-3999/4000", BODY[2000:3000]),
    rest("bytes 2000-3999/4000", BODY[2000:] + b"more"),
    rest("bytes 2000-3999/4000", b""),
    rest("bytes 2000-4999/5000", BODY[2000:]),
    rest("bytes 2000-3999/4000", gzip.compress(BODY[2000:]), "Content-Encoding: gzip"),
    rest(tag='"other"'),
    rest(tag='W/"strong"'),
    rest(tag="strong"),
    head(PNG, "Content-Range: bytes 2000-3999/4000", f"ETag: {TAG}", "Transfer-Encoding: chunked", status="206 Part")
    + chunked(BODY[2000:3000]) + b"0\r\n\r\n",
    head(PNG, "Content-Range: bytes 2000-3999/4000", f"ETag: {TAG}", status="206 Part") + BODY[2000:3000],
    head("Content-Type: multipart/byteranges; boundary=x", length(BODY), status="206 Partial Content") + BODY,
    head(PNG, length(BODY), "Content-Range: bytes */4000", status="416 Range Not Satisfiable") + BODY,
    head("Content-Length: 0", status="412 Precondition Failed"),
]  # fmt: skip


@pytest.mark.parametrize("answer", WRONG_RANGES)
def test_nothing_is_pieced_together_from_a_wrong_rest(house: House, answer: bytes) -> None:
    with Scripted(CUT, plays(answer, End.CLOSE), plays(whole(BODY))) as server:
        again = resumed(house, server)
        result = house.attempt(again)
        assert isinstance(result, Saved | Failure)
        if isinstance(result, Failure) and result.retryable:
            result = house.attempt(again._replace(resume=result.resume))
        if isinstance(result, Saved):
            assert house.content() == BODY
            assert result.image.sha256 == hashlib.sha256(BODY).hexdigest()
        else:
            assert not (house.directory.path / "a.png").exists()


@pytest.mark.parametrize("answer", WRONG_RANGES[:-1])
def test_after_a_wrong_rest_the_whole_is_asked_for(
    house: House, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with Scripted(CUT, plays(answer, End.CLOSE), plays(whole(BODY))) as server:
        again = resumed(house, server)
        failure = house.failure(again)
        assert (failure.retryable, failure.resume) == (True, None)
        house.saved(again._replace(resume=None))
        assert "range" not in server.requests[-1].headers
    assert house.content() == BODY
    assert caplog.records == []


def test_a_whole_answer_to_a_request_for_the_rest_begins_anew(house: House) -> None:
    changed = png("changed", 3000)
    with Scripted(CUT, plays(whole(changed, 'ETag: "new"'))) as server:
        assert house.saved(resumed(house, server)).validators.etag == '"new"'
    assert house.content() == changed
    assert leftovers(house.directory.path) == []


@pytest.mark.parametrize(
    "fields",
    [
        ('ETag: W/"weak"', "Accept-Ranges: bytes"),
        ("ETag: none", "Accept-Ranges: bytes"),
        ("Accept-Ranges: bytes",),
        (f"ETag: {TAG}",),
        (f"ETag: {TAG}", "Accept-Ranges: none"),
        (f"Last-Modified: {MODIFIED}", "Accept-Ranges: bytes"),
    ],
)
def test_what_cannot_be_resumed_is_not_kept(house: House, fields: tuple[str, ...]) -> None:
    with Scripted(plays(whole(BODY, *fields)[:-2000], End.CLOSE)) as server:
        failure = house.failure(known(server, house))
    assert (failure.reason, failure.retryable, failure.resume) == (Reason.TRUNCATED, True, None)
    assert_untouched(house)


def test_an_encoded_body_is_not_resumed(house: House) -> None:
    encoded = whole(gzip.compress(BODY), "Content-Encoding: gzip", *KEPT)
    with Scripted(plays(encoded[:-1000], End.CLOSE)) as server:
        assert house.failure(known(server, house)).resume is None
    assert_untouched(house)


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(bytes(2000))])
def test_a_partial_file_that_another_changed_is_not_resumed(house: House, change: Callable[[Path], Any]) -> None:
    with Scripted(CUT, plays(whole(BODY))) as server:
        again = resumed(house, server)
        (name,) = leftovers(house.directory.path)
        change(house.directory.path / ".image_loader" / "partial" / name)
        house.saved(again)
        assert "range" not in server.requests[1].headers
    assert house.content() == BODY


def test_a_partial_file_that_another_changes_after_the_request_is_not_resumed(house: House) -> None:
    def script(_: Request) -> Iterable[Any]:
        (name,) = leftovers(house.directory.path)
        (house.directory.path / ".image_loader" / "partial" / name).unlink()
        yield rest()

    with Scripted(CUT, script) as server:
        failure = house.failure(resumed(house, server))
    assert (failure.retryable, failure.resume) == (True, None)
    assert leftovers(house.directory.path) == []


def test_the_rest_counts_towards_the_largest_size(make_house: Callable[..., House]) -> None:
    house = make_house(max_size=3000)
    answer = head(PNG, *KEPT, "Transfer-Encoding: chunked") + chunked(BODY[:2000])
    with Scripted(plays(answer, End.CLOSE), plays(rest())) as server:
        assert house.failure(resumed(house, server)).reason is Reason.TOO_LARGE
    assert leftovers(house.directory.path) == []


# A redirect on the way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redirect", "lifetime"),
    [
        ("Cache-Control: no-store", -1),
        ("Vary: Accept-Encoding", -1),
        ("Cache-Control: max-age=60", 60),
        ("Cache-Control: max-age=90000", 3600),
    ],
)
@pytest.mark.parametrize("changed", [False, True])
def test_an_image_is_fresh_for_no_longer_than_the_redirect_that_leads_to_it(
    house: House, redirect: str, lifetime: int, changed: bool
) -> None:
    kept = "Cache-Control: max-age=3600"
    answer = whole(BODY, kept) if changed else head('ETag: "old"', kept, status="304 Not Modified")
    with Scripted(plays(moved("/b.png", redirect)), plays(answer)) as server:
        asked = known(server, house)
        target = parse(server.url("/b.png")).digest
        result = house.attempt(asked._replace(validators=asked.validators._replace(target=target)))
    assert isinstance(result, Saved if changed else NotModified)
    told = result.image if isinstance(result, Saved) else result
    assert lasts(told) == pytest.approx(lifetime, abs=3)


def moved(target: str, *fields: str) -> bytes:
    return head(f"Location: {target}", "Content-Length: 0", *fields, status="302 Found")


def saved_before(house: House, server: Server) -> Job:
    """Save an image, and return the job of the run after."""
    image = house.saved(job(server))
    inode = (house.directory.path / image.file).stat().st_ino
    return job(server, image=image, validators=image.validators, inode=inode)


def test_a_redirect_that_leads_elsewhere_is_asked_without_the_validators_of_where_it_led(house: House) -> None:
    """Two images may well have the ETag "1": it tells versions of one resource apart (RFC 9110, 8.8.3)."""
    first, second = png("first", 3000), png("second", 3000)
    script = (
        plays(moved("/first.png")), plays(whole(first, 'ETag: "1"')),
        plays(moved("/first.png")), plays(head('ETag: "1"', status="304 Not Modified")),
        plays(moved("/second.png")), plays(whole(second, 'ETag: "1"')),
    )  # fmt: skip
    with Scripted(*script) as server:
        again = saved_before(house, server)
        assert isinstance(house.attempt(again), NotModified)
        assert house.saved(again).sha256 == hashlib.sha256(second).hexdigest()
        asked = [request.headers.get("if-none-match") for request in server.requests]
    assert asked == [None, None, None, '"1"', None, None]


def test_a_redirect_to_another_signature_leads_to_the_same_image(house: House) -> None:
    first, second = (f"/b.png?id=7&X-Amz-Date={day}&X-Amz-Signature={day}" for day in ("today", "tomorrow"))
    script = (
        plays(moved(first)), plays(whole(BODY, f"ETag: {TAG}")),
        plays(moved(second)), plays(head(f"ETag: {TAG}", status="304 Not Modified")),
    )  # fmt: skip
    with Scripted(*script) as server:
        again = saved_before(house, server)
        assert isinstance(house.attempt(again), NotModified)


VARIES = "Vary: *"
LASTS = "Cache-Control: max-age=60"


def test_what_varies_with_anything_does_so_behind_a_redirect_as_well(house: House) -> None:
    with Scripted(plays(moved("/b.png")), plays(whole(BODY, VARIES, LASTS))) as server:
        image = house.saved(job(server))
    assert image.lifetime.varies
    assert lasts(image) < 0


def test_a_redirect_that_varies_with_anything_says_nothing_of_the_image(house: House) -> None:
    with Scripted(plays(moved("/b.png", VARIES, LASTS)), plays(whole(BODY, LASTS))) as server:
        image = house.saved(job(server))
    assert not image.lifetime.varies
    assert lasts(image) < 0


def test_a_rest_is_asked_for_only_where_the_beginning_came_from(house: House) -> None:
    script = plays(moved("/first.png")), CUT, plays(moved("/second.png")), plays(whole(BODY[::-1], f"ETag: {TAG}"))
    with Scripted(*script) as server:
        failure = house.failure(job(server))
        house.saved(job(server, resume=failure.resume))
        assert [request.headers.get("range") for request in server.requests] == [None] * 4
    assert house.content() == BODY[::-1]


# A file that may be another's --------------------------------------------------------------------------------------


def adoptable(server: Server, house: House, body: bytes, **changes: Any) -> Job:
    """Return a job for a name under which a file stands that the index does not know, dated as ``MODIFIED``."""
    path = house.directory.path / "a.png"
    path.write_bytes(body)
    os.utime(path, (1e9, 1e9))
    state = path.stat()
    since = Validators(None, MODIFIED)
    image = Image("a.png", len(body), 10**18, state.st_ctime_ns, None, None, since, Lifetime(), 1e9, 1e9)
    return job(server, image=image, validators=since, inode=state.st_ino)._replace(**changes)


def test_a_304_about_a_file_of_another_program_makes_its_content_known(house: House) -> None:
    with Scripted(plays(head(status="304 Not Modified"))) as server:
        result = house.attempt(adoptable(server, house, BODY))
    assert isinstance(result, NotModified)
    assert (result.image.sha256, result.image.media_type) == (hashlib.sha256(BODY).hexdigest(), None)


@pytest.mark.parametrize(("fields", "counts"), [((), False), (("Last-Modified: " + MODIFIED,), True)])
def test_a_304_about_a_file_that_may_be_anothers_counts_with_its_date_alone(
    house: House, fields: tuple[str, ...], counts: bool
) -> None:
    answers = (plays(head(*fields, status="304 Not Modified")), plays(whole(BODY)))
    with Scripted(*answers) as server:
        result = house.attempt(adoptable(server, house, b"another's", foreign=True))
    assert isinstance(result, NotModified if counts else Saved)
    assert house.content() == b"another's"


def test_an_image_that_is_another_files_content_takes_its_place(house: House) -> None:
    with Scripted(plays(whole(BODY))) as server:
        result = house.attempt(adoptable(server, house, BODY, foreign=True, image=None, validators=Validators()))
    assert isinstance(result, Saved)
    assert (result.image.file, result.key) == ("a.png", None)


@pytest.mark.parametrize("spares_taken", [0, 1, 3])
def test_an_image_that_is_not_gets_a_spare_name(house: House, spares_taken: int) -> None:
    with Scripted(plays(whole(BODY))) as server:
        asked = adoptable(server, house, b"another's", foreign=True, image=None, validators=Validators())
        spare = list(spares(asked.url, SETTINGS.layout, ".png"))
        for name in spare[:spares_taken]:
            (house.directory.path / name).write_bytes(b"taken")
        result = house.attempt(asked)
    assert house.content() == b"another's"
    assert all((house.directory.path / name).read_bytes() == b"taken" for name in spare[:spares_taken])
    if spares_taken == 3:
        assert isinstance(result, Failure)
        assert result.reason is Reason.WRITE
    else:
        assert isinstance(result, Saved)
        assert (result.image.file, result.key) == (spare[spares_taken],) * 2
        assert (house.directory.path / result.image.file).read_bytes() == BODY


def test_an_image_whose_name_the_file_system_refuses_gets_a_spare_name(house: House) -> None:
    with Scripted(plays(whole(BODY))) as server:
        asked = job(server, name=Name("n" * 300 + ".png", complete=True))
        result = house.attempt(asked)
    assert isinstance(result, Saved)
    assert result.image.file == result.key == next(spares(asked.url, SETTINGS.layout, ".png"))
