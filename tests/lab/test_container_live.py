"""The container machine, really booted: `pytest -m lab tests/lab/test_container_live.py`.

It takes root and half a minute, and no emulation.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.base import SYSCTLS
from tests.lab.container_machine import LAN_INTERFACE, ContainerMachine
from tests.lab.images import ensure_image
from tests.lab.lan import Neighbour
from tests.lab.machine import MachineError, Spec
from tests.lab.services.daemon import wait_until

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container machine needs root"),
]

SPEC = Spec("box", variant="rack", host_number=10, memory_mib=2048, cpus=2)
PATIENCE_SECONDS = 120


def boot(machine: ContainerMachine) -> ContainerMachine:
    machine.start()
    machine.wait_for_boot(PATIENCE_SECONDS)
    machine.wait_for_ssh(PATIENCE_SECONDS)
    return machine


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbour]:
    lan = Neighbour(tmp_path_factory.mktemp("lan"))
    lan.start()
    yield lan
    lan.stop()


@pytest.fixture(scope="module")
def box(
    tmp_path_factory: pytest.TempPathFactory, neighbour: Neighbour
) -> Iterator[ContainerMachine]:
    directory = tmp_path_factory.mktemp("lab") / "box"
    image = ensure_image("debian-13", "rack")
    machine = ContainerMachine(directory, SPEC, image, {LAN_INTERFACE: neighbour.namespace})
    try:
        yield boot(machine)
    finally:
        machine.power_off()


def test_commands_say_how_they_ended(box: ContainerMachine) -> None:
    assert box.execute("echo out; echo err >&2; exit 3") == (3, "out\n")
    assert box.run("cat", stdin=b"through").stdout == "through"
    assert box.run("sleep 60", timeout_seconds=1).returncode == 124


def test_it_boots_whole_and_keeps_its_disk(box: ContainerMachine) -> None:
    assert box.succeed("systemctl is-system-running") == "running\n"
    box.succeed("touch /root/kept")
    before = box.succeed("cat /proc/sys/kernel/random/boot_id")
    box.reboot(PATIENCE_SECONDS)
    assert box.succeed("cat /proc/sys/kernel/random/boot_id") != before
    box.wait_for_ssh(PATIENCE_SECONDS)
    box.shutdown(PATIENCE_SECONDS)
    with pytest.raises(MachineError, match="has no power"):
        box.run("true")
    boot(box).succeed("test -e /root/kept")


def test_nothing_is_left_of_a_machine_whose_keeper_was_killed(box: ContainerMachine) -> None:
    mounts = Path("/proc/self/mounts").read_text()
    orphan = int((box.directory / "init.pid").read_text())
    os.kill(int((box.directory / "supervisor.pid").read_text()), signal.SIGKILL)
    wait_until(lambda: not box.running(), "the keeper's end", PATIENCE_SECONDS)
    assert Path(f"/proc/{orphan}/exe").exists()
    boot(ContainerMachine(box.directory, SPEC, box.image, box.cables))
    assert not Path(f"/proc/{orphan}/exe").exists()
    assert Path("/proc/self/mounts").read_text() == mounts


def sysctl(path: str) -> str:
    return Path("/proc/sys", path).read_text()


def test_the_controllers_sysctls_cannot_be_changed(box: ContainerMachine) -> None:
    wanted = {path: "3" for path in SYSCTLS if not path.startswith("net/")}
    before = {path: sysctl(path) for path in wanted if Path("/proc/sys", path).exists()}
    assert "3\n" not in before.values()
    assert before, "this kernel has none of what a site sets"
    lines = "\n".join(f"{path} = 3" for path in before)
    box.succeed(f"cat > /etc/sysctl.d/zz-trial.conf <<'END'\n{lines}\nEND")
    for put_in_force in ("systemctl restart systemd-sysctl", "reboot"):
        if put_in_force == "reboot":
            box.reboot(PATIENCE_SECONDS)
        else:
            box.execute(put_in_force)
        assert {path: sysctl(path) for path in before} == before
        assert {box.succeed(f"cat /proc/sys/{path}") for path in before} == {"3\n"}
    box.succeed("rm /etc/sysctl.d/zz-trial.conf")
    box.wait_for_ssh(PATIENCE_SECONDS)


def test_its_network_follows_its_own_sysctls(box: ContainerMachine) -> None:
    other = {"0": "1", "1": "0"}[sysctl("net/ipv4/ip_forward").strip()]
    box.succeed(f"sysctl -w net.ipv4.ip_forward={other}")
    assert sysctl("net/ipv4/ip_forward").strip() != other


def test_the_controllers_clock_cannot_be_set(box: ContainerMachine) -> None:
    # To the time that it shows: no harm is done where it can be.
    setting = "date --set=@$(date +%s.%N)"
    box.fail(setting)
    box.fail(f"systemd-run --quiet --wait --collect bash -c {shlex.quote(setting)}")
    assert box.succeed("systemctl is-active systemd-timesyncd") == "active\n"


def open_ports(neighbour: Neighbour) -> set[str]:
    """What the neighbour sees open of the first 100 ports, as ADDRESS:PORT."""
    seen = set()
    for family, address in (("", SPEC.lan_ipv4), ("-6", SPEC.lan_ipv6)):
        shown = neighbour.succeed(f"nmap {family} -n -p1-100 -oG - {address}")
        seen |= {f"{address}:{port}" for port in re.findall(r"(\d+)/open/", shown)}
    return seen


def test_a_neighbour_on_its_lan_reaches_it_after_every_boot(
    box: ContainerMachine, neighbour: Neighbour
) -> None:
    reached = {f"{SPEC.lan_ipv4}:22", f"{SPEC.lan_ipv6}:22"}
    assert open_ports(neighbour) == reached
    box.reboot(PATIENCE_SECONDS)
    assert box.succeed("ip -6 address show tentative") == ""
    box.wait_for_ssh(PATIENCE_SECONDS)
    assert open_ports(neighbour) == reached
    box.crash()
    boot(box)
    assert open_ports(neighbour) == reached


def test_a_lan_that_is_cut_carries_nothing(box: ContainerMachine, neighbour: Neighbour) -> None:
    neighbour.cut()
    assert open_ports(neighbour) == set()
    assert box.succeed(f"cat /sys/class/net/{LAN_INTERFACE}/carrier") == "1\n"
    neighbour.heal()
    assert open_ports(neighbour)
    box.block()
    assert box.succeed(f"cat /sys/class/net/{LAN_INTERFACE}/carrier") == "0\n"
    assert open_ports(neighbour) == set()
    box.unblock()
    box.wait_until_succeeds(f"grep 1 /sys/class/net/{LAN_INTERFACE}/carrier", PATIENCE_SECONDS)
    assert open_ports(neighbour)


def test_a_network_card_has_its_unit(box: ContainerMachine) -> None:
    unit = "sys-subsystem-net-devices-late0.device"
    for _ in range(2):
        box.succeed("ip link add late0 type bridge")
        box.wait_for_unit(unit, 10)
        box.succeed("ip link delete late0")
        box.wait_until_fails(f"systemctl is-active {unit}", 10)
        box.reboot(PATIENCE_SECONDS)
    box.succeed("test -w /sys/class/net/lo/ifalias")
    for foreign in ("/sys/module/kernel/parameters/panic", "/sys/power", "/sys/block"):
        assert Path(foreign).exists()
        box.fail(f"test -w {foreign}")


def test_a_disk_that_was_saved_is_gone_back_to(box: ContainerMachine) -> None:
    for name in ("first", "second"):
        box.succeed(f"echo {name} > /root/which && touch /root/{name} && rm -f /root/kept")
        box.save(name)
        box.succeed(f"rm /root/{name} && echo since > /root/which")
    box.restore("second")
    assert box.succeed("cat /root/which; ls /root/second") == "second\n/root/second\n"
    box.restore("first")
    assert box.succeed("cat /root/which; ls /root/first") == "first\n/root/first\n"
    box.fail("test -e /root/second")
    with pytest.raises(MachineError, match="no disk saved as 'second'"):
        box.restore("second")
    with pytest.raises(MachineError, match="another tag"):
        box.save("first")


def test_audit_has_its_stand_in_by_each_installation(box: ContainerMachine) -> None:
    box.succeed("apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install auditd")
    box.succeed("echo '-w /etc/hosts -p wa -k lab' > /etc/audit/rules.d/lab.rules")
    box.succeed("augenrules --load && systemctl is-active auditd")
    assert box.succeed("auditctl -l") == "-w /etc/hosts -p wa -k lab\n"
    box.succeed("auditctl -D")
    assert box.succeed("auditctl -l") == "No rules\n"
    box.reboot(PATIENCE_SECONDS)
    assert box.succeed("auditctl -l; systemctl is-active auditd").split("\n")[:2] == [
        "-w /etc/hosts -p wa -k lab",
        "active",
    ]
    box.succeed("dpkg --verify auditd && test -x /usr/sbin/auditctl.distrib")


TRIALS = {
    "PrivateNetwork=yes": '[ "$(ip -o link | wc -l)" = 1 ]',
    "PrivateUsers=yes": "! grep -q 4294967295 /proc/self/uid_map",
    "PrivateDevices=yes": "! mknod /run/trial c 1 3",
    "DevicePolicy=closed": "! : 2>/dev/null < /dev/tun",
    "IPAddressDeny=any": "! ping -c 1 -W 1 127.0.0.1",
    "SystemCallFilter=~@mount": "! mount -t tmpfs tmpfs /mnt",
    "ProtectSystem=strict": "! touch /etc/trial",
    "ProtectHome=yes": "! ls /root/.bashrc",
    "User=nobody ProtectProc=invisible": "! ls -d /proc/1",
    "ProtectControlGroups=yes": "! mkdir /sys/fs/cgroup/trial",
    "RestrictNamespaces=yes": "! unshare --uts true",
    "RestrictAddressFamilies=AF_UNIX": "! ip -o link",
    "CapabilityBoundingSet=": "grep -q 'CapEff:.0*$' /proc/self/status",
    "MemoryMax=32M MemorySwapMax=0": "! tail -c 128M /dev/zero",
    "LoadCredential=word:/etc/hostname": 'test -s "$CREDENTIALS_DIRECTORY/word"',
}
"""A directive to a command that ends well where, and only where, it is enforced."""


@pytest.mark.parametrize("directive", TRIALS)
def test_a_directive_of_systemds_sandbox_is_enforced(box: ContainerMachine, directive: str) -> None:
    if directive.startswith("Memory") and "memory" not in box.controllers():
        pytest.skip("the controller's cgroup v1 holds the memory controller")
    box.succeed("[ -e /dev/tun ] || mknod /dev/tun c 10 200")
    trial = shlex.quote(TRIALS[directive])
    options = " ".join(f"-p {shlex.quote(part)}" for part in directive.split())
    unit = "systemd-run --quiet --wait --collect -p PrivateMounts=yes"
    box.succeed(f"{unit} {options} bash -c {trial}")
    box.fail(f"{unit} bash -c {trial}")
