#!/usr/bin/python3 -I
"""Back up, restore and compare: what holdfast's backup units and an operator run on a host.

Placed on hosts as it is, so it uses the standard library only and needs Python 3.11. Reads
``/etc/holdfast/backup/<repository>.json``; needs nothing from its environment.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

TAG = "holdfast"
EXIT_NO_REPOSITORY = 10
"""restic >= 0.17. Before, a missing repository exits 1 as everything else does."""
MISSING_BEFORE_0_17 = ("no such file or directory", "does not exist")
OPEN_SECONDS = 90
"""How long opening a repository may take; restic itself tries a dead server for 15 minutes."""
CLOCK_SKEW_SECONDS = 300
ROOM = 1.2
"""Free space a restore wants, as a multiple of what it restores: the disk is not ours alone."""


class Failure(Exception):
    """One sentence that says what is wrong and, where it is known, what to do."""


@dataclass(frozen=True)
class Places:
    """Where this program finds and keeps things."""

    jobs: Path = Path("/etc/holdfast/backup")
    credentials: Path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/etc/holdfast/credentials"))
    state: Path = Path("/var/lib/holdfast/backup")
    cache: Path = Path("/var/cache/holdfast-backup")


@dataclass(frozen=True)
class Job:
    """One repository and what goes there, as the deploy wrote it down."""

    repository: str
    host: str
    restic: str
    sources: list[str]
    derived: list[str]
    """Beneath or beside the sources; can be made again and is left out."""
    roots: list[str]
    """Folders in which everything must be declared."""
    mount: str | None
    """Where the disk or export that holds the repository must be mounted."""
    append_only: bool
    keep: dict[str, int]
    max_age_hours: float
    places: Places = field(default_factory=Places)

    @classmethod
    def load(cls, repository: str, places: Places) -> Job:
        """Read the job called ``repository``."""
        path = places.jobs / f"{repository}.json"
        try:
            return cls(**json.loads(path.read_text()), places=places)
        except FileNotFoundError:
            names = ", ".join(sorted(known.stem for known in places.jobs.glob("*.json")))
            raise Failure(f"there is no repository {repository}; there are: {names}") from None

    @property
    def manifest(self) -> Path:
        """Checksums of what is backed up; travels in the snapshot."""
        return self.places.state / f"manifest-{self.repository}.jsonl"

    @property
    def record(self) -> Path:
        """What was last done with this repository and how it ended."""
        return self.places.state / f"{self.repository}.json"

    @property
    def paths(self) -> list[str]:
        """What a complete snapshot of this host holds."""
        return sorted([*self.sources, str(self.manifest)])


def restic(
    job: Job, *arguments: str, seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run restic with an environment of our own making; the caller judges the exit status.

    Raises:
        subprocess.TimeoutExpired: it was still running after ``seconds``.
    """
    credentials = job.places.credentials
    environment = {
        "PATH": "/usr/bin:/bin",
        "RESTIC_REPOSITORY_FILE": str(credentials / f"backup-{job.repository}-location"),
        "RESTIC_PASSWORD_FILE": str(credentials / f"backup-{job.repository}-password"),
        "RESTIC_CACHE_DIR": str(job.places.cache),
    }
    return subprocess.run(
        [job.restic, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )


def succeed(job: Job, *arguments: str) -> str:
    """Run restic and return its output.

    Raises:
        Failure: with restic's last words.
    """
    result = restic(job, *arguments)
    if result.returncode != 0:
        words = _essence(result.stderr)
        raise Failure(f"restic {arguments[0]} exited {result.returncode}: {words}")
    return result.stdout


def _essence(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal:")]
    return " | ".join(fatal or lines[-3:]) or "it said nothing"


def exists(job: Job) -> bool:
    """Whether the repository is there; a wrong password or a dead network is not "absent".

    Raises:
        Failure: it cannot be told, or the repository cannot be used.
    """
    if job.mount is not None:
        _require_mounted(job.mount)
    try:
        result = restic(job, "cat", "config", seconds=OPEN_SECONDS)
    except subprocess.TimeoutExpired as late:
        said = late.stderr.decode(errors="replace") if isinstance(late.stderr, bytes) else ""
        raise Failure(
            f"repository {job.repository} does not answer within {OPEN_SECONDS} seconds:"
            f" {_essence(said)}"
        ) from None
    if result.returncode == 0:
        return True
    words = result.stderr
    absent_in_words = (
        result.returncode == 1
        and "Is there a repository at the following location?" in words
        and any(phrase in words for phrase in MISSING_BEFORE_0_17)
    )
    if result.returncode == EXIT_NO_REPOSITORY or absent_in_words:
        return False
    raise Failure(f"repository {job.repository} cannot be opened: {_essence(result.stderr)}")


def _require_mounted(mount: str) -> None:
    # A look inside wakes an automount. A hard NFS mount whose server is gone would hold us for
    # ever, but lets its callers be killed: so it is another process that looks.
    try:
        subprocess.run(
            ["/bin/ls", mount], capture_output=True, text=True, check=True, timeout=OPEN_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Failure(
            f"{mount} does not answer in {OPEN_SECONDS} seconds; is the NAS up?"
        ) from None
    except subprocess.CalledProcessError as error:
        raise Failure(f"{error.stderr.strip()}; is the NAS up?") from None
    if not os.path.ismount(mount):
        raise Failure(f"{mount} is not mounted; writing there would fill the local disk")


@dataclass(frozen=True)
class Snapshot:
    """One snapshot of this host."""

    id: str
    time: datetime
    paths: list[str]


def snapshots(job: Job) -> list[Snapshot]:
    """The snapshots of this host, oldest first by their own time."""
    listing = json.loads(succeed(job, "snapshots", "--json", "--host", job.host, "--tag", TAG))
    found = [
        Snapshot(item["id"], datetime.fromisoformat(item["time"]), sorted(item["paths"]))
        for item in listing or []
    ]
    return sorted(found, key=lambda snapshot: snapshot.time)


def newest(job: Job) -> Snapshot | None:
    """The newest snapshot of this host, or None where there is none, or no repository."""
    return next(reversed(snapshots(job)), None) if exists(job) else None


def find(job: Job, wanted: str) -> Snapshot:
    """The snapshot whose id begins with ``wanted``, or the newest for ``latest``.

    Raises:
        Failure: there is none.
    """
    matching = [
        snapshot
        for snapshot in (snapshots(job) if exists(job) else [])
        if wanted == "latest" or snapshot.id.startswith(wanted)
    ]
    if not matching:
        raise Failure(f"{job.repository} holds no snapshot of {job.host} called {wanted}")
    return matching[-1]


def entries(paths: list[str], without: list[str], root: str = "") -> Iterator[dict[str, Any]]:
    """One entry for every file, directory and link at or beneath ``paths`` (under ``root``)."""
    for path in paths:
        yield from _walk(path, set(without), root)


def _walk(path: str, without: set[str], root: str) -> Iterator[dict[str, Any]]:
    if path in without:
        return
    real = Path(root + path)
    try:
        status = real.lstat()
        entry: dict[str, Any] = {
            "path": path,
            "mode": stat.S_IMODE(status.st_mode),
            "owner": [status.st_uid, status.st_gid],
        }
        if stat.S_ISDIR(status.st_mode):
            yield {**entry, "kind": "directory"}
            for child in sorted(real.iterdir()):
                yield from _walk(f"{path}/{child.name}", without, root)
        elif stat.S_ISLNK(status.st_mode):
            yield {**entry, "kind": "link", "target": str(real.readlink())}
        elif stat.S_ISREG(status.st_mode):
            with real.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            yield {
                **entry,
                "kind": "file",
                "size": status.st_size,
                "changed": status.st_mtime_ns,
                "sha256": digest,
            }
    except FileNotFoundError:
        return  # it went away while we looked: a living system


@dataclass
class Comparison:
    """How restored files differ from the manifest made when they were backed up."""

    files: int = 0
    size: int = 0
    moved_on: int = 0
    """Changed between the manifest and the snapshot, by their modification time."""
    problems: list[str] = field(default_factory=list)


def compare(manifest: Path, root: str) -> Comparison:
    """Compare the tree under ``root`` with ``manifest``: content, kind, mode and owner."""
    result = Comparison()
    with manifest.open(encoding="utf-8") as stream:
        for line in stream:
            wanted = json.loads(line)
            found = next(_walk(wanted["path"], set(), root), None)
            if wanted["kind"] == "file":
                result.files += 1
                result.size += wanted["size"]
            if found is None:
                result.problems.append(f"{wanted['path']} is missing")
            elif wanted["kind"] == "file" and found.get("changed") != wanted["changed"]:
                result.moved_on += 1
            elif found != wanted:
                keys = [key for key in wanted if found.get(key) != wanted[key]]
                result.problems.append(f"{wanted['path']} differs in {', '.join(keys)}")
    return result


def _say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")


def now() -> str:
    """The present time with its zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_record(job: Job) -> dict[str, Any]:
    """What is on record; empty where nothing was ever done."""
    try:
        record: dict[str, Any] = json.loads(job.record.read_text())
    except (FileNotFoundError, ValueError):
        return {}  # never written, or torn by a power cut
    return record


def note(job: Job, **values: Any) -> None:
    """Add ``values`` to the record."""
    job.places.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = job.record.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({**read_record(job), **values}, indent=1) + "\n")
    temporary.replace(job.record)


@contextmanager
def alone(job: Job) -> Iterator[None]:
    """Hold this repository's lock: one of our commands at a time."""
    job.places.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (job.places.state / f".{job.repository}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def unclassified(job: Job) -> list[str]:
    """Paths in the folders we answer for that no declaration covers."""
    declared = [*job.sources, *job.derived]
    return sorted(path for root in job.roots for path in _uncovered(root, declared))


def _uncovered(folder: str, declared: list[str]) -> Iterator[str]:
    for child in Path(folder).iterdir() if Path(folder).is_dir() else []:
        path = str(child)
        if any(path == known or path.startswith(f"{known}/") for known in declared):
            continue
        above = any(known.startswith(f"{path}/") for known in declared)
        if above and child.is_dir() and not child.is_symlink():
            yield from _uncovered(path, declared)
        else:
            yield path


def backup(job: Job) -> None:
    """Take a snapshot, and thin out the old ones where the repository lets us."""
    missing = [path for path in job.sources if not os.path.lexists(path)]
    if missing:
        raise Failure(f"not backed up, because these do not exist: {', '.join(missing)}")
    if not exists(job):
        if "backup" in read_record(job):
            raise Failure(
                f"repository {job.repository} has vanished; it was there on"
                f" {read_record(job)['backup']['time']}. If that was meant, remove {job.record}"
            )
        succeed(job, "init")
    succeed(job, "unlock")  # what a power cut left behind; locks in use stay

    job.manifest.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with job.manifest.open("w", encoding="utf-8") as stream:
        job.manifest.chmod(0o600)
        for entry in entries(job.sources, job.derived):
            stream.write(json.dumps(entry) + "\n")

    excludes = [f"--exclude={path}" for path in job.derived]
    output = succeed(
        job, "backup", "--json", f"--host={job.host}", f"--tag={TAG}", *excludes, *job.paths
    )
    summary = json.loads(output.splitlines()[-1])
    note(
        job,
        backup={
            "time": now(),
            "snapshot": summary["snapshot_id"],
            "paths": job.paths,
            "files": summary["total_files_processed"],
            "bytes": summary["total_bytes_processed"],
        },
    )
    if not job.append_only:
        keep = [f"--keep-{span}={count}" for span, count in job.keep.items() if count]
        scope = (f"--host={job.host}", f"--tag={TAG}", "--group-by=host,tags")
        succeed(job, "forget", *scope, *keep, "--prune")
    if strays := unclassified(job):
        raise Failure(
            "the snapshot was taken, but these paths are declared neither as state, secret nor"
            f" derived: {', '.join(strays)}"
        )


def check(job: Job) -> None:
    """Fail unless the newest snapshot is fresh, whole and known to be restorable."""
    snapshot = newest(job)
    if snapshot is None:
        raise Failure(f"{job.repository} holds no snapshot of {job.host}")
    age_seconds = time.time() - snapshot.time.timestamp()
    age = f"the newest snapshot in {job.repository} is {age_seconds / 3600:.1f} hours old"
    if age_seconds > job.max_age_hours * 3600:
        raise Failure(f"{age}; the limit is {job.max_age_hours:g}")
    if age_seconds < -CLOCK_SKEW_SECONDS:
        raise Failure(f"{age}: one of the clocks is wrong")
    if lacking := sorted(set(job.paths) - set(snapshot.paths)):
        raise Failure(f"the newest snapshot in {job.repository} lacks {', '.join(lacking)}")
    if not read_record(job).get("restore_check", {}).get("ok"):
        raise Failure(f"{job.repository}: the last restore check did not succeed")
    _say(f"{age} and holds all {len(job.paths)} declared paths")


def _require_room(job: Job, snapshot: Snapshot, folder: Path) -> None:
    sizes = json.loads(succeed(job, "stats", "--json", "--mode=restore-size", snapshot.id))
    needed, free = sizes["total_size"], shutil.disk_usage(folder).free
    if needed * ROOM > free:
        raise Failure(
            f"{folder} has {free >> 20} MiB free and restoring {snapshot.id[:8]} needs"
            f" {int(needed * ROOM) >> 20} MiB"
        )


def restored(job: Job, snapshot: Snapshot, target: Path) -> Comparison:
    """Restore ``snapshot`` into ``target`` and compare it with the manifest it carries."""
    succeed(job, "restore", snapshot.id, f"--target={target}", "--verify")
    manifest = Path(f"{target}{job.manifest}")
    if not manifest.is_file():
        raise Failure(f"{snapshot.id[:8]} carries no manifest: it was not made by this program")
    return compare(manifest, str(target))


def restore_check(job: Job) -> None:
    """Restore the newest snapshot into a private place, compare every byte, remove it again."""
    started = time.monotonic()
    snapshot = newest(job)
    if snapshot is None:
        raise Failure(f"{job.repository} holds no snapshot of {job.host} to restore")
    outcome: dict[str, Any] = {"time": now(), "snapshot": snapshot.id, "ok": False}
    staging = job.places.state / f"staging-{job.repository}"
    shutil.rmtree(staging, ignore_errors=True)  # what a power cut left behind
    try:
        staging.mkdir(mode=0o700, parents=True)
        _require_room(job, snapshot, staging)
        succeed(job, "unlock")
        succeed(job, "check")
        result = restored(job, snapshot, staging)
        outcome |= {
            "ok": not result.problems,
            "files": result.files,
            "bytes": result.size,
            "moved_on": result.moved_on,
            "problems": result.problems[:20],
            "seconds": round(time.monotonic() - started, 1),
        }
    finally:
        note(job, restore_check=outcome)
        shutil.rmtree(staging, ignore_errors=True)
    if result.problems:
        raise Failure(
            f"{len(result.problems)} of the restored paths are not what was backed up:"
            f" {'; '.join(result.problems[:3])}"
        )
    _say(f"{result.files} files, {result.size} bytes restored from {job.repository} and identical")


def restore(job: Job, wanted: str, target: Path) -> None:
    """Restore into an empty directory, for an operator to look at and then put in place."""
    target = target.resolve()
    for source in job.sources:
        if target == Path(source) or Path(source) in target.parents:
            raise Failure(f"{target} lies in live data ({source}); restore beside it, then swap")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Failure(f"{target} is not an empty directory; nothing was restored")
    snapshot = find(job, wanted)
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_room(job, snapshot, target)
    result = restored(job, snapshot, target)
    _say(f"{result.files} files, {result.size} bytes of {snapshot.id[:8]} are in {target}")
    if result.moved_on:
        _say(f"{result.moved_on} of them changed while they were being backed up")
    if result.problems:
        raise Failure("not as backed up: " + "; ".join(result.problems))


def first(job: Job) -> None:
    """Have a snapshot and a proved restore now, where there never was one.

    A repository that already holds this host, as after a rebuild, is only proved: a snapshot of
    the empty machine must not become the newest before its data has been restored.
    """
    snapshot = newest(job)
    known = read_record(job).get("backup", {})
    changed = bool(known) and "adopted" not in known and known["paths"] != job.paths
    if snapshot is None or changed:
        _start(f"holdfast-backup@{job.repository}.service")
    elif not known:
        note(
            job,
            backup={
                "time": snapshot.time.isoformat(),
                "snapshot": snapshot.id,
                "paths": snapshot.paths,
                "adopted": now(),
            },
        )
    _start(f"holdfast-restore-check@{job.repository}.service")


def _start(unit: str) -> None:
    started = time.time()
    if subprocess.run(["/usr/bin/systemctl", "start", unit], check=False).returncode != 0:
        journal = subprocess.run(
            ["/usr/bin/journalctl", "--quiet", "--no-pager", "--output=cat", f"--unit={unit}"]
            + [f"--since=@{started:.0f}"],
            capture_output=True,
            text=True,
            check=False,
        )
        raise Failure(f"{unit} failed: {' | '.join(journal.stdout.strip().splitlines()[-5:])}")


def main(arguments: list[str], places: Places | None = None) -> None:
    """Run one command.

    Raises:
        Failure: it did not succeed.
    """
    parser = argparse.ArgumentParser(prog="holdfast-backup", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    plain = {
        "backup": backup,
        "check": check,
        "restore-check": restore_check,
        "first": first,
    }
    for name, action in plain.items():
        summary = (action.__doc__ or "").splitlines()[0]
        commands.add_parser(name, help=summary).add_argument("repository")
    for_restore = commands.add_parser("restore", help=(restore.__doc__ or "").splitlines()[0])
    for_restore.add_argument("repository")
    for_restore.add_argument("snapshot", nargs="?", default="latest")
    for_restore.add_argument("--to", type=Path, required=True, metavar="DIR")
    given = parser.parse_args(arguments)

    job = Job.load(given.repository, places or Places())
    if given.command == "restore":
        restore(job, given.snapshot, given.to)
    elif given.command in ("first", "check"):
        plain[given.command](job)
    else:
        with alone(job):
            plain[given.command](job)


def _run() -> NoReturn:
    try:
        main(sys.argv[1:])
    except Failure as failure:
        sys.exit(f"holdfast-backup: {failure}.")
    except PermissionError as error:
        sys.exit(f"holdfast-backup: {error}; run it as root.")
    sys.exit(0)


if __name__ == "__main__":
    _run()
