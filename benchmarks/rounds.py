"""The rounds of a scenario: all commands in turn, and a look at what each of them saved."""

from __future__ import annotations

import filecmp
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import measure
from commands import Command, Task
from measure import Usage
from scenarios import Bench, Scenario
from servers import Answers

FIRST_RUN_LIMIT = 3600.0  # seconds for a run that only fills the directory for those that are measured
SOURCE = Path(__file__).resolve().parent.parent / "src"


@dataclass(frozen=True)
class Measurement:
    """One round of one command; ``whole`` counts the images that stand in the directory, byte for byte."""

    usage: Usage
    answers: Answers
    whole: int

    @property
    def last_image(self) -> float | None:
        """Seconds from the start of the command to the server's last 200."""
        return None if self.answers.last_image is None else self.answers.last_image - self.usage.started


@dataclass(frozen=True)
class Rounds:
    """The rounds of one command in one scenario."""

    scenario: Scenario
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def stopped(self) -> bool:
        """Whether the command ran into the limit."""
        return any(measurement.usage.exit_status is None for measurement in self.measurements)

    @property
    def rate(self) -> float:
        """Images (or lines, where there are no images to be had) a second."""
        scenario = self.scenario
        return self.median(lambda m: (m.whole if scenario.originals else scenario.lines) / m.usage.seconds)

    def median(self, value: Callable[[Measurement], float]) -> float:
        """Return the median of the rounds."""
        return median(value(measurement) for measurement in self.measurements)


@dataclass(frozen=True)
class Result:
    """One scenario, and the rounds of each command, by its name."""

    scenario: Scenario
    rounds: Mapping[str, Rounds]


def measure_scenario(scenario: Scenario, commands: Sequence[Command], count: int, bench: Bench) -> Result:
    """Run the commands ``count`` times in turn, each time beginning with another one."""
    commands = [command for command in commands if _takes_part(command, scenario)]
    result = Result(scenario, {command.name: Rounds(scenario) for command in commands})
    for command in commands if scenario.again else ():
        _run(command, scenario, bench, FIRST_RUN_LIMIT)
    for number in range(count):
        scenario.change(number)
        first = number % len(commands)
        for command in [*commands[first:], *commands[:first]]:
            rounds = result.rounds[command.name]
            if not rounds.stopped:  # it would only be stopped again
                rounds.measurements.append(_measure(command, scenario, bench))
    for command in commands:
        _remove(_output(command, bench))
    return result


def _takes_part(command: Command, scenario: Scenario) -> bool:
    if scenario.again and not command.asks_again:
        return False
    return scenario.peers is None or command.is_ours or command.name in scenario.peers


def _measure(command: Command, scenario: Scenario, bench: Bench) -> Measurement:
    if not scenario.again:
        _remove(_output(command, bench))
    bench.server.forget()
    usage = _run(command, scenario, bench, scenario.limit)
    whole = _count_whole(command, scenario, _output(command, bench))
    return Measurement(usage, bench.server.answers(), whole)


def _run(command: Command, scenario: Scenario, bench: Bench, limit: float) -> Usage:
    """Run the command, with nothing of the user's own settings, and say how it went."""
    directory = _output(command, bench)
    again = scenario.again and directory.exists()
    task = Task(
        scenario.urls, directory, scenario.concurrency, scenario.options, again, scenario.tries, scenario.authority
    )
    trust = {"SSL_CERT_FILE": str(scenario.authority)} if scenario.authority and command.name == "img2dataset" else {}
    home = {**trust, "HOME": str(bench.directory), "LANG": "C.UTF-8", "PYTHONPATH": str(SOURCE)}
    environment = {"PATH": os.environ.get("PATH", os.defpath), **home}
    log = bench.directory / f"{command.name}.log"
    line = [*scenario.enter, *command.line(task)]
    usage = measure.run(line, environment=environment, log=log, limit=limit)
    last_words = (
        log.read_bytes()[-500:].decode(errors="replace").strip().rpartition("\n")[2] if usage.exit_status else ""
    )
    print(f"{scenario.name} {command.name} {usage.seconds:.2f} s {last_words}", file=sys.stderr)
    return usage


def _output(command: Command, bench: Bench) -> Path:
    return bench.directory / "output" / command.name


def _remove(directory: Path) -> None:
    """Remove a directory, by another process: a million names in memory here would count as the peers' memory."""
    subprocess.run(["rm", "-rf", str(directory)], check=True)


def _count_whole(command: Command, scenario: Scenario, directory: Path) -> int:
    """Count the originals that stand in ``directory``, byte for byte."""
    if command.renames:
        saved = {_digest(path) for path in directory.rglob("*.*")}
        return sum(_digest(original) in saved for original in scenario.originals)
    return sum(_equal(original, directory / original.name) for original in scenario.originals)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _equal(original: Path, saved: Path) -> bool:
    return saved.exists() and filecmp.cmp(original, saved, shallow=False)
