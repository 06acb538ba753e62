"""The program that hosts run, with a stand-in for restic; nothing comes from the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from holdfast import backup_program
from holdfast.backup_program import Failure, Job, Places, main

FAKE = Path(__file__).parent / "fake_restic.py"


@dataclass
class Rack:
    """A host's folders under one directory."""

    root: Path
    places: Places

    def run(self, *arguments: str) -> None:
        main(list(arguments), self.places)

    def write_job(self, **changes: Any) -> None:
        values = {
            "repository": "nas",
            "host": "rack",
            "restic": str(self.root / "restic"),
            "sources": [str(self.root / "live")],
            "derived": [str(self.root / "live/cache")],
            "roots": [],
            "mount": None,
            "append_only": False,
            "keep": {"daily": 7, "weekly": 5, "monthly": 0},
            "max_age_hours": 26,
        }
        (self.places.jobs / "nas.json").write_text(json.dumps({**values, **changes}))

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.places.state / "nas.json").read_text())
        return record

    @property
    def repository(self) -> Path:
        return self.root / "repository"

    def snapshot(self, number: int = 0) -> Path:
        return Path(f"{self.repository}/{number:08x}{self.root}/live")

    def refuses(self, *arguments: str) -> str:
        with pytest.raises(Failure) as failure:
            self.run(*arguments)
        return str(failure.value)


@pytest.fixture
def rack(tmp_path: Path) -> Rack:
    names = ("jobs", "credentials", "state", "cache", "live", "live/cache", "live/deep")
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "live/note").write_text("what must last")
    (tmp_path / "live/deep/blob").write_bytes(bytes(range(256)) * 64)
    (tmp_path / "live/link").symlink_to("note")
    (tmp_path / "live/cache/again").write_text("can be made again")
    (tmp_path / "credentials/backup-nas-location").write_text(f"{tmp_path / 'repository'}\n")
    (tmp_path / "credentials/backup-nas-password").write_text("a password\n")
    # The shebang's python3 is not looked up: the program gives restic a PATH of its own.
    (tmp_path / "restic").write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    (tmp_path / "restic").chmod(0o755)
    places = Places(*(tmp_path / name for name in ("jobs", "credentials", "state", "cache")))
    made = Rack(tmp_path, places)
    made.write_job()
    return made


def test_the_first_backup_makes_the_repository_and_leaves_out_what_is_derived(rack: Rack) -> None:
    rack.run("backup", "nas")
    assert (rack.snapshot() / "deep/blob").read_bytes() == bytes(range(256)) * 64
    assert not (rack.snapshot() / "cache").exists()
    assert rack.record["backup"]["paths"] == [
        str(rack.root / "live"),
        str(rack.root / "state/manifest-nas.jsonl"),
    ]


def test_a_restore_that_is_identical_is_recorded_and_leaves_nothing_behind(rack: Rack) -> None:
    rack.run("backup", "nas")
    rack.run("restore-check", "nas")
    outcome = rack.record["restore_check"]
    assert (outcome["ok"], outcome["files"], outcome["problems"]) == (True, 2, [])
    assert not list(rack.places.state.glob("staging*"))
    rack.run("check", "nas")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda live: (live / "note").unlink(), "note is missing"),
        (lambda live: (live / "link").unlink(), "link is missing"),
        (lambda live: (live / "note").chmod(0o777), "note differs in mode"),
        (lambda live: (live / "deep").chmod(0o700), "deep differs in mode"),
    ],
)
def test_a_restore_that_is_not_what_was_backed_up_is_found(
    rack: Rack, damage: Any, word: str
) -> None:
    rack.run("backup", "nas")
    damage(rack.snapshot())
    assert word in rack.refuses("restore-check", "nas")
    assert rack.record["restore_check"]["ok"] is False
    assert not list(rack.places.state.glob("staging*"))
    assert "last restore check did not succeed" in rack.refuses("check", "nas")


def test_one_flipped_byte_under_an_unchanged_time_is_found(rack: Rack) -> None:
    rack.run("backup", "nas")
    blob = rack.snapshot() / "deep/blob"
    before = blob.stat()
    content = bytearray(blob.read_bytes())
    content[1000] ^= 1
    blob.write_bytes(content)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "blob differs in sha256" in rack.refuses("restore-check", "nas")


def test_a_file_that_changed_while_it_was_backed_up_is_counted_and_is_no_problem(
    rack: Rack,
) -> None:
    rack.run("backup", "nas")
    (rack.snapshot() / "note").write_text("written between manifest and snapshot")
    rack.run("restore-check", "nas")
    assert rack.record["restore_check"]["moved_on"] == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        # The snapshot that is restored may be whole while an older one is not.
        ("damaged-pack", "restic check exited 1: Fatal: repository contains errors"),
        # What changed while it was backed up has no checksum of ours to be compared with.
        ("losing-disk", "restic restore exited 1: Fatal: There were 1 errors"),
    ],
)
def test_what_only_restic_can_see_fails_a_restore_check(rack: Rack, fault: str, words: str) -> None:
    rack.run("backup", "nas")
    (rack.repository / fault).touch()
    assert words in rack.refuses("restore-check", "nas")
    assert rack.record["restore_check"]["ok"] is False
    (rack.repository / fault).unlink()
    rack.run("restore-check", "nas")


def test_an_operator_s_restore_is_verified_too(rack: Rack) -> None:
    rack.run("backup", "nas")
    (rack.repository / "losing-disk").touch()
    refused = rack.refuses("restore", "nas", "--to", str(rack.root / "staged"))
    assert "There were 1 errors" in refused


@pytest.mark.parametrize("command", ["backup", "restore-check"])
def test_a_lock_that_a_power_cut_left_behind_stops_nothing(rack: Rack, command: str) -> None:
    rack.run("backup", "nas")
    (rack.repository / "stale-lock").touch()
    rack.run(command, "nas")


def test_a_missing_source_stops_the_backup_before_it_begins(rack: Rack) -> None:
    rack.write_job(sources=[str(rack.root / "live"), str(rack.root / "gone")])
    assert f"do not exist: {rack.root}/gone" in rack.refuses("backup", "nas")
    assert not rack.repository.exists()


def test_an_unclassified_path_fails_the_run_after_the_snapshot(rack: Rack) -> None:
    home = rack.root / "home"
    (home / "declared/inner").mkdir(parents=True)
    (home / "declared/stray").write_text("")
    (home / "whole").mkdir()
    rack.write_job(
        sources=[str(rack.root / "live"), str(home / "declared/inner")],
        derived=[str(home / "whole")],
        roots=[str(home)],
    )
    refusal = rack.refuses("backup", "nas")
    assert refusal.endswith(f"derived: {home}/declared/stray")
    assert rack.snapshot().exists()


def test_a_wrong_password_is_not_an_absent_repository(rack: Rack) -> None:
    rack.run("backup", "nas")
    (rack.places.credentials / "backup-nas-password").write_text("another\n")
    assert "wrong password" in rack.refuses("backup", "nas")
    assert "wrong password" in rack.refuses("check", "nas")


def test_a_repository_that_vanished_is_not_made_anew(rack: Rack) -> None:
    rack.run("backup", "nas")
    rack.repository.rename(rack.root / "elsewhere")
    assert "has vanished" in rack.refuses("backup", "nas")
    assert not rack.repository.exists()


def test_a_place_that_is_not_mounted_is_not_written_to(rack: Rack) -> None:
    bare = rack.root / "mnt"
    bare.mkdir()
    rack.write_job(mount=str(bare))
    assert "is not mounted" in rack.refuses("backup", "nas")
    rack.write_job(mount=str(rack.root / "nowhere"))
    assert "is the NAS up?" in rack.refuses("backup", "nas")
    assert not rack.repository.exists()


def _stage(rack: Rack, **changes: Any) -> None:
    file = rack.repository / "00000000.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("age", "verdict"),
    [
        (timedelta(hours=27), "27.0 hours old; the limit is 26"),
        (timedelta(hours=-1), "one of the clocks is wrong"),
        (timedelta(hours=25), None),
    ],
)
def test_freshness_is_the_snapshots_own_time_with_its_zone(
    rack: Rack, age: timedelta, verdict: str | None
) -> None:
    rack.run("backup", "nas")
    rack.run("restore-check", "nas")
    # Nine digits and a zone that is not ours, as restic writes them.
    taken = (datetime.now(UTC) - age + timedelta(hours=5, minutes=30)).isoformat()
    _stage(rack, time=taken.replace("+00:00", "000+05:30"))
    if verdict:
        assert verdict in rack.refuses("check", "nas")
    else:
        rack.run("check", "nas")


def test_a_fresh_snapshot_that_lacks_a_declared_path_is_not_enough(rack: Rack) -> None:
    rack.run("backup", "nas")
    rack.run("restore-check", "nas")
    rack.write_job(sources=[str(rack.root / "live"), str(rack.root / "new")])
    assert f"lacks {rack.root}/new" in rack.refuses("check", "nas")


def test_no_snapshot_at_all_is_a_failure(rack: Rack) -> None:
    assert "holds no snapshot of rack" in rack.refuses("check", "nas")
    assert "holds no snapshot of rack" in rack.refuses("restore-check", "nas")
    assert "holds no snapshot of rack" in rack.refuses("restore", "nas", "--to", "/nonexistent/x")


@pytest.mark.parametrize("append_only", [True, False])
def test_old_snapshots_are_thinned_out_only_where_the_repository_allows(
    rack: Rack, append_only: bool
) -> None:
    rack.write_job(append_only=append_only)
    rack.run("backup", "nas")
    forgotten = rack.repository / "forgotten"
    assert forgotten.exists() is not append_only
    if not append_only:
        assert "--keep-daily=7 --keep-weekly=5 --prune" in forgotten.read_text()


def test_a_restore_stages_and_never_touches_what_lives(rack: Rack) -> None:
    rack.run("backup", "nas")
    (rack.root / "live/note").write_text("newer than the snapshot")
    target = rack.root / "staged"
    rack.run("restore", "nas", "--to", str(target))
    assert Path(f"{target}{rack.root}/live/note").read_text() == "what must last"
    assert (rack.root / "live/note").read_text() == "newer than the snapshot"
    assert target.stat().st_mode & 0o777 == 0o700

    assert "is not an empty directory" in rack.refuses("restore", "nas", "--to", str(target))
    for inside in (rack.root / "live", rack.root / "live/deep/x"):
        assert "lies in live data" in rack.refuses("restore", "nas", "--to", str(inside))


def test_an_older_snapshot_is_restored_by_name(rack: Rack) -> None:
    rack.run("backup", "nas")
    (rack.root / "live/note").write_text("second")
    rack.run("backup", "nas")
    rack.run("restore", "nas", "00000000", "--to", str(rack.root / "old"))
    rack.run("restore", "nas", "--to", str(rack.root / "new"))
    notes = [Path(f"{rack.root}/{name}{rack.root}/live/note") for name in ("old", "new")]
    assert [note.read_text() for note in notes] == ["what must last", "second"]


@pytest.fixture
def started(rack: Rack, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Units that were asked for; each runs here instead of in its sandbox."""
    units: list[str] = []

    def start(unit: str) -> None:
        units.append(unit)
        rack.run(unit.removeprefix("holdfast-").split("@")[0], "nas")

    monkeypatch.setattr(backup_program, "_start", start)
    return units


BACKUP, PROOF = "holdfast-backup@nas.service", "holdfast-restore-check@nas.service"


def test_a_new_host_gets_its_first_snapshot_and_a_proof(rack: Rack, started: list[str]) -> None:
    rack.run("first", "nas")
    assert started == [BACKUP, PROOF]
    assert rack.record["restore_check"]["ok"]


def test_a_rebuilt_host_does_not_hide_its_old_data_behind_a_new_snapshot(
    rack: Rack, started: list[str]
) -> None:
    rack.run("backup", "nas")
    for file in rack.places.state.iterdir():
        file.unlink()
    (rack.root / "live/note").unlink()
    rack.run("first", "nas")
    assert started == [PROOF]
    assert rack.record["restore_check"]["ok"]
    rack.run("restore", "nas", "--to", str(rack.root / "staged"))
    assert Path(f"{rack.root}/staged{rack.root}/live/note").read_text() == "what must last"


def test_a_changed_declaration_gets_a_snapshot_at_once(rack: Rack, started: list[str]) -> None:
    rack.run("first", "nas")
    (rack.root / "more").mkdir()
    rack.write_job(sources=[str(rack.root / "live"), str(rack.root / "more")])
    started.clear()
    rack.run("first", "nas")
    assert started == [BACKUP, PROOF]


def _restic_that(rack: Rack, script: str) -> Job:
    (rack.root / "restic").write_text(f"#!/bin/sh\n{script}\n")
    return Job.load("nas", rack.places)


# What `restic cat config` says and returns, recorded from 0.14.0 and 0.19.1.
@pytest.mark.parametrize(
    ("code", "words", "verdict"),
    [
        (0, "", True),
        (10, "Fatal: repository does not exist: unable to open config file: ...", False),
        (
            1,
            "Fatal: unable to open config file: stat none/config: no such file or directory\n"
            "Is there a repository at the following location?\n./none",
            False,
        ),
        (
            1,
            "Fatal: unable to open config file: <config/> does not exist\n"
            "Is there a repository at the following location?\nrest:http://127.0.0.1:40487/x/",
            False,
        ),
        (
            1,
            'Fatal: unable to open config file: client.Head: Head "http://127.0.0.1:40487/x":'
            " dial tcp 127.0.0.1:9: connect: connection refused\n"
            "Is there a repository at the following location?\nrest:http://127.0.0.1:40487/x/",
            None,
        ),
        (1, "Fatal: wrong password or no key found", None),
        (12, "Fatal: wrong password or no key found", None),
    ],
)
def test_only_what_is_certainly_absent_is_absent(
    rack: Rack, code: int, words: str, verdict: bool | None
) -> None:
    job = _restic_that(rack, f"cat >&2 <<'END'\n{words}\nEND\nexit {code}")
    if verdict is None:
        with pytest.raises(Failure, match="cannot be opened"):
            backup_program.exists(job)
    else:
        assert backup_program.exists(job) is verdict


def test_a_server_that_is_down_is_given_up_on(rack: Rack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_program, "OPEN_SECONDS", 0.5)
    job = _restic_that(rack, "echo 'Stat returned error: connection refused' >&2; exec sleep 60")
    with pytest.raises(Failure, match=r"does not answer within .* connection refused"):
        backup_program.exists(job)


def test_a_record_torn_by_a_power_cut_counts_as_none(rack: Rack, started: list[str]) -> None:
    rack.run("first", "nas")
    (rack.places.state / "nas.json").write_text('{"backup": {')
    rack.run("first", "nas")
    assert "adopted" in rack.record["backup"]


def test_a_disk_without_room_is_not_filled_by_a_check(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    rack.run("backup", "nas")
    monkeypatch.setattr(backup_program, "ROOM", 1 << 60)
    assert "MiB free" in rack.refuses("restore-check", "nas")


def test_it_runs_as_a_program_with_an_empty_environment() -> None:
    done = subprocess.run(
        [sys.executable, "-I", backup_program.__file__, "check", "nowhere"],
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("holdfast-backup: there is no repository nowhere")
