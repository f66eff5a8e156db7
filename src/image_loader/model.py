"""The values that travel through the house, from a line of the list to an outcome.

They are named tuples: with frozen dataclasses (Python 3.11), the start of the command took a third longer, and each
fresh line a quarter.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum
from pathlib import Path
from typing import NamedTuple

from image_loader.url import Url


class Status(StrEnum):
    """How a line of the list ended; each line has exactly one."""

    SAVED = "saved"
    FRESH = "fresh"
    SKIPPED = "skipped"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a line was not saved: short fixed words, for counting."""

    BAD_URL = "bad-url"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    DEADLINE = "deadline"
    TRUNCATED = "truncated"
    HTTP_STATUS = "http-status"
    REDIRECTS = "redirects"
    NOT_AN_IMAGE = "not-an-image"
    TOO_LARGE = "too-large"
    DAMAGED = "damaged"
    PRIVATE_ADDRESS = "private-address"
    HOST_DOWN = "host-down"
    LOCKED = "locked"
    WRITE = "write"
    INTERRUPTED = "interrupted"
    DUPLICATE = "duplicate"
    PROTOCOL = "protocol"


class Blame(Enum):
    """Whom a failure counts against."""

    IMAGE = "image"
    """The host answers, but not with this image."""
    HOST = "host"
    """There is no connection to the host, or no answer on it."""
    OTHER_HOST = "other host"
    """It happened at a host that the image's own redirects to."""
    PROCESS = "this process"
    """It has run out of file descriptors."""


class Layout(StrEnum):
    """Where an image stands below the directory."""

    FLAT = "flat"
    HOST = "host"
    HASH = "hash"


class Line(NamedTuple):
    """One line of the list: a URL, or the fault that keeps it from being one."""

    number: int
    text: str
    url: Url | None
    fault: str = ""


class Name(NamedTuple):
    """A path relative to the directory; while ``complete`` is false, only the extension is missing."""

    path: str
    complete: bool

    def file(self, extension: str) -> str:
        """Return the file's path, with ``extension`` where the name still lacks one.

        >>> Name("a.jpg", True).file(".png"), Name("a-0f", False).file(".png")
        ('a.jpg', 'a-0f.png')
        """
        return self.path if self.complete else self.path + extension


class Validators(NamedTuple):
    """What a conditional request carries, byte for byte as the server gave it (RFC 9110, 8.8).

    They are good for one resource only: where redirects led to it, that whose ``Url.resource`` is ``target``, else the
    one that the list names.
    """

    etag: str | None = None
    last_modified: str | None = None
    target: bytes | None = None

    def __bool__(self) -> bool:
        return self.etag is not None or self.last_modified is not None


class Image(NamedTuple):
    """One image as it was put in place, and what its server said of it.

    ``size`` is in bytes; ``mtime_ns`` in nanoseconds; ``fresh_until``, ``saved`` and ``checked`` in seconds since the
    epoch, by this machine's clock. ``fresh_until`` is None where the server gave no usable lifetime, and negative where
    no 304 can give one; ``sha256`` (hex) and ``media_type`` are None for a file that another program had saved.
    """

    file: str
    size: int
    mtime_ns: int
    media_type: str | None
    sha256: str | None
    validators: Validators
    fresh_until: float | None
    saved: float
    checked: float


class Record(NamedTuple):
    """What the index holds of one URL: the name that it owns, and its image once there is one.

    ``row`` is its number there, the same as long as the index is open.
    """

    row: int
    name: Name
    image: Image | None


class Resume(NamedTuple):
    """A partial file that a cut-off body left behind, to be continued (RFC 9110, 14.2 and 13.1.5).

    The ``ETag`` of ``validators`` is a strong one; ``media_type`` is that of the image.
    """

    key: str
    size: int
    inode: int
    mtime_ns: int
    validators: Validators
    media_type: str


class Job(NamedTuple):
    """One image to ask a server for.

    ``row`` is its number in the index. ``image`` is what that knows of the file in place, where it is as it was
    recorded; ``validators`` are sent with the request (none: an unconditional request). ``inode`` is that of the file
    that stood under the name when this was planned, None where there was none, so that the image takes one more.
    """

    line: int
    url: Url
    row: int
    name: Name
    image: Image | None
    validators: Validators
    inode: int | None
    resume: Resume | None = None


class Saved(NamedTuple):
    """The attempt put a whole image in place."""

    image: Image
    http_status: int


class NotModified(NamedTuple):
    """The server answered 304: ``image``, which is in place, is current; the rest renews what is stored with it."""

    image: Image
    validators: Validators
    fresh_until: float | None
    checked: float
    http_status: int = 304


class Locked(NamedTuple):
    """Another run is downloading the same file, or has saved it since this one began; ``detail`` says which."""

    detail: str


BEING_SAVED = Locked("another run is downloading it")
SAVED_MEANWHILE = Locked("another run has just saved it")


class Failure(NamedTuple):
    """The attempt failed.

    ``retryable`` failures may be tried again; ``blame`` says whom they count against. ``retry_after`` is the pause that
    the server asked for, in seconds.
    """

    reason: Reason
    detail: str
    http_status: int | None = None
    retryable: bool = False
    blame: Blame = Blame.IMAGE
    retry_after: float | None = None
    resume: Resume | None = None


Result = Saved | NotModified | Locked | Failure


class Outcome(NamedTuple):
    """How one line ended.

    ``file`` is relative to the directory; ``detail`` is text for people, free of secrets; ``bytes`` is the size of the
    file saved; ``seconds`` is the time spent on attempts.
    """

    line: int
    url: str
    file: str | None
    status: Status
    reason: Reason | None = None
    detail: str | None = None
    http_status: int | None = None
    media_type: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    attempts: int = 0
    seconds: float = 0.0


class Settings(NamedTuple):
    """Everything a run can be told. The defaults stand at the top of ``loader.py``, nowhere else.

    Times are in seconds, sizes in bytes.
    """

    directory: Path
    force: bool
    revalidate: bool
    threads: int
    per_host: int
    timeout: float
    max_time: float
    retries: int
    max_size: int
    headers: Mapping[str, str]
    user_agent: str
    ca_bundle: str | None
    insecure: bool
    public_only: bool
    layout: Layout
    verify: bool
    max_pixels: int
    decoding_memory: int
    decoding_time: int
    index_file: Path | None
    window: int
    window_size: int
    batch: int
    chunk: int
    pool_hosts: int
    host_failures: int
    host_patience: float
    backoff_cap: float
    retry_after_cap: float
    redirects: int
    flush_interval: float
    one_processor: bool = False
