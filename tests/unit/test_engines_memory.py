"""Before an engine starts: the program that waits for its cards' memory, on fake cards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.host_programs import gpu_memory
from tests.doubles.machine import FakeMachine
from tests.doubles.rack import Process, known


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path, known("rack9x3090"))


def _start(machine: FakeMachine, seconds: float, *uuids: str) -> subprocess.Popen[str]:
    program = machine.folder / "memory"
    shutil.copy(gpu_memory.__file__, program)
    return subprocess.Popen(
        [sys.executable, "-I", str(program), str(seconds), "0.8", *uuids],
        env={**os.environ, "PATH": f"{machine.programs}:/usr/bin:/bin"},
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(machine: FakeMachine, *uuids: str) -> tuple[int, str]:
    program = _start(machine, 0, *uuids)
    _, said = program.communicate(timeout=120)
    assert "Traceback" not in said, said
    return program.returncode, said


def test_free_cards_are_free(machine: FakeMachine) -> None:
    assert _run(machine, *(card.uuid for card in machine.rack.cards)) == (0, "")


def test_who_holds_the_memory_is_named_and_left_alone(machine: FakeMachine) -> None:
    held, other = machine.rack.cards[:2]
    held.memory.used_mib = 9000
    held.processes = [Process(pid=os.getpid(), memory_mib=8990)]
    machine.write()
    status, said = _run(machine, held.uuid, other.uuid)
    assert status == 1
    (line,) = said.splitlines()
    assert held.uuid in line
    assert f"process {os.getpid()}" in line
    assert f"of user {os.getuid()}) has 8990 MiB" in line
    assert _run(machine, other.uuid) == (0, "")


def test_what_the_engine_itself_holds_counts_as_free(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = machine.rack.cards[0]
    card.memory.used_mib = 21000
    card.processes = [Process(pid=41, memory_mib=15000), Process(pid=42, memory_mib=5900)]
    machine.write()
    ours = machine.folder / "cgroup.procs"
    ours.write_text("40\n41\n")
    monkeypatch.setenv("BESIDES", str(ours))
    status, said = _run(machine, card.uuid)
    assert (status, "process 42" in said, "process 41" in said) == (1, True, False)
    ours.write_text("41\n42\n")
    assert _run(machine, card.uuid) == (0, "")


@pytest.mark.parametrize("name", ["/opt/a,b,c", "/opt/\\377"])
def test_a_process_may_have_any_name(tmp_path: Path, name: str) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        "#!/bin/sh\ncase $1 in\n"
        "--query-gpu=*) echo 'GPU-1, 24576, 0, 100' ;;\n"
        f"*) printf 'GPU-1, 41, 20900, {name}\\n' ;;\nesac\n"
    )
    driver.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-I", gpu_memory.__file__, "0", "0.8", "GPU-1"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    shown = name.replace("\\377", "\N{REPLACEMENT CHARACTER}")
    assert f"process 41 ({shown}" in done.stderr
    assert "has 20900 MiB" in done.stderr


def test_it_waits_for_memory_that_is_being_given_back(machine: FakeMachine) -> None:
    card = machine.rack.cards[0]
    card.memory.used_mib = 20000
    machine.write()
    program = _start(machine, 60, card.uuid)
    with pytest.raises(subprocess.TimeoutExpired):
        program.communicate(timeout=3)
    card.memory.used_mib = 2
    machine.write()
    assert program.wait(timeout=60) == 0


def test_a_card_that_is_not_there_is_named(machine: FakeMachine) -> None:
    gone = "GPU-00000000-0000-0000-0000-000000000000"
    status, said = _run(machine, gone)
    assert (status, gone in said) == (1, True)


def test_a_driver_that_does_not_answer_is_no_free_memory(machine: FakeMachine) -> None:
    (machine.programs / "nvidia-smi").write_text("#!/bin/sh\necho no driver; exit 9\n")
    status, said = _run(machine, machine.rack.cards[0].uuid)
    assert (status, "no driver" in said) == (1, True)
