#!/usr/bin/python3 -I
"""Back up, restore and compare; used by Holdfast's backup units and by an operator on a host.

It is copied to hosts, so it uses only the standard library of Python 3.11. Reads
``/etc/holdfast/backup/<repository>.json``; needs nothing from its environment.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, NoReturn

TAG = "holdfast"
EXIT_NO_REPOSITORY = 10
"""restic >= 0.17. Older versions exit with 1 for every error, also for a missing repository."""
EXIT_UNREAD = 3
"""restic took the snapshot, and some paths could not be read."""
MISSING_BEFORE_0_17 = ("no such file or directory", "does not exist")
OPEN_SECONDS = 90
"""Limit for opening a repository; restic itself tries a dead server for 15 minutes."""
LOCK_WAIT_SECONDS = 2 * 3600
"""Limit for waiting for a lock of another program."""
LOCK_PAUSE_SECONDS = 30
STALL_SECONDS = 60
"""After this time without progress restic may wait for the writer of a FIFO."""
MOST_LINKS = 40
"""The number of links that the kernel follows in one path."""
MOST_LEFT_OUT = 100
"""The number of too long paths that restic can exclude; its arguments have a limit."""
CLOCK_SKEW_SECONDS = 300
ROOM = 1.2
"""Free space for a restore, as a multiple of its size, because other programs use the disk too."""
LONGEST_PATH = 3800
"""Longest path in a backup, bytes: a restore adds its own folder, and the limit is 4,096."""
LOCKED = re.compile(r"already locked (?:exclusively )?by (.+)")
CREATED = re.compile(r"lock was created at (.+)")


class Failure(Exception):
    """One sentence with the error and, if known, what to do."""


class Blocked(Failure):
    """Another running program has the repository's lock."""


@dataclass(frozen=True)
class Places:
    """Paths of this program."""

    jobs: Path = Path("/etc/holdfast/backup")
    credentials: Path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/etc/holdfast/credentials"))
    state: Path = Path("/var/lib/holdfast/backup")
    cache: Path = Path("/var/cache/holdfast-backup")


@dataclass(frozen=True)
class Job:
    """One repository and its paths, written by the deploy."""

    repository: str
    host: str
    restic: str
    sources: list[str]
    derived: list[str]
    """Paths that can be recreated and are left out, below or beside the sources."""
    roots: list[str]
    """Folders in which every path must be declared."""
    mount: str | None
    """The mount point of the disk or export with the repository."""
    append_only: bool
    keep: dict[str, int]
    max_age_hours: float
    max_restore_age_days: float
    places: Places = field(default_factory=Places)

    @classmethod
    def load(cls, repository: str, places: Places) -> Job:
        """Read the job called ``repository``."""
        path = places.jobs / f"{repository}.json"
        try:
            return cls(**json.loads(path.read_text()), places=places)
        except FileNotFoundError:
            names = ", ".join(sorted(known.stem for known in places.jobs.glob("*.json")))
            raise Failure(f"there is no repository {repository}; declared are: {names}") from None

    @property
    def manifest(self) -> Path:
        """Checksums of the backed-up files; part of the snapshot."""
        return self.places.state / f"manifest-{self.repository}.jsonl"

    @property
    def record(self) -> Path:
        """The last actions on this repository and their results."""
        return self.places.state / f"{self.repository}.json"

    @property
    def paths(self) -> list[str]:
        """The content of a complete snapshot of this host."""
        return sorted([*self.sources, str(self.manifest)])


def restic(
    job: Job, *arguments: str, seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run restic with our own environment; the caller checks the exit status.

    Raises:
        subprocess.TimeoutExpired: it was still running after ``seconds``.
    """
    return subprocess.run(
        [job.restic, *arguments],
        env=_environment(job),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=seconds,
    )


def _environment(job: Job) -> dict[str, str]:
    credentials = job.places.credentials
    return {
        "PATH": "/usr/bin:/bin",
        "RESTIC_REPOSITORY_FILE": str(credentials / f"backup-{job.repository}-location"),
        "RESTIC_PASSWORD_FILE": str(credentials / f"backup-{job.repository}-password"),
        "RESTIC_CACHE_DIR": str(job.places.cache),
    }


@contextmanager
def streamed(job: Job, *arguments: str) -> Iterator[IO[bytes]]:
    """The output of a read-only restic command, as a stream that must be read to its end.

    Raises:
        Failure: with restic's last words.
    """
    command, *rest = arguments
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [job.restic, command, "--no-lock", *rest],
            env=_environment(job),
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        if process.stdout is None:
            raise AssertionError  # it is a pipe
        yield process.stdout
        if process.wait() != 0:
            errors.seek(0)
            words = errors.read().decode(errors="replace")
            raise Failure(f"restic {command} exited {process.returncode}: {_essence(words)}")


def read(job: Job, *arguments: str) -> str:
    """Run a restic command that only reads, beside any lock, and return its output.

    Raises:
        Failure: with restic's last words.
    """
    command, *rest = arguments
    return _output(restic(job, command, "--no-lock", *rest), command)


def succeed(job: Job, *arguments: str) -> str:
    """Run a restic command that locks the repository, and return its output.

    Raises:
        Blocked: another program held the lock all the time.
        Failure: with restic's last words.
    """
    return _output(locked(job, lambda: restic(job, *arguments)), arguments[0])


def _output(result: subprocess.CompletedProcess[str], command: str) -> str:
    if result.returncode != 0:
        raise Failure(f"restic {command} exited {result.returncode}: {_essence(result.stderr)}")
    return result.stdout


def locked(
    job: Job, run: Callable[[], subprocess.CompletedProcess[str]]
) -> subprocess.CompletedProcess[str]:
    """Remove stale locks, then ``run`` a restic command until no other lock refuses it.

    This replaces ``--retry-lock``, which 0.14 does not have. It also removes a lock that becomes
    stale during the wait: after a power cut another process may have the number of the dead one,
    and then restic treats the lock as live for half an hour.

    Raises:
        Blocked: a lock refused it for `LOCK_WAIT_SECONDS`.
    """
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    known = ""
    while True:
        _output(restic(job, "unlock"), "unlock")
        result = run()
        holder = _holder(result)
        if not holder:
            return result
        sentence = f"repository {job.repository} is locked by {holder}"
        if time.monotonic() >= deadline:
            raise Blocked(f"{sentence}; gave up after {LOCK_WAIT_SECONDS / 3600:g} hours")
        if holder != known:
            _say(f"{sentence}; waiting")
            known = holder
        time.sleep(LOCK_PAUSE_SECONDS)


def _holder(result: subprocess.CompletedProcess[str]) -> str:
    # By its text, because restic has an exit status for "locked" only since 0.17.
    found = LOCKED.search(result.stderr)
    if result.returncode == 0 or found is None:
        return ""
    created = CREATED.search(result.stderr)
    # Without the age in brackets, which always differs.
    since = f" since {created[1].split(' (')[0]}" if created else ""
    return f"{found[1].strip()}{since}"


def _essence(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal:")]
    return " | ".join(fatal or lines[-3:]) or "no error message"


def exists(job: Job) -> bool:
    """Whether the repository exists; a wrong password or a dead network is not "absent".

    Raises:
        Failure: this is unknown, or the repository cannot be used.
    """
    if job.mount is not None:
        _require_mounted(job.mount)
    try:
        result = restic(job, "cat", "--no-lock", "config", seconds=OPEN_SECONDS)
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
    # Access starts an automount. A hard NFS mount without its server would block this program for
    # ever, but its callers can be killed. So another process accesses it.
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
        raise Failure(
            f"{mount} is not mounted, so nothing is written there: it would fill the local disk"
        )


@dataclass(frozen=True)
class Snapshot:
    """One snapshot of this host."""

    id: str
    time: datetime
    paths: list[str]


def snapshots(job: Job) -> list[Snapshot]:
    """The snapshots of this host, oldest first by their own time."""
    listing = json.loads(read(job, "snapshots", "--json", "--host", job.host, "--tag", TAG))
    found = [
        Snapshot(item["id"], datetime.fromisoformat(item["time"]), sorted(item["paths"]))
        for item in listing or []
    ]
    return sorted(found, key=lambda snapshot: snapshot.time)


def newest(job: Job) -> Snapshot | None:
    """The newest snapshot of this host, or None without a snapshot or a repository."""
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


@dataclass
class Unread:
    """Paths that could not be backed up, each with its reason, in one sentence."""

    sentences: list[str] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)

    def add(self, path: str, reason: str) -> None:
        """Note one path."""
        self.sentences.append(f"{shown(path)} ({reason})")


def entries(
    paths: list[str], without: list[str], unread: Unread, *, content: bool = True
) -> Iterator[dict[str, Any]]:
    """One entry for every path at or beneath ``paths``, with the files' ``content`` or without.

    An unreadable path is added to ``unread`` and does not stop the rest. Folders of other users are
    opened component by component, and their links are never followed: see `_enter`.
    """
    for top in paths:
        parent, _, name = top.rpartition("/")
        pending = [(parent, [name])]
        while pending:
            folder, names = pending.pop()
            try:
                opened = _enter(folder)
            except OSError as error:
                _cannot(unread, folder, error)
                continue
            try:
                for path in _beneath(opened, folder, names, unread):
                    if path in without:
                        continue
                    try:
                        entry = _look(opened, path.rpartition("/")[2], content=content)
                    except OSError as error:
                        _cannot(unread, path, error)
                        continue
                    yield {"path": path, **entry}
                    if entry["kind"] == "directory":
                        pending.append((path, []))
            finally:
                os.close(opened)


def _beneath(opened: int, folder: str, names: list[str], unread: Unread) -> Iterator[str]:
    try:
        found = names or _names(opened)
    except OSError as error:
        _cannot(unread, folder, error)
        return
    for name in found:
        path = f"{folder}/{name}"
        if len(os.fsencode(path)) > LONGEST_PATH:
            unread.add(path, f"longer than {LONGEST_PATH} bytes")
            unread.too_long.append(path)
        else:
            yield path


def _cannot(unread: Unread, path: str, error: OSError) -> None:
    if error.errno != errno.ENOENT:  # it disappeared meanwhile, because the system is running
        unread.add(path, os.strerror(error.errno or 0))


def _enter(path: str) -> int:
    """A descriptor (``O_PATH``) of the folder at ``path``, which is absolute or empty.

    A link in the path is followed only if only root could have created it. Any depth is possible,
    and a path may be longer than the system allows for one name.

    Raises:
        OSError: it does not exist, is not a folder, or is behind another user's link.
    """
    here = os.open("/", os.O_PATH)
    parts, links = deque(part for part in path.split("/") if part), 0
    try:
        while parts:
            below = os.open(parts.popleft(), os.O_PATH | os.O_NOFOLLOW, dir_fd=here)
            if stat.S_ISLNK(os.fstat(below).st_mode):
                target = os.readlink("", dir_fd=below)
                os.close(below)
                links += 1
                if links > MOST_LINKS or not _is_private(here):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                parts.extendleft(part for part in reversed(target.split("/")) if part)
                if not target.startswith("/"):
                    continue
                below = os.open("/", os.O_PATH)
            os.close(here)
            here = below
    except OSError:
        os.close(here)
        raise
    return here


def _is_private(folder: int) -> bool:
    # Whether only root and the user of this program can create files there.
    status = os.fstat(folder)
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def _names(opened: int) -> list[str]:
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened)
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 (of a descriptor)
    finally:
        os.close(folder)


def _look(folder: int, name: str, *, content: bool = True) -> dict[str, Any]:
    """The entry ``name`` of an open folder."""
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        return {**_common(status), "kind": "directory"}
    if stat.S_ISLNK(status.st_mode):
        return {**_common(status), "kind": "link", "target": os.readlink(name, dir_fd=folder)}
    if not stat.S_ISREG(status.st_mode):
        return {**_common(status), "kind": "special file"}
    if not content:
        return {**_common(status), "kind": "file"}
    # Its owner may have replaced it with a link or a FIFO: neither is followed or waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    with os.fdopen(os.open(name, flags, dir_fd=folder), "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            return {**_common(status), "kind": "special file"}
        return {
            **_common(status),
            "kind": "file",
            "size": status.st_size,
            "changed": status.st_mtime_ns,
            "sha256": _digest(stream, status.st_size),
        }


def _common(status: os.stat_result) -> dict[str, Any]:
    return {"mode": stat.S_IMODE(status.st_mode), "owner": [status.st_uid, status.st_gid]}


def _digest(stream: Any, size: int | None = None) -> str:
    # At most ``size`` bytes, because a growing file may have no end.
    digest = hashlib.sha256()
    left = size
    while block := stream.read(1 << 20 if left is None else min(1 << 20, left)):
        digest.update(block)
        left = left if left is None else left - len(block)
    return digest.hexdigest()


@dataclass
class Comparison:
    """Differences between restored files and the backup."""

    files: int = 0
    size: int = 0
    moved_on: int = 0
    """Files that changed between manifest and snapshot, and equal the snapshot."""
    problems: list[str] = field(default_factory=list)

    def differs(self, path: str, how: str) -> None:
        """Note one path."""
        self.problems.append(f"{shown(path)} {how}")


def compare(job: Job, snapshot: Snapshot, root: str) -> Comparison:
    """Compare the tree under ``root`` with the manifest and with the snapshot itself.

    The content of every file must match the manifest. If a file changed between the manifest and
    the snapshot (by its change time, ctime, in the snapshot), its content must match the snapshot.
    Kind, size, mode, owner and time of each path must match the snapshot.
    """
    result = Comparison()
    begun = 0.0  # a manifest without it is older than this program
    newer: dict[str, str] = {}
    with Path(f"{root}{job.manifest}").open(encoding="utf-8") as stream:
        for line in stream:
            wanted = json.loads(line)
            if "begun" in wanted:
                begun = wanted["begun"] - CLOCK_SKEW_SECONDS
            else:
                _compare_one(wanted, _found(root + wanted["path"]), result, newer)
    result.moved_on = len(newer)
    if result.files and result.moved_on == result.files:
        result.problems.append("no restored file has the content that was backed up")
    held = _compare_with_snapshot(job, snapshot, root, result, dict.fromkeys(newer, begun))
    for path, digest in newer.items():
        if path not in held:
            result.differs(path, "is not in the snapshot")
        elif _dumped(job, snapshot, path) != digest:
            result.differs(path, "differs from the snapshot")
    return result


def _compare_one(
    wanted: dict[str, Any],
    found: dict[str, Any] | None,
    result: Comparison,
    newer: dict[str, str],
) -> None:
    path = wanted.pop("path")
    if wanted["kind"] == "file":
        result.files += 1
        result.size += wanted["size"]
    if found is None:
        result.differs(path, "is missing")
    elif found["kind"] != wanted["kind"]:
        result.differs(path, f"is a {found['kind']}, but was a {wanted['kind']}")
    elif wanted["kind"] == "file" and found["changed"] != wanted["changed"]:
        newer[path] = found["sha256"]
    elif found != wanted:
        keys = [key for key in wanted if found.get(key) != wanted[key]]
        result.differs(path, f"differs in {', '.join(keys)}")


def _found(path: str) -> dict[str, Any] | None:
    parent, _, name = path.rpartition("/")
    try:
        folder = _enter(parent)
    except OSError:
        return None
    try:
        return _look(folder, name)
    except OSError:
        return None
    finally:
        os.close(folder)


def _compare_with_snapshot(
    job: Job, snapshot: Snapshot, root: str, result: Comparison, newer: dict[str, float]
) -> set[str]:
    """Compare each path with its node in the snapshot; return which of ``newer`` are there.

    ``newer`` maps the files that differ from the manifest to its start time.
    """
    held = set()
    for node in _nodes(job, snapshot):
        path = node["path"]
        if "\ufffd" in path:
            continue  # a name that is not UTF-8, which restic's list cannot contain
        try:
            status = os.lstat(root + path)
        except OSError:
            result.differs(path, "is in the snapshot, but was not restored")
            continue
        if keys := _differing(node, status):
            result.differs(path, f"differs from the snapshot in {', '.join(keys)}")
        elif path in newer:
            held.add(path)
            if _microseconds(node["ctime"]) < newer[path] * 1e6:
                result.differs(path, "differs, although it did not change during the backup")
    return held


def _differing(node: dict[str, Any], status: os.stat_result) -> list[str]:
    mode = node.get("mode", 0)  # as Go keeps it
    wanted = {
        "kind": node["type"],
        "mode": mode & 0o777 | (mode >> 12 & 0o6000) | (mode >> 11 & 0o1000),
        "owner": [node.get("uid", 0), node.get("gid", 0)],
    }
    kinds = {stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}
    found = {
        "kind": kinds.get(stat.S_IFMT(status.st_mode), node["type"]),
        "mode": stat.S_IMODE(status.st_mode),
        "owner": [status.st_uid, status.st_gid],
    }
    if node["type"] == "file":
        wanted |= {"size": node.get("size", 0), "time": _microseconds(node["mtime"])}
        found |= {"size": status.st_size, "time": status.st_mtime_ns // 1000}
    return [key for key in wanted if found[key] != wanted[key]]


def _microseconds(text: str) -> int:
    since = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1)


def _nodes(job: Job, snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    with streamed(job, "ls", "--json", snapshot.id) as lines:
        for line in lines:
            node = json.loads(line)
            if node.get("struct_type") == "node":
                yield node


def _dumped(job: Job, snapshot: Snapshot, path: str) -> str:
    with streamed(job, "dump", snapshot.id, path) as content:
        return _digest(content)


def shown(path: str) -> str:
    """A path that is safe in a message: the name of a file may contain any character."""
    text = path if path.isprintable() else ascii(path)[1:-1]
    return text if len(text) <= 200 else f"{text[:120]}...{text[-60:]}"


def _say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


def now() -> str:
    """The present time with its zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_record(job: Job) -> dict[str, Any]:
    """The record; empty before the first action."""
    try:
        record: dict[str, Any] = json.loads(job.record.read_text())
    except (FileNotFoundError, ValueError):
        return {}  # never written, or damaged by a power cut
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
    """Undeclared paths in the folders that must be declared."""
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
    """Take a snapshot, and remove old ones if the repository allows it.

    An unreadable path does not stop the rest: it is named after the snapshot.
    """
    if not exists(job):
        if "backup" in read_record(job):
            raise Failure(
                f"repository {job.repository} is gone; it existed on"
                f" {read_record(job)['backup']['time']}. If this is intended, remove"
                f" {job.record}"
            )
        _output(restic(job, "init"), "init")
    there = [path for path in job.sources if os.path.lexists(path)]
    unread = Unread()
    others = _write_manifest(job, there, unread)
    try:
        result = locked(job, lambda: _back_up(job, there, unread, others))
    except Blocked as blocked:
        # A lock of another host raises an alert only when it makes a snapshot too old.
        try:
            age = _require_fresh(job, newest(job))
        except Failure as failure:
            raise Failure(f"{blocked}; {failure}") from None
        _say(f"{blocked}; no snapshot was taken, and {age}")
        return
    if result.returncode not in (0, EXIT_UNREAD):
        raise Failure(f"restic backup exited {result.returncode}: {_essence(result.stderr)}")
    summary = json.loads(result.stdout)
    note(
        job,
        backup={
            "time": now(),
            "snapshot": summary["snapshot_id"],
            "paths": sorted([*there, str(job.manifest)]),
            "files": summary["total_files_processed"],
            "bytes": summary["total_bytes_processed"],
        },
    )
    if not job.append_only:
        _thin_out(job)
    for line in result.stderr.splitlines() if result.returncode else []:
        unread.sentences.append(f"restic: {shown(line.strip())}")
    wrong = [f"{path} does not exist" for path in job.sources if path not in there]
    if unread.sentences:
        some = ", ".join(unread.sentences[:3])
        wrong.append(f"{len(unread.sentences)} paths could not be read, for example {some}")
    if strays := unclassified(job):
        wrong.append(
            "these paths are not declared as state, secret or derived:"
            f" {', '.join(map(shown, strays))}"
        )
    if wrong:
        raise Failure(f"the snapshot was taken, but {'; '.join(wrong)}")


def _write_manifest(job: Job, sources: list[str], unread: Unread) -> set[str]:
    """Write the manifest; return the FIFOs, sockets and other special files."""
    others = set()
    job.manifest.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with job.manifest.open("w", encoding="utf-8") as stream:
        job.manifest.chmod(0o600)
        stream.write(json.dumps({"begun": time.time()}) + "\n")
        for entry in entries(sources, job.derived, unread):
            if entry["kind"] == "special file":
                others.add(entry["path"])
            else:
                stream.write(json.dumps(entry) + "\n")
    return others


def _back_up(
    job: Job, sources: list[str], unread: Unread, others: set[str]
) -> subprocess.CompletedProcess[str]:
    """Take the snapshot with restic; its summary is the output.

    restic opens by path and waits for the writer of a FIFO. If a FIFO has replaced a file, restic
    is started again without it, and then without the source that contains it.
    """
    left_out = [*job.derived, *map(_pattern, unread.too_long[:MOST_LEFT_OUT])]
    paths = [*sources, str(job.manifest)]
    for attempt in range(3):
        excludes = [f"--exclude={path}" for path in left_out]
        scope = (f"--host={job.host}", f"--tag={TAG}", *excludes)
        result, stuck = _watched(
            job, ["backup", "--json", *scope, *paths], lambda: _new_fifos(job, sources, others)
        )
        if not stuck:
            return result
        if attempt:
            stuck = [source for source in sources if any(_within(path, source) for path in stuck)]
        for path in stuck:
            unread.add(path, "it became a FIFO during the backup")
            left_out.append(_pattern(path))
    raise Failure(f"restic waits for FIFOs: {', '.join(unread.sentences[-3:])}")


def _watched(
    job: Job, arguments: list[str], stuck: Callable[[], list[str]]
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run restic and return its result, with the last line as output, and an empty list.

    If it makes no progress for `STALL_SECONDS`, and ``stuck`` names paths, it is killed, and these
    paths are returned.
    """
    line, unfinished, moved = b"", b"", time.monotonic()
    progress: dict[str, Any] = {}
    found: list[str] = []
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [job.restic, *arguments],
            env=_environment(job),
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        if process.stdout is None:
            raise AssertionError  # it is a pipe
        while not found:
            if select.select([process.stdout], [], [], 1)[0]:
                block = os.read(process.stdout.fileno(), 1 << 16)
                if not block:
                    break
                *lines, unfinished = (unfinished + block).split(b"\n")
                line = lines[-1] if lines else line
                if lines and (now_at := _progress(line)) != progress:
                    progress, moved = now_at, time.monotonic()
            if time.monotonic() - moved > STALL_SECONDS:
                found, moved = stuck(), time.monotonic()
        if found:
            process.send_signal(signal.SIGINT)  # it removes its lock
            try:
                process.wait(OPEN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        status = process.wait()
        errors.seek(0)
        words = errors.read().decode(errors="replace")
    return subprocess.CompletedProcess(arguments, status, line.decode(), words), found


def _progress(line: bytes) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return {key: told.get(key) for key in ("message_type", "bytes_done", "files_done")}


def _new_fifos(job: Job, sources: list[str], known: set[str]) -> list[str]:
    found = entries(sources, job.derived, Unread(), content=False)
    return [
        entry["path"]
        for entry in found
        if entry["kind"] == "special file" and entry["path"] not in known
    ]


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _pattern(path: str) -> str:
    # restic reads an excluded path as a pattern.
    return re.sub(r"([\\*?\[])", r"\\\1", path)


def _thin_out(job: Job) -> None:
    keep = [f"--keep-{span}={count}" for span, count in job.keep.items() if count]
    scope = (f"--host={job.host}", f"--tag={TAG}", "--group-by=host,tags")
    try:
        succeed(job, "forget", *scope, *keep, "--prune")
    except Blocked as blocked:
        _say(f"{blocked}; the next backup removes old snapshots")


def _require_fresh(job: Job, snapshot: Snapshot | None) -> str:
    """A sentence with the age of the snapshot.

    Raises:
        Failure: there is none, it is too old, or it lacks declared paths.
    """
    if snapshot is None:
        raise Failure(f"{job.repository} holds no snapshot of {job.host}")
    age_seconds = time.time() - snapshot.time.timestamp()
    age = f"the newest snapshot in {job.repository} is {age_seconds / 3600:.1f} hours old"
    if age_seconds > job.max_age_hours * 3600:
        raise Failure(f"{age}; the limit is {job.max_age_hours:g}")
    if age_seconds < -CLOCK_SKEW_SECONDS:
        raise Failure(f"{age}: this clock or the repository's clock is wrong")
    if lacking := sorted(set(job.paths) - set(snapshot.paths)):
        raise Failure(f"the newest snapshot in {job.repository} lacks {', '.join(lacking)}")
    return age


def _require_restored(job: Job) -> str:
    """A sentence with the age of the last good restore.

    Raises:
        Failure: the last restore failed, or is too old.
    """
    outcome = read_record(job).get("restore_check", {})
    if not outcome.get("ok"):
        raise Failure(f"{job.repository}: the last restore check failed")
    age_days = (time.time() - datetime.fromisoformat(outcome["time"]).timestamp()) / 86400
    age = f"the last good restore from {job.repository} is {age_days:.1f} days old"
    if age_days > job.max_restore_age_days:
        raise Failure(f"{age}; the limit is {job.max_restore_age_days:g}")
    if age_days < -CLOCK_SKEW_SECONDS / 86400:
        raise Failure(f"{age}: the clock is wrong, or was wrong then")
    return age


def check(job: Job) -> None:
    """Fail unless the newest snapshot is recent, complete and was restored in a test."""
    age = _require_fresh(job, newest(job))
    restored_age = _require_restored(job)
    _say(f"{age} and holds all {len(job.paths)} declared paths; {restored_age}")


def _require_room(job: Job, snapshot: Snapshot, folder: Path) -> None:
    sizes = json.loads(read(job, "stats", "--json", "--mode=restore-size", snapshot.id))
    needed, free = sizes["total_size"], shutil.disk_usage(folder).free
    if needed * ROOM > free:
        raise Failure(
            f"{folder} has {free >> 20} MiB free, but restoring {snapshot.id[:8]} needs"
            f" {int(needed * ROOM) >> 20} MiB"
        )


def restored(
    job: Job, snapshot: Snapshot, target: Path, run: Callable[..., str] = read
) -> Comparison:
    """Restore ``snapshot`` into ``target`` and compare it with the backup.

    ``run`` is `succeed` if a prune by another host must be prevented during the restore.
    """
    run(job, "restore", snapshot.id, f"--target={target}", "--verify")
    manifest = Path(f"{target}{job.manifest}")
    if not manifest.is_file():
        raise Failure(f"{snapshot.id[:8]} has no manifest: another program made it")
    return compare(job, snapshot, str(target))


def restore_check(job: Job) -> None:
    """Restore the newest snapshot into a private folder, compare every byte, and delete it."""
    started = time.monotonic()
    snapshot = newest(job)
    if snapshot is None:
        raise Failure(f"{job.repository} holds no snapshot of {job.host} to restore")
    outcome: dict[str, Any] = {"time": now(), "snapshot": snapshot.id, "ok": False}
    staging = job.places.state / f"staging-{job.repository}"
    _remove(staging)  # left over from a power cut
    try:
        staging.mkdir(mode=0o700, parents=True)
        _require_room(job, snapshot, staging)
        succeed(job, "check")
        result = restored(job, snapshot, staging, succeed)
        outcome |= {
            "ok": not result.problems,
            "files": result.files,
            "bytes": result.size,
            "moved_on": result.moved_on,
            "problems": result.problems[:20],
            "seconds": round(time.monotonic() - started, 1),
        }
    except Blocked as blocked:
        # A lock of another host raises an alert only when it makes the last restore too old.
        outcome = read_record(job).get("restore_check", outcome)
        try:
            age = _require_restored(job)
        except Failure as failure:
            raise Failure(f"{blocked}; {failure}") from None
        _say(f"{blocked}; nothing was restored, and {age}")
        return
    finally:
        note(job, restore_check=outcome)
        _remove(staging)
    if result.problems:
        raise Failure(
            f"{len(result.problems)} restored paths differ from the backup:"
            f" {'; '.join(result.problems[:3])}"
        )
    _say(f"{result.files} files, {result.size} bytes restored from {job.repository} and identical")


def _remove(folder: Path) -> None:
    # `shutil.rmtree` fails at great depth.
    subprocess.run(["/bin/rm", "-rf", "--one-file-system", str(folder)], check=False)


def restore(job: Job, wanted: str, target: Path) -> None:
    """Restore into an empty directory, for an operator."""
    target = target.resolve()
    for source in job.sources:
        if target == Path(source) or Path(source) in target.parents:
            raise Failure(f"{target} is inside live data ({source}); restore beside it, then swap")
    for folder in (target, *target.parents):
        if folder.exists() and folder.stat().st_uid not in (0, os.geteuid()):
            raise Failure(
                f"{target} is in {folder}, which belongs to user {folder.stat().st_uid}, who"
                " can change it during the restore; restore into a folder of root, then copy"
            )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Failure(f"{target} is not an empty directory; nothing was restored")
    snapshot = find(job, wanted)
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.chmod(0o700)
    _require_room(job, snapshot, target)
    result = restored(job, snapshot, target)
    _say(f"{result.files} files, {result.size} bytes of {snapshot.id[:8]} are in {target}")
    if result.moved_on:
        _say(f"{result.moved_on} of them changed during the backup")
    if lacking := sorted(set(job.paths) - set(snapshot.paths)):
        _say(f"the snapshot does not hold {', '.join(lacking)}; an older one may")
    if result.problems:
        raise Failure("differs from the backup: " + "; ".join(result.problems))


def first(job: Job) -> None:
    """Take and restore a first snapshot if there was none.

    If the repository already has snapshots of this host, for example after a rebuild, it is only
    checked: a snapshot of the empty machine must not become the newest before its data is restored.
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
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        raise Failure(f"{unit} failed: {' | '.join(journal.stdout.strip().splitlines()[-5:])}")


def main(arguments: list[str], places: Places | None = None) -> None:
    """Run one command.

    Raises:
        Failure: it failed.
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
    except OSError as error:
        sys.exit(f"holdfast-backup: {error}.")
    sys.exit(0)


if __name__ == "__main__":
    _run()
