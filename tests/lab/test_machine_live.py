"""The lab against real machines: `pytest -m lab tests/lab`. Minutes under emulation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, MachineError

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("lab")
    with Lab.create(directory, machines=("rack", "neighbour")) as rack_and_neighbour:
        rack_and_neighbour.start(warm=("rack", "neighbour"))
        yield rack_and_neighbour


def ping(lab: Lab, address: str) -> bool:
    return lab.neighbour.execute(f"ping -c 1 -W 20 {address}")[0] == 0


def host_key(lab: Lab) -> str:
    return lab.rack.succeed("cat /etc/ssh/ssh_host_ed25519_key.pub /etc/machine-id")


def test_commands_say_how_they_ended(lab: Lab) -> None:
    assert lab.rack.execute("echo out; echo err >&2; exit 3") == (3, "out\n")
    assert lab.rack.fail("false") == ""
    with pytest.raises(MachineError, match="ended with 1, not 0"):
        lab.rack.succeed("false")
    with pytest.raises(MachineError, match="succeeded"):
        lab.rack.fail("true")
    assert lab.rack.run("cat", stdin=b"through").stdout == "through"
    assert lab.rack.run("sleep 60", timeout_seconds=2).returncode == 124


def test_a_unit_is_waited_for_and_a_failed_one_is_not(lab: Lab) -> None:
    lab.rack.wait_for_unit("ssh.service")
    lab.rack.succeed("systemd-run --unit=doomed --service-type=oneshot false || true")
    with pytest.raises(MachineError, match=r"doomed\.service failed on rack"):
        lab.rack.wait_for_unit("doomed.service")


def test_the_lan_carries_both_families_and_can_be_cut(lab: Lab) -> None:
    lab.network.reset_counts()
    assert ping(lab, "10.77.0.10")
    assert ping(lab, "fd77::10")
    assert lab.network.counts()["neighbour", "rack"].frames >= 2
    lab.network.cut("rack", "neighbour")
    assert not ping(lab, "10.77.0.10")
    assert not ping(lab, "fd77::10")
    lab.network.heal("rack", "neighbour")
    assert ping(lab, "10.77.0.10")


def test_a_pulled_cable_shows_in_the_guest(lab: Lab) -> None:
    lab.rack.block()
    lab.rack.wait_until_succeeds("grep -qx 0 /sys/class/net/eth1/carrier", 60)
    assert not ping(lab, "10.77.0.10")
    lab.rack.unblock()
    lab.rack.wait_until_succeeds("grep -qx 1 /sys/class/net/eth1/carrier", 60)
    lab.neighbour.wait_until_succeeds("ping -c 1 -W 5 10.77.0.10", 120)


def test_a_saved_state_is_gone_back_to(lab: Lab) -> None:
    """Disk and memory: /root is on the disk, /run is not."""
    lab.rack.succeed("echo before | tee /root/file > /run/file")
    lab.rack.save("before")
    lab.rack.succeed("echo after | tee /root/file > /run/file")
    lab.rack.restore("before")
    assert lab.rack.succeed("cat /root/file /run/file") == "before\nbefore\n"
    lab.rack.wait_for_ssh()


def test_a_power_cut_keeps_what_was_flushed(lab: Lab) -> None:
    """Cut while the guest writes: the file system comes back, and holds each synced file whole."""
    lab.rack.succeed(
        "systemd-run --unit=writer bash -c 'mkdir -p /root/w; n=0; while :; do n=$((n+1)); "
        "head -c 100000 /dev/urandom > /root/w/$n; sync /root/w/$n; sha256sum /root/w/$n "
        ">> /root/sums; sync /root/sums; done'"
    )
    lab.rack.wait_until_succeeds("[ $(wc -l < /root/sums) -ge 20 ]", 300)
    lab.rack.crash()
    assert not lab.rack.running()
    lab.start("rack", warm=())
    lab.rack.succeed("[ $(wc -l < /root/sums) -ge 20 ] && sha256sum --quiet -c /root/sums")
    assert "errors" not in lab.rack.succeed("dmesg | grep -i ext4-fs || true")


def test_a_reboot_is_a_new_boot(lab: Lab) -> None:
    before = lab.rack.succeed("cat /proc/sys/kernel/random/boot_id")
    lab.rack.reboot()
    assert lab.rack.succeed("cat /proc/sys/kernel/random/boot_id") != before


def test_a_wiped_machine_is_a_new_machine(lab: Lab) -> None:
    before = host_key(lab)
    lab.rack.crash()
    lab.rack.wipe()
    lab.start("rack", warm=())
    assert not set(before.splitlines()) & set(host_key(lab).splitlines())
    lab.rack.fail("test -e /root/file")


def test_another_process_finds_the_lab(lab: Lab) -> None:
    again = Lab.open(Path(lab.directory))
    assert again.rack.running()
    assert again.rack.ssh_port == lab.rack.ssh_port
    again.rack.shutdown()
    assert not lab.rack.running()
