"""DIRECTORY, held by a descriptor from the start of a run to its end, and what an error below it means."""
# Paths are strings: see the rules in docs/architecture.rst.
# ruff: noqa: PTH116, PTH118

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from image_loader.errors import DirectoryError, DownloadError, OutOfInodesError, is_out_of_descriptors
from image_loader.model import Blame, Reason

HIDDEN = ".image_loader"
"""The folder of DIRECTORY that is ours."""
PARTIALS = HIDDEN + "/partial"
"""The folder of the partial files."""
PARTITIONS_NOTE = HIDDEN + "/partitions"
"""The file that says how many parts a cluster works on; no other directory has it."""

GUARDED = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Flags of all files that are opened here: no link is followed, and a FIFO's other end is not waited for."""
NAME_REFUSED = frozenset({errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG})
"""What a file system answers to a name that it does not take."""

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# To be passed through, a folder need not be readable.
_OPEN_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OF_ONE_FILE = NAME_REFUSED | {
    errno.EACCES,
    errno.EBUSY,
    errno.EEXIST,
    errno.EFBIG,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EXDEV,
}
_HINTS = {
    errno.EACCES: "grant the right to write there",
    errno.EDQUOT: "have the quota raised",
    errno.EEXIST: "move that file away",
    errno.EMFILE: "see ulimit -n",
    errno.ELOOP: "move that link away",
    errno.ENFILE: "see ulimit -n",
    errno.ENOENT: "put the directory back",
    errno.ENOSPC: "free some space",
    errno.ENOTDIR: "move that file away",
    errno.EPERM: "grant the right to write there",
    errno.EROFS: "make the file system writable",
}
_NO_FOLDER = "a file or a link is in the place of this folder; move it away, or use it as a DIRECTORY of its own"
_HINTS_OF_ONE_FILE = {
    errno.ELOOP: "a link is in its place; remove it",
    errno.ENOTDIR: _NO_FOLDER,
    errno.EXDEV: "its folder is on another file system than DIRECTORY; unmount it there, or use it as a DIRECTORY "
    "of its own",
}


class Held:
    """DIRECTORY as another process has opened it."""

    def __init__(self, descriptor: int, resolved: str) -> None:
        self.descriptor = descriptor
        """Its number in this process, which has inherited it."""
        self.resolved = resolved
        """Where the directory was then: an absolute path without links."""


class Root:
    """DIRECTORY itself. A link on the way to it that is switched, or a rename, does not move the images.

    All paths are relative to it. Messages name it as the user did.
    """

    def __init__(self, path: Path, held: Held | None = None) -> None:
        """Open the directory, which exists, or take the one that is ``held``; raises ``OSError``."""
        self.path = path
        self.resolved = os.path.realpath(path) if held is None else held.resolved
        self.descriptor = os.open(self.resolved, _OPEN) if held is None else held.descriptor

    def __del__(self) -> None:
        # Only when the last reference is gone: for an attempt that was given up, the number must not be another
        # directory's.
        with suppress(AttributeError):
            os.close(self.descriptor)

    def check_place(self) -> None:
        """Raise ``DirectoryError`` if the directory is no longer where it was; its images have moved with it."""
        try:
            in_place = os.path.samestat(os.stat(self.resolved), os.fstat(self.descriptor))
        except OSError as error:
            raise self.end_of_run(error) from error
        if not in_place:
            raise DirectoryError(f"{self.path}: was moved during the run, and another directory is in its place")

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Raise what an ``OSError`` of a block means; what is done for every image does so without, which is faster."""
        try:
            yield
        except OSError as error:
            raise self.fault(error) from error

    def fault(self, error: OSError) -> DirectoryError | DownloadError:
        """Return what an error means: the end of the run, or the failure of one file."""
        text = f"{self._subject(error)}: {error.strerror}"
        if is_out_of_descriptors(error):
            return DownloadError(Reason.WRITE, text, retryable=True, blame=Blame.PROCESS)
        if error.errno in _OF_ONE_FILE and self.is_usable():
            hint = _HINTS_OF_ONE_FILE.get(error.errno or 0)
            return DownloadError(Reason.WRITE, f"{text}; {hint}" if hint else text)
        return self.end_of_run(error)

    def end_of_run(self, error: OSError) -> DirectoryError:
        """Return an error that ends the run."""
        # Only the making of a file takes an inode, and such an error names the file.
        if error.errno == errno.ENOSPC and error.filename and self.available_inodes() == 0:
            return OutOfInodesError(self.path, 1, 0)
        return directory_error(self._subject(error), error)

    def make_folder(self, path: str) -> bool:
        """Make a folder of ours; return whether there was none. Raises ``OSError``, also for a link in its place."""
        try:
            os.mkdir(path, dir_fd=self.descriptor)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path, dir_fd=self.descriptor).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
            return False
        return True

    def folder(self, file: str, *, making: bool = False) -> Folder:
        """Return the folder of an image, to be opened; raise ``DownloadError`` for what is no name for an image.

        ``making`` makes the folders that are missing.
        """
        if not is_image_path(file):
            raise DownloadError(Reason.WRITE, f"{file!r} is not a name for an image")
        return Folder(self, file, making=making)

    def available_inodes(self) -> int | None:
        """Return how many files can still be made; None where the file system has no such limit."""
        return available_inodes(self.descriptor)

    def is_usable(self) -> bool:
        """Whether files can be made here and among the partial files."""
        return all(os.access(self.place(path), os.W_OK | os.X_OK) for path in (".", PARTIALS))

    def place(self, path: str) -> str:
        """Return the absolute path of what is below."""
        return f"{self.resolved}/{path}"

    def _subject(self, error: OSError) -> str:
        name = error.filename2 or error.filename or ""
        # Of a call on a descriptor, Python gives its number.
        path = "" if isinstance(name, int) else os.fsdecode(name)
        return os.path.join(self.path, path.removeprefix(self.place("")))


class Folder:
    """The folder of an image: a ``with`` block has it as a descriptor, beside the name of the image there.

    A link in the place of a folder is not followed, since it may lead out of DIRECTORY. An ``OSError`` of the block
    names the image. This is no generator, which would take longer, for every image.
    """

    def __init__(self, root: Root, file: str, *, making: bool) -> None:
        self._root = root
        self._file = file
        self._making = making
        self._opened: list[int] = []

    def __enter__(self) -> tuple[int, bytes]:
        *folders, name = self._file.split("/")
        descriptor, path = self._root.descriptor, ""
        try:
            for each in folders:
                path += each
                if self._making:
                    with suppress(FileExistsError):
                        os.mkdir(each.encode(), dir_fd=descriptor)
                descriptor = os.open(each.encode(), _OPEN_FOLDER, dir_fd=descriptor)
                self._opened.append(descriptor)
                path += "/"
        except BaseException as error:
            self._close(error, path)
            raise
        return descriptor, name.encode()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close(error, self._file)

    def _close(self, error: BaseException | None, path: str) -> None:
        """Close what is open; an error is about ``path``."""
        if isinstance(error, OSError):
            if error.errno == errno.ELOOP:  # What other systems than Linux say of a link.
                error.errno, error.strerror = errno.ENOTDIR, os.strerror(errno.ENOTDIR)
            if isinstance(error.filename2 or error.filename, bytes):  # Otherwise it is told already.
                error.filename, error.filename2 = path, None
        for descriptor in self._opened:
            os.close(descriptor)


def is_image_path(path: str) -> bool:
    """Whether an image may have this path: below DIRECTORY, neither hidden nor in a hidden folder.

    >>> [is_image_path(path) for path in ("a.jpg", "host/a.jpg", ".a.jpg", "host/../a.jpg", "/a.jpg", "a//b.jpg")]
    [True, True, False, False, False, False]
    """
    bounded = f"/{path}/"
    return "/." not in bounded and "//" not in bounded and "\0" not in bounded


def available_inodes(place: str | int) -> int | None:
    """Return how many files can still be made at a path or a descriptor; None where there is no such limit."""
    limits = os.statvfs(place)
    return limits.f_favail if limits.f_files else None


def directory_error(subject: str, error: OSError) -> DirectoryError:
    """Return an error that says what to do."""
    hint = _HINTS.get(error.errno or 0, "check the disk")
    return DirectoryError(f"{subject}: {error.strerror}; {hint}, or name another directory")
