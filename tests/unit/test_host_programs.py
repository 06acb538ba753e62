"""The contract of `holdfast.host_programs`, on the text that hosts get."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from holdfast import host_programs
from holdfast.host_programs import clouds, gpu_samples, mode, shared
from holdfast.shipping import path_of, text_of
from operations import host_files

OLDEST = (3, 11)
"""The Python of Debian 12."""
PROGRAMS = [
    import_module(found.name)
    for found in pkgutil.iter_modules(host_programs.__path__, f"{host_programs.__name__}.")
    if not found.ispkg
]
SENT_ALONG = {gpu_samples: {"pynvml"}}
"""What a program gets from the fact that sends it."""


def names_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level names of the packages that are imported, anywhere in the text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "" if node.level else str(node.module).partition(".")[0]


def defined(tree: ast.Module) -> Iterator[str]:
    """What the text defines at its top level; imports are none of it."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_every_program_is_here() -> None:
    assert len(PROGRAMS) >= 13


@pytest.mark.parametrize("program", PROGRAMS, ids=names_of)
def test_the_oldest_python_reads_it_and_its_library_has_what_it_imports(
    program: ModuleType,
) -> None:
    tree = ast.parse(text_of(program), feature_version=OLDEST)
    beside = SENT_ALONG.get(program, set())
    assert set(imported(tree)) - beside <= sys.stdlib_module_names


@pytest.mark.parametrize("program", PROGRAMS, ids=names_of)
def test_no_name_is_defined_twice(program: ModuleType) -> None:
    names = Counter(defined(ast.parse(text_of(program))))
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize("program", PROGRAMS, ids=names_of)
def test_an_isolated_python_without_packages_loads_it(program: ModuleType, tmp_path: Path) -> None:
    placed = tmp_path / "holdfast-program"
    placed.write_text(text_of(program))
    load = "import runpy, sys; runpy.run_path(sys.argv[1])"
    subprocess.run([sys.executable, "-I", "-S", "-c", load, placed], check=True, cwd=tmp_path)


def test_what_is_left_out_of_a_shared_module_is_in_every_program() -> None:
    found = pkgutil.iter_modules(shared.__path__, f"{shared.__name__}.")
    left_out = [ast.parse(inspect.getsource(import_module(each.name))).body[:2] for each in found]
    assert left_out
    for docstring, future in left_out:
        assert isinstance(docstring, ast.Expr)
        assert ast.unparse(future) == "from __future__ import annotations"
    assert all("\nfrom __future__ import annotations\n" in text_of(each) for each in PROGRAMS)


def test_a_shared_module_stands_in_place_of_its_import() -> None:
    text = text_of(mode)
    assert "from holdfast" not in text
    assert text.startswith("#!/usr/bin/python3 -I\n")
    assert text.count("class Failed(Exception):") == 1
    assert text.index("class Failed(Exception):") < text.index("class Switch:")


def test_a_program_is_found_by_its_name_and_only_what_starts_itself_is_executable() -> None:
    here = {path_of(program): host_files.program(program) for program in (clouds, mode)}
    assert {path: file.mode for path, file in here.items()} == {
        "/usr/local/sbin/holdfast-clouds": "644",
        "/usr/local/sbin/holdfast-mode": "755",
    }
    assert {file.user for file in here.values()} == {"root"}
