"""Locked environments: made once for a lock and a distribution, the one before kept, no older."""

from __future__ import annotations

from facts.artefacts import InstalledVersion, InstalledVersions
from facts.places import CREDENTIALS, SYSTEM
from facts.vllm import EngineFiles
from holdfast.python_environment import digest, directory
from operations import python_environment, vllm
from tests.unit.local_host import LocalHost

LOCK = "vllm==0.32.0 --hash=sha256:00\n"
OLD = "old\n"
ASKED = {"program": "vllm", "lock": LOCK, "distribution": "debian13"}


def _version(lock: str, installed: float, distribution: str = "debian13") -> InstalledVersion:
    path = directory("vllm", lock, distribution)
    return InstalledVersion(path.rpartition("/")[2], digest(lock, distribution), installed)


def test_an_environment_that_is_there_is_left_alone() -> None:
    present = LocalHost(facts={InstalledVersions: [_version(LOCK, 1.0)]})
    assert present.planned(python_environment.installed, **ASKED) == []


def test_another_lock_or_another_release_is_another_environment() -> None:
    for other in (_version("another\n", 1.0), _version(LOCK, 1.0, "debian12")):
        host = LocalHost(facts={InstalledVersions: [other]})
        (command,) = host.planned(python_environment.installed, **ASKED)
        assert directory("vllm", LOCK, "debian13") in command
        assert "rm -rf" not in "".join(host.planned(python_environment.pruned, **ASKED))


def test_what_is_older_than_the_one_before_is_removed() -> None:
    versions = [_version(OLD, 1.0), _version(LOCK, 2.0), _version("before\n", 3.0)]
    host = LocalHost(facts={InstalledVersions: versions})
    assert host.planned(python_environment.pruned, **ASKED) == [
        f"rm -rf {directory('vllm', OLD, 'debian13')}"
    ]


def test_an_engine_that_is_declared_no_more_is_stopped_before_its_files_go() -> None:
    kept = f"{SYSTEM}/holdfast-vllm-chat.service"
    gone = [f"{SYSTEM}/holdfast-vllm-old.service", f"{CREDENTIALS}/holdfast-vllm-old-key"]
    host = LocalHost(facts={EngineFiles: [kept, *gone]})
    (command,) = host.planned(vllm.only, declared=[kept])
    steps = command.split(" && ")
    assert steps[1:3] == [
        "systemctl stop holdfast-vllm-old.service",
        "systemctl disable holdfast-vllm-old.service",
    ]
    assert set(steps[3].split()) == {"rm", "-f", *gone}
    assert host.planned(vllm.only, declared=[kept, *gone]) == []
