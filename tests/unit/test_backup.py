"""What is backed up follows from what is declared; what the units may do from where it goes."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import facts
from facts import places
from facts.backup import BackupState, BackupStates
from holdfast import backup
from holdfast.checks.paths import is_below
from holdfast.service import texts
from holdfast.settings import HostSettings, Repository
from operations.backup import proved
from tests.unit.local_host import LocalHost
from tests.unit.recorded_facts import read
from tests.unit.site_data import good

ROOT = Path(__file__).parents[2]
NAS: dict[str, Any] = {
    "name": "nas",
    "kind": "path",
    "path": "/mnt/nas/backup/rack",
    "password": "NAS_PASSWORD",
}
OFFSITE: dict[str, Any] = {
    "name": "offsite",
    "kind": "rest",
    "url": "https://offsite.example:8000/rack/",
    "user": "rack",
    "user_password": "OFFSITE_USER_PASSWORD",
    "password": "OFFSITE_PASSWORD",
    "append_only": True,
}


def _settings(**values: Any) -> HostSettings:
    return HostSettings.model_validate(
        {
            "hostname": "rack",
            "distribution": "debian13",
            "interfaces": {"eth0": {"role": "lan"}},
            "storage": {
                "mounts": [
                    {"name": "nas", "server": "10.77.0.30", "export": "/srv", "path": "/mnt/nas"}
                ]
            },
            "backup": {"repositories": [NAS, OFFSITE], **values.pop("backup", {})},
            **values,
        }
    )


def _service(**data: str) -> dict[str, Any]:
    return {
        "name": "notes",
        "unit": "notes.service",
        "user": "notes",
        "tier": "T1",
        "data": [{"path": path, "backup": kind} for path, kind in data.items()],
    }


def test_what_a_service_declares_is_backed_up_by_its_class() -> None:
    service = _service(**{"/srv/notes": "state", "/srv/notes/cache": "derived", "/srv/k": "secret"})
    settings = _settings(services=[service])
    assert {"/srv/notes", "/srv/k", "/etc/ssh", "/etc/holdfast"} <= set(backup.sources(settings))
    assert "/srv/notes/cache" in backup.derived(settings)
    assert "/var/lib/holdfast/models" in backup.derived(settings)


def test_what_we_keep_on_a_host_is_declared() -> None:
    # An undeclared path makes the next backup fail, a day after the deploy that brought it.
    kept: set[str] = set()
    for folder in ("deploys", "facts", "holdfast", "operations", "templates"):
        for path in sorted((ROOT / folder).rglob("*.*")):
            if path.suffix in (".py", ".j2"):
                text = path.read_text()
                kept |= set(re.findall(r"/var/lib/holdfast/[a-z][a-z-]*", text))
                units = re.findall(r"^StateDirectory=(holdfast/[a-z-]+)", text, re.MULTILINE)
                kept |= {f"/var/lib/{name}" for name in units}
    settings = HostSettings.model_validate(good()["rack"])
    declared = {item.path for item in backup.data(settings)}
    assert "/var/lib/holdfast/backup" in kept
    assert kept <= declared


def test_a_path_within_a_path_is_not_backed_up_twice() -> None:
    service = _service(**{"/srv/notes": "state", "/srv/notes/keys": "secret"})
    sources = backup.sources(_settings(services=[service]))
    assert "/srv/notes" in sources
    assert "/srv/notes/keys" not in sources


def test_one_path_with_two_classes_is_refused() -> None:
    extra = {"paths": [{"path": "/srv/notes", "backup": "derived"}]}
    settings = _settings(services=[_service(**{"/srv/notes": "state"})], backup=extra)
    with pytest.raises(ValueError, match="/srv/notes is declared both state and derived"):
        backup.data(settings)


@pytest.mark.parametrize(
    ("repository", "password", "location"),
    [
        (NAS, None, "/mnt/nas/backup/rack"),
        (OFFSITE, "p/w@:", "rest:https://rack:p%2Fw%40%3A@offsite.example:8000/rack/"),
        (
            {**OFFSITE, "user": None, "user_password": None},
            None,
            "rest:https://offsite.example:8000/rack/",
        ),
    ],
)
def test_the_location_carries_its_credentials(
    repository: dict[str, Any], password: str | None, location: str
) -> None:
    secret = SecretStr(password) if password else None
    found = backup.location(Repository.model_validate(repository), secret)
    assert found.get_secret_value() == location


@pytest.mark.parametrize(
    ("url", "networks"),
    [
        ("https://10.0.2.2:8000/x", ["10.0.2.2/32"]),
        ("https://[fd77::30]:8000/x", ["fd77::30/128"]),
        ("https://offsite.drill:8000/x", ["10.0.2.2/32"]),
        ("https://offsite.example/x", None),
    ],
)
def test_a_repository_may_be_reached_and_nothing_else(url: str, networks: list[str] | None) -> None:
    repository = Repository.model_validate({**OFFSITE, "url": url})
    assert backup.peers(repository, {"offsite.drill": "10.0.2.2"}) == networks


def _units(settings: HostSettings) -> dict[str, str]:
    return {Path(path).name: text for path, text in texts(backup.programs(settings)).items()}


def test_every_repository_is_backed_up_checked_and_restored_on_a_timer() -> None:
    units = _units(_settings())
    for repository in ("nas", "offsite"):
        for stem in ("holdfast-backup", "holdfast-backup-check", "holdfast-restore-check"):
            assert f"{stem}@{repository}.service" in units
            assert "Persistent=true" in units[f"{stem}@{repository}.timer"]


def _hours_between_runs(timer: str) -> float:
    """The longest time between two runs of a timer's next ten, as systemd reads its calendar."""
    (calendar,) = re.findall(r"^OnCalendar=(.+)$", timer, re.MULTILINE)
    told = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=10", calendar],
        env={**os.environ, "TZ": "UTC"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    runs = [
        datetime.strptime(run, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        for run in re.findall(r"(?:Next elapse|Iter\. #\d+): \w+ (\S+ \S+) UTC", told)
    ]
    assert len(runs) == 10, told
    return max((after - before).total_seconds() / 3600 for before, after in pairwise(runs))


def test_a_backup_that_grows_old_is_noticed_within_the_hour() -> None:
    settings = _settings()
    units = _units(settings)
    assert settings.backup is not None
    for repository in ("nas", "offsite"):
        assert _hours_between_runs(units[f"holdfast-backup-check@{repository}.timer"]) <= 1
        # What is taken as declared by default is never too old by that.
        taken = _hours_between_runs(units[f"holdfast-backup@{repository}.timer"])
        assert taken < settings.backup.max_age_hours
        # A restore that fails is known within a week.
        assert _hours_between_runs(units[f"holdfast-restore-check@{repository}.timer"]) <= 7 * 24


def test_a_repository_on_a_mount_waits_for_it_and_needs_no_network_of_its_own() -> None:
    unit = _units(_settings())["holdfast-backup@nas.service"]
    assert "RequiresMountsFor=/mnt/nas\n" in unit
    assert "PrivateNetwork=yes" in unit
    assert "/mnt/nas/backup/rack" not in unit.split("ExecStart=")[1].splitlines()[0]


def test_a_repository_with_a_known_address_opens_that_address_only() -> None:
    settings = _settings(base={"hosts": {"offsite.example": "10.0.2.2"}})
    unit = _units(settings)["holdfast-backup@offsite.service"]
    assert "IPAddressDeny=any" in unit
    assert "IPAddressAllow=10.0.2.2/32" in unit
    unknown = _units(_settings())["holdfast-backup@offsite.service"]
    assert "IPAddressDeny=any" not in unknown


def test_the_records_and_the_units_systemd_has_not_read_are_found() -> None:
    state = read(BackupStates)
    assert state.records["nas"]["restore_check"] == {"ok": True}
    assert state.records["torn"] == {}
    assert state.unread == ["holdfast-backup@nas.service"]


PROVED = {"backup": {"paths": ["/a"]}, "restore_check": {"ok": True}}


@pytest.mark.parametrize(
    ("record", "owes"),
    [
        ({}, True),
        ({"backup": {"paths": ["/a"]}}, True),
        ({**PROVED, "restore_check": {"ok": False}}, True),
        (PROVED, False),
        ({**PROVED, "backup": {"paths": ["/a", "/b"]}}, True),
        ({**PROVED, "backup": {"paths": ["/b"], "adopted": "2026-11-21"}}, False),
    ],
)
def test_a_repository_owes_a_proof_until_one_is_on_record(
    record: dict[str, Any], owes: bool
) -> None:
    assert backup.unproved(record, ["/a"]) is owes


def test_nothing_is_done_where_everything_is_proved() -> None:
    host = LocalHost(facts={BackupStates: BackupState({"nas": PROVED})})
    assert host.planned(proved, paths={"nas": ["/a"]}) == []


def test_one_repository_that_fails_does_not_keep_the_other_from_being_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, tried = tmp_path / "program", tmp_path / "tried"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tried}\n[ "$2" != nas ]\n')
    program.chmod(0o755)
    monkeypatch.setattr("operations.backup.PROGRAM", str(program))
    host = LocalHost(facts={BackupStates: BackupState()})
    command = host.planned(proved, paths={"nas": ["/a"], "offsite": ["/a"]})[0]
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 1
    assert tried.read_text() == "first nas\nfirst offsite\n"


def test_a_unit_that_systemd_has_not_read_is_read_again() -> None:
    host = LocalHost(facts={BackupStates: BackupState({"nas": PROVED}, ["x.service"])})
    assert host.planned(proved, paths={"nas": ["/a"]}) == ["systemctl daemon-reload"]


def test_each_path_of_state_that_a_fact_names_has_a_class() -> None:
    classes = [item.path for item in backup.HOUSE if item.path != backup.STATE]
    named = {
        value
        for module in pkgutil.iter_modules(facts.__path__)
        for value in vars(importlib.import_module(f"facts.{module.name}")).values()
        if isinstance(value, str) and value.startswith(f"{places.STATE}/")
    }
    assert len(named) > 4
    covered = (*classes, backup.STATE)
    assert [each for each in named if not any(is_below(each, path) for path in covered)] == []
