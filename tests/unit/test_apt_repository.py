"""What a repository's key is pinned by, and what apt makes of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from holdfast import docker, tailnet
from holdfast.gpu import containers, driver
from holdfast.render import render
from holdfast.settings import AptRepository, Distribution, Gpus

CARDS = Gpus.model_validate(
    {
        "cards": [{"name": "one", "device": "2204", "vram_mib": 24576}],
        "driver": {"source": "vendor"},
    }
)


def _vendors(distribution: Distribution) -> list[AptRepository]:
    found = [docker.vendor_repository(distribution), tailnet.vendor_repository(distribution)]
    # NVIDIA's for Ubuntu 26.04 is refused, for its key is not known.
    if distribution != "ubuntu2604":
        planned = driver.plan(CARDS, distribution).repository
        assert planned is not None
        found.append(planned)
    return [*found, containers.vendor_repository()]


@pytest.mark.parametrize("distribution", get_args(Distribution))
def test_every_vendors_key_is_pinned(distribution: Distribution) -> None:
    found = _vendors(distribution)
    assert [one.url for one in found if not (one.key_sha256 or one.key_fingerprint)] == []


def _gpg(home: Path, *arguments: str) -> str:
    command = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=True, timeout=60
    ).stdout


class Signed:
    """A repository that one of two keys has signed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(mode=0o700)
        for name in ("vendor", "thief"):
            _gpg(self.home, "--passphrase", "", "--quick-generate-key", name, "rsa2048", "sign")
        self.keys = {name: _gpg(self.home, "--armor", "--export", name) for name in self.names}
        (folder / "repository").mkdir()
        (folder / "repository/Packages").touch()

    names = ("vendor", "thief")

    def fingerprint(self, name: str) -> str:
        rows = _gpg(self.home, "--with-colons", "--list-keys", name).splitlines()
        return next(row.split(":")[9] for row in rows if row.startswith("fpr:"))

    def sign(self, name: str) -> None:
        repository = self.folder / "repository"
        digest = hashlib.sha256(b"").hexdigest()
        (repository / "Release").write_text(
            f"Origin: x\nDate: Mon, 30 Nov 2020 12:00:00 UTC\nSHA256:\n {digest} 0 Packages\n"
        )
        signed = ["--yes", "--local-user", name, "--output", str(repository / "InRelease")]
        _gpg(self.home, *signed, "--clearsign", str(repository / "Release"))

    def is_taken(self, key: str, fingerprint: str | None) -> bool:
        """Whether apt takes the repository's lists, with ``key`` in the file of the source."""
        key_file = self.folder / "key.asc"
        key_file.write_text(key)
        source = self.folder / "x.sources"
        settings = AptRepository.model_construct(
            url=f"file:{self.folder}/repository",
            key_url="",
            suite="/",
            key_fingerprint=fingerprint,
        )
        text = render("apt/repository.sources.j2", repository=settings, key=str(key_file))
        source.write_text(text)
        for directory in ("state/lists/partial", "cache/archives/partial"):
            (self.folder / directory).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        options = {
            "Dir::Etc::SourceList": source,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": self.folder / "state",
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "APT::Sandbox::User": "",
        }
        arguments = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        done = subprocess.run(
            ["apt-get", "-q", "update", "--error-on=any", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C", "APT_CONFIG": os.devnull},
        )
        assert done.returncode == 0 or "signature verification" in done.stderr, done.stderr
        return done.returncode == 0


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return Signed(tmp_path)


def test_a_key_in_the_vendors_place_signs_nothing(signed: Signed) -> None:
    vendor = signed.fingerprint("vendor")
    signed.sign("vendor")
    assert signed.is_taken(signed.keys["vendor"], vendor)
    signed.sign("thief")
    # What the fingerprint is for.
    assert signed.is_taken(signed.keys["thief"], None)
    assert not signed.is_taken(signed.keys["thief"], vendor)
    assert not signed.is_taken(signed.keys["vendor"] + signed.keys["thief"], vendor)
