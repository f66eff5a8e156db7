"""Promises of a run on a cluster, with a real scheduler and real workers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TextIO

import pytest
import trustme

from conftest import SOURCES, Loader, Run, leftovers, open_files, targets, urls_of
from image_loader import __version__
from image_loader.url import part
from server import Server, refusing_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="takes the addresses 127.0.0.2 and so on, and /proc"),
]
pytest.importorskip("distributed", reason="takes the extra 'cluster'")

PARTS = 256
WAIT = 60.0
BEGIN = "with ExitStack() as stack:\n        store = opened("
"""Where ``batch.run`` begins."""
NO_SPACE = "from image_loader.errors import LoaderError\n    raise LoaderError('no space')"


class Cluster:
    """A scheduler and workers, started by their command lines."""

    def __init__(self, home: Path, environment: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.file = home / "scheduler.json"
        self.logs: list[Path] = []
        self._environment = {
            **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
            "PYTHONPATH": str(SOURCES),
            "DASK_TEMPORARY_DIRECTORY": str(home / "scratch"),
            **(environment or {}),
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file))
        self.scheduler = self._start("scheduler", *options)
        # It is there before it is written.
        _wait(lambda: self.file.exists() and self.file.read_text().endswith("}"))

    @property
    def address(self) -> str:
        """The scheduler's address."""
        return str(json.loads(self.file.read_text())["address"])

    @property
    def told(self) -> str:
        """All that the scheduler and the workers have logged."""
        return "".join(log.read_text() for log in self.logs)

    def worker(self, *options: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until the scheduler has it."""
        own = ("--scheduler-file", str(self.file), "--nthreads", "1", "--no-dashboard", *options)
        started = self._start("worker", *own, environment=environment)
        log = self.logs[-1]
        _wait(lambda: "Registered to" in log.read_text())
        return started

    def close(self) -> None:
        """End all of them."""
        for each in reversed(self._processes):
            with suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGKILL)
            each.wait()

    def _start(self, kind: str, *options: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        log = self.home / f"{kind}-{len(self.logs)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{kind}", *options],
                cwd=self.home,
                env={**self._environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.logs.append(log)
        self._processes.append(process)
        return process


def _wait(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < give_up, "in vain"
        time.sleep(0.02)


def _command(code: str) -> tuple[str, ...]:
    """Return the command after a line of code that changes a constant."""
    return (sys.executable, "-c", f"{IMPORTS}\n{code}\nloader.main()")


IMPORTS = "from image_loader import loader\nfrom image_loader.cluster import dask, driver"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler without workers."""
    with closing(Cluster(tmp_path)) as made:
        yield made


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Twelve hosts."""
    with ExitStack() as stack:
        yield [stack.enter_context(Server(name=str(number), address=f"127.0.0.{number}")) for number in range(2, 14)]


def _fresh_for_an_hour(servers: Sequence[Server], all_targets: Sequence[str]) -> None:
    for server in servers:
        for target in all_targets:
            server.headers[target] = {"Cache-Control": "max-age=3600"}


def _assert_told_once(run: Run, urls: Sequence[str]) -> None:
    assert Counter(row["url"] for row in run.rows) == Counter(urls)


def _assert_whole(run: Run, servers: Sequence[Server]) -> None:
    """See that each image that stands there is one of these servers', and that nothing is left over."""
    images = {row["url"]: row["file"] for row in run.rows if row["status"] in ("saved", "fresh")}
    for server in servers:
        for url, file in images.items():
            if url.startswith(server.origin + "/"):
                assert (run.directory / file).read_bytes() == server.image(url.removeprefix(server.origin))
                assert file.startswith(f"{part(server.address, PARTS):02x}/")
    for folder in run.directory.iterdir():
        assert leftovers(folder) == []
    assert list((run.directory / ".image_loader" / "cluster").iterdir()) == []


def _requests(servers: Sequence[Server]) -> int:
    return sum(len(server.requests) for server in servers)


# What a run does --------------------------------------------------------------------------------------------------


def test_two_workers_do_what_one_machine_does_and_one_finds_all_of_it_again(
    cluster: Cluster, servers: list[Server], loader: Loader
) -> None:
    first = cluster.worker()
    cluster.worker("--no-nanny")
    _fresh_for_an_hour(servers, targets(20))
    good = [url for server in servers for url in urls_of(server, 20)]
    others = ["no URL", "ftp://h/a.png", *(server.url("/status-404/gone.png") for server in servers)]
    urls = [*good, *others, *good[::7]]
    run = loader.run(urls, "--cluster", cluster.address)
    assert run.status == 1
    assert run.counts == (len(good), 0, len(good[::7]), len(others))
    _assert_told_once(run, urls)
    _assert_whole(run, servers)
    assert run.files == {row["file"] for row in run.rows if row["status"] == "saved"}
    assert {row["reason"] for row in run.rows} == {None, "duplicate", "bad-url", "http-status"}
    first.terminate()
    first.wait()
    asked = _requests(servers)
    again = loader.run(good, "--cluster", str(cluster.file))
    assert (again.status, again.counts, again.files) == (0, (0, len(good), 0, 0), run.files)
    assert _requests(servers) == asked


def test_names_from_a_table_and_decoding_work_on_a_cluster(
    cluster: Cluster, servers: list[Server], loader: Loader
) -> None:
    cluster.worker()
    rows = [f"{server.url('/image/a.png')},pictures/{number}.png" for number, server in enumerate(servers)]
    table = loader.home / "feed.csv"
    table.write_text("\n".join(["url,name", *rows]) + "\n")
    options = ("--url-column", "url", "--name-column", "name", "--verify", "-H", "X-Name: value")
    run = loader.run(table, *options, "--cluster", str(cluster.file), "--report", str(loader.home / "report.html"))
    assert (run.status, run.counts) == (0, (len(servers), 0, 0, 0)), run.stderr
    folders = [f"{part(server.address, PARTS):02x}" for server in servers]
    assert run.files == {f"{folder}/pictures/{number}.png" for number, folder in enumerate(folders)}
    assert all(row["width"] for row in run.rows)
    assert all(request.headers["x-name"] == "value" for server in servers for request in server.requests)
    assert (loader.home / "report.html").stat().st_size > 1000


def test_a_list_that_ends_early_is_told_and_done_as_far_as_it_goes(
    cluster: Cluster, servers: list[Server], loader: Loader
) -> None:
    import gzip

    cluster.worker("--no-nanny")
    urls = [url for server in servers for url in urls_of(server, 10)]
    path = loader.home / "urls.gz"
    path.write_bytes(gzip.compress("\n".join(urls).encode())[:-20])
    run = loader.run(path, "--cluster", str(cluster.file))
    assert run.status == 2
    assert "gzip data damaged or cut off" in run.stderr
    assert run.counts[0] == len(run.rows) == len(run.files) > 0


def test_the_library_runs_on_a_cluster_as_well(cluster: Cluster, servers: list[Server], loader: Loader) -> None:
    cluster.worker("--no-nanny")
    urls = [url for server in servers for url in urls_of(server, 2)]
    code = (
        "import gc, json, logging, sys\nimport distributed\nfrom image_loader import load\n"
        "names = [n for n in logging.root.manager.loggerDict if n.startswith('distributed')]\n"
        "levels = lambda: [logging.getLogger(name).getEffectiveLevel() for name in names]\n"
        "given = levels()\n"
        "urls, directory, address = json.load(sys.stdin)\n"
        "assert [o.status for o in load(urls, directory, cluster=address)] == ['saved'] * len(urls)\n"
        "run = load(urls, directory, cluster=address)\nnext(run)\nduring = levels()\n"
        "loop = next(each for each in gc.get_objects() if type(each) is distributed.Client).loop\n"
        "fail = lambda: loop.asyncio_loop.create_future().set_exception(TimeoutError('that nobody waits for'))\n"
        "loop.add_callback(fail)\nrun.close()\n"
        "assert set(during) == {logging.CRITICAL} and levels() == given\n"
        "assert {o.status for o in load(urls, directory, cluster=address)} == {'fresh'}\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([urls, str(loader.directory), cluster.address]),
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_tls_as_in_the_users_configuration_of_dask(tmp_path: Path, server: Server, loader: Loader) -> None:
    authority = trustme.CA()
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(str(files["ca"]))
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(files["key"]))
    for pem in issued.cert_chain_pems:
        pem.write_to_path(str(files["cert"]), append=True)
    comm = "DASK_DISTRIBUTED__COMM__"
    environment = {f"{comm}TLS__CA_FILE": str(files["ca"]), f"{comm}REQUIRE_ENCRYPTION": "true"}
    for who in ("SCHEDULER", "WORKER", "CLIENT"):
        environment[f"{comm}TLS__{who}__CERT"] = str(files["cert"])
        environment[f"{comm}TLS__{who}__KEY"] = str(files["key"])
    with closing(Cluster(tmp_path, {**environment, f"{comm}DEFAULT_SCHEME": "tls"})) as cluster:
        cluster.worker("--no-nanny")
        assert cluster.address.startswith("tls://")
        urls = urls_of(server, 5)
        assert loader.run(urls, "--cluster", cluster.address, environment=environment).counts == (5, 0, 0, 0)
        run = loader.run(urls, "--cluster", cluster.address, command=_command("dask._SCHEDULER_PATIENCE = 1"))
        assert run.status == 2
        assert "the scheduler cannot be used" in run.stderr


def test_the_drivers_memory_does_not_grow_with_the_list(cluster: Cluster, loader: Loader) -> None:
    cluster.worker("--no-nanny")
    peaks = []
    with refusing_port() as port:
        for count in (10_000, 100_000):
            hosts = [f"127.0.0.{number}" for number in range(2, 200)]
            urls = [f"http://{hosts[number % 198]}:{port}/{number}.png" for number in range(count)]
            command = _command("loader.HOST_FAILURES, loader.HOST_PATIENCE = 1, 0.0")
            run = loader.run(urls, "--cluster", str(cluster.file), "--retries", "0", "-q", command=command)
            assert run.counts == (0, 0, 0, count)
            _assert_told_once(run, urls)
            peaks.append(run.peak)
    assert peaks[1] < peaks[0] + 12_000_000


# Ends that come too early -----------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_loses_nothing(cluster: Cluster, servers: list[Server], loader: Loader) -> None:
    first = cluster.worker("--no-nanny")
    cluster.worker("--no-nanny")
    _fresh_for_an_hour(servers, targets(20))
    good = [url for server in servers for url in urls_of(server, 20)]
    held = [server.url("/held/last.png") for server in servers]
    running = loader.start([*good, *held], "--cluster", str(cluster.file))
    # Each worker is at one part, of which all but one image is saved. A part may be that of two hosts.
    servers[0].wait_for(lambda: sum(server.at_work == 1 for server in servers) >= 2)
    _wait(lambda: _recorded(loader.directory) >= 40)
    first.kill()
    for server in servers:
        server.gate.set()
    run = running.finish()
    assert (run.status, run.counts[2:]) == (0, (0, 0)), run.stderr
    _assert_told_once(run, [*good, *held])
    _assert_whole(run, servers)
    assert all(len(server.asked(target)) == 1 for server in servers for target in targets(20))


def _recorded(directory: Path) -> int:
    """Return how many images the indexes have; copies of them are read, since the tasks have them alone."""
    found = 0
    for index in directory.glob("*/.image_loader/index.sqlite3"):
        with tempfile.TemporaryDirectory() as home:
            for suffix in ("", "-wal"):
                with suppress(FileNotFoundError):
                    shutil.copy(f"{index}{suffix}", home)
            with closing(sqlite3.connect(Path(home) / index.name)) as database, suppress(sqlite3.Error):
                found += database.execute("SELECT count(size) FROM image").fetchone()[0]
    return found


def test_a_driver_that_is_killed_leaves_tasks_that_end_and_a_directory_that_the_next_one_takes_on(
    cluster: Cluster, servers: list[Server], loader: Loader
) -> None:
    cluster.worker("--no-nanny")
    urls = [url for server in servers for url in [*urls_of(server, 20), *urls_of(server, 1, "held/more")]]
    running = loader.start(urls, "--cluster", str(cluster.file), command=_command("driver.DRIVER_PATIENCE = 2"))
    servers[0].wait_for(lambda: any(server.at_work for server in servers))
    running.send(signal.SIGKILL)
    assert running.finish().status == -signal.SIGKILL
    # Its task ends by itself, though no answer comes.
    servers[0].wait_for(lambda: not any(server.at_work for server in servers))
    for server in servers:
        server.gate.set()
    run = loader.run(urls, "--cluster", str(cluster.file))
    assert (run.status, run.counts[2:]) == (0, (0, 0)), run.stderr
    _assert_told_once(run, urls)
    _assert_whole(run, servers)


def test_the_next_driver_ends_the_tasks_of_one_that_was_killed(
    cluster: Cluster, servers: list[Server], loader: Loader
) -> None:
    cluster.worker("--no-nanny")
    urls = [server.url("/held/a.png") for server in servers]
    running = loader.start(urls, "--cluster", str(cluster.file))
    servers[0].wait_for(lambda: any(server.at_work for server in servers))
    running.send(signal.SIGKILL)
    running.finish()
    asked = _requests(servers)
    again = loader.start(urls, "--cluster", str(cluster.file))
    servers[0].wait_for(lambda: _requests(servers) > asked)
    for server in servers:
        server.gate.set()
    run = again.finish()
    assert (run.status, run.counts) == (0, (len(urls), 0, 0, 0)), run.stderr
    _assert_whole(run, servers)


def test_a_scheduler_that_is_killed_ends_the_run_and_every_line_is_told(
    cluster: Cluster, servers: list[Server], loader: Loader
) -> None:
    cluster.worker("--no-nanny")
    urls = [url for server in servers for url in [*urls_of(server, 5), *urls_of(server, 1, "held/more")]]
    running = loader.start(urls, "--cluster", str(cluster.file))
    servers[0].wait_for(lambda: any(server.at_work for server in servers))
    cluster.scheduler.kill()
    run = running.finish()
    assert run.status == 2
    assert "scheduler" in run.stderr
    _assert_told_once(run, urls)
    assert list((run.directory / ".image_loader" / "cluster").iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_within_ten_seconds_and_every_line_is_told(
    cluster: Cluster, servers: list[Server], loader: Loader, number: signal.Signals, status: int
) -> None:
    cluster.worker("--no-nanny")
    urls = [url for server in servers for url in [*urls_of(server, 5), *urls_of(server, 5, "held/more")]]
    running = loader.start(urls, "--cluster", str(cluster.file))
    servers[0].wait_for(lambda: any(server.at_work == 5 for server in servers))
    running.send(number)
    run = running.finish(10)
    assert run.status == status
    _assert_told_once(run, urls)
    assert {row["reason"] for row in run.rows} <= {None, "interrupted"}
    assert run.files == {row["file"] for row in run.rows if row["status"] == "saved"}
    assert len(run.files) >= 5
    _assert_whole(run, servers)
    for server in servers:
        server.gate.set()
    again = loader.run(urls, "--cluster", str(cluster.file))
    assert (again.status, again.counts[2:]) == (0, (0, 0))


def test_a_run_whose_workers_are_all_gone_ends(cluster: Cluster, server: Server, loader: Loader) -> None:
    worker = cluster.worker("--no-nanny")
    urls = [*urls_of(server, 3), server.url("/held/a.png")]
    command = _command("dask._WORKER_PATIENCE, dask._COUNT_INTERVAL = 2, 0.1")
    running = loader.start(urls, "--cluster", str(cluster.file), command=command)
    server.wait_for(lambda: server.at_work == 1)
    worker.kill()
    run = running.finish()
    assert run.status == 2
    assert "no worker for 2 s" in run.stderr
    _assert_told_once(run, urls)


def test_a_worker_that_does_not_answer_ends_the_run(cluster: Cluster, server: Server, loader: Loader) -> None:
    cluster.worker("--no-nanny").send_signal(signal.SIGSTOP)
    command = _command("dask._WORKER_PATIENCE = 2")
    run = loader.run(urls_of(server, 1), "--cluster", str(cluster.file), command=command)
    assert run.status == 2
    assert "does not answer" in run.stderr
    assert list((run.directory / ".image_loader" / "cluster").iterdir()) == []


def test_a_signal_while_the_list_is_read_ends_the_run_and_every_line_is_told(
    cluster: Cluster, server: Server, loader: Loader, pipe: tuple[int, TextIO]
) -> None:
    read, write = pipe
    cluster.worker("--no-nanny")
    urls = urls_of(server, 500)
    running = loader.start(b"", "--cluster", str(cluster.file), stdin=read)
    write.write("\n".join([*urls, "no URL", ""]))
    write.flush()
    _wait(lambda: loader.results.exists() and "no URL" in loader.results.read_text())
    running.send(signal.SIGTERM)
    run = running.finish(10)
    assert run.status == 143
    _assert_told_once(run, [*urls, "no URL"])
    assert server.requests == []


def test_an_attempt_whose_worker_was_given_up_keeps_the_next_one_out_until_it_ends(
    tmp_path: Path, server: Server, loader: Loader
) -> None:
    _fresh_for_an_hour([server], targets(20))
    urls = [*urls_of(server, 20), server.url("/held/last.png")]
    with closing(Cluster(tmp_path, {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "3s"})) as cluster:
        zombie = cluster.worker("--no-nanny")
        running = loader.start(urls, "--cluster", str(cluster.file))
        _wait(lambda: _recorded(loader.directory) == 20)
        server.wait_for(lambda: server.at_work == 1)
        zombie.send_signal(signal.SIGSTOP)
        scheduler = cluster.logs[0]
        second = cluster.worker("--no-nanny")
        _wait(lambda: "Worker failed to heartbeat" in scheduler.read_text())
        # The part's lock is open twice: by the attempt that stands still, and by the one that waits for it.
        (lock,) = (loader.directory / ".image_loader" / "locks").iterdir()
        _wait(lambda: str(lock) in open_files(second.pid))
        assert len(server.requests) == 21
        zombie.send_signal(signal.SIGCONT)
        server.gate.set()
        run = running.finish()
    assert (run.status, run.counts[2:]) == (0, (0, 0)), run.stderr
    _assert_told_once(run, urls)
    _assert_whole(run, [server])
    assert all(len(server.asked(target)) == 1 for target in targets(20))


def test_a_part_that_kills_its_workers_is_given_up(tmp_path: Path, servers: list[Server], loader: Loader) -> None:
    deadly = f"{part(servers[0].address, PARTS):02x}"
    dying = f"import os\n    if settings.directory.name == '{deadly}':\n        os._exit(1)\n    "
    sources = _copy(tmp_path, "batch.py", BEGIN, dying + BEGIN)
    urls = [server.url("/image/a.png") for server in servers]
    with closing(Cluster(tmp_path, {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"})) as cluster:
        cluster.worker(environment={"PYTHONPATH": str(sources)})
        run = loader.run(urls, "--cluster", str(cluster.file))
    assert run.status == 1
    assert f"part {deadly} was not done: every worker that it was given to died" in run.stderr
    _assert_told_once(run, urls)
    # A part that waited on the same worker may be suspected as well.
    lost = {row["url"] for row in run.rows if row["reason"] == "interrupted"}
    assert urls[0] in lost
    assert len(lost) < len(urls) / 2
    assert run.counts == (len(urls) - len(lost), 0, 0, len(lost))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("cluster/files.py", "self.told += 1", "self.told += 2"), "rows are missing; check the disk"),
        (("batch.py", BEGIN, f"{NO_SPACE}\n    {BEGIN}"), "no space"),
    ],
    ids=["rows", "fault"],
)
def test_a_fault_on_a_worker_ends_the_run_and_every_line_is_told_once(
    cluster: Cluster, servers: list[Server], loader: Loader, change: tuple[str, str, str], told: str
) -> None:
    cluster.worker("--no-nanny", environment={"PYTHONPATH": str(_copy(loader.home, *change))})
    urls = [url for server in servers for url in urls_of(server, 3)]
    run = loader.run(urls, "--cluster", str(cluster.file))
    assert run.status == 2
    assert re.search(rf"loader: part [0-9a-f]{{2}}: {told}", run.stderr)
    _assert_told_once(run, urls)


# What is refused --------------------------------------------------------------------------------------------------


def test_a_directory_is_of_one_kind(cluster: Cluster, server: Server, loader: Loader) -> None:
    cluster.worker("--no-nanny")
    urls = urls_of(server, 3)
    assert loader.run(urls, "--cluster", str(cluster.file)).status == 0
    for options in ((), ("--dry-run",)):
        run = loader.run(urls, *options)
        assert run.status == 2
        assert "was filled with --cluster; use --cluster" in run.stderr
    (loader.directory / ".image_loader" / "partitions").write_text("16\n")
    run = loader.run(urls, "--cluster", str(cluster.file))
    assert run.status == 2
    assert "is divided into 16 parts, not 256" in run.stderr
    loader.directory = loader.home / "single"
    assert loader.run(urls).status == 0
    run = loader.run(urls, "--cluster", str(cluster.file))
    assert run.status == 2
    assert "was filled without --cluster" in run.stderr


def test_one_driver_at_a_time(cluster: Cluster, server: Server, loader: Loader) -> None:
    cluster.worker("--no-nanny")
    running = loader.start([server.url("/held/a.png")], "--cluster", str(cluster.file))
    server.wait_for(lambda: server.at_work == 1)
    other = Loader(loader.home)
    other.directory, other.results = loader.directory, loader.home / "other.jsonl"
    with closing(other):
        run = other.run(urls_of(server, 1), "--cluster", str(cluster.file))
    assert run.status == 2
    assert "another run with --cluster is under way" in run.stderr
    server.gate.set()
    assert running.finish().status == 0


def test_without_a_worker_the_run_ends(cluster: Cluster, server: Server, loader: Loader) -> None:
    command = _command("dask._WORKER_PATIENCE = 1")
    run = loader.run(urls_of(server, 1), "--cluster", cluster.address, command=command)
    assert run.status == 2
    assert "no worker for 1 s; start one: dask worker" in run.stderr
    assert not loader.directory.exists()


def test_another_version_on_a_worker_is_refused(cluster: Cluster, server: Server, loader: Loader) -> None:
    cluster.worker("--no-nanny", environment={"PYTHONPATH": str(_copy(loader.home, "__init__.py", __version__, "0.9"))})
    run = loader.run(urls_of(server, 1), "--cluster", str(cluster.file))
    assert run.status == 2
    assert f"has another version of image_loader: 0.9, and not {__version__}" in run.stderr
    assert server.requests == []


def test_what_is_not_on_a_worker_is_told(cluster: Cluster, server: Server, loader: Loader) -> None:
    """Another directory at the same path: as a worker has it where the file system is not shared."""
    lines = "        if not folder.heartbeat.exists():\n"
    sources = _copy(loader.home, "cluster/task.py", lines, "        if True:\n")
    cluster.worker("--no-nanny", environment={"PYTHONPATH": str(sources)})
    run = loader.run(urls_of(server, 1), "--cluster", str(cluster.file))
    assert run.status == 2
    assert f"{loader.directory}: not there, or not the directory that the driver has" in run.stderr


def _copy(home: Path, file: str, old: str, new: str) -> Path:
    """Copy the package, with one text replaced; return the folder to import it from."""
    sources = home / "other"
    shutil.copytree(SOURCES, sources)
    path = sources / "image_loader" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return sources


# Secrets ----------------------------------------------------------------------------------------------------------


def test_no_log_has_a_header_a_password_or_a_query(cluster: Cluster, server: Server, loader: Loader) -> None:
    """A task fails with all of it in its error; Dask logs errors, and the arguments of tasks that fail."""
    failing = "raise ValueError(settings._asdict(), settings, list(lines), *lines)\n    "
    sources = _copy(loader.home, "batch.py", BEGIN, failing + BEGIN)
    cluster.worker("--no-nanny", environment={"PYTHONPATH": str(sources)})
    url = f"http://user:hidden-1@127.0.0.1:{server.port}/image/a.png?key=hidden-2"
    options = ("-H", "Authorization: Bearer hidden-3", "-vv", "--cluster", str(cluster.file))
    run = loader.run([url], *options)
    assert run.status == 1
    assert "was not done: ValueError in batch.py" in run.stderr
    (row,) = run.rows
    assert (row["status"], row["reason"]) == ("failed", "interrupted")
    assert "Compute Failed" in cluster.told
    assert "run(" in cluster.told
    for told in (cluster.told, run.stderr):
        assert "hidden" not in told
    assert list((run.directory / ".image_loader" / "cluster").iterdir()) == []
