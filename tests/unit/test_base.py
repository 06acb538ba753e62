"""The ground: what the recorded host is, what is refused, what would be mended."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from facts.base import BaseState, Ground
from facts.packages import InstalledPackages
from holdfast import base
from holdfast.render import render
from holdfast.settings import HostSettings
from operations import ground, packages
from tests.unit.local_host import LocalHost
from tests.unit.recorded_facts import read, recorded

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f operator"


def _settings(**own: Any) -> HostSettings:
    values: dict[str, Any] = {
        "hostname": "rack",
        "distribution": "debian13",
        "interfaces": {"eth0": {"role": "management"}, "eth1": {"role": "lan"}},
        "base": {
            "timezone": "Europe/Berlin",
            "hosts": {"nas.home.arpa": "10.77.0.30"},
            "disks": [{"path": "/srv/models", "free_gib": 50}],
        },
        "services": [
            {"name": "probe", "unit": "probe.service", "user": "holdfast-probe", "tier": "T1"}
        ],
        "docker": None,
        "tailnet": None,
    }
    return HostSettings.model_validate(values | own)


def _recorded() -> BaseState:
    # Of a Debian 13 container after a converge; its kernel settings are the controller's.
    state: BaseState = read(Ground)
    return state


def _converged() -> BaseState:
    recorded = _recorded()
    return replace(
        recorded,
        hosts_file=base.hosts_file(recorded.hosts_file, _settings()),
        sysctls={path: base.SYSCTLS[path] for path in base.SYSCTLS if "*" not in path},
        audit_rules=frozenset(base.audit_rules()),
        audit_enabled=True,
        modes=base.MODES,
    )


def test_the_recorded_host_is_read_in_full() -> None:
    state = _recorded()
    assert state.distribution == "debian13"
    assert (state.hostname, state.live_hostname) == ("rack", "rack")
    assert {"eth0", "eth1"} <= state.interfaces
    assert not state.root_read_only
    assert state.begun
    assert state.free_mib == {"/": 64393, "/srv/models": 64393}
    assert state.boot_free_mib is None
    assert state.sysctls["net/ipv4/conf/eth1/send_redirects"] == "1"
    assert state.accounts["holdfast-probe"].shell == "/usr/sbin/nologin"
    assert state.timezone == "Europe/Berlin"
    assert state.legacy_timezone is None
    assert state.locale == "C.UTF-8"
    assert state.authorities == {"lab.crt"}
    assert not state.authorities_outdated
    assert state.modes["/etc/crontab"] == "600"
    assert state.default_core_limit == "0"


def test_a_bare_host_answers_nothing_and_is_still_read() -> None:
    headings = [line for line in recorded(Ground) if line[:2] == "#="]
    state = read(Ground, headings)
    assert not state.begun
    assert state.free_mib == {}
    assert state.locale == ""


def test_the_recorded_host_is_accepted() -> None:
    assert base.refusals("tower", _settings(), _recorded()) == []


@pytest.mark.parametrize(
    ("own", "found", "key", "word"),
    [
        ({"distribution": "debian12"}, {}, "distribution", "debian13"),
        ({"interfaces": {"enp5s0": {"role": "lan"}}}, {}, "interfaces.enp5s0", "eth0, eth0p, eth1"),
        ({}, {"root_read_only": True}, "base.disks", "read-only"),
        ({}, {"boot_free_mib": 12}, "base.disks", "12 MiB"),
        ({}, {"begun": False, "free_mib": {"/srv/models": 40000}}, "base.disks[0]", "51200"),
        ({}, {"free_mib": {"/srv/models": 100}}, "base.disks[0]", "256"),
        (
            {"ssh": {"authorised_keys": {"ada": [KEY]}}},
            {},
            "ssh.authorised_keys.ada",
            "adduser ada",
        ),
        ({"base": {"trusted_cas": {"home": "/no/ca.pem"}}}, {}, "base.trusted_cas.home", "no such"),
    ],
)
def test_what_cannot_work_is_refused_with_its_mend(
    own: dict[str, Any], found: dict[str, Any], key: str, word: str
) -> None:
    state = replace(_recorded(), **found)
    if "base" in own:
        state = replace(state, free_mib={"/": 64393})
    (refusal,) = base.refusals("tower", _settings(**own), state)
    assert (refusal.host, refusal.key) == ("tower", key)
    assert word in str(refusal)


def test_a_full_disk_does_not_stop_the_repair_of_a_running_host() -> None:
    state = replace(_recorded(), free_mib={"/srv/models": 2000})
    assert base.refusals("tower", _settings(), state) == []


@pytest.mark.parametrize(
    ("current", "expected"),
    [
        ("", "{block}"),
        ("127.0.0.1 localhost\n127.0.1.1 debian\n", "127.0.0.1 localhost\n{block}"),
        (
            "a\n# Holdfast: begin\n127.0.1.1 old\n# Holdfast: end\n10.0.0.9 theirs\n",
            "a\n{block}10.0.0.9 theirs\n",
        ),
        # Half a block is somebody's edit: their lines stay and a whole block is added.
        ("# Holdfast: begin\n10.0.0.9 theirs\n", "# Holdfast: begin\n10.0.0.9 theirs\n{block}"),
    ],
)
def test_hosts_keeps_what_others_wrote(current: str, expected: str) -> None:
    block = "# Holdfast: begin\n127.0.1.1 rack\n10.77.0.30 nas.home.arpa\n# Holdfast: end\n"
    written = base.hosts_file(current, _settings())
    assert written == expected.format(block=block)
    assert base.hosts_file(written, _settings()) == written or current.count("begin") == 1


def test_a_converged_host_needs_no_command() -> None:
    host = LocalHost(facts={Ground: _converged()})
    assert host.planned(ground.settled, settings=_settings()) == []


@pytest.mark.parametrize(
    ("wrong", "mend"),
    [
        ({"hostname": "debian"}, "echo rack > /etc/hostname"),
        ({"timezone": "Etc/UTC"}, "ln -sfT /usr/share/zoneinfo/Europe/Berlin /etc/localtime"),
        ({"legacy_timezone": "Etc/UTC"}, "echo Europe/Berlin > /etc/timezone"),
        ({"locale": ""}, "echo LANG=C.UTF-8 > /etc/default/locale"),
        ({"authorities_outdated": True}, "update-ca-certificates"),
        ({"accounts": {}}, "useradd --system"),
        ({"modes": base.MODES | {"/etc/crontab": "644"}}, "chmod 600 /etc/crontab"),
        ({"sysctls": {"kernel/sysrq": "438"}}, ground.SYSCTL_FILE),
        ({"sysctls": {"net/ipv4/conf/veth1/send_redirects": "1"}}, ground.SYSCTL_FILE),
        ({"default_core_limit": "infinity"}, "systemctl daemon-reload"),
        ({"audit_rules": frozenset()}, "augenrules --load"),
        ({"audit_enabled": False}, "auditctl -e 1"),
    ],
)
def test_what_drifted_is_mended_and_only_that(wrong: dict[str, Any], mend: str) -> None:
    host = LocalHost(facts={Ground: replace(_converged(), **wrong)})
    (command,) = host.planned(ground.settled, settings=_settings())
    assert mend in command


def test_a_restart_of_the_journal_leaves_the_audit_on() -> None:
    assert "\nAudit=\n" in render("base/journald.conf.j2", max_mib=1)


def test_a_locale_that_is_not_built_in_is_generated() -> None:
    settings = _settings(base={"timezone": "Europe/Berlin", "locale": "de_DE.UTF-8"})
    assert "locales" in base.packages(settings)
    state = replace(_converged(), hosts_file=base.hosts_file("", settings))
    host = LocalHost(facts={Ground: state})
    generate, write = host.planned(ground.settled, settings=settings)
    assert "'de_DE.UTF-8 UTF-8' >> /etc/locale.gen; locale-gen" in generate
    assert "LANG=de_DE.UTF-8" in write


def test_missing_packages_are_installed_and_present_ones_left_alone() -> None:
    installed = read(InstalledPackages)
    assert installed == {"tzdata": "2026f-0+deb13u1"}
    host = LocalHost(facts={InstalledPackages: installed})
    assert host.planned(packages.present, packages=["tzdata"]) == []
    (command,) = host.planned(packages.present, packages=["tzdata", "locales"])
    assert "tzdata" not in command


APT = """#!/bin/sh
# As apt-get: nothing is installed while dpkg is interrupted, the package lists are missing or a
# package is torn, and a torn one is unpacked again on request.
for word; do
    case $word in
        update) touch {0}/lists; exit 0 ;;
        install) [ -e {0}/lists ] && [ ! -e {0}/interrupted ] || exit 100 ;;
        containerd) case "$*" in *--reinstall*) rm -f {0}/torn; exit 0 ;; esac ;;
    esac
done
[ ! -e {0}/torn ] || exit 100
touch {0}/installed
"""
DPKG = """#!/bin/sh
case "$*" in *--configure*) rm -f {0}/interrupted ;; esac
[ ! -e {0}/torn ]
"""
DPKG_QUERY = """#!/bin/sh
# As dpkg-query of such a machine, with what it was asked for.
case "$*" in *'{{db:Status-Eflag}} ${{Package}}'*) ;; *) exit 2 ;; esac
echo 'ok tzdata'
[ ! -e {0}/torn ] || echo 'reinstreq containerd'
"""
TROUBLE = ("interrupted", "lists", "torn")


@pytest.mark.parametrize(
    "trouble", [some for count in range(4) for some in combinations(TROUBLE, count)]
)
def test_an_installation_survives_what_a_power_cut_leaves(
    tmp_path: Path, trouble: tuple[str, ...]
) -> None:
    for name, program in {"apt-get": APT, "dpkg": DPKG, "dpkg-query": DPKG_QUERY}.items():
        (tmp_path / name).write_text(program.format(tmp_path))
        (tmp_path / name).chmod(0o755)
    for name in {"interrupted", "torn"} & set(trouble):
        (tmp_path / name).touch()
    if "lists" not in trouble:
        (tmp_path / "lists").touch()
    host = LocalHost(programs=tmp_path, facts={InstalledPackages: {}})
    _, complaint = host.apply(packages.present, packages=["locales"])
    assert not complaint
    assert (tmp_path / "installed").exists()


def test_held_back_prefixes_become_anchored_patterns() -> None:
    patterns = base.blacklist_patterns(["nvidia-", "libstdc++", "python3.11"])
    assert patterns == ["^nvidia-", "^libstdc[+][+]", "^python3[.]11"]
    text = render("base/apt.conf.j2", lock_timeout_seconds=300, blacklist=patterns)
    assert '  "^nvidia-";\n' in text


@pytest.mark.parametrize("forbidden", ["forward", "rp_filter", "modules_disabled", "userns"])
def test_nothing_is_set_that_docker_tailscale_or_nvidia_needs(forbidden: str) -> None:
    assert not [path for path in base.SYSCTLS if forbidden in path]
