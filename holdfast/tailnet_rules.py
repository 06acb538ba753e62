"""What a host's tailnet may reach, as the kernel reads it: our own chains, and who keeps them.

Tailscale accepts each packet of its interface before ufw is asked, and Docker's guard lets it
pass. These chains come before both, and know ports; a packet carries no tag, so who may call each
port is the policy's to say (`holdfast.tailnet_policy`).
"""

from __future__ import annotations

from facts.places import CONFIGURATION, SYSTEM
from holdfast import alerts, rules_watch
from holdfast.registry import tailnet_claims
from holdfast.render import render
from holdfast.sandbox import LOADS_RULES, sandbox
from holdfast.settings import HostSettings, Service

TABLE = "holdfast_tailnet"
INTERFACE = "tailscale0"
REFUSED = "refused"
"""The counter of what was refused."""
LOG_PREFIX = "holdfast tailnet"
"""How the kernel's log begins where it tells of a refusal."""
RULES = f"{CONFIGURATION}/tailnet.nft"
PROGRAM = "/usr/local/sbin/holdfast-tailnet"
RUN = "holdfast/tailnet"
"""Below /run: what was loaded last, as nft lists it."""
SERVICE = "holdfast-tailnet.service"
WATCH = "holdfast-tailnet-watch.service"
TIMER = "holdfast-tailnet-watch.timer"

Ports = dict[str, list[int]]


def _ports(settings: HostSettings, ssh: list[int], *, container: bool) -> Ports:
    found: dict[str, set[int]] = {} if container else {"tcp": set(ssh)}
    for claim in tailnet_claims(settings):
        # A port that Docker publishes is its proxy's, too, where nothing is translated.
        if claim.container or not container:
            found.setdefault(claim.protocol, set()).add(claim.port)
    return {protocol: sorted(ports) for protocol, ports in sorted(found.items())}


def rules(settings: HostSettings, ssh: list[int]) -> str:
    """The table as nftables reads it; ``ssh`` are the ports that sshd is to be reached at."""
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
    """The text of the script that loads the rules and looks after them."""
    return render("tailnet/holdfast-tailnet.j2", table=TABLE, rules=RULES, run=RUN)


def unit_files() -> dict[str, str]:
    """Path to text of the units."""
    service = render(
        f"tailnet/{SERVICE}.j2",
        program=PROGRAM,
        run=RUN,
        on_failure=alerts.ON_FAILURE,
        sandbox=sandbox(
            Service(name="tailnet", unit=SERVICE, user="root", tier="T1"),
            isolated=True,
            relaxed=LOADS_RULES,
        ),
    )
    watch = rules_watch.unit_files(
        "tailnet",
        said="keep what the tailnet may reach as it was loaded",
        after=SERVICE,
        program=PROGRAM,
    )
    return {f"{SYSTEM}/{SERVICE}": service, **watch}
