"""A hostile neighbour on the rack's LAN tries to get in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.lab.machine import Machine, Shell

RACK_V4, RACK_V6 = "10.77.0.10", "fd77::10"
CUSTOM_NETWORK = "custom"
DECLARED_PORT = 8088
"""The only port that `inventories/drill.py` opens to the LAN."""
VISITORS_PORT = 8085
"""The port that it opens to the tailnet's guest."""
STRAY_PORT = 8099
"""The port of a program that an operator starts by hand."""


@dataclass(frozen=True)
class Container:
    """A container that an operator of the rack published, by mistake or on purpose."""

    name: str
    publish: tuple[str, ...]
    ports: tuple[int, ...]
    network: str = "bridge"


CONTAINERS = (
    Container("default-bind", ("8081:80",), (8081,)),
    Container("public-bind", ("0.0.0.0:8082:80", "[::]:8082:80"), (8082,)),
    Container("loopback-bind", ("127.0.0.1:8083:80",), (8083,)),
    Container("custom-bridge", ("0.0.0.0:8084:80", "[::]:8084:80"), (8084,), CUSTOM_NETWORK),
    Container("declared", (f"0.0.0.0:{DECLARED_PORT}:80",), (DECLARED_PORT,)),
    Container("visitors", (f"0.0.0.0:{VISITORS_PORT}:80",), (VISITORS_PORT,)),
    # A declared T1 service, on its network.
    Container("sealed", ("8089:80",), (8089,), "sealed-net"),
)
PUBLISHED = tuple(port for container in CONTAINERS for port in container.ports)


def publish_containers(rack: Machine, image: str) -> None:
    """Start the containers, which restart after every disturbance."""
    rack.succeed(
        # The name of this bridge matches no `br-+` rule, and a neighbour could route to its IPv6.
        f"docker network inspect {CUSTOM_NETWORK} >/dev/null 2>&1 || docker network create --ipv6"
        f" --subnet fd99:7::/64 -o com.docker.network.bridge.name=lab0 {CUSTOM_NETWORK}"
    )
    for container in CONTAINERS:
        publish = " ".join(f"-p {shlex.quote(item)}" for item in container.publish)
        rack.succeed(
            f"docker rm -f {container.name} >/dev/null 2>&1;"
            # Without --init busybox is a PID 1 that ignores SIGTERM, and a shutdown waits 90 s.
            f" docker run -d --init --restart=always --name {container.name}"
            f" --network {container.network} {publish} {image}",
            timeout_seconds=300,
        )
    wait_for_containers(rack)


def wait_for_containers(rack: Machine) -> None:
    """Wait until every container answers on the rack itself; else a closed port proves nothing.

    It waits for an answer, because Docker's proxy accepts connections long before the container
    runs.
    """
    checks = " && ".join(
        f"curl -sf -m 20 -o /dev/null http://127.0.0.1:{port}/" for port in PUBLISHED
    )
    rack.wait_until_succeeds(checks, timeout_seconds=600)


def container_addresses(rack: Machine) -> list[str]:
    """Addresses of the containers, IPv4 and IPv6, as a neighbour would guess them."""
    names = " ".join(container.name for container in CONTAINERS)
    shown = rack.succeed(
        "docker inspect --format"
        " '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}} {{end}}' "
        + names
    )
    return sorted(set(shown.split()))


def scan(
    neighbour: Shell, *, udp: bool, ipv6: bool, rate: int, known: Collection[int] = ()
) -> list[int]:
    """Ports of the rack that answer: all 65,535 of TCP, or the 100 commonest of UDP.

    A scan that finds no rack on the LAN, or misses one of the ``known`` open ports, was deaf, as
    when an emulated rack still boots, and its silence about the others means nothing: it is made
    again, twice at most. ``rate`` is in packets a second.

    Raises:
        RuntimeError: nothing answered ARP, or IPv6's neighbour discovery, or the scan did not end.
    """
    what = "-sU --top-ports 100" if udp else "-sS -p-"
    target = f"-6 {RACK_V6}" if ipv6 else RACK_V4
    seen: set[int] = set()
    shown = ""
    for _ in range(3):
        shown = neighbour.succeed(
            # A silent port costs a retry and no more. An emulated rack may take a second to answer.
            f"nmap -n {what} -T4 --min-rate {rate} --max-retries 1 --initial-rtt-timeout 1s"
            f" --max-rtt-timeout 2s --host-timeout 15m -oG - {target}",
            timeout_seconds=1200,
        )
        seen |= {int(port) for port in re.findall(r"(\d+)/open/", shown)}
        if "Status: Up" in shown and set(known) <= seen:
            break
    if "Status: Up" not in shown or "Status: Timeout" in shown:
        raise RuntimeError(f"the scan saw no rack, or did not end: {shown}")
    return sorted(seen)


def reach(neighbour: Shell, rack_containers: list[str]) -> dict[str, list[str]]:
    """The published ports and container addresses that the neighbour can call directly."""
    attempts = {
        "published ports, IPv4": [f"{RACK_V4}:{port}" for port in PUBLISHED],
        "published ports, IPv6": [f"[{RACK_V6}]:{port}" for port in PUBLISHED],
        "containers directly": [
            f"[{address}]:80" if ":" in address else f"{address}:80" for address in rack_containers
        ],
    }
    for address in rack_containers:
        family, gateway = ("-6", RACK_V6) if ":" in address else ("-4", RACK_V4)
        neighbour.succeed(f"ip {family} route replace {address} via {gateway} dev eth1")
    targets = [target for group in attempts.values() for target in group]
    # In parallel, because a closed port takes the whole timeout.
    tries = " ".join(
        f"(curl -gs -o /dev/null -m 8 http://{target}/ && echo {target}) &"
        for target in map(shlex.quote, targets)
    )
    answered = set(neighbour.succeed(f"{tries} wait; true", timeout_seconds=180).split())
    return {
        name: [target for target in group if target in answered] for name, group in attempts.items()
    }


@contextmanager
def stray_listener(rack: Machine) -> Iterator[None]:
    """Start a program that listens on every address of the rack, on an undeclared port."""
    rack.succeed(
        "systemd-run --quiet --collect --unit=stray-listener"
        f" python3 -m http.server {STRAY_PORT} --bind :: --directory /srv"
    )
    try:
        rack.wait_until_succeeds(
            f"curl -sf -m 20 -o /dev/null http://127.0.0.1:{STRAY_PORT}/", timeout_seconds=120
        )
        yield
    finally:
        rack.succeed("systemctl stop stray-listener")
