"""The layers: who may import whom, held against the imports themselves."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Container, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

import image_loader

PACKAGE = Path(image_loader.__file__).parent
LAYERS = (
    ("url", "model", "errors", "formats"),
    ("option", "media_types", "sniffing", "interpreter", "inbox", "unpacking", "flock", "processors"),
    ("settings",),
    ("lists", "freshness", "transport", "store", "endings", "decoding"),
    ("scheduling",),
    ("outcome", "renaming", "saving"),
    ("planner",),
    ("attempt", "removal"),
    ("batch", "preview"),
    ("cluster", "processes"),
    ("engine",),
    ("cli",),
    ("loader",),
)
LAYER = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}
WITHIN_VALUES = {("model", "url"), ("errors", "model")}
STARTERS = {"__init__", "__main__"}
OWNERS = {
    "argparse": {"cli"},
    "requests": {"transport"},
    "urllib3": {"transport"},
    "socket": {"transport", "decoding"},
    "selectors": {"transport"},
    "netrc": {"transport"},
    "http": {"transport", "model"},
    "filelock": {"store"},
    "idna": {"url"},
    "sqlite3": {"store"},
    "tqdm": {"cli"},
    "csv": {"cli", "lists"},
    "gzip": {"lists"},
    "concurrent": {"scheduling"},
    "multiprocessing": {"processes"},
    "PIL": {"decoding"},
    "fcntl": {"decoding", "flock"},
    "subprocess": {"decoding", "processes"},
    "jinja2": {"cli"},
    "distributed": {"cluster"},
}


def _module(path: Path) -> str:
    """Name the module that a file belongs to; the files of a package below ours are one."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _edges() -> set[tuple[str, str]]:
    """Return who imports whom, of our modules."""
    own = {_module(path) for path in _files()}
    pairs = ((_module(path), name.split(".")[1:2]) for path in _files() for name in _imported(path) if _ours(name))
    return {(module, part) for module, parts in pairs for part in parts if part in own and part != module}


def _ours(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] == PACKAGE.name


@pytest.mark.parametrize("module", sorted({_module(path) for path in _files()} - STARTERS))
def test_every_module_has_its_layer(module: str) -> None:
    assert module in LAYER


@pytest.mark.parametrize(("module", "imported"), sorted(edge for edge in _edges() if edge[0] not in STARTERS))
def test_a_module_imports_only_from_lower_layers(module: str, imported: str) -> None:
    assert LAYER[imported] < LAYER[module] or (module, imported) in WITHIN_VALUES


def test_every_layer_names_modules_that_exist() -> None:
    assert set(LAYER) <= {_module(path) for path in _files()}


def test_no_import_is_circular() -> None:
    """Within a package below ours neither, where a layer says nothing."""
    names = {_dotted(path): path for path in _files()}
    found = {name: {_longest(imported, names) for imported in _imported(path)} for name, path in names.items()}
    graph = {name: imported - {name, ""} for name, imported in found.items()}
    assert not _has_cycle(graph)
    assert _has_cycle({**graph, "image_loader.model": {"image_loader.loader"}}), "a cycle would not be seen"


def _has_cycle(graph: Mapping[str, Iterable[str]]) -> bool:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


def _dotted(path: Path) -> str:
    return ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def _longest(imported: str, names: Container[str]) -> str:
    """Return the module among ``names`` that an imported name belongs to; nothing if it is not ours."""
    while imported and imported not in names:
        imported = imported.rpartition(".")[0]
    return imported if imported != PACKAGE.name else ""


def test_nobody_imports_the_command() -> None:
    assert {module for module, imported in _edges() if imported == "loader"} <= STARTERS


@pytest.mark.parametrize(("library", "owners"), sorted(OWNERS.items()))
def test_a_library_has_one_owner(library: str, owners: set[str]) -> None:
    users = {_module(path) for path in _files() if library in {name.split(".")[0] for name in _imported(path)}}
    assert users <= owners


def test_no_module_hides_one_that_a_script_in_its_directory_would_import() -> None:
    """``python src/image_loader/loader.py`` puts the directory of the package in front of everything else."""
    foreign = set(sys.stdlib_module_names) | set(chain(packages_distributions(), OWNERS)) - {PACKAGE.name}
    assert not {_module(path) for path in _files()} - STARTERS & foreign


@pytest.mark.parametrize("path", _files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_says_its_duty_in_its_first_line(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert re.search(r"[.:)]$", docstring.splitlines()[0])


@pytest.mark.parametrize("path", _files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_those_who_know_of_people_print(path: Path) -> None:
    if _module(path) in {"cli"}:
        return
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_every_exception_is_caught_around_one_job_the_callers_iterable_a_thread_and_a_question_to_dask_alone() -> None:
    handlers = ((path, node) for path in _files() for node in ast.walk(ast.parse(path.read_text())))
    broad = [path.name for path, node in handlers if _is_broad(node)]
    assert broad == ["attempt.py", "batch.py", "dask.py", "connector.py"]


def _is_broad(node: ast.AST) -> bool:
    """Tell whether this handles every exception, and does not raise it again."""
    if not isinstance(node, ast.ExceptHandler) or isinstance(node.body[-1], ast.Raise):
        return False
    return node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})


# Tests ------------------------------------------------------------------------------------------------------------


def test_every_test_says_what_has_to_be() -> None:
    trees = [ast.parse(path.read_text()) for path in Path(__file__).parent.glob("*.py")]
    functions = {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    stating = {name for name, node in functions.items() if _states_something(node)}
    # Helpers may state it: these, those that call them, and so on.
    while more := {name for name, node in functions.items() if name not in stating and _called(node) & stating}:
        stating |= more
    assert [name for name in functions if name.startswith("test_") and name not in stating] == []


def _states_something(function: ast.FunctionDef) -> bool:
    """Tell whether a function asserts something, or expects an exception or a warning."""
    return any(isinstance(node, ast.Assert) for node in ast.walk(function)) or bool(_called(function) & {"raises"})


def _called(function: ast.FunctionDef) -> set[str]:
    names = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return {
        name.attr if isinstance(name, ast.Attribute) else name.id
        for name in names
        if isinstance(name, ast.Attribute | ast.Name)
    }
