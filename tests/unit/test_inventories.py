"""The inventories that come with Holdfast parse, and hold data and nothing else."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.site_data import filled_in, keep_secrets

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data"
INVENTORIES = sorted((ROOT / "inventories").glob("[!_]*.py"))
SECRETS = re.findall(r"^([A-Z_]+)=$", (ROOT / ".env.example").read_text(), re.MULTILINE)


def _checked(inventory: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    # As many different values as names: what .env.example lists must be all that is asked for.
    keep_secrets(folder, {key: f"{key.lower()[:9]}-9fKq27xLmZ" for key in SECRETS})
    return subprocess.run(
        [sys.executable, "-m", "holdfast", "plan", "--offline", str(inventory)],
        cwd=ROOT,
        env={"HOLDFAST_SECRETS": str(folder), "HOLDFAST_LAB": str(DATA / "lab.json")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("name", ["complete", "drill"])
def test_nothing_is_refused(name: str, tmp_path: Path) -> None:
    result = _checked(ROOT / f"inventories/{name}.py", tmp_path)
    assert result.stderr == ""
    assert result.stdout.endswith("nothing to refuse\n")


def test_the_example_is_refused_until_its_placeholders_are_replaced(tmp_path: Path) -> None:
    example = ROOT / "inventories/example.py"
    result = _checked(example, tmp_path)
    assert result.returncode == 1
    assert re.findall(r"^(\S+: \S+) = ", result.stderr, re.MULTILINE) == [
        "rack: storage.models[0].source",
        "rack: storage.models[0].sha256",
        "rack: storage.models[1].sha256",
        "rack: floor.release.sha256",
    ]
    mine = tmp_path / "mine.py"
    mine.write_text(filled_in(example))
    result = _checked(mine, tmp_path)
    assert result.stderr == ""
    assert result.stdout.endswith("nothing to refuse\n")


@pytest.mark.parametrize("path", INVENTORIES, ids=lambda path: path.stem)
def test_an_inventory_is_data_only(path: Path) -> None:
    allowed = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign)
    statements = ast.parse(path.read_text()).body
    assert [type(item).__name__ for item in statements if not isinstance(item, allowed)] == []
    # pyinfra takes every list or tuple without a leading underscore for a group of hosts.
    names = [
        target.id
        for item in statements
        if isinstance(item, ast.Assign)
        for target in item.targets
        if isinstance(target, ast.Name)
    ]
    assert [name for name in names if not name.startswith("_")] == ["hosts"]


@pytest.mark.parametrize("path", INVENTORIES, ids=lambda path: path.stem)
def test_no_secret_stands_in_an_inventory(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Dict):
            continue
        for key, value in zip(node.keys, node.values, strict=True):
            name = key.value if isinstance(key, ast.Constant) else ""
            if name in ("password", "user_password", "auth_key", "api_key"):
                assert isinstance(value, ast.Constant)
                assert value.value in SECRETS
