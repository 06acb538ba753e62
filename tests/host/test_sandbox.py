"""The sandboxes of our services: systemd's verdict, and attempts to leave one."""

from __future__ import annotations

import re

from testinfra.host import Host

from holdfast.sandbox import EXPOSURE_MAX, EXPOSURE_MAX_ROOT

# One by one, because the overview leaves out units that are not loaded, such as a job between two
# runs. A template has no verdict, but an instance has.
_JUDGE = (
    "for unit in $(systemctl list-unit-files --no-legend --no-pager 'holdfast-*.service'"
    " | awk '{print $1}' | sed 's/@[.]/@none./'); do"
    ' echo "$unit user=$(systemctl show --property=User --value "$unit")"'
    ' "dynamic=$(systemctl show --property=DynamicUser --value "$unit")"'
    ' "$(systemd-analyze security --no-pager "$unit" | tail -n 1)"; done'
)
_VERDICT = r"(\S+) user=(\S*) dynamic=(\S*) .*exposure level for \S+: ([\d.]+)"


def test_systemd_finds_every_unit_as_closed_as_declared(host: Host) -> None:
    found = host.check_output(_JUDGE).splitlines()
    verdicts = [re.match(_VERDICT, line) for line in found]
    assert [line for line, verdict in zip(found, verdicts, strict=True) if not verdict] == []
    scores = {verdict[1]: verdict for verdict in verdicts if verdict}
    # These units are on every host; if they are found, others are found too.
    assert {"holdfast-integrity.service", "holdfast-notify@none.service"} <= set(scores)
    exposed = {}
    for unit, verdict in scores.items():
        root = verdict[2] in ("", "root") and verdict[3] != "yes"
        if float(verdict[4]) > (EXPOSURE_MAX_ROOT if root else EXPOSURE_MAX):
            exposed[unit] = verdict[4]
    assert exposed == {}


def test_the_kernel_enforces_what_units_may_reach(host: Host) -> None:
    # Without BPF systemd ignores IPAddressDeny= without an error, so this call must fail. It calls
    # this host's own sshd at an address that is not loopback, so the test needs no other machine.
    address = host.check_output(
        "ip -4 -oneline address show scope global | awk '{split($4, a, \"/\"); print a[1]; exit}'"
    )
    port = host.check_output("sshd -T | awk '$1 == \"port\" {print $2; exit}'")
    call = f"timeout 3 bash -c '</dev/tcp/{address}/{port}'"
    run = "systemd-run --quiet --wait --collect"
    wall = "-p IPAddressDeny=any -p IPAddressAllow=127.0.0.1/32"
    assert host.run(f"{run} {call}").succeeded, "a call from outside the unit must succeed"
    assert host.run(f"{run} {wall} {call}").failed
