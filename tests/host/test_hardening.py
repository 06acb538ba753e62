"""First targets of an intruder, and what an intruder inside could read or leave behind."""

from __future__ import annotations

import shlex

import pytest
from testinfra.host import Host

from facts.framed import answer, framed
from facts.sections import answers, probe
from holdfast import integrity
from holdfast.base import BLACKLISTED_MODULES, SYSCTLS

Answers = dict[str, list[str]]

_EVERY_INTERFACE_REFUSES = [
    *("ipv4/conf/*/accept_redirects", "ipv4/conf/*/send_redirects"),
    *("ipv4/conf/*/accept_source_route", "ipv6/conf/*/accept_redirects"),
]


@pytest.fixture(scope="module")
def found(host: Host) -> Answers:
    redirects = " ".join(f"/proc/sys/net/{path}" for path in _EVERY_INTERFACE_REFUSES)
    kernel = " ".join(f"/proc/sys/{path}" for path in SYSCTLS if "*" not in path)
    return answers(
        host.check_output(
            probe(
                {
                    "kernel": f"grep -sH '' {kernel}",
                    "redirects": f"grep -sL '^0$' {redirects}",
                    "modules": "modprobe --showconfig | grep ^install",
                    "core": "ulimit -c; ulimit -Hc; systemctl show -P DefaultLimitCORE",
                    "writable": "find /etc /usr/local -xdev -type f -perm -0002 -print",
                    "writable-directories": (
                        "find /etc /opt /srv /usr/local /var/lib -xdev -type d"
                        " -perm -0002 ! -perm -1000 -print"
                    ),
                    "readable": "find /etc/shadow /etc/gshadow /etc/sudoers -perm /0007 -print",
                    "schedules": "find /etc/cron* -maxdepth 0 -perm /0077 -print",
                    "passwordless": "awk -F: '$2 == \"\" { print $1 }' /etc/shadow",
                    "roots": "awk -F: '$3 == 0 { print $1 }' /etc/passwd",
                    "failed": "systemctl --failed --no-legend --plain",
                    # The name is new, so its records were written now.
                    "audit": (
                        "systemctl is-active auditd; f=$(mktemp /etc/holdfast/audited.XXXXXX);"
                        ' rm "$f"; auditctl -s | grep -q "^enabled [12]$" &&'
                        # Its auditctl is a stand-in, so no record would appear.
                        " ! systemd-detect-virt --quiet --container &&"
                        " for look in $(seq 50); do"
                        ' ausearch --input-logs --raw --key holdfast --file "$f" && break;'
                        " sleep 0.2; done"
                    ),
                    "apparmor": (
                        "cat /sys/module/apparmor/parameters/enabled;"
                        " grep -c '(enforce)' /sys/kernel/security/apparmor/profiles"
                    ),
                }
            )
        ).splitlines()
    )


def test_kernel_settings_are_in_force(found: Answers) -> None:
    values = dict(line.removeprefix("/proc/sys/").split(":", 1) for line in found["kernel"])
    assert {path: value for path, value in values.items() if value != SYSCTLS[path]} == {}
    assert values["kernel/kptr_restrict"] == "2"
    assert values["kernel/dmesg_restrict"] == "1"
    assert values["kernel/unprivileged_bpf_disabled"] == "1"
    assert values["fs/suid_dumpable"] == "0"


def test_no_interface_takes_or_sends_redirects(found: Answers) -> None:
    assert found["redirects"] == []


def test_unused_protocols_cannot_be_loaded(found: Answers) -> None:
    # modprobe writes the names of modules with underscores.
    refused = {line.split()[1] for line in found["modules"] if line.endswith(" /bin/false")}
    assert {module.replace("-", "_") for module in BLACKLISTED_MODULES} <= refused


def test_memory_does_not_land_on_disk(found: Answers) -> None:
    assert found["core"] == ["0", "0", "0"]


def test_only_root_can_change_configuration(found: Answers) -> None:
    assert found["writable"] == []
    assert found["writable-directories"] == []


def test_secrets_of_the_system_are_root_s(found: Answers) -> None:
    assert found["readable"] == []
    assert found["schedules"] == []


def test_root_is_alone_and_every_account_has_a_lock(found: Answers) -> None:
    assert found["roots"] == ["root"]
    assert found["passwordless"] == []


def test_a_change_of_configuration_is_on_record(found: Answers) -> None:
    state, *records = found["audit"]
    assert state == "active"
    assert [line for line in records if 'key="holdfast"' in line]


def test_programs_are_confined(found: Answers) -> None:
    enabled, profiles = found["apparmor"]
    assert enabled == "Y"
    assert int(profiles) > 0


def test_no_unit_has_failed(found: Answers) -> None:
    assert found["failed"] == []


def test_changes_are_reported_every_day(host: Host) -> None:
    assert host.run(f"systemctl start {integrity.SERVICE}").succeeded
    timer, mode, told = host.check_output(
        f"systemctl is-active {integrity.TIMER}; stat -c %a {integrity.DATABASE};"
        f" journalctl --output=cat --unit={integrity.SERVICE} --grep='umber of entries:'"
        " --lines=1"
    ).splitlines()
    assert (timer, mode) == ("active", "600")
    assert int(told.split()[-1]) > 1000


def test_a_person_s_new_files_are_their_own(host: Host) -> None:
    login = f"bash --login -c {shlex.quote(framed('umask; echo $TMOUT; ulimit -c'))}"
    theirs, ours = (
        answer(host.check_output(command).splitlines())
        for command in (f"runuser -u nobody -- {login}", login)
    )
    assert theirs == ["0027", "3600", "0"]
    assert ours == ["0022", "3600", "0"]
