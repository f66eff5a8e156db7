"""Measure image_loader side by side with its peers, on this machine, against a server of its own.

Needs nginx with its lua module (Debian: nginx-light and libnginx-mod-http-lua); takes those peers that are installed.
TLS needs trustme (pip install '.[benchmark]'); names of many hosts need root and dnsmasq (Debian: dnsmasq-base). A
scenario that lacks something is left out, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import report
import servers
from certificates import make_certificates
from commands import COMMANDS, OURS, Command, in_processes
from rounds import Result, measure_scenario
from scenarios import SCENARIOS, WIDE, Bench

TMPFS = Path("/dev/shm")  # noqa: S108 (a private directory is made in it)
SPACE_PER_IMAGE = 2_500_000  # bytes: the large images twice, or two directories for the longest list
ROUNDS, QUICK_ROUNDS = 3, 1
IMAGES, QUICK_IMAGES = 5000, 300
LIMIT, LIST_LIMIT, WIDE_LIMIT, QUICK_LIMIT = 45.0, 120.0, 600.0, 2.0  # seconds for one run


@dataclass(frozen=True)
class Options:
    """What is to be measured, and how often."""

    rounds: int
    images: int
    quick: bool
    scenarios: tuple[str, ...]
    commands: tuple[Command, ...]
    plot: Path | None


def main() -> int:
    """Run the scenarios and print their tables; 2 if something needed is missing."""
    try:
        options = parse()
        results = []
        print(f"{machine()}\n\n{versions(options.commands)}\n")
        left_out: list[str] = []
        for result in measure_scenarios(options, left_out):
            print(report.table(result), flush=True)
            results.append(result)
        if options.plot:
            report.plot(results, options.plot)
    except servers.MissingError as error:
        print(error, file=sys.stderr)
        return 2
    print("".join(f"left out: {each}\n" for each in left_out), end="", file=sys.stderr)
    return 2 if left_out else 0


def parse() -> Options:
    """Read the command line; ``MissingError`` for what was asked for and is not installed."""
    peers = [command.name for command in COMMANDS if command.name != OURS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help=f"rounds for each command (default: {ROUNDS})")
    parser.add_argument("--images", type=int, help=f"small images; all else goes with them (default: {IMAGES})")
    parser.add_argument("--quick", action="store_true", help="one round of a tenth: shows that all works, no more")
    parser.add_argument("--scenario", nargs="+", default=list(SCENARIOS), help=f"any of: {' '.join(SCENARIOS)}")
    parser.add_argument("--peers", nargs="*", choices=peers, help="only these (default: all that are installed)")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[], metavar="N", help="image_loader in so many processes as well"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the medians as well (needs matplotlib)")
    options = parser.parse_args()
    if unknown := set(options.scenario) - set(SCENARIOS):
        parser.error(f"no such scenario: {' '.join(unknown)}")
    if options.plot and not importlib.util.find_spec("matplotlib"):
        raise servers.MissingError("matplotlib is missing: pip install '.[benchmark]'")
    return Options(
        rounds=options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS),
        images=options.images or (QUICK_IMAGES if options.quick else IMAGES),
        quick=options.quick,
        scenarios=tuple(options.scenario),
        commands=(*chosen(options.peers), *map(in_processes, options.processes)),
        plot=options.plot,
    )


def chosen(peers: Sequence[str] | None) -> tuple[Command, ...]:
    """Return image_loader and the peers asked for, or all that are installed."""
    missing = [command.name for command in COMMANDS if command.version() is None]
    if peers and (asked := set(peers) & set(missing)):
        raise servers.MissingError(f"not installed: {' '.join(asked)}")
    if missing:
        print(f"not installed, left out: {' '.join(missing)}", file=sys.stderr)
    return tuple(c for c in COMMANDS if c.name not in missing and (peers is None or c.name in {OURS, *peers}))


def machine() -> str:
    """Describe the machine in one line, with what else it had to do."""
    models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    kernel = f"{platform.system()} {platform.release()}"
    model = models[0] if models else platform.machine()
    return f"{os.cpu_count()} processors ({model}), {kernel}, load average at the start {os.getloadavg()[0]:.1f}"


def versions(commands: Sequence[Command]) -> str:
    """Name the versions of all that takes part."""
    names = [f"{command.name}: {command.version()}" for command in commands]
    return "\n".join([f"Python {platform.python_version()}", f"nginx {servers.version()}", *names])


def measure_scenarios(options: Options, left_out: list[str]) -> Iterator[Result]:
    """Measure each command in each scenario; add those that lack something to ``left_out``, with what they lack."""
    with workbench(options) as bench:
        for name in options.scenarios:
            try:
                for scenario in SCENARIOS[name](bench):
                    yield measure_scenario(scenario, options.commands, options.rounds, bench)
            except servers.MissingError as error:
                left_out.append(f"{name}: {error}")


@contextmanager
def workbench(options: Options) -> Iterator[Bench]:
    """Start the server, in a directory of our own on a tmpfs."""
    if shutil.disk_usage(TMPFS).free < options.images * SPACE_PER_IMAGE:
        raise servers.MissingError(f"{TMPFS}: {options.images * SPACE_PER_IMAGE:.1e} bytes of free space are missing")
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=TMPFS) as name:
        directory = Path(name)
        (directory / "root").mkdir()
        certificates = make_certificates(directory, f"*.{WIDE}", servers.TLS_HOST)
        with servers.running_server(directory, directory / "root", certificates) as running:
            yield Bench(
                directory=directory,
                root=directory / "root",
                server=running,
                images=options.images,
                limit=QUICK_LIMIT if options.quick else LIMIT,
                list_limit=QUICK_LIMIT if options.quick else LIST_LIMIT,
                wide_limit=WIDE_LIMIT,
                list_lengths=tuple(options.images * factor for factor in ((2,) if options.quick else (2, 20, 200))),
            )


if __name__ == "__main__":
    sys.exit(main())
