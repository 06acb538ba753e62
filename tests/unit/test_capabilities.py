"""What is declared is on the list that uses it: services, programs, checks of inventories."""

from __future__ import annotations

import ast
import fnmatch
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast import capabilities
from holdfast.capabilities import CAPABILITIES
from holdfast.owned import REMOVED
from holdfast.programs import programs
from holdfast.service.capability import Capability
from holdfast.settings import HostSettings

HOLDFAST = Path(__file__).resolve().parents[2] / "holdfast"


def _complete() -> HostSettings:
    said = runpy.run_path(str(HOLDFAST.parent / "inventories/complete.py"))
    ((_, rack),) = said["hosts"]
    return HostSettings.model_validate(rack)


def _functions(file: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def _used(file: Path) -> set[str]:
    """``module.name`` of each attribute that a file uses."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


def test_services_and_programs_that_a_module_declares_are_on_the_list() -> None:
    listed = _used(HOLDFAST / "capabilities.py") | _used(HOLDFAST / "programs.py")
    declared = {
        f"{file.stem}.{function.name}"
        for file in HOLDFAST.rglob("*.py")
        for function in _functions(file)
        if function.name in {"services", "programs"}
        and [each.arg for each in function.args.args] == ["settings"]
        and "checks" not in file.parts
        and file.stem != "programs"
    }
    assert len(declared) > 8
    assert declared - listed == set()
    named = [each for each in vars(capabilities).values() if isinstance(each, Capability)]
    assert [each for each in named if each not in CAPABILITIES] == []


def test_every_check_is_called() -> None:
    called = _used(HOLDFAST / "checks" / "__init__.py")
    written = {
        f"{file.stem}.{function.name}"
        for file in (HOLDFAST / "checks").glob("*.py")
        for function in _functions(file)
        if function.returns is not None
        and ast.unparse(function.returns) == "Findings"
        and function.args.args[0].arg in {"settings", "host"}
    }
    assert len(written) > 30
    assert written - called == set()


def test_no_program_of_ours_would_be_left_behind() -> None:
    settings = _complete()
    bare = HostSettings(
        hostname="bare", distribution="debian13", interfaces=settings.interfaces, docker=None
    )
    kept = {program.unit for program in programs(bare)}
    patterns = [pattern for each in REMOVED for pattern in each.owns]
    for program in programs(settings):
        path = program.path("service")
        matches = any(fnmatch.fnmatch(path, pattern) for pattern in patterns)
        assert matches or program.unit in kept, path


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda each: each.title)
def test_what_a_capability_declares_is_its_own(capability: Capability) -> None:
    settings = _complete()
    for path in capability.declared(settings):
        assert any(fnmatch.fnmatch(path, pattern) for pattern in capability.owns), path
