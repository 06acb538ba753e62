"""The bench's fast target answers what was recorded, and nothing that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drill.replay import UNIT, FastTarget
from tests.drill.transcript import Answer, Transcript

ROOT = Path(__file__).resolve().parents[2]
ODD = "sudo -H -n sh -c 'printf \"%s\\n\" '\"'\"'$HOME a\\\\x2db'\"'\"'; echo `id`\n'"
ANSWERS = [
    Answer(ODD, "first\n\n  second\\n\n", "a warning\n", 7),
    Answer("sh -c uptime", "up 1 minute\n", "", 0),
    Answer("sh -c uptime", "up 2 minutes\n", "", 0),
]


def _ask(target: FastTarget, command: str) -> tuple[int, str, str]:
    done = subprocess.run(
        ["sh", target.look_up],
        env={**os.environ, "SSH_ORIGINAL_COMMAND": command},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_recorded_command_gets_its_answer_byte_for_byte(tmp_path: Path) -> None:
    target = FastTarget(tmp_path / "it's fast", ANSWERS)
    assert _ask(target, ODD) == (7, "first\n\n  second\\n\n", "a warning\n")
    assert target.unknown() == []


def test_a_question_asked_twice_gets_its_first_answer(tmp_path: Path) -> None:
    target = FastTarget(tmp_path, ANSWERS)
    assert _ask(target, "sh -c uptime") == (0, "up 1 minute\n", "")


def test_the_unit_is_always_answered(tmp_path: Path) -> None:
    assert _ask(FastTarget(tmp_path, []), UNIT) == (0, "", "")


@pytest.mark.parametrize("command", ["sh -c reboot", "", "sh -c uptime ", "two\nlines\n"])
def test_an_unrecorded_command_fails_and_is_named(tmp_path: Path, command: str) -> None:
    target = FastTarget(tmp_path, ANSWERS)
    status, stdout, stderr = _ask(target, command)
    assert (status, stdout) == (99, "")
    assert "never recorded" in stderr
    assert target.unknown() == [command]


def test_a_transcript_survives_being_kept_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    transcript = Transcript(connecting=1.5, connected=2.0, answers=ANSWERS)
    transcript.write(tmp_path / "transcript.json")
    assert Transcript.read(tmp_path / "transcript.json") == transcript
    assert (tmp_path / "transcript.json").stat().st_mode & 0o777 == 0o600


def test_the_lab_file_differs_in_the_way_to_the_rack_only(tmp_path: Path) -> None:
    original = tmp_path / "lab.json"
    original.write_text(json.dumps({"debian": 13, "ssh_config": "/elsewhere"}))
    target = FastTarget(tmp_path / "fast", [])
    copied = json.loads(target.lab_file(original).read_text())
    assert copied == {"debian": 13, "ssh_config": str(target.ssh_config)}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[FastTarget]:
    with FastTarget(tmp_path / "fast", ANSWERS) as target:
        yield target


def test_openssh_serves_the_answers(running: FastTarget) -> None:
    done = subprocess.run(
        ["ssh", "-F", running.ssh_config, "rack", ODD],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "first\n\n  second\\n\n")
    assert "a warning\n" in done.stderr


def test_it_lets_in_the_bench_alone(running: FastTarget) -> None:
    other = running.folder / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    options = ["-o", "IdentityAgent=none", "-o", "BatchMode=yes"]
    text = running.ssh_config.read_text().replace("client-key", "other")
    running.ssh_config.write_text(text)
    done = subprocess.run(
        ["ssh", "-F", running.ssh_config, *options, "rack", "sh -c uptime"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


@pytest.mark.parametrize("switch", [[], ["--nagle"]])
def test_a_watched_run_records_what_it_asked(running: FastTarget, switch: list[str]) -> None:
    inventory = running.folder / "inventory.py"
    data = {"ssh_config_file": str(running.ssh_config), "ssh_user": "operator"}
    inventory.write_text(f"hosts = [('@ssh/rack', {data!r})]\n")
    kept = running.folder / "transcript.json"
    subprocess.run(
        [sys.executable, "-m", "tests.drill.watch", str(kept), *switch, "-y", str(inventory)]
        + ["fact", "server.Command", "command=uptime"],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=True,
    )
    transcript = Transcript.read(kept)
    assert [(answer.command, answer.stdout, answer.status) for answer in transcript.answers] == [
        ("sh -c uptime", "up 1 minute\n", 0)
    ]
    assert 0 < transcript.connecting < transcript.connected
    assert 0 < transcript.asking < 30
