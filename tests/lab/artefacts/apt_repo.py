"""Debian packages and signed APT repositories of the lab's own making."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.lab.artefacts import archive, store
from tests.lab.process import output_of

COMPONENT = "main"
ARCHITECTURE = "amd64"


def build(tree: Path, deb: Path) -> Path:
    """Pack ``tree``, which has its DEBIAN folder, as the package ``deb``; returns ``deb``."""
    # xz, as everything in the guest that unpacks it knows; a low level, because what is saved
    # in bytes is paid for in seconds of an emulated processor.
    output_of(
        ["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", tree, deb],
        SOURCE_DATE_EPOCH=str(archive.EPOCH_SECONDS),
    )
    return deb


def signing_home() -> Path:
    """GnuPG home of the lab's own archive key, made at the first call."""
    home = store.root() / "archive-key"
    with store.locked(store.root() / ".archive-key.lock"):
        if not home.is_dir():
            work = Path(tempfile.mkdtemp(prefix=".archive-key-", dir=store.root()))
            identity = "Holdfast lab archive <lab@holdfast.invalid>"
            output_of(
                [
                    *("gpg", "--homedir", work, "--batch", "--quiet"),
                    *("--pinentry-mode", "loopback", "--passphrase", ""),
                    *("--quick-generate-key", identity, "rsa3072", "sign", "never"),
                ]
            )
            output_of(["gpgconf", "--homedir", work, "--kill", "gpg-agent"])
            work.rename(home)
    return home


def _gpg(*arguments: str | Path) -> None:
    # In a home of its own: the agent that one call ends must not be another's.
    with tempfile.TemporaryDirectory(prefix="gpg-") as folder:
        home = Path(folder) / "home"
        shutil.copytree(signing_home(), home, ignore=shutil.ignore_patterns("S.*"))
        try:
            output_of(["gpg", "--homedir", home, "--batch", "--yes", "--quiet", *arguments])
        finally:
            output_of(["gpgconf", "--homedir", home, "--kill", "gpg-agent"])


def fingerprint() -> str:
    """Fingerprint of the lab's archive key."""
    listing = output_of(
        ["gpg", "--homedir", signing_home(), "--batch", "--with-colons", "--list-keys"]
    )
    return next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))


def publish(
    debs: Iterable[Path], base: Path, codenames: Iterable[str], origin: str, label: str
) -> None:
    """Make `base` a repository that offers `debs` for every codename, signed with the lab's key."""
    pool = base / "pool"
    pool.mkdir(parents=True)
    for deb in debs:
        shutil.copyfile(deb, pool / deb.name)
    packages = subprocess.run(
        ["apt-ftparchive", "packages", "pool"], cwd=base, capture_output=True, text=True, check=True
    ).stdout
    for codename in codenames:
        suite = base / "dists" / codename
        index = suite / COMPONENT / f"binary-{ARCHITECTURE}"
        index.mkdir(parents=True)
        (index / "Packages").write_text(packages)
        fields = {
            "Origin": origin,
            "Label": label,
            "Suite": codename,
            "Codename": codename,
            "Architectures": ARCHITECTURE,
            "Components": COMPONENT,
        }
        options = [f"-oAPT::FTPArchive::Release::{key}={value}" for key, value in fields.items()]
        release = output_of(["apt-ftparchive", *options, "release", suite])
        (suite / "Release").write_text(release)
        _gpg("--clearsign", "--output", suite / "InRelease", suite / "Release")
        _gpg("--detach-sign", "--armor", "--output", suite / "Release.gpg", suite / "Release")
        _gpg("--output", base / f"{codename}.noarmor.gpg", "--export")
