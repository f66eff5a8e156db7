"""The children that decode: what they have open, and what happens when they die, take too long or too much."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import ENVIRONMENT, MODULE, SETTINGS, Loader, in_another_process, leftovers
from exchange import head, length, png
from image_loader.decoding.pool import Decoders
from image_loader.errors import DownloadError, OptionError
from image_loader.model import Blame, Failure, Reason
from server import Scripted, Server, plays
from test_signals import PROMPT

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SECONDS = 60.0


def slow_gif(frames: int) -> bytes:
    """Return an animation that takes some 25 microseconds a frame."""
    frame = b"\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + frame * frames + b";"


def broken_tiff(path: Path) -> bytes:
    """Return a TIFF that makes libtiff write on standard error."""
    Image.effect_noise((400, 300), 80).save(path, "TIFF", compression="tiff_adobe_deflate")
    content = bytearray(path.read_bytes())
    content[8] ^= 0xFF  # Of the header of the first deflated strip.
    return bytes(content)


def response(body: bytes, media_type: str) -> bytes:
    return head(f"Content-Type: {media_type}", length(body)) + body


def children(process: int) -> set[int]:
    """Return the processes that a process has started and not yet forgotten."""
    found = set()
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def is_gone(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True


def busy(process: int) -> set[int]:
    """Return those children that are decoding, which is where they can be killed by their socket's end."""
    return {child for child in children(process) if _is_attached(child)}


def _is_attached(process: int) -> bool:
    with suppress(OSError):
        for each in Path(f"/proc/{process}/fdinfo").iterdir():
            flags = int(each.read_text().partition("flags:")[2].split()[0], 8)
            if flags & os.O_ASYNC:
                return True
    return False


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> Any:
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up, "in vain"
        time.sleep(0.005)
    return found


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Decoders]]:
    """What makes decoders with other settings."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(closing(Decoders(SETTINGS._replace(**changes), tmp_path)))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image.png"
    path.write_bytes(png("pool", 4000))
    return str(path)


@pytest.fixture
def slow(tmp_path: Path) -> str:
    path = tmp_path / "slow.gif"
    path.write_bytes(slow_gif(40_000))
    return str(path)


@pytest.fixture
def endless(tmp_path: Path) -> str:
    path = tmp_path / "endless.gif"
    path.write_bytes(slow_gif(2_000_000))
    return str(path)


def decode(decoders: Decoders, path: str, seconds: float = SECONDS) -> Any:
    return decoders.decode(path, time.monotonic() + seconds)


def failure(decoders: Decoders, path: str, seconds: float = SECONDS) -> Failure:
    with pytest.raises(DownloadError) as caught:
        decode(decoders, path, seconds)
    return caught.value.failure


# What a child is --------------------------------------------------------------------------------------------------


@linux
def test_a_child_has_nothing_of_ours(
    make: Callable[..., Decoders], image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        decode(make(), image)
        (child,) = children(os.getpid())
    names = {int(each.name): str(each.readlink()) for each in Path(f"/proc/{child}/fd").iterdir()}
    assert {names.pop(number) for number in (0, 1, 2)} == {"/dev/null"}
    assert [name.partition(":")[0] for name in names.values()] == ["socket"]
    assert b"SECRET" not in Path(f"/proc/{child}/environ").read_bytes()
    assert str(Path(f"/proc/{child}/cwd").readlink()) == "/"


@linux
def test_a_child_has_all_processors_even_where_its_parent_has_one(image: str) -> None:
    allowed = os.sched_getaffinity(0)

    def bound() -> set[int]:
        os.sched_setaffinity(0, {min(allowed)})
        with closing(Decoders(SETTINGS, Path(), frozenset(allowed))) as decoders:
            decode(decoders, image)
            (child,) = children(os.getpid())
            return os.sched_getaffinity(child)

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(bound).result() == allowed


@linux
def test_there_are_no_more_children_than_processors_and_one(
    make: Callable[..., Decoders], pool: ThreadPoolExecutor, image: str
) -> None:
    decoders = make()
    futures = [pool.submit(decode, decoders, image) for _ in range(200)]
    assert {future.result().media_type for future in futures} == {"image/png"}
    assert len(children(os.getpid())) <= len(os.sched_getaffinity(0)) + 1


def test_the_callers_main_module_is_not_imported_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import pathlib, sys\n"
        "with pathlib.Path('ran').open('a') as file: file.write('x')\n"
        "import image_loader\n"
        f"print([outcome.reason for outcome in image_loader.load([{server.url('/a.png')!r}], 'images', verify=True)])\n"
    )
    command = [sys.executable, "script.py"]
    run = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("[None]\n", "")
    assert (tmp_path / "ran").read_text() == "x"


# How it dies ------------------------------------------------------------------------------------------------------


@linux
def test_an_image_is_whole_although_the_child_that_decodes_it_is_killed(
    make: Callable[..., Decoders], pool: ThreadPoolExecutor, slow: str
) -> None:
    future = pool.submit(decode, make(), slow)
    (child,) = wait_for(lambda: busy(os.getpid()))
    os.kill(child, signal.SIGKILL)
    assert future.result().media_type == "image/gif"


@linux
def test_a_decoder_that_crashes_each_time_means_a_damaged_image_and_no_more(
    make: Callable[..., Decoders], pool: ThreadPoolExecutor, endless: str, image: str
) -> None:
    decoders = make()
    future: Future[Any] = pool.submit(failure, decoders, endless)
    for _ in range(2):
        (child,) = wait_for(lambda: busy(os.getpid()))
        os.kill(child, signal.SIGSEGV)
        wait_for(partial(is_gone, child))
    found = future.result()
    assert (found.reason, found.detail, found.blame) == (
        Reason.DAMAGED,
        "the decoder crashed (SIGSEGV)",
        Blame.IMAGE,
    )
    assert decode(decoders, image).media_type == "image/png"


@linux
def test_a_child_that_died_while_idle_is_replaced(make: Callable[..., Decoders], image: str) -> None:
    decoders, seen = make(), set()
    for _ in range(3):
        decode(decoders, image)
        (child,) = children(os.getpid())
        seen.add(child)
        os.kill(child, signal.SIGKILL)
        wait_for(partial(is_gone, child))
    assert len(seen) == 3


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_meant_for_the_parent_does_not_end_a_child(
    make: Callable[..., Decoders], image: str, number: signal.Signals
) -> None:
    decoders = make()
    decode(decoders, image)
    (child,) = children(os.getpid())
    os.kill(child, number)
    decode(decoders, image)
    assert children(os.getpid()) == {child}


# Limits -----------------------------------------------------------------------------------------------------------


def test_what_takes_too_much_time_of_a_processor_is_too_large(
    make: Callable[..., Decoders], endless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("image_loader.decoding.pool._PATIENCE", 60.0)
    found = failure(make(decoding_time=1), endless)
    assert (found.reason, found.detail) == (Reason.TOO_LARGE, "takes more than 1 s of a processor to decode")


@linux
def test_what_is_not_decoded_in_time_is_cut_off(make: Callable[..., Decoders], endless: str, image: str) -> None:
    decoders = make()
    decode(decoders, image)
    found = failure(decoders, endless, 0.2)
    assert (found.reason, found.retryable) == (Reason.DEADLINE, False)
    assert not children(os.getpid())


@linux
def test_a_child_that_sleeps_is_cut_off_by_the_clock(
    make: Callable[..., Decoders], pool: ThreadPoolExecutor, endless: str
) -> None:
    future = pool.submit(failure, make(decoding_time=1), endless)
    (child,) = wait_for(lambda: busy(os.getpid()))
    os.kill(child, signal.SIGSTOP)
    assert future.result().reason is Reason.DEADLINE


def test_what_takes_too_much_memory_is_too_large(make: Callable[..., Decoders], tmp_path: Path, image: str) -> None:
    decoders = make(decoding_memory=1_000_000)
    Image.new("RGB", (6000, 6000)).save(tmp_path / "large.png")
    found = failure(decoders, str(tmp_path / "large.png"))
    assert (found.reason, found.detail) == (Reason.TOO_LARGE, "needs more than 68 MB of memory to decode")
    assert decode(decoders, image).media_type == "image/png"


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("side", [1400, 2600])
def test_a_large_image_gets_the_memory_that_it_takes(
    make: Callable[..., Decoders], tmp_path: Path, format_name: str, side: int
) -> None:
    path = tmp_path / "large"
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"progressive": True, "subsampling": 0},
        "AVIF": {"subsampling": "4:4:4", "speed": 10},
    }
    picture = Image.effect_noise((side, side), 5).convert("RGB")
    picture.save(path, format_name, **options.get(format_name, {}))
    assert decode(make(), str(path)).width == side


def test_what_is_too_large_for_one_process_of_several_is_decoded_by_one_at_a_time(
    make: Callable[..., Decoders], tmp_path: Path, image: str
) -> None:
    Image.new("RGBA", (5000, 5000)).save(tmp_path / "large.png")
    decoders = make(decoding_memory=200_000_000, processes=8)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # As another process does.
        with pytest.raises(DownloadError, match="not decoded in time"):
            decoders.decode(str(tmp_path / "large.png"), time.monotonic() + 0.5)
        assert decode(decoders, image).media_type == "image/png"
    finally:
        os.close(descriptor)
    assert decode(decoders, str(tmp_path / "large.png")).width == 5000


@pytest.mark.slow
def test_large_images_take_turns(make: Callable[..., Decoders], pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    Image.new("RGBA", (9000, 9000)).save(tmp_path / "large.png")
    decoders = make(decoding_memory=400_000_000)
    over = threading.Event()

    def peak() -> int:
        most = 0
        while not over.wait(0.002):
            most = max(most, sum(_resident(child) for child in children(os.getpid())))
        return most

    watching = pool.submit(peak)
    futures = [pool.submit(decode, decoders, str(tmp_path / "large.png")) for _ in range(4)]
    assert {future.result().width for future in futures} == {9000}
    over.set()
    assert 324_000_000 < watching.result() < 500_000_000


def _resident(process: int) -> int:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096
    return 0


@linux
def test_a_child_that_holds_on_to_memory_is_replaced(make: Callable[..., Decoders], tmp_path: Path) -> None:
    decoders = make()
    (tmp_path / "names.svg").write_bytes(
        b"<svg>" + b"".join(b"<a%d/>" % number for number in range(400_000)) + b"</svg>"
    )
    decode(decoders, str(tmp_path / "names.svg"))
    assert not children(os.getpid())


# Starting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere/python"])
def test_where_no_child_can_be_started_the_run_ends(
    make: Callable[..., Decoders], image: str, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(OptionError, match="--verify"):
        decode(make(), image)


def test_a_pillow_that_cannot_be_imported_is_told(
    make: Callable[..., Decoders], image: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "PIL.py").write_text("raise ImportError('libjpeg is not here')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OptionError, match="libjpeg is not here"):
        decode(make(), image)


def test_without_descriptors_the_process_is_to_blame(make: Callable[..., Decoders], image: str) -> None:
    code = (
        "import resource, sys, time\n"
        "from pathlib import Path\n"
        "from conftest import SETTINGS, limited\n"
        "from image_loader.decoding.pool import Decoders\n"
        "from image_loader.errors import DownloadError\n"
        "decoders = Decoders(SETTINGS, Path())\n"
        "try:\n"
        "    with limited(resource.RLIMIT_NOFILE, 5):\n"
        f"        decoders.decode({image!r}, time.monotonic() + 60)\n"
        "except DownloadError as error:\n"
        "    print(error.failure.reason, error.failure.retryable, error.failure.blame.name)\n"
    )
    run = in_another_process(code)
    assert run.stdout == "write True PROCESS\n", run.stderr


# The end ----------------------------------------------------------------------------------------------------------


@linux
def test_closing_ends_children_at_work_and_who_waits_for_them(
    make: Callable[..., Decoders], pool: ThreadPoolExecutor, endless: str
) -> None:
    decoders = make()
    futures = [pool.submit(failure, decoders, endless) for _ in range(20)]
    wait_for(lambda: len(busy(os.getpid())) > 1)
    decoders.close()
    assert {future.result(PROMPT).reason for future in futures} == {Reason.INTERRUPTED}
    assert not children(os.getpid())
    assert failure(decoders, endless).reason is Reason.INTERRUPTED


@pytest.fixture
def endless_server(endless: str) -> Iterator[Server]:
    answer = response(Path(endless).read_bytes(), "image/gif")
    with Scripted(plays(answer)) as made:
        yield made


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_the_command(endless_server: Server, loader: Loader, number: signal.Signals) -> None:
    running = loader.start([endless_server.url(f"/{each}.gif") for each in range(20)], "--verify", process_group=0)
    at_work = wait_for(lambda: busy(running.process.pid))
    started = children(running.process.pid)
    os.killpg(running.process.pid, number)
    status = running.process.wait(PROMPT)
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    wait_for(lambda: all(map(is_gone, at_work | started)), PROMPT)
    if number != signal.SIGKILL:
        assert leftovers(loader.directory) == []


@linux
def test_max_time_holds_while_an_image_is_decoded(endless_server: Server, loader: Loader) -> None:
    url = endless_server.url("/a.gif")
    run = loader.run([url], "--verify", "--max-time", "2")
    assert run.row(url)["reason"] == "deadline", "the limit of processor time would come later, with another reason"


# Standard error ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[tuple[list[str], Server]]:
    """Sound images, one by one with damaged TIFFs."""
    damaged = broken_tiff(tmp_path / "sound.tif")

    def answer(request: Any) -> Any:
        if request.path.endswith(".tif"):
            return [response(damaged, "image/tiff")]
        return [response(png(request.path, 200_000), "image/png")]

    with Scripted(answer) as server:
        yield [server.url(f"/{number}.{suffix}") for number in range(30) for suffix in ("png", "tif")], server


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_image_holds_what_a_decoder_writes_on_standard_error(
    mixed: tuple[list[str], Server], loader: Loader, closed: str
) -> None:
    urls, _ = mixed
    command = ("sh", "-c", f'exec "$0" "$@" {closed}', *MODULE)
    run = loader.run(urls, "--verify", command=command)
    assert run.counts == (30, 0, 0, 30)
    assert {row["reason"] for row in run.rows} == {None, "damaged"}
    for url in urls[::2]:
        assert run.content(url) == png("/" + url.rpartition("/")[2], 200_000)


def test_a_full_pipe_as_standard_error_blocks_no_decoder(mixed: tuple[list[str], Server], loader: Loader) -> None:
    urls, _ = mixed
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    running = loader.start(urls, "--verify", "-q", stderr=writing)
    os.close(writing)
    assert running.finish().status == 1
    os.close(reading)


def test_quiet_is_quiet_whatever_a_decoder_has_to_say(mixed: tuple[list[str], Server], loader: Loader) -> None:
    urls, _ = mixed
    run = loader.run(urls, "--verify", "-q")
    assert (run.status, run.stderr) == (1, "")
    assert run.counts == (30, 0, 0, 30)


@linux
@pytest.mark.parametrize("limit", [250_000, 400_000])
def test_where_memory_is_limited_a_sound_image_is_not_called_damaged(
    tmp_path: Path, loader: Loader, limit: int
) -> None:
    Image.effect_noise((7000, 7000), 5).convert("RGB").save(tmp_path / "large.jpg", progressive=True, subsampling=0)
    content = (tmp_path / "large.jpg").read_bytes()
    with Scripted(plays(response(content, "image/jpeg"))) as server:
        url = server.url("/a.jpg")
        command = ("sh", "-c", f'ulimit -v {limit}; exec "$0" "$@"', *MODULE)
        run = loader.run([url], "--verify", "--threads", "2", command=command)
    assert run.row(url)["reason"] in (None, "too-large"), run.row(url)
