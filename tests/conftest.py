"""Fixtures: servers, and the real command in a process of its own."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

import pytest
import trustme
from hypothesis import HealthCheck, settings

from image_loader.loader import DEFAULTS, settings_of
from server import Server
from terminal import Clock, Terminal

if TYPE_CHECKING:
    from asking import Asking

SOURCES = Path(__file__).parents[1] / "src"
MODULE = (sys.executable, "-m", "image_loader")
IMPATIENT_FAILURES = 2
"""How often in a row a host may fail or refuse before an impatient command looks at its patience."""


def impatient(patience: float) -> tuple[str, ...]:
    """Return the command with less patience for hosts; half a minute would be a long time for a test.

    Nor does it take itself for stopped (SIGSTOP) where a busy machine lets it notice a deadline late.
    """
    code = "from image_loader import errors, loader\nerrors._LATE = float('inf')\n"
    code += f"loader.HOST_PATIENCE, loader.HOST_FAILURES = {patience}, {IMPATIENT_FAILURES}\nloader.main()"
    return (sys.executable, "-c", code)


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCES)}
"""That of a process of its own which imports the package."""
SUMMARY = re.compile(r"(\d+) URLs?: (\d+) saved(?: \([^)]*\))?, (\d+) fresh, (\d+) skipped, (\d+) failed in [\d.]+ s")
_FOREIGN = re.compile(r"(?i).*_proxy|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|NETRC|SSL_CERT_.*|NO_COLOR|PYTHONPATH|TQDM_.*")

SETTINGS = settings_of(
    {
        **DEFAULTS, "directory": "unused", "threads": 8, "per_host": 4, "timeout": 5.0, "max_time": 10.0,
        "retries": 0, "max_size": 10_000_000, "user_agent": "test/1",
    }
)._replace(
    window=100, window_size=10**6, window_hosts=100, batch=10, chunk=65536, connects=64, host_failures=3
)  # fmt: skip
"""Those of a short run; a test changes what it is about."""

CLOCK_STEP = 0.02
"""Seconds after which a file system's clock, which is behind by some milliseconds, tells a later time than ours did."""

# A shell that starts the tests in the background has them, and all that they start, ignore SIGINT; nohup, SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A test is about what is right; how long it takes is the machine's matter.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

WORKERS = 4
"""Processes that run the whole suite, at least: most tests wait for a process, a server or a limit."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return in how many processes the tests run; those that were named run in one."""
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return max(WORKERS, os.cpu_count() or 1) if is_whole and not config.getoption("usepdb") else 0


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long bytes by their place; with what they hold (a time, in gzip), each worker would have other tests."""
    return argname if isinstance(val, bytes) and len(val) > 50 else None


Urls = Sequence[str] | bytes | Path
Row = Mapping[str, Any]


def is_of_line(row: Row) -> bool:
    """Whether a row is that of a line, and not of an image that is no longer in the list."""
    return bool(row["url"]) or row["file"] is None


@dataclass(frozen=True)
class Run:
    """One run of the command that has ended; ``rows`` are those of ``--results``.

    ``files`` are what stood in the directory then, but for its hidden ones; ``peak`` is memory, in bytes.
    """

    status: int
    stderr: str
    rows: tuple[Row, ...]
    directory: Path
    files: frozenset[str]
    peak: int

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Saved, fresh, skipped, failed, as the rows have it."""
        statuses = [row["status"] for row in self.rows if is_of_line(row)]
        saved, fresh, skipped, failed = map(statuses.count, ("saved", "fresh", "skipped", "failed"))
        return saved, fresh, skipped, failed

    @property
    def summary(self) -> tuple[int, ...]:
        """Lines, saved, fresh, skipped, failed, as the summary has it; empty where there is none."""
        found = SUMMARY.findall(self.stderr)
        return tuple(map(int, found[-1])) if found else ()

    def row(self, url: str) -> Row:
        """Return the one row of a URL."""
        (row,) = [row for row in self.rows if row["url"] == url]
        return row

    def content(self, url: str) -> bytes:
        """Return what was saved for a URL."""
        return (self.directory / str(self.row(url)["file"])).read_bytes()


def _files(directory: Path) -> frozenset[str]:
    """Name the files that stand in the directory, but for its hidden ones."""
    below = (path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir())
    return frozenset(path.as_posix() for path in below if ".image_loader" not in path.parts)


class Running:
    """One run of the command that is under way."""

    def __init__(self, process: subprocess.Popen[bytes], stdout: IO[bytes], stderr: IO[bytes], loader: Loader) -> None:
        """Take over a process that was just started."""
        self.process = process
        self._stdout = stdout
        self._stderr = stderr
        self._results = loader.results
        self._directory = loader.directory

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    @property
    def told(self) -> str:
        """What was written to standard error so far."""
        return _content(self._stderr)

    def finish(self, seconds: float = 60) -> Run:
        """Wait for the end; standard output is always empty, and no traceback ever seen."""
        peak = self._wait(seconds)
        run = Run(
            self.process.returncode, self.told, _rows(self._results), self._directory, _files(self._directory), peak
        )
        assert _content(self._stdout) == ""
        assert "Traceback" not in run.stderr, run.stderr
        return run

    def end(self) -> None:
        """Kill the process, should it still run."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()
        self._stdout.close()
        self._stderr.close()

    def _wait(self, seconds: float) -> int:
        """Wait for the end; return the greatest memory seen in use, which ``wait4`` would mix up with our own."""
        give_up, peak = time.monotonic() + seconds, 0
        while self.process.poll() is None:
            assert time.monotonic() < give_up, f"still running after {seconds} s:\n{self.told}"
            peak = max(peak, _peak(self.process.pid))
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
        return peak


def _peak(process: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def open_files(process: int) -> list[str]:
    """Return what the descriptors of a process lead to, but for those that it closes meanwhile."""
    found = []
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            found.append(str(descriptor.readlink()))
    return found


def sockets_of(process: int) -> int:
    """Return how many sockets a process has open."""
    return sum(file.startswith("socket:") for file in open_files(process))


def _content(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), 1 << 26, 0).decode()


def _rows(results: Path) -> tuple[Row, ...]:
    if not results.exists():
        return ()
    return tuple(json.loads(line) for line in results.read_bytes().splitlines())


def in_another_process(
    code: str, *arguments: str, environment: Mapping[str, str] | None = None, seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which can import the modules of the tests, for so many ``seconds`` at most."""
    command = [sys.executable, "-c", code, *arguments]
    env, cwd = {**ENVIRONMENT, **(environment or {})}, Path(__file__).parent
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=seconds)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect no garbage meanwhile: what earlier tests have left would close its files just then."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def limited(kind: int, limit: int) -> Iterator[None]:
    """Lower one of the process's limits (``resource.RLIMIT_*``); its end needs the usual ones."""
    soft, hard = resource.getrlimit(kind)
    with without_garbage_collection():
        resource.setrlimit(kind, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(kind, (soft, hard))


class Loader:
    """Starts the real command, in a home of its own."""

    def __init__(self, home: Path) -> None:
        """Keep everything below ``home``: the lists, the images, the results."""
        self.home = home
        self.directory = home / "images"
        self.results = home / "rows.jsonl"
        self._lists = 0
        self._running: list[Running] = []

    def start(
        self,
        urls: Urls,
        *options: str,
        command: Sequence[str] = MODULE,
        environment: Mapping[str, str] | None = None,
        results: bool = True,
        **popen: Any,
    ) -> Running:
        """Start the command over a list: URLs, bytes for standard input, or a file.

        Unless ``results`` is false, the rows are written to a file and are part of the run.
        """
        self.results.unlink(missing_ok=True)
        arguments = [*command, *(["--results", str(self.results)] if results else []), *options]
        return self._launch([*arguments, *self._list(urls), str(self.directory)], urls, environment or {}, popen)

    def run(self, urls: Urls, *options: str, seconds: float = 60, **settings: Any) -> Run:
        """Run the command to its end, and see that every line was told."""
        run = self.start(urls, *options, **settings).finish(seconds)
        if run.summary and run.rows and run.status in (0, 1):
            assert run.summary == (len([*filter(is_of_line, run.rows)]), *run.counts), run.stderr
        return run

    def bare(self, *arguments: str, environment: Mapping[str, str] | None = None, **popen: Any) -> Run:
        """Run the command with just these arguments."""
        return self._launch([*MODULE, *arguments], (), environment or {}, popen).finish()

    def close(self) -> None:
        """End what still runs."""
        for each in self._running:
            each.end()

    def _list(self, urls: Urls) -> list[str]:
        if isinstance(urls, bytes):
            return ["-"]
        if isinstance(urls, Path):
            return [str(urls)]
        self._lists += 1
        path = self.home / f"urls-{self._lists}.txt"
        path.write_text("".join(url + "\n" for url in urls))
        return [str(path)]

    def _launch(
        self, arguments: list[str], urls: Urls, environment: Mapping[str, str], popen: dict[str, Any]
    ) -> Running:
        stdout, stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (they live as long as the run)
        with tempfile.TemporaryFile() as stdin:
            stdin.write(urls if isinstance(urls, bytes) else b"")
            stdin.seek(0)
            settings = {"cwd": self.home, "stdin": stdin, "stdout": stdout, "stderr": stderr, **popen}
            process = subprocess.Popen(arguments, env={**self._environment(), **environment}, **settings)
        running = Running(process, stdout, stderr, self)
        self._running.append(running)
        return running

    def _environment(self) -> dict[str, str]:
        """Return the environment, without what would lead the command elsewhere, and with a terminal to draw at."""
        kept = {name: value for name, value in os.environ.items() if not _FOREIGN.fullmatch(name)}
        sources = {"PYTHONPATH": str(SOURCES)} if SOURCES.is_dir() else {}
        return {**kept, **sources, "HOME": str(self.home), "TERM": "xterm"}


def targets(number: int, behaviour: str = "image", query: str = "") -> list[str]:
    """Return that many targets of one behaviour."""
    return [f"/{behaviour}/{count:04}.png{query}" for count in range(number)]


def urls_of(server: Server, number: int, behaviour: str = "image", query: str = "") -> list[str]:
    """Return the URLs of that many targets of one behaviour."""
    return [server.url(target) for target in targets(number, behaviour, query)]


def leftovers(directory: Path) -> list[str]:
    """Return the partial files that are left over."""
    return sorted(path.name for path in (directory / ".image_loader" / "partial").glob("*"))


def being_written(directory: Path) -> list[str]:
    """Return the partial files of a run that is under way, without the one that it makes for a moment as it starts."""
    return [name for name in leftovers(directory) if name != "probe"]


@pytest.fixture
def server() -> Iterator[Server]:
    """One origin."""
    with Server() as running:
        yield running


@pytest.fixture
def new_server() -> Iterator[Callable[..., Server]]:
    """Make further origins."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(Server(**settings))


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority that nobody trusts unless told to."""
    return trustme.CA()


@pytest.fixture(scope="session")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """The context of a server whose certificate is right."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def bundle(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file to trust it by."""
    path = tmp_path_factory.mktemp("trust") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep out what would lead requests elsewhere, or lend them passwords."""
    for name in filter(_FOREIGN.fullmatch, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def asking(own_environment: None) -> Iterator[Asking]:
    """A transport with the settings of most tests."""
    from asking import transport  # It needs the settings above.

    with transport() as made:
        yield made


@pytest.fixture
def ordinary() -> tuple[str, ...]:
    """Command that is bound by permissions, also where it is root's."""
    if os.geteuid() != 0:
        return MODULE
    if shutil.which("setpriv") is None:
        pytest.skip("takes `setpriv`, since root is bound by no permission")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", *MODULE)


@pytest.fixture
def loader(tmp_path: Path) -> Iterator[Loader]:
    """The command, at home in the test's own directory."""
    with closing(Loader(tmp_path)) as home:
        yield home


@pytest.fixture
def run_loader(loader: Loader) -> Callable[..., Run]:
    """Run the command to its end."""
    return loader.run


@pytest.fixture
def start_loader(loader: Loader) -> Callable[..., Running]:
    """Start the command."""
    return loader.start


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal of 80 columns."""
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal(80)
    yield terminal
    terminal.close()


@pytest.fixture
def clock() -> Clock:
    """A clock that the test sets."""
    return Clock()


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe: the descriptor to read from, and the stream to write to."""
    read, write = os.pipe()
    with os.fdopen(write, "w", encoding="utf-8") as stream:
        yield read, stream
    os.close(read)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of the tests."""
    logger = logging.getLogger("tests")
    logger.propagate = False
    yield logger
    logger.handlers.clear()
