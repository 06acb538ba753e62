"""The backup with the real restic: `pytest -m lab tests/lab/test_backup_live.py`.

It takes seconds once restic has been built (`python -m tests.lab.artefacts`), and a folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast.host_programs import backup as backup_program
from holdfast.host_programs.backup import Failure, Job, Places, main
from tests.lab.artefacts.go_tools import RESTIC

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def restic() -> Path:
    return RESTIC.build().file("restic")


@pytest.fixture
def job(tmp_path: Path, restic: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job with one snapshot, whose waits are short."""
    monkeypatch.setattr(backup_program, "LOCK_WAIT_SECONDS", 1)
    monkeypatch.setattr(backup_program, "LOCK_PAUSE_SECONDS", 0.2)
    for name in ("jobs", "credentials", "state", "cache", "live", "live/deep"):
        (tmp_path / name).mkdir()
    (tmp_path / "live/note").write_text("what must last")
    (tmp_path / "live/deep").chmod(0o3750)
    # Large enough that a check of it can be caught at work.
    (tmp_path / "live/deep/blob").write_bytes(os.urandom(64 << 20))
    (tmp_path / "live/link").symlink_to("note")
    os.mkfifo(tmp_path / "live/fifo")
    (tmp_path / "credentials/backup-nas-location").write_text(f"{tmp_path / 'repository'}\n")
    (tmp_path / "credentials/backup-nas-password").write_text("a password\n")
    values = {
        "repository": "nas",
        "host": "rack",
        "restic": str(restic),
        "sources": [str(tmp_path / "live")],
        "derived": [],
        "roots": [],
        "mount": None,
        "append_only": False,
        "keep": {"daily": 7, "weekly": 5, "monthly": 0},
        "max_age_hours": 26,
        "max_restore_age_days": 15,
    }
    (tmp_path / "jobs/nas.json").write_text(json.dumps(values))
    places = Places(*(tmp_path / name for name in ("jobs", "credentials", "state", "cache")))
    made = Job.load("nas", places)
    _run(made, "backup")
    return made


def _run(job: Job, command: str, *more: str) -> None:
    main([command, "nas", *more], job.places)


@contextmanager
def _checking(job: Job) -> Iterator[subprocess.Popen[bytes]]:
    """A check of every byte that has taken its exclusive lock and is stopped there."""
    environment = backup_program._environment(job)
    locks = Path((job.places.credentials / "backup-nas-location").read_text().strip()) / "locks"
    with subprocess.Popen(
        [job.restic, "check", "--read-data"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        # It is written under a longer name first.
        while not any(len(file.name) == 64 for file in locks.iterdir()):
            assert process.poll() is None, "it ended before it was caught"
        process.send_signal(signal.SIGSTOP)
        try:
            yield process
        finally:
            process.kill()


def test_what_is_backed_up_is_restored_and_compared_with_the_snapshot(job: Job) -> None:
    _run(job, "restore-check")
    _run(job, "check")
    outcome = backup_program.read_record(job)["restore_check"]
    assert (outcome["files"], outcome["moved_on"], outcome["problems"]) == (2, 0, [])


def test_a_lock_left_by_a_power_cut_ends_nothing(job: Job) -> None:
    with _checking(job):
        pass
    assert "exclusively" in backup_program.restic(job, "cat", "config").stderr
    _run(job, "backup")
    with _checking(job):
        pass
    _run(job, "restore-check")


def test_who_holds_a_live_lock_is_named_and_costs_nothing_that_reads(
    job: Job, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _run(job, "restore-check")
    before = backup_program.newest(job)
    with _checking(job) as other:
        _run(job, "check")
        _run(job, "restore", "--to", str(tmp_path / "staged"))
        capsys.readouterr()
        _run(job, "backup")
        assert f"locked by PID {other.pid} on " in capsys.readouterr().out
        assert backup_program.newest(job) == before
    _run(job, "backup")
    assert backup_program.newest(job) != before


def test_folders_in_folders_are_backed_up_and_restored(job: Job, tmp_path: Path) -> None:
    here = os.open(tmp_path / "live", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        here = os.open("d", os.O_RDONLY, dir_fd=here)
    os.closerange(here - 1199, here + 1)
    _run(job, "backup")
    _run(job, "restore-check")
    backup_program._remove(tmp_path / "live")


def test_a_path_that_restic_cannot_read_does_not_stop_the_rest(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, before = backup_program._watched, backup_program.newest(job)

    def with_a_bad_one(
        job: Job, arguments: list[str], stuck: Callable[[], list[str]]
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        return watched(job, [*arguments, "/proc/self/mem"], stuck)

    monkeypatch.setattr(backup_program, "_watched", with_a_bad_one)
    with pytest.raises(Failure, match="the snapshot was taken, but") as failure:
        _run(job, "backup")
    assert "/proc/self/mem" in str(failure.value)
    assert backup_program.newest(job) != before
