"""sshd as it is: what it would obey, what it has read, who could log in with what."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from pyinfra.api import FactBase

from facts.sections import answers, probe
from facts.units import seconds_of

ROLLBACK_UNIT = "holdfast-ssh-rollback"
"""Transient timer that puts the former configuration back; it exists while a change is unproved."""


@dataclass(frozen=True)
class Home:
    """Where a user's keys belong."""

    path: str
    group: str


@dataclass(frozen=True)
class SshState:
    """What `Sshd` found.

    ``effective`` are the pairs ``sshd -T`` prints; empty when the configuration is broken.
    ``came_by`` is the port of sshd that this very login used; None where there was no SSH.
    """

    effective: frozenset[tuple[str, str]]
    is_outdated: bool
    """A file that sshd reads at start is newer than its last start or reload."""
    is_unproved: bool
    """A change was made and no login has proved it yet."""
    came_by: int | None
    has_host_key: bool
    has_strong_moduli: bool
    passwordless: frozenset[str]
    """Accounts whose password is empty."""
    homes: dict[str, Home]


class Sshd(FactBase[SshState]):
    """Everything `ssh` asks of a host, in one remote command."""

    def command(self, host_key: str, moduli: str, users: list[str]) -> str:
        """Build the probe for this host key, this file of moduli and these users' homes."""
        people = " ".join(map(shlex.quote, users))
        questions = {
            "effective": "sshd -T",
            "read": "systemctl show --timestamp=us+utc --property=StateChangeTimestamp --value ssh",
            "files": f"cd /etc/ssh && stat --format=%.6Y sshd_config sshd_config.d/* {host_key}",
            "rollback": f"systemctl is-active {ROLLBACK_UNIT}.timer",
            # sudo forgets where the login came from; the process that called it does not.
            "came-by": (
                "p=$$; while [ $p -gt 1 ]; do"
                " c=$(grep -zm1 ^SSH_CONNECTION= /proc/$p/environ) && { echo $c; break; };"
                " n=1; while read -r k v; do [ $k = PPid: ] && n=$v; done < /proc/$p/status;"
                " p=$n; done"
            ),
            "key": f"ls {host_key}",
            "moduli": f"test -s {moduli} && awk '$5 < 3071 {{ exit 1 }}' {moduli} && echo strong",
            "passwordless": "awk -F: '$2 == \"\" { print $1 }' /etc/shadow",
            "homes": (
                f"for u in {people}; do"
                ' getent passwd "$u" | cut -d: -f1,6 | tr "\\n" :; id -gn "$u"; done'
            ),
        }
        return probe(questions)

    def process(self, output: list[str]) -> SshState:
        """Parse the probe's output."""
        sections = answers(output)
        read = seconds_of(next(iter(sections["read"]), ""))
        newest = max(map(float, sections["files"]), default=0.0)
        came_by = next(iter(sections["came-by"]), "").split()
        homes = (line.split(":") for line in sections["homes"] if line.count(":") == 2)
        pairs = (line.partition(" ") for line in sections["effective"])
        return SshState(
            effective=frozenset((keyword, value) for keyword, _, value in pairs),
            is_outdated=read is None or newest > read,
            is_unproved=sections["rollback"] == ["active"],
            came_by=int(came_by[-1]) if came_by else None,
            has_host_key=bool(sections["key"]),
            has_strong_moduli=bool(sections["moduli"]),
            passwordless=frozenset(sections["passwordless"]),
            homes={user: Home(path, group) for user, path, group in homes},
        )
