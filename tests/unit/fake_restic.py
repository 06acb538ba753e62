#!/usr/bin/env python3
"""A stand-in for restic 0.19: snapshots are copies, and its words and exit codes were recorded.

The real one runs in the drill; this one lets the program around it be tested anywhere, at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path


def _stop(code: int, words: str) -> None:
    sys.stderr.write(words + "\n")
    sys.exit(code)


def _options(arguments: list[str], name: str) -> list[str]:
    return [word.split("=", 1)[1] for word in arguments if word.startswith(f"--{name}=")]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def _judge(repository: Path, command: str, arguments: list[str]) -> None:
    """Stop where restic would.

    Beside the snapshots a test can leave a lock that no process holds any more, a pack that is
    damaged, and a disk that loses what is written to it.
    """
    if command == "unlock":
        (repository / "stale-lock").unlink(missing_ok=True)
    found = {path.name for path in repository.iterdir()}
    if "stale-lock" in found and command in ("backup", "restore", "check", "forget"):
        _stop(11, "Fatal: unable to create lock in backend: repository is already locked by PID 9")
    if "damaged-pack" in found and command == "check":
        _stop(1, "Fatal: repository contains errors")
    if "losing-disk" in found and command == "restore" and "--verify" in arguments:
        _stop(1, "Fatal: There were 1 errors")


def main() -> None:
    repository = Path(Path(os.environ["RESTIC_REPOSITORY_FILE"]).read_text().strip())
    password = Path(os.environ["RESTIC_PASSWORD_FILE"]).read_text()
    command, *arguments = sys.argv[1:]
    if command == "init":
        repository.mkdir(parents=True)
        (repository / "config").write_text(password)
        return
    if not (repository / "config").exists():
        words = f"unable to open config file: stat {repository}/config: no such file or directory"
        where = f"Is there a repository at the following location?\n{repository}"
        _stop(10, f"Fatal: repository does not exist: {words}\n{where}")
    if (repository / "config").read_text() != password:
        _stop(12, "Fatal: wrong password or no key found")

    _judge(repository, command, arguments)
    if command == "backup":
        paths = [word for word in arguments if word.startswith("/")]
        name = f"{len(list(repository.glob('*.json'))):08x}"
        for path in paths:
            _copy(Path(path), Path(f"{repository}/{name}{path}"))
        for path in _options(arguments, "exclude"):
            shutil.rmtree(f"{repository}/{name}{path}", ignore_errors=True)
        snapshot = {"id": name, "time": datetime.now(UTC).isoformat(), "paths": paths}
        (repository / f"{name}.json").write_text(json.dumps(snapshot))
        summary = {"snapshot_id": name, "total_files_processed": 1, "total_bytes_processed": 1}
        print(json.dumps(summary))
    elif command == "snapshots":
        print(json.dumps([json.loads(file.read_text()) for file in repository.glob("*.json")]))
    elif command == "stats":
        print(json.dumps({"total_size": 1}))
    elif command == "restore":
        target = Path(_options(arguments, "target")[0])
        for child in (repository / arguments[0]).iterdir():
            _copy(child, target / child.name)
    elif command == "forget":
        (repository / "forgotten").write_text(" ".join(arguments))


main()
