"""A replacement under a real systemd: `pytest -m lab tests/lab/test_replace_live.py`.

The engine is the stand-in of the unit tests; the unit that works, and what systemd does when its
caller is gone or it is killed, are real. It takes root and half a minute.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast import alerts
from holdfast.engines.units import UNDO, undo
from holdfast.host_programs import replace as replace_program
from holdfast.sandbox import EXPOSURE_MAX_ROOT
from holdfast.service.units import service_unit
from holdfast.shipping import text_of
from tests.lab.container_machine import ContainerMachine
from tests.lab.images import ensure_image
from tests.lab.machine import Spec
from tests.lab.programs import bring_python, put
from tests.unit import fake_engine

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container machine needs root"),
]

SPEC = Spec("box", variant="rack", host_number=11, memory_mib=2048, cpus=2)
PATIENCE_SECONDS = 120
HERE = "/srv/engine"
RECORD = "/var/lib/holdfast/engines/chat.json"
UNIT = f"""
[Service]
Type=exec
Environment=FAKE_ENGINE={HERE}
ExecStart=/usr/bin/python3 -I {HERE}/fake_engine.py engine {HERE}/chat.yaml
ExecStartPost=/bin/sh -c 'until test -S {HERE}/http.sock; do sleep 0.1; done'
ExecStopPost=/bin/rm -f {HERE}/http.sock
"""
ASK = f"""
import json, socket
asked = socket.socket(socket.AF_UNIX)
asked.connect("{HERE}/http.sock")
asked.sendall(b"POST /v1/completions HTTP/1.0\\r\\nContent-Length: 2\\r\\n\\r\\n{{}}")
answer = asked.makefile("rb").read()
print(json.loads(answer.partition(b"\\r\\n\\r\\n")[2])["choices"][0]["text"])
"""
JOB = {
    "name": "chat",
    "unit": "chat.service",
    "socket": f"{HERE}/http.sock",
    "doors": [],
    "configuration": f"{HERE}/chat.yaml",
    "model_key": "model",
    "cache": f"{HERE}/cache",
    "questions": [["/v1/completions", {"model": "chat", "prompt": "ready"}]],
    "model": "chat",
    "key": f"{HERE}/key",
    "running_metric": "run",
    "waiting_metric": "wait",
    # Long enough to be met at this step.
    "memory": ["sleep", "3"],
    "drain_seconds": 5,
    "free_mib": 1,
}


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerMachine]:
    directory = tmp_path_factory.mktemp("lab") / "box"
    machine = ContainerMachine(directory, SPEC, ensure_image("debian-13", "rack"))
    try:
        machine.start()
        machine.wait_for_boot(PATIENCE_SECONDS)
        machine.wait_for_ssh(PATIENCE_SECONDS)
        bring_python(machine)
        put(machine, f"{HERE}/fake_engine.py", Path(fake_engine.__file__).read_text())
        put(machine, f"{HERE}/ask.py", ASK)
        put(machine, "/etc/holdfast/engines/chat.json", json.dumps(JOB))
        put(machine, f"{HERE}/key", "a-key")
        put(machine, "/etc/systemd/system/chat.service", UNIT)
        put(machine, f"/etc/systemd/system/{UNDO}", service_unit(undo()))
        put(machine, alerts.NOTIFY.path("service"), service_unit(alerts.NOTIFY))
        program = "/usr/local/sbin/holdfast-replace"
        put(machine, program, text_of(replace_program))
        machine.succeed(f"chmod 755 {program} && systemctl daemon-reload")
        for model in ("old", "new"):
            put(machine, f"{HERE}/models/{model}/config.json", "{}")
            machine.succeed(f"cd {HERE}/models/{model} && sha256sum config.json > SHA256SUMS")
        yield machine
    finally:
        machine.power_off()


@pytest.fixture
def offered(box: ContainerMachine) -> ContainerMachine:
    """The engine serves `old`, and `new` is to come."""
    box.execute("systemctl stop chat-replace chat")
    put(box, f"{HERE}/chat.yaml", f"model: {HERE}/models/old\n")
    put(box, f"{HERE}/chat.yaml.next", f"model: {HERE}/models/new\n")
    box.succeed(f"rm -f {RECORD}; systemctl start chat || ! journalctl --no-pager -u chat >&2")
    return box


def _serves(box: ContainerMachine) -> str:
    return box.succeed(f"python3 -I {HERE}/ask.py").strip()


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def _step(box: ContainerMachine) -> str:
    status, text = box.execute(f"cat {RECORD}")
    return str(json.loads(text)["step"]) if status == 0 else ""


def _begin(box: ContainerMachine) -> None:
    """Ask for a replacement from a login of its own, until it has stopped the engine."""
    box.succeed(
        "setsid sh -c 'holdfast-replace chat 2>&1 | cat' > /dev/null 2>&1 < /dev/null &"
        " echo $! > /run/caller"
    )
    _wait(lambda: _step(box) == "stopping")


def _ended(box: ContainerMachine) -> bool:
    return box.execute("systemctl --quiet is-active chat-replace")[0] != 0 and _step(box) in (
        "done",
        "rolled back",
    )


def test_it_is_followed_and_says_how_it_ended(offered: ContainerMachine) -> None:
    status, said = offered.execute("holdfast-replace chat 2>&1", timeout_seconds=60)
    assert (status, _serves(offered)) == (0, "new"), said
    assert "chat: done" in said


def test_it_outlives_the_login_that_asked_for_it(offered: ContainerMachine) -> None:
    _begin(offered)
    # All of its processes, and the reader of what it says.
    offered.succeed("kill -KILL -- -$(cat /run/caller)")
    _wait(lambda: _ended(offered))
    assert (_step(offered), _serves(offered)) == ("done", "new")


@pytest.mark.parametrize(
    "end",
    [
        "systemctl kill --kill-whom=main --signal=KILL chat-replace",
        "systemctl kill --signal=KILL chat-replace",
        "systemctl stop chat-replace",
    ],
)
def test_what_served_comes_back_however_it_is_ended(offered: ContainerMachine, end: str) -> None:
    _begin(offered)
    offered.execute(end, timeout_seconds=60)
    _wait(lambda: _ended(offered))
    assert (_step(offered), _serves(offered)) == ("rolled back", "old")


def test_what_undoes_it_may_be_killed_too(offered: ContainerMachine) -> None:
    _begin(offered)
    undo = UNDO.replace("@", "@chat")
    running = f"test $(systemctl show --property=MainPID --value {undo}) -gt 0"
    # All of their processes, as the kernel does when there is no memory.
    offered.succeed("systemctl kill --signal=KILL chat-replace")
    for _ in range(3):
        _wait(lambda: offered.execute(running)[0] == 0)
        offered.succeed(f"systemctl kill --signal=KILL {undo}")
    _wait(lambda: _ended(offered))
    assert (_step(offered), _serves(offered)) == ("rolled back", "old")


def test_the_unit_that_undoes_is_closed(offered: ContainerMachine) -> None:
    judged = offered.succeed(f"systemd-analyze security {UNDO.replace('@', '@chat')} | tail -n 1")
    (exposure,) = re.findall(r": ([0-9.]+) ", judged)
    assert float(exposure) <= EXPOSURE_MAX_ROOT
