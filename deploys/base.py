"""The base: names, time, packages, journal, kernel settings and accounts."""

from __future__ import annotations

from pathlib import Path

from pyinfra import host
from pyinfra.api.deploy import deploy

from facts.base import AUTHORITIES
from holdfast import base, integrity
from holdfast.gpu import driver
from holdfast.refusal import Refused
from holdfast.render import render
from holdfast.settings import HostSettings
from operations import ground, host_files, packages, program, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit

_JOURNAL = "/etc/systemd/journald.conf.d/holdfast.conf"
_TIME = "/etc/systemd/timesyncd.conf.d/holdfast.conf"
_AUDIT_RULES = "/etc/audit/rules.d/holdfast.rules"


@deploy("Base")
def apply(settings: HostSettings) -> None:
    """Refuse a host that is not as declared, then apply the base settings.

    Raises:
        Refused: distribution, interfaces, disks or accounts are not as declared; nothing was
            changed on any host.
    """
    state = ground.ground_of_host(settings)
    if refusals := base.refusals(host.name, settings, state):
        raise Refused(refusals)

    packages.present(
        name="Install the packages the ground needs",
        packages=base.packages(settings),
    )
    authorities = [
        HostFile(base.authority_path(name), Path(path).read_text(encoding="utf-8"))
        for name, path in settings.base.trusted_cas.items()
    ]
    wanted_authorities = {Path(file.path).name for file in authorities}
    host_files.place(
        name="Place the ground's configuration",
        directories=[host_files.CONFIGURATION, HostDirectory(AUTHORITIES)],
        files=[*_files(settings), *authorities],
        absent=[
            *(f"{AUTHORITIES}/{name}" for name in state.authorities - wanted_authorities),
            *([] if settings.base.ntp_servers else [_TIME]),
        ],
    )
    ground.settled(name="Settle names, accounts and kernel settings", settings=settings)
    units.settle(
        name="Run time synchronisation, the journal, audit, integrity and unattended upgrades",
        units=[
            Unit("systemd-journald.service", restart_after=[_JOURNAL]),
            Unit("systemd-timesyncd.service", restart_after=[_TIME]),
            Unit("apparmor.service"),
            Unit("auditd.service"),
            *program.settled([integrity.program()]),
            Unit("apt-daily.timer"),
            Unit("apt-daily-upgrade.timer"),
        ],
    )


def _files(settings: HostSettings) -> list[HostFile]:
    own = settings.base
    issue = render("base/issue.j2")
    files = [
        HostFile(
            "/etc/apt/apt.conf.d/90holdfast",
            render(
                "base/apt.conf.j2",
                lock_timeout_seconds=own.apt_lock_timeout_seconds,
                blacklist=base.blacklist_patterns(driver.held_back(settings)),
            ),
        ),
        HostFile(_JOURNAL, render("base/journald.conf.j2", max_mib=own.journal_max_mib)),
        HostFile(ground.SYSCTL_FILE, render("base/sysctl.conf.j2", sysctls=base.SYSCTLS)),
        HostFile(
            "/etc/modprobe.d/holdfast.conf",
            render("base/modprobe.conf.j2", modules=base.BLACKLISTED_MODULES),
        ),
        # The memory of services holds API keys, so no core files are written.
        HostFile("/etc/security/limits.d/holdfast.conf", "* hard core 0\nroot hard core 0\n"),
        HostFile("/etc/systemd/system.conf.d/holdfast.conf", "[Manager]\nDefaultLimitCORE=0\n"),
        HostFile(
            "/etc/systemd/coredump.conf.d/holdfast.conf",
            "[Coredump]\nStorage=none\nProcessSizeMax=0\n",
        ),
        HostFile(
            _AUDIT_RULES,
            render("base/audit.rules.j2", rules=sorted(base.audit_rules())),
            mode="640",
        ),
        *program.placed([integrity.program()]),
        # needrestart only lists what to restart; a restart would stop every model that is being
        # served.
        HostFile("/etc/needrestart/conf.d/holdfast.conf", "$nrconf{restart} = 'l';\n"),
        HostFile("/etc/profile.d/holdfast.sh", render("base/profile.sh.j2")),
        HostFile("/etc/issue", issue),
        HostFile("/etc/issue.net", issue),
    ]
    if own.ntp_servers:
        files.append(HostFile(_TIME, render("base/timesyncd.conf.j2", servers=own.ntp_servers)))
    return files
