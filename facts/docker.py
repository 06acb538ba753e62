"""The container engine in one command."""

from __future__ import annotations

from dataclasses import dataclass

from pyinfra.api import FactBase

from facts import sections


@dataclass(frozen=True)
class DockerState:
    """The engine as it is.

    ``daemon_json`` is the text of the user's and our configuration, None where there is none;
    ``package_version`` that of the engine's package, None where none is installed. ``unruled``
    tells that the engine runs and its firewall chains are gone: something flushed them.
    """

    daemon_json: str | None
    package_version: str | None
    group_members: tuple[str, ...]
    unruled: bool


class DockerEngine(FactBase[DockerState]):
    """The container engine of this machine, installed or not."""

    def command(self) -> str:
        """Build the probe."""
        return sections.probe(
            {
                "daemon_json": "[ -e /etc/docker/daemon.json ] && echo &&"
                " cat /etc/docker/daemon.json && echo",
                "version": "dpkg-query --show"
                " --showformat='${db:Status-Status} ${Version}\\n' docker-ce docker.io",
                "group": "getent group docker",
                "unruled": "systemctl --quiet is-active docker.service"
                " && ! iptables -w -t nat -n -L DOCKER >/dev/null && echo yes",
            }
        )

    @staticmethod
    def default() -> DockerState:
        """No engine."""
        return DockerState(None, None, (), False)

    def process(self, output: list[str]) -> DockerState:
        """Parse the probe's output."""
        found = sections.answers(output)
        versions = [line.split()[1] for line in found["version"] if line.startswith("installed ")]
        members = found["group"][0].rpartition(":")[2] if found["group"] else ""
        # The first line only says that the file is there: it may be empty.
        content = found["daemon_json"]
        return DockerState(
            daemon_json="\n".join(content[1:]) if content else None,
            package_version=versions[0] if versions else None,
            group_members=tuple(members.split(",")) if members else (),
            unruled=bool(found["unruled"]),
        )
