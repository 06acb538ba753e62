"""The program that hosts run, with a stand-in for restic; nothing comes from the environment."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from holdfast.host_programs import backup as backup_program
from holdfast.host_programs.backup import Failure, Job, Places, main

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
            "max_restore_age_days": 15,
        }
        (self.places.jobs / "nas.json").write_text(json.dumps({**values, **changes}))

    def restic(self, before: str = "", after: str = "") -> None:
        """Have shell commands run before and after each of restic's, which is ``$1``."""
        # The shebang's python3 is not looked up: the program gives restic a PATH of its own.
        (self.root / "restic").write_text(
            f'#!/bin/sh\n{before}\n{sys.executable} {FAKE} "$@" || exit\n{after}\ntrue\n'
        )
        (self.root / "restic").chmod(0o755)

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
    places = Places(*(tmp_path / name for name in ("jobs", "credentials", "state", "cache")))
    made = Rack(tmp_path, places)
    made.write_job()
    made.restic()
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
    assert "last restore check failed" in rack.refuses("check", "nas")


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
    rack.restic(before=f'[ "$1" != backup ] || echo "written meanwhile" > {rack.root}/live/note')
    rack.run("backup", "nas")
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


# What a restore may bring back in the place of what the snapshot holds: each was once "identical".
GARBAGE = {
    "every file is empty": ("find {live} -type f -exec truncate -s 0 {{}} +", "in size, time"),
    "one is another, and new": ("echo something else !! > {live}/note", "differs from the snap"),
    "one has another size": ("touch -d @1 {live}/note", "differs from the snapshot in time"),
    "a file became a folder": (
        "rm {live}/note && mkdir {live}/note",
        "is a directory, but was a file",
    ),
    "a folder became a file": (
        "rm -r {live}/deep && touch {live}/deep",
        "is a file, but was a directory",
    ),
    "a file became a FIFO": (
        "rm {live}/note && mkfifo {live}/note",
        "is a special file, but was a file",
    ),
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_restore_of_garbage_is_not_called_identical(rack: Rack, garbage: str) -> None:
    rack.run("backup", "nas")
    script, says = GARBAGE[garbage]
    live = f"{rack.places.state}/staging-nas{rack.root}/live"
    rack.restic(after=f'[ "$1" != restore ] || {{ {script.format(live=live)}; }}')
    assert says in rack.refuses("restore-check", "nas")
    assert rack.record["restore_check"]["ok"] is False


def test_a_file_that_the_snapshot_has_otherwise_was_changed_meanwhile_or_is_wrong(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    rack.restic(before=f'[ "$1" != backup ] || echo "written meanwhile" > {rack.root}/live/note')
    rack.run("backup", "nas")
    # The snapshot has it as it was before the manifest was begun: then it was not changed.
    _nodes(rack, "note", ctime="2026-01-01T00:00:00.000000000Z")
    assert "did not change during the backup" in rack.refuses("restore-check", "nas")


def test_what_changed_meanwhile_is_compared_with_what_the_snapshot_holds(rack: Rack) -> None:
    rack.restic(before=f'[ "$1" != backup ] || echo "written meanwhile" > {rack.root}/live/note')
    rack.run("backup", "nas")
    note = f"{rack.places.state}/staging-nas{rack.root}/live/note"
    same = f"touch -r {note} {rack.root}/time && echo WRITTEN meanwhile > {note}"
    same += f" && touch -r {rack.root}/time {note}"
    rack.restic(after=f'[ "$1" != restore ] || {{ {same}; }}')
    assert "note differs from the snapshot" in rack.refuses("restore-check", "nas")


def test_a_snapshot_of_which_no_file_is_as_it_was_is_not_proved(rack: Rack) -> None:
    emptied = f"find {rack.root}/live -type f -exec truncate -s 0 {{}} +"
    rack.restic(before=f'[ "$1" != backup ] || {emptied}')
    rack.run("backup", "nas")
    assert "no restored file has the content" in rack.refuses("restore-check", "nas")


def _nodes(rack: Rack, name: str, **changes: Any) -> None:
    file = rack.repository / "00000000.nodes"
    nodes = [json.loads(line) for line in file.read_text().splitlines()]
    changed = [{**node, **changes} if node["path"].endswith(f"/{name}") else node for node in nodes]
    file.write_text("\n".join(map(json.dumps, changed)))


@pytest.mark.parametrize(
    ("age_days", "verdict"),
    [
        (2700, "days old; the limit is 15"),
        (14, None),
        (-1, "the clock is wrong, or was wrong then"),
    ],
)
def test_an_old_restore_is_an_alert(rack: Rack, age_days: int, verdict: str | None) -> None:
    rack.run("backup", "nas")
    rack.run("restore-check", "nas")
    record = rack.record
    then = datetime.now(UTC) - timedelta(days=age_days)
    record["restore_check"]["time"] = then.isoformat()
    (rack.places.state / "nas.json").write_text(json.dumps(record))
    if verdict:
        assert verdict in rack.refuses("check", "nas")
    else:
        rack.run("check", "nas")


def test_a_missing_source_does_not_stop_the_others(rack: Rack) -> None:
    rack.write_job(sources=[str(rack.root / "gone"), str(rack.root / "live")])
    assert f"{rack.root}/gone does not exist" in rack.refuses("backup", "nas")
    assert (rack.snapshot() / "note").exists()
    rack.run("restore-check", "nas")
    # It is owed, and its absence an alert, until it is there or declared no more.
    assert f"lacks {rack.root}/gone" in rack.refuses("check", "nas")


def _nest(folder: Path, depth: int, name: str = "d") -> None:
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("end", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_folders_in_folders_do_not_end_a_backup(rack: Rack) -> None:
    _nest(rack.root / "live", 1200)
    unread = backup_program.Unread()
    found = list(backup_program.entries([str(rack.root / "live")], [], unread))
    assert not unread.sentences
    assert sum("/d/" in entry["path"] for entry in found) == 1200
    backup_program._remove(rack.root / "live/d")
    assert not (rack.root / "live/d").exists()


def test_a_path_too_long_to_restore_is_left_out_and_named(rack: Rack) -> None:
    _nest(rack.root / "live", 20, "n" * 250)
    refusal = rack.refuses("backup", "nas")
    assert "1 paths could not be read" in refusal
    assert "longer than 3800 bytes" in refusal
    assert len(refusal) < 600
    assert (rack.snapshot() / "note").exists()
    rack.run("restore-check", "nas")
    subprocess.run(["rm", "-rf", rack.root / "live", rack.repository], check=True)


def _swap_before_it_is_opened(
    monkeypatch: pytest.MonkeyPatch, name: str, swap: Callable[[], None]
) -> None:
    """What the owner of the folder does between a look at ``name`` and its opening."""
    opening = os.open

    def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if path == name and not flags & os.O_PATH:
            swap()
        return opening(path, flags, *rest, **more)

    monkeypatch.setattr(backup_program.os, "open", opened)


@pytest.mark.parametrize("kind", ["FIFO", "link"])
def test_a_file_that_its_owner_swaps_is_neither_followed_nor_waited_for(
    rack: Rack, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    note, secret = rack.root / "live/note", rack.root / "secret"
    secret.write_text("root's own")

    def swap() -> None:
        note.unlink(missing_ok=True)
        if kind == "FIFO":
            os.mkfifo(note)
        else:
            note.symlink_to(secret)

    _swap_before_it_is_opened(monkeypatch, "note", swap)
    found = list(backup_program.entries([str(rack.root / "live")], [], backup_program.Unread()))
    assert hashlib.sha256(b"root's own").hexdigest() not in json.dumps(found)
    assert {entry["path"] for entry in found if entry["kind"] == "file"} == {
        f"{rack.root}/live/cache/again",
        f"{rack.root}/live/deep/blob",
    }


def test_a_folder_that_its_owner_makes_a_link_is_not_entered(rack: Rack) -> None:
    theirs, secret = rack.root / "theirs", rack.root / "secret"
    secret.mkdir()
    (secret / "data").mkdir()
    (secret / "data/key").write_text("root's own")
    theirs.mkdir()
    (theirs / "home").symlink_to(secret)
    source = str(theirs / "home/data")
    # Where root alone can place it, it is the administrator's wish.
    found = list(backup_program.entries([source], [], backup_program.Unread()))
    assert [entry["kind"] for entry in found] == ["directory", "file"]
    theirs.chmod(0o777)
    unread = backup_program.Unread()
    assert not list(backup_program.entries([source], [], unread))
    assert "symbolic links" in unread.sentences[0]


def test_a_fifo_that_restic_waits_for_does_not_stop_the_rest(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_program, "STALL_SECONDS", 1)
    note = rack.root / "live/note"
    os.mkfifo(rack.root / "live/always")
    rack.restic(
        before=f'[ "$1" != backup ] || {{ rm -f {note}; mkfifo {note}; }}; exec'
        f' {sys.executable} {FAKE} "$@"'
    )
    refusal = rack.refuses("backup", "nas")
    assert "note (it became a FIFO during the backup)" in refusal
    assert (rack.snapshot() / "deep/blob").exists()


def test_a_name_of_any_bytes_is_backed_up_and_told_without_them(rack: Rack) -> None:
    weird = os.fsdecode(b"\xff\n<0>alert")
    (rack.root / "live" / weird).write_text("x")
    rack.run("backup", "nas")
    rack.restic(after=f'[ "$1" != restore ] || find {rack.places.state} -name "*alert" -delete')
    refusal = rack.refuses("restore-check", "nas")
    assert "alert is missing" in refusal
    assert refusal.isprintable()


def _lock(rack: Rack, **lock: Any) -> Path:
    file: Path = rack.repository / "locks" / "a"
    dead = subprocess.Popen(["true"])
    dead.wait()
    file.write_text(json.dumps({"exclusive": True, "host": "rack", "pid": dead.pid, **lock}))
    return file


def test_a_stale_exclusive_lock_does_not_end_the_backups(rack: Rack) -> None:
    rack.run("backup", "nas")
    # The power was cut in the weekly check or the nightly prune.
    lock = _lock(rack)
    rack.run("backup", "nas")
    assert not lock.exists()
    _lock(rack)
    rack.run("restore-check", "nas")
    _lock(rack)
    rack.run("check", "nas")
    rack.run("restore", "nas", "--to", str(rack.root / "staged"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_program, "LOCK_WAIT_SECONDS", 0.3)
    monkeypatch.setattr(backup_program, "LOCK_PAUSE_SECONDS", 0.1)


ANOTHER = {"host": "nas2", "pid": 730}


@pytest.mark.usefixtures("impatient")
def test_who_holds_a_live_lock_is_named_and_its_work_is_no_alert(
    rack: Rack, capsys: pytest.CaptureFixture[str]
) -> None:
    rack.run("backup", "nas")
    rack.run("restore-check", "nas")
    _lock(rack, **ANOTHER)
    for command in ("check", "backup", "restore-check"):
        capsys.readouterr()
        rack.run(command, "nas")
        said = capsys.readouterr().out
        named = "locked by PID 730 on nas2 by root (UID 0, GID 0) since 2026-11-30 14:09:41" in said
        assert named is (command != "check")
    assert rack.record["restore_check"]["ok"]


@pytest.mark.usefixtures("impatient")
def test_a_lock_that_has_cost_a_snapshot_is_an_alert(rack: Rack) -> None:
    rack.run("backup", "nas")
    lock = _lock(rack, **ANOTHER)
    _stage(rack, time=(datetime.now(UTC) - timedelta(hours=30)).isoformat())
    refusal = rack.refuses("backup", "nas")
    assert "locked by PID 730 on nas2" in refusal
    assert "hours old; the limit is 26" in refusal
    refusal = rack.refuses("restore-check", "nas")
    assert "locked by PID 730 on nas2" in refusal
    lock.unlink()
    rack.run("backup", "nas")


@pytest.mark.usefixtures("impatient")
def test_old_snapshots_wait_for_another_hosts_backup(
    rack: Rack, capsys: pytest.CaptureFixture[str]
) -> None:
    rack.run("backup", "nas")
    (rack.repository / "forgotten").unlink()
    _lock(rack, **ANOTHER, exclusive=False)
    rack.run("backup", "nas")
    assert rack.snapshot(1).exists()
    assert "the next backup removes old snapshots" in capsys.readouterr().out
    assert not (rack.repository / "forgotten").exists()


def test_a_lock_that_ends_is_waited_for(rack: Rack, monkeypatch: pytest.MonkeyPatch) -> None:
    rack.run("backup", "nas")
    lock = _lock(rack, **ANOTHER)
    monkeypatch.setattr(backup_program, "LOCK_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(backup_program, "_say", lambda sentence: lock.unlink())
    rack.run("backup", "nas")
    assert rack.snapshot(1).exists()


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
    assert "is gone; it existed" in rack.refuses("backup", "nas")
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
        (timedelta(hours=-1), "this clock or the repository's clock is wrong"),
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
        assert "is inside live data" in rack.refuses("restore", "nas", "--to", str(inside))


def test_a_restore_does_not_go_below_a_folder_of_somebody_else(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    rack.run("backup", "nas")
    (rack.root / "theirs").mkdir()
    if os.geteuid() == 0:
        os.chown(rack.root / "theirs", 4242, -1)
    else:
        monkeypatch.setattr(backup_program.os, "geteuid", lambda: 4242)
    target = rack.root / "theirs/back"
    assert "belongs to user" in rack.refuses("restore", "nas", "--to", str(target))
    assert not target.exists()


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


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: list[str]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/var/lib/holdfast/backup")

    monkeypatch.setattr(backup_program, "main", full)
    with pytest.raises(
        SystemExit, match=r"^holdfast-backup: .*No space left on device.*backup"
    ) as end:
        backup_program._run()
    assert "\n" not in str(end.value)


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
