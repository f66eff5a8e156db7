"""Promises of --cluster before a scheduler is there."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import requires
from importlib.util import find_spec

import pytest
from packaging.requirements import Requirement

from conftest import Loader
from image_loader import load
from image_loader.errors import OptionError
from server import refusing_port

needs_extra = pytest.mark.skipif(find_spec("distributed") is None, reason="takes the extra 'cluster'")
IMPATIENT = (
    sys.executable,
    "-c",
    "from image_loader import loader\nfrom image_loader.cluster import dask\n"
    "dask._SCHEDULER_PATIENCE = 0.5\nloader.main()",
)


@pytest.mark.parametrize(
    "options", [{"delete": True}, {"dry_run": True}, {"index": "own.sqlite3"}, {"processes": 2}], ids=str
)
def test_what_a_cluster_cannot_do_is_refused_at_once(options: dict[str, object]) -> None:
    ((keyword, _),) = options.items()
    with pytest.raises(OptionError, match=f"^{keyword}: cannot be used with --cluster"):
        load([], "x", cluster="tcp://127.0.0.1:1", **options)  # type: ignore[arg-type]


@needs_extra
def test_no_scheduler_ends_the_command(loader: Loader) -> None:
    with refusing_port() as port:
        run = loader.run(["http://h/a"], "--cluster", f"tcp://127.0.0.1:{port}", command=IMPATIENT)
    assert run.status == 2
    assert f"loader: tcp://127.0.0.1:{port}: the scheduler cannot be used" in run.stderr
    assert "start one: dask scheduler" in run.stderr
    assert not loader.directory.exists()


@needs_extra
@pytest.mark.parametrize("content", [None, "", "[]", '{"address": 5}', json.dumps({"id": "x"})])
def test_a_scheduler_file_has_to_be_one(loader: Loader, content: str | None) -> None:
    path = loader.home / "scheduler.json"
    if content is not None:
        path.write_text(content)
    run = loader.run(["http://h/a"], "--cluster", str(path), command=IMPATIENT)
    assert run.status == 2
    told = "cannot be read: No such file or directory; have it written" if content is None else "not a scheduler file"
    assert told in run.stderr
    assert not loader.directory.exists()


def test_without_the_extra_the_command_says_how_to_install_it(loader: Loader) -> None:
    code = "import sys\nsys.modules['distributed'] = None\nfrom image_loader import loader\nloader.main()"
    run = loader.run(["http://h/a"], "--cluster", "tcp://127.0.0.1:1", command=(sys.executable, "-c", code))
    assert run.status == 2
    assert "loader: --cluster: packages are missing; install them: " in run.stderr
    (wanted,) = re.findall(r"pip install '(distributed[^']+)'", run.stderr)
    (allowed,) = (each for each in map(Requirement, requires("image_loader") or ()) if each.name == "distributed")
    assert Requirement(wanted).specifier == allowed.specifier
    assert not loader.directory.exists()
