"""Every fact, with a login that prints lines of its own around the answer, or swallows it."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import FactBase

from facts.framed import Framed, Unanswered, answer, framed, is_framed
from tests.unit.recorded_facts import RECORDED, every_fact, read, recorded

NOISY = """\
echo 'Welcome to rack'
echo '#= pci'
echo 'Id=chat.service'
echo '/etc/systemd/system/banner.service'
echo 'two words' >&2
printf 'no end of line'
trap 'printf "bye\\n/etc/passwd\\n"' EXIT
"""
"""A login's start file."""
SILENT = {"ends": "exit 0", "swallows": "exec >/dev/null"}
SAMPLES: dict[str, Any] = {"str": "a", "list[str]": ["a"], "dict[str, list[str]]": {"a": ["b"]}}
"""An argument of each type that a fact has one of."""


def _log_in(command: str, start_file: Path) -> list[str]:
    """What comes back where a login's shell reads ``start_file`` and then runs ``command``."""
    done = subprocess.run(
        ["bash", "-c", f"sh -c {shlex.quote(command)}"],
        env={**os.environ, "BASH_ENV": str(start_file)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.fixture
def start_file(tmp_path: Path) -> Path:
    file = tmp_path / "bashrc"
    file.write_text(NOISY)
    return file


@pytest.mark.parametrize("fact", every_fact(), ids=lambda fact: fact.__name__)
def test_what_a_login_prints_changes_no_fact(fact: type[FactBase[Any]], start_file: Path) -> None:
    command = framed(f"cat {shlex.quote(str(RECORDED / f'{fact.__name__}.txt'))}")
    heard = _log_in(command, start_file)
    assert len(heard) > len(recorded(fact)) + 5
    value = fact().process(heard)
    assert value == read(fact)
    assert value != fact().default(), "a recorded answer that says nothing shows nothing"


@pytest.mark.parametrize("fact", every_fact(), ids=lambda fact: fact.__name__)
def test_every_fact_asks_for_a_frame(fact: type[FactBase[Any]]) -> None:
    assert issubclass(fact, Framed)
    parameters = list(inspect.signature(fact.command).parameters.values())[1:]
    arguments = {
        each.name: SAMPLES[each.annotation] for each in parameters if each.default is each.empty
    }
    # As pyinfra calls it.
    given = inspect.getcallargs(fact().command, **arguments)
    command: Any = fact().command
    assert is_framed(command(**{name: given[name] for name in given if name != "self"}))


@pytest.mark.parametrize("fact", every_fact(), ids=lambda fact: fact.__name__)
@pytest.mark.parametrize("cut", ["begin", "end", "both"])
def test_an_answer_that_is_not_whole_is_an_error(fact: type[FactBase[Any]], cut: str) -> None:
    lines = subprocess.run(
        ["sh", "-c", framed("echo x")], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    whole = {"begin": lines[2:], "end": lines[:-1], "both": ["x"]}[cut]
    with pytest.raises(Unanswered, match=r"is incomplete: .*\.bashrc"):
        fact().process(whole)


@pytest.mark.parametrize("printed", ["", "\n", "a", "a\n", "a\n\n", "\na\n", "=\n===\n"])
def test_an_answer_is_what_the_command_printed(printed: str, start_file: Path) -> None:
    command = framed(f"printf %s {shlex.quote(printed)}")
    assert answer(_log_in(command, start_file)) == printed.splitlines()


@pytest.mark.parametrize("command", ["exit 3", "false; exit 3 # the end", "set -e; (exit 3); echo"])
def test_the_exit_status_is_the_command_s(command: str) -> None:
    done = subprocess.run(["sh", "-c", framed(command)], capture_output=True, check=False)
    assert done.returncode == 3


def test_programs_answer_in_the_language_that_facts_read() -> None:
    done = subprocess.run(
        ["sh", "-c", framed("locale")],
        env={**os.environ, "LANG": "de_DE.UTF-8", "LC_ALL": "de_DE.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'LC_MESSAGES="C"' in answer(done.stdout.splitlines())


ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    file
    for folder in ("deploys", "facts", "holdfast", "operations")
    for file in (ROOT / folder).rglob("*.py")
]


def test_no_fact_or_operation_of_pyinfra_s_own_is_used() -> None:
    """They read a banner as an answer: so does `files.File`, for one."""
    assert len(SOURCES) > 100
    found = [
        file for file in SOURCES if re.search(r"pyinfra\.(facts|operations)\b", file.read_text())
    ]
    assert found == []


def test_what_is_read_without_a_fact_is_framed_too() -> None:
    read_by = {}
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Assign) or "run_shell_command" not in ast.unparse(
                node.value
            ):
                continue
            _, output = ast.unparse(node.targets[0]).strip("()").split(", ")
            if output != "_":
                read_by[str(file.relative_to(ROOT))] = "framed(" in ast.unparse(node.value)
    read_by.pop("holdfast/connector.py")
    assert set(read_by) == {
        "holdfast/engines/bench.py",
        "operations/gpu_driver.py",
        "operations/sshd.py",
    }
    assert all(read_by.values()), read_by
