"""A content-addressed store: the same recipe is built once for all that ask for it.

An entry's name ends in a digest of everything that decides its bytes. Change a version, a lock file
or a flag and a new entry appears beside the old; delete the whole directory and the next run
rebuilds it. Nothing here is ever edited in place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DIGEST_CHARACTERS = 16


def root() -> Path:
    """Where artefacts are kept: `$XDG_CACHE_HOME` (or `~/.cache`) `/holdfast-lab/artefacts`."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "holdfast-lab" / "artefacts"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` so that two runs never build or start the same thing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Entry:
    """One built artefact: its directory, the version it carries and what building it took."""

    name: str
    directory: Path
    version: str
    build_seconds: float

    def file(self, name: str) -> Path:
        """Path of one file of the entry."""
        return self.directory / name


def _load(name: str, directory: Path) -> Entry:
    facts = json.loads((directory / "entry.json").read_text())
    return Entry(name, directory, facts["version"], facts["build_seconds"])


def stored(name: str, inputs: Mapping[str, str], build: Callable[[Path], str]) -> Entry:
    """Return the entry for `name` and `inputs`, building it first when it is not there.

    `inputs` is everything that decides the result (versions, flags, contents of lock files).
    `build` fills an empty directory and returns the version it found; when it raises, nothing
    is kept.
    """
    recipe = json.dumps({"name": name, **inputs}, sort_keys=True)
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:DIGEST_CHARACTERS]
    target = root() / f"{name}-{digest}"
    with locked(root() / f".{name}-{digest}.lock"):
        if not target.is_dir():
            work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root()))
            try:
                started = time.monotonic()
                version = build(work)
                seconds = round(time.monotonic() - started, 1)
                facts = {"version": version, "build_seconds": seconds, "inputs": dict(inputs)}
                (work / "entry.json").write_text(json.dumps(facts, indent=1) + "\n")
                work.chmod(0o755)
                work.rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return _load(name, target)
