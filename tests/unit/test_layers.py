"""The layers of the code: what the contracts of import-linter in pyproject.toml cannot say."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

from facts import places

ROOT = Path(__file__).resolve().parents[2]
PLACES = {name: value for name, value in vars(places).items() if name.isupper()}
MODULES = [
    file
    for folder in ("deploys", "operations", "holdfast", "facts")
    for file in sorted((ROOT / folder).rglob("*.py"))
    # A program that runs on a host says for itself where it looks, and the defaults of an inventory
    # are shown to people as they are.
    if not {"host_programs", "settings"} & {*file.relative_to(ROOT).parts}
    and file != Path(places.__file__)
]


def test_no_module_imports_itself_through_others() -> None:
    graph = grimp.build_graph("deploys", "operations", "holdfast", "facts", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}

    assert "holdfast.settings.docker" in imports["holdfast.settings"]
    # It raises CycleError, which names the modules of a circle.
    TopologicalSorter(imports).prepare()


def _texts(file: Path) -> list[str]:
    """Every text in a module that is no docstring."""
    tree = ast.parse(file.read_text("utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]


@pytest.mark.parametrize("name", PLACES)
def test_where_things_lie_is_said_once(name: str) -> None:
    place = PLACES[name]
    again = {
        str(file.relative_to(ROOT)): text
        for file in MODULES
        for text in _texts(file)
        if text == place or f"{place}/" in text
    }
    assert again == {}, f"write facts.places.{name}"
