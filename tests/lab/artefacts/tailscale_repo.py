"""A signed APT repository with a `tailscale` package, laid out like the vendor's.

The rack installs Tailscale from the vendor's repository: key, source, package. The lab serves its
own build through the same three steps, so the drill proves the steps themselves. The package's
files, scripts and dependencies are those of the vendor's packaging code at the pinned version.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.lab.artefacts import archive, store
from tests.lab.artefacts.go_tools import TAILSCALE

CODENAMES = ("bookworm", "trixie")
COMPONENT = "main"
ARCHITECTURE = "amd64"
# Where the repository's base lies below the file server, as below pkgs.tailscale.com.
BASE = "stable/debian"

CONTROL = """Package: tailscale
Version: {version}
Section: net
Priority: extra
Architecture: {architecture}
Maintainer: Tailscale Inc <info@tailscale.com>
Installed-Size: {installed_kib}
Depends: iptables
Recommends: iproute2
Replaces: tailscale-relay
Conflicts: tailscale-relay
Homepage: https://www.tailscale.com
Description: The easiest, most secure, cross platform way to use WireGuard + oauth2 + 2FA/SSO
 Built by the lab from the pinned source, without the parts that a private control server
 does not use.
"""


def _run(*command: str | Path, **environment: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    ).stdout


def package(binary: Path, source: Path, version: str, target: Path) -> Path:
    """Write `tailscale_<version>_amd64.deb` into `target` and return its path.

    `binary` is the combined program, `source` the module's unpacked source.
    """
    with tempfile.TemporaryDirectory(prefix="holdfast-deb-") as scratch:
        tree = Path(scratch) / "tree"
        for folder in ("DEBIAN", "usr/bin", "usr/sbin", "lib/systemd/system", "etc/default"):
            (tree / folder).mkdir(parents=True)
        shutil.copyfile(binary, tree / "usr/sbin/tailscaled")
        (tree / "usr/sbin/tailscaled").chmod(0o755)
        # The program is the command-line client when it is called by that name.
        (tree / "usr/bin/tailscale").symlink_to("../sbin/tailscaled")
        shipped = source / "cmd/tailscaled"
        units = tree / "lib/systemd/system"
        for unit in (
            "tailscaled.service",
            "tailscale-online.target",
            "tailscale-wait-online.service",
        ):
            shutil.copyfile(shipped / unit, units / unit)
        shutil.copyfile(shipped / "tailscaled.defaults", tree / "etc/default/tailscaled")
        (tree / "DEBIAN/conffiles").write_text("/etc/default/tailscaled\n")
        for script in ("postinst", "prerm", "postrm"):
            shutil.copyfile(source / f"release/deb/debian.{script}.sh", tree / f"DEBIAN/{script}")
            (tree / f"DEBIAN/{script}").chmod(0o755)
        installed = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) // 1024
        (tree / "DEBIAN/control").write_text(
            CONTROL.format(version=version, architecture=ARCHITECTURE, installed_kib=installed)
        )
        deb = target / f"tailscale_{version}_{ARCHITECTURE}.deb"
        # xz, as everything in the guest that unpacks it knows; a low level, because what is saved
        # in bytes is paid for in seconds of an emulated processor.
        _run(
            *("dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build"),
            *(tree, deb),
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
            _run(
                *("gpg", "--homedir", work, "--batch", "--quiet", "--pinentry-mode", "loopback"),
                *("--passphrase", "", "--quick-generate-key", identity, "rsa3072", "sign", "never"),
            )
            _run("gpgconf", "--homedir", work, "--kill", "gpg-agent")
            work.rename(home)
    return home


def _gpg(*arguments: str | Path) -> None:
    home = signing_home()
    _run("gpg", "--homedir", home, "--batch", "--yes", "--quiet", *arguments)
    _run("gpgconf", "--homedir", home, "--kill", "gpg-agent")


def fingerprint() -> str:
    """Fingerprint of the lab's archive key."""
    listing = _run(*("gpg", "--homedir", signing_home(), "--batch", "--with-colons", "--list-keys"))
    return next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))


def publish(deb: Path, base: Path) -> None:
    """Make `base` a repository that offers `deb` for every codename, signed with the lab's key."""
    pool = base / "pool"
    pool.mkdir(parents=True)
    shutil.copyfile(deb, pool / deb.name)
    packages = subprocess.run(
        ["apt-ftparchive", "packages", "pool"], cwd=base, capture_output=True, text=True, check=True
    ).stdout
    for codename in CODENAMES:
        suite = base / "dists" / codename
        index = suite / COMPONENT / f"binary-{ARCHITECTURE}"
        index.mkdir(parents=True)
        (index / "Packages").write_text(packages)
        fields = {
            "Origin": "Tailscale",
            "Label": "Tailscale",
            "Suite": codename,
            "Codename": codename,
            "Architectures": ARCHITECTURE,
            "Components": COMPONENT,
        }
        options = [f"-oAPT::FTPArchive::Release::{key}={value}" for key, value in fields.items()]
        release = _run("apt-ftparchive", *options, "release", suite)
        (suite / "Release").write_text(release)
        _gpg("--clearsign", "--output", suite / "InRelease", suite / "Release")
        _gpg("--detach-sign", "--armor", "--output", suite / "Release.gpg", suite / "Release")
        _gpg("--output", base / f"{codename}.noarmor.gpg", "--export")


def _build(target: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="holdfast-repository-") as scratch:
        binary = TAILSCALE.build().file("tailscaled")
        deb = package(binary, TAILSCALE.source(), TAILSCALE.version, Path(scratch))
        publish(deb, target / BASE)
    return TAILSCALE.version


def build() -> store.Entry:
    """The repository below `stable/debian`, with its key at `<codename>.noarmor.gpg`."""
    inputs = {
        "tailscale": str(TAILSCALE.build().directory.name),
        "control": CONTROL,
        "codenames": " ".join(CODENAMES),
        "key": fingerprint(),
    }
    return store.stored("tailscale-repository", inputs, _build)
