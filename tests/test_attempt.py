"""One attempt at one image, over real sockets and into real files: what is saved, what is refused, what is resumed."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import CLOCK_STEP, SETTINGS, leftovers
from exchange import PNG, End, Request, chunked, head, length, png, whole
from image_loader import freshness
from image_loader.attempt import Downloader
from image_loader.errors import DirectoryError
from image_loader.model import (
    BEING_SAVED,
    SAVED_MEANWHILE,
    Blame,
    Failure,
    Image,
    Job,
    Name,
    NotModified,
    Reason,
    Result,
    Saved,
    Validators,
)
from image_loader.store.directory import Directory
from image_loader.transport import Transport
from image_loader.url import parse
from server import Scripted, Server, plays

BODY = png("download", 4000)
TAG = '"strong"'
KEPT = (f"ETag: {TAG}", "Accept-Ranges: bytes")
CUT = plays(whole(BODY, *KEPT)[:-2000], End.CLOSE)
MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"

Script = Callable[[Request], Iterable[Any]]


@dataclass(frozen=True)
class House:
    """A downloader at its directory."""

    downloader: Downloader
    directory: Directory

    def attempt(self, job: Job) -> Result:
        return self.downloader.attempt(job)

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
    made: list[tuple[Transport, Directory, Downloader]] = []

    def make(processors: frozenset[int] = frozenset(), **changes: Any) -> House:
        settings = SETTINGS._replace(**changes)
        transport, directory = Transport(settings), Directory(tmp_path / "images")
        downloader = Downloader(transport, directory, settings, processors)
        made.append((transport, directory, downloader))
        return House(downloader, directory)

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
    image = Image("a.png", 3, 10**18, "image/png", "00" * 32, validators, 5.0, 1.0, 2.0)
    return job(server, image=image, validators=validators, inode=path.stat().st_ino, **changes)


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
        assert house.attempt(asked) == SAVED_MEANWHILE
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
        assert house.attempt(job(server, name=second)) == SAVED_MEANWHILE
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
    assert image.fresh_until == pytest.approx(image.saved + 60, abs=2)
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
        *[(status, True) for status in (408, 425, 429, 500, 502, 503, 504)],
        *[(status, False) for status in (201, 203, 204, 205, 206, 226, 300, 304, 400, 401, 403, 404, 410, 416, 451)],
        *[(status, False) for status in (501, 505, 999)],
    ],
)  # fmt: skip
def test_a_status_other_than_200_fails_and_leaves_the_old_image(house: House, status: int, retryable: bool) -> None:
    with Scripted(plays(whole(BODY, status=f"{status} No"))) as server:
        failure = house.failure(known(server, house)._replace(validators=Validators()))
    assert failure.reason is (Reason.PROTOCOL if status == 304 else Reason.HTTP_STATUS)
    assert (failure.http_status, failure.retryable, failure.blame) == (status, retryable, Blame.IMAGE)
    assert_untouched(house)


@pytest.mark.parametrize(("status", "seconds"), [(429, 7.0), (503, 7.0), (500, None), (404, None)])
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
    assert result.fresh_until == pytest.approx(result.checked + 60, abs=2)
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
        ("Cache-Control: no-store", None),
        ("Vary: Accept-Encoding", None),
        ("Cache-Control: max-age=60", 60),
        ("Cache-Control: max-age=90000", 3600),
    ],
)
@pytest.mark.parametrize("changed", [False, True])
def test_an_image_is_fresh_for_no_longer_than_the_redirect_that_leads_to_it(
    house: House, redirect: str, lifetime: int | None, changed: bool
) -> None:
    kept = "Cache-Control: max-age=3600"
    answer = whole(BODY, kept) if changed else head('ETag: "old"', kept, status="304 Not Modified")
    with Scripted(plays(moved("/b.png", redirect)), plays(answer)) as server:
        asked = known(server, house)
        target = parse(server.url("/b.png")).digest
        result = house.attempt(asked._replace(validators=asked.validators._replace(target=target)))
    assert isinstance(result, Saved if changed else NotModified)
    told = result.image if isinstance(result, Saved) else result
    assert told.fresh_until == (None if lifetime is None else pytest.approx(told.checked + lifetime, abs=3))


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
        assert house.saved(job(server)).fresh_until == freshness.NEVER


def test_a_redirect_that_varies_with_anything_says_nothing_of_the_image(house: House) -> None:
    with Scripted(plays(moved("/b.png", VARIES, LASTS)), plays(whole(BODY, LASTS))) as server:
        assert house.saved(job(server)).fresh_until is None


def test_a_rest_is_asked_for_only_where_the_beginning_came_from(house: House) -> None:
    script = plays(moved("/first.png")), CUT, plays(moved("/second.png")), plays(whole(BODY[::-1], f"ETag: {TAG}"))
    with Scripted(*script) as server:
        failure = house.failure(job(server))
        house.saved(job(server, resume=failure.resume))
        assert [request.headers.get("range") for request in server.requests] == [None] * 4
    assert house.content() == BODY[::-1]


def test_what_another_host_behind_a_redirect_fails_at_is_no_fault_of_the_one_that_leads_there(house: House) -> None:
    with Scripted(plays(head("Retry-After: 60", "Content-Length: 0", status="503 Unavailable"))) as other:
        with Scripted(plays(moved(other.url("/b.png")))) as server:
            failure = house.failure(job(server))
        assert (failure.http_status, failure.retry_after, failure.blame) == (503, 60.0, Blame.OTHER_HOST)
        gone = other.url("/b.png")
    with Scripted(plays(moved(gone))) as server:
        failure = house.failure(job(server))
    assert (failure.reason, failure.retryable, failure.blame) == (Reason.CONNECT, True, Blame.OTHER_HOST)
