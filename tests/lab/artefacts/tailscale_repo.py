"""A signed APT repository with a `tailscale` package, laid out like the vendor's.

The rack installs Tailscale from the vendor's repository: key, source, package. The lab serves its
own build through the same three steps, so the drill proves the steps themselves. The package's
files, scripts and dependencies are those of the vendor's packaging code at the pinned version.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.lab.artefacts import apt_repo, store
from tests.lab.artefacts.go_tools import TAILSCALE

CODENAMES = ("bookworm", "trixie")
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
            CONTROL.format(
                version=version, architecture=apt_repo.ARCHITECTURE, installed_kib=installed
            )
        )
        deb = target / f"tailscale_{version}_{apt_repo.ARCHITECTURE}.deb"
        apt_repo.build(tree, deb)
    return deb


def _build(target: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="holdfast-repository-") as scratch:
        binary = TAILSCALE.build().file("tailscaled")
        deb = package(binary, TAILSCALE.source(), TAILSCALE.version, Path(scratch))
        apt_repo.publish([deb], target / BASE, CODENAMES, "Tailscale", "Tailscale")
    return TAILSCALE.version


def build() -> store.Entry:
    """The repository below `stable/debian`, with its key at `<codename>.noarmor.gpg`."""
    inputs = {
        "tailscale": str(TAILSCALE.build().directory.name),
        "control": CONTROL,
        "codenames": " ".join(CODENAMES),
        "key": apt_repo.fingerprint(),
    }
    return store.stored("tailscale-repository", inputs, _build)
