"""Partial files: where bodies are written, each under a lock, until they are whole images or gone."""
# Paths are strings: see the rules in docs/architecture.rst.
# ruff: noqa: PTH208

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

from image_loader.errors import DirectoryError, DownloadError, LockedError, interrupted
from image_loader.model import Reason, Resume, Validators
from image_loader.store import locks
from image_loader.store.root import GUARDED, NAME_REFUSED, PARTIALS, Root

_MODE = 0o666
_LOCK_PATIENCE = 0.05
"""Seconds to wait for a lock: a run that removes what was left behind has it for less than that."""
_LOCK_POLL = 0.005
"""Seconds between two tries."""
READ_SIZE = 1 << 18
"""Bytes to read at a time."""
_FOLDER_TRIES = 100
"""Times that the folders of an image are made while others remove them, since they are empty."""
# O_APPEND: no seek after a resume or a truncation.
_REOPEN = os.O_RDWR | os.O_APPEND | GUARDED
_OPEN = _REOPEN | os.O_CREAT


class Partials:
    """The folder of the partial files; any thread may use it."""

    def __init__(self, root: Root, *, shared: bool) -> None:
        """Check that files can be made and locked there; raises ``DirectoryError`` or ``OSError``.

        Where they are ``shared`` with other processes of this run, what these keep is left alone.
        """
        self._root = root
        self._shared = shared
        self._opened: set[Partial] = set()
        self._is_given_up = False
        error = locks.probe(f"{PARTIALS}/probe", root.descriptor, _OPEN, _MODE)
        if error is not None:
            raise DirectoryError(
                f"{root.path}: the file system provides no file locks ({error.strerror}); "
                "mount it with locking, or name a directory elsewhere"
            ) from error

    def open(self, file: str, key: str, resume: Resume | None) -> Partial:
        """Open and lock the partial file of an image; see ``Directory.partial``."""
        give_up = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                return self._open(file, key, resume)
            except LockedError:
                if time.monotonic() > give_up:
                    self._root.check_place()
                    raise
            time.sleep(_LOCK_POLL)

    def is_kept(self, resume: Resume) -> bool:
        """Whether a partial file that was kept is unchanged."""
        try:
            return _is_as_kept(os.lstat(_path(resume.key), dir_fd=self._root.descriptor), resume)
        except OSError:
            return False

    def discard(self, key: str) -> None:
        """Remove a partial file that was kept for a next attempt, since there will be none."""
        _remove_leftover(_path(key), self._root.descriptor)

    def sweep(self) -> None:
        """Remove the partial files that nobody holds a lock on."""
        if self._shared:
            return
        with suppress(OSError):
            folder = os.open(PARTIALS, os.O_RDONLY | os.O_DIRECTORY | GUARDED, dir_fd=self._root.descriptor)
            try:
                for name in os.listdir(folder):
                    _remove_leftover(name, folder)
            finally:
                os.close(folder)

    def give_up(self) -> None:
        """Remove what is open, and have none of it, nor what is still to be opened, put in place."""
        self._is_given_up = True
        for partial in list(self._opened):
            partial.give_up()

    def close(self) -> None:
        """Remove what was kept and what is still open."""
        self.give_up()
        self.sweep()

    def forget(self, partial: Partial) -> None:
        """Take note that a partial file is no longer open."""
        self._opened.discard(partial)

    def _open(self, file: str, key: str, resume: Resume | None) -> Partial:
        path = _path(key)
        try:
            # By its absolute path, unlike all else: if DIRECTORY was moved, this fails, or the lock shows that it is
            # another file.
            descriptor = os.open(self._root.place(path), _OPEN, _MODE)
            try:
                state = locks.lock(descriptor, path, self._root.descriptor)
                size = state.st_size if _is_as_kept(state, resume) else 0
                self._check_ours(state, path)
                if size != state.st_size:
                    os.ftruncate(descriptor, 0)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise self._root.fault(error) from error
        partial = Partial(self._root, self, file, key, path, descriptor=descriptor, size=size)
        self._opened.add(partial)
        if self._is_given_up:  # Only now: what give_up() has not found among the open ones, finds this here.
            with partial:
                raise interrupted()
        return partial

    def _check_ours(self, state: os.stat_result, path: str) -> None:
        """Raise ``DownloadError`` where writing to a partial file would change something else."""
        if not stat.S_ISREG(state.st_mode):
            raise DownloadError(Reason.WRITE, f"{self._root.path / path}: not a regular file")
        if state.st_nlink != 1:
            raise DownloadError(Reason.WRITE, f"{self._root.path / path}: has another hard link")


class Partial:
    """A locked partial file; when its ``with`` block ends, it has become the image, was kept, or is gone.

    Its methods raise the errors of ``Directory``. ``size`` is in bytes.
    """

    def __init__(
        self, root: Root, partials: Partials, file: str, key: str, path: str, *, descriptor: int, size: int
    ) -> None:
        self.size = size
        self._root = root
        self._partials = partials
        self.file = file
        self._key = key
        self._path = path
        self._descriptor = descriptor
        self._stays = False
        # Once this is over, the file's name may be another run's: nothing is done by that name any more. Each partial
        # file has a lock of its own, so that renamings do not wait for one another.
        self._gate = threading.Lock()
        self._is_over = False

    @property
    def path(self) -> str:
        """Where it is, as an absolute path."""
        return self._root.place(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            try:
                self._end(removing=not self._stays)
            finally:
                self._partials.forget(self)
                os.close(self._descriptor)
        except OSError as fault:
            raise self._root.fault(fault) from fault

    def give_up(self) -> None:
        """Remove the file, unless it is in place by now; it cannot be put there any more. For any thread."""
        with suppress(OSError):
            self._end(removing=True)

    def chunks(self) -> Iterator[bytes]:
        """Yield what the file holds so far."""
        offset = 0
        with self._root.translating():
            while chunk := os.pread(self._descriptor, READ_SIZE, offset):
                yield chunk
                offset += len(chunk)

    def write(self, chunk: bytes | memoryview) -> None:
        """Append ``chunk``, all of it."""
        try:
            written = os.write(self._descriptor, chunk)
            while written < len(chunk):
                written += os.write(self._descriptor, memoryview(chunk)[written:])
        except OSError as error:
            raise self._root.fault(error) from error
        self.size += len(chunk)

    def keep(self, validators: Validators, media_type: str) -> Resume:
        """Keep the file for an attempt that continues its body, whose ``validators`` are strong."""
        with self._root.translating():
            state = os.fstat(self._descriptor)
        self._stays = True
        return Resume(self._key, state.st_size, state.st_ino, state.st_mtime_ns, validators, media_type)

    def commit(self, mtime: float | None, files: Iterable[str] | None = None) -> os.stat_result:
        """Put the file in the place of its image; return its state there.

        ``mtime`` (seconds since the epoch) becomes its time, if given. It gets the first of ``files`` that the file
        system takes for a name (none given: its own), which is ``file`` from then on. Raises ``DownloadError``
        also where the file is not of the size that was written (``write``), or was given up (``interrupted``).
        """
        try:
            self._check_size()
            if mtime is not None:
                # Only the owner of a file may set its time. Another user's run, or some file systems, make it somebody
                # else's.
                try:  # noqa: SIM105 (suppress() would take longer, for every image)
                    os.utime(self._descriptor, (mtime, mtime))
                except PermissionError:
                    pass
            # Network file systems tell of failed writes at close, but the lock has to outlast the renaming:
            # so a duplicate is closed.
            os.close(os.dup(self._descriptor))
            self._rename([self.file] if files is None else files)
            self._stays = True
            # Only now: the renaming has changed the ctime.
            return os.fstat(self._descriptor)
        except OSError as error:
            raise self._root.fault(error) from error

    def _check_size(self) -> None:
        size = os.lseek(self._descriptor, 0, os.SEEK_END)
        if size != self.size:
            detail = f"{self._root.path / self._path}: {self.size} bytes written, but it has {size}"
            raise DownloadError(Reason.WRITE, f"{detail}; find out which other program writes to it")

    def _rename(self, files: Iterable[str]) -> None:
        refused = (errno.EEXIST, "every name that it may have is taken", self.file)
        for file in files:
            try:
                self._replace(file)
            except OSError as error:
                if not self._is_name_refused(error):
                    raise
                refused = (error.errno or 0, error.strerror or "", file)
            else:
                self.file = file
                return
        raise OSError(*refused)

    def _is_name_refused(self, error: OSError) -> bool:
        if error.errno == errno.ENOENT:  # exfat-fuse's answer: all is there but the name.
            with suppress(OSError):
                return os.lstat(self._path, dir_fd=self._root.descriptor).st_nlink > 0
        return error.errno in NAME_REFUSED

    def _replace(self, file: str) -> None:
        """Give the file its image's name; the folders of the layout are made on demand."""
        root = self._root
        with self._gate:
            if self._is_over:
                raise interrupted()
            for tries in range(_FOLDER_TRIES):
                try:
                    with root.folder(file, making=tries > 0) as (folder, name):
                        os.replace(self._path, name, src_dir_fd=root.descriptor, dst_dir_fd=folder)
                except FileNotFoundError:
                    if tries == _FOLDER_TRIES - 1:
                        raise
                else:
                    return

    def _end(self, *, removing: bool) -> None:
        """Do nothing by the file's name from now on, apart from ``removing`` it, if it still has that name."""
        with self._gate:
            if self._is_over:
                return
            self._is_over = True
            if removing:
                with suppress(FileNotFoundError):
                    in_place = os.lstat(self._path, dir_fd=self._root.descriptor)
                    if os.path.samestat(in_place, os.fstat(self._descriptor)):
                        os.unlink(self._path, dir_fd=self._root.descriptor)


def _path(key: str) -> str:
    return f"{PARTIALS}/{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _is_as_kept(state: os.stat_result, resume: Resume | None) -> bool:
    return resume is not None and (state.st_ino, state.st_size, state.st_mtime_ns) == (
        resume.inode,
        resume.size,
        resume.mtime_ns,
    )


def _remove_leftover(path: str, folder: int) -> None:
    """Unlink a partial file, unless it is locked, or is no file of ours."""
    with suppress(OSError, LockedError):
        descriptor = os.open(path, _REOPEN, dir_fd=folder)
        try:
            if stat.S_ISREG(locks.lock(descriptor, path, folder).st_mode):
                os.unlink(path, dir_fd=folder)
        finally:
            os.close(descriptor)
