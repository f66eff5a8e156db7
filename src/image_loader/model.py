"""The values that modules hand to one another, from a line of the list to an outcome.

Those that there are many of are named tuples: with frozen dataclasses (Python 3.11), the start of the command took a
third longer, and each fresh line a quarter. The others are plain classes, which are made in a tenth of the time.
"""

# No annotation is a string here, so that making the named tuples takes no evaluation: that would cost a millisecond.
from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, NamedTuple, Self

from image_loader.url import Url

if TYPE_CHECKING:
    from http.cookiejar import CookieJar


class Status(StrEnum):
    """How a line of the list ended; each line has exactly one."""

    SAVED = "saved"
    FRESH = "fresh"
    SKIPPED = "skipped"
    FAILED = "failed"
    DELETED = "deleted"
    """Of no line: an image that is no longer in the list."""


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
    EXISTS = "exists"
    IGNORED_STATUS = "ignored-status"
    WOULD_ASK = "would-ask"
    WOULD_DELETE = "would-delete"
    PROTOCOL = "protocol"


class Change(StrEnum):
    """How an image that was saved differs from the one before it."""

    NEW = "new"
    """There was none."""
    CHANGED = "changed"
    SAME = "same"
    """Its bytes are those of the one before."""


class Blame(Enum):
    """Whom a failure counts against."""

    IMAGE = "image"
    """The host answers, but not with this image."""
    HOST = "host"
    """There is no connection to the host, or no answer on it."""
    PROCESS = "this process"
    """It has run out of file descriptors."""


class Layout(StrEnum):
    """Where an image stands below the directory."""

    FLAT = "flat"
    HOST = "host"
    HASH = "hash"
    PATH = "path"


class Columns:
    """The columns of a table to read, each by its heading or its number from 1."""

    def __init__(self, url: str, name: str | None = None) -> None:
        self.url = url
        self.name = name


class Line(NamedTuple):
    """One line of the list: a URL, or the fault that keeps it from being one.

    ``name`` is the file name that the list gives it: a path below the directory, as written there.
    """

    number: int
    text: str
    url: Url | None
    fault: str = ""
    name: str | None = None


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

    They are valid for one resource only: that whose ``Url.digest`` is ``target`` if redirects led to it, otherwise the
    one that the list names.
    """

    etag: str | None = None
    last_modified: str | None = None
    target: bytes | None = None

    def __bool__(self) -> bool:
        return self.etag is not None or self.last_modified is not None


class Lifetime(NamedTuple):
    """What decides for how long an image is fresh: the fields of its server's answers, read (RFC 9111, 4.2)."""

    max_age: float | None = None
    """Seconds, from ``Cache-Control``. Negative where it forbids a lifetime or cannot be read, None without one."""
    expires: float | None = None
    """Seconds since the epoch. It decides where there is no ``max_age``."""
    varies: bool = False
    """Whether there was a ``Vary: *``."""
    date: float = 0.0
    """Seconds since the epoch: when the last answer was made, by its server's clock."""
    age: float = 0.0
    """Seconds: how old that answer was when it came."""
    redirects_end: float | None = None
    """Seconds since the epoch: when the first of the redirects on the way expires. None without redirects."""


class Image(NamedTuple):
    """One image as it was put in place, and what its server said of it."""

    file: str
    """Its path relative to the directory."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Nanoseconds since the epoch."""
    ctime_ns: int | None
    """Nanoseconds since the epoch. None where an earlier version recorded the image."""
    media_type: str | None
    """None for a file that another program had saved."""
    sha256: str | None
    """In hex. None for a file that another program had saved, until its server has called it current."""
    validators: Validators
    """What the next request for it carries."""
    lifetime: Lifetime
    """What decides when that is due."""
    saved: float
    """Seconds since the epoch, by this machine's clock: when its answer came."""
    checked: float
    """Seconds since the epoch, by this machine's clock: when its server last called it current."""


class Record(NamedTuple):
    """What the index holds of one URL."""

    row: int
    """Its number there, the same as long as the index is open."""
    name: Name
    """The name that it owns."""
    image: Image | None
    """None until there is one."""


class Resume(NamedTuple):
    """A partial file that a cut-off body left behind, to be continued (RFC 9110, 14.2 and 13.1.5)."""

    key: str
    """That of the image's name: the partial file is named after it."""
    size: int
    """Bytes that are there."""
    inode: int
    """With size and time it tells whether the file still is the one that was left."""
    mtime_ns: int
    """Nanoseconds since the epoch."""
    validators: Validators
    """A strong ``ETag`` or, without one, a strong date."""
    media_type: str
    """That of the image."""
    length: int | None = None
    """Bytes of the whole image; None if that was not announced."""


class Redirect:
    """What is kept of one redirect: the header ``fields`` that say how long it holds.

    ``requested`` and ``received`` are the times of the request and of the answer, in seconds since the epoch.
    """

    def __init__(self, fields: Mapping[str, str], requested: float, received: float) -> None:
        self.fields = fields
        self.requested = requested
        self.received = received


class Hop:
    """Where an attempt that has begun goes on, and the redirects that led there, if any."""

    def __init__(
        self, url: Url, redirects: tuple[Redirect, ...], cookies: "CookieJar | None" = None, left: float = 0.0
    ) -> None:
        self.url = url
        """What it asks next."""
        self.redirects = redirects
        """Those on the way, the first one first."""
        self.cookies = cookies
        """Those that were set on the way."""
        self.left = left
        """Seconds that the attempt may still take, once it goes on."""


class Job(NamedTuple):
    """One image to ask a server for."""

    line: int
    """The number of its line in the list, from 1."""
    url: Url
    """What that line names."""
    row: int
    """Its number in the index."""
    name: Name
    """The name that it owns."""
    image: Image | None
    """What the index knows of the file in place, if that file is as recorded."""
    validators: Validators
    """What is sent with the request; without any it is unconditional."""
    inode: int | None
    """That of the file that had the name when this was planned. None without a file: the image takes one more inode."""
    resume: Resume | None = None
    """What an attempt before this one left behind."""
    foreign: bool = False
    """Whether the file in place may be another's: it stays unless the image is the same, byte for byte."""
    sha256: str | None = None
    """In hex: that of the last image of this URL, whatever became of its file."""
    hop: Hop | None = None
    """Where the current attempt goes on, if it has begun."""
    is_unconditional: bool = False
    """Whether the next request has no condition, since the answer to a conditional one was of no use."""

    def anew(self, resume: Resume | None) -> Self:
        """Return the job for its next attempt, which goes on from ``resume``, if given, or from what it had."""
        return self._replace(resume=resume or self.resume, hop=None, is_unconditional=False)


class Saved(NamedTuple):
    """The attempt put a whole image in place."""

    image: Image
    http_status: int
    change: Change
    key: str | None = None
    """That of the image's name, if this is another name than the job's."""
    final_url: str | None = None
    """Where redirects led, without user and password. None without redirects."""
    width: int | None = None
    """Pixels. None if nothing was decoded."""
    height: int | None = None
    """Pixels. None if nothing was decoded."""


class NotModified(NamedTuple):
    """The server answered 304: the image in place is current."""

    image: Image
    """That image, as it was known before. What follows renews what is stored with it."""
    validators: Validators
    lifetime: Lifetime
    checked: float
    """Seconds since the epoch, by this machine's clock: when the answer came."""
    http_status: int = 304
    final_url: str | None = None
    """Where redirects led, without user and password. None without redirects."""


class Locked:
    """Another run is downloading the same file, or has saved it since this one began; ``detail`` says which."""

    def __init__(self, detail: str) -> None:
        self.detail = detail


BEING_SAVED = Locked("another run is downloading it")
SAVED_MEANWHILE = Locked("another run has just saved it")
SAVED_BEFORE = Locked(SAVED_MEANWHILE.detail)
"""The same, seen before anything was asked: it says nothing of the host."""


class Failure(NamedTuple):
    """The attempt failed."""

    reason: Reason
    """For counting."""
    detail: str
    """For people."""
    http_status: int | None = None
    retryable: bool = False
    """Whether another attempt makes sense."""
    blame: Blame = Blame.IMAGE
    """Whom it counts against."""
    retry_after: float | None = None
    """Seconds to wait before that, if the server asked for a pause."""
    resume: Resume | None = None
    """What another attempt can go on from."""
    stopped: bool = False
    """Whether this process did not run when the attempt's time was over."""


INTERRUPTED = Failure(Reason.INTERRUPTED, "the run was ended")


Result = Saved | NotModified | Locked | Failure
"""How an attempt ended. In its place is a ``Job`` if the attempt goes on, as that says, once a connection stands to the
host that it asks next."""


class Outcome(NamedTuple):
    """How one line ended, or what became of an image that is no longer in the list."""

    line: int
    """The number of the line, from 1. 0 for an image that is no longer in the list."""
    url: str
    """As the list has it, with passwords and query strings. Empty for an image that is no longer in the list."""
    file: str | None
    """The image's path relative to the directory. None where it has no name."""
    status: Status
    reason: Reason | None = None
    """Why it was skipped or failed."""
    detail: str | None = None
    """Text for people, without secrets."""
    http_status: int | None = None
    """That of the last answer. None without an answer."""
    media_type: str | None = None
    """That of the image."""
    bytes: int | None = None
    """The size of its file."""
    sha256: str | None = None
    """That of its file, in hex."""
    attempts: int = 0
    """How many were made at it."""
    seconds: float = 0.0
    """The time spent on these attempts."""
    final_url: str | None = None
    """Where redirects led, without user and password. None where there were none, or nothing was asked."""
    change: Change | None = None
    """How an image that was saved differs from the one before it."""
    width: int | None = None
    """Pixels, if the image was decoded."""
    height: int | None = None
    """Pixels, if the image was decoded."""

    @property
    def is_of_line(self) -> bool:
        """Whether it is that of a line, and not of an image that is no longer in the list."""
        return self.line > 0 or self.url != ""
