"""Two peers of different tags call a rack: `pytest -m lab tests/lab/test_tailnet_live.py`.

A real tailscaled on a container machine, a real headscale that takes the policy which the inventory
renders, and two userspace nodes on the controller. It takes root and twenty minutes, no emulation.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from typing import Any
from urllib.parse import urlsplit

import pytest

from holdfast import egress, tailnet_membership, tailnet_rules
from holdfast.firewall import WATCH, WITHOUT_TAILNET
from tests.drill import sabotage, sabotages
from tests.drill.converge import ROOT, Outcome, converge
from tests.drill.record import Phase, Record
from tests.drill.site import Site
from tests.lab.container_machine import ContainerMachine
from tests.lab.images import ensure_image, lab_key
from tests.lab.machine import Machine, Spec
from tests.lab.services import CONTROLLER_SEEN_BY_GUESTS, Services
from tests.lab.services.ca import NAMES
from tests.lab.services.daemon import wait_until
from tests.lab.services.tailnet import Tailnet
from tests.unit.site_data import filled_in, keep_secrets
from tests.unit.test_inventories import SECRETS

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container machine needs root"),
]

SPEC = Spec("rack", variant="rack", host_number=10, memory_mib=2048, cpus=2)
DEPLOY = "tests/lab/tailnet_site.py"
FIREWALL = "tests/lab/lan_ssh_site.py"
LAN = "10.0.2.0/24"
SSH, GUESTS, EVERYBODYS, NOBODYS = 22, 8090, 8091, 8099
SILENT_SECONDS = 8
"""How long a call may take; what the policy drops is never answered."""


@dataclass(frozen=True)
class Stage:
    """The rack and who calls it."""

    rack: Machine
    services: Services
    folder: Path
    inventory: Path

    def policy(self, inventory: Path | None = None) -> dict[str, Any]:
        """What an inventory, else the rack's, says to the control server.

        Another inventory has its secrets beside it.
        """
        own = {"HOLDFAST_SECRETS": str(inventory.parent)} if inventory else {}
        done = subprocess.run(
            [sys.executable, "-m", "holdfast", "policy", inventory or self.inventory],
            cwd=ROOT,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @property
    def peers(self) -> tuple[Tailnet, Tailnet]:
        """The operator, and a guest."""
        return self.services.tailnet, self.services.guest

    def wait_until_online(self) -> None:
        """Wait until the rack is a member again, in its own eyes."""
        self.rack.wait_until_succeeds("tailscale status --peers=false", 60)

    def answers(self, peer: Tailnet, port: int) -> bool:
        """Whether a peer gets an answer at a port of the rack."""
        return peer.answered("rack", port, SILENT_SECONDS)

    def refused(self) -> int:
        """Packets that our own chains have refused."""
        listing = self.rack.succeed(f"nft --json list counters table inet {tailnet_rules.TABLE}")
        (counter,) = [
            each["counter"] for each in json.loads(listing)["nftables"] if "counter" in each
        ]
        return int(counter["packets"])


def _settings(services: Services, folder: Path) -> dict[str, Any]:
    facts = services.facts()
    tailscale = facts["tailscale"]

    def service(name: str, **listen: Any) -> dict[str, Any]:
        listens = [{"scope": "tailnet", **listen}]
        return {"name": name, "unit": f"{name}.service", "user": name, "tier": "T2"} | {
            "listens": listens
        }

    return {
        "hostname": "rack",
        "distribution": "debian13",
        "interfaces": {"eth0": {"role": "management"}},
        "lan_address": "rack-lan",
        "ssh_hostname": "rack",
        "ssh_config_file": str(folder / "ssh_config"),
        "ssh_user": "operator",
        "_sudo": True,
        "docker": None,
        "ssh": {
            "authorised_keys": {"operator": [lab_key().with_suffix(".pub").read_text().strip()]},
            "callers": ["tag:operator"],
            "lan_sources": [LAN],
        },
        "tailnet": {
            "lost_minutes": 1,
            "control_server": facts["headscale"]["url"],
            "repository": {
                "url": tailscale["repository_url"],
                "key_url": tailscale["key_urls"]["trixie"],
                "suite": "trixie",
                "components": [tailscale["component"]],
            },
            "tags": ["tag:rack"],
            "other_tags": ["tag:operator", "tag:guest"],
        },
        "services": [
            service("guests", port=GUESTS, callers=["tag:guest"]),
            service("everybodys", port=EVERYBODYS),
        ],
    }


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("tailnet")
    services = Services(folder / "services")
    rack = ContainerMachine(folder / "rack", SPEC, ensure_image("debian-13", "rack"))
    try:
        services.start()
        rack.start()
        rack.wait_for_boot()
        rack.wait_for_ssh()
        rack.known_hosts.touch()
        by_tailnet = (
            f"Host rack\n    ProxyCommand {services.tailnet.proxy_command()}\n"
            f"    IdentityFile {lab_key()}\n    IdentitiesOnly yes\n"
            f"    UserKnownHostsFile {rack.known_hosts}\n    StrictHostKeyChecking accept-new\n"
        )
        (folder / "ssh_config").write_text(rack.ssh_settings() + by_tailnet)
        names = "".join(f"{CONTROLLER_SEEN_BY_GUESTS} {name}\n" for name in NAMES)
        rack.succeed(f"cat >> /etc/hosts <<'END'\n{names}END")
        rack.copy_to(services.authority.certificate, "/usr/local/share/ca-certificates/lab.crt")
        rack.succeed("update-ca-certificates", timeout_seconds=120)
        secrets = folder / "secrets"
        secrets.mkdir(mode=0o700)
        key = services.headscale.create_preauth_key("rack", tags=("tag:rack",))
        for name in SECRETS:
            (secrets / name).touch(mode=0o600)
            (secrets / name).write_text(token_urlsafe(24))
        (secrets / "TAILSCALE_AUTH_KEY").write_text(key.read_text())
        os.environ["HOLDFAST_SECRETS"] = str(folder)
        inventory = folder / "inventory.py"
        inventory.write_text(f"hosts = [('@rack/rack', {_settings(services, folder)!r})]\n")
        outcome = converge(inventory, "bare", folder, DEPLOY)
        assert outcome.ok, (outcome.failed, outcome.log.read_text()[-3000:])
        for port in (GUESTS, EVERYBODYS, NOBODYS):
            rack.succeed(
                f"systemd-run --quiet --collect --unit=listener-{port}"
                f" python3 -m http.server {port} --bind :: --directory /srv"
            )
            rack.wait_until_succeeds(f"ss -Hltn 'sport = :{port}' | grep -q .", 30)
        yield Stage(rack, services, folder, inventory)
    finally:
        rack.power_off()
        services.stop()


def test_a_second_converge_changes_nothing(stage: Stage) -> None:
    outcome = converge(stage.inventory, "again", stage.folder, DEPLOY)
    assert outcome.ok
    assert outcome.changed == []


def test_the_host_tests_hold_and_each_can_fail(stage: Stage) -> None:
    record = Record("tailnet", "now", kind="native")
    record.plan([Phase("sabotage")])
    site = Site(record, stage.inventory, stage.folder, DEPLOY, frozenset({"test_tailnet.py"}))
    with record.phase("sabotage"):
        sabotage.commit(site, stage.rack, sabotages.TAILNET)
    assert record.broken == []


def test_the_rack_itself_lets_in_what_is_declared_and_ssh(stage: Stage) -> None:
    # The control server still lets everybody call everything: what stops them is the rack.
    for peer in stage.peers:
        assert stage.answers(peer, GUESTS)
        assert stage.answers(peer, EVERYBODYS)
        before = stage.refused()
        assert not stage.answers(peer, NOBODYS)
        assert stage.refused() > before
        assert stage.answers(peer, SSH)
    # The control: without our chains Tailscale's own rules let a peer in before ufw is asked.
    stage.rack.succeed(f"nft delete table inet {tailnet_rules.TABLE}")
    assert all(stage.answers(peer, NOBODYS) for peer in stage.peers)


def test_a_table_that_is_gone_is_told_of_and_put_back(stage: Stage) -> None:
    rack = stage.rack
    rack.succeed(f"systemctl stop {tailnet_rules.TIMER} && nft flush ruleset")
    assert rack.execute(f"systemctl start {tailnet_rules.WATCH}")[0] != 0
    rack.wait_until_succeeds(f"test -e /run/holdfast/alerts/{tailnet_rules.WATCH}", 10)
    rack.succeed(f"systemctl start {tailnet_rules.WATCH}")
    # What Tailscale and ufw have lost is theirs to bring back.
    rack.succeed("ufw reload && systemctl restart tailscaled")
    stage.wait_until_online()
    assert not any(stage.answers(peer, NOBODYS) for peer in stage.peers)
    assert all(stage.answers(peer, EVERYBODYS) for peer in stage.peers)


def test_the_policy_tells_the_peers_apart(stage: Stage) -> None:
    headscale, policy = stage.services.headscale, stage.policy()
    assert headscale.check_policy(policy) == ""
    headscale.adopt_policy(policy)
    operator, guest = stage.peers
    wait_until(lambda: not stage.answers(operator, GUESTS), "the operator's new policy", 60)
    wait_until(lambda: not stage.answers(guest, SSH), "the guest's new policy", 60)
    assert stage.answers(operator, SSH)
    assert stage.answers(guest, GUESTS)
    assert all(stage.answers(peer, EVERYBODYS) for peer in stage.peers)
    assert not any(stage.answers(peer, NOBODYS) for peer in stage.peers)


def test_the_rules_are_there_before_tailscaled_after_a_boot(stage: Stage) -> None:
    stage.rack.reboot()
    stage.rack.wait_for_ssh()
    stage.wait_until_online()
    loaded, started = (
        int(stage.rack.succeed(f"systemctl show --value --property={when} {unit}"))
        for when, unit in (
            ("ActiveEnterTimestampMonotonic", tailnet_rules.SERVICE),
            ("ExecMainStartTimestampMonotonic", "tailscaled"),
        )
    )
    assert 0 < loaded < started
    wait_until(lambda: stage.answers(stage.peers[0], SSH), "the way in", 60)
    assert not stage.answers(stage.peers[1], SSH)


_WITNESS = """
table inet witness
delete table inet witness
table inet witness {
    counter away {
    }
    chain leaving {
        # Nothing of this leaves the lab, with the wall or without it.
        type filter hook postrouting priority filter;
        ip daddr { 10.0.0.0/8, 127.0.0.0/8, 100.64.0.0/10 } accept
        tcp flags & (syn | ack) == syn counter name away drop
    }
}
"""


def calls_without_a_server(rack: Machine, server: str) -> tuple[int, int]:
    """How many of its calls leave where it cannot find its server, and how many were refused."""
    done = rack.run("nft --file -", stdin=_WITNESS.encode())
    assert done.returncode == 0, done.stderr
    rack.succeed(f"cp /etc/hosts /root/hosts && sed '/ {server}$/d' /root/hosts > /etc/hosts")
    since = rack.succeed("date +%s").strip()
    told = f"journalctl --unit=tailscaled --since=@{since} --output=cat"
    before = _counter(rack, egress.TABLE, "denied-tailscaled")
    try:
        rack.succeed("systemctl restart tailscaled --no-block")
        rack.wait_until_succeeds(f"{told} | grep 'bootstrapDNS(.*for .*{server}.* error'", 120)
    finally:
        rack.succeed("cat /root/hosts > /etc/hosts")
    refused = _counter(rack, egress.TABLE, "denied-tailscaled") - before
    return _counter(rack, "witness", "away"), refused


def _counter(rack: Machine, table: str, name: str) -> int:
    status, listing = rack.execute(f"nft --json list counter inet {table} {name}")
    if status != 0:
        return 0
    found = [each["counter"] for each in json.loads(listing)["nftables"] if "counter" in each]
    return int(found[0]["packets"])


def test_no_relay_of_others_is_asked_for_the_control_server(stage: Stage) -> None:
    rack, server = stage.rack, urlsplit(stage.services.headscale.url).hostname or ""
    away, refused = calls_without_a_server(rack, server)
    assert away == 0
    assert refused > 0
    # A member again, by the wall and all.
    stage.wait_until_online()
    wait_until(lambda: stage.answers(stage.peers[0], SSH), "the way in", 60)
    # The control: without the wall it tells relays of Tailscale's own.
    rack.succeed(f"systemctl stop {egress.TIMER} && nft delete table inet {egress.TABLE}")
    away, _ = calls_without_a_server(rack, server)
    assert away > 0
    rack.succeed(f"systemctl reload {egress.SERVICE} && systemctl start {egress.TIMER}")
    stage.wait_until_online()


def test_a_policy_that_says_another_thing_than_its_tests_is_refused(stage: Stage) -> None:
    policy = stage.policy()
    policy["grants"].append({"src": ["tag:guest"], "dst": ["tag:rack"], "ip": ["tcp:22"]})
    assert (
        "tag:rack:22 (tcp): expected DENIED, got ALLOWED"
        in stage.services.headscale.check_policy(policy)
    )


@pytest.mark.parametrize("name", ["example", "reference"])
def test_the_control_server_finds_the_policies_of_other_inventories_true(
    stage: Stage, name: str, tmp_path: Path
) -> None:
    # A node must bear each tag, or the server can say nothing of it.
    stage.services.node("workstation", "tag:workstation").start()
    inventory = tmp_path / "mine.py"
    inventory.write_text(filled_in(ROOT / "inventories" / f"{name}.py"))
    keep_secrets(tmp_path, {key: f"{key.lower()[:9]}-9fKq27xLmZ" for key in SECRETS})
    policy = stage.policy(inventory)
    assert policy["tests"]
    assert stage.services.headscale.check_policy(policy) == ""


LOST = f"ufw status | grep --quiet '{WITHOUT_TAILNET}'"
ALERT = f"/run/holdfast/alerts/{tailnet_membership.SERVICE}"


def _answers_on_the_lan(rack: Machine) -> bool:
    """Whether SSH of a machine greets who comes by the LAN."""
    try:
        with socket.create_connection(("127.0.0.1", rack.ssh_port), SILENT_SECONDS) as call:
            call.settimeout(SILENT_SECONDS)
            return call.recv(4) == b"SSH-"
    except OSError:
        return False


def test_ssh_stays_on_the_lan_while_the_node_key_ends(stage: Stage) -> None:
    hurt, heal = sabotages.KEY_ENDS
    stage.rack.succeed(hurt)
    try:
        outcome = converge(stage.inventory, "key-ends", stage.folder, FIREWALL)
    finally:
        stage.rack.succeed(heal)
    assert not outcome.ok
    said = " ".join(outcome.log.read_text().split())
    assert "the node key of this host expires on 2030-01-02" in said
    assert _answers_on_the_lan(stage.rack)
    # The control: the same host, whose key does not end.
    outcome = converge(stage.inventory, "withdraw", stage.folder, FIREWALL)
    assert outcome.ok, outcome.log.read_text()[-3000:]
    assert not _answers_on_the_lan(stage.rack)
    assert stage.answers(stage.peers[0], SSH)


LOSSES: dict[str, Callable[[Stage], object]] = {
    "its key has expired": lambda stage: stage.services.headscale.expire_node("rack"),
    "the control server has forgotten it": lambda stage: stage.services.headscale.delete_node(
        "rack"
    ),
    "its state is empty": lambda stage: stage.rack.succeed(
        "systemctl stop tailscaled && : > /var/lib/tailscale/tailscaled.state"
        " && systemctl start tailscaled"
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_ssh_comes_back_on_the_lan_while_the_tailnet_is_lost(stage: Stage, loss: str) -> None:
    rack = stage.rack
    rack.succeed(f"rm -f {ALERT}")
    rack.fail(LOST)
    LOSSES[loss](stage)
    rack.wait_until_succeeds(f"{LOST} && test -e {ALERT}", 300)
    assert _answers_on_the_lan(rack)
    # To the watch of the firewall it is not a change by hand.
    rack.succeed(f"systemctl start {WATCH}")
    # A deploy, which comes by the LAN, changes nothing of it and says so.
    outcome = converge(stage.inventory, "lost", stage.folder, FIREWALL)
    assert outcome.ok, outcome.log.read_text()[-3000:]
    assert outcome.changed == []
    said = " ".join(outcome.log.read_text().split())
    assert "SSH is open on the LAN because this host lost its tailnet" in said
    # A new key brings it back, and SSH leaves the LAN by itself.
    stage.services.headscale.delete_node("rack")
    key = stage.services.headscale.create_preauth_key("rack", tags=("tag:rack",))
    (stage.folder / "secrets" / "TAILSCALE_AUTH_KEY").write_text(key.read_text())
    outcome = converge(stage.inventory, "joined-again", stage.folder, DEPLOY)
    assert outcome.ok, outcome.log.read_text()[-3000:]
    assert "Tailnet | Join the tailnet" in outcome.changed
    rack.wait_until_succeeds(f"! {LOST}", 300)
    assert not _answers_on_the_lan(rack)
    wait_until(lambda: stage.answers(stage.peers[0], SSH), "SSH by the tailnet", 60)


def test_the_tailnet_leaves_after_a_login_over_the_lan_and_comes_back(stage: Stage) -> None:
    rack, inventory = stage.rack, stage.folder / "without.py"
    declared = _settings(stage.services, stage.folder)
    ssh = {**declared["ssh"], "callers": [], "lan_access": "keep"}
    without = {**declared, "tailnet": None, "services": [], "ssh": ssh}
    running = "systemctl is-active tailscaled"

    def deploy(label: str, ssh_hostname: str) -> Outcome:
        inventory.write_text(
            f"hosts = [('@rack/rack', {without | {'ssh_hostname': ssh_hostname}})]\n"
        )
        return converge(inventory, label, stage.folder, DEPLOY)

    # The run would cut its own connection.
    assert not deploy("left by the tailnet", "rack").ok
    assert rack.execute(running)[1] == "active\n"
    outcome = deploy("left by the LAN", "rack-lan")
    assert outcome.ok, outcome.log.read_text()[-3000:]
    assert rack.execute(running)[1] == "inactive\n"
    rack.succeed(f"test ! -e {tailnet_rules.RULES} && test -d /var/lib/tailscale")
    outcome = deploy("left by the LAN, again", "rack-lan")
    assert outcome.ok
    assert outcome.changed == []
    outcome = converge(stage.inventory, "with a tailnet again", stage.folder, DEPLOY)
    assert outcome.ok, outcome.log.read_text()[-3000:]
    stage.wait_until_online()
