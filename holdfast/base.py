"""The base settings of a host: kernel settings, packages, users and checks. Pure decisions."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

from facts.base import AUTHORITIES, BaseState
from facts.places import CONFIGURATION, SYSTEM
from holdfast import integrity
from holdfast.refusal import Refusal
from holdfast.registry import declared_services
from holdfast.settings import HostSettings

_ALL_INTERFACES_V4 = "net/ipv4/conf/*"
_ALL_INTERFACES_V6 = "net/ipv6/conf/*"

SYSCTLS: dict[str, str] = {
    # Kernel addresses and logs help exploits, not users.
    "kernel/kptr_restrict": "2",
    "kernel/dmesg_restrict": "1",
    "kernel/perf_event_paranoid": "3",
    "kernel/unprivileged_bpf_disabled": "1",
    "net/core/bpf_jit_harden": "2",
    "kernel/yama/ptrace_scope": "1",
    "kernel/randomize_va_space": "2",
    "kernel/sysrq": "0",
    "kernel/core_uses_pid": "1",
    "dev/tty/ldisc_autoload": "0",
    # Memory of a privileged program is never written to disk.
    "fs/suid_dumpable": "0",
    "fs/protected_hardlinks": "1",
    "fs/protected_symlinks": "1",
    "fs/protected_fifos": "2",
    "fs/protected_regular": "2",
    # Neighbours on the LAN cannot redirect our packets.
    f"{_ALL_INTERFACES_V4}/accept_redirects": "0",
    f"{_ALL_INTERFACES_V4}/secure_redirects": "0",
    f"{_ALL_INTERFACES_V4}/send_redirects": "0",
    f"{_ALL_INTERFACES_V4}/accept_source_route": "0",
    f"{_ALL_INTERFACES_V6}/accept_redirects": "0",
    f"{_ALL_INTERFACES_V6}/accept_source_route": "0",
    # The kernel reports each group on its own, so the rules of `holdfast.egress` can match it.
    "net/ipv4/conf/all/force_igmp_version": "2",
    "net/ipv6/conf/all/force_mld_version": "1",
    "net/ipv4/conf/all/log_martians": "1",
    "net/ipv4/conf/default/log_martians": "1",
    "net/ipv4/icmp_echo_ignore_broadcasts": "1",
    "net/ipv4/icmp_ignore_bogus_error_responses": "1",
    "net/ipv4/tcp_syncookies": "1",
}
"""Path below /proc/sys, with ``*`` for every interface, to value. No setting here breaks Docker,
Tailscale or NVIDIA: no forwarding, no rp_filter, no modules_disabled. ufw would undo some of them,
so `firewall` makes it set no sysctls of its own."""

BLACKLISTED_MODULES = [
    *("dccp", "sctp", "rds", "tipc"),
    # Any user may open these sockets, and the kernel sends their data without a user, so the rules
    # of `holdfast.egress` cannot match it. rxrpc sends UDP, smc TCP, kcm and l2tp either, pppoe
    # frames without IP.
    *("rxrpc", "kafs", "smc", "smc_diag", "kcm", "l2tp_core", "l2tp_ip", "l2tp_ip6", "l2tp_ppp"),
    *("pppox", "pppoe", "pptp"),
    # Sockets between a virtual machine and its host, which no rule of either sees.
    *("vsock", "vsock_loopback", "vmw_vsock_virtio_transport", "vmw_vsock_vmci_transport"),
    *("hv_sock", "vhost_vsock"),
    *("cramfs", "freevxfs", "jffs2", "hfs", "hfsplus", "udf"),
    # With FireWire, a person who plugs in a cable has direct access to memory. USB storage stays,
    # because people carry models and backups on it.
    *("firewire-ohci", "firewire-core"),
]

AUDITED_PATHS = [
    *("/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow"),
    *("/etc/sudoers", "/etc/sudoers.d", "/etc/pam.d", "/etc/ssh"),
    *(SYSTEM, "/etc/modprobe.d", "/etc/sysctl.d", "/etc/apt", "/etc/hosts"),
    CONFIGURATION,
]
"""Configuration whose changes are logged."""

MODES: dict[str, str] = {
    # Only root may read its scheduled commands and the files that control logins.
    "/etc/crontab": "600",
    "/etc/cron.d": "700",
    "/etc/cron.hourly": "700",
    "/etc/cron.daily": "700",
    "/etc/cron.weekly": "700",
    "/etc/cron.monthly": "700",
    "/etc/cron.yearly": "700",
    "/etc/ssh/sshd_config": "600",
    "/etc/sudoers.d": "750",
    "/boot/grub/grub.cfg": "600",
}
"""Octal modes of paths that may exist; missing ones are not created."""

_PACKAGES = [
    "apparmor",  # Docker confines containers with it
    "apt-listchanges",  # it shows known bugs of an upgrade before it
    "auditd",
    "ca-certificates",
    "dbus",
    "kmod",
    "libpam-pwquality",  # passwords still count at the console and for sudo
    "libpam-tmpdir",  # no user can place a file where another user's script will write
    "needrestart",  # a patched library protects only programs that have been restarted
    "procps",
    "systemd-timesyncd",
    "tzdata",
    "unattended-upgrades",
    *integrity.PACKAGES,
]

_ROOT_FREE_MIB = 256
_BOOT_FREE_MIB = 100
"""Space for one more kernel and its initrd: 30 MiB and 60 MiB on Debian 13, amd64."""

_BLOCK = ("# Holdfast: begin", "# Holdfast: end")


def packages(settings: HostSettings) -> list[str]:
    """Distribution packages of the base."""
    # The C locales are built in; any other is generated.
    is_built_in = re.match(r"(C|POSIX)\b", settings.base.locale)
    return _PACKAGES if is_built_in else [*_PACKAGES, "locales"]


def service_users(settings: HostSettings) -> list[str]:
    """Users of declared services, without root, each once."""
    return sorted({service.user for service in declared_services(settings)} - {"root"})


def asked_accounts(settings: HostSettings) -> list[str]:
    """Users that the settings of this host name: those of services and those who may log in."""
    return sorted({*service_users(settings), *settings.ssh.authorised_keys})


def refusals(host: str, settings: HostSettings, state: BaseState) -> list[Refusal]:
    """Why this host cannot become what the inventory declares; empty if it can."""
    found = []

    def refuse(key: str, value: object, wrong: str, mend: str) -> None:
        found.append(Refusal(host, key, value, wrong, mend))

    if settings.distribution != state.distribution:
        refuse(
            "distribution",
            settings.distribution,
            f"the host runs {state.distribution}",
            "correct the inventory, or reinstall the host",
        )
    for interface in settings.interfaces:
        if interface not in state.interfaces:
            there = ", ".join(sorted(state.interfaces - {"lo"})) or "none"
            refuse(
                f"interfaces.{interface}",
                interface,
                "the host has no such interface",
                f"name one of those it has: {there}",
            )
    if state.root_read_only:
        refuse(
            "base.disks", "/", "the root file system is read-only", "check the disk and remount it"
        )
    if state.boot_free_mib is not None and state.boot_free_mib < _BOOT_FREE_MIB:
        refuse(
            "base.disks",
            "/boot",
            f"{state.boot_free_mib} MiB are free, but a kernel update needs {_BOOT_FREE_MIB}",
            "remove old kernels with apt autoremove",
        )
    for index, disk in enumerate(settings.base.disks):
        # Declared for what will be installed; later runs only need room to work.
        wanted_mib = _ROOT_FREE_MIB if state.begun else int(disk.free_gib * 1024)
        free_mib = state.free_mib[disk.path]
        if free_mib < wanted_mib:
            refuse(
                f"base.disks[{index}]",
                disk.path,
                f"{free_mib} MiB are free, but {wanted_mib} are needed",
                "free some space or choose a larger disk",
            )
    for user in settings.ssh.authorised_keys:
        if user not in state.accounts and user not in service_users(settings):
            refuse(
                f"ssh.authorised_keys.{user}",
                user,
                "the host has no such user",
                f"create it with adduser {user}, or remove it here",
            )
    for name, path in settings.base.trusted_cas.items():
        if not Path(path).is_file():
            refuse(
                f"base.trusted_cas.{name}",
                path,
                "there is no such file on this controller",
                "give the path of a PEM file",
            )
    return found


def hosts_file(current: str, settings: HostSettings) -> str:
    """/etc/hosts with our block in it.

    Lines outside the block are kept, except those that give the host's own address another name.
    """
    begin, end = _BLOCK
    lines = current.splitlines()
    before, after = lines, list[str]()
    if begin in lines and end in lines[lines.index(begin) :]:
        first = lines.index(begin)
        before, after = lines[:first], lines[lines.index(end, first) + 1 :]
    block = [
        begin,
        f"127.0.1.1 {settings.hostname}",
        *(f"{address} {name}" for name, address in settings.base.hosts.items()),
        end,
    ]
    kept_before = [line for line in before if line.split()[:1] != ["127.0.1.1"]]
    kept_after = [line for line in after if line.split()[:1] != ["127.0.1.1"]]
    return "\n".join([*kept_before, *block, *kept_after]) + "\n"


def authority_path(name: str) -> str:
    """The path of the private certificate authority ``name`` on the host."""
    return f"{AUTHORITIES}/{name}.crt"


def sysctls_not_in_force(state: BaseState) -> list[str]:
    """Paths below /proc/sys with another value than ours.

    Settings that this kernel lacks are ignored.
    """
    return [
        path
        for path, value in state.sysctls.items()
        for pattern, wanted in SYSCTLS.items()
        if fnmatchcase(path, pattern) and value != wanted
    ]


def audit_rules() -> set[str]:
    """The audit rules in the form that auditctl reads and lists."""
    return {f"-w {path} -p wa -k holdfast" for path in AUDITED_PATHS}


def blacklist_patterns(held_back: list[str]) -> list[str]:
    """``held_back`` prefixes as regular expressions for unattended-upgrades."""
    # Brackets, because a backslash has a meaning of its own in apt.conf.
    return [f"^{prefix.replace('.', '[.]').replace('+', '[+]')}" for prefix in held_back]
