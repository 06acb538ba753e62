"""Local models and checkpoints, bare mount points and leftovers of mounts, in one command."""

from __future__ import annotations

import posixpath
import shlex
from dataclasses import dataclass, field

from facts.framed import Framed
from facts.places import SYSTEM

CHECK_SERVICE = "holdfast-models-verify.service"
PROOFS = ".verified"
"""Directory beside the models; one file for each model, with checksum, size and mtime at its
verification. A checkpoint's file has its checksum and the output of `LISTING`."""
LISTING = r"find . -mindepth 1 -printf '%P|%y|%s|%T@\n' | LC_ALL=C sort | sha256sum | cut -c1-64"
"""Shell text that prints a digest of names, types, sizes and mtimes in the working directory."""
ACCESS = r"find . -printf '%y %m %u:%g\n' | sort -u | paste -sd,"
"""Shell text that prints type, mode and owner of the working directory and its content."""


@dataclass(frozen=True)
class ModelState:
    """A model file, and its verified checksum if it has not changed since."""

    size_bytes: int
    mode: str
    owner: str
    proved_sha256: str | None


@dataclass(frozen=True)
class CheckpointState:
    """A checkpoint's folder, and its verified checksum if it has not changed since.

    ``access`` is the output of `ACCESS` there.
    """

    access: str
    proved_sha256: str | None


@dataclass(frozen=True)
class StorageState:
    """``models`` by file name, ``checkpoints`` by folder.

    ``guarded`` are the write-protected mount points; ``mount_units`` are the automount unit files
    that Holdfast wrote, declared or not. ``check_failed``: the regular check found a changed file.
    """

    models: dict[str, ModelState] = field(default_factory=dict)
    checkpoints: dict[str, CheckpointState] = field(default_factory=dict)
    guarded: frozenset[str] = frozenset()
    mount_units: frozenset[str] = frozenset()
    check_failed: bool = False


def beneath(mount_point: str, command: str) -> str:
    """Shell text that runs ``command`` where ``$bare`` is the directory under ``mount_point``.

    It binds the parent without its mounts in a separate mount namespace. So an unreachable NAS
    cannot block the query, and no other process is affected.
    """
    parent, name = posixpath.split(mount_point)
    script = f"mount --bind {shlex.quote(parent)} /tmp && bare={shlex.quote(f'/tmp/{name}')} && "  # noqa: S108
    return f"timeout 20 unshare --mount sh -c {shlex.quote(script + command)}"


class StorageStates(Framed[StorageState]):
    """The `StorageState` of a host. It never accesses a mounted file system."""

    def command(
        self, models_path: str, filenames: list[str], folders: list[str], mount_points: list[str]
    ) -> str:
        """Build the probe for files and folders in ``models_path`` and for mount points."""
        parts = []
        if filenames or folders:
            files, directories = (
                " ".join(map(shlex.quote, names)) for names in (filenames, folders)
            )
            parts.append(
                f"(cd {shlex.quote(models_path)} 2>/dev/null && {{"
                f" stat --printf='model|%n|%s|%.9Y|%a|%U:%G\\n' -- {files};"
                f' for folder in {directories}; do (cd "$folder" &&'
                f' echo "checkpoint|$folder|$({ACCESS})|$({LISTING})"); done;'
                f" cd {PROOFS} && for proof in {files} {directories}; do"
                ' test -f "$proof" && echo "proof|$proof|$(cat "$proof")"; done; } 2>/dev/null)'
            )
            parts.append(f"systemctl is-failed --quiet {CHECK_SERVICE} && echo check-failed")
        for path in mount_points:
            look = (
                f'case "$(lsattr -d "$bare")" in *i*" "*) echo guarded\\|{shlex.quote(path)};; esac'
            )
            parts.append(f"{beneath(path, look)} 2>/dev/null")
        parts.append(
            f"cd {SYSTEM} && grep -l '^# Holdfast' -- *.automount 2>/dev/null | sed 's/^/unit|/'"
        )
        return "; ".join([*parts, "true"])

    @staticmethod
    def default() -> StorageState:
        """No files."""
        return StorageState()

    def process(self, output: list[str]) -> StorageState:
        """Parse the probe's output; a record that does not match its file is ignored."""
        rows = [line.split("|") for line in output]
        proofs = {row[1]: row[2].split() for row in rows if row[0] == "proof" and len(row) == 3}

        def proved(name: str, *look: str) -> str | None:
            sha256, *seen = proofs.get(name) or [""]
            return sha256 if seen == [*look] else None

        return StorageState(
            models={
                name: ModelState(int(size), mode, owner, proved(name, size, mtime))
                for _, name, size, mtime, mode, owner in (r for r in rows if r[0] == "model")
            },
            checkpoints={
                name: CheckpointState(access, proved(name, listing))
                for _, name, access, listing in (r for r in rows if r[0] == "checkpoint")
            },
            guarded=frozenset(row[1] for row in rows if row[0] == "guarded"),
            mount_units=frozenset(row[1] for row in rows if row[0] == "unit"),
            check_failed=["check-failed"] in rows,
        )
