"""Where a program comes from: one pinned download, or a signed APT repository.

For example::

    "floor": {
        "release": {
            "version": "b7500",
            "url": "https://nas.home.arpa/llama-b7500-bin-ubuntu-x64.tar.gz",
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        },
        "model": "small",
    },
    "docker": {
        "repository": {
            "url": "https://nas.home.arpa/docker",
            "key_url": "https://nas.home.arpa/docker/gpg",
            "suite": "trixie",
            "components": ["stable"],
        }
    }
"""

from __future__ import annotations

from holdfast.types import Fingerprint, Model, Name, PinnedUrl, Sha256, Suite, Url, Version


class Artefact(Model):
    """A download, pinned by version and checksum, never ``latest``."""

    version: Version
    url: PinnedUrl
    sha256: Sha256


class AptRepository(Model):
    """A signed APT repository: the vendor's, or a mirror of it."""

    url: Url
    key_url: Url
    key_sha256: Sha256 | None = None
    """Checksum of the key file."""
    key_fingerprint: Fingerprint | None = None
    """The one key whose signature apt accepts; the file may contain others."""
    suite: Suite
    components: list[Name] = ["main"]
    """A flat repository, whose suite ends in ``/``, has none."""
