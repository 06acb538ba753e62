"""Tar archives whose bytes depend on their contents alone."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

# Any fixed moment does; zero makes some tools complain about implausibly old files.
EPOCH_SECONDS = 1_700_000_000


def _neutral(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mtime = EPOCH_SECONDS
    # With any umask of the controller, a service user on the machine must be able to read it.
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def pack(folder: Path, target: Path, top: str) -> None:
    """Write `folder` to `target` under the name `top`; gzip when the name ends in `.gz`.

    Members are sorted and owned by root, so equal contents give an equal file.
    """
    members = sorted(folder.rglob("*"))
    with target.open("wb") as raw:
        stream = (
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=EPOCH_SECONDS, compresslevel=6)
            if target.suffix == ".gz"
            else raw
        )
        with stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for path in (folder, *members):
                name = str(Path(top) / path.relative_to(folder))
                tar.add(path, arcname=name, recursive=False, filter=_neutral)
