"""Locked environments: made once for a lock and a distribution, the one before kept, no older."""

from __future__ import annotations

from facts.artefacts import InstalledVersion, InstalledVersions
from holdfast.python_environment import digest, directory
from operations import python_environment
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
