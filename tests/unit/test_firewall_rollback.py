"""The firewall's way back, really run: the program as hosts get it, below a root of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from facts.firewall import GUARD, PROGRAM, ROLLBACK_STATE
from holdfast.firewall import DOCKER_USER, ROLLBACK_UNIT, programs
from holdfast.host_programs import firewall as firewall_program
from holdfast.service import texts
from holdfast.shipping import text_of

OLD, NEW = "-A ufw-user-input -p tcp --dport 22 -j ACCEPT\n", "# nothing gets in\n"
_UFW_INIT = """#!/bin/sh
# What ufw-init does to the kernel: nothing of ufw's is in force, or what its files say; where
# something is in force already it says so and does nothing.
ulimit -S -f unlimited
[ ! -e {root}/ufw-init-fails ] || exit 1
[ -e {root}/shut ] || [ ! -s {root}/in-force ] || echo "$1" >> {root}/open
case $1 in
force-stop) : > {root}/in-force ;;
start) [ -s {root}/in-force ] ||
    cat {root}/etc/ufw/user.rules {root}/etc/default/ufw > {root}/in-force ;;
esac
"""
_SYSTEMD_RUN = """#!/bin/sh
# One transient timer: the unit that it will start, once it runs out.
for word; do
    case $word in --unit=*) echo "${word#*=}" > {root}/timer ;; esac
done
"""
_SYSTEMCTL = """#!/bin/sh
[ "$1" = stop ] && rm {root}/timer
"""
_DOCKER_USER = """#!/bin/sh
ulimit -S -f unlimited
echo guarded >> {root}/in-force
"""
_IPTABLES = """#!/bin/sh
sed -n '/^-/p' {root}/in-force
"""
_NFT = """#!/bin/sh
[ "$1" = delete ] && rm {root}/shut || touch {root}/shut
"""


@dataclass(frozen=True)
class Host:
    """A host's files below ``root``; what the kernel has is in the file ``in-force``."""

    root: Path

    def __post_init__(self) -> None:
        for folder in ("etc/ufw", "etc/default", "lib/ufw", "bin", "run", "usr/sbin"):
            (self.root / folder).mkdir(parents=True)
        self._program("lib/ufw/ufw-init", _UFW_INIT)
        self._program("bin/systemd-run", _SYSTEMD_RUN)
        self._program("bin/systemctl", _SYSTEMCTL)
        self._program("docker-user", _DOCKER_USER)
        self._program("usr/sbin/iptables", _IPTABLES)
        self._program("usr/sbin/nft", _NFT)
        text = text_of(firewall_program)
        text = text.replace(f'"{firewall_program.DOCKER_USER}"', f'"{self.root}/docker-user"')
        text = text.replace(f'"{ROLLBACK_STATE}"', f'"{self.root}/kept"')
        text = text.replace(f'"{firewall_program.DOCKER[0]}"', '"/bin/sh"')
        text = text.replace(f'"{firewall_program.IPV6}"', '"/nowhere"')
        for folder in ("etc", "lib", "run", "usr/sbin"):
            text = text.replace(f'"/{folder}/', f'"{self.root}/{folder}/')
        self._program("rollback", text)
        self.become(OLD, "yes")

    def _program(self, name: str, text: str) -> None:
        path = self.root / name
        path.write_text(text.replace("{root}", str(self.root)))
        path.chmod(0o755)

    def _call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env={"PATH": f"{self.root}/bin:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )

    def become(self, rules: str, ipv6: str) -> None:
        """Have other rules and options, in ufw's files and in force."""
        (self.root / "etc/ufw/user.rules").write_text(rules)
        (self.root / "etc/default/ufw").write_text(f"IPV6={ipv6}\n")
        for verb in ("force-stop", "start"):
            assert self._call(f"{self.root}/lib/ufw/ufw-init", verb).returncode == 0

    def rollback(self, *words: str) -> int:
        """Call the program; its exit status."""
        return self.say(*words).returncode

    def say(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Call the program."""
        return self._call(f"{self.root}/rollback", *words)

    def change(self, rules: str = NEW) -> None:
        """Change the firewall as `operations.ufw` does, up to the proof."""
        assert self.rollback("keep") == 0
        assert self.rollback("arm", "180") == 0
        self.become(rules, "no")

    @property
    def is_armed(self) -> bool:
        """Whether a deadline runs."""
        return (self.root / "timer").exists()

    def run_out(self, room: str = "unlimited") -> int:
        """The deadline passes; ``room`` is what may be written to a file then, in 512 bytes."""
        timer = self.root / "timer"
        assert timer.read_text().strip() == ROLLBACK_UNIT
        timer.unlink()
        return self._start_unit(room)

    def boot(self) -> None:
        """After a power cut: no timer is left, and what the unit of the rollback says is done."""
        (self.root / "timer").unlink(missing_ok=True)
        assert self._start_unit() == 0

    def _start_unit(self, room: str = "unlimited") -> int:
        """What systemd does for the unit; the exit status of its command."""
        unit = texts(programs())[f"/etc/systemd/system/{ROLLBACK_UNIT}"]
        lines = (line.split("=", 1) for line in unit.splitlines() if "=" in line)
        told = {name: value for name, value in lines if not name.startswith("#")}
        condition = told["ConditionPathExists"].replace(ROLLBACK_STATE, f"{self.root}/kept")
        command = told["ExecStart"].replace(PROGRAM, f"{self.root}/rollback")
        if not Path(condition).exists():
            return 0
        limited = f'ulimit -S -f {room}; exec "$@"'
        return self._call("sh", "-c", limited, "sh", *shlex.split(command)).returncode

    @property
    def in_force(self) -> str:
        """What the kernel has."""
        return (self.root / "in-force").read_text()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


FORMER = f"{OLD}IPV6=yes\nguarded\n"


def test_what_is_not_proved_is_undone_at_the_deadline(host: Host) -> None:
    host.change()
    assert host.in_force == f"{NEW}IPV6=no\n"
    assert host.run_out() == 0
    # In the kernel, and in the files that the next boot reads.
    assert host.in_force == FORMER
    assert (host.root / "etc/ufw/user.rules").read_text() == OLD
    assert (host.root / "etc/default/ufw").read_text() == "IPV6=yes\n"


def test_what_is_not_proved_is_undone_by_the_next_boot(host: Host) -> None:
    host.change()
    host.boot()
    assert host.in_force == FORMER
    host.become(NEW, "no")
    host.boot()
    assert host.in_force == f"{NEW}IPV6=no\n", "it was undone twice"


def test_a_second_change_before_a_proof_leads_back_to_what_was_proved(host: Host) -> None:
    host.change()
    host.change("# nor this\n")
    assert host.run_out() == 0
    assert host.in_force == FORMER


def test_keeping_anew_ends_the_deadline_that_was_set_before(host: Host) -> None:
    host.change()
    assert host.rollback("keep") == 0
    assert not host.is_armed


def test_what_was_proved_stays(host: Host) -> None:
    host.change()
    assert host.rollback("disarm") == 0
    assert not host.is_armed
    host.boot()
    assert host.rollback("restore") == 0
    assert host.in_force == f"{NEW}IPV6=no\n"
    assert not [*(host.root / "etc").rglob("*.kept")]


def test_what_was_proved_is_what_the_next_change_leads_back_to(host: Host) -> None:
    host.change()
    assert host.rollback("disarm") == 0
    host.change("# nor this\n")
    assert host.run_out() == 0
    assert host.in_force == f"{NEW}IPV6=no\nguarded\n"


def test_a_proof_that_comes_too_late_is_none(host: Host) -> None:
    host.change()
    assert host.run_out() == 0
    late = host.say("disarm")
    assert late.returncode == 1
    assert "came after the deadline" in late.stderr
    assert host.in_force == FORMER


def test_a_copy_that_a_power_cut_left_half_made_is_made_again(host: Host) -> None:
    (host.root / "etc/ufw/.user.rules.kept").write_text("half of a ru")
    host.change()
    assert host.run_out() == 0
    assert host.in_force == FORMER


def test_a_way_back_that_fails_is_tried_again_at_boot(host: Host) -> None:
    host.change()
    assert host.rollback("typo") == 2
    (host.root / "ufw-init-fails").touch()
    assert host.run_out() != 0
    (host.root / "ufw-init-fails").unlink()
    host.boot()
    assert host.in_force == FORMER


def test_a_full_disk_does_not_hold_up_the_way_back(host: Host) -> None:
    host.change()
    assert host.run_out(room="0") == 0
    assert host.in_force == FORMER


def test_a_file_that_cannot_be_restored_leaves_no_host_without_a_firewall(host: Host) -> None:
    host.change()
    rules = host.root / "etc/ufw/before.rules"
    (host.root / "etc/ufw/.before.rules.kept").write_text("# proved\n")
    rules.mkdir()
    assert host.run_out() != 0
    assert "guarded" in host.in_force
    rules.rmdir()
    host.boot()
    assert host.in_force == FORMER
    assert rules.read_text() == "# proved\n"


def test_the_way_back_has_no_open_moment(host: Host) -> None:
    host.change()
    opened = host.root / "open"
    assert opened.read_text() == "force-stop\n", "ufw alone opens it"
    opened.unlink()
    assert host.run_out() == 0
    assert not opened.exists()
    assert not (host.root / "shut").exists(), "the guard stayed"


def test_the_guard_goes_with_a_way_back_that_fails(host: Host) -> None:
    host.change()
    (host.root / "ufw-init-fails").touch()
    assert host.run_out() != 0
    assert not (host.root / "shut").exists()


def test_the_program_and_the_facts_mean_the_same_chains() -> None:
    assert firewall_program.CHAINS == (DOCKER_USER, GUARD)
