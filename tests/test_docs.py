"""Promises of the documentation: its commands work, and what it lists is what there is."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest

import image_loader
from image_loader.cli.results import COLUMNS
from image_loader.formats import EXTENSIONS
from image_loader.lists.naming import candidates
from image_loader.model import Layout, Outcome, Reason, Status
from image_loader.scheduling.retry import BUSY_STATUSES, TRANSIENT_STATUSES
from image_loader.settings import all_options
from image_loader.url import parse
from server import Server
from test_architecture import LAYERS, OWNERS

CHECKOUT = Path(__file__).parents[1]
DOCS = CHECKOUT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.rst"))
# A block with such a class is run; the second group says which exit status it has, or what it needs.
BLOCK = re.compile(
    r"^\.\. code-block:: (sh|python)\n   :class: tried(?:-(\S+))?\n\n((?:   [^\n]*\n|\n)+)", re.MULTILINE
)
TERM = re.compile(r"^``[^\n]*``$", re.MULTILINE)

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="there is no checkout here, only the installed package")


def _page(name: str) -> str:
    return (DOCS / name).read_text()


def _terms(text: str) -> list[str]:
    """Return the terms of the definition lists, each of which may be several."""
    return [term for line in TERM.findall(text) for term in re.findall(r"``([^`]+)``", line)]


# Commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, server: Server) -> Path:
    """A directory with all that the commands in the documentation read; ``loader`` is the command under test."""
    urls = [server.url(f"/{name}.png") for name in ("hills", "kite", "night", "rings")]
    dead = server.url("/status-404/gone.png")
    (tmp_path / "urls.txt").write_text("".join(f"{url}\n" for url in urls))
    (tmp_path / "some-dead.txt").write_text("".join(f"{url}\n" for url in [*urls, dead]))
    with (tmp_path / "feed.csv").open("w") as file:
        rows = csv.writer(file, delimiter=";", lineterminator="\n")
        rows.writerows([("id", "title", "image link"), *((place, "a; b", url) for place, url in enumerate(urls))])
    (tmp_path / "products.json").write_text(json.dumps([{"image": url} for url in urls]))
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        database.execute("CREATE TABLE picture (id, url)")
        database.executemany("INSERT INTO picture VALUES (?, ?)", enumerate(urls))
    (tmp_path / "token.txt").write_text("Authorization: Bearer secret\n")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "loader"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m image_loader "$@"\n')
    command.chmod(0o755)
    return tmp_path


def _run(place: Path, language: str, text: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [sys.executable, "-c", text]
    environment = {
        "PATH": f"{place / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "HOME": str(place),
        "TOKEN": "secret",
    }
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=120, check=False)


def _lacking(language: str, text: str, needs: str | None) -> str:
    """Name a program or a package that a block needs and that is not here."""
    tools = re.findall(r"(?:^|\| |\()(jq|sqlite3)\b", text, re.MULTILINE) if language == "sh" else []
    lacking = [tool for tool in tools if shutil.which(tool) is None]
    if needs and needs.startswith("if-") and find_spec(needs.removeprefix("if-")) is None:
        lacking.append(needs.removeprefix("if-"))
    return ", ".join(lacking)


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(_page(page))])
def test_the_commands_of_a_page_work(page: str, place: Path) -> None:
    """One after the other in one directory; Python's are those of one program."""
    if page == "howto/failures.rst":
        (place / "some-dead.txt").replace(place / "urls.txt")
    program = ""
    lacking = ""
    for language, needs, body in BLOCK.findall(_page(page)):
        text = dedent(body)
        if missing := _lacking(language, text, needs):
            lacking = missing
            continue
        if "data.parquet" in text:
            _write_parquet(place)
        program += text if language == "python" else ""
        finished = _run(place, language, program if language == "python" else text)
        assert finished.returncode == (int(needs) if needs.isdigit() else 0), f"{text}\n{finished.stderr}"
        assert "Traceback" not in finished.stderr
        assert (place / "images").is_dir()
    if lacking:
        pytest.skip(f"takes {lacking} as well")


def _write_parquet(place: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    urls = (place / "urls.txt").read_text().splitlines()
    pyarrow.parquet.write_table(pyarrow.table({"url": urls}), place / "data.parquet")


def test_the_page_about_failures_tells_dead_links_from_live_ones(place: Path) -> None:
    (place / "some-dead.txt").replace(place / "urls.txt")
    if shutil.which("jq") is None:
        pytest.skip("takes jq")
    for language, _, body in BLOCK.findall(_page("howto/failures.rst")):
        _run(place, language, dedent(body))
    assert (place / "dead.txt").read_text().splitlines() == (place / "urls.txt").read_text().splitlines()[-1:]
    assert (place / "alive.txt").read_text().splitlines() == (place / "urls.txt").read_text().splitlines()[:-1]


def _readme_tasks() -> Iterator[str]:
    section = re.split(r"^Common tasks\n-+\n", (CHECKOUT / "README.rst").read_text(), flags=re.MULTILINE)[1]
    section = re.split(r"^\S[^\n]*\n---+\n", section, flags=re.MULTILINE)[0]
    for body in re.findall(r"::\n\n((?:    [^\n]*\n|\n)+)", section):
        yield dedent(body).strip()


def test_the_readme_shows_the_most_common_tasks_and_they_work(place: Path) -> None:
    tasks = list(_readme_tasks())
    assert len(tasks) == 6
    for task in tasks:
        if task.startswith("17 * * * *"):
            task = task.replace("17 * * * *", "").replace("/usr/local/bin/", "").replace("/srv/", "")  # noqa: PLW2901
        if task.startswith("from "):
            assert _run(place, "python", task).returncode == 0, task
        else:
            assert _run(place, "sh", task).returncode == 0, task


def _blocks(page: str, language: str) -> list[str]:
    found = re.findall(rf"^\.\. code-block:: {language}\n\n((?:   [^\n]*\n|\n)+)", _page(page), re.MULTILINE)
    return [dedent(block) for block in found]


def _accepted(*command: str | Path) -> str:
    """Run a program that checks a configuration; return what it says."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"takes {command[0]}")
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stderr


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    service, timer = _blocks("howto/schedule.rst", "ini")
    (tmp_path / "images.service").write_text(service.replace("/usr/local/bin/loader", "/bin/true"))
    (tmp_path / "images.timer").write_text(timer)
    said = _accepted("systemd-analyze", "verify", "--man=no", tmp_path / "images.service", tmp_path / "images.timer")
    assert "images." not in said


def test_nginx_accepts_the_locations(tmp_path: Path) -> None:
    (locations,) = _blocks("howto/webserver.rst", "nginx")
    path = tmp_path / "nginx.conf"
    path.write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/log;\n"
        f"events {{}}\nhttp {{ access_log off; server {{ listen 127.0.0.1:1; {locations} }} }}\n"
    )
    assert "[warn]" not in _accepted("nginx", "-t", "-q", "-c", path)


def test_apache_accepts_the_directories(tmp_path: Path) -> None:
    modules = Path("/usr/lib/apache2/modules")
    if not modules.is_dir():
        pytest.skip("takes apache2")
    loaded = "".join(
        f"LoadModule {name}_module {modules}/mod_{name}.so\n" for name in ("mpm_event", "authz_core", "headers")
    )
    (directories,) = _blocks("howto/webserver.rst", "apache")
    path = tmp_path / "apache.conf"
    path.write_text(f"ServerName x\nErrorLog {tmp_path}/log\nPidFile {tmp_path}/pid\n{loaded}{directories}")
    assert "Syntax OK" in _accepted("apache2", "-t", "-f", path)


# Lists of what there is -------------------------------------------------------------------------------------------


def test_every_reason_has_what_it_means_and_what_to_do() -> None:
    text = _page("reference/reasons.rst")
    assert sorted(_terms(text)) == sorted(Reason)
    for entry in re.split(r"^``", text, flags=re.MULTILINE)[1:]:
        assert len(dedent(entry.partition("\n")[2]).strip().split("\n\n")) == 2, entry


def test_every_column_of_the_results_is_described() -> None:
    assert _terms(_page("reference/results.rst")) == list(COLUMNS)
    for status in Status:
        assert f"``{status}``: " in _page("reference/results.rst")


def test_every_member_of_an_outcome_is_described() -> None:
    members = re.findall(r"^   \.\. py:attribute:: (\w+)$", _page("reference/python.rst"), re.MULTILINE)
    assert members == list(Outcome._fields)


@pytest.mark.parametrize("page", ["reference/options.rst", "understanding/scheduling.rst"])
def test_the_statuses_that_are_retried_are_named(page: str) -> None:
    named = re.search(r"the statuses (408[\d, toand\n]+)", " ".join(_page(page).split()))
    assert named is not None
    spans = [re.findall(r"\d+", part) for part in re.split(r",|and", named[1])]
    assert {status for span in spans for status in range(int(span[0]), int(span[-1]) + 1)} == TRANSIENT_STATUSES


@pytest.mark.parametrize(
    "page", ["decisions.rst", "reference/options.rst", "reference/reasons.rst", "understanding/scheduling.rst"]
)
def test_the_statuses_of_a_busy_host_are_named(page: str) -> None:
    assert {status for status in BUSY_STATUSES if str(status) not in _page(page)} == set()


@pytest.mark.parametrize(("page", "begin"), [("reference/options.rst", "   --sniff\n"), ("reference/answers.rst", "")])
def test_the_formats_that_are_known_are_named(page: str, begin: str) -> None:
    text = " ".join(_page(page).partition(begin)[2].split() if begin else _page(page).split())
    names = {"APNG": "PNG", "JP2": "JPEG 2000", "JPG": "JPEG", "JXL": "JPEG XL", "TIF": "TIFF", "WEBP": "WebP"}
    known = {extension.removeprefix(".").upper() for extension in EXTENSIONS.values()}
    assert {name for each in known if (name := names.get(each, each)) not in text} == set()


def test_every_layout_is_described() -> None:
    section = _page("reference/names.rst").partition("Layouts\n")[2].partition("\nNames from a table")[0]
    assert _terms(section) == list(Layout)


def test_the_names_on_the_page_about_names_are_right() -> None:
    text = " ".join(_page("reference/names.rst").split())
    shown = re.findall(r"``(https://\S+)`` becomes ``([^`]+)``", text)
    assert len(shown) == 3
    for url, name in shown:
        assert name in {each.file(".jpg") for each in candidates(parse(url), Layout.FLAT)}


def test_every_group_of_options_has_its_place() -> None:
    groups = re.findall(r"^\.\. loader-options:: (.*)$", _page("reference/options.rst"), re.MULTILINE)
    assert sorted(groups) == sorted({option.group for option in all_options()})


TEXTS = [*(f"docs/{page}" for page in PAGES), "README.rst", "CONTRIBUTING.rst", "SECURITY.rst", "tests/README.rst"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_files_that_a_text_names_exist(text: str) -> None:
    content = (CHECKOUT / text).read_text()
    for name in re.findall(r"``((?:docs|src|tests|share|benchmarks|examples|\.ci)/[\w./-]+)``", content):
        assert name == "docs/_build" or (CHECKOUT / name).exists(), name
    source = "\n".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    for name in re.findall(r"``(test_\w+)``", content):
        assert f"def {name}(" in source, name


# Messages ---------------------------------------------------------------------------------------------------------


def _texts(path: Path) -> Iterator[str]:
    """Yield the string literals of a module, with ``…`` for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]


def test_every_message_that_is_explained_is_one_of_the_program() -> None:
    source = "\n".join(text for path in Path(image_loader.__file__).parent.rglob("*.py") for text in _texts(path))
    messages = _terms(_page("help/messages.rst"))
    assert len(messages) > 20
    for message in messages:
        assert all(part.strip() in source for part in message.split("…")), message


# The table of layers ----------------------------------------------------------------------------------------------


def test_the_table_of_layers_is_the_one_that_the_imports_are_held_against() -> None:
    table = _page("architecture.rst").partition(".. list-table:: Layers")[2].partition("\n\nModules")[0]
    rows = [re.split(r"\n     - ?", row) for row in re.split(r"\n   \* - ", table)[2:]]
    assert [(int(layer), module.strip("`")) for layer, module, _, _ in rows] == [
        (layer, module) for layer in reversed(range(len(LAYERS))) for module in LAYERS[layer]
    ]
    for _, module, duty, owned in rows:
        assert duty
        assert set(re.findall(r"``(\w+)``", owned)) == {
            library for library, owners in OWNERS.items() if module.strip("`") in owners
        }
