"""ufw and Docker, tried from a LAN: `pytest -m lab tests/lab/test_firewall_live.py`.

A real ufw and a real engine on a container machine, a neighbour on its LAN, and a peer behind an
undeclared interface. It takes root and five minutes, no emulation.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from facts.firewall import GUARD, PROGRAM
from holdfast.docker import DROP_IN, LINKS_SCRIPT
from holdfast.firewall import DOCKER_USER, TIMER, WATCH
from tests.drill import sabotage, sabotages
from tests.drill.converge import Outcome, converge
from tests.drill.record import Phase, Record
from tests.drill.site import Site
from tests.lab.container_machine import LAN_INTERFACE, ContainerMachine
from tests.lab.images import OPERATOR, ensure_image, lab_key
from tests.lab.lan import Neighbour
from tests.lab.machine import Spec

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container machine needs root"),
]

SPEC = Spec("doors", variant="rack", host_number=13, memory_mib=2048, cpus=2)
DEPLOY = "tests/lab/firewall_site.py"
PATIENCE_SECONDS = 180
PEER = "10.99.0.2"
PUBLISHED = 8099
"""The port of a container, which the inventory does not declare."""
MULTICAST = {"224.0.0.251": 5353, "239.255.255.250": 1900, "ff02::fb": 5353, "ff02::f": 1900}


@dataclass(frozen=True)
class Stage:
    """The rack, and who is on its LAN."""

    rack: ContainerMachine
    neighbour: Neighbour
    folder: Path

    def converge(self, label: str, **changes: Any) -> Outcome:
        """Deploy, with these changes of the inventory."""
        self.inventory.write_text(f"hosts = [('@rack/doors', {self._settings() | changes!r})]\n")
        return converge(self.inventory, label, self.folder, DEPLOY)

    @property
    def inventory(self) -> Path:
        """What was deployed last."""
        return self.folder / "inventory.py"

    def _settings(self) -> dict[str, Any]:
        return {
            "hostname": "doors",
            "distribution": "debian13",
            "interfaces": {"eth0": {"role": "lan"}, LAN_INTERFACE: {"role": "lan"}},
            "ssh_hostname": "127.0.0.1",
            "ssh_port": self.rack.ssh_port,
            "ssh_user": OPERATOR,
            "ssh_key": str(lab_key()),
            "ssh_known_hosts_file": str(self.folder / "known_hosts"),
            "_sudo": True,
            "tailnet": None,
            "ssh": {
                "lan_access": "keep",
                "lan_sources": ["10.0.2.0/24"],
                "authorised_keys": {OPERATOR: [lab_key().with_suffix(".pub").read_text().strip()]},
            },
            "docker": {"source": "distribution"},
        }

    def heard(self) -> set[str]:
        """The groups of `MULTICAST` by which the neighbour reaches a listener on the rack."""
        self.rack.succeed(
            "systemd-run --quiet --collect --unit=listener"
            f" --property=StandardOutput=truncate:/run/heard python3 -uc {shlex.quote(_LISTENER)}"
            " && until ss -Huln 'sport = :1900' | grep -q .; do sleep 0.2; done"
        )
        self.neighbour.succeed(f"python3 -c {shlex.quote(_CALLER)}")
        return set(self.rack.succeed("systemctl stop listener && cat /run/heard").split())


# The caller sends each group the address of that group as text.
_LISTENER = f"""
import select, socket
calls = []
for group, port in {MULTICAST}.items():
    six = ":" in group
    call = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    if six:
        call.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    call.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    call.bind((group, port, 0, socket.if_nametoindex("{LAN_INTERFACE}"))[: 4 if six else 2])
    index = socket.if_nametoindex("{LAN_INTERFACE}").to_bytes(4, "little")
    if six:
        call.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP,
                        socket.inet_pton(socket.AF_INET6, group) + index)
    else:
        call.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                        socket.inet_aton(group) + bytes(4) + index)
    calls.append(call)
while True:
    for call in select.select(calls, [], [])[0]:
        print(call.recv(100).decode())
"""
_CALLER = f"""
import socket, time
for group, port in [*{MULTICAST}.items()] * 3:
    six = ":" in group
    call = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    index = socket.if_nametoindex("eth1")
    if six:
        call.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    else:
        call.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF,
                        bytes(8) + index.to_bytes(4, "little"))
    call.sendto(group.encode(), (group, port))
    time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("doors")
    neighbour = Neighbour(folder / "lan")
    neighbour.start()
    image = ensure_image("debian-13", "rack")
    rack = ContainerMachine(folder / "rack", SPEC, image, {LAN_INTERFACE: neighbour.namespace})
    os.environ["HOLDFAST_SECRETS"] = str(folder)
    try:
        rack.start()
        rack.wait_for_boot(PATIENCE_SECONDS)
        rack.wait_for_ssh(PATIENCE_SECONDS)
        rack.succeed("apt-get update -qq", timeout_seconds=PATIENCE_SECONDS)
        built = Stage(rack, neighbour, folder)
        outcome = built.converge("bare")
        assert outcome.ok, (outcome.failed, outcome.log.read_text()[-3000:])
        yield built
    finally:
        rack.power_off()
        neighbour.stop()


def test_a_second_converge_changes_nothing(stage: Stage) -> None:
    outcome = stage.converge("again")
    assert outcome.ok
    assert outcome.changed == []


@pytest.mark.parametrize(
    "disturbed", ["systemctl restart docker", "ufw reload", "systemctl restart ufw", "reboot"]
)
def test_what_was_proved_outlives(stage: Stage, disturbed: str) -> None:
    if disturbed == "reboot":
        stage.rack.reboot(PATIENCE_SECONDS)
    else:
        stage.rack.succeed(disturbed)
    stage.rack.wait_until_succeeds("systemctl is-active docker", PATIENCE_SECONDS)
    stage.rack.succeed(f"{PROGRAM} proved && systemctl start {WATCH}")


def test_the_host_tests_of_the_firewall_hold_and_each_can_fail(stage: Stage) -> None:
    record = Record("doors", "now", kind="native")
    record.plan([Phase("sabotage")])
    site = Site(record, stage.inventory, stage.folder, DEPLOY, frozenset({"test_firewall.py"}))
    with record.phase("sabotage"):
        sabotage.commit(site, stage.rack, sabotages.FIREWALL)
    assert record.broken == []


def test_neighbours_find_only_what_is_declared(stage: Stage) -> None:
    assert stage.heard() == set()
    # The control: what the listener would hear.
    opened = " && ".join(
        f"ip{six}tables -I INPUT -i {LAN_INTERFACE} -p udp -j ACCEPT" for six in ("", "6")
    )
    stage.rack.succeed(f"systemctl stop {TIMER} {WATCH} && {opened}")
    assert stage.heard() == set(MULTICAST)
    stage.rack.succeed(opened.replace("-I", "-D"))
    found = {"port": 5353, "protocol": "udp", "scope": "lan", "interface": LAN_INTERFACE}
    service = {"name": "finder", "unit": "finder.service", "user": "svc-finder", "tier": "T2"}
    listens = [{**found, "sources": ["10.77.0.0/24", "fd77::/64", "fe80::/10"]}]
    assert stage.converge("declared", services=[{**service, "listens": listens}]).ok
    assert stage.heard() == {"224.0.0.251", "ff02::fb"}
    assert stage.converge("not declared").ok
    assert stage.heard() == set()


@pytest.fixture
def published(stage: Stage) -> Iterator[Stage]:
    """A port that a container publishes to all, on a bridge with a name of its own; a peer."""
    stage.rack.succeed(
        "apt-get install -qq -y busybox-static && mkdir -p /run/image/bin"
        " && cp /bin/busybox /run/image/bin/ && tar -C /run/image -c . | docker import - busybox"
        " && docker network create --opt com.docker.network.bridge.name=web0 web"
        f" && docker run --detach --name web --network web --publish 0.0.0.0:{PUBLISHED}:80 busybox"
        " /bin/busybox httpd -f -p 80"
        " && ip netns add beside && ip link add wg0 type veth peer name far netns beside"
        " && ip address add 10.99.0.1/24 dev wg0 && ip link set wg0 up"
        f" && ip -n beside address add {PEER}/24 dev far && ip -n beside link set far up",
        timeout_seconds=PATIENCE_SECONDS,
    )
    yield stage
    stage.rack.succeed(
        "ip netns delete beside; docker rm --force web; docker network rm web;"
        f" systemctl start {TIMER}",
        PATIENCE_SECONDS,
    )


def test_what_is_published_and_not_declared_is_shut_to_an_unknown_interface(
    published: Stage,
) -> None:
    rack = published.rack
    call = (
        "ip netns exec beside timeout 3 bash -c"
        f" 'exec 3<>/dev/tcp/10.99.0.1/{PUBLISHED} && echo GET / >&3 && read -r line <&3'"
    )
    rack.succeed(f"systemctl stop {TIMER} {WATCH}")
    rack.fail(call)
    # The control: without the last rule, Docker's own let it in.
    drops = (f"{DOCKER_USER}", f"{GUARD} -t mangle")
    rule = "-m conntrack --ctstate DNAT -j DROP"
    rack.succeed(" && ".join(f"iptables -D {chain} {rule}" for chain in drops))
    rack.wait_until_succeeds(call, 20)
    rack.succeed("/usr/local/lib/holdfast/docker-user")
    rack.fail(call)


# A router's advertisement of itself, for half an hour.
_ADVERTISE = """
import socket, time
call = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
call.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
call.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth1"))
call.sendto(bytes([134, 0, 0, 0, 64, 0, 7, 8]) + bytes(8), ("ff02::1", 0))
"""
_ROUTE = f"ip -6 route show default dev {LAN_INTERFACE} | grep 'proto ra'"


def test_the_engines_first_ipv6_network_costs_the_host_no_route(stage: Stage) -> None:
    rack, path = stage.rack, "/proc/sys/net/ipv6/conf"
    links = f"{path}/{LAN_INTERFACE}/accept_ra"
    network = "docker network create --ipv6 --subnet fd99:9::/64 --opt"
    network += " com.docker.network.bridge.name=six0 six"

    def advertised() -> None:
        rack.succeed(
            f"docker network rm six; echo 0 > {path}/all/forwarding"
            f" && echo 0 > {path}/default/forwarding"
        )
        stage.neighbour.succeed(f"python3 -c {shlex.quote(_ADVERTISE)}")
        rack.wait_until_succeeds(_ROUTE, 10)

    # networkd takes advertisements by itself; where it does not, the kernel does.
    alone = "/run/systemd/network/00-alone.network"
    rack.succeed(
        f"mkdir -p {alone.rpartition('/')[0]}"
        f" && printf '[Match]\\nName={LAN_INTERFACE}\\n[Link]\\nUnmanaged=yes\\n' > {alone}"
        f" && networkctl reload && networkctl status {LAN_INTERFACE} | grep unmanaged"
        f" && echo 1 > {links}"
    )
    advertised()
    # The control: what the engine does to a host that is not told.
    rack.succeed(network)
    rack.fail(_ROUTE)
    assert stage.converge("links").changed == ["Docker | Merge the engine's configuration"]
    assert rack.succeed(f"cat {links}") == "2\n"
    advertised()
    rack.succeed(network)
    rack.succeed(_ROUTE)
    # The engine runs the script before it starts, and the script leaves links of containers alone.
    rack.succeed(f"echo 1 > {links} && systemctl restart docker")
    assert rack.succeed(f"cat {links}") == "2\n"
    told = rack.succeed(f"grep -lx 2 {path}/*/accept_ra").split()
    assert {each.split("/")[-2] for each in told} <= {"eth0", LAN_INTERFACE}
    rack.succeed(f"{LINKS_SCRIPT} && docker network rm six && rm {alone} && networkctl reload")


def test_the_host_tests_of_those_links_can_fail(stage: Stage) -> None:
    record = Record("doors", "now", kind="native")
    record.plan([Phase("sabotage")])
    site = Site(record, stage.inventory, stage.folder, DEPLOY, frozenset({"test_docker.py"}))
    wrong = [each for each in sabotages.DOCKER if "docker::no_link_of_containers" in str(each.red)]
    with record.phase("sabotage"):
        sabotage.commit(site, stage.rack, wrong, complete=False)
    assert record.broken == []


def test_the_engine_leaves_with_its_declaration_and_comes_back(stage: Stage) -> None:
    rack, units = stage.rack, "docker.service docker.socket"
    assert stage.converge("without an engine", docker=None).ok
    assert "active" not in rack.execute(f"systemctl is-active {units}")[1].split()
    assert "enabled" not in rack.execute(f"systemctl is-enabled {units}")[1].split()
    rack.succeed(f"test ! -e {LINKS_SCRIPT} && test ! -e {DROP_IN} && test -d /var/lib/docker")
    outcome = stage.converge("without an engine, again", docker=None)
    assert outcome.ok
    assert outcome.changed == []
    assert stage.converge("with an engine again").ok
    rack.succeed(f"docker info && test -e {LINKS_SCRIPT}")
