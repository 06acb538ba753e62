"""Packages of a Debian suite, fetched and verified by APT without touching the controller's own.

The mirror is the one that the controller's APT already uses, and mmdebstrap's own default on a
controller that is no Debian: the lab names none.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.lab.images import RELEASES, sources_for
from tests.lab.process import output_of

DEBIAN = RELEASES["debian-13"]


def mirror() -> str:
    """Base URL of the Debian archive that images are built from.

    Raises LabError where none can be had (`sources_for`).
    """
    return sources_for(DEBIAN, output_of(["apt-get", "indextargets"]))[0].uri


class Suite:
    """One Debian suite as a private APT root under `directory`."""

    def __init__(self, name: str, directory: Path, components: str = "main") -> None:
        self._directory = directory
        for folder in ("lists/partial", "archives/partial"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        (directory / "suite.sources").write_text(
            f"Types: deb\nURIs: {mirror()}\nSuites: {name}\nComponents: {components}\n"
            f"Signed-By: {DEBIAN.keyring}\n"
        )
        self._options = [
            f"Dir::State={directory}",
            f"Dir::State::lists={directory}/lists",
            f"Dir::State::status={directory}/status",
            f"Dir::Cache={directory}",
            f"Dir::Etc::sourcelist={directory}/suite.sources",
            "Dir::Etc::sourceparts=-",
            "Dir::Etc::preferences=-",
            "Dir::Etc::preferencesparts=-",
            "APT::Architecture=amd64",
            "APT::Install-Recommends=false",
            "APT::Sandbox::User=",
            "Acquire::Languages=none",
            # A mirror of testing may lag behind the release file's short validity. What is relied
            # on here is the archive's signature, not its freshness.
            "Acquire::Check-Valid-Until=false",
            "Debug::NoLocking=true",
        ]

    def _apt(self, *arguments: str) -> None:
        options = [part for option in self._options for part in ("-o", option)]
        result = subprocess.run(
            ["apt-get", "-q", *options, *arguments],
            cwd=self._directory,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise RuntimeError(f"apt-get {arguments[0]} failed:\n{result.stdout}{result.stderr}")

    def unpack(self, *packages: str) -> Path:
        """Download `packages` with all that they depend on and unpack them into one tree.

        Nothing is installed and no maintainer script runs. Returns the tree's root.
        """
        self._apt("update")
        self._apt("install", "--yes", "--download-only", *packages)
        tree = self._directory / "tree"
        for package in sorted((self._directory / "archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", package, tree], check=True)
        return tree

    def fetch(self, package: str) -> Path:
        """Download one package, without what it depends on; returns its archive."""
        self._apt("update")
        self._apt("download", package)
        (archive,) = self._directory.glob(f"{package}_*.deb")
        return archive

    def version(self, package: str) -> str:
        """Version of a package that `unpack` fetched."""
        (archive,) = (self._directory / "archives").glob(f"{package}_*.deb")
        return subprocess.run(
            ["dpkg-deb", "--field", archive, "Version"], capture_output=True, text=True, check=True
        ).stdout.strip()
