"""The base works: names resolve, time and updates run, and the journal survives a crash."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from facts.sections import answers, probe
from holdfast.base import authority_path, blacklist_patterns, service_users
from holdfast.gpu import driver
from holdfast.service import ON_FAILURE
from holdfast.settings import HostSettings

Answers = dict[str, list[str]]


@pytest.fixture(scope="module")
def ground(host: Host, settings: HostSettings) -> Answers:
    names = " ".join([settings.hostname, *settings.base.hosts])
    users = " ".join(service_users(settings))
    authorities = " ".join(map(authority_path, settings.base.trusted_cas)) or "/dev/null"
    return answers(
        host.check_output(
            probe(
                {
                    "hostname": "cat /proc/sys/kernel/hostname /etc/hostname",
                    "names": f"for n in {names}; do getent hosts $n; done",
                    "timezone": "readlink -f /etc/localtime",
                    "locale": ". /etc/default/locale; echo $LANG; locale charmap",
                    "release": '. /etc/os-release; echo "$ID$VERSION_ID"',
                    "interfaces": "ls /sys/class/net",
                    "time": (
                        "systemctl is-active systemd-timesyncd;"
                        " systemctl is-enabled systemd-timesyncd;"
                        " timedatectl show-timesync --property=SystemNTPServers --value"
                    ),
                    "apt": "apt-config dump",
                    "timers": "systemctl is-active apt-daily.timer apt-daily-upgrade.timer",
                    "boots": "journalctl --directory /var/log/journal --quiet --lines=1"
                    " _BOOT_ID=$(tr -d - < /proc/sys/kernel/random/boot_id)",
                    "journal": "systemd-analyze cat-config systemd/journald.conf",
                    "passwd": f"for u in {users}; do getent passwd $u; done",
                    "logins": f"for u in {users}; do su - $u -c true >/dev/null; echo $?; done",
                    "authorities": f"openssl verify {authorities}",
                }
            )
        ).splitlines()
    )


def test_the_host_is_the_one_the_inventory_means(ground: Answers, settings: HostSettings) -> None:
    assert ground["release"][0].replace(".", "") == settings.distribution
    assert set(settings.interfaces) <= set(ground["interfaces"])


def test_its_name_survives_a_reboot(ground: Answers, settings: HostSettings) -> None:
    assert ground["hostname"] == [settings.hostname, settings.hostname]


def test_declared_names_resolve(ground: Answers, settings: HostSettings) -> None:
    resolved = {line.split()[1]: line.split()[0] for line in ground["names"]}
    assert resolved[settings.hostname]
    for name, address in settings.base.hosts.items():
        assert resolved[name] == address


def test_time_zone_and_locale(ground: Answers, settings: HostSettings) -> None:
    assert ground["timezone"][0].endswith(f"/{settings.base.timezone}")
    assert ground["locale"] == [settings.base.locale, "UTF-8"]


def test_the_clock_is_set_from_the_declared_servers(
    ground: Answers, settings: HostSettings
) -> None:
    assert ground["time"][:2] == ["active", "enabled"]
    if settings.base.ntp_servers:
        assert ground["time"][2].split() == settings.base.ntp_servers


def test_security_updates_come_by_themselves_and_leave_the_gpu_alone(
    ground: Answers, settings: HostSettings
) -> None:
    options: dict[str, list[str]] = {}
    for line in ground["apt"]:
        key, _, value = line.partition(" ")
        options.setdefault(key, []).append(value.strip('";'))
    assert options["APT::Periodic::Update-Package-Lists"] == ["1"]
    assert options["APT::Periodic::Unattended-Upgrade"] == ["1"]
    assert options["DPkg::Lock::Timeout"] == [str(settings.base.apt_lock_timeout_seconds)]
    origins = options["Unattended-Upgrade::Origins-Pattern::"]
    assert origins
    assert all("security" in origin for origin in origins)
    assert not [o for o in options.get("Unattended-Upgrade::Allowed-Origins::", []) if o]
    blacklist = options.get("Unattended-Upgrade::Package-Blacklist::", [])
    assert set(blacklist) == set(blacklist_patterns(driver.held_back(settings)))
    assert options["Unattended-Upgrade::Automatic-Reboot"] == ["false"]
    assert ground["timers"] == ["active", "active"]


def test_the_journal_of_this_boot_is_on_disk_and_bounded(
    ground: Answers, settings: HostSettings
) -> None:
    assert ground["boots"], "nothing of this boot is in /var/log/journal"
    limits = [line for line in ground["journal"] if line.startswith("SystemMaxUse=")]
    assert limits[-1] == f"SystemMaxUse={settings.base.journal_max_mib}M"


def test_service_users_exist_and_cannot_log_in(ground: Answers, settings: HostSettings) -> None:
    users = service_users(settings)
    shells = {line.split(":")[0]: line.split(":")[6] for line in ground["passwd"]}
    assert sorted(shells) == users
    assert all(shell.endswith(("/nologin", "/false")) for shell in shells.values())
    if users:
        assert "0" not in ground["logins"]


def test_private_authorities_are_trusted(ground: Answers, settings: HostSettings) -> None:
    wanted = {f"{authority_path(name)}: OK" for name in settings.base.trusted_cas}
    assert wanted <= set(ground["authorities"])


def test_every_unit_of_ours_raises_an_alert_when_it_fails(host: Host) -> None:
    # A template cannot fail; its instances can.
    shown = host.check_output(
        "cd /etc/systemd/system; systemctl show --property=Id,OnFailure"
        " $(ls holdfast-*.service | grep -v '@[.]service$')"
    )
    units = [dict(line.split("=", 1) for line in one.splitlines()) for one in shown.split("\n\n")]
    assert units
    silent = [
        unit["Id"] for unit in units if unit["OnFailure"] != ON_FAILURE.replace("%n", unit["Id"])
    ]
    assert silent == []
