"""The lab's APT repository, judged by APT itself: it installs what is signed and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.artefacts import apt_repo, tailscale_repo

VERSION = "1.2.3"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A published repository made of a stand-in for the program and its source."""
    folder = tmp_path_factory.mktemp("r")
    source = folder / "source"
    files = [
        *(f"cmd/tailscaled/{name}" for name in ("tailscaled.service", "tailscaled.defaults")),
        "cmd/tailscaled/tailscale-online.target",
        "cmd/tailscaled/tailscale-wait-online.service",
        *(f"release/deb/debian.{script}.sh" for script in ("postinst", "prerm", "postrm")),
    ]
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(f"#!/bin/sh\n# {name}\n")
    binary = folder / "tailscaled"
    binary.write_text("#!/bin/sh\n")
    # GnuPG's agent listens on a socket in there, whose path must stay below 108 bytes.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as cache:
        patch.setenv("XDG_CACHE_HOME", cache)
        deb = tailscale_repo.package(binary, source, VERSION, folder)
        apt_repo.publish([deb], folder / "base", tailscale_repo.CODENAMES, "Tailscale", "Tailscale")
        yield folder / "base"


def _apt(
    base: Path, state: Path, codename: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """APT with nothing but this repository in its sources, as a rack would be told of it."""
    (state / "lists/partial").mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    key = base / f"{codename}.noarmor.gpg"
    line = f"deb [signed-by={key} arch=amd64] file:{base} {codename} {apt_repo.COMPONENT}"
    (state / "sources.list").write_text(line + "\n")
    options = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "APT::Sandbox::User": "",
        "APT::Architecture": "amd64",
        "Debug::NoLocking": "true",
        "APT::Update::Error-Mode": "any",
    }
    flags = [f"-o{key}={value}" for key, value in options.items()]
    return subprocess.run(
        ["apt-get", *flags, *arguments], cwd=state, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("codename", tailscale_repo.CODENAMES)
def test_apt_takes_the_package_with_the_key_of_its_release(
    base: Path, tmp_path: Path, codename: str
) -> None:
    updated = _apt(base, tmp_path, codename, "update")
    assert updated.returncode == 0, updated.stderr
    simulated = _apt(base, tmp_path, codename, "download", "tailscale")
    assert simulated.returncode == 0, simulated.stderr
    (deb,) = tmp_path.glob("tailscale_*.deb")
    listing = subprocess.run(
        ["dpkg-deb", "--contents", deb], capture_output=True, text=True, check=True
    ).stdout
    for path in (
        "./usr/sbin/tailscaled",
        "./usr/bin/tailscale -> ../sbin/tailscaled",
        "./lib/systemd/system/tailscaled.service",
        "./etc/default/tailscaled",
    ):
        assert path in listing
    assert {line.split()[1] for line in listing.splitlines()} == {"root/root"}


def test_apt_refuses_an_index_that_was_changed_after_signing(base: Path, tmp_path: Path) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(base, forged)
    index = forged / "dists/trixie/main/binary-amd64/Packages"
    index.write_text(index.read_text().replace(VERSION, "9.9.9"))
    refused = _apt(forged, tmp_path / "state", "trixie", "update")
    assert refused.returncode != 0
    assert "Hash Sum mismatch" in refused.stderr or "unexpected size" in refused.stderr
