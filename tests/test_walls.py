"""The walls of the house: who may import what, no cycles, pieces small enough to read. Walks the source, runs none."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mlb_batch"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py"]

# library -> the modules that may import it (a package stands for all in it)
WALLS = {
    "ray": ("mlb_batch.stages", "mlb_batch.run", "mlb_batch.chain", "mlb_batch.bench.scale"),
    "av": ("mlb_batch.video", "mlb_batch.bench.loops"),
    "torch": ("mlb_batch.prune", "mlb_batch.vlm", "mlb_batch.tiny", "mlb_batch.bench"),
    "transformers": ("mlb_batch.vlm", "mlb_batch.tiny", "mlb_batch.bench"),
}
# These import none of the four, not even through others, when they are loaded.
LIGHT = ("mlb_batch.cost", "mlb_batch.spec", "mlb_batch.errors", "mlb_batch.tiny")
MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_A_FILE = 50, 350


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(node: ast.AST, top_level: bool = False) -> Iterator[str]:
    """Imported modules; `from a import b` gives a.b as well, since b may be one. Those for typing alone don't count."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute here"
            yield str(child.module)
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        elif not (top_level and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from imports(child, top_level)


def within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def loaded_by(module: str) -> set[str]:
    """Modules of ours that importing this one imports, the packages around them included."""
    found = {name for name in imports(tree(MODULES[module]), top_level=True) if name in MODULES}
    around = {name.rpartition(".")[0] for name in found if "." in name}
    return (found | {name for name in around if name in MODULES}) - {module}


@pytest.mark.parametrize("library", WALLS)
def test_a_library_is_imported_only_behind_its_wall(library: str) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == library for name in imports(tree(path)))
    }
    assert users, f"nothing imports {library}: is the test looking in the right place?"
    strangers = {module for module in users if not within(module, WALLS[library])}
    assert not strangers, f"{library} is imported by {sorted(strangers)}"


@pytest.mark.parametrize("start", LIGHT)
def test_light_modules_load_none_of_the_heavy_libraries(start: str) -> None:
    waiting, seen = [start], set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        heavy = {name.partition(".")[0] for name in imports(tree(MODULES[module]), top_level=True)} & WALLS.keys()
        assert not heavy, f"{start} loads {heavy} through {module}"
        waiting += loaded_by(module)


def test_only_the_chain_is_behind_run_and_stages() -> None:
    """mlb_batch.chain is part of run.py and stages.py; those that time it, or stay connected over several runs, import
    it where they do, and nobody else reaches Ray through it.
    """
    chain, timing = ("mlb_batch.chain",), {f"mlb_batch.bench.{name}" for name in ("calibrate", "pipeline", "scale")}
    inside = {name for name in MODULES if within(name, chain)}
    at_once = {module for module in MODULES if any(within(name, chain) for name in loaded_by(module))}
    assert at_once <= {"mlb_batch.run", "mlb_batch.stages"} | inside
    ever = {module for module, path in MODULES.items() if any(within(name, chain) for name in imports(tree(path)))}
    assert ever - at_once - inside <= {"mlb_batch.cli", "mlb_batch.engine"} | timing  # engine: for a type


def test_there_are_no_import_cycles() -> None:
    edges = {module: loaded_by(module) for module in MODULES}
    # A package's __init__ that gathers its own modules is no cycle: they don't import the package's names back.
    edges = {module: {name for name in names if not module.startswith(name + ".")} for module, names in edges.items()}
    finished: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in finished:
            for other in sorted(edges[module]):
                visit(other, (*way, module))
            finished.add(module)

    for module in edges:
        visit(module, ())


def test_a_row_is_caught_in_one_place_only() -> None:
    broad = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "Exception")
    }
    # A Ray that is slow to start raises a bare Exception, and so do parsers of a checkpoint's damaged files; the hub's
    # clients raise what their transports do. What is caught there is no row, and goes on as one line.
    assert broad == {"mlb_batch.stages", "mlb_batch.chain.cluster", "mlb_batch.vlm.small_files", "mlb_batch.vlm.hub"}


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_stay_small_and_say_what_they_are_for(module: str) -> None:
    path = MODULES[module]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES_OF_A_FILE
    assert ast.get_docstring(tree(path)), f"{path.name} opens without saying its one job"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MOST_LINES_OF_A_FUNCTION, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_opens_with_a_map_of_its_files_and_of_no_others(package: str) -> None:
    path = MODULES[package]
    on_the_map = set(re.findall(r"\w+\.py\b", ast.get_docstring(tree(path)) or ""))
    there = {file.name for file in path.parent.glob("*.py") if not file.name.startswith("__")}
    assert there <= on_the_map, f"not on it: {sorted(there - on_the_map)}"
    gone = on_the_map - {file.name for file in FILES}
    assert not gone, f"no such file: {sorted(gone)}"


def test_the_page_that_is_read_first_is_one_page() -> None:
    assert len(MODULES["mlb_batch.run"].read_text(encoding="utf-8").splitlines()) < 100
