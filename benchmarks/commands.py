"""The commands that are compared, and how each of them is told to do the same task."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

OURS = "image_loader"
TIMEOUT = 10  # seconds to connect and between two bytes: image_loader's default, given to every peer that takes one
TRIES = 3
_PEERS = Path(__file__).with_name("peers")


@dataclass(frozen=True)
class Task:
    """What one run is to do: ``urls`` (one a line) into ``directory``.

    ``again`` says that the directory holds the images of an earlier run. ``options`` are for image_loader alone: none
    means its defaults, and then ``concurrency`` is what these come to. ``tries`` are those of the peers. ``authority``
    is the file of the certificate authority that is to be trusted, where there is TLS.
    """

    urls: Path
    directory: Path
    concurrency: int
    options: tuple[str, ...]
    again: bool
    tries: int
    authority: Path | None

    def trust(self, option: str) -> list[str]:
        """Return the option that names the authority, with its file."""
        return [option, str(self.authority)] if self.authority else []


@dataclass(frozen=True)
class Command:
    """One of the programs; ``renames`` if it numbers the files, ``asks_again`` if it knows conditional requests."""

    name: str
    version: Callable[[], str | None]
    line: Callable[[Task], list[str]]
    renames: bool = False
    asks_again: bool = True

    @property
    def is_ours(self) -> bool:
        """Whether it is image_loader, in any number of processes."""
        return self.name.partition("-")[0] == OURS


def _image_loader(task: Task, processes: int = 1) -> list[str]:
    """Do what the console script does, which may not be installed."""
    script = "from image_loader.__main__ import main; main()"
    options = [*task.options, *task.trust("--ca-bundle"), *(["--processes", str(processes)] if processes > 1 else [])]
    return [sys.executable, "-c", script, *options, str(task.urls), str(task.directory)]


def in_processes(number: int) -> Command:
    """Return image_loader with ``--processes``."""
    return Command(f"{OURS}-{number}", lambda: "this checkout", partial(_image_loader, processes=number))


def _wget(task: Task) -> list[str]:
    """Call wget, which has one connection only."""
    patience = [f"--timeout={TIMEOUT}", f"--tries={task.tries}", *task.trust("--ca-certificate")]
    times = ["--timestamping"] if task.again else []
    return ["wget", "--quiet", "--no-config", *patience, *times, f"--input-file={task.urls}", "-P", str(task.directory)]


def _wget2(task: Task) -> list[str]:
    patience = [f"--timeout={TIMEOUT}", f"--tries={task.tries}", f"--max-threads={task.concurrency}"]
    times = [*(["--timestamping"] if task.again else []), *task.trust("--ca-certificate")]
    return ["wget2", "--quiet", *patience, *times, f"--input-file={task.urls}", "-P", str(task.directory)]


def _aria2c(task: Task) -> list[str]:
    """Follow its manual's advice for long lists and small files; one connection for each image."""
    advice = ["--quiet", "--no-conf", "--deferred-input=true", "--file-allocation=none", "--remote-time=true"]
    patience = [f"--connect-timeout={TIMEOUT}", f"--timeout={TIMEOUT}", f"--max-tries={task.tries}"]
    connections = [f"--max-concurrent-downloads={task.concurrency}", "--max-connection-per-server=1", "--split=1"]
    times = ["--conditional-get=true", "--allow-overwrite=true"] if task.again else []
    files = [f"--input-file={task.urls}", f"--dir={task.directory}"]
    trust = [f"--ca-certificate={task.authority}"] if task.authority else []  # it takes no space in between
    return ["aria2c", *advice, *patience, *connections, *times, *trust, *files]


def _curl(task: Task) -> list[str]:
    """Translate the list: curl reads a kind of its own, and has its ``--time-cond`` for one URL only."""
    transfers = task.urls.with_suffix(".curl")
    with task.urls.open() as lines, transfers.open("w") as file:
        for number, line in enumerate(lines):
            file.write("next\n" if task.again and number else "")
            file.write(_curl_transfer(line.strip(), task))
    parallel = ["--parallel", "--parallel-immediate", "--parallel-max", str(task.concurrency)]
    files = [] if task.again else ["--remote-name-all", "--create-dirs", "--output-dir", str(task.directory)]
    times = ["--remote-time", "--connect-timeout", str(TIMEOUT), *task.trust("--cacert")]
    return ["curl", "--disable", "--silent", *parallel, *files, *times, "--config", str(transfers)]


def _curl_transfer(url: str, task: Task) -> str:
    if not task.again:
        return f'url = "{url}"\n'
    path = task.directory / url.rpartition("/")[2]
    return f'url = "{url}"\noutput = "{path}"\ntime-cond = "{path}"\nremote-time\nconnect-timeout = {TIMEOUT}\n'


def _script(name: str) -> Callable[[Task], list[str]]:
    script = str(_PEERS / name)
    return lambda task: [
        *(sys.executable, script, *task.trust("--ca-bundle")),
        *(str(task.urls), str(task.directory), str(task.concurrency)),
    ]


def _img2dataset(task: Task) -> list[str]:
    """Have the bytes kept as they came, which is not its default."""
    bytes_kept = ["--output_format=files", "--disable_all_reencoding=True", "--resize_mode=no"]
    patience = [f"--timeout={TIMEOUT}", f"--retries={task.tries - 1}", f"--thread_count={task.concurrency}"]
    return [
        str(Path(sys.executable).with_name("img2dataset")),
        *bytes_kept,
        *patience,
        f"--url_list={task.urls}",
        f"--output_folder={task.directory}",
    ]


def _first_line_of_version(program: str) -> str | None:
    if shutil.which(program) is None:
        return None
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _program(program: str) -> Callable[[], str | None]:
    return lambda: _first_line_of_version(program)


def _package(package: str) -> Callable[[], str | None]:
    return lambda: f"{package} {importlib.metadata.version(package)}" if importlib.util.find_spec(package) else None


COMMANDS = (
    Command(OURS, lambda: "this checkout", _image_loader),
    Command("wget", _program("wget"), _wget),
    Command("wget2", _program("wget2"), _wget2),
    Command("aria2c", _program("aria2c"), _aria2c),
    Command("curl", _program("curl"), _curl),
    Command("requests", _package("requests"), _script("plain_requests.py")),
    Command("urllib3", _package("urllib3"), _script("plain_urllib3.py")),
    Command("img2dataset", _package("img2dataset"), _img2dataset, renames=True, asks_again=False),
)
