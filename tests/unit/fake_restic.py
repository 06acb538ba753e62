#!/usr/bin/env python3
"""A stand-in for restic 0.19: snapshots are copies, and its words and exit codes were recorded.

The real one runs in the drill, and for its locks in `test_backup_live`; this one lets the program
around it be tested anywhere, at once. A lock is a file of the repository's ``locks``, as JSON:
``exclusive``, ``host``, ``pid``; one of this ``rack`` whose process has ended is stale.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EXCLUSIVE = ("check", "forget")
"""Commands that allow no other lock; ``init`` and ``unlock`` make none."""


def _stop(code: int, words: str) -> None:
    sys.stderr.write(words + "\n")
    sys.exit(code)


def _options(arguments: list[str], name: str) -> list[str]:
    return [word.split("=", 1)[1] for word in arguments if word.startswith(f"--{name}=")]


def _copy(source: Path, target: Path, without: set[str]) -> None:
    """Copy a tree; a FIFO in the place of a file is opened and waited for, as restic does."""
    target.parent.mkdir(parents=True, exist_ok=True)

    def ignore(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if f"{folder}/{name}" in without}

    def copy(one: str, other: str) -> str:
        if stat.S_ISFIFO(os.lstat(one).st_mode):
            Path(one).read_bytes()
        return shutil.copy2(one, other)

    if str(source) in without:
        return
    if source.is_dir():
        shutil.copytree(
            source, target, symlinks=True, dirs_exist_ok=True, ignore=ignore, copy_function=copy
        )
    else:
        copy(str(source), str(target))


def _judge(repository: Path, command: str, arguments: list[str]) -> None:
    """Stop where restic would.

    Beside the snapshots a test can leave a pack that is damaged, and a disk that loses what is
    written to it.
    """
    found = {path.name for path in repository.iterdir()}
    if "damaged-pack" in found and command == "check":
        _stop(1, "Fatal: repository contains errors")
    if "losing-disk" in found and command == "restore" and "--verify" in arguments:
        _stop(1, "Fatal: There were 1 errors")


def _nodes(folder: Path) -> Iterator[dict[str, Any]]:
    """What ``restic ls`` lists, and the content's checksum, which it does not."""
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        kind = {stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink"}.get(
            stat.S_IFMT(status.st_mode), "file"
        )
        zone = {
            key: datetime.fromtimestamp(ns // 10**9, UTC).strftime("%FT%T") + f".{ns % 10**9:09d}Z"
            for key, ns in (("mtime", status.st_mtime_ns), ("ctime", status.st_ctime_ns))
        }
        yield {
            "path": f"/{path.relative_to(folder)}",
            "type": kind,
            "mode": stat.S_IMODE(status.st_mode) & 0o777,
            "uid": status.st_uid,
            "gid": status.st_gid,
            "struct_type": "node",
            **zone,
            **(
                {"size": status.st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                if kind == "file"
                else {}
            ),
        }


def _locks(repository: Path) -> dict[Path, dict[str, Any]]:
    found = (repository / "locks").glob("*")
    return {file: json.loads(file.read_text()) for file in found}


def _lock(repository: Path, command: str) -> None:
    exclusive = command in EXCLUSIVE
    for lock in _locks(repository).values():
        if exclusive or lock["exclusive"]:
            how = "exclusively " if lock["exclusive"] else ""
            _stop(
                11,
                "unable to create lock in backend: repository is already locked"
                f" {how}by PID {lock['pid']} on {lock['host']} by root (UID 0, GID 0)\n"
                "lock was created at 2026-11-30 14:09:41 (3.835514781s ago)\n"
                "storage ID 7c696601\nthe `unlock` command can be used to remove stale locks",
            )


def _unlock(repository: Path) -> None:
    for file, lock in _locks(repository).items():
        if lock["host"] == "rack" and not Path(f"/proc/{lock['pid']}").exists():
            file.unlink()


def _back_up(repository: Path, arguments: list[str]) -> None:
    paths = [word for word in arguments if word.startswith("/")]
    name = f"{len(list(repository.glob('*.json'))):08x}"
    for path in paths:
        without = set(_options(arguments, "exclude"))
        _copy(Path(path), Path(f"{repository}/{name}{path}"), without)
    nodes = list(_nodes(repository / name))
    # A folder's own time and mode are those of the living one only where it was copied whole.
    held = [
        node for node in nodes if any(f"{node['path']}/".startswith(f"{path}/") for path in paths)
    ]
    (repository / f"{name}.nodes").write_text("\n".join(map(json.dumps, held)))
    snapshot = {"id": name, "time": datetime.now(UTC).isoformat(), "paths": paths}
    (repository / f"{name}.json").write_text(json.dumps(snapshot))
    summary = {"snapshot_id": name, "total_files_processed": 1, "total_bytes_processed": 1}
    print(json.dumps(summary))


def main() -> None:  # noqa: PLR0912 (a command each)
    repository = Path(Path(os.environ["RESTIC_REPOSITORY_FILE"]).read_text().strip())
    password = Path(os.environ["RESTIC_PASSWORD_FILE"]).read_text()
    command, *arguments = sys.argv[1:]
    if command == "init":
        (repository / "locks").mkdir(parents=True)
        (repository / "config").write_text(password)
        return
    if not (repository / "config").exists():
        words = f"unable to open config file: stat {repository}/config: no such file or directory"
        where = f"Is there a repository at the following location?\n{repository}"
        _stop(10, f"Fatal: repository does not exist: {words}\n{where}")
    if (repository / "config").read_text() != password:
        _stop(12, "Fatal: wrong password or no key found")
    if command == "unlock":
        _unlock(repository)
    elif "--no-lock" in arguments:
        arguments.remove("--no-lock")
    else:
        _lock(repository, command)

    _judge(repository, command, arguments)
    if command == "backup":
        _back_up(repository, arguments)
    elif command == "snapshots":
        print(json.dumps([json.loads(file.read_text()) for file in repository.glob("*.json")]))
    elif command == "stats":
        print(json.dumps({"total_size": 1}))
    elif command == "restore":
        target = Path(_options(arguments, "target")[0])
        for child in (repository / arguments[0]).iterdir():
            _copy(child, target / child.name, set())
    elif command == "ls":
        print((repository / f"{arguments[-1]}.nodes").read_text())
    elif command == "dump":
        sys.stdout.buffer.write(Path(f"{repository}/{arguments[0]}{arguments[1]}").read_bytes())
    elif command == "forget":
        (repository / "forgotten").write_text(" ".join(arguments))


main()
