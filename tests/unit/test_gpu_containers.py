"""Cards in containers: the engine's keys, a specification as fresh as the driver, a last look."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import StringCommand
from pyinfra.context import ctx_host

from facts.docker import DockerEngine, DockerState
from facts.gpu_containers import (
    OVERRIDES,
    ContainersState,
    GpuContainer,
    GpuContainerAccess,
    GpuContainers,
)
from holdfast import alerts, docker
from holdfast.checks import gpu_containers as checks
from holdfast.gpu import containers
from holdfast.sandbox import EXPOSURE_MAX_ROOT
from holdfast.service import ON_FAILURE, texts
from holdfast.settings import Docker, HostSettings
from operations import gpu_containers
from tests.doubles.machine import FakeMachine
from tests.doubles.rack import rack
from tests.unit.local_host import LocalHost

ONE, TWO = (f"GPU-{digit * 8}-ab98-9629-24b6-54ca9b98cd30" for digit in "12")
GOOD = ContainersState(
    uuids=frozenset({ONE, TWO}),
    driver="580.95.05",
    specified=frozenset({ONE, TWO}),
    specified_driver="580.95.05",
)

# As nvidia-ctk 1.17 lays it out: NVIDIA/nvidia-container-toolkit, generate_test.go, and the list of
# files in issue 38 there.
_DEVICE = """\
    - name: {name}
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia{index}
"""
_REST = """\
containerEdits:
    env:
        - NVIDIA_VISIBLE_DEVICES=void
    deviceNodes:
        - path: /dev/nvidiactl
        - path: /dev/nvidia-uvm
    hooks:
        - hookName: createContainer
          path: /usr/bin/nvidia-cdi-hook
          args:
            - nvidia-cdi-hook
            - create-symlinks
            - --link
            - libcuda.so.1::/usr/lib/x86_64-linux-gnu/libcuda.so
    mounts:
        - hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.{driver}
          containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.{driver}
          options: [ro, nosuid, nodev, bind]
"""


def specification(uuids: list[str], driver: str) -> str:
    devices = "".join(
        _DEVICE.format(name=name, index=index)
        for index, uuid in enumerate(uuids)
        for name in (f'"{index}"', uuid)
    )
    return f"---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n{devices}" + _REST.format(
        driver=driver
    )


def _stub(programs: Path, name: str, text: str) -> None:
    programs.mkdir(exist_ok=True)
    stub = programs / name
    stub.write_text(f"#!/bin/sh\n{text}\n")
    stub.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    (tmp_path / "rack").mkdir()
    fake = FakeMachine(tmp_path / "rack", rack("rtx3090", "rtx3090"))
    _stub(fake.programs, "systemctl", "echo LoadState=loaded; echo NeedDaemonReload=no")
    return fake


def _state(machine: FakeMachine, text: str | None) -> ContainersState:
    path = machine.folder / "nvidia.yaml"
    if text is not None:
        path.write_text(text)
    host = LocalHost(programs=machine.programs)
    state: ContainersState = host.get_fact(GpuContainers, specification=str(path))
    return state


def test_a_specification_of_these_cards_and_this_driver_is_fresh(machine: FakeMachine) -> None:
    uuids = [card.uuid for card in machine.rack.cards]
    state = _state(machine, specification(uuids, machine.rack.driver.library))
    assert state.uuids == state.specified == frozenset(uuids)
    assert state.driver == state.specified_driver == machine.rack.driver.library
    assert not state.unread
    assert containers.stale(state) is None


def test_one_that_no_longer_fits_tells_why(machine: FakeMachine) -> None:
    one, two = (card.uuid for card in machine.rack.cards)
    driver = machine.rack.driver.library
    assert containers.stale(_state(machine, None)) == "there is none"
    assert containers.stale(_state(machine, "")) is not None
    wanted = {
        specification([one, two], "570.1.2"): "for driver 570.1.2, but 580.95.05 is loaded",
        specification([one], driver): f"it lacks {two}",
        specification([one, two, ONE], driver): f"it names {ONE}",
    }
    for text, words in wanted.items():
        assert words in (containers.stale(_state(machine, text)) or "")


def test_a_card_that_mig_splits_is_not_missed(machine: FakeMachine) -> None:
    machine.rack.cards[1].mig = True
    machine.write()
    one = machine.rack.cards[0].uuid
    state = _state(machine, specification([one], machine.rack.driver.library))
    assert containers.stale(state) is None


def test_without_a_driver_it_is_not_known(machine: FakeMachine) -> None:
    machine.rack.driver.loaded = None
    machine.write()
    state = _state(machine, specification([ONE], "570.1.2"))
    assert state.uuids is None
    assert containers.stale(state) is None


def _specified(state: ContainersState) -> list[str]:
    return LocalHost(facts={GpuContainers: state}).planned(gpu_containers.specified)


def test_nothing_is_run_when_it_is_fresh() -> None:
    assert _specified(GOOD) == []


def test_it_is_made_anew_and_read_back() -> None:
    made, read = _specified(replace(GOOD, specified_driver="570.1.2"))
    assert made.startswith(f"systemctl restart {containers.SERVICE} ")
    assert all(word in read for word in (ONE, TWO, "libcuda.so.580.95.05"))


def test_what_would_be_believed_more_is_removed() -> None:
    (command,) = _specified(replace(GOOD, overridden=True))
    assert command.split()[:2] == ["rm", "-f"]
    assert command.split()[2:] == OVERRIDES


@pytest.mark.parametrize(("kept", "fails"), [([ONE, TWO], False), ([ONE], True)])
def test_the_read_back_names_what_the_new_one_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: list[str], fails: bool
) -> None:
    path = tmp_path / "nvidia.yaml"
    path.write_text(specification(kept, "580.95.05"))
    monkeypatch.setattr(containers, "SPECIFICATION", str(path))
    _stub(tmp_path / "programs", "systemctl", "exit 0")
    host = LocalHost(
        programs=tmp_path / "programs",
        facts={GpuContainers: replace(GOOD, specified=None, specified_driver=None)},
    )
    _, said = host.apply(gpu_containers.specified)
    assert (f"{path} was regenerated, but lacks {TWO}: run `nvidia-ctk" in said) is fails
    assert fails or said == ""


OURS = {"ip": "127.0.0.1", "log-opts": {"max-size": "10m"}}


def _keys_written(daemon_json: str | None, version: str = "5:29.1.3-1") -> list[Any]:
    state = DockerState(daemon_json, version, (), unruled=False)
    host = LocalHost(facts={DockerEngine: state})
    with ctx_host.use(host):
        return list(gpu_containers.engine_knows._inner())


def test_the_engine_s_other_keys_survive() -> None:
    theirs = {**OURS, "runtimes": {"kata": {"path": "kata"}}, "features": {"buildkit": True}}
    (command,) = _keys_written(json.dumps(theirs))
    content = json.loads(str(command.connector_arguments["_stdin"]))
    assert content["runtimes"]["kata"] == {"path": "kata"}
    assert content["runtimes"]["nvidia"] == {"path": "nvidia-container-runtime", "args": []}
    assert content["features"] == {"buildkit": True, "cdi": True}
    assert OURS.items() <= content.items()
    assert _keys_written(json.dumps(content)) == []


def test_the_keys_of_both_capabilities_live_together() -> None:
    engine = docker.enforced(Docker(), 29)
    text = docker.merged(None, engine)
    both = docker.merged(text, containers.daemon_keys(29))
    assert both is not None
    assert docker.merged(both, engine) is None
    assert docker.merged(both, containers.daemon_keys(29)) is None


def test_an_old_engine_is_not_told_of_cdi() -> None:
    assert "features" not in containers.daemon_keys(20)
    assert containers.daemon_keys(25)["features"] == {"cdi": True}


def test_a_file_that_cannot_be_merged_stops_the_run() -> None:
    (command,) = _keys_written("{,}")
    assert not isinstance(command, StringCommand)


# What `docker inspect` prints in the fact's format, and what its cards answer.
_ABOUT = {
    "llm": (
        '/llm runc [{"Driver":"","Count":-1,"DeviceIDs":null,"Capabilities":[["gpu"]]}] []',
        'echo "GPU 0: NVIDIA H200"',
    ),
    "stripped": (
        '/stripped runc [{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=all"]}] []',
        'echo "Failed to initialize NVML: Unknown Error"; exit 255',
    ),
    "runtime": ("/runtime nvidia null []", 'echo "GPU 0: NVIDIA H200"'),
    # No nvidia-smi, and a shell that is refused the device.
    "bare": (
        '/bare runc null [{"PathOnHost":"/dev/nvidia0"}]',
        'case $4 in -L) exit 127;; -c) echo "sh: can not open"; exit 2;; esac',
    ),
    "nothing-inside": ("/nothing-inside nvidia null []", "exit 127"),
    "web": ("/web runc [] []", 'echo "asked a container without cards"; exit 1'),
}


def _docker(programs: Path) -> None:
    inspected = "\n".join(about for about, _ in _ABOUT.values())
    answers = " ".join(f"{name}) {answer};;" for name, (_, answer) in _ABOUT.items())
    text = (
        'case "$1" in ps) echo 1a2b;;'
        f" inspect) cat <<'END'\n{inspected}\nEND\n;;"
        f' exec) case "$2" in {answers} esac;; esac'
    )
    _stub(programs, "docker", text)


def test_containers_that_lost_their_cards_are_named_and_left_alone(tmp_path: Path) -> None:
    _docker(tmp_path)
    host = LocalHost(programs=tmp_path)
    found = host.get_fact(GpuContainerAccess)
    assert {container.name: container.lost for container in found} == {
        "llm": None,
        "stripped": "Failed to initialize NVML: Unknown Error",
        "runtime": None,
        "bare": "sh: can not open",
        "nothing-inside": None,
    }
    commands, said = host.apply(gpu_containers.still_reached)
    assert commands == ["stop"]
    assert "stripped (Failed to initialize NVML: Unknown Error)" in said
    assert "`docker restart stripped bare`" in said


@pytest.mark.parametrize("found", [[], [GpuContainer("llm")]])
def test_well_containers_are_not_spoken_of(found: list[GpuContainer]) -> None:
    host = LocalHost(facts={GpuContainerAccess: found})
    assert host.apply(gpu_containers.still_reached) == ([], "")


def test_a_machine_without_docker_has_no_containers(tmp_path: Path) -> None:
    _stub(tmp_path, "docker", "exit 127")
    assert LocalHost(programs=tmp_path).get_fact(GpuContainerAccess) == []


def _settings(**gpus: Any) -> HostSettings:
    mirror = {"url": "https://m.example", "key_url": "https://m.example/k", "suite": "amd64/"}
    return HostSettings.model_validate(
        {
            "hostname": "rack",
            "distribution": "debian13",
            "interfaces": {"eth0": {"role": "lan"}},
            "gpus": {
                "cards": [{"name": "a", "device": "2204", "vram_mib": 24576}],
                "container_toolkit_repository": mirror,
                **gpus,
            },
        }
    )


def test_a_repository_that_would_not_be_used_is_refused() -> None:
    settings = _settings()
    assert containers.wants_containers(settings)
    assert list(checks.repository(settings)) == []
    without_engine = settings.model_copy(update={"docker": None})
    for unused in (_settings(containers=False), without_engine):
        assert not containers.wants_containers(unused)
        (finding,) = checks.repository(unused)
        assert finding.key == "gpus.container_toolkit_repository.url"


def test_the_vendor_s_repository_is_flat() -> None:
    repository = containers.vendor_repository()
    assert repository.suite.endswith("/")
    assert repository.components == []


def _values(text: str, name: str) -> list[str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return [value for key, _, value in pairs if key == name]


def test_the_specification_is_made_before_the_engine_starts() -> None:
    (text,) = texts(containers.programs(_settings())).values()
    assert _values(text, "Before") == ["docker.service"]
    assert _values(text, "RemainAfterExit") == []
    assert _values(text, "OnFailure") == [ON_FAILURE]
    assert _values(text, "ReadWritePaths") == [containers.SPECIFICATION_FOLDER]
    assert f"--output={containers.SPECIFICATION}" in text
    # Engines and caps are tied to UUIDs.
    assert "--device-name-strategy=uuid" in text


def test_systemd_judges_the_sandbox_as_declared(tmp_path: Path) -> None:
    units = texts(containers.programs(_settings()))
    for path, text in {**units, **texts([alerts.NOTIFY])}.items():
        (tmp_path / Path(path).name).write_text(text)
    judged = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=yes",
            f"--threshold={EXPOSURE_MAX_ROOT * 10:.0f}",
            tmp_path / containers.SERVICE,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout.splitlines()[-1:] + [judged.stderr]
