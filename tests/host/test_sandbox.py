"""The walls around our services, judged by systemd and by trying to walk through them."""

from __future__ import annotations

import re

from testinfra.host import Host

from holdfast import backup, egress, floor, integrity
from holdfast.gpu import containers, limits
from holdfast.sandbox import EXPOSURE_MAX, EXPOSURE_MAX_ROOT
from holdfast.settings import HostSettings


def _units(paths: dict[str, str]) -> list[str]:
    names = (path.rpartition("/")[2] for path in paths)
    return [name for name in names if name.endswith(".service")]


def _most_exposed(settings: HostSettings) -> dict[str, float]:
    most = dict.fromkeys(_units(integrity.unit_files()), EXPOSURE_MAX_ROOT)
    most |= dict.fromkeys(_units(egress.unit_files()), EXPOSURE_MAX_ROOT)
    if settings.floor is not None:
        most |= dict.fromkeys(_units(floor.unit_files(settings, "/")), EXPOSURE_MAX)
    if settings.backup is not None:
        most |= dict.fromkeys(_units(backup.unit_files(settings)), EXPOSURE_MAX_ROOT)
    if settings.gpus is not None:
        most |= dict.fromkeys(_units(limits.unit_files()), EXPOSURE_MAX_ROOT)
        if containers.wants_containers(settings):
            most |= dict.fromkeys(_units(containers.unit_files()), EXPOSURE_MAX_ROOT)
    return most


def test_systemd_finds_every_unit_as_closed_as_declared(host: Host, settings: HostSettings) -> None:
    most = _most_exposed(settings)
    # One by one: the overview leaves out what is not loaded, as a job between two runs.
    verdicts = host.check_output(
        f"for unit in {' '.join(most)};"
        " do systemd-analyze security --no-pager $unit | tail -n 1; done"
    )
    scores = {
        unit: float(score)
        for unit, score in re.findall(r"exposure level for (\S+): ([\d.]+)", verdicts)
    }
    assert set(scores) == set(most)
    assert {unit: score for unit, score in scores.items() if score > most[unit]} == {}


def test_the_kernel_enforces_what_units_may_reach(host: Host) -> None:
    # Without BPF systemd ignores IPAddressDeny= in silence: this canary must not get out. It calls
    # this host's own sshd by an address that is not loopback, so nothing outside is needed.
    address = host.check_output(
        "ip -4 -oneline address show scope global | awk '{split($4, a, \"/\"); print a[1]; exit}'"
    )
    port = host.check_output("sshd -T | awk '$1 == \"port\" {print $2; exit}'")
    call = f"timeout 5 bash -c '</dev/tcp/{address}/{port}'"
    run = "systemd-run --quiet --wait --collect"
    wall = "-p IPAddressDeny=any -p IPAddressAllow=127.0.0.1/32"
    assert host.run(f"{run} {call}").succeeded, "the control must get through"
    assert host.run(f"{run} {wall} {call}").failed
