"""The kernel's rules for packets from the tailnet: our own chains, and their watch.

Tailscale accepts each packet of its interface before it reaches ufw, and Docker's guard accepts it
too. Our chains come before both and match ports. A packet carries no tag, so the policy says who
may call each port (`holdfast.tailnet_policy`).
"""

from __future__ import annotations

from dataclasses import replace

from facts.places import CONFIGURATION
from holdfast import kernel_rules
from holdfast.registry import tailnet_claims
from holdfast.render import render
from holdfast.service import File, Program
from holdfast.settings import HostSettings

TABLE = "holdfast_tailnet"
INTERFACE = "tailscale0"
REFUSED = "refused"
"""The counter of refused packets."""
LOG_PREFIX = "holdfast tailnet"
"""Prefix of the kernel's log lines about refused packets."""
RULES = f"{CONFIGURATION}/tailnet.nft"
PROGRAM = "/usr/local/sbin/holdfast-tailnet"
RUN = "holdfast/tailnet"
"""The folder below /run with the rules that were loaded last, as nft lists them."""
SERVICE = "holdfast-tailnet.service"
WATCH = "holdfast-tailnet-watch.service"
TIMER = "holdfast-tailnet-watch.timer"

Ports = dict[str, list[int]]


def _ports(settings: HostSettings, ssh: list[int], *, container: bool) -> Ports:
    found: dict[str, set[int]] = {} if container else {"tcp": set(ssh)}
    for claim in tailnet_claims(settings):
        # Without translation, Docker's proxy also listens on a port that it publishes.
        if claim.container or not container:
            found.setdefault(claim.protocol, set()).add(claim.port)
    return {protocol: sorted(ports) for protocol, ports in sorted(found.items())}


def rules(settings: HostSettings, ssh: list[int]) -> str:
    """The table in nftables' syntax; ``ssh`` are the ports of sshd."""
    return render(
        "tailnet/tailnet.nft.j2",
        program=PROGRAM,
        table=TABLE,
        interface=INTERFACE,
        refused=REFUSED,
        log_prefix=LOG_PREFIX,
        ports=_ports(settings, ssh, container=False),
        published=_ports(settings, ssh, container=True),
    )


def program() -> str:
    """The text of the script that loads and watches the rules."""
    return render("tailnet/holdfast-tailnet.j2", table=TABLE, rules=RULES, run=RUN)


def programs(settings: HostSettings) -> list[Program]:
    """What loads the rules, and what looks at them; none where the host is on no tailnet."""
    if settings.tailnet is None:
        return []
    loads = kernel_rules.loader("tailnet", "Holdfast: what the tailnet may reach here", PROGRAM)
    said = "Holdfast: keep what the tailnet may reach as it was loaded"
    return [
        replace(
            loads,
            files=(File(PROGRAM, program(), mode="755", validate="sh -n {}"),),
            reads=(RULES,),
        ),
        kernel_rules.watch("tailnet", said, PROGRAM, after=SERVICE),
    ]
