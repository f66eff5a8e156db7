"""The output directory: validated, counted in inodes, and filled with whole images."""
# Paths are strings: see the rules in docs/architecture.rst.

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from image_loader.errors import DirectoryError, LockedError, OutOfInodesError
from image_loader.model import Image, Resume
from image_loader.store import locks
from image_loader.store.partial import READ_SIZE, Partial, Partials
from image_loader.store.root import (
    GUARDED,
    HIDDEN,
    PARTIALS,
    PARTITIONS_NOTE,
    Held,
    Root,
    available_inodes,
    directory_error,
)

__all__ = ["Directory", "Partial", "is_as_recorded"]

_MAX_NAME_BYTES = 255
"""Bytes of a file name that are taken for granted where a file system takes more, or says nothing."""
_READ = os.O_RDONLY | GUARDED
_MAKE = os.O_RDWR | os.O_CREAT | GUARDED
_LAYOUT = f"{HIDDEN}/layout"
"""The file that says which layout the last run had."""
_LAYOUT_SIZE = 64
"""Bytes to read of that file; no layout has a longer name."""
_RESTRICTED = '"*:<>?|'
"""Characters that exFAT, NTFS and SMB refuse in a name, apart from those that no name of ours has."""


def is_as_recorded(state: os.stat_result, image: Image) -> bool:
    """Whether a file still is in the state in which its image was recorded.

    An index of an earlier version tells nothing of the ctime.
    """
    return (
        state.st_size == image.size
        and state.st_mtime_ns == image.mtime_ns
        and (image.ctime_ns is None or state.st_ctime_ns == image.ctime_ns)
    )


class View:
    """The images of a directory, to be looked at by any thread."""

    path: Path
    """The directory, as the user named it."""
    hidden: Path
    """The folder in it that is ours, as an absolute path."""
    is_new: bool
    """Whether no run was there before."""
    max_name_bytes: int
    """Bytes that the longest file name has."""
    refused_characters: str
    """The characters that the file system does not take in a name; empty where that was not tried out."""
    _root: Root

    def is_empty(self) -> bool:
        """Whether nothing is there but what is hidden; raises ``DirectoryError``."""
        with self._root.translating(), os.scandir(self._root.descriptor) as entries:
            return all(entry.name.startswith(".") for entry in entries)

    def stat(self, file: str) -> os.stat_result | None:
        """Return the state of a regular file; None where there is none, or a link, directory or FIFO in its place.

        Raises ``DirectoryError`` where the directory itself cannot be searched any more.
        """
        try:
            # Names are UTF-8 in every locale, since its encoding may lack their letters.
            state = os.lstat(file.encode(), dir_fd=self._root.descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            fault = self._root.fault(error)
            if isinstance(fault, DirectoryError):
                raise fault from error
            return None
        return state if stat.S_ISREG(state.st_mode) else None

    def head(self, file: str, size: int) -> bytes:
        """Return the first bytes of a regular file; nothing where it cannot be read."""
        with suppress(OSError), self._reading(file) as descriptor:
            return os.pread(descriptor, size, 0)
        return b""

    def digest(self, file: str) -> tuple[str, os.stat_result] | None:
        """Read a regular file; return its SHA-256 (hex) and its state.

        None where it cannot be read, or is changed meanwhile.
        """
        with suppress(OSError), self._reading(file) as descriptor:
            before, sha256 = os.fstat(descriptor), hashlib.sha256()
            if not stat.S_ISREG(before.st_mode):
                return None  # There may be no end of it.
            while chunk := os.read(descriptor, READ_SIZE):
                sha256.update(chunk)
            state = os.fstat(descriptor)
            if _times(state) == _times(before):
                return sha256.hexdigest(), state
        return None

    @contextmanager
    def _reading(self, file: str) -> Iterator[int]:
        descriptor = os.open(file.encode(), _READ, dir_fd=self._root.descriptor)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


class ReadOnlyDirectory(View):
    """A directory as it is, in which nothing is made or changed."""

    def __init__(self, path: Path) -> None:
        """Open it; raises ``DirectoryError``."""
        self.path = path
        try:
            self._root = Root(path)
            _require_one_machine(self._root)
            self.hidden = Path(self._root.resolved) / HIDDEN
            self.is_new = not self.hidden.exists()
            self.max_name_bytes = _max_name_bytes(self._root.descriptor)
        except OSError as error:
            raise directory_error(os.fspath(path), error) from error
        self.refused_characters = ""


class MissingDirectory(View):
    """A directory that is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hidden = Path(os.path.realpath(path)) / HIDDEN
        self.is_new = True
        self.max_name_bytes = _MAX_NAME_BYTES
        self.refused_characters = ""

    def is_empty(self) -> bool:
        """Say that it is."""
        return True

    def stat(self, file: str) -> None:
        """Say that there is no such file."""

    def head(self, file: str, size: int) -> bytes:  # noqa: ARG002
        """Return nothing."""
        return b""

    def digest(self, file: str) -> None:
        """Say that there is no such file."""


def view(path: Path) -> View:
    """Return the view of a directory, which need not be there; raises ``DirectoryError``."""
    return ReadOnlyDirectory(path) if os.path.lexists(path) else MissingDirectory(path)


class Directory(View):
    """The directory that the images go to; any thread may use it.

    Its methods raise ``DirectoryError`` where the run cannot go on, ``DownloadError`` (``write``) where one file is at
    fault.
    """

    def __init__(self, path: Path, held: Held | None = None, is_ending: Callable[[], bool] = lambda: False) -> None:
        """Make the directory, with its parents, and check that files can be made and locked there.

        What a killed run left behind is removed. One that is ``held`` is shared with another process of this run, which
        has done that. ``is_ending`` says that there is no time left to wait for other runs. Raises ``DirectoryError``.
        """
        self.path = path
        self._begun = time.time_ns()
        try:
            if held is None:
                path.mkdir(parents=True, exist_ok=True)
            self._root = Root(path, held)
        except OSError as error:
            raise _cannot_start(path, error) from error
        _require_one_machine(self._root)
        if held is not None:
            self._root.check_place()
        self.hidden = Path(self._root.resolved) / HIDDEN
        self.partials_folder = Path(self._root.place(PARTIALS))
        try:
            self.is_new = self._make_hidden()
            self._partials = Partials(self._root, shared=held is not None)
            if not self._root.is_usable():
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self.max_name_bytes = _max_name_bytes(self._root.descriptor)
            self.refused_characters = self._refused_characters()
            self.sweep()
            # At the end: nothing has to be closed, whatever fails before.
            self._presence = locks.Presence(f"{HIDDEN}/runs", self._root.descriptor, is_ending)
        except LockedError as error:
            raise DirectoryError(
                f"{path}: another run deletes images there; wait until it is done, or end it"
            ) from error
        except OSError as error:
            raise self._root.end_of_run(error) from error

    def saved_meanwhile(self, file: str, inode: int | None) -> bool:
        """Whether another run has put ``file`` in place since this one saw ``inode`` there, or no such file (None).

        A file that was edited still has its inode. On a file system that changes inodes, its ctime is from before this
        run. A ctime in the future says nothing: the clock was set back.
        """
        state = self.stat(file)
        return state is not None and state.st_ino != inode and self._begun <= state.st_ctime_ns <= time.time_ns()

    def held(self) -> Held:
        """Return what another process of this run needs to share the directory, if it inherits the descriptor."""
        return Held(self._root.descriptor, self._root.resolved)

    def check_inodes(self, wanted: int) -> None:
        """Raise ``OutOfInodesError`` if the file system cannot take so many new files.

        Raises ``DirectoryError`` if the directory was moved away.
        """
        self._root.check_place()
        available = self.available_inodes()
        if available is not None and wanted > available:
            raise OutOfInodesError(self.path, wanted, available)

    def available_inodes(self) -> int | None:
        """Return how many files can still be made; None where the file system has no such limit."""
        with self._root.translating():
            return self._root.available_inodes()

    def partial(self, file: str, key: str, resume: Resume | None = None) -> Partial:
        """Open and lock the partial file of an image; ``key`` is one and the same for all spellings of ``file``.

        It is empty, unless it still is what ``resume`` says. Raises ``LockedError`` if another process has it locked,
        ``DownloadError`` (``interrupted``) once the attempts were given up.
        """
        return self._partials.open(file, key, resume)

    def is_kept(self, resume: Resume) -> bool:
        """Whether a partial file that was kept is unchanged."""
        return self._partials.is_kept(resume)

    def discard(self, key: str) -> None:
        """Remove a partial file that was kept for a next attempt, since there will be none."""
        self._partials.discard(key)

    def note_layout(self, layout: str) -> str:
        """Remember the layout of a run; return that of the last one, or nothing where it is not known."""
        with suppress(OSError):
            descriptor = os.open(_LAYOUT, _MAKE, 0o666, dir_fd=self._root.descriptor)
            try:
                former = os.pread(descriptor, _LAYOUT_SIZE, 0).decode(errors="replace").strip()
                if former != layout:
                    if os.fstat(descriptor).st_nlink > 1:  # Of a snapshot, or of a file elsewhere: that stays as it is.
                        os.unlink(_LAYOUT, dir_fd=self._root.descriptor)
                        own = os.open(_LAYOUT, _MAKE | os.O_EXCL, 0o666, dir_fd=self._root.descriptor)
                        os.close(descriptor)
                        descriptor = own
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{layout}\n".encode(), 0)
            finally:
                os.close(descriptor)
            return former
        return ""

    def alone(self) -> AbstractContextManager[bool]:
        """Keep other runs from starting here meanwhile; False where one is under way."""
        return self._presence.alone()

    def rename(self, file: str, new: str) -> os.stat_result:
        """Give an image another name, under which nothing stands; return its state there."""
        root = self._root
        with root.translating(), root.folder(file) as (here, former), root.folder(new, making=True) as (there, name):
            os.rename(former, name, src_dir_fd=here, dst_dir_fd=there)
            state = os.lstat(name, dir_fd=there)
        self.remove_folders(file)
        return state

    def remove(self, file: str) -> None:
        """Remove an image, if it is there, and the folders above it that are empty then."""
        with self._root.translating(), suppress(FileNotFoundError), self._root.folder(file) as (folder, name):
            os.unlink(name, dir_fd=folder)
        self.remove_folders(file)

    def remove_folders(self, file: str) -> None:
        """Remove the folders above a file that is gone, as far as they are empty."""
        with suppress(OSError):
            while file := file.rpartition("/")[0]:
                with suppress(FileNotFoundError), self._root.folder(file) as (folder, name):
                    os.rmdir(name, dir_fd=folder)

    def sweep(self) -> None:
        """Remove the partial files that nobody holds a lock on."""
        self._partials.sweep()

    def give_up_partials(self) -> None:
        """Remove the partial files of all attempts that are under way; none can put its image in place any more."""
        self._partials.give_up()

    def close(self) -> None:
        """Give up the attempts that are under way, and remove what was kept for further ones."""
        self._partials.close()
        self._presence.close()

    def _make_hidden(self) -> bool:
        """Make the folders of ours; return whether there were none."""
        new = self._root.make_folder(HIDDEN)
        self._root.make_folder(PARTIALS)
        return new

    def _refused_characters(self) -> str:
        """Return those characters that the file system does not take in a name."""
        root = self._root.descriptor
        name = f"{PARTIALS}/probe{_RESTRICTED}"
        try:
            os.close(os.open(name, _MAKE, 0o666, dir_fd=root))
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=root)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT}:  # exfat-fuse says ENOENT.
                return _RESTRICTED
        return ""


def _cannot_start(path: Path, error: OSError) -> DirectoryError:
    subject = os.fsdecode(error.filename or path)
    if error.errno == errno.ENOSPC:
        with suppress(OSError):
            if available_inodes(os.path.dirname(os.path.abspath(subject))) == 0:  # noqa: PTH100, PTH120
                return OutOfInodesError(path, 1, 0)
    return directory_error(subject, error)


def _require_one_machine(root: Root) -> None:
    """Raise ``DirectoryError`` for a directory that a cluster has filled."""
    if os.path.lexists(root.place(PARTITIONS_NOTE)):
        raise DirectoryError(f"{root.path}: was filled with --cluster; use --cluster, or name another directory")


def _times(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _max_name_bytes(place: int) -> int:
    """Return the longest file name, in bytes, that is taken at ``place``; at most 255."""
    limit = os.pathconf(place, "PC_NAME_MAX")
    return limit if 0 < limit < _MAX_NAME_BYTES else _MAX_NAME_BYTES
