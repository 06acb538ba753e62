"""The floor answers, requires its key, listens only where declared, and restarts after a kill."""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host

from holdfast.floor import KEY_FILE, PROBE_FILE, UNIT, floor_model
from holdfast.settings import Floor, HostSettings

BACK_SECONDS = 180


@pytest.fixture(scope="module")
def floor(settings: HostSettings) -> Floor:
    if settings.floor is None:
        pytest.skip("this host has no floor")
    return settings.floor


def _ask(host: Host, floor: Floor, path: str, header: str) -> tuple[int, str]:
    # The header is sent on standard input, because this file forbids keys in command lines.
    body = '{"prompt": "ready", "max_tokens": 4}'
    data = f"--json '{body}'" if path != "/health" else ""
    url = f"http://127.0.0.1:{floor.port}{path}"
    answer = host.check_output(
        f"{header} | curl --silent --max-time 120 --header @- {data}"
        f" --write-out '\\n%{{http_code}}' {url}"
    )
    text, _, status = answer.rpartition("\n")
    return int(status), text


def test_it_completes_with_the_key(host: Host, floor: Floor) -> None:
    key = f'printf "Authorization: Bearer %s" "$(cat {KEY_FILE})"'
    status, text = _ask(host, floor, "/v1/completions", key)
    assert status == 200
    assert json.loads(text)["choices"][0]["text"].strip()


@pytest.mark.parametrize("path", ["/v1/completions", "/completion", "/v1/chat/completions"])
@pytest.mark.parametrize("header", ["", "Authorization: Bearer not-the-key"])
def test_it_refuses_a_wrong_key(host: Host, floor: Floor, path: str, header: str) -> None:
    status, _ = _ask(host, floor, path, f"echo '{header}'")
    assert status == 401


def test_its_health_is_public(host: Host, floor: Floor) -> None:
    status, text = _ask(host, floor, "/health", "echo")
    assert (status, json.loads(text)) == (200, {"status": "ok"})


def test_its_weights_stay_in_memory(host: Host, floor: Floor, settings: HostSettings) -> None:
    model = floor_model(settings)
    assert model is not None
    pid = host.check_output(f"systemctl show --property=MainPID --value {UNIT}")
    locked_kib = int(host.check_output(f"awk '/^VmLck/ {{print $2}}' /proc/{pid}/status"))
    size = int(
        host.check_output(f"stat --format=%s {settings.storage.models_path}/{model.filename}")
    )
    # llama-server reads metadata at the head of the file but does not keep it in memory.
    assert locked_kib * 1024 > 0.9 * size


def test_its_limits_are_in_force(host: Host, floor: Floor) -> None:
    properties = "MemoryMax,MemoryMin,Slice,OOMScoreAdjust,Restart,NRestarts,User"
    shown = host.check_output(f"systemctl show --property={properties} {UNIT}")
    values = dict(line.split("=", 1) for line in shown.splitlines())
    assert int(values["MemoryMax"]) == floor.memory_max_mib << 20
    assert int(values["MemoryMin"]) == floor.memory_max_mib << 20
    promised = host.check_output(f"systemctl show --property=MemoryMin --value {values['Slice']}")
    assert int(promised) >= int(values["MemoryMin"])
    assert promised == host.check_output(f"cat /sys/fs/cgroup/{values['Slice']}/memory.min")
    assert int(values["OOMScoreAdjust"]) < 0
    assert (values["Restart"], values["User"]) == ("always", "holdfast-floor")


def test_it_restarts_when_it_is_killed(host: Host, floor: Floor) -> None:
    back = host.run(
        f"old=$(systemctl show --property=MainPID --value {UNIT}); kill -9 $old;"
        f" timeout {BACK_SECONDS} sh -c '"
        f"until [ $(systemctl show --property=MainPID --value {UNIT}) != '$old' ]"
        f" && systemctl --quiet is-active {UNIT}; do sleep 1; done'"
        f" && curl --config {PROBE_FILE}"
    )
    assert back.succeeded, back.stderr
