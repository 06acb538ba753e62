"""Backups run by themselves, are recent, and were restored byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

from holdfast import backup
from holdfast.settings import Backup, HostSettings

STEMS = ("holdfast-backup", "holdfast-backup-check", "holdfast-restore-check")


@pytest.fixture(scope="module")
def wanted(settings: HostSettings) -> Backup:
    if settings.backup is None:
        pytest.skip("this host is not backed up")
    return settings.backup


@pytest.fixture(scope="module")
def records(host: Host, wanted: Backup) -> dict[str, dict[str, Any]]:
    """Repository to the host's record of it."""
    names = [repository.name for repository in wanted.repositories]
    files = " ".join(f"{backup.STATE}/{name}.json" for name in names)
    texts = host.check_output(f"for file in {files}; do tr -d '\\n' < $file; echo; done")
    return dict(zip(names, map(json.loads, texts.splitlines()), strict=True))


def test_every_timer_is_armed_now_and_at_boot(host: Host, wanted: Backup) -> None:
    timers = [f"{stem}@{item.name}.timer" for item in wanted.repositories for stem in STEMS]
    shown = host.check_output(
        "systemctl show --property=ActiveState,UnitFileState,NextElapseUSecRealtime "
        + " ".join(timers)
    )
    blocks = [
        dict(line.split("=", 1) for line in block.splitlines()) for block in shown.split("\n\n")
    ]
    assert len(blocks) == len(timers)
    for timer, values in zip(timers, blocks, strict=True):
        state = (values["ActiveState"], values["UnitFileState"])
        assert state == ("active", "enabled"), timer
        assert values["NextElapseUSecRealtime"], timer


def test_the_newest_snapshot_is_fresh_and_whole_in_every_place(host: Host, wanted: Backup) -> None:
    # As the timer runs it: in its sandbox, with systemd's environment, and with the repository.
    for repository in wanted.repositories:
        unit = f"holdfast-backup-check@{repository.name}.service"
        run = host.run(f"systemctl start {unit} || journalctl --no-pager -n 5 -u {unit}")
        assert run.stdout == "", run.stdout


def test_every_place_was_restored_and_compared(
    records: dict[str, dict[str, Any]], settings: HostSettings
) -> None:
    for name, record in records.items():
        outcome = record["restore_check"]
        assert outcome["ok"], f"{name}: {outcome.get('problems')}"
        assert outcome["files"] > 0, name


def test_the_snapshot_holds_the_declared_paths(
    records: dict[str, dict[str, Any]], wanted: Backup, settings: HostSettings
) -> None:
    for repository in wanted.repositories:
        held = set(records[repository.name]["backup"]["paths"])
        assert set(backup.snapshot_paths(settings, repository)) <= held


def test_a_restore_check_leaves_nothing_on_disk(host: Host, wanted: Backup) -> None:
    assert host.run(f"ls -d {backup.STATE}/staging-*").stdout == ""


def test_a_restore_never_overwrites_live_data(host: Host, wanted: Backup) -> None:
    name = wanted.repositories[0].name
    for live in ("/etc/ssh", "/etc/holdfast/backup"):
        run = host.run(f"{backup.RESTORE} {name} --to {live}")
        assert run.rc == 1
        assert "is inside live data" in run.stderr
