"""The tailnet, the private network through which all callers come."""

from pyinfra import host
from pyinfra.api.deploy import deploy

from facts.places import SYSTEM
from facts.tailnet import TailnetNode
from holdfast import ssh, tailnet_membership, tailnet_rules
from holdfast.refusal import Refusal, Refused
from holdfast.render import render
from holdfast.settings import HostSettings
from holdfast.tailnet import DROP_IN, ENVIRONMENT, relays_missing, vendor_repository
from operations import apt_repository, packages, program, sshd, tailscale, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit


@deploy("Tailnet")
def apply(settings: HostSettings) -> None:
    """Install Tailscale from its repository, restricted and without telemetry, and join.

    The rules accept SSH on every port of sshd, including that of this login, so they lock no user
    out. Expects nftables (`deploys/egress.py`) and a masked nftables.service
    (`deploys/firewall.py`).

    Raises:
        Refused: the host must join, and no key is named, or the tailnet has relays that are not
            declared; nothing was changed on any host.
    """
    tailnet = settings.tailnet
    if tailnet is None:
        return
    if tailnet.auth_key is None and not host.get_fact(TailnetNode).joined:
        wrong = "this host is not a member of a tailnet yet"
        mend = "name the secret with the key to join with"
        raise Refused([Refusal(host.name, "tailnet.auth_key", None, wrong, mend)])
    if unknown := relays_missing(tailnet, host.get_fact(TailnetNode)):
        mend = "declare those that are yours, and take the others from the server's map"
        declared = [relay.name for relay in tailnet.relays]
        raise Refused([Refusal(host.name, "tailnet.relays", declared, unknown, mend)])
    apt_repository.repository(
        name="Know Tailscale's repository",
        label="tailscale",
        settings=tailnet.repository or vendor_repository(settings.distribution),
    )
    came_by = sshd.state_of(host, settings).came_by
    rules = tailnet_rules.rules(settings, ssh.ports(settings, came_by))
    watched = [*tailnet_rules.programs(settings), *tailnet_membership.programs(settings)]
    # Before the package, because its daemon starts at once and must not call its vendor even then.
    # The package's own /etc/default/tailscaled stays unchanged, so that no upgrade asks about it.
    program.place(
        what="the daemon's configuration and what the tailnet may reach",
        programs=watched,
        directories=[HostDirectory(path=f"{SYSTEM}/tailscaled.service.d")],
        files=[
            HostFile(
                path=ENVIRONMENT,
                content=render("tailnet/tailscaled.env.j2", port=tailnet.port),
            ),
            HostFile(
                path=DROP_IN,
                content=render("tailnet/tailscaled.conf.j2", environment=ENVIRONMENT),
            ),
            HostFile(tailnet_rules.RULES, rules, validate="nft --check --file {}"),
        ],
    )
    program.settle(
        "Have the tailnet reach no more than is declared, and watch the membership", watched
    )
    packages.present(name="Install Tailscale", packages=["tailscale"])
    units.settle(
        name="Run the daemon with its configuration",
        units=[Unit(name="tailscaled.service", restart_after=[ENVIRONMENT, DROP_IN])],
    )
    tailscale.joined(
        name="Join the tailnet",
        settings=tailnet,
        hostname=tailnet.hostname or settings.hostname,
    )
