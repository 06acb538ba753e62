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
"""How long a starting engine is waited for; after a boot an emulated machine takes some 25 s."""


@dataclass(frozen=True)
class BridgeNetwork:
    """A network of driver bridge; ``ours`` tells that it carries Holdfast's label.

    ``bridge`` is its interface, "" where Docker names it; ``subnets`` are of both IP versions.
    """

    bridge: str
    subnets: tuple[str, ...]
    internal: bool
    ours: bool


@dataclass(frozen=True)
class DockerState:
    """The engine as it is.

    ``daemon_json`` is the text of the user's and our configuration, None where there is none;
    ``package_version`` that of the engine's package, None where none is installed. ``unruled``
    tells that the engine runs and its firewall chains are gone: something flushed them.
    ``containers`` maps those that run and those that do not to their networks; they and
    ``networks`` are empty where the engine does not answer. ``links`` are the host's interfaces,
    ``devices`` those that are a device or made of one, ``until_forwarding`` those that take routes
    from routers' advertisements for as long as the host does not forward. ``started_with`` holds
    the command that starts the engine, and the variables that may bring it options.
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
    # What was not given is empty or null, as the network's maker wrote it.
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
                # Until it answers, its bridges look like interfaces of somebody else.
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
                # Who asks an engine that is stopped starts it.
                "networks": "systemctl --quiet is-active docker.service && docker network inspect"
                " $(docker network ls --quiet --filter driver=bridge)",
                "containers": "systemctl --quiet is-active docker.service"
                " && docker ps --all --no-trunc --format '{{.Names}} {{.Networks}}'",
                "links": LINKS,
                "until_forwarding": "cd /proc/sys/net/ipv6/conf && grep -lx 1 */accept_ra",
                # Of the files of variables only what begins with a dash: others may be secret.
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
            FactProcessError: the engine does not come up, so what it has cannot be known.
        """
        found = sections.answers(output)
        if found["starting"]:
            raise FactProcessError(
                f"Docker is still starting after {STARTING_SECONDS} s; on the host:"
                " journalctl --unit docker.service"
            )
        versions = [line.split()[1] for line in found["version"] if line.startswith("installed ")]
        members = found["group"][0].rpartition(":")[2] if found["group"] else ""
        # The first line only says that the file is there: it may be empty.
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
