"""What the output directory promises: whole images or none, one writer each, and a plain end where it cannot go on."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import platform
import re
import resource
import shutil
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from conftest import CLOCK_STEP, ENVIRONMENT, in_another_process, limited, without_garbage_collection
from image_loader.errors import DirectoryError, DownloadError, LockedError, OutOfInodesError
from image_loader.model import Blame, Image, Lifetime, Reason, Resume, Validators
from image_loader.store import locks
from image_loader.store import partial as partial_module
from image_loader.store.directory import Directory, is_as_recorded, view
from image_loader.store.partial import Partial
from image_loader.store.root import Held, Root

LIFETIME = Lifetime()
HOLD = """
import sys
from pathlib import Path
from image_loader.store.directory import Directory
with Directory(Path(sys.argv[1])).partial("a.jpg", "a.jpg") as partial:
    partial.write(b"half")
    print("held", flush=True)
    if sys.stdin.readline() == "commit\\n":
        partial.commit(None)
"""
CONTEND = """
import sys
from pathlib import Path
from image_loader.store.directory import Directory
from image_loader.errors import LockedError
directory = Directory(Path(sys.argv[1]))
for number in range(100):
    file = f"{number % 3}.jpg"
    try:
        with directory.partial(file, file) as partial:
            for _ in range(4):
                partial.write(sys.argv[2].encode() * 5_000)
            if number % 5:
                partial.commit(None)
    except LockedError:
        pass
    body = (Path(sys.argv[1]) / file).read_bytes()
    if len(body) != 20_000 or len(set(body)) != 1:
        sys.exit(f"{file} is broken")
directory.close()
"""
SYSTEM_CALLS = {
    "x86_64": {"write": 1, "close": 3, "flock": 73, "openat": 257},
    "aarch64": {"write": 64, "close": 57, "flock": 32, "openat": 56},
}
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
CAPABILITY_VERSION = 0x20080522
T = TypeVar("T")


class Filter(ctypes.Structure):
    """struct sock_fprog: a seccomp program."""

    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]


def refusing(call: str, error: int, function: Callable[[], T]) -> T:
    """Run ``function`` in a thread of its own, whose system calls ``call`` the kernel answers with ``error``."""
    numbers = SYSTEM_CALLS.get(platform.machine())
    if sys.platform != "linux" or numbers is None:
        pytest.skip("the numbers of the system calls to refuse are known for Linux on x86_64 and aarch64 only")

    def refused() -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        program = struct.pack(
            "HBBIHBBIHBBIHBBI",
            *(0x20, 0, 0, 0),  # load the number of the system call
            *(0x15, 0, 1, numbers[call]),  # is it the one?
            *(0x06, 0, 0, 0x00050000 | error),  # then refuse it
            *(0x06, 0, 0, 0x7FFF0000),  # else let it pass
        )
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
            PR_SET_SECCOMP, 2, ctypes.byref(Filter(4, program)), 0, 0
        ):
            pytest.skip(f"the kernel takes no seccomp filter: {os.strerror(ctypes.get_errno())}")
        return function()

    with without_garbage_collection(), ThreadPoolExecutor(1) as executor:
        return executor.submit(refused).result()


def unprivileged(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread of its own without capabilities: permissions hold there for root as well."""
    if sys.platform != "linux":
        pytest.skip("capabilities are Linux's")

    def without_capabilities() -> T:
        header = struct.pack("Ii", CAPABILITY_VERSION, 0)
        assert ctypes.CDLL(None).capset(header, bytes(24)) == 0
        return function()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(without_capabilities).result()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a tmpfs with the options given."""
    place = tmp_path / "mounted"

    def mounted(options: str) -> Path:
        if os.geteuid() != 0:
            pytest.skip("only root may mount a small tmpfs")
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "image_loader", str(place)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {run.stderr.strip()}")
        return place

    yield mounted
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    """Return a directory with an old image in it."""
    made = Directory(tmp_path / "images")
    (made.path / "a.jpg").write_bytes(b"old")
    os.utime(made.path / "a.jpg", (1_000_000_000, 1_000_000_000))
    return made


@pytest.fixture
def holder(directory: Directory) -> Iterator[subprocess.Popen[str]]:
    """Start a second process that is writing ``a.jpg``, until told to go on."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def opened(directory: Directory, resume: Resume | None = None) -> Partial:
    """Open the partial file of ``a.jpg``."""
    return directory.partial("a.jpg", "a.jpg", resume)


def partials(directory: Directory) -> list[Path]:
    """List the partial files."""
    return list((directory.hidden / "partial").iterdir())


def partial_path(directory: Directory) -> Path:
    """Return where the partial file of ``a.jpg`` stands."""
    with opened(directory) as partial:
        return Path(partial.path)


def save(directory: Directory, file: str, body: bytes, mtime: float | None = None) -> os.stat_result:
    """Save one image."""
    with directory.partial(file, file) as partial:
        partial.write(body)
        return partial.commit(mtime)


def modes_below(place: Path) -> dict[Path, tuple[str, int]]:
    """Return the modes of a folder and of all that is below."""
    states = {path: path.lstat().st_mode for path in (place, *place.rglob("*"))}
    return {path: ("folder" if stat.S_ISDIR(mode) else "file", stat.S_IMODE(mode)) for path, mode in states.items()}


def size_and_time(state: os.stat_result | None) -> tuple[int, int] | None:
    """Return what is recorded of a file's state, in bytes and nanoseconds."""
    return state and (state.st_size, state.st_mtime_ns)


def is_open(path: Path) -> bool:
    """Tell whether this process has a file open."""
    wanted = path.stat()
    for descriptor in [int(each.name) for each in Path("/dev/fd").iterdir()]:
        with suppress(OSError):  # One is that of the listing itself.
            if os.path.samestat(os.fstat(descriptor), wanted):
                return True
    return False


def is_old(directory: Directory) -> bool:
    """Tell whether ``a.jpg`` is as it was, and nothing is left of the attempt."""
    state = size_and_time(directory.stat("a.jpg"))
    unchanged = (directory.path / "a.jpg").read_bytes() == b"old" and state == (3, 10**18)
    return unchanged and not partials(directory)


# The start


def test_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    made = Directory(tmp_path / "deep" / "images")
    assert sorted(path.name for path in made.path.iterdir()) == [".image_loader"]
    assert made.hidden == tmp_path / "deep" / "images" / ".image_loader"
    assert partials(made) == []


def test_directory_holds_when_the_working_directory_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = Directory(Path("images"))
    monkeypatch.chdir("/")
    save(made, "a.jpg", b"new")
    assert (tmp_path / "images" / "a.jpg").read_bytes() == b"new"


@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077])
def test_folders_and_files_of_ours_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = Directory(tmp_path / "images")
        save(made, "host/a.jpg", b"new")
        made.note_layout("host")
        with opened(made):
            modes = modes_below(made.path)
    finally:
        os.umask(before)
    assert len(modes) == 8
    assert set(modes.values()) == {("folder", 0o777 & ~umask), ("file", 0o666 & ~umask)}


def test_directory_is_new_where_no_run_was_before(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"another program's")
    assert [Directory(tmp_path).is_new for _ in range(2)] == [True, False]


def test_view_of_a_directory_tells_what_is_there_and_makes_nothing(directory: Directory, tmp_path: Path) -> None:
    directory.close()
    seen = view(directory.path)
    assert (seen.hidden, seen.is_new) == (directory.path / ".image_loader", False)
    assert (seen.max_name_bytes, seen.refused_characters) == (directory.max_name_bytes, "")
    assert size_and_time(seen.stat("a.jpg")) == size_and_time(directory.stat("a.jpg"))
    assert seen.head("a.jpg", 2) == b"ol"
    assert seen.digest("a.jpg") == (hashlib.sha256(b"old").hexdigest(), seen.stat("a.jpg"))
    (tmp_path / "other").mkdir()
    assert view(tmp_path / "other").is_new
    assert list((tmp_path / "other").iterdir()) == []


def test_view_of_a_directory_that_is_not_there_is_empty(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    seen = view(tmp_path / "link" / "images")
    assert (seen.hidden, seen.is_new, seen.is_empty()) == (tmp_path / "images" / ".image_loader", True, True)
    assert (seen.max_name_bytes, seen.refused_characters) == (255, "")
    assert (seen.stat("a.jpg"), seen.head("a.jpg", 2), seen.digest("a.jpg")) == (None, b"", None)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("kind", ["file", "link to nothing"])
def test_view_of_what_is_no_directory_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "images"
    if kind == "file":
        place.write_bytes(b"")
    else:
        place.symlink_to("nowhere")
    with pytest.raises(DirectoryError, match=str(place)):
        view(place)


def test_layout_of_a_run_is_remembered_for_the_next_one(directory: Directory) -> None:
    note = directory.path / ".image_loader" / "layout"
    assert [directory.note_layout(layout) for layout in ("host", "path", "path", "flat")] == [
        "",
        "host",
        "path",
        "path",
    ]
    assert note.read_text() == "flat\n"
    before = note.stat().st_mtime_ns
    time.sleep(CLOCK_STEP)
    assert directory.note_layout("flat") == "flat"
    assert note.stat().st_mtime_ns == before, "it is not written again"


def test_note_of_the_layout_that_has_another_hard_link_is_written_anew(directory: Directory, tmp_path: Path) -> None:
    directory.note_layout("flat")
    note = directory.path / ".image_loader" / "layout"
    (tmp_path / "snapshot").hardlink_to(note)
    assert directory.note_layout("flat") == directory.note_layout("host") == "flat"
    assert (note.read_text(), (tmp_path / "snapshot").read_text()) == ("host\n", "flat\n")


def test_layout_is_not_known_where_its_note_cannot_be_read(directory: Directory) -> None:
    (directory.path / ".image_loader" / "layout").mkdir()
    assert directory.note_layout("flat") == ""


@pytest.mark.parametrize(("limit", "taken"), [(143, 143), (1, 1), (255, 255), (1023, 255), (0, 255), (-1, 255)])
def test_name_limit_is_255_where_the_file_system_has_more_or_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, taken: int
) -> None:
    monkeypatch.setattr(os, "pathconf", lambda *_: limit)  # No file system of Linux tells 0 or more than 255.
    assert Directory(tmp_path).max_name_bytes == taken


@pytest.mark.parametrize("change", [{}, {"size": 1}, {"mtime_ns": 1}, {"ctime_ns": 1}])
def test_file_is_as_recorded_where_its_size_and_both_times_are(directory: Directory, change: dict[str, int]) -> None:
    state = directory.stat("a.jpg")
    assert state is not None
    image = Image(
        "a.jpg", state.st_size, state.st_mtime_ns, state.st_ctime_ns, None, None, Validators(), LIFETIME, 0, 0
    )
    for step in (1, -1):
        other = image._replace(**{name: getattr(image, name) + step for name in change})
        assert is_as_recorded(state, other) is not bool(change)
        assert is_as_recorded(state, other._replace(ctime_ns=None)) is (change.keys() <= {"ctime_ns"})


def test_folders_that_are_empty_go_with_their_last_image(directory: Directory) -> None:
    for file in ("host/x/a.jpg", "host/x/b.jpg", "host/c.jpg"):
        save(directory, file, b"new")
    directory.remove("host/x/a.jpg")
    assert (directory.path / "host" / "x" / "b.jpg").exists()
    directory.remove("host/x/b.jpg")
    assert [path.name for path in (directory.path / "host").iterdir()] == ["c.jpg"]
    directory.remove("host/c.jpg")
    directory.remove("host/c.jpg")
    assert not (directory.path / "host").exists()


def test_name_that_cannot_be_had_is_told_where_an_image_is_removed_or_renamed(directory: Directory) -> None:
    with pytest.raises(DownloadError, match="File name too long"):
        directory.remove("n" * 256)
    with pytest.raises(DownloadError, match="File name too long"):
        directory.rename("a.jpg", "n" * 256)
    assert is_old(directory)


def test_image_is_renamed_into_a_folder_that_is_made_for_it(directory: Directory) -> None:
    save(directory, "host/x/a.jpg", b"new")
    state = directory.rename("host/x/a.jpg", "other/b.jpg")
    assert directory.stat("other/b.jpg") == state
    assert not (directory.path / "host").exists()


def test_directory_is_not_new_where_a_run_was_killed_at_its_start(tmp_path: Path) -> None:
    (tmp_path / ".image_loader").mkdir()
    assert not Directory(tmp_path).is_new


@pytest.mark.parametrize("size", [0, 2, 3, 4])
def test_file_that_is_changed_while_it_is_read_has_no_digest(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    read = os.read

    def change_and_read(descriptor: int, count: int) -> bytes:
        time.sleep(CLOCK_STEP)
        os.truncate(directory.path / "a.jpg", size)
        return read(descriptor, count)

    monkeypatch.setattr(os, "read", change_and_read)
    assert directory.digest("a.jpg") is None


def test_link_that_is_switched_in_mid_run_moves_no_image(tmp_path: Path) -> None:
    link, first, second = (tmp_path / name for name in ("images", "first", "second"))
    for place in (first, second):
        save(Directory(place), "a.jpg", b"old")
    link.symlink_to("first")
    directory = Directory(link)
    with directory.partial("a.jpg", "a.jpg") as partial:
        partial.write(b"new")
        link.unlink()
        link.symlink_to("second")
        partial.commit(None)
    save(directory, "b.jpg", b"new")
    directory.check_inodes(1)
    assert [(place / "a.jpg").read_bytes() for place in (first, second)] == [b"new", b"old"]
    assert not (second / "b.jpg").exists()
    with pytest.raises(DownloadError, match=f"{link}/c.jpg: Is a directory"):
        (first / "c.jpg").mkdir()
        save(directory, "c.jpg", b"new")


def test_directory_that_another_takes_the_place_of_in_mid_run_leaves_that_alone(tmp_path: Path) -> None:
    images, other, moved = (tmp_path / name for name in ("images", "other", "moved"))
    directory = Directory(images)
    save(Directory(other), "a.jpg", b"old")
    with directory.partial("a.jpg", "a.jpg") as partial:
        partial.write(b"new")
        images.rename(moved)
        other.rename(images)
        partial.commit(None)
    assert ((moved / "a.jpg").read_bytes(), (images / "a.jpg").read_bytes()) == (b"new", b"old")
    for attempt in (lambda: save(directory, "b.jpg", b"new"), lambda: directory.check_inodes(1)):
        with pytest.raises(DirectoryError, match=f"{images}: was moved during the run"):
            attempt()
    assert sorted(path.name for path in images.iterdir()) == [".image_loader", "a.jpg"]


def test_link_to_a_directory_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "images").symlink_to("real")
    save(Directory(tmp_path / "images"), "a.jpg", b"new")
    assert (tmp_path / "real" / "a.jpg").read_bytes() == b"new"


@pytest.mark.parametrize("place", ["images", "images/below"])
def test_file_in_the_place_of_the_directory_is_an_error_that_names_it(tmp_path: Path, place: str) -> None:
    (tmp_path / "images").write_bytes(b"")
    with pytest.raises(DirectoryError, match=r"/images.*; move that file away, or name another"):
        Directory(tmp_path / place)
    assert (tmp_path / "images").read_bytes() == b""


@pytest.mark.parametrize("mode", [0o555, 0o666, 0o000])
@pytest.mark.parametrize("before", [True, False])
def test_directory_that_may_not_be_written_or_searched_is_an_error_at_the_start(
    tmp_path: Path, mode: int, *, before: bool
) -> None:
    images = tmp_path / "images"
    if before:
        Directory(images)
    images.mkdir(exist_ok=True)
    images.chmod(mode)
    with pytest.raises(DirectoryError, match=r"/images.*: Permission denied; grant the right"):
        unprivileged(lambda: Directory(images))


def test_parent_that_may_not_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(DirectoryError, match="/images: Permission denied"):
        unprivileged(lambda: Directory(tmp_path / "images"))


@pytest.mark.parametrize("before", [True, False])
def test_read_only_file_system_is_an_error_at_the_start(mount: Callable[[str], Path], *, before: bool) -> None:
    place = mount("size=64k")
    if before:
        Directory(place)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    with pytest.raises(DirectoryError, match="Read-only file system; make the file system writable"):
        Directory(place)


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_an_error_at_the_start(tmp_path: Path, error: int) -> None:
    with pytest.raises(DirectoryError, match=r"provides no file locks \(.*\); mount it with locking, or name"):
        refusing("flock", error, lambda: Directory(tmp_path))
    assert list((tmp_path / ".image_loader" / "partial").iterdir()) == []


def test_two_runs_that_start_at_once_do_not_take_each_other_for_a_want_of_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.0)
    with pytest.raises(DirectoryError, match="another run deletes images there"):  # It comes behind the probe.
        refusing("flock", errno.EWOULDBLOCK, lambda: Directory(tmp_path))


def test_directory_that_cannot_be_used_keeps_no_lock(tmp_path: Path) -> None:
    images = tmp_path / "images"
    Directory(images).close()
    images.chmod(0o555)
    with pytest.raises(DirectoryError, match="Permission denied"):
        unprivileged(lambda: Directory(images))
    images.chmod(0o755)
    directory = Directory(images)
    with directory.alone() as is_alone:
        assert is_alone


@pytest.mark.parametrize("folder", [".image_loader", ".image_loader/partial"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_in_the_place_of_a_folder_of_ours_is_an_error_at_the_start(
    tmp_path: Path, folder: str, kind: str
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "thesis").write_bytes(b"victim")
    place = tmp_path / "images" / folder
    place.parent.mkdir(parents=True)
    if kind == "link":
        place.symlink_to(tmp_path / "outside")
    else:
        place.touch()
    with pytest.raises(DirectoryError, match=rf"images/{folder}: Not a directory; move that file away"):
        Directory(tmp_path / "images")
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["thesis"]


USE = """
import sys
from contextlib import suppress
from pathlib import Path
from image_loader.errors import DirectoryError
from image_loader.store.directory import Directory
with suppress(DirectoryError):
    directory = Directory(Path(sys.argv[1]))
    directory.note_layout("host")
    directory.close()
"""


@pytest.mark.parametrize("kind", ["link", "fifo"])
@pytest.mark.parametrize("name", ["probe", 'probe"*:<>?|', "layout", "runs"])
def test_what_is_in_the_place_of_a_file_of_ours_leads_nowhere_and_holds_up_nothing(
    directory: Directory, tmp_path: Path, name: str, kind: str
) -> None:
    directory.close()
    place = directory.path / ".image_loader" / ("partial" if name.startswith("probe") else ".") / name
    place.unlink(missing_ok=True)
    if kind == "link":
        place.symlink_to(tmp_path / "outside")
    else:
        os.mkfifo(place)
    run = in_another_process(USE, str(directory.path), seconds=30)
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / "outside").exists()


def test_error_of_a_call_on_a_descriptor_names_the_directory(tmp_path: Path) -> None:
    error = Root(tmp_path).end_of_run(OSError(errno.EIO, "Input/output error", 7))
    assert str(error) == f"{tmp_path}/: Input/output error; check the disk, or name another directory"


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_lack_of_descriptors_at_the_start_is_told_with_the_way_out(tmp_path: Path, code: int) -> None:
    assert "; see ulimit -n" in str(Root(tmp_path).end_of_run(OSError(code, os.strerror(code), str(tmp_path))))


def test_run_that_cannot_find_out_whether_it_is_alone_is_not(directory: Directory) -> None:
    def alone() -> bool:
        with directory.alone() as is_alone:
            return is_alone

    assert not refusing("flock", errno.ENOLCK, alone)


def test_run_is_alone_where_no_other_is_under_way_and_shares_the_directory_again_afterwards(
    directory: Directory,
) -> None:
    other = Directory(directory.path)
    with directory.alone() as is_alone:
        assert not is_alone
    other.close()
    with directory.alone() as is_alone:
        assert is_alone
    other = Directory(directory.path)
    with other.alone() as is_alone:
        assert not is_alone, "the first one shares it again"


def test_no_run_starts_while_another_is_alone(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.05)
    with directory.alone() as is_alone:
        assert is_alone
        with pytest.raises(
            DirectoryError, match=r"another run deletes images there; wait until it is done, or end it$"
        ):
            Directory(directory.path)
    Directory(directory.path).close()


def test_a_run_that_is_told_to_end_does_not_wait_for_another(directory: Directory) -> None:
    asked = iter([False, False])
    with directory.alone(), pytest.raises(DirectoryError, match="another run deletes images there"):
        Directory(directory.path, is_ending=lambda: next(asked, True))
    assert next(asked, None) is None


def test_run_is_never_alone_where_the_lock_of_runs_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / ".image_loader").mkdir()
    (tmp_path / ".image_loader" / "runs").symlink_to("elsewhere")
    directory = Directory(tmp_path)
    for _ in range(2):
        with directory.alone() as is_alone:
            assert not is_alone
    directory.close()


def test_lock_of_runs_that_cannot_be_had_leaves_no_file_open(directory: Directory) -> None:
    directory.close()
    folder = os.open(directory.hidden, os.O_RDONLY)
    with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
        refusing("flock", errno.ENOLCK, lambda: locks.Presence("runs", folder, lambda: False))
    os.close(folder)
    assert not is_open(directory.hidden / "runs")


WITH_ANOTHER_FILELOCK = """
import sys
from pathlib import Path
from image_loader.errors import DownloadError
from image_loader.store.directory import Directory
directory = Directory(Path(sys.argv[1]))
sys.path.insert(0, sys.argv[2])
try:
    directory.partial("a.jpg", "a.jpg")
except (ImportError, DownloadError) as error:
    print(type(error).__name__, error)
"""
TAKE_ALL_DESCRIPTORS = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        os.open(os.devnull, os.O_RDONLY)
except OSError:
    pass
import _lsprof
"""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "ImportError cannot import name 'lock_descriptor'"),
        ("import missing", "ModuleNotFoundError No module named 'missing'"),
        (TAKE_ALL_DESCRIPTORS, "DownloadError write: .*: Too many open files"),
    ],
)
def test_filelock_that_cannot_be_imported_is_told_as_what_it_is(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "filelock.py").write_text(content)
    command = [sys.executable, "-c", WITH_ANOTHER_FILELOCK, str(tmp_path / "images"), str(tmp_path)]
    run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert re.match(told, run.stdout)


def test_start_does_not_import_filelock(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from image_loader.store.directory import Directory;"
        "Directory(pathlib.Path(sys.argv[1])).check_inodes(1);"
        "sys.exit('filelock' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run(command, env=ENVIRONMENT, check=False).returncode == 0


def test_name_limit_is_that_of_the_file_system(directory: Directory) -> None:
    assert directory.max_name_bytes == os.pathconf(directory.path, "PC_NAME_MAX")
    save(directory, "n" * directory.max_name_bytes, b"new")


# Leftovers


def test_partial_file_of_a_killed_run_is_removed_at_the_start(
    directory: Directory, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait()
    assert len(partials(directory)) == 1
    assert is_old(Directory(directory.path))


def test_partial_file_of_a_living_run_stays(directory: Directory, holder: subprocess.Popen[str]) -> None:
    Directory(directory.path).close()
    assert [path.read_bytes() for path in partials(directory)] == [b"half"]
    holder.communicate("commit\n")
    assert (directory.path / "a.jpg").read_bytes() == b"half"


def test_sweep_leaves_alone_what_is_no_file_of_ours(directory: Directory, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"victim")
    hidden = directory.hidden / "partial"
    (hidden / "link").symlink_to(victim)
    (hidden / "folder").mkdir()
    os.mkfifo(hidden / "fifo")
    directory.sweep()
    assert sorted(path.name for path in partials(directory)) == ["fifo", "folder", "link"]
    assert victim.read_bytes() == b"victim"


def test_an_attempt_that_outlives_the_run_leaves_nothing_and_changes_nothing(directory: Directory) -> None:
    with pytest.raises(DownloadError), opened(directory) as partial:
        partial.write(b"new")
        directory.close()
        assert partials(directory) == []
        partial.commit(None)
    assert is_old(directory)
    assert partials(directory) == []


@pytest.mark.parametrize("commits", [True, False])
def test_an_attempt_that_outlives_the_run_leaves_that_of_the_next_run_alone(
    directory: Directory, *, commits: bool
) -> None:
    with ExitStack() as stack:
        ours = stack.enter_context(opened(directory))
        ours.write(b"whole")
        directory.close()
        with opened(Directory(directory.path)) as theirs:
            theirs.write(b"ha")
            if commits:
                with pytest.raises(DownloadError, match="interrupted"):
                    ours.commit(None)
            stack.close()
            assert (directory.path / "a.jpg").read_bytes() == b"old"
            theirs.write(b"lf")
            theirs.commit(None)
    assert (directory.path / "a.jpg").read_bytes() == b"half"


def test_an_attempt_that_begins_when_all_were_given_up_leaves_nothing(directory: Directory) -> None:
    directory.give_up_partials()
    with pytest.raises(DownloadError, match="interrupted"):
        save(directory, "a.jpg", b"new")
    assert is_old(directory)


def test_an_attempt_is_given_up_though_one_before_it_had_the_same_name(directory: Directory) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(opened(directory))
        first.write(b"first")
        first.commit(None)
        with pytest.raises(DownloadError, match="interrupted"), opened(directory) as second:
            stack.close()
            second.write(b"second")
            directory.give_up_partials()
            second.commit(None)
    assert (directory.path / "a.jpg").read_bytes() == b"first"
    assert partials(directory) == []


def test_no_image_is_put_in_place_once_the_attempts_were_given_up(directory: Directory) -> None:
    begun = threading.Barrier(9)

    def save_many(worker: int) -> None:
        begun.wait(60)
        with suppress(DownloadError):
            for number in range(1000):
                save(directory, f"{worker}-{number}.jpg", b"new")

    with ThreadPoolExecutor(8) as executor:
        running = [executor.submit(save_many, worker) for worker in range(8)]
        begun.wait(60)
        directory.give_up_partials()
        saved = set(directory.path.glob("*.jpg"))
        for each in running:
            each.result(60)
    assert set(directory.path.glob("*.jpg")) == saved
    assert partials(directory) == []


def test_close_leaves_alone_what_another_run_has_begun_under_the_same_name(directory: Directory) -> None:
    with pytest.raises(DownloadError), opened(directory) as partial:
        path = Path(partial.path)
        path.rename(directory.path / "taken")
        path.write_bytes(b"theirs")
        with path.open("r+b") as theirs:
            fcntl.flock(theirs, fcntl.LOCK_EX)
            directory.close()
            assert path.read_bytes() == b"theirs"
        path.unlink()
        partial.commit(None)
    assert is_old(directory)


def test_close_is_silent_and_makes_nothing_when_the_directory_is_gone(
    directory: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(directory.path)
    directory.close()
    assert not directory.path.exists()
    assert caplog.records == []


# The state of a file


def test_state_is_that_of_a_regular_file(directory: Directory) -> None:
    assert directory.stat("a.jpg") == (directory.path / "a.jpg").stat()


@pytest.mark.parametrize("file", ["missing", "link", "folder", "fifo", "a.jpg/below", "n" * 256, "loop/below"])
def test_what_is_no_regular_file_has_no_state(directory: Directory, file: str) -> None:
    (directory.path / "link").symlink_to("a.jpg")
    (directory.path / "loop").symlink_to("loop")
    (directory.path / "folder").mkdir()
    os.mkfifo(directory.path / "fifo")
    assert directory.stat(file) is None


def test_one_folder_that_may_not_be_searched_does_not_end_the_run(directory: Directory) -> None:
    save(directory, "host/a.jpg", b"new")
    (directory.path / "host").chmod(0o000)
    assert unprivileged(lambda: directory.stat("host/a.jpg")) is None


def test_state_tells_when_the_directory_may_no_longer_be_searched(directory: Directory) -> None:
    directory.path.chmod(0o000)
    with pytest.raises(DirectoryError, match="Permission denied"):
        unprivileged(lambda: directory.stat("a.jpg"))


# Inodes


def test_more_new_files_than_inodes_end_the_run_with_both_numbers(mount: Callable[[str], Path]) -> None:
    directory = Directory(mount("size=64k,nr_inodes=12"))
    available = os.statvfs(directory.path).f_favail
    directory.check_inodes(available)
    with pytest.raises(OutOfInodesError) as caught:
        directory.check_inodes(available + 1)
    error = caught.value
    assert (error.directory, error.wanted, error.available) == (directory.path, available + 1, available)


def test_no_inode_left_in_mid_run_ends_it_and_leaves_the_images_whole(mount: Callable[[str], Path]) -> None:
    directory = Directory(mount("size=640k,nr_inodes=12"))
    count = os.statvfs(directory.path).f_favail
    for number in range(count):
        save(directory, f"{number}.jpg", b"whole")
    with pytest.raises(OutOfInodesError, match="1 new files wanted, but only 0 inodes available"):
        save(directory, "more.jpg", b"more")
    assert all((directory.path / f"{number}.jpg").read_bytes() == b"whole" for number in range(count))


def test_a_quota_is_told_as_such_also_where_no_inode_is_left(mount: Callable[[str], Path]) -> None:
    directory = Directory(mount("size=640k,nr_inodes=12"))
    for number in range(os.statvfs(directory.path).f_favail):
        save(directory, f"{number}.jpg", b"whole")
    with pytest.raises(DirectoryError, match="have the quota raised") as caught:
        refusing("openat", errno.EDQUOT, lambda: opened(directory))
    assert not isinstance(caught.value, OutOfInodesError)


def test_no_inode_for_a_folder_of_the_layout_ends_the_run(mount: Callable[[str], Path]) -> None:
    directory = Directory(mount("size=640k,nr_inodes=12"))
    for number in range(os.statvfs(directory.path).f_favail - 1):
        save(directory, f"{number}.jpg", b"whole")
    with pytest.raises(OutOfInodesError):
        save(directory, "host/a.jpg", b"more")
    assert partials(directory) == []


@pytest.mark.parametrize("place", [".", "images"])
def test_no_inode_at_the_start_is_told_as_such(mount: Callable[[str], Path], place: str) -> None:
    mounted = mount("size=64k,nr_inodes=1")
    with pytest.raises(OutOfInodesError) as caught:
        Directory(mounted / place)
    assert (caught.value.wanted, caught.value.available) == (1, 0)


@pytest.mark.parametrize(("error", "inodes"), [(errno.ENOSPC, 10), (errno.EDQUOT, 1)])
def test_what_is_no_lack_of_inodes_is_told_as_such_at_the_start(
    mount: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, error: int, inodes: int
) -> None:
    def mkdir(path: Path, **_: object) -> None:  # A tmpfs takes folders even where it is full.
        raise OSError(error, os.strerror(error), str(path.parent / "images"))

    place = mount(f"size=64k,nr_inodes={inodes}")
    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(DirectoryError, match=f"^{place}/images: {os.strerror(error)}") as caught:
        Directory(place / "images")
    assert not isinstance(caught.value, OutOfInodesError)


def test_file_system_without_inode_counts_has_no_such_limit(mount: Callable[[str], Path]) -> None:
    directory = Directory(mount("size=64k,nr_inodes=0"))
    assert os.statvfs(directory.path).f_files == 0
    directory.check_inodes(10**9)
    save(directory, "a.jpg", b"new")


def test_check_of_inodes_tells_when_the_directory_is_gone(directory: Directory) -> None:
    shutil.rmtree(directory.path)
    with pytest.raises(DirectoryError, match="No such file or directory; put the directory back"):
        directory.check_inodes(1)


# Writing


def test_image_stands_whole_under_its_name_with_its_time(directory: Directory) -> None:
    state = save(directory, "a.jpg", b"new one", 1_600_000_000)
    assert (directory.path / "a.jpg").read_bytes() == b"new one"
    assert size_and_time(state) == size_and_time(directory.stat("a.jpg")) == (7, 1_600_000_000 * 10**9)
    assert partials(directory) == []


def test_state_of_an_image_is_that_after_its_renaming_which_changes_its_ctime(directory: Directory) -> None:
    with opened(directory) as partial:
        partial.write(b"new")
        time.sleep(CLOCK_STEP)
        before = Path(partial.path).stat().st_ctime_ns
        time.sleep(CLOCK_STEP)
        state = partial.commit(None)
    in_place = directory.stat("a.jpg")
    assert in_place is not None
    assert (state.st_ctime_ns, state.st_ino) == (in_place.st_ctime_ns, in_place.st_ino)
    assert state.st_ctime_ns > before


@pytest.mark.parametrize("size", [0, 2, 4])
def test_file_that_is_not_of_the_size_written_is_not_put_in_place(directory: Directory, size: int) -> None:
    with (
        pytest.raises(DownloadError, match=f"3 bytes written, but it has {size}") as caught,
        opened(directory) as partial,
    ):
        partial.write(b"new")
        os.truncate(partial.path, size)
        partial.commit(None)
    assert caught.value.failure.reason is Reason.WRITE
    assert is_old(directory)


def test_image_gets_the_first_name_that_the_file_system_takes(directory: Directory) -> None:
    with opened(directory) as partial:
        partial.write(b"new")
        state = partial.commit(None, iter(["n" * 256, "b.jpg", "c.jpg"]))
        assert partial.file == "b.jpg"
    assert directory.stat("b.jpg") == state
    assert directory.stat("c.jpg") is None


@pytest.mark.parametrize(("files", "text"), [(["n" * 256] * 2, "File name too long"), ([], "every name .* is taken")])
def test_image_without_a_name_that_can_be_had_fails(directory: Directory, files: list[str], text: str) -> None:
    with pytest.raises(DownloadError, match=text), opened(directory) as partial:
        partial.write(b"new")
        partial.commit(None, files)
    assert is_old(directory)


@pytest.mark.parametrize(
    ("file", "text"), [("folder", "folder: Is a directory"), ("a.jpg/b.jpg", "a.jpg: Not a directory")]
)
def test_image_gets_no_other_name_for_what_is_no_fault_of_its_name(directory: Directory, file: str, text: str) -> None:
    (directory.path / "folder").mkdir()
    with pytest.raises(DownloadError, match=text), opened(directory) as partial:
        partial.write(b"new")
        partial.commit(None, [file, "b.jpg"])
    assert directory.stat("b.jpg") is None


def test_file_is_read_for_its_digest_and_its_first_bytes(directory: Directory) -> None:
    assert directory.digest("a.jpg") == (hashlib.sha256(b"old").hexdigest(), directory.stat("a.jpg"))
    assert (directory.head("a.jpg", 2), directory.head("missing", 2)) == (b"ol", b"")


def test_fifo_that_is_written_to_without_end_has_no_digest(directory: Directory) -> None:
    fifo = directory.path / "fifo.jpg"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, bytes(4096))
    assert directory.digest("fifo.jpg") is None
    assert len(os.read(reader, 5000)) == 4096, "nothing of it was read"
    os.close(writer)
    os.close(reader)


@pytest.mark.parametrize("file", ["missing", "link", "folder", "fifo", "n" * 256])
def test_what_is_no_regular_file_has_no_digest(directory: Directory, file: str) -> None:
    (directory.path / "link").symlink_to("a.jpg")
    (directory.path / "folder").mkdir()
    os.mkfifo(directory.path / "fifo")
    assert directory.digest(file) is None


def test_old_image_stands_until_the_new_one_is_whole(directory: Directory) -> None:
    with opened(directory) as partial:
        partial.write(b"ne")
        assert (directory.path / "a.jpg").read_bytes() == b"old"
        partial.write(memoryview(b"w"))
        assert partial.size == 3
        assert size_and_time(partial.commit(None)) == size_and_time(directory.stat("a.jpg"))
    assert (directory.path / "a.jpg").read_bytes() == b"new"


def test_attempt_that_fails_leaves_the_old_image_and_nothing_else(directory: Directory) -> None:
    with pytest.raises(ZeroDivisionError), opened(directory) as partial:
        partial.write(b"ne")
        raise ZeroDivisionError
    assert is_old(directory)


def test_folders_of_the_layout_are_made_on_demand(directory: Directory) -> None:
    save(directory, "ab/cd/a.jpg", b"new")
    save(directory, "ab/cd/b.jpg", b"new")
    save(directory, "ab/ef/a.jpg", b"new")
    assert [path.read_bytes() for path in directory.path.glob("a*/*/*.jpg")] == [b"new"] * 3


def test_no_other_folder_is_made_than_those_of_the_layout(directory: Directory) -> None:
    save(directory, "a-b.c+d !/x y.z/e.jpg", b"new")
    assert sorted(path.name for path in directory.path.iterdir()) == [".image_loader", "a-b.c+d !", "a.jpg"]
    assert [path.name for path in (directory.path / "a-b.c+d !").iterdir()] == ["x y.z"]


def test_link_under_the_name_of_an_image_is_replaced_and_its_target_untouched(
    directory: Directory, tmp_path: Path
) -> None:
    (tmp_path / "victim").write_bytes(b"victim")
    (directory.path / "b.jpg").symlink_to(tmp_path / "victim")
    save(directory, "b.jpg", b"new")
    assert not (directory.path / "b.jpg").is_symlink()
    assert (tmp_path / "victim").read_bytes() == b"victim"


@pytest.fixture
def outside(directory: Directory, tmp_path: Path) -> Path:
    """A folder with a file and an empty folder, to which a link in the place of a layout's folder leads."""
    outside = tmp_path / "outside"
    (outside / "empty").mkdir(parents=True)
    (outside / "a.jpg").write_bytes(b"victim")
    (directory.path / "host").symlink_to(outside)
    return outside


def is_untouched(outside: Path) -> bool:
    """Whether that folder is as it was."""
    found = sorted(path.name for path in outside.iterdir())
    return found == ["a.jpg", "empty"] and (outside / "a.jpg").read_bytes() == b"victim"


@pytest.mark.parametrize("file", ["host/a.jpg", "host/b.jpg", "host/new/b.jpg", "host/empty/b.jpg"])
def test_link_in_the_place_of_a_folder_is_not_followed(directory: Directory, outside: Path, file: str) -> None:
    with pytest.raises(DownloadError, match=r"images/host: Not a directory; a file or a link is in the place"):
        save(directory, file, b"new")
    with pytest.raises(DownloadError, match=r"host: Not a directory"):
        directory.rename("a.jpg", file)
    with pytest.raises(DownloadError, match=r"host: Not a directory"):
        directory.remove(file)
    directory.remove_folders(file)
    assert is_untouched(outside)
    assert is_old(directory)
    assert partials(directory) == []


def test_folder_that_may_be_searched_and_written_but_not_read_takes_images(directory: Directory) -> None:
    (directory.path / "host").mkdir(mode=0o300)
    unprivileged(lambda: save(directory, "host/b.jpg", b"new"))
    (directory.path / "host").chmod(0o755)
    assert (directory.path / "host" / "b.jpg").read_bytes() == b"new"


def test_image_that_is_gone_with_its_folder_is_not_renamed_and_no_folder_is_made(directory: Directory) -> None:
    with pytest.raises(DownloadError, match="No such file or directory"):
        directory.rename("from/a.jpg", "to/a.jpg")
    assert not (directory.path / "from").exists()
    assert not (directory.path / "to").exists()


def test_folder_that_is_a_link_is_named_where_an_image_is_renamed_from_there(
    directory: Directory, outside: Path
) -> None:
    with pytest.raises(DownloadError, match=r"images/host: Not a directory"):
        directory.rename("host/a.jpg", "b.jpg")
    assert is_untouched(outside)


def test_what_is_in_the_way_of_a_new_name_is_named(directory: Directory) -> None:
    (directory.path / "folder" / "b.jpg").mkdir(parents=True)
    with pytest.raises(DownloadError, match=r"folder/b.jpg: Is a directory"):
        directory.rename("a.jpg", "folder/b.jpg")


@pytest.mark.parametrize(
    "file",
    ["../b.jpg", "/b.jpg", "host/../../b.jpg", ".image_loader/index.sqlite3", ".b.jpg", "", "a//b.jpg", "./b.jpg"],
)
def test_name_that_no_image_has_is_refused(directory: Directory, file: str) -> None:
    with pytest.raises(DownloadError, match="is not a name for an image"), opened(directory) as partial:
        partial.write(b"new")
        partial.commit(None, [file])
    with pytest.raises(DownloadError, match="is not a name for an image"):
        directory.rename("a.jpg", file)
    with pytest.raises(DownloadError, match="is not a name for an image"):
        directory.remove(file)
    assert is_old(directory)


def test_folder_that_others_remove_while_it_is_empty_is_made_again(directory: Directory) -> None:
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            directory.remove("host/gone.jpg")
            time.sleep(0.0002)

    with ThreadPoolExecutor(1) as executor:
        removing = executor.submit(remove)
        try:
            for number in range(3000):
                with directory.partial("host/b.jpg", "host/b.jpg") as partial:
                    partial.write(b"new")
                    partial.commit(None, ["host/b.jpg", "host/spare.jpg"])
                    assert partial.file == "host/b.jpg", number
                (directory.path / "host" / "b.jpg").unlink()
        finally:
            stop.set()
        removing.result(60)


@pytest.mark.parametrize("within", [[], ["file"]])
def test_directory_under_the_name_of_an_image_fails_that_image(directory: Directory, within: list[str]) -> None:
    (directory.path / "b.jpg").mkdir()
    for name in within:
        (directory.path / "b.jpg" / name).write_bytes(b"")
    with pytest.raises(DownloadError) as caught:
        save(directory, "b.jpg", b"new")
    assert caught.value.failure.reason is Reason.WRITE
    assert (directory.path / "b.jpg").is_dir()
    assert partials(directory) == []


@pytest.mark.parametrize("file", ["a.jpg/b.jpg", "n" * 256])
def test_name_that_cannot_be_had_fails_that_image(directory: Directory, file: str) -> None:
    with pytest.raises(DownloadError) as caught:
        save(directory, file, b"new")
    assert caught.value.failure.reason is Reason.WRITE
    assert is_old(directory)


def test_folder_on_another_file_system_fails_its_images_alone(mount: Callable[[str], Path], tmp_path: Path) -> None:
    mount("size=1m")
    directory = Directory(tmp_path)
    with pytest.raises(DownloadError, match=r"mounted/a.jpg: .*cross-device.*; its folder is on another file system"):
        save(directory, "mounted/a.jpg", b"new")
    save(directory, "elsewhere/a.jpg", b"new")
    assert partials(directory) == []


@pytest.fixture(params=["exfat", "ntfs"])
def strict(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Mount a file system that refuses what Windows does not take in a name."""
    make, mount, options = {
        "exfat": ("mkfs.exfat", "mount.exfat-fuse", ()),
        "ntfs": ("mkntfs", "ntfs-3g", ("-o", "windows_names")),
    }[request.param]
    if os.geteuid() != 0 or not all(map(shutil.which, (make, mount, "losetup"))):
        pytest.skip(f"takes root, `{make}` and `{mount}`")
    image, place = tmp_path / "strict.img", tmp_path / "strict"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(1 << 24)
    force = ("-F", "-Q") if make == "mkntfs" else ()
    subprocess.run([make, *force, str(image)], check=True, capture_output=True)
    loop = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True, check=False)
    if loop.returncode:
        pytest.skip(f"no loop device can be had: {loop.stderr.strip()}")
    device = loop.stdout.strip()
    if subprocess.run([mount, device, str(place), *options], capture_output=True, check=False).returncode:
        subprocess.run(["losetup", "-d", device], check=True)
        pytest.skip(f"`{mount}` mounts nothing here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
    subprocess.run(["losetup", "-d", device], check=True)


def test_characters_that_the_file_system_refuses_are_known_from_the_start(strict: Path, tmp_path: Path) -> None:
    assert set('"*:<>?|') <= set(Directory(strict / "images").refused_characters)
    assert Directory(tmp_path / "images").refused_characters == ""
    assert partials(Directory(strict / "images")) == []


def test_name_that_the_file_system_refuses_is_passed_over(strict: Path) -> None:
    directory = Directory(strict / "images")
    with opened(directory) as partial:
        partial.write(b"new")
        partial.commit(None, ["a:b.jpg", "host:80/a.jpg", "host_80/a.jpg"])
        assert partial.file == "host_80/a.jpg"
    assert (directory.path / "host_80" / "a.jpg").read_bytes() == b"new"


def test_folder_that_may_not_be_written_fails_its_images_alone(directory: Directory) -> None:
    save(directory, "host/a.jpg", b"old")
    (directory.path / "host").chmod(0o555)
    with pytest.raises(DownloadError, match=r"host/a\.jpg: Permission denied"):
        unprivileged(lambda: save(directory, "host/a.jpg", b"new"))
    assert is_old(directory)


# Partial files that are none


def put_link(place: Path, victim: Path) -> None:
    """Put a symbolic link to the victim in the partial file's place."""
    place.symlink_to(victim)


def put_hard_link(place: Path, victim: Path) -> None:
    """Put a hard link to the victim in the partial file's place."""
    place.hardlink_to(victim)


def put_fifo(place: Path, _victim: Path) -> None:
    """Put a FIFO in the partial file's place."""
    os.mkfifo(place)


def put_directory(place: Path, _victim: Path) -> None:
    """Put a directory in the partial file's place."""
    place.mkdir()


@pytest.mark.parametrize("put", [put_link, put_hard_link, put_fifo, put_directory])
def test_partial_file_that_is_something_else_fails_the_image_and_is_not_written(
    directory: Directory, tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"victim")
    put(partial_path(directory), victim)
    with pytest.raises(DownloadError) as caught:
        save(directory, "a.jpg", b"new")
    assert caught.value.failure.reason is Reason.WRITE
    assert victim.read_bytes() == b"victim"
    assert (directory.path / "a.jpg").read_bytes() == b"old"


# Locks


def test_image_that_another_process_is_at_is_locked(directory: Directory, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(LockedError):
        opened(directory)
    holder.communicate("commit\n")
    assert (directory.path / "a.jpg").read_bytes() == b"half"


def test_image_that_another_thread_is_at_is_locked(directory: Directory) -> None:
    with opened(directory), pytest.raises(LockedError):
        opened(directory)
    assert is_old(directory)


def test_other_images_are_free_while_one_is_locked(directory: Directory, holder: subprocess.Popen[str]) -> None:
    save(directory, "b.jpg", b"new")
    assert holder.poll() is None


def test_spellings_with_one_key_share_one_lock(directory: Directory) -> None:
    with directory.partial("A.jpg", "a.jpg"), pytest.raises(LockedError):
        directory.partial("a.jpg", "a.jpg")


def test_lock_held_for_an_instant_is_waited_for(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_module, "_LOCK_PATIENCE", 60)
    refused = threading.Event()
    monkeypatch.setattr(time, "sleep", lambda _seconds: refused.set())
    with ThreadPoolExecutor(1) as executor:
        with opened(directory):
            waiting = executor.submit(save, directory, "a.jpg", b"new")
            assert refused.wait(60)
        waiting.result(60)
    assert (directory.path / "a.jpg").read_bytes() == b"new"


def test_image_put_in_place_while_another_waited_for_it_is_not_emptied(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_module, "_LOCK_PATIENCE", 60)
    refused = threading.Event()
    monkeypatch.setattr(time, "sleep", lambda _seconds: refused.set())
    with ThreadPoolExecutor(1) as executor:
        with opened(directory) as first:
            waiting = executor.submit(opened, directory)
            assert refused.wait(60)
            first.write(b"first")
            first.commit(None)
        with waiting.result(60) as second:
            second.write(b"sec")
            assert (directory.path / "a.jpg").read_bytes() == b"first"


@pytest.mark.parametrize("replaced", [True, False])
def test_partial_file_moved_between_opening_and_locking_is_opened_again(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, *, replaced: bool
) -> None:
    with opened(directory) as partial:
        partial.write(b"whole image")
        partial.keep(Validators('"etag"'), "image/jpeg")
    lock, moved = locks.lock, directory.path / "b.jpg"

    def moving(descriptor: int, path: str, folder: int) -> os.stat_result:
        if not moved.exists():
            (directory.path / path).rename(moved)
            if replaced:
                (directory.path / path).write_bytes(b"another's")
        return lock(descriptor, path, folder)

    monkeypatch.setattr(locks, "lock", moving)
    save(directory, "a.jpg", b"new")
    assert moved.read_bytes() == b"whole image"
    assert (directory.path / "a.jpg").read_bytes() == b"new"


def test_eight_processes_on_one_directory_leave_each_image_whole_and_nothing_else(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"0" * 20_000)
    runs = [
        subprocess.Popen([sys.executable, "-c", CONTEND, str(tmp_path), letter], env=ENVIRONMENT)
        for letter in "abcdefgh"
    ]
    assert [run.wait(120) for run in runs] == [0] * 8
    assert sorted(os.listdir(tmp_path)) == [".image_loader", "0.jpg", "1.jpg", "2.jpg"]  # noqa: PTH208
    assert not any((tmp_path / ".image_loader" / "partial").iterdir())
    for number in range(3):
        body = (tmp_path / f"{number}.jpg").read_bytes()
        assert (len(body), len(set(body))) == (20_000, 1)


# Resuming


def kept(directory: Directory) -> Resume:
    """Leave ``first `` behind as the partial file of ``a.jpg``."""
    with opened(directory) as partial:
        partial.write(b"first ")
        return partial.keep(Validators('"etag"'), "image/jpeg")


def test_kept_partial_file_is_continued(directory: Directory) -> None:
    resume = kept(directory)
    assert (resume.key, resume.validators, resume.media_type) == ("a.jpg", Validators('"etag"'), "image/jpeg")
    with opened(directory, resume) as partial:
        assert partial.size == resume.size == 6
        assert b"".join(partial.chunks()) == b"first "
        partial.write(b"last")
        partial.commit(None)
    assert (directory.path / "a.jpg").read_bytes() == b"first last"


def test_long_partial_file_is_read_in_pieces(directory: Directory) -> None:
    body = os.urandom(1 << 20)
    with opened(directory) as partial:
        partial.write(body)
        pieces = list(partial.chunks())
    assert len(pieces) > 1
    assert b"".join(pieces) == body


@pytest.mark.parametrize("change", ["longer", "shorter", "edited", "gone", "replaced"])
def test_kept_partial_file_that_changed_is_begun_anew(directory: Directory, change: str) -> None:
    resume = kept(directory)
    (path,) = partials(directory)
    if change in {"gone", "replaced"}:
        path.rename(path.with_name("moved"))
    if change != "gone":
        path.write_bytes({"longer": b"first and", "shorter": b"f"}.get(change, b"other!"))
        os.utime(path, ns=(resume.mtime_ns + (change == "edited"),) * 2)
    with opened(directory, resume) as partial:
        assert partial.size == 0
        partial.write(b"new")
        partial.commit(None)
    assert (directory.path / "a.jpg").read_bytes() == b"new"


def test_body_sent_whole_after_all_replaces_what_was_kept(directory: Directory) -> None:
    kept(directory)
    with opened(directory) as partial:
        assert partial.size == 0
        partial.write(b"new")
        partial.commit(None)
    assert (directory.path / "a.jpg").read_bytes() == b"new"


def test_discarded_partial_file_is_gone(directory: Directory) -> None:
    resume = kept(directory)
    assert directory.is_kept(resume)
    directory.discard("a.jpg")
    directory.discard("never-there.jpg")
    assert not directory.is_kept(resume)
    assert is_old(directory)


def test_kept_partial_file_outlasts_another_process_of_the_run(directory: Directory) -> None:
    resume = kept(directory)
    held = directory.held()
    Directory(directory.path, Held(os.dup(held.descriptor), held.resolved)).close()
    assert directory.is_kept(resume)


@pytest.mark.parametrize(
    ("instead", "told"), [(False, "put the directory back"), (True, "another directory is in its place")]
)
def test_another_process_of_the_run_takes_no_other_directory(directory: Directory, instead: bool, told: str) -> None:
    held = directory.held()
    directory.path.rename(directory.path.with_name("moved"))
    if instead:
        directory.path.mkdir()
    with pytest.raises(DirectoryError, match=told):
        Directory(directory.path, Held(os.dup(held.descriptor), held.resolved))
    assert not (directory.path / ".image_loader").exists()
    assert directory.path.exists() == instead


def test_kept_partial_file_does_not_outlast_the_run(directory: Directory) -> None:
    kept(directory)
    directory.close()
    assert is_old(directory)


# Faults in mid-run


def test_no_space_ends_the_run_and_leaves_the_images_whole(mount: Callable[[str], Path]) -> None:
    directory = Directory(mount("size=64k"))
    save(directory, "a.jpg", b"x" * 20_000)
    with pytest.raises(DirectoryError, match="No space left on device; free some space") as caught:
        save(directory, "b.jpg", b"y" * 80_000)
    assert not isinstance(caught.value, OutOfInodesError)
    assert str(directory.path) in str(caught.value)
    assert (directory.path / "a.jpg").read_bytes() == b"x" * 20_000
    assert directory.stat("b.jpg") is None
    assert partials(directory) == []


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_file_that_the_disk_refuses_ends_the_run(directory: Directory, error: int) -> None:
    with pytest.raises(DirectoryError, match=os.strerror(error)) as caught:
        refusing("openat", error, lambda: opened(directory))
    assert not isinstance(caught.value, OutOfInodesError)
    assert is_old(directory)


@pytest.mark.parametrize("error", [errno.EDQUOT, errno.EIO])
def test_write_that_the_disk_refuses_ends_the_run(directory: Directory, error: int) -> None:
    with opened(directory) as partial, pytest.raises(DirectoryError, match=os.strerror(error)):
        refusing("write", error, lambda: partial.write(b"new"))
    assert is_old(directory)


@pytest.mark.parametrize("error", [errno.EDQUOT, errno.EIO, errno.ENOSPC])
def test_write_that_fails_as_late_as_the_closing_ends_the_run_before_the_image_is_replaced(
    directory: Directory, error: int
) -> None:
    with opened(directory) as partial, pytest.raises(DirectoryError, match=os.strerror(error)):
        partial.write(b"new")
        refusing("close", error, lambda: partial.commit(None))
    assert is_old(directory)


def test_partial_file_whose_closing_fails_ends_the_run(directory: Directory) -> None:
    partial = opened(directory)
    with pytest.raises(DirectoryError, match="Input/output error"):
        refusing("close", errno.EIO, lambda: partial.__exit__(None, None, None))
    assert is_old(directory)


def test_file_system_made_read_only_ends_the_run(mount: Callable[[str], Path]) -> None:
    directory = Directory(mount("size=64k"))
    save(directory, "a.jpg", b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(directory.path)], check=True)
    with pytest.raises(DirectoryError, match="Read-only file system"):
        save(directory, "a.jpg", b"new")
    assert (directory.path / "a.jpg").read_bytes() == b"old"


def test_locks_lost_in_mid_run_end_it(directory: Directory) -> None:
    with pytest.raises(DirectoryError, match="No locks available"):
        refusing("flock", errno.ENOLCK, lambda: save(directory, "a.jpg", b"new"))
    assert (directory.path / "a.jpg").read_bytes() == b"old"


@pytest.mark.parametrize("file", ["a.jpg", "host/a.jpg"])
def test_directory_removed_in_mid_run_ends_it_and_is_not_made_again(directory: Directory, file: str) -> None:
    with pytest.raises(DirectoryError, match="put the directory back"), directory.partial(file, file) as partial:
        shutil.rmtree(directory.path)
        partial.write(b"new")
        partial.commit(None)
    with pytest.raises(DirectoryError, match="put the directory back"):
        save(directory, file, b"new")
    assert not directory.path.exists()


def test_partial_file_removed_by_somebody_fails_that_image_alone(directory: Directory) -> None:
    with pytest.raises(DownloadError) as caught, opened(directory) as partial:
        Path(partial.path).unlink()
        partial.commit(None)
    assert caught.value.failure.reason is Reason.WRITE
    assert is_old(directory)


@pytest.mark.parametrize("place", [".", ".image_loader/partial"])
def test_permission_lost_in_mid_run_ends_it(directory: Directory, place: str) -> None:
    (directory.path / place).chmod(0o555)
    with pytest.raises(DirectoryError, match="Permission denied; grant the right to write there"):
        unprivileged(lambda: save(directory, "a.jpg", b"new"))
    assert is_old(directory)


def test_file_over_the_limit_of_file_sizes_fails_that_image(directory: Directory) -> None:
    with pytest.raises(DownloadError) as caught, limited(resource.RLIMIT_FSIZE, 4096):
        save(directory, "a.jpg", b"x" * 5000)
    assert caught.value.failure.reason is Reason.WRITE
    assert is_old(directory)


@pytest.mark.parametrize("left", [0, 1])
def test_too_many_open_files_is_a_passing_failure(directory: Directory, left: int) -> None:
    taken = []
    with pytest.raises(DownloadError) as caught, limited(resource.RLIMIT_NOFILE, 256):
        try:
            with pytest.raises(OSError, match="Too many"):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            for _ in range(left):
                os.close(taken.pop())
            save(directory, "a.jpg", b"new")
        finally:
            for descriptor in taken:
                os.close(descriptor)
    assert (caught.value.failure.retryable, caught.value.failure.blame) == (True, Blame.PROCESS)
    directory.close()
    assert is_old(directory)


# What another run has saved


def test_only_what_was_put_in_place_since_this_run_began_was_saved_meanwhile(directory: Directory) -> None:
    old = directory.path / "a.jpg"
    later = Directory(directory.path)
    time.sleep(CLOCK_STEP)
    assert not later.saved_meanwhile("a.jpg", None), "it was there before"
    (directory.path / "new.jpg").write_bytes(b"new")
    (directory.path / "new.jpg").rename(old)
    assert later.saved_meanwhile("a.jpg", None)
    assert not later.saved_meanwhile("a.jpg", old.stat().st_ino)
    assert not later.saved_meanwhile("b.jpg", None)


def test_what_was_put_in_place_in_a_time_to_come_was_not_saved_meanwhile(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was set back."""
    hour_ago = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: hour_ago)
    assert not Directory(directory.path).saved_meanwhile("a.jpg", None)
