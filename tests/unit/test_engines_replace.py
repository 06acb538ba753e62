"""A replacement, with everything that can go wrong: it ends with the old model or the new one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from holdfast import completion
from holdfast.host_programs import replace as replace_program
from holdfast.host_programs.replace import UnixConnection
from holdfast.shipping import text_of
from tests.unit import faults

FAKE = Path(__file__).with_name("fake_engine.py")
QUESTIONS: list[completion.Question] = [
    ("/v1/completions", {"model": "chat", "prompt": "ready"}),
    ("/v1/chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "x"}]}),
]


@dataclass
class Host:
    """One engine on a host of its own in ``folder``, and the program as a host runs it."""

    folder: Path

    def __post_init__(self) -> None:
        self.programs = self.folder / "programs"
        self.programs.mkdir()
        self._program("systemctl", f'exec {sys.executable} -I -S {FAKE} systemctl "$@"')
        self._program("systemd-run", f'exec {sys.executable} -I -S {FAKE} systemd-run "$@"')
        self._program("memory", "true")
        self.program = self.folder / "program.py"
        self.program.write_text(text_of(replace_program))
        self.model("old")
        self.configure("chat.yaml", "old")
        job = {
            "name": "chat",
            "unit": "chat.service",
            "socket": str(self.folder / "http.sock"),
            "doors": [str(self.folder / "door.sock"), str(self.folder / "shut.sock")],
            "configuration": str(self.folder / "chat.yaml"),
            "model_key": "model",
            "cache": str(self.folder / "cache"),
            "questions": QUESTIONS,
            "model": "chat",
            "key": str(self.folder / "key"),
            "running_metric": "run",
            "waiting_metric": "wait",
            "memory": ["memory", "60", "0.8", "GPU-1"],
            "drain_seconds": 3,
        }
        (self.folder / "jobs").mkdir()
        (self.folder / "jobs" / "chat.json").write_text(json.dumps(job))
        (self.folder / "key").write_text("a-key\n")
        self.environment = {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "FAKE_ENGINE": str(self.folder),
        }
        self.place_undo()
        self.systemctl("start")
        self.door = subprocess.Popen(
            [sys.executable, FAKE, "door", self.folder / "door.sock", self.folder / "door"]
        )
        _wait((self.folder / "door.sock").exists)

    def _program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def describe(self, **job: object) -> None:
        file = self.folder / "jobs" / "chat.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | job))

    def memory_says(self, script: str) -> None:
        self._program("memory", script)

    def model(self, name: str, **files: str) -> None:
        folder = self.folder / "models" / name
        folder.mkdir(parents=True)
        for file, text in {"config.json": "{}", **files}.items():
            (folder / file.replace("_", "-")).write_text(text)
        sums = [
            f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
            for file in sorted(folder.iterdir())
        ]
        (folder / "SHA256SUMS").write_text("".join(sums))

    def configure(self, file: str, model: str) -> None:
        (self.folder / file).write_text(f"model: {self.folder / 'models' / model}\nuds: x\n")

    def offer(self, model: str, **files: str) -> None:
        self.model(model, **files)
        self.configure("chat.yaml.next", model)

    def systemctl(self, verb: str) -> int:
        return subprocess.run(
            ["systemctl", verb, "chat.service"], env=self.environment, check=False
        ).returncode

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-I", str(self.program), *arguments]
            + [f"--jobs={self.folder / 'jobs'}", f"--state={self.folder / 'state'}"],
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
            # As in the sandbox of its unit.
            umask=0o077,
        )

    def place_undo(self) -> None:
        """Have systemd know what undoes a replacement."""
        (self.folder / "undo").write_text(shlex.join([*self.command, "--undo"]))

    @property
    def command(self) -> list[str]:
        where = [f"--jobs={self.folder / 'jobs'}", f"--state={self.folder / 'state'}"]
        return [sys.executable, "-I", "-S", str(self.program), "chat", *where]

    def unit(self) -> subprocess.Popen[str]:
        """The transient unit as `follow` asks for it, without its caller."""
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(FAKE), "unit", *self.command, "--here"],
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        program = self.start(*arguments)
        _, said = program.communicate(timeout=120)
        assert "Traceback" not in said, said
        return program.returncode, said

    def reboot(self) -> None:
        """A power cut's end: recovery, then the units that start with the machine."""
        assert self.run("--recover")[0] == 0
        self.systemctl("start")

    @property
    def step(self) -> str:
        file = self.folder / "state" / "chat.json"
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(file.read_text())["step"])
        return ""

    def serves(self) -> str:
        """The model that answers; empty where none does."""
        with contextlib.suppress(OSError):
            connection = UnixConnection(str(self.folder / "http.sock"), 10)
            connection.request("POST", "/v1/completions", "{}", {"Authorization": "Bearer a-key"})
            answer = json.loads(connection.getresponse().read())
            return str(answer["choices"][0]["text"])
        return ""

    def told_the_door(self) -> list[str]:
        file = self.folder / "door"
        return [line.split()[-1] for line in file.read_text().splitlines()] if file.exists() else []


def _wait(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    try:
        yield made
    finally:
        made.systemctl("stop")
        made.door.kill()
        made.door.wait()


def test_a_replacement_serves_the_new_model_and_keeps_the_old_ones_word(host: Host) -> None:
    host.offer("new")
    status, said = host.run("chat")
    assert (status, host.serves(), host.step) == (0, "new", "done"), said
    assert "s without answers" in said
    assert "models/old" in (host.folder / "chat.yaml.previous").read_text()
    # No caller was let in while it was not answering, and each one is now.
    assert host.told_the_door() == ["maint", "ready"]


def _another_byte(host: Host) -> None:
    host.offer("new")
    (host.folder / "models/new/config.json").write_text("[]")


def _a_file_less(host: Host) -> None:
    host.offer("new")
    (host.folder / "models/new/config.json").unlink()


def _busy(host: Host) -> None:
    host.offer("new")
    (host.folder / "busy").write_text("2.0")


def _one_under_way(host: Host) -> None:
    host.offer("new")
    (host.folder / "busy").write_text("1.0")


def _one_that_waits(host: Host) -> None:
    host.offer("new")
    (host.folder / "queued").write_text("1.0")


def _full_disk(host: Host) -> None:
    host.offer("new")
    host.describe(free_mib=1 << 40)


def _others_cards(host: Host) -> None:
    host.offer("new")
    host.memory_says('[ -z "$BESIDES" ] || { echo process 9 has it >&2; exit 1; }')


UNTOUCHED: dict[str, tuple[Callable[[Host], None], str]] = {
    "no candidate": (lambda host: None, "deploy it first"),
    "a model that is not here": (
        lambda host: host.configure("chat.yaml.next", "nowhere"),
        "is not on this host",
    ),
    "a byte is another": (_another_byte, "does not match its SHA256SUMS"),
    "a file is missing": (_a_file_less, "does not match its SHA256SUMS"),
    "somebody else holds its cards": (_others_cards, "process 9 has it"),
    "the disk is full": (_full_disk, "MiB to spare"),
    "requests are still running": (_busy, "2 requests are still running"),
    "one request is under way": (_one_under_way, "1 requests are still running"),
    "one request waits for its turn": (_one_that_waits, "1 requests are still running"),
}


@pytest.mark.parametrize("fault", UNTOUCHED)
def test_what_is_seen_before_costs_no_request(host: Host, fault: str) -> None:
    prepare, says = UNTOUCHED[fault]
    prepare(host)
    pid = (host.folder / "pid").read_text()
    status, said = host.run("chat")
    assert (status, host.serves()) == (1, "old"), said
    assert says in said
    assert (host.folder / "pid").read_text() == pid, "it was restarted"
    assert host.told_the_door()[-1:] != ["maint"], "no caller is let in any more"


def test_ready_means_that_chats_are_answered_too(host: Host) -> None:
    file = host.folder / "probe"
    socket = str(host.folder / "http.sock")
    file.write_text(completion.probe(socket, QUESTIONS, SecretStr("a-key")))
    (host.folder / "models/old/no-template").touch()

    def asked() -> subprocess.CompletedProcess[str]:
        command = ["curl", "--config", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert asked().returncode == 22
    # Whichever of them is refused.
    file.write_text(completion.probe(socket, QUESTIONS[::-1], SecretStr("a-key")))
    assert asked().returncode == 22
    (host.folder / "models/old/no-template").unlink()
    done = asked()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_thoughts_are_an_answer_and_an_empty_message_is_none() -> None:
    for message, is_answer in (
        ({"content": "x"}, True),
        ({"content": None, "reasoning_content": "hm"}, True),
        ({"content": ""}, False),
        (None, False),
    ):
        said = {"model": "chat", "choices": [{"message": message}]}
        assert replace_program._is_answer(said, "chat") == is_answer
        assert not replace_program._is_answer(said, "other")


def test_now_does_not_wait(host: Host) -> None:
    host.offer("new")
    (host.folder / "busy").write_text("2.0")
    assert host.run("chat", "--now")[0] == 0
    assert host.serves() == "new"


ROLLED_BACK = {
    "it never gets ready": ({"never_ready": ""}, "true", "did not start"),
    "it answers garbage": ({"garbage": ""}, "true", "it answers /v1/completions with HTTP 200"),
    "it answers to another name": ({"misnamed": ""}, "true", "/v1/completions with HTTP 200"),
    "it answers no chat": ({"no_template": ""}, "true", "/v1/chat/completions with HTTP 400"),
    "memory is not released": (
        {},
        '[ -n "$BESIDES" ] || { echo process 7 has it >&2; exit 1; }',
        "process 7 has it",
    ),
}


@pytest.mark.parametrize("fault", ROLLED_BACK)
def test_what_fails_later_ends_with_the_old_model(host: Host, fault: str) -> None:
    files, memory, says = ROLLED_BACK[fault]
    host.offer("new", **files)
    host.memory_says(memory)
    status, said = host.run("chat")
    assert (status, host.serves(), host.step) == (1, "old", "rolled back"), said
    assert says in said
    assert host.told_the_door() == ["maint", "ready"]


def test_words_that_are_no_text_are_told_and_go_back(host: Host) -> None:
    # A process on a card has any name that it likes.
    host.offer("new")
    host.memory_says("[ \"$1\" = 0 ] || { printf 'held by \\377\\n' >&2; exit 1; }")
    status, said = host.run("chat")
    assert status == 1
    assert "Traceback" not in said
    assert "its memory was not released: held by \N{REPLACEMENT CHARACTER}" in said
    assert (host.serves(), host.step) == ("old", "rolled back")


def test_a_second_replacement_at_the_same_time_is_refused(host: Host) -> None:
    host.offer("new")
    host.describe(drain_seconds=60)
    (host.folder / "busy").write_text("1.0")
    first = host.start("chat")
    _wait(lambda: host.step == "held")
    status, said = host.run("chat")
    assert (status, "is running" in said) == (1, True)
    (host.folder / "busy").write_text("0")
    assert first.wait(timeout=60) == 0
    assert host.serves() == "new"


@pytest.mark.parametrize("step", ["held", "swapped"])
def test_a_power_cut_ends_with_the_old_model(host: Host, step: str) -> None:
    # An engine that would serve, did it get the time to prove it.
    host.offer("new")
    host.memory_says("sleep 0.2")
    if step == "held":
        (host.folder / "busy").write_text("1.0")
    program = host.start("chat", "--here")
    _wait(lambda: host.step == step)
    program.kill()
    program.wait()
    host.systemctl("stop")
    (host.folder / "busy").unlink(missing_ok=True)
    host.reboot()
    assert host.serves() == "old"
    # The engine's own user must be able to read it.
    assert (host.folder / "chat.yaml").stat().st_mode & 0o777 == 0o644
    assert host.step in ("rolled back", "given up")


class _PowerCut(BaseException):
    """The end of everything, which nothing can catch."""


@pytest.mark.parametrize("write", range(1, 5))
def test_a_power_cut_at_any_write_of_a_swap_ends_with_the_old_model(
    host: Host, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    host.offer("new")
    job = replace_program.read_job("chat", host.folder / "jobs")
    replacement = replace_program.Replacement(job, host.folder / "state")
    replacement.note("held")
    writes = iter(range(1, 5))
    real_write, real_replace = replace_program.write_whole, Path.replace

    def write_whole(path: Path, text: str) -> None:
        if next(writes) == write:
            raise _PowerCut
        real_write(path, text)

    def replace(path: Path, target: Path) -> Path:
        if next(writes) == write:
            raise _PowerCut
        return real_replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(replace_program, "write_whole", write_whole)
        patch.setattr(Path, "replace", replace)
        # The fourth is the one after the last: everything is written and nothing is proved.
        with contextlib.suppress(_PowerCut):
            replacement._keep()
            replacement._swap()
    assert next(writes, None) == (write + 1 if write < 4 else 4)
    replacement.recover()
    assert "models/old" in (host.folder / "chat.yaml").read_text()


def test_a_power_cut_after_the_proof_ends_with_the_new_model(host: Host) -> None:
    host.offer("new")
    assert host.run("chat")[0] == 0
    host.systemctl("stop")
    host.reboot()
    assert host.serves() == "new"


def test_an_undeclared_engine_is_named(host: Host) -> None:
    status, said = host.run("chatt")
    assert (status, "there are: chat" in said) == (1, True)


def test_recovery_leaves_a_replacement_that_is_under_way_alone(host: Host) -> None:
    host.offer("new")
    host.describe(drain_seconds=60)
    (host.folder / "busy").write_text("1.0")
    program = host.start("chat", "--here")
    _wait(lambda: host.step == "held")
    status, said = host.run("--recover")
    assert (status, "is running" in said) == (1, True)
    program.kill()
    program.wait()


def test_recovery_of_one_engine_does_not_depend_on_anothers(host: Host) -> None:
    (host.folder / "jobs/a-broken-one.json").write_text("{")
    host.offer("new")
    host.memory_says("sleep 0.2")
    program = host.start("chat", "--here")
    _wait(lambda: host.step == "swapped")
    program.kill()
    program.wait()
    status, said = host.run("--recover")
    assert (status, "a-broken-one" in said, host.step) == (1, True, "rolled back"), said
    host.systemctl("stop")
    host.systemctl("start")
    assert host.serves() == "old"


@pytest.mark.parametrize("step", ["held", "stopping", "swapped"])
def test_a_replacement_outlives_its_caller(host: Host, step: str) -> None:
    host.offer("new")
    host.memory_says("sleep 0.2")
    program = host.start("chat")
    _wait(lambda: host.step == step)
    # As when a connection drops: the caller is gone, and the reader of the output with it.
    program.kill()
    program.wait()
    assert program.stderr is not None
    program.stderr.close()
    _wait(lambda: host.step == "done")
    _wait(lambda: not (host.folder / "main").exists())
    assert (host.serves(), host.told_the_door()) == ("new", ["maint", "ready"])


def _with_faults(host: Host) -> None:
    faults.inject(text_of(replace_program), host.program, PAUSE_SECONDS=0.01)
    host.environment["FAULT_FOLDER"] = str(host.folder)
    host.environment["FAULT_RECORD"] = str(host.folder / "state/chat.json")
    host.place_undo()


def _after_a_fault(host: Host, fault: str) -> tuple[int, str]:
    """Replace in the unit, and see that a model serves; the exit status and what was said."""
    program = host.unit()
    _, said = program.communicate(timeout=120)
    told = f"{fault}: {said}"
    assert "Traceback" not in said, told
    now = host.serves()
    assert now in ("old", "new"), told
    # After a power cut now the same one serves, which takes no start of an engine to see.
    assert host.step not in ("held", "stopping", "swapped") or "ENOSPC" in fault, told
    assert f"models/{now}" in (host.folder / "chat.yaml").read_text(), told
    assert host.told_the_door()[-1:] != ["maint"], told
    return program.returncode, said


@pytest.mark.parametrize("fault", ["SIGKILL", "SIGTERM", "ENOSPC"])
def test_a_model_serves_after_each_end_at_each_step(host: Host, fault: str) -> None:
    _with_faults(host)
    serving, seen = "old", {"old": 0, "new": 0}
    for at in range(1, 100):
        other = {"old": "new", "new": "old"}[serving]
        if not (host.folder / "models" / other).exists():
            host.model(other)
        host.configure("chat.yaml.next", other)
        host.environment["FAULT"] = told = f"{fault}:{at}"
        status, said = _after_a_fault(host, told)
        serving = host.serves()
        seen["new" if serving == other else "old"] += 1
        if f"step {at} " not in said:
            break
    # The last run met no fault: every step has had its own.
    assert (status, said.count("step ")) == (0, at - 1), told
    assert at > (5 if fault == "ENOSPC" else 15)
    assert seen["old"] >= at - 3, seen


@pytest.mark.parametrize("step", ["held", "stopping", "swapped"])
def test_what_undoes_it_may_be_killed_at_whatever_step_too(host: Host, step: str) -> None:
    _with_faults(host)
    host.model("new")
    host.environment["FAULT"] = f"SIGKILL:@{step}"
    for at in range(1, 100):
        host.configure("chat.yaml.next", "new")
        host.environment["UNDO_FAULT"] = f"SIGKILL:{at}"
        _, said = _after_a_fault(host, f"{step}, then the undo's {at}")
        assert (host.serves(), host.step) == (
            "old",
            "given up" if step == "held" else "rolled back",
        )
        was_killed = host.folder / faults.WAS_KILLED
        if not was_killed.exists():
            break
        was_killed.rmdir()
    assert f"undo {at - 1} " in said, said
    assert f"undo {at} " not in said, said
    assert at > 2


def test_one_that_was_killed_for_good_is_undone_by_the_next(host: Host) -> None:
    host.offer("new")
    host.memory_says("sleep 0.2")
    program = host.start("chat", "--here")
    _wait(lambda: host.step == "swapped")
    program.kill()
    program.wait()
    # The next one does not serve either: what comes back is what served last.
    host.offer("broken", never_ready="")
    status, said = host.run("chat")
    assert (status, host.serves(), host.step) == (1, "old", "rolled back"), said
