"""Promises of the results files: whole rows, private, safe to open, and a list for the next run."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ENVIRONMENT, limited
from image_loader.cli.results import COLUMNS, FailedFile, ResultsFile
from image_loader.errors import DirectoryError, OptionError, ResultsFileError
from image_loader.model import Outcome, Reason, Status

SIGNED = "https://user:pw@host/a.jpg?signature=1"
SAVED = Outcome(1, SIGNED, "a.jpg", Status.SAVED, None, None, 200, "image/jpeg", 20_100, "ab" * 32, 1, 0.0512345)
FAILED = Outcome(2, "http://host/b.jpg", None, Status.FAILED, Reason.TIMEOUT, "no answer", attempts=4, seconds=9.0)
BAD = Outcome(3, '=cmd|"x",\x00\x1b[31mé', None, Status.FAILED, Reason.BAD_URL, "no scheme")
FRESH = Outcome(5, SIGNED, "a.jpg", Status.FRESH)
DUPLICATE = Outcome(4, SIGNED, None, Status.SKIPPED, Reason.DUPLICATE)
HEADING = ",".join(COLUMNS) + "\n"
OUTCOMES = [SAVED, FAILED, BAD, DUPLICATE]


def write_all(file: ResultsFile | FailedFile, outcomes: list[Outcome]) -> None:
    with file:
        for outcome in outcomes:
            file.write(outcome)


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_jsonl_has_one_object_per_outcome_with_the_promised_keys_in_order(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write_all(ResultsFile(path), OUTCOMES)
    rows = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    assert [tuple(row) for row in rows] == [COLUMNS] * 4
    assert rows[0] == {
        "url": SIGNED, "file": "a.jpg", "status": "saved", "reason": None, "detail": None, "http_status": 200,
        "media_type": "image/jpeg", "bytes": 20100, "sha256": "ab" * 32, "attempts": 1, "seconds": 0.051,
        "final_url": None, "change": None, "width": None, "height": None,
    }  # fmt: skip
    assert [row["status"] for row in rows] == ["saved", "failed", "failed", "skipped"]
    assert rows[2]["url"] == BAD.url


def test_csv_has_a_header_and_one_record_per_outcome(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_all(ResultsFile(path), [SAVED, FAILED, DUPLICATE])
    rows = csv_rows(path)
    assert [tuple(row) for row in rows] == [COLUMNS] * 3
    assert rows[0]["url"] == SIGNED
    assert (rows[1]["file"], rows[1]["reason"], rows[1]["seconds"]) == ("", "timeout", "9.0")


@pytest.mark.parametrize("before", ["", " ", "\u00a0", "\u3000 "])
@pytest.mark.parametrize("start", [*"=+-@", *"\uff1d\uff0b\uff0d\uff20"])
def test_csv_cells_never_start_a_formula(tmp_path: Path, before: str, start: str) -> None:
    path = tmp_path / "results.csv"
    text = before + start + 'HYPERLINK("http://evil/")'
    write_all(ResultsFile(path), [Outcome(1, text, text, Status.FAILED, Reason.BAD_URL, text)])
    (row,) = csv_rows(path)
    assert (row["url"], row["file"], row["detail"]) == ("'" + text,) * 3


@pytest.mark.parametrize("text", ['a"b', "a,b", "é", "'", "\\n", "a b", "\u4e00"])
def test_csv_gives_back_every_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.csv"
    write_all(ResultsFile(path), [Outcome(1, text, None, Status.FAILED, Reason.BAD_URL, "bad")])
    assert [row["url"] for row in csv_rows(path)] == [text]


def test_csv_cells_carry_no_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    controls = [*range(32), *range(0x7F, 0xA0), 0x200B, 0x2028, 0x202E, 0xFEFF]
    outcomes = [Outcome(1, f"{chr(code)}=1", chr(code), Status.FAILED, Reason.BAD_URL, chr(code)) for code in controls]
    write_all(ResultsFile(path), outcomes)
    content = path.read_text(encoding="utf-8")
    assert content.replace("\n", "").isprintable()
    assert content.count("\n") == len(controls) + 1
    assert all(row["url"].startswith("\\") for row in csv_rows(path))


@pytest.mark.parametrize("name", ["results.jsonl", "results.csv", "failed.txt"])
def test_a_lone_surrogate_never_stops_the_run(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    file = FailedFile(path) if name == "failed.txt" else ResultsFile(path)
    write_all(file, [Outcome(1, "http://h/\udcff", None, Status.FAILED, Reason.BAD_URL, "bad")])
    assert "\\udcff" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["results.jsonl", "results.CSV", "failed.txt"])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_read_a_file_with_secrets(tmp_path: Path, name: str, umask: int) -> None:
    path = tmp_path / name
    before = os.umask(umask)
    try:
        write_all(FailedFile(path) if name == "failed.txt" else ResultsFile(path), [SAVED])
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["results.jsonl", "results.csv", "failed.txt"])
def test_a_file_that_others_may_read_is_made_private_before_a_row_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("old")
    path.chmod(0o666)
    with FailedFile(path) if name == "failed.txt" else ResultsFile(path) as file:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        file.write(FRESH)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "old" not in path.read_text()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="takes root, and `setpriv`")
def test_a_file_that_cannot_be_made_private_gets_no_row(tmp_path: Path) -> None:
    path = tmp_path / "failed.txt"
    path.write_text("old")
    path.chmod(0o666)
    os.chown(path, 65534, 65534)
    program = f"""
from pathlib import Path
from image_loader.cli.results import FailedFile
from image_loader.model import Outcome, Reason, Status
with FailedFile(Path({str(path)!r})) as file:
    file.write(Outcome(1, "http://h/?secret", None, Status.FAILED, Reason.TIMEOUT))
"""
    command = ("setpriv", "--bounding-set=-fowner", "--inh-caps=-all", sys.executable, "-c", program)
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert "failed.txt: cannot be written: Operation not permitted; name another file" in run.stderr
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["results", "results.json", "results.jsonl.gz", ".csv"])
def test_an_unknown_extension_is_refused_before_anything_is_touched(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("mine")
    with pytest.raises(OptionError, match=r"^results: .*\.jsonl or \.csv"):
        ResultsFile(path)
    assert path.read_text() == "mine"


def test_an_earlier_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("old\n" * 100)
    write_all(ResultsFile(path), [SAVED])
    assert len(path.read_text().splitlines()) == 1


def test_an_earlier_list_of_failures_is_emptied_by_an_outcome_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "failed.txt"
    path.write_text("old\n")
    with FailedFile(path) as file:
        assert path.read_text() == "old\n"
        file.write(SAVED)
        assert path.read_text() == ""


@pytest.mark.parametrize("name", ["results.jsonl", "results.csv", "failed.txt"])
def test_an_earlier_file_is_kept_by_a_run_that_never_began(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("old\n")
    with pytest.raises(DirectoryError), FailedFile(path) if name == "failed.txt" else ResultsFile(path):
        raise DirectoryError("no such directory")
    assert path.read_text() == "old\n"


@pytest.mark.parametrize(("name", "left"), [("results.jsonl", ""), ("results.csv", HEADING), ("failed.txt", "")])
def test_an_earlier_file_is_emptied_by_a_run_without_any_outcome(tmp_path: Path, name: str, left: str) -> None:
    path = tmp_path / name
    path.write_text("old\n")
    write_all(FailedFile(path) if name == "failed.txt" else ResultsFile(path), [])
    assert path.read_text() == left


def test_a_file_that_cannot_be_made_is_named_with_the_reason(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "results.csv"
    with pytest.raises(ResultsFileError, match=r"missing/results\.csv.*No such file or directory"):
        ResultsFile(missing)
    with pytest.raises(ResultsFileError, match="Is a directory"):
        FailedFile(tmp_path)


def test_a_full_disk_is_an_error_that_names_the_file() -> None:
    with FailedFile(Path("/dev/full")) as file, pytest.raises(ResultsFileError, match=r"/dev/full.*No space left"):
        file.write(FAILED)


def test_a_row_that_does_not_fit_leaves_no_torn_row(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with ResultsFile(path) as file:
            file.write(SAVED)
            size = path.stat().st_size
            full = pytest.raises(ResultsFileError, match="File too large")
            with full, limited(resource.RLIMIT_FSIZE, size + 10):
                file.write(SAVED)
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    assert path.stat().st_size == size


def test_rows_are_whole_when_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    program = f"""
import sys
from pathlib import Path
from image_loader.model import Outcome, Status
from image_loader.cli.results import ResultsFile
file = ResultsFile(Path({str(path)!r}))
for line in range(10**9):
    file.write(Outcome(line, "http://host/a.jpg", "a.jpg", Status.FRESH))
    if line == 1000:
        print(flush=True)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    content = path.read_bytes()
    assert content.endswith(b"\n")
    assert {line.count(b",") for line in content.splitlines()} == {len(COLUMNS) - 1}
    assert len(content.splitlines()) > 1000


def test_the_failed_file_holds_the_urls_that_failed_as_given_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "failed.txt"
    failed = Outcome(5, SIGNED, "a.jpg", Status.FAILED, Reason.HTTP_STATUS, "404 Not Found", 404)
    write_all(FailedFile(path), [SAVED, FAILED, BAD, DUPLICATE, failed])
    assert path.read_text(encoding="utf-8").split("\n") == [FAILED.url, BAD.url, SIGNED, ""]


def test_what_remains_of_a_line_is_not_taken_for_a_url_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "failed.txt"
    cut = Outcome(6, "http://host/" + "a" * 188, None, Status.FAILED, Reason.BAD_URL, "line longer than 64 KiB")
    write_all(FailedFile(path), [cut])
    assert path.read_text() == f"# {cut.url}\n"


def test_a_failed_file_may_be_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_all(FailedFile(path), [FAILED])
        assert os.read(reader, 4096) == FAILED.url.encode() + b"\n"
    finally:
        os.close(reader)


# Standard output


def test_rows_on_standard_output_are_lines_of_json_and_nothing_of_its_file_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("before\n")
    path.chmod(0o644)
    program = f"""
from image_loader.cli.results import ResultsFile
from image_loader.model import Outcome, Status
with ResultsFile("-") as file:
    for line in range(3):
        file.write(Outcome(line, "http://h/" + {"a" * 10_000!r}, None, Status.FRESH))
"""
    with path.open("a") as output:
        subprocess.run([sys.executable, "-c", program], stdout=output, check=True, env=ENVIRONMENT)
    before, *rows = path.read_text().splitlines()
    assert before == "before"
    assert [json.loads(row)["url"] for row in rows] == ["http://h/" + "a" * 10_000] * 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_file_called_minus_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="extension"):
        ResultsFile("./-")
