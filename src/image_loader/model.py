"""The values that modules hand to one another, from a line of the list to an outcome.

They are named tuples: with frozen dataclasses (Python 3.11), the start of the command took a third longer, and each
fresh line a quarter.
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


class Columns(NamedTuple):
    """The columns of a table to read, each by its heading or its number from 1."""

    url: str
    name: str | None = None


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
    """What decides for how long an image is fresh: the fields of its server's answers, read (RFC 9111, 4.2).

    ``max_age`` is that of ``Cache-Control`` in seconds, negative where that forbids a lifetime or cannot be read, and
    None where ``expires`` decides. ``varies`` says that there was a ``Vary: *``. ``date`` is when the last answer was
    made, by its server's clock; ``age``, in seconds, how old it was when it came. ``redirects_end`` is when the first
    of the redirects on the way expires, None without redirects. Times are in seconds since the epoch.
    """

    max_age: float | None = None
    expires: float | None = None
    varies: bool = False
    date: float = 0.0
    age: float = 0.0
    redirects_end: float | None = None


class Image(NamedTuple):
    """One image as it was put in place, and what its server said of it.

    ``size`` is in bytes; ``mtime_ns`` and ``ctime_ns`` are in nanoseconds; ``saved`` and ``checked`` in seconds since
    the epoch, by this machine's clock. ``ctime_ns`` is None where an earlier version recorded the image. ``media_type``
    is None for a file that another program had saved, and ``sha256`` (hex) until its server has called it current.
    """

    file: str
    size: int
    mtime_ns: int
    ctime_ns: int | None
    media_type: str | None
    sha256: str | None
    validators: Validators
    lifetime: Lifetime
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

    ``validators`` hold a strong ``ETag`` or, without one, a strong date. ``media_type`` is that of the image,
    ``length`` its size in bytes; None if that was not announced.
    """

    key: str
    size: int
    inode: int
    mtime_ns: int
    validators: Validators
    media_type: str
    length: int | None = None


class Redirect(NamedTuple):
    """What is kept of one redirect: the header ``fields`` that say how long it holds.

    ``requested`` and ``received`` are the times of the request and of the answer, in seconds since the epoch.
    """

    fields: Mapping[str, str]
    requested: float
    received: float


class Hop(NamedTuple):
    """Where redirects have led an attempt so far.

    ``url`` is what it asks next. ``deadline`` is that of the whole attempt, by the monotonic clock. ``cookies`` are
    those that were set on the way.
    """

    url: Url
    redirects: tuple[Redirect, ...]
    deadline: float
    cookies: "CookieJar | None" = None


class Job(NamedTuple):
    """One image to ask a server for.

    ``row`` is its number in the index. ``image`` is what the index knows of the file in place, if that file is as
    recorded. ``validators`` are sent with the request; without them it is unconditional. ``inode`` is that of the file
    that had the name when this was planned; None if there was no file, so that the image takes one more inode.
    ``foreign`` says that this file may be another's: it stays unless the image is the same, byte for byte. ``sha256``
    is that of the last image of this URL, whatever became of its file. ``hop`` is where redirects have led the current
    attempt; ``is_unconditional`` says that the answer to a conditional request was of no use, so that the next one has
    no condition.
    """

    line: int
    url: Url
    row: int
    name: Name
    image: Image | None
    validators: Validators
    inode: int | None
    resume: Resume | None = None
    foreign: bool = False
    sha256: str | None = None
    hop: Hop | None = None
    is_unconditional: bool = False

    def anew(self, resume: Resume | None) -> Self:
        """Return the job for its next attempt, which goes on from ``resume``, if given, or from what it had."""
        return self._replace(resume=resume or self.resume, hop=None, is_unconditional=False)


class Saved(NamedTuple):
    """The attempt put a whole image in place.

    ``key`` is the key of its name, if this is another name than the job's. ``final_url`` is where redirects led,
    without user and password. ``width`` and ``height`` are in pixels, None if nothing was decoded.
    """

    image: Image
    http_status: int
    change: Change
    key: str | None = None
    final_url: str | None = None
    width: int | None = None
    height: int | None = None


class NotModified(NamedTuple):
    """The server answered 304: ``image``, which is in place, is current; the rest renews what is stored with it."""

    image: Image
    validators: Validators
    lifetime: Lifetime
    checked: float
    http_status: int = 304
    final_url: str | None = None


class Locked(NamedTuple):
    """Another run is downloading the same file, or has saved it since this one began; ``detail`` says which."""

    detail: str


BEING_SAVED = Locked("another run is downloading it")
SAVED_MEANWHILE = Locked("another run has just saved it")


class Failure(NamedTuple):
    """The attempt failed.

    ``retryable`` failures may be tried again; ``blame`` says whom they count against. ``retry_after`` is the pause that
    the server asked for, in seconds. ``stopped`` says that this process did not run when the attempt's time was over.
    """

    reason: Reason
    detail: str
    http_status: int | None = None
    retryable: bool = False
    blame: Blame = Blame.IMAGE
    retry_after: float | None = None
    resume: Resume | None = None
    stopped: bool = False


INTERRUPTED = Failure(Reason.INTERRUPTED, "the run was ended")


class Unfinished(NamedTuple):
    """The attempt goes on, as ``job`` says, once a connection to the host that it asks next stands."""

    job: Job


Result = Saved | NotModified | Locked | Failure


class Outcome(NamedTuple):
    """How one line ended; or, with the number 0 and no URL, what became of an image that is no longer in the list.

    ``file`` is relative to the directory; ``detail`` is text for people, free of secrets; ``bytes`` is the size of the
    file saved; ``seconds`` is the time spent on attempts. ``final_url`` is where redirects led, None where there were
    none, or nothing was asked. ``change`` is that of an image that was saved. ``width`` and ``height``, in pixels, are
    known where it was decoded.
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
    final_url: str | None = None
    change: Change | None = None
    width: int | None = None
    height: int | None = None

    @property
    def is_of_line(self) -> bool:
        """Whether it is that of a line, and not of an image that is no longer in the list."""
        return self.line > 0 or self.url != ""
