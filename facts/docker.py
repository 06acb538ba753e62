"""The container engine in one command."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api.exceptions import FactProcessError

from facts import sections
from facts.firewall import LINKS, external_interfaces
from facts.framed import Framed

STARTING_SECONDS = 120
"""Limit for a starting engine; after a boot an emulated machine needs about 25 s."""


@dataclass(frozen=True)
class BridgeNetwork:
    """A network with the driver bridge; ``ours``: it has Holdfast's label.

    ``bridge`` is its interface, "" if Docker chose the name; ``subnets`` are of both IP versions.
    """

    bridge: str
    subnets: tuple[str, ...]
    internal: bool
    ours: bool


@dataclass(frozen=True)
class DockerState:
    """The state of the engine. ``daemon_json`` is the text of the configuration, the user's and
    ours, None if there is none. ``package_version`` is None if no engine is installed. ``unruled``:
    the engine runs, but its firewall chains are gone, because another program flushed them.
    ``containers`` maps all containers, running or not, to their networks; it and ``networks`` are
    empty if the engine does not answer. ``links`` are the host's interfaces, ``devices`` those with
    a device behind them, ``until_forwarding`` those that accept routes from router advertisements
    only while the host does not forward. ``started_with`` contains the engine's start command, and
    the variables that may add options to it.
    """

    daemon_json: str | None
    package_version: str | None
    group_members: tuple[str, ...]
    unruled: bool
    networks: dict[str, BridgeNetwork] = field(default_factory=dict)
    containers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    links: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    until_forwarding: frozenset[str] = frozenset()
    started_with: str = ""

    def users(self, network: str) -> list[str]:
        """The containers on a network, running or not."""
        return sorted(name for name, on in self.containers.items() if network in on)


def _network(told: dict[str, Any]) -> BridgeNetwork:
    # A value that was not set is empty or null, depending on the program that created the network.
    options, labels = told["Options"] or {}, told["Labels"] or {}
    return BridgeNetwork(
        bridge=options.get("com.docker.network.bridge.name", ""),
        subnets=tuple(sorted(each["Subnet"] for each in told["IPAM"]["Config"] or [])),
        internal=told["Internal"],
        ours="holdfast" in labels,
    )


class DockerEngine(Framed[DockerState]):
    """The container engine of this machine, installed or not."""

    def command(self) -> str:
        """Build the probe."""
        return sections.probe(
            {
                # Until it answers, its bridges look like interfaces of another program.
                "starting": f"left={STARTING_SECONDS};"
                f" while {sections.is_starting('docker.service')}; do"
                ' [ "$left" -gt 0 ] || { echo yes; break; }; left=$((left - 1)); sleep 1; done',
                "daemon_json": "[ -e /etc/docker/daemon.json ] && echo &&"
                " cat /etc/docker/daemon.json && echo",
                "version": "dpkg-query --show"
                " --showformat='${db:Status-Status} ${Version}\\n' docker-ce docker.io",
                "group": "getent group docker",
                "unruled": "systemctl --quiet is-active docker.service"
                " && ! iptables -w -t nat -n -L DOCKER >/dev/null && echo yes",
                # A query would start a stopped engine.
                "networks": "systemctl --quiet is-active docker.service && docker network inspect"
                " $(docker network ls --quiet --filter driver=bridge)",
                "containers": "systemctl --quiet is-active docker.service"
                " && docker ps --all --no-trunc --format '{{.Names}} {{.Networks}}'",
                "links": LINKS,
                "until_forwarding": "cd /proc/sys/net/ipv6/conf && grep -lx 1 */accept_ra",
                # Only values that begin with a dash: others may be secret.
                "started_with": "systemctl show --property=ExecStart,Environment --value"
                " docker.service; systemctl show --property=EnvironmentFiles --value docker.service"
                " | sed 's/ (ignore_errors=.*//' | while read -r file; do"
                """ grep "^[^#]*=[\\"' ]*-" $file; done""",
            }
        )

    @staticmethod
    def default() -> DockerState:
        """No engine."""
        return DockerState(None, None, (), False)

    def process(self, output: list[str]) -> DockerState:
        """Parse the probe's output.

        Raises:
            FactProcessError: the engine does not start, so its state is unknown.
        """
        found = sections.answers(output)
        if found["starting"]:
            raise FactProcessError(
                f"Docker is still starting after {STARTING_SECONDS} s; on the host:"
                " journalctl --unit docker.service"
            )
        versions = [line.split()[1] for line in found["version"] if line.startswith("installed ")]
        members = found["group"][0].rpartition(":")[2] if found["group"] else ""
        # The first line only shows that the file exists: it may be empty.
        content = found["daemon_json"]
        networks = json.loads("".join(found["networks"]) or "[]")
        containers = [line.partition(" ")[::2] for line in found["containers"]]
        return DockerState(
            daemon_json="\n".join(content[1:]) if content else None,
            package_version=versions[0] if versions else None,
            group_members=tuple(members.split(",")) if members else (),
            unruled=bool(found["unruled"]),
            networks={each["Name"]: _network(each) for each in networks},
            containers={name.split(",")[0]: tuple(on.split(",")) for name, on in containers},
            links=frozenset(line.split()[0] for line in found["links"]),
            devices=external_interfaces(found["links"], []),
            until_forwarding=frozenset(
                line.partition("/")[0] for line in found["until_forwarding"]
            ),
            started_with="\n".join(found["started_with"]),
        )
