"""Promises of the log and the summary: true counts, short lines, no secrets."""

from __future__ import annotations

import logging
import re
from typing import TextIO

import pytest

from image_loader.cli.console import Console, LogHandler
from image_loader.cli.summary import OutcomeLog, Tally, describe, size_text
from image_loader.model import Outcome, Reason, Status
from image_loader.url import LONGEST_SHOWN
from terminal import failed, saved, tallied, written

# Sizes, log lines


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999.4, "999 B"), (999.6, "1.0 kB"), (999_949, "999.9 kB"), (10**15, "1000.0 TB"), (10**9, "1.0 GB")],
)
def test_sizes_are_decimal_and_never_a_thousand_of_a_unit_that_has_a_larger_one(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (
            Outcome(1, "http://host/a.jpg", "a.jpg", Status.FRESH, bytes=512),
            "fresh    a.jpg                        512 B  http://host/a.jpg",
        ),
        (
            Outcome(1, "http://host/a.jpg", None, Status.SKIPPED, Reason.DUPLICATE),
            "skipped  line 1                    duplicate  http://host/a.jpg",
        ),
        (
            Outcome(1, "http://h/a", "a.jpg", Status.FAILED, Reason.HTTP_STATUS, "404 Not Found", 404, attempts=4),
            "failed   a.jpg                       0.00 s  4 attempts  http-status: 404 Not Found  http://h/a",
        ),
        (
            Outcome(1, "http://h/a", "a.jpg", Status.SAVED, None, "sent as image/jpeg, but is image/png", bytes=1),
            "saved    a.jpg                          1 B  sent as image/jpeg, but is image/png  http://h/a",
        ),
    ],
)
def test_a_log_line_tells_file_size_time_and_reason(outcome: Outcome, line: str) -> None:
    assert describe(outcome) == line


def test_a_bad_line_is_told_by_its_number() -> None:
    assert "line 17 " in describe(Outcome(17, "a b", None, Status.FAILED, Reason.BAD_URL, "no scheme"))


def test_secrets_stay_out_of_a_log_line() -> None:
    line = describe(Outcome(1, "http://user:pw@host/a.jpg?key=1", "a.jpg", Status.SAVED))
    assert line.endswith("http://host/a.jpg?…")
    assert "pw" not in line


def test_hostile_text_is_escaped_and_short_in_a_log_line() -> None:
    hostile = "\x1b[2J\u202e\n\x00" * 1000
    line = describe(Outcome(1, "http://h/" + hostile, "a\x1b.jpg", Status.FAILED, Reason.PROTOCOL, hostile))
    assert not re.search("[\x00-\x1f\u202e]", line)
    assert len(line) < 2 * LONGEST_SHOWN + 100


# The summary


def test_the_summary_has_the_form_that_scripts_read() -> None:
    outcomes = [saved(n, 20_084) for n in range(4790)] + [failed(n) for n in range(50)]
    outcomes += [Outcome(1, "http://h/a", "a", Status.FRESH, bytes=10**9)] * 150
    outcomes += [Outcome(1, "http://h/a", None, Status.SKIPPED, Reason.DUPLICATE)] * 10
    tally = tallied(outcomes)
    assert tally.summary(12.345)[0] == "5000 URLs: 4790 saved (96.2 MB), 150 fresh, 10 skipped, 50 failed in 12.3 s"
    assert (tally.done, tally.failed) == (5000, 50)


def test_the_summary_of_one_url_and_of_none_is_one_line() -> None:
    assert tallied([saved(1, 999)]).summary(0.04) == ["1 URL: 1 saved (999 B), 0 fresh, 0 skipped, 0 failed in 0.0 s"]
    assert Tally().summary(0) == ["0 URLs: 0 saved (0 B), 0 fresh, 0 skipped, 0 failed in 0.0 s"]


def test_the_summary_groups_failures_by_reason_and_a_few_hosts() -> None:
    hosts = ["a"] * 30 + ["B"] * 20 + ["c:8080"] * 10 + ["d", "user:pw@e", "f"]
    outcomes = [failed(number, host=host) for number, host in enumerate(hosts)]
    outcomes += [Outcome(9, "http://h:pw", None, Status.FAILED, Reason.BAD_URL, "bad port")]
    assert tallied(outcomes).summary(1)[1:] == [
        "      63 timeout",
        "          30 a",
        "          20 b",
        "          10 c:8080",
        "           3 on other hosts",
        "       1 bad-url",
    ]


def test_hosts_without_number_cost_no_memory_and_lose_no_count() -> None:
    outcomes = [failed(number, host=f"host{number}") for number in range(30_000)]
    tally = tallied(outcomes)
    assert sum(map(len, tally._hosts.values())) == 10_000
    lines = tally.summary(1)
    assert lines[1].strip() == "30000 timeout"
    assert lines[-1].strip() == "29997 on other hosts"


def test_a_hostile_host_name_is_escaped_in_the_summary() -> None:
    assert "\x1b" not in "".join(tallied([failed(host="a\x1b[2J")]).summary(1))


# The log


def log_failures(logger: logging.Logger, stream: TextIO, level: int, *reasons: Reason) -> OutcomeLog:
    """Log 500 outcomes, half of them failures of each reason in turn."""
    logger.setLevel(level)
    logger.addHandler(LogHandler(Console(stream)))
    log = OutcomeLog(logger)
    for number in range(500):
        log.write(saved(number) if number % 2 else failed(number, reasons[number // 2 % len(reasons)]))
    return log


def test_a_cron_mail_holds_the_first_failures_of_each_kind(logger: logging.Logger, pipe: tuple[int, TextIO]) -> None:
    read, stream = pipe
    log = log_failures(logger, stream, logging.WARNING, Reason.TIMEOUT, Reason.DNS)
    lines = written(read).splitlines()
    assert all(line.startswith("failed ") for line in lines)
    assert [sum(reason in line for line in lines) for reason in ("timeout", "dns")] == [3, 3]
    assert log.left_out == 250 - 6


def test_a_cron_mail_holds_ten_failures_at_most(logger: logging.Logger, pipe: tuple[int, TextIO]) -> None:
    read, stream = pipe
    log = log_failures(logger, stream, logging.WARNING, *(reason for reason in Reason if reason != "interrupted"))
    assert len(written(read).splitlines()) == 10
    assert log.left_out == 240


def test_a_verbose_log_holds_each_outcome(logger: logging.Logger, pipe: tuple[int, TextIO]) -> None:
    read, stream = pipe
    log = log_failures(logger, stream, logging.INFO, Reason.TIMEOUT)
    assert len(written(read).splitlines()) == 500
    assert log.left_out == 0


def test_an_interrupted_run_does_not_warn_of_what_it_left_undone(
    logger: logging.Logger, pipe: tuple[int, TextIO]
) -> None:
    read, stream = pipe
    log_failures(logger, stream, logging.WARNING, Reason.INTERRUPTED)
    stream.write("end")
    stream.flush()
    assert written(read) == "end"
