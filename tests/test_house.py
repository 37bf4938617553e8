"""The house rules: which room may import which, what core may not do, and how long things may be.

Floors are those of README's "How it works": an import goes to a lower floor, never up and never across,
except inside `core` (where only cycles are forbidden) and where a room's own rule below says so. Imports
inside functions count; those under `TYPE_CHECKING` do not run and do not count.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "tensorport_hub"
MAX_FILE, MAX_FUNCTION = 350, 60

FLOORS = {
    "errors": 0,
    "core": 1,
    "ports": 3,
    "results": 3,
    "report": 4,
    "meter": 4,
    "texts": 3.5,
    "survey": 4,
    "comparison": 4,
    "engine": 4,
    "edge": 4,
    "probe": 5,
    "reading": 5,
    "contents": 5,
    "destination": 5,
    "files": 5,
    "limits": 5,
    "lazy": 6,
    "hub_destination": 6,
    "git_destination": 6,
    "asked": 6,
    "job": 7,
    "audit": 7,
    "cluster": 7.5,
    "outlook": 7.5,
    "pages": 7.5,
    "checkpoint": 7,
    "jax": 8,
    "api": 8,
    "batch": 9,
    "demo": 9,
    "interrupt": 9,
    "cli": 10,
    "__main__": 11,
}
"""Room or module -> floor; the longest matching prefix counts."""

IN_EDGE = {
    "edge.retry": 0,
    "edge.http": 0,
    "edge.exchange": 0,
    "edge.journal": 0,
    "edge.staging": 0,
    "edge.target": 0,
    "edge.pace": 0,
    "edge.hub_answers": 0,
    "edge.hub_errors": 0.5,
    "edge.hub_client": 1,
    "edge.xet": 2,
    "edge.hub_xet": 2.5,
    "edge.hub_xet_ranges": 2.5,
    "edge.together": 0,
    "edge.ref_journal": 0,
    "edge.hub_lfs": 2,
    "edge.hub_ref": 2,
    "edge.hub_pulls": 2,
    "edge.hub_windows": 2,
    "edge.hub_store": 3,
    "edge.hub_work": 3,
    "edge.hub_find": 4,
    "edge.git": 1,
    "edge.git_remote": 2,
    "edge.git_lfs": 3,
    "edge.git_work": 4,
}
"""What lies below its siblings in `edge`, and how deep; all others lie on top, side by side."""

NO_IO = {
    *("os", "io", "pathlib", "socket", "subprocess", "urllib.request", "http", "ssl", "shutil", "tempfile"),
    *("time", "datetime", "random", "secrets", "uuid", "logging", "threading", "asyncio", "multiprocessing"),
    *("concurrent", "queue", "signal", "sys", "platform", "getpass", "huggingface_hub", "urllib3", "mmap"),
}


def module_name(path: Path) -> str:
    """`tensorport_hub/core/plan.py` -> `core.plan`; a package is its own name, the whole one `__init__`."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
MODULES = {module_name(path): path for path in FILES}
TESTS = sorted((ROOT / "tests").rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def running(node: ast.AST, *, inside: bool) -> Iterator[ast.AST]:
    """The nodes that run: everything (`inside`), or what runs at import; never what only types are for."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if not inside and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from running(child, inside=inside)


def imports(path: Path, *, inside: bool = True) -> Iterator[tuple[str, int]]:
    """Absolute names that a file imports, with the line; `from a import b` gives `a.b`."""
    for node in running(tree(path), inside=inside):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def ours(path: Path, *, inside: bool = True) -> Iterator[tuple[str, int]]:
    """Modules of this package that a file imports, by their name in it."""
    for name, line in imports(path, inside=inside):
        if name.split(".")[0] != PACKAGE:
            continue
        rest = name.split(".")[1:]
        while rest and ".".join(rest) not in MODULES:
            rest = rest[:-1]
        yield (".".join(rest) or "__init__"), line


def floor(module: str) -> int:
    parts = module.split(".")
    while parts and ".".join(parts) not in FLOORS:
        parts = parts[:-1]
    assert parts, f"module `{module}` has no floor: name its room in FLOORS"
    return FLOORS[".".join(parts)]


def room(module: str) -> str:
    return module.split(".")[0]


def allowed(module: str, imported: str) -> bool:
    """Whether the arrow from one module to another goes down, or is one of the named exceptions."""
    here, there = room(module), room(imported)
    if imported == "__init__":
        return True  # the version, and what it loads late
    if here == "__init__":
        return imported in ("api", "batch", "checkpoint", "errors")
    if here == "devhub" or there == "devhub":
        return (here == there) or (here in ("cli", "demo") and there == "devhub")
    if here == there == "edge":
        return IN_EDGE.get(imported, 5) < IN_EDGE.get(module, 5)
    if here == there:
        return True
    if here == "core":
        return imported == "errors"
    return floor(imported) < floor(module)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    """A module imports lower floors only; neighbours on a floor never meet."""
    wrong = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {imported}"
        for imported, line in ours(MODULES[module])
        if imported != module and not allowed(module, imported)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "imported", "fine"),
    [
        ("core.plan", "core.recipe", True),
        ("core.plan", "errors", True),
        ("core.plan", "ports", False),
        ("core.card", "edge.http", False),
        ("errors", "core.size", False),
        ("ports", "core.digest", True),
        ("ports", "results", False),
        ("engine.run", "ports", True),
        ("engine.run", "edge.local", False),
        ("survey", "engine.run", False),
        ("edge.local", "survey", False),
        ("edge.local", "edge.hub_source", False),
        ("edge.hub_sink", "edge.hub_lfs", True),
        ("edge.hub_lfs", "edge.http", True),
        ("edge.hub_lfs", "edge.hub_xet", False),
        ("edge.hub_client", "edge.hub_sink", False),
        ("job", "reading", True),
        ("reading", "job", False),
        ("jax.params", "checkpoint", True),
        ("api", "jax.params", False),
        ("checkpoint", "jax.params", False),
        ("checkpoint", "lazy", True),
        ("lazy", "checkpoint", False),
        ("api", "cli", False),
        ("api", "devhub.server", False),
        ("cli.local", "devhub", True),
        ("devhub.hub", "devhub.repos", True),
        ("devhub.hub", "errors", False),
        ("devhub.hub", "core.digest", False),
    ],
)
def test_the_rule_itself(module, imported, fine):
    """The rule says yes and no where the floors do."""
    assert allowed(module, imported) is fine


def test_the_verbs_that_the_package_loads_late_are_the_only_way_up():
    """`__init__` imports nothing of ours when it is loaded, and what has the verbs only when one is used."""
    assert not list(ours(MODULES["__init__"], inside=False))
    late = {imported for imported, _ in ours(MODULES["__init__"])}
    assert late <= {"__init__", "api", "batch", "checkpoint", "errors"}


def test_no_cycles():
    """Modules never import each other in a circle while they are loaded."""
    graph = {module: {i for i, _ in ours(path, inside=False)} - {module} for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module in done:
            return
        for imported in sorted(graph[module]):
            visit(imported, (*way, module))
        done.add(module)

    for module in graph:
        visit(module, ())
    assert done == set(graph)


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in ("core", "report")])
def test_core_does_no_io(module):
    """Core and report open no file or socket, ask no clock, roll no dice, start no thread and log nothing."""
    wrong = [
        f"line {line}: import {name}"
        for name, line in imports(MODULES[module])
        if any(name == banned or name.startswith(f"{banned}.") for banned in NO_IO)
        if name != "io.BytesIO"  # bytes in memory
    ]
    wrong += [
        f"line {node.lineno}: {node.func.id}(...)"
        for node in ast.walk(tree(MODULES[module]))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("open", "print", "input", "exec", "eval", "__import__")
    ]
    assert not wrong, "\n".join(wrong)


DOORS = {
    "git": {"edge.git"},
    "distributed": {"cluster.dask", "cluster.worker", "cluster.run"},
    "huggingface_hub": {"edge.hub_client", "edge.hub_errors", "demo"},  # the demo reads back as a user would
    "hf_xet": {"edge.xet"},
    "jax": {module for module in MODULES if room(module) == "jax"},
}


@pytest.mark.parametrize("library", [*DOORS, "jaxlib", "torch", "transformers"])
def test_outside_libraries_have_one_door(library):
    """The Hub's client, hf_xet and jax are imported by their own rooms alone; torch by nobody."""
    users = {
        module
        for module, path in MODULES.items()
        for name, _ in imports(path)
        if name.split(".")[0] == library
    }
    assert users <= DOORS.get(library, set())


def test_only_the_command_line_prints():
    """`print` is called in `cli`, `demo` and the embedded Hub's program, nowhere else."""
    printing = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert {room(module) for module in printing} <= {"cli", "demo", "__main__"}


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.cli", f"{PACKAGE}.errors"])
def test_importing_costs_nothing(module):
    """Neither the package nor the command line loads numpy or the Hub's client before it needs them."""
    code = f"import sys, {module}; print(*sorted(m for m in sys.modules if '.' not in m))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    loaded = set(run.stdout.split())
    assert PACKAGE in loaded
    assert not loaded & {
        "numpy",
        "huggingface_hub",
        "ml_dtypes",
        "hf_xet",
        "urllib3",
        "aiohttp",
        "jax",
        "git",
        "distributed",
    }


# --- writing ---


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_modules_and_what_they_offer_have_docstrings(path):
    """Every module, and every public function and class at its top, says what it is."""
    bare = [] if ast.get_docstring(tree(path)) or not tree(path).body else ["the module"]
    bare += [
        f"{node.name} (line {node.lineno})"
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not is_route(node)
        and not ast.get_docstring(node)
    ]
    assert not bare, f"without docstring: {', '.join(bare)}"


def is_route(node: ast.AST) -> bool:
    """A devhub route takes the call and nothing else: the table of routes says what it answers."""
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and [a.arg for a in node.args.args] == [
        "call"
    ]


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    said = node.body[0]
    docstring = (said.end_lineno or 0) - said.lineno + 1 if ast.get_docstring(node) else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_nothing_grows_past_its_cap(path):
    """No file over 350 lines, no function over 60 beside its docstring: past that it has a second noun."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    long = [f"the file: {lines} lines"] if lines > MAX_FILE else []
    functions = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long += [
        f"{node.name} (line {node.lineno}): {code_lines(node)} lines"
        for node in functions
        if code_lines(node) > MAX_FUNCTION
    ]
    assert not long, "; ".join(long)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT / "tests").as_posix())
def test_tests_say_what_they_show(path):
    """Every test has a docstring that states the behaviour."""
    functions = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    tests = [node for node in functions if node.name.startswith("test_")]
    bare = [f"{node.name} (line {node.lineno})" for node in tests if not ast.get_docstring(node)]
    assert not bare, f"without docstring: {', '.join(bare)}"


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT / "tests").as_posix())
def test_no_test_is_skipped(path):
    """No test is marked to be skipped or expected to fail; what a machine lacks is asked for in two places,
    which fail instead where `TENSORPORT_TEST_ALL` is set."""
    text = ast.unparse(tree(path))
    if path in (ROOT / "tests" / "git" / "conftest.py", ROOT / "tests" / "report" / "conftest.py"):
        text = text.replace(f"pytest.{'skip'}(said)", "", 1)
    marks = [f"mark.{'skip'}", f"pytest.{'skip'}(", f"mark.{'xfail'}", f"{'importorskip'}("]
    assert not [mark for mark in marks if mark in text]


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "misc", "util", "helper"])
def test_no_room_without_a_noun(name):
    """There is no module for what belongs nowhere."""
    assert not [module for module in MODULES if name in module.split(".")]


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_path_of_a_machine(path):
    """Neither code nor tests name a folder of the machine that they were written on."""
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert f"/{'work'}/" not in text
    assert f"/{'home'}/" not in text
