"""The container machine, really booted: `pytest -m lab tests/lab/test_container_live.py`.

It takes root and half a minute, and no emulation.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.container_machine import ContainerMachine
from tests.lab.images import ensure_image
from tests.lab.machine import MachineError, Spec

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
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerMachine]:
    directory = tmp_path_factory.mktemp("lab") / "box"
    machine = ContainerMachine(directory, SPEC, ensure_image("debian-13", "rack"))
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
    assert Path(f"/proc/{orphan}/exe").exists()
    boot(ContainerMachine(box.directory, SPEC, box.image))
    assert not Path(f"/proc/{orphan}/exe").exists()
    assert Path("/proc/self/mounts").read_text() == mounts


def test_the_controllers_sysctls_cannot_be_changed(box: ContainerMachine) -> None:
    box.fail("sysctl -w kernel.panic=7")
    box.succeed("sysctl -w net.ipv4.ip_forward=1")


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
