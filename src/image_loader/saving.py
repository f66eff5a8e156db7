"""An answer's body becomes an image: its announcement and its bytes are checked, and it is put in place."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from itertools import chain
from typing import TYPE_CHECKING

from image_loader import freshness, media_types, sniffing
from image_loader.errors import DownloadError
from image_loader.lists.naming import key, spares
from image_loader.model import SAVED_MEANWHILE, Change, Image, Job, Locked, Reason, Resume, Saved, Validators
from image_loader.processors import spread
from image_loader.settings import Settings
from image_loader.store.directory import Directory, Partial
from image_loader.transport import Answer

if TYPE_CHECKING:
    from image_loader.decoding.pool import Decoders

_LOG = logging.getLogger(__name__)
_GZIP = b"\x1f\x8b\x08"
_CONTENT_RANGE = r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})"  # compiled with the first part


class _Body:
    """The body of an answer; ``size`` is that of the whole image in bytes, None where it is not announced."""

    def __init__(self, pieces: Iterable[bytes], media_type: str, size: int | None) -> None:
        self.pieces = pieces
        self.media_type = media_type
        self.size = size


_Range = tuple[int, int, int]
"""What a Content-Range says: the first and the last byte of a part, and the size of the whole."""
_Found = tuple[str, int | None, int | None]
"""What an image is: its type, and its width and height in pixels where it was decoded."""


class Saver:
    """Saves bodies, from any thread. ``likely_extension`` is a guess at the next one's."""

    def __init__(self, directory: Directory, settings: Settings, processors: frozenset[int]) -> None:
        """``processors``: where work without the interpreter lock may run; if empty, it stays where its thread is."""
        self._processors = processors
        self._directory = directory
        self._settings = settings
        self.likely_extension = ".jpg"
        self._sniffs = settings.sniff or settings.verify
        self._decoders = _decoders(settings, processors, directory) if settings.verify else None

    def interrupt(self) -> None:
        """End the decoding that bodies wait for."""
        if self._decoders is not None:
            self._decoders.close()

    def save(self, job: Job, answer: Answer, resume: Resume | None) -> Saved | Locked:
        """Save the body, which begins where ``resume`` ends, if given."""
        body = self._body(answer, resume)
        extension = self.likely_extension = media_types.extension(body.media_type)
        file = job.name.file(extension)
        with self._directory.partial(file, key(file), resume) as partial:
            if self._directory.saved_meanwhile(file, job.inode):
                return SAVED_MEANWHILE
            if resume is not None and partial.size != resume.size:
                raise _wrong_part()
            validators = _validators(answer, resume)
            sha256 = self._store(partial, answer, body, validators)
            media_type, width, height = self._check(partial, answer, body, file)
            before = self._sha256_before(job, file)
            mtime = freshness.modified_time(validators.last_modified, answer.received)
            state = partial.commit(mtime, self._files(job, file, extension, sha256))
        received = answer.received
        lifetime = freshness.lifetime(answer.fields, answer.requested, received, redirects_end(answer))
        image = Image(
            partial.file,
            state.st_size,
            state.st_mtime_ns,
            state.st_ctime_ns,
            media_type,
            sha256,
            validators,
            lifetime,
            received,
            received,
        )
        other = partial.file != file
        change = _change(sha256, job.sha256 if other else before)
        new_key = key(partial.file) if other else None
        return Saved(image, answer.status, change, new_key, final_url(answer), width, height)

    def _sha256_before(self, job: Job, file: str) -> str | None:
        """Return the SHA-256 of the previous image; if it is not known, that of the file that will be replaced."""
        if job.sha256 is not None or job.inode is None:
            return job.sha256
        read = self._directory.digest(file)
        return None if read is None else read[0]

    def _files(self, job: Job, file: str, extension: str, sha256: str) -> Iterator[str]:
        """Yield the names that an image may get: its own, unless another's file has that name, then spare ones."""
        if not (job.foreign and self._is_other(file, sha256)):
            yield file
        for spare in spares(job.url, self._settings.layout, extension):
            if not self._is_other(spare, sha256):
                yield spare

    def _is_other(self, file: str, sha256: str) -> bool:
        """Whether there is a file of this name with another content."""
        read = self._directory.digest(file)
        return self._directory.stat(file) is not None if read is None else read[0] != sha256

    def _body(self, answer: Answer, resume: Resume | None) -> _Body:
        """Check the headers and the first bytes; raise ``DownloadError`` if they are not those of an image."""
        size = _whole_size(answer, resume)
        announced = media_types.essence(answer.fields.get("content-type"))
        media_type = announced if media_types.is_image(announced) else None
        if media_type is None and not media_types.is_generic(announced):
            raise _not_an_image(answer)
        if (answer.length or 0) > self._settings.max_size and answer.plain:
            raise DownloadError(Reason.TOO_LARGE, f"{answer.length} bytes announced", http_status=answer.status)
        pieces = answer.chunks(self._settings.chunk)
        if resume is not None:
            # A 206 may leave out fields that came with the beginning (RFC 9110, 15.3.7).
            return _Body(pieces, resume.media_type, size)
        if media_type is None:
            media_type, first = self._sniffed(answer, pieces)
        else:
            first = sniffing.beginning(pieces)
            _refuse_text(answer, media_type, first)
        return _Body(chain((first,), pieces), media_type, size)

    def _sniffed(self, answer: Answer, body: Iterator[bytes]) -> tuple[str, bytes]:
        """Return the image's type, and the first bytes of its body, which were read to find out."""
        first = b""
        # The body is refused anyway, so it does not matter if it breaks off.
        with nullcontext() if self._sniffs else suppress(DownloadError):
            first = sniffing.beginning(body)
        found = sniffing.image_type(first)
        if found is None or not self._sniffs:
            raise _not_an_image(answer, _looks(first, found))
        return found, first

    def _store(self, partial: Partial, answer: Answer, body: _Body, validators: Validators) -> str:
        """Write the body; return its SHA-256 in hex. A body cut short leaves a partial file that can be resumed."""
        try:
            if (answer.length or 0) > self._settings.chunk:
                with spread(self._processors):
                    return self._write(partial, body.pieces, answer.status)
            return self._write(partial, body.pieces, answer.status)
        except DownloadError as error:
            if error.failure.retryable and partial.size and answer.plain and freshness.is_resumable(answer.fields):
                error.resume_with(partial.keep(validators, body.media_type)._replace(length=body.size))
            raise

    def _write(self, partial: Partial, body: Iterable[bytes], status: int) -> str:
        digest = hashlib.sha256()
        for chunk in partial.chunks() if partial.size else ():
            digest.update(chunk)
        for chunk in body:
            if partial.size + len(chunk) > self._settings.max_size:
                raise DownloadError(Reason.TOO_LARGE, f"more than {self._settings.max_size} bytes")
            partial.write(chunk)
            digest.update(chunk)
        if not partial.size:
            raise DownloadError(Reason.NOT_AN_IMAGE, "an empty body", http_status=status)
        return digest.hexdigest()

    def _check(self, partial: Partial, answer: Answer, body: _Body, file: str) -> _Found:
        """Return what the image is; refuse what is not the whole image that was announced."""
        if body.size is not None and body.size != partial.size:
            raise _wrong_part()
        # A proxy ends its chunks in good order, though the connection behind it broke off (nginx 1.22).
        unmeasured = body.size is None and answer.plain
        if unmeasured:
            _check_end(partial, answer)
        try:
            return self._verify(partial, file, body.media_type, answer.deadline)
        except DownloadError as error:
            if unmeasured and error.failure.reason is Reason.DAMAGED:
                error.may_pass()
            raise

    def _verify(self, partial: Partial, file: str, media_type: str, deadline: float) -> _Found:
        if self._decoders is None:
            return media_type, None, None
        found, width, height = self._decoders.decode(partial.path, deadline)
        if media_types.extension(found) != media_types.extension(media_type):
            _LOG.info("%s: sent as %s, is %s", file, media_type, found)
            media_type = found
        return media_type, width, height


def _check_end(partial: Partial, answer: Answer) -> None:
    """Refuse an image of unannounced length that ends before its own end."""
    from image_loader import endings

    if not endings.is_whole(partial.chunks(), partial.size):
        detail = f"the body ended after {partial.size} bytes, before the image did"
        raise DownloadError(Reason.TRUNCATED, detail, http_status=answer.status, retryable=True)


def _decoders(settings: Settings, processors: frozenset[int], directory: Directory) -> Decoders:
    """Return the decoders. They are imported only here, since most runs need none."""
    from image_loader.decoding.pool import Decoders

    return Decoders(settings, directory.partials_folder, processors)


def _change(sha256: str, before: str | None) -> Change:
    if before is None:
        return Change.NEW
    return Change.SAME if sha256 == before else Change.CHANGED


def final_url(answer: Answer) -> str | None:
    """Return where redirects led to, without user and password; None without redirects."""
    return answer.url.origin + answer.url.path if answer.redirects else None


def redirects_end(answer: Answer) -> float | None:
    """Return when the first of the redirects on the way expires; None without redirects."""
    if not answer.redirects:
        return None
    return freshness.redirects_end((each.fields, each.requested, each.received) for each in answer.redirects)


def _refuse_text(answer: Answer, announced: str, first: bytes) -> None:
    """Refuse text of a kind that no browser shows as an image, and what is still in chunks or compressed."""
    svg = media_types.extension(announced) == ".svg"
    kind = sniffing.text_kind(first, svg=svg)
    if kind is not None and (svg or not announced.endswith(f"+{kind.lower()}")):
        raise _not_an_image(answer, f", but the body is {kind}")
    if sniffing.is_chunked(first):
        detail = "the body is in chunks, but Transfer-Encoding does not say so"
        raise DownloadError(Reason.PROTOCOL, detail, http_status=answer.status)
    coding = answer.fields.get("content-encoding")
    if coding and first.startswith(_GZIP):
        detail = f"Content-Encoding is {coding[:80]}, but the body is compressed with gzip"
        raise DownloadError(Reason.PROTOCOL, detail, http_status=answer.status)


def _looks(first: bytes, found: str | None) -> str:
    if found is not None:
        return f"; the first bytes are those of {found}, which --sniff accepts"
    if not first:
        return ""
    kind = sniffing.text_kind(first, svg=False)
    return f"; the body is {kind}" if kind else "; the first bytes are those of no known image format"


def _not_an_image(answer: Answer, remark: str = "") -> DownloadError:
    shown = answer.fields.get("content-type", "")[:80]
    detail = f"Content-Type is {shown}" if shown else "no Content-Type"
    return DownloadError(Reason.NOT_AN_IMAGE, detail + remark, http_status=answer.status)


def _validators(answer: Answer, resume: Resume | None) -> Validators:
    etag, last_modified, _ = freshness.validators(answer.fields)
    if resume is not None:
        last_modified = last_modified or resume.validators.last_modified
    return Validators(etag, last_modified, answer.url.digest if answer.redirects else None)


def is_whole(answer: Answer) -> bool:
    """Whether an answer is a whole image: 200, 203, or an unrequested part that is the whole."""
    return answer.status in (200, 203) or (answer.status == 206 and _is_whole_range(_range(answer)))


def _whole_size(answer: Answer, resume: Resume | None) -> int | None:
    """Return the size of the image, where it is announced; a part must be the one that was asked for.

    RFC 9110, 14.4 and 15.3.7.
    """
    if answer.status != 206:
        return answer.length if answer.plain else None
    part = _range(answer) if answer.plain else None
    if resume is None:
        return None if part is None else part[2]
    if part is None or not _is_same_version(answer, resume.validators):
        raise _wrong_part()
    first, last, size = part
    if first != resume.size or last + 1 != size or resume.length not in (None, size):
        raise _wrong_part()
    return size


def _range(answer: Answer) -> _Range | None:
    match = re.fullmatch(_CONTENT_RANGE, answer.fields.get("content-range", ""))
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _is_whole_range(part: _Range | None) -> bool:
    return part is not None and part[0] == 0 and part[1] + 1 == part[2]


def _is_same_version(answer: Answer, known: Validators) -> bool:
    """Whether a part is of the same version as the beginning, by its ETag or, without one, by a strong date."""
    etag, last_modified = answer.fields.get("etag"), answer.fields.get("last-modified")
    return etag == known.etag and (etag is not None or last_modified == known.last_modified)


def _wrong_part() -> DownloadError:
    # The next attempt asks for the whole.
    return DownloadError(Reason.PROTOCOL, "206 with another part than was asked for", http_status=206, retryable=True)
