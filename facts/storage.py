"""Local model files, bare mount points and leftovers of mounts, in one command."""

from __future__ import annotations

import posixpath
import shlex
from dataclasses import dataclass, field

from pyinfra.api import FactBase

CHECK_SERVICE = "holdfast-models-verify.service"
PROOFS = ".verified"
"""Directory beside the models; one file a model: checksum, size and mtime when it was proved."""


@dataclass(frozen=True)
class ModelState:
    """A model file, and the checksum it was proved to have while it looked as it does now."""

    size_bytes: int
    mode: str
    owner: str
    proved_sha256: str | None


@dataclass(frozen=True)
class StorageState:
    """``models`` by file name; ``guarded`` holds the mount points that nothing can be written in.

    ``mount_units`` are the automount unit files that Holdfast wrote, declared or not.
    ``check_failed`` says that the regular check found a model that is not what it was.
    """

    models: dict[str, ModelState] = field(default_factory=dict)
    guarded: frozenset[str] = frozenset()
    mount_units: frozenset[str] = frozenset()
    check_failed: bool = False


def beneath(mount_point: str, command: str) -> str:
    """Shell text that runs ``command`` where ``$bare`` is the directory under ``mount_point``.

    In a mount namespace of its own the parent is bound elsewhere without what is mounted in it, so
    a NAS that is away cannot hang the look, and nobody else sees anything of it.
    """
    parent, name = posixpath.split(mount_point)
    script = f"mount --bind {shlex.quote(parent)} /tmp && bare={shlex.quote(f'/tmp/{name}')} && "  # noqa: S108
    return f"timeout 20 unshare --mount sh -c {shlex.quote(script + command)}"


class StorageStates(FactBase[StorageState]):
    """What `StorageState` says. It never touches a mounted file system."""

    def command(self, models_path: str, filenames: list[str], mount_points: list[str]) -> str:
        """Build the probe for the given names in ``models_path`` and the given mount points."""
        parts = []
        if filenames:
            folder = shlex.quote(models_path)
            names = " ".join(shlex.quote(name) for name in filenames)
            parts.append(
                f"(cd {folder} 2>/dev/null && {{"
                f" stat --printf='model|%n|%s|%.9Y|%a|%U:%G\\n' -- {names};"
                f" cd {PROOFS} && for proof in {names}; do"
                ' test -f "$proof" && echo "proof|$proof|$(cat "$proof")"; done; } 2>/dev/null)'
            )
            parts.append(f"systemctl is-failed --quiet {CHECK_SERVICE} && echo check-failed")
        for path in mount_points:
            look = (
                f'case "$(lsattr -d "$bare")" in *i*" "*) echo guarded\\|{shlex.quote(path)};; esac'
            )
            parts.append(f"{beneath(path, look)} 2>/dev/null")
        parts.append(
            "cd /etc/systemd/system && grep -l '^# Holdfast' -- *.automount 2>/dev/null"
            " | sed 's/^/unit|/'"
        )
        return "; ".join([*parts, "true"])

    @staticmethod
    def default() -> StorageState:
        """Nothing is there."""
        return StorageState()

    def process(self, output: list[str]) -> StorageState:
        """Parse the probe's output; a proof that no longer fits its file proves nothing."""
        rows = [line.split("|") for line in output]
        proofs = {row[1]: row[2].split() for row in rows if row[0] == "proof" and len(row) == 3}
        models = {}
        for row in rows:
            if row[0] != "model":
                continue
            _, name, size, mtime, mode, owner = row
            sha256, *seen = proofs.get(name) or [""]
            models[name] = ModelState(
                size_bytes=int(size),
                mode=mode,
                owner=owner,
                proved_sha256=sha256 if seen == [size, mtime] else None,
            )
        return StorageState(
            models=models,
            guarded=frozenset(row[1] for row in rows if row[0] == "guarded"),
            mount_units=frozenset(row[1] for row in rows if row[0] == "unit"),
            check_failed=["check-failed"] in rows,
        )
