"""Disk images for the lab's machines, built from the archives that the controller's APT knows.

A controller of another distribution knows none; then they are those that mmdebstrap has by default.

An image is three files: a raw ext4 file system (the base of every machine's overlay), the kernel
and the initrd that QEMU starts directly. They are cached by a hash of everything that goes into
the recipe. The archive's date is deliberately not part of that hash: a drill must not rebuild its
images because a mirror was refreshed. `python -m tests.lab image --rebuild` fetches newer packages.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab.process import LabError, output_of

DISK_GIB = 24
"""Apparent size of the file system; the file is sparse and holds about 0.6 GiB when fresh."""

OPERATOR = "operator"
"""The login every image carries: key only, passwordless sudo, as a fresh cloud server has."""


@dataclass(frozen=True)
class Release:
    """A distribution release the lab can build."""

    name: str
    suite: str
    origin: str
    keyring: str
    kernel_package: str
    security_suite: str
    security_in_archive: bool


RELEASES = {
    release.name: release
    for release in (
        Release(
            name="debian-12",
            suite="bookworm",
            origin="Debian",
            keyring="/usr/share/keyrings/debian-archive-keyring.gpg",
            kernel_package="linux-image-cloud-amd64",
            security_suite="bookworm-security",
            security_in_archive=False,
        ),
        Release(
            name="debian-13",
            suite="trixie",
            origin="Debian",
            keyring="/usr/share/keyrings/debian-archive-keyring.gpg",
            kernel_package="linux-image-cloud-amd64",
            security_suite="trixie-security",
            security_in_archive=False,
        ),
        Release(
            name="ubuntu-24.04",
            suite="noble",
            origin="Ubuntu",
            keyring="/usr/share/keyrings/ubuntu-archive-keyring.gpg",
            kernel_package="linux-image-virtual",
            security_suite="noble-security",
            security_in_archive=True,
        ),
    )
}

# A small but honest server: what a fresh Debian has running, and nothing the site installs itself.
BARE_PACKAGES = (
    "apt",
    "ca-certificates",
    "cron",
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libpam-systemd",
    "logrotate",
    "netbase",
    "nftables",
    "openssh-server",
    "procps",
    "qemu-guest-agent",
    "sudo",
    "systemd-sysv",
    "systemd-timesyncd",
    "tzdata",
    "udev",
)

VARIANTS: dict[str, tuple[str, ...]] = {
    "rack": (),
    "neighbour": ("curl", "netcat-openbsd", "nmap", "python3"),
    "nas": ("nfs-kernel-server",),
}
"""What each kind of machine carries beyond the bare server."""

SHARED_EXPORT = "/srv/holdfast"
"""The directory the NAS exports to the lab's LAN."""

# Documentation and translations double the time dpkg takes under emulation and are not read.
DPKG_EXCLUDES = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*/LC_MESSAGES/*.mo")

_SETUP = """
install -d "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
echo 'MODULES=list' > "$1/etc/initramfs-tools/conf.d/holdfast-lab"
printf '%s\\n' virtio_pci virtio_blk ext4 crc32c \
> "$1/usr/share/initramfs-tools/modules.d/holdfast-lab"
"""

_CUSTOMISE = """
root=$1
# Debian reserves a group of this name; without --gid useradd refuses to make the user.
chroot "$root" useradd --create-home --gid {operator} \
--shell /bin/bash --groups sudo --password '*' {operator}
install -d -m 0755 "$root/etc/sudoers.d"
echo '{operator} ALL=(ALL) NOPASSWD:ALL' > "$root/etc/sudoers.d/{operator}"
chmod 0440 "$root/etc/sudoers.d/{operator}"
install -d -m 0700 "$root/home/{operator}/.ssh"
printf '%s\\n' '{public_key}' > "$root/home/{operator}/.ssh/authorized_keys"
chmod 0600 "$root/home/{operator}/.ssh/authorized_keys"
chroot "$root" chown -R {operator}:{operator} /home/{operator}/.ssh

# Identity belongs to a machine, not to the image: each overlay makes its own on first boot.
rm -f "$root"/etc/ssh/ssh_host_*_key "$root"/etc/ssh/ssh_host_*_key.pub
rm -f "$root/var/lib/dbus/machine-id"
: > "$root/etc/machine-id"
cat > "$root/etc/systemd/system/ssh-host-keys.service" <<'UNIT'
[Unit]
Description=Create this machine's SSH host keys
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
RemainAfterExit=yes

[Install]
WantedBy=multi-user.target
UNIT

echo '{hostname}' > "$root/etc/hostname"
printf '127.0.0.1 localhost\\n::1 localhost ip6-localhost ip6-loopback\\n\
127.0.1.1 {hostname}\\n' > "$root/etc/hosts"
echo 'nameserver 10.0.2.3' > "$root/etc/resolv.conf"
echo '/dev/vda / ext4 errors=remount-ro 0 1' > "$root/etc/fstab"
install -d "$root/etc/systemd/network"
cat > "$root/etc/systemd/network/10-management.network" <<'UNIT'
[Match]
Name=eth0

[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no

[DHCPv4]
UseDNS=no
UseHostname=no
UNIT
cat > "$root/etc/systemd/system/lab-lan-address.service" <<'UNIT'
[Unit]
Description=Address the LAN card as the lab's kernel command line says
DefaultDependencies=no
Before=network-pre.target systemd-networkd.service
Wants=network-pre.target

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/lab-lan-address
RemainAfterExit=yes

[Install]
WantedBy=sysinit.target
UNIT
install -d "$root/usr/local/sbin"
# The kernel's own ip= would do, but initramfs-tools reads it too and waits three minutes for it.
# RequiredForOnline: a machine whose LAN is cut must still reach network-online.target.
cat > "$root/usr/local/sbin/lab-lan-address" <<'SCRIPT'
#!/bin/sh
set -eu
number=$(sed -n 's/.*lab[.]lan=\\([0-9]*\\).*/\\1/p' /proc/cmdline)
mkdir -p /run/systemd/network
printf '%s\\n' '[Match]' Name=eth1 '[Link]' RequiredForOnline=no '[Network]' \\
    "Address=10.77.0.$number/24" "Address=fd77::$number/64" > /run/systemd/network/20-lan.network
SCRIPT
chmod 0755 "$root/usr/local/sbin/lab-lan-address"
chroot "$root" systemctl enable systemd-networkd.service systemd-networkd-wait-online.service \\
    lab-lan-address.service ssh-host-keys.service
{variant_script}
rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
cat > "$root/etc/apt/sources.list.d/{origin}.sources" <<'SOURCES'
{guest_sources}
SOURCES
rm -f "$root"/etc/apt/apt.conf.d/*mmdebstrap
# What keeps services from starting while an image is built would keep them from it for ever, and
# on a real machine a package's service starts the moment it is installed.
rm -f "$root/usr/sbin/policy-rc.d"
[ ! -e "$root/sbin/start-stop-daemon.REAL" ] ||
    mv -f "$root/sbin/start-stop-daemon.REAL" "$root/sbin/start-stop-daemon"
# The machine boots from the initrd beside its disk; making another takes minutes under emulation.
echo 'update_initramfs=no' > "$root/etc/initramfs-tools/update-initramfs.conf"
printf '%s' '{guest_proxy}' > "$root/etc/apt/apt.conf.d/90proxy"
[ -s "$root/etc/apt/apt.conf.d/90proxy" ] || rm "$root/etc/apt/apt.conf.d/90proxy"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/apt/*
install -d "$root/var/lib/apt/lists/partial" "$root/var/cache/apt/archives/partial"
"""

_VARIANT_SCRIPTS = {
    "rack": "",
    "neighbour": "",
    "nas": f"""
install -d "$root{SHARED_EXPORT}/models" "$root{SHARED_EXPORT}/backup" "$root/etc/exports.d"
echo '{SHARED_EXPORT} 10.77.0.0/24(rw,sync,no_subtree_check,no_root_squash) \
fd77::/64(rw,sync,no_subtree_check,no_root_squash)' \\
    > "$root/etc/exports.d/holdfast.exports"
""",
}

# A hook runs in mmdebstrap's own (possibly user) namespace, so that file ownership inside the image
# is right without anyone being root. The bind mount shows the tree without /proc, /sys and /dev,
# which are mounted in it while hooks run.
_WRITE_DISK = """
cat "$1"/boot/vmlinuz-* > {work}/vmlinuz
cat "$1"/boot/initrd.img-* > {work}/initrd
unshare --mount sh -c 'mount --bind "$1" {work}/root &&
    /sbin/mke2fs -q -F -t ext4 -L root -m 0 -d {work}/root {work}/disk.raw {disk_gib}G' - "$1"
"""


@dataclass(frozen=True)
class Source:
    """One APT repository line: where, which suite, which components."""

    uri: str
    suite: str
    components: tuple[str, ...]

    def line(self, keyring: str) -> str:
        """The one-line form mmdebstrap reads."""
        return f"deb [signed-by={keyring}] {self.uri} {self.suite} {' '.join(self.components)}"

    def deb822(self, keyring: str) -> str:
        """The stanza a guest's sources file carries."""
        return (
            f"Types: deb\nURIs: {self.uri}\nSuites: {self.suite}\n"
            f"Components: {' '.join(self.components)}\nSigned-By: {keyring}\n"
        )


@dataclass(frozen=True)
class Image:
    """A built image: what a machine needs to start."""

    release: str
    variant: str
    directory: Path

    @property
    def disk(self) -> Path:
        return self.directory / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"


def cache_directory() -> Path:
    """Where images and the lab's key live: XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "holdfast-lab"


def configured_archives(index_targets: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """The archives the controller's APT knows, as {(origin label, uri): components}.

    `index_targets` is the output of `apt-get indextargets`: stanzas of `Key: value`. Reading it
    rather than the files spares us APT's two source formats and its configuration fragments.
    """
    archives: dict[tuple[str, str], set[str]] = {}
    for stanza in index_targets.strip().split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", stanza, flags=re.MULTILINE))
        if fields.get("Created-By") != "Packages":
            continue
        label, uri = fields.get("Label", ""), fields.get("Repo-URI", "").rstrip("/")
        if label and uri:
            archives.setdefault((label, uri), set()).add(fields.get("Component", "main"))
    return {key: tuple(sorted(components)) for key, components in archives.items()}


def sources_for(release: Release, index_targets: str) -> tuple[Source, ...]:
    """The suite, its updates and its security updates, from archives the controller uses.

    Where its APT has no archive of that distribution they are mmdebstrap's own default.

    Raises LabError where that cannot be had: the distribution's keyring is missing.
    """
    archives = configured_archives(index_targets)
    main = [(uri, parts) for (label, uri), parts in archives.items() if label == release.origin]
    if not main:
        return default_sources(release)
    uri, components = main[0]
    security = [
        (uri, parts)
        for (label, uri), parts in archives.items()
        if label == f"{release.origin}-Security"
    ]
    sources = [
        Source(uri, release.suite, components),
        Source(uri, f"{release.suite}-updates", components),
    ]
    if release.security_in_archive:
        sources.append(Source(uri, release.security_suite, components))
    elif security:
        sources.append(Source(security[0][0], release.security_suite, security[0][1]))
    return tuple(sources)


def default_sources(release: Release) -> tuple[Source, ...]:
    """The sources that mmdebstrap takes for a suite when it is given none; fetches nothing.

    Raises LabError where the distribution's keyring is missing, or mmdebstrap names no sources.
    """
    if not Path(release.keyring).exists():
        raise LabError(
            f"{release.name} cannot be built here: no {release.origin} archive is in this "
            f"machine's APT configuration, and {release.keyring} is missing; install its package."
        )
    # Not as root, it needs no namespace for a setup hook alone.
    mode = "root" if os.geteuid() == 0 else "chrootless"
    with tempfile.TemporaryDirectory(prefix="holdfast-sources-") as name:
        found = Path(name) / "sources.list"
        output_of(
            ["mmdebstrap", "--quiet", f"--mode={mode}", "--variant=custom", "--skip=update"]
            + [f'--setup-hook=cp "$1/etc/apt/sources.list" {found}', "--format=null"]
            + [release.suite, "/dev/null"]
        )
        sources = listed_sources(found.read_text())
    if not sources:
        raise LabError(f"{release.name} cannot be built here: mmdebstrap names no archive of it.")
    return sources


def listed_sources(sources_list: str) -> tuple[Source, ...]:
    """The sources of a file in APT's one-line format; their options are left out."""
    lines = re.findall(r"^deb (?:\[.*?\] )?(\S+) (\S+) (.+)$", sources_list, flags=re.MULTILINE)
    return tuple(Source(uri, suite, tuple(parts.split())) for uri, suite, parts in lines)


def proxy_settings(apt_config_dump: str) -> dict[str, str]:
    """The HTTP proxies of `apt-config dump`, by option name."""
    found = re.findall(r'^(Acquire::https?::Proxy) "(.+)";$', apt_config_dump, flags=re.MULTILINE)
    return dict(found)


def guest_proxy(proxies: dict[str, str]) -> str:
    """The guest's APT fragment: a proxy on the controller's loopback is 10.0.2.2 from a guest."""
    return "".join(
        f'{option} "{re.sub(r"//(127[.][0-9.]+|localhost)", "//10.0.2.2", url)}";\n'
        for option, url in sorted(proxies.items())
    )


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what an image contains."""

    release: str
    variant: str
    suite: str
    packages: tuple[str, ...]
    sources: tuple[str, ...]
    proxies: tuple[tuple[str, str], ...]
    setup: str
    customise: str
    write_disk: str
    disk_gib: int
    architecture: str = "amd64"

    def key(self) -> str:
        """The cache key: equal recipes, equal keys, on every machine."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def recipe_for(
    release: Release,
    variant: str,
    *,
    public_key: str,
    index_targets: str,
    apt_config_dump: str = "",
) -> Recipe:
    """The recipe for a release and a variant, given the controller's APT state.

    Raises LabError for an archive that cannot be had (`sources_for`).
    """
    sources = sources_for(release, index_targets)
    proxies = proxy_settings(apt_config_dump)
    return Recipe(
        release=release.name,
        variant=variant,
        suite=release.suite,
        packages=tuple(sorted({*BARE_PACKAGES, release.kernel_package, *VARIANTS[variant]})),
        sources=tuple(source.line(release.keyring) for source in sources),
        proxies=tuple(sorted(proxies.items())),
        setup=_SETUP,
        customise=_CUSTOMISE.format(
            operator=OPERATOR,
            public_key=public_key.strip(),
            hostname="debian" if variant == "rack" else variant,
            origin=release.origin.lower(),
            guest_sources="\n".join(source.deb822(release.keyring) for source in sources),
            guest_proxy=guest_proxy(proxies),
            variant_script=_VARIANT_SCRIPTS[variant],
        ),
        write_disk=_WRITE_DISK,
        disk_gib=DISK_GIB,
    )


def lab_key() -> Path:
    """The private key every image admits; made once, beside the images it opens."""
    key = cache_directory() / "id_ed25519"
    key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(key.with_suffix(".lock")):
        if not key.exists():
            maker = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "holdfast-lab", "-f"]
            output_of([*maker, key])
    return key


def ensure_image(release_name: str, variant: str, *, rebuild: bool = False) -> Image:
    """The image, built if the cache has none for this recipe.

    Raises LabError when the archive is missing or mmdebstrap fails; the build's log is kept.
    """
    release = RELEASES[release_name]
    recipe = recipe_for(
        release,
        variant,
        public_key=lab_key().with_suffix(".pub").read_text(),
        index_targets=output_of(["apt-get", "indextargets"]),
        apt_config_dump=output_of(["apt-config", "dump"]),
    )
    directory = cache_directory() / "images" / f"{release.name}-{variant}-{recipe.key()}"
    image = Image(release.name, variant, directory)
    directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(directory.with_suffix(".lock")):
        if rebuild:
            shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            _build(recipe, directory)
    return image


def _build(recipe: Recipe, directory: Path) -> None:
    log = directory.with_suffix(".log")
    if shutil.which("mmdebstrap") is None:
        raise LabError("mmdebstrap is not installed on this controller.")
    # Without root, mmdebstrap works as a mapped user who cannot traverse a private home directory
    # or create files of ours: a directory under TMPDIR with files made beforehand serves both.
    with tempfile.TemporaryDirectory(prefix="holdfast-image-") as name:
        work = Path(name)
        work.chmod(0o711)
        (work / "root").mkdir()
        for file in ("disk.raw", "vmlinuz", "initrd"):
            (work / file).touch()
            (work / file).chmod(0o666)
        scripts = {
            "setup": recipe.setup,
            "customise": recipe.customise,
            "write-disk": recipe.write_disk.format(work=work, disk_gib=recipe.disk_gib),
        }
        for file, body in scripts.items():
            (work / file).write_text(f"#!/bin/sh\nset -eu\n{body}")
            (work / file).chmod(0o755)
        command = [
            "mmdebstrap",
            "--variant=minbase",
            f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
            "--format=null",
            f"--architectures={recipe.architecture}",
            f"--include={','.join(recipe.packages)}",
            *(f'--aptopt={option} "{url}"' for option, url in recipe.proxies),
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in DPKG_EXCLUDES),
            f"--setup-hook={work / 'setup'}",
            f"--customize-hook={work / 'customise'}",
            f"--customize-hook={work / 'write-disk'}",
            recipe.suite,
            "/dev/null",
            *recipe.sources,
        ]
        with log.open("wb") as output:
            done = subprocess.run(
                command, check=False, stdout=output, stderr=subprocess.STDOUT, cwd="/"
            )
        if done.returncode != 0:
            raise LabError(f"mmdebstrap could not build {directory.name}; its log is {log}")
        partial = directory.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for file in ("disk.raw", "vmlinuz", "initrd"):
            output_of(["cp", "--sparse=always", work / file, partial / file])
            (partial / file).chmod(0o444)
        partial.rename(directory)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file: several labs may want the same image at the same moment."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
