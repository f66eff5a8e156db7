"""What is shown of the measurements: a table for each scenario, and a picture of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from commands import OURS
from rounds import Result, Rounds
from scenarios import Scenario

MIB = 1 << 20
_NONE = "-"


def table(result: Result) -> str:
    """Return the medians of one scenario as a simple table of reStructuredText."""
    scenario, ours = result.scenario, result.rounds[OURS]
    cells = [_heading(scenario), *(_cells(command, rounds, ours) for command, rounds in result.rounds.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([scenario.title, "", rule, lines[0], rule, *lines[1:], rule, ""])


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw the medians of all scenarios into ``path``."""
    from matplotlib.figure import Figure  # an optional extra, and slow to import

    figure = Figure(figsize=(10, 2 * len(results)), layout="constrained")
    for number, result in enumerate(results, 1):
        axes = figure.add_subplot(len(results), 1, number)
        rates = [rounds.rate for rounds in result.rounds.values()]
        colours = ["tab:orange" if command == OURS else "tab:blue" for command in result.rounds]
        axes.bar_label(axes.barh(list(result.rounds), rates, color=colours), fmt="%.0f", padding=3)
        axes.margins(x=0.1)
        axes.invert_yaxis()
        axes.set_title(result.scenario.title, fontsize="medium")
        axes.set_xlabel("images a second" if result.scenario.originals else "lines a second")
    figure.savefig(path)


def _heading(scenario: Scenario) -> list[str]:
    unit = "images/s" if scenario.originals else "lines/s"
    limit = ["of limit"] if scenario.ideal else []
    return [
        "command",
        "s",
        unit,
        "ratio",
        *limit,
        "CPU s",
        f"µs/{scenario.unit}",
        "peak MiB",
        "requests",
        "last image",
        "whole",
        "exit",
    ]


def _cells(command: str, rounds: Rounds, ours: Rounds) -> list[str]:
    scenario, usage = rounds.scenario, rounds.measurements[-1].usage
    cpu = rounds.median(lambda m: m.usage.cpu)
    return [
        command,
        ("> " if rounds.stopped else "") + f"{rounds.median(lambda m: m.usage.seconds):.2f}",
        f"{rounds.rate:.0f}" if scenario.originals or not rounds.stopped else _NONE,
        f"{rounds.rate / ours.rate:.2f}" if ours.rate else _NONE,
        *([f"{rounds.rate * scenario.ideal / scenario.lines:.2f}"] if scenario.ideal else []),
        f"{cpu:.2f}",
        f"{cpu / scenario.lines * 1e6:.0f}",
        ("≤ " if usage.peak_is_floor else "") + f"{rounds.median(lambda m: m.usage.peak) / MIB:.0f}",
        f"{rounds.median(lambda m: m.answers.count):.0f}",
        _last_image(rounds),
        f"{min(m.whole for m in rounds.measurements)}/{len(scenario.originals)}" if scenario.originals else _NONE,
        "stopped" if usage.exit_status is None else str(usage.exit_status),
    ]


def _last_image(rounds: Rounds) -> str:
    times = [m.last_image for m in rounds.measurements if m.last_image is not None]
    return f"{median(times):.2f}" if times else _NONE
