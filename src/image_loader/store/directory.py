"""The output directory: validated, counted in inodes, and filled with whole images under a lock each."""
# A Path costs more than the system call it is made for, and this runs once per line.
# ruff: noqa: PTH100, PTH102, PTH105, PTH108, PTH118, PTH120, PTH208

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from image_loader.errors import DirectoryError, DownloadError, LockedError, OutOfInodesError, is_out_of_descriptors
from image_loader.model import Blame, Image, Reason, Resume, Validators

HIDDEN = ".image_loader"
"""The folder of the output directory that is ours."""

_MAX_NAME_BYTES = 255
_MODE = 0o666
_LOCK_PATIENCE = 0.05
_LOCK_POLL = 0.005
_READ_SIZE = 1 << 18
# O_NONBLOCK: the opening of a FIFO must not wait for its other end. O_APPEND: no seek after a resume or a truncation.
_REOPEN = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN = _REOPEN | os.O_CREAT

_OF_ONE_FILE = {
    errno.EACCES,
    errno.EBUSY,
    errno.EEXIST,
    errno.EFBIG,
    errno.EILSEQ,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EXDEV,
}
_WAYS_OUT = {
    errno.EACCES: "grant the right to write there",
    errno.EDQUOT: "have the quota raised",
    errno.EEXIST: "move that file away",
    errno.ENOENT: "put the directory back",
    errno.ENOSPC: "free some space",
    errno.ENOTDIR: "move that file away",
    errno.EPERM: "grant the right to write there",
    errno.EROFS: "make the file system writable",
}


def is_as_recorded(state: os.stat_result, image: Image) -> bool:
    """Whether a file still is in the state in which its image was recorded."""
    return state.st_size == image.size and state.st_mtime_ns == image.mtime_ns


class Translating:
    """A context that raises what an ``OSError`` of its block means; ``contextlib``'s costs five times as much."""

    def __init__(self, meaning: Callable[[OSError], Exception]) -> None:
        self._meaning = meaning

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise self._meaning(error) from error


class Directory:
    """The directory that the images go to; any thread may use it.

    Its errors: ``DirectoryError`` where the run cannot go on, ``DownloadError`` (``write``) where one file is at fault.
    """

    def __init__(self, path: Path) -> None:
        """Make the directory, with its parents, and check that files can be made and locked there.

        What a killed run left behind is removed. Raises ``DirectoryError``.
        """
        self.path = path
        self.hidden = path / HIDDEN
        self._begun = time.time_ns()
        self._open_partials: dict[str, int] = {}
        self.translating = Translating(self._fault)
        try:
            self._root = os.path.join(os.path.abspath(path), "")
            self._partials = os.path.join(self._root, HIDDEN, "partial", "")
            self._root_bytes = os.fsencode(self._root)
            self._make()
            self.max_name_bytes = _max_name_bytes(self._root)
        except OSError as error:
            raise self._end_of_run(error) from error
        self.sweep()

    def is_empty(self) -> bool:
        """Whether nothing is there but what is hidden."""
        with self.translating, os.scandir(self._root) as entries:
            return all(entry.name.startswith(".") for entry in entries)

    def stat(self, file: str) -> os.stat_result | None:
        """Return the state of a regular file; None where there is none, or a link, directory or FIFO in its place."""
        try:
            state = os.lstat(self._place(file))
        except FileNotFoundError:
            return None
        except OSError as error:
            fault = self._fault(error)
            if isinstance(fault, DirectoryError):
                raise fault from error
            return None
        return state if stat.S_ISREG(state.st_mode) else None

    def saved_meanwhile(self, file: str, inode: int | None) -> bool:
        """Whether another run has put ``file`` in place since this one saw ``inode`` there, or no such file (None).

        Where it was edited, it still has its inode; where the file system gives out inodes anew each time, its ctime is
        from before this run. A ctime to come tells nothing: the clock was set back.
        """
        state = self.stat(file)
        return state is not None and state.st_ino != inode and self._begun <= state.st_ctime_ns <= time.time_ns()

    def check_inodes(self, wanted: int) -> None:
        """Raise ``OutOfInodesError`` if the file system cannot take so many new files."""
        with self.translating:
            available = _available_inodes(self._root)
        if available is not None and wanted > available:
            raise OutOfInodesError(self.path, wanted, available)

    def partial(self, file: str, key: str, resume: Resume | None = None) -> Partial:
        """Open and lock the partial file of an image; ``key`` is one and the same for all spellings of ``file``.

        It is empty, unless it still is what ``resume`` says. Raises ``LockedError`` if another process is at it.
        """
        give_up = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                return self._open(file, key, resume)
            except LockedError:
                if time.monotonic() > give_up:
                    raise
            time.sleep(_LOCK_POLL)

    def is_kept(self, resume: Resume) -> bool:
        """Whether a partial file that was kept still is what it was."""
        try:
            return _is_as_kept(os.lstat(self._partial_path(resume.key)), resume)
        except OSError:
            return False

    def discard(self, key: str) -> None:
        """Remove a partial file that was kept to be resumed, and will not be."""
        _remove_leftover(self._partial_path(key))

    def sweep(self) -> None:
        """Remove the partial files that nobody holds a lock on."""
        with suppress(OSError):
            for name in os.listdir(self._partials):
                _remove_leftover(self._partials + name)

    def close(self) -> None:
        """Remove what was kept for attempts that never came, and what an attempt that nobody waits for still holds.

        Such an attempt cannot put its image in place any more.
        """
        for path, inode in list(self._open_partials.items()):
            with suppress(OSError):
                if os.lstat(path).st_ino == inode:
                    os.unlink(path)
        self.sweep()

    def replace(self, path: str, file: str) -> None:
        """Give the partial file at ``path`` its image's name; the folders of the layout are made on demand."""
        try:
            os.replace(path, self._place(file))
        except FileNotFoundError:
            self._make_folders(file)
            os.replace(path, self._place(file))

    def forget(self, path: str) -> None:
        """Take note that a partial file is no longer open."""
        self._open_partials.pop(path, None)

    def _make(self) -> None:
        for path in (self._root, self._partials):
            Path(path).mkdir(parents=True, exist_ok=True)
        self._probe_locking()
        if not self._is_usable():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self._root)

    def _probe_locking(self) -> None:
        """Lock one file in the way filelock does on Unix, without the price of its import.

        It is a file, because a directory is locked locally even where a network file system provides no locks.
        """
        path = self._partials + "probe"
        descriptor = os.open(path, _OPEN, _MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            pass  # Another run is probing: locks do work.
        except OSError as error:
            raise DirectoryError(
                f"{self.path}: the file system provides no file locks ({error.strerror}); "
                "mount it with locking, or name a directory elsewhere"
            ) from error
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)
            os.close(descriptor)

    def _make_folders(self, file: str) -> None:
        """Make the folders above ``file``, but not the directory itself: where that is gone, the run ends."""
        for index, character in enumerate(file):
            if character == "/":
                with suppress(FileExistsError):
                    os.mkdir(self._place(file[:index]))

    def _place(self, file: str) -> bytes:
        """Return the path of an image: names are UTF-8, whatever the locale has, which may not have their letters."""
        return self._root_bytes + file.encode()

    def _partial_path(self, key: str) -> str:
        return self._partials + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def _open(self, file: str, key: str, resume: Resume | None) -> Partial:
        path = self._partial_path(key)
        with self.translating:
            descriptor = os.open(path, _OPEN, _MODE)
            try:
                state = _lock(descriptor, path)
                size = state.st_size if _is_as_kept(state, resume) else 0
                _check_ours(state, path)
                if size != state.st_size:
                    os.ftruncate(descriptor, 0)
            except BaseException:
                os.close(descriptor)
                raise
        self._open_partials[path] = state.st_ino
        return Partial(self, file, key, path, descriptor=descriptor, size=size)

    def _fault(self, error: OSError) -> DirectoryError | DownloadError:
        text = f"{self._subject(error)}: {error.strerror}"
        if is_out_of_descriptors(error):
            return DownloadError(Reason.WRITE, text, retryable=True, blame=Blame.PROCESS)
        if error.errno in _OF_ONE_FILE and self._is_usable():
            return DownloadError(Reason.WRITE, text)
        return self._end_of_run(error)

    def _end_of_run(self, error: OSError) -> DirectoryError:
        # Only the making of a file takes an inode, and such an error names the file.
        if error.errno == errno.ENOSPC and error.filename:
            available = _available_inodes(os.path.dirname(error.filename))
            if available == 0:
                return OutOfInodesError(self.path, 1, available)
        way_out = _WAYS_OUT.get(error.errno or 0, "check the disk")
        return DirectoryError(f"{self._subject(error)}: {error.strerror}; {way_out}, or name another directory")

    def _subject(self, error: OSError) -> str:
        return os.fsdecode(error.filename2 or error.filename or self.path)

    def _is_usable(self) -> bool:
        return all(os.access(path, os.W_OK | os.X_OK) for path in (self._root, self._partials))


class Partial:
    """A locked partial file; when its ``with`` block ends, it has become the image, was kept, or is gone."""

    def __init__(self, directory: Directory, file: str, key: str, path: str, *, descriptor: int, size: int) -> None:
        self.path = path
        self.size = size
        self._directory = directory
        self._translating = directory.translating
        self._file = file
        self._key = key
        self._descriptor = descriptor
        self._stays = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._translating:
            try:
                if not self._stays:
                    with suppress(FileNotFoundError):
                        os.unlink(self.path)
            finally:
                self._directory.forget(self.path)
                os.close(self._descriptor)

    def chunks(self) -> Iterator[bytes]:
        """Yield what the file holds so far."""
        offset = 0
        with self._translating:
            while chunk := os.pread(self._descriptor, _READ_SIZE, offset):
                yield chunk
                offset += len(chunk)

    def write(self, chunk: bytes | memoryview) -> None:
        """Append ``chunk``, all of it."""
        rest = memoryview(chunk)
        with self._translating:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        self.size += len(chunk)

    def keep(self, validators: Validators, media_type: str) -> Resume:
        """Leave the file behind, for an attempt that continues the body which a strong ETag names."""
        with self._translating:
            state = os.fstat(self._descriptor)
        self._stays = True
        return Resume(self._key, state.st_size, state.st_ino, state.st_mtime_ns, validators, media_type)

    def commit(self, mtime: float | None) -> os.stat_result:
        """Put the file in the place of its image, with ``mtime`` (seconds since the epoch) as its time, if given."""
        with self._translating:
            if mtime is not None:
                os.utime(self._descriptor, (mtime, mtime))
            # Network file systems tell of failed writes at close, but the lock has to outlast the renaming:
            # so a duplicate is closed.
            os.close(os.dup(self._descriptor))
            state = os.fstat(self._descriptor)
            self._directory.replace(self.path, self._file)
        self._stays = True
        return state


def _lock(descriptor: int, path: str) -> os.stat_result:
    """Lock an open file and return its state; ``LockedError`` if another holds it, or has moved it away meanwhile."""
    if not _lock_descriptor()(descriptor, blocking=False):
        raise LockedError(path)
    state = os.fstat(descriptor)
    try:
        stands = os.lstat(path)
    except FileNotFoundError:
        raise LockedError(path) from None
    if not os.path.samestat(stands, state):
        raise LockedError(path)
    return state


@functools.cache
def _lock_descriptor() -> Callable[..., bool]:
    """Return filelock's function: a run that saves nothing locks nothing, and is spared the time of the import."""
    try:
        from filelock import lock_descriptor
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        # For want of a file descriptor, some part of it was not to be had: another attempt imports the rest.
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
    return lock_descriptor


def _check_ours(state: os.stat_result, path: str) -> None:
    """Raise ``DownloadError`` where writing to a partial file would change something else."""
    if not stat.S_ISREG(state.st_mode):
        raise DownloadError(Reason.WRITE, f"{path}: not a regular file")
    if state.st_nlink != 1:
        raise DownloadError(Reason.WRITE, f"{path}: has another hard link")


def _is_as_kept(state: os.stat_result, resume: Resume | None) -> bool:
    return resume is not None and (state.st_ino, state.st_size, state.st_mtime_ns) == (
        resume.inode,
        resume.size,
        resume.mtime_ns,
    )


def _remove_leftover(path: str) -> None:
    """Unlink a partial file, unless it is locked, or is no file of ours."""
    with suppress(OSError, LockedError):
        descriptor = os.open(path, _REOPEN)
        try:
            if stat.S_ISREG(_lock(descriptor, path).st_mode):
                os.unlink(path)
        finally:
            os.close(descriptor)


def _available_inodes(path: str) -> int | None:
    """Return how many files can still be made; None where the file system has no such limit."""
    limits = os.statvfs(path)
    return limits.f_favail if limits.f_files else None


def _max_name_bytes(path: str) -> int:
    """Return the longest file name, in bytes, that is taken at ``path``; at most 255."""
    limit = os.pathconf(path, "PC_NAME_MAX")
    return limit if 0 < limit < _MAX_NAME_BYTES else _MAX_NAME_BYTES
