"""The basic state of a host, in one command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from facts.framed import Framed
from facts.sections import answers, probe

AUTHORITIES = "/usr/local/share/ca-certificates/holdfast"
"""Contains only the private authorities of the inventory."""


@dataclass(frozen=True)
class Account:
    """One line of the password database."""

    uid: int
    shell: str
    home: str


@dataclass(frozen=True)
class BaseState:
    """What `Ground` found.

    ``distribution`` is ID and VERSION_ID without dots ("debian13", "ubuntu2404").
    ``free_mib`` maps each requested path to the free space of its present or future file system.
    ``boot_free_mib`` is None if /boot is not a separate file system. ``sysctls`` are by path below
    /proc/sys. ``modes`` are octal, for the requested paths that exist.
    """

    distribution: str
    hostname: str
    live_hostname: str
    interfaces: frozenset[str]
    root_read_only: bool
    begun: bool
    """Whether Holdfast has been deployed before."""
    free_mib: dict[str, int]
    boot_free_mib: int | None
    sysctls: dict[str, str]
    accounts: dict[str, Account]
    hosts_file: str
    timezone: str
    legacy_timezone: str | None
    """The content of /etc/timezone, if the distribution still has it."""
    locale: str
    authorities: frozenset[str]
    authorities_outdated: bool
    modes: dict[str, str]
    default_core_limit: str
    audit_rules: frozenset[str]
    """The kernel's audit rules as auditctl lists them."""
    audit_enabled: bool
    """Whether the kernel records what these rules name."""


class Ground(Framed[BaseState]):
    """Everything that `base` needs to know of a host, in one remote command."""

    def command(
        self, disks: list[str], accounts: list[str], sysctls: list[str], modes: list[str]
    ) -> str:
        """Build the probe.

        Args:
            disks: paths whose free space is requested; they need not exist.
            accounts: user names.
            sysctls: paths below /proc/sys, shell patterns allowed.
            modes: paths whose modes are requested.
        """
        wanted_disks = " ".join(map(shlex.quote, disks)) or "/"
        wanted_accounts = " ".join(map(shlex.quote, accounts)) or "root"
        wanted_modes = " ".join(map(shlex.quote, modes)) or "/"
        wanted_sysctls = " ".join(f"/proc/sys/{path}" for path in sysctls) or "/dev/null"
        bundle = "/etc/ssl/certs/ca-certificates.crt"
        questions = {
            "os": "cat /etc/os-release",
            "hostname": "cat /etc/hostname",
            "live-hostname": "cat /proc/sys/kernel/hostname",
            "interfaces": "ls /sys/class/net",
            "mounts": "cat /proc/mounts",
            "begun": "ls -d /etc/holdfast",
            # The path may not exist yet: its nearest ancestor shows the file system.
            "disks": (
                f"set --; for p in {wanted_disks}; do echo $p;"
                ' until [ -e "$p" ]; do p=${p%/*}; p=${p:-/}; done; set -- "$@" "$p"; done;'
                ' df -m --output=avail -- "$@"'
            ),
            "boot": "df -m --output=avail,target /boot",
            "sysctls": f"grep -sH '' {wanted_sysctls}",
            "accounts": f"getent passwd {wanted_accounts}",
            "hosts": "cat /etc/hosts",
            "timezone": "readlink /etc/localtime",
            "legacy-timezone": "cat /etc/timezone",
            "locale": "cat /etc/default/locale",
            "authorities": f"ls {AUTHORITIES}",
            "authorities-outdated": (
                f"find /usr/local/share/ca-certificates -newer {bundle} -print -quit"
            ),
            "modes": f"stat --format='%a %n' -- {wanted_modes}",
            "core": "systemctl show --property=DefaultLimitCORE --value",
            "audit": "auditctl -l",
            "audit-enabled": "auditctl -s | grep '^enabled [12]$'",
        }
        return probe(questions)

    def process(self, output: list[str]) -> BaseState:
        """Parse the probe's output."""
        sections = answers(output)

        def first(name: str) -> str:
            return next(iter(sections.get(name, [])), "").strip()

        release = dict(line.split("=", 1) for line in sections["os"] if "=" in line)
        mounts = [line.split() for line in sections["mounts"]]
        boot = sections["boot"][-1].split() if sections["boot"] else []
        # The requested paths, a heading, then the free space of each.
        asked = len(sections["disks"]) // 2
        disks, free = sections["disks"][:asked], sections["disks"][asked + 1 :]
        accounts = (line.split(":") for line in sections["accounts"])
        locale = dict(line.split("=", 1) for line in sections["locale"] if "=" in line)
        return BaseState(
            distribution=(release.get("ID", "") + release.get("VERSION_ID", ""))
            .replace('"', "")
            .replace(".", ""),
            hostname=first("hostname"),
            live_hostname=first("live-hostname"),
            interfaces=frozenset(sections["interfaces"]),
            root_read_only=any(mount[1] == "/" and "ro" in mount[3].split(",") for mount in mounts),
            begun=bool(sections["begun"]),
            free_mib=dict(zip(disks, map(int, free), strict=True)),
            boot_free_mib=int(boot[0]) if boot[-1:] == ["/boot"] else None,
            sysctls={
                path.removeprefix("/proc/sys/"): " ".join(value.split())
                for path, _, value in (line.partition(":") for line in sections["sysctls"])
            },
            accounts={
                fields[0]: Account(uid=int(fields[2]), home=fields[5], shell=fields[6])
                for fields in accounts
            },
            hosts_file="\n".join(sections["hosts"]),
            timezone=first("timezone").partition("zoneinfo/")[2],
            legacy_timezone=first("legacy-timezone") or None,
            locale=locale.get("LANG", "").strip("\"'"),
            authorities=frozenset(sections["authorities"]),
            authorities_outdated=bool(sections["authorities-outdated"]),
            modes={path: mode for mode, _, path in (x.partition(" ") for x in sections["modes"])},
            default_core_limit=first("core"),
            audit_rules=frozenset(sections["audit"]),
            audit_enabled=bool(sections.get("audit-enabled")),
        )
