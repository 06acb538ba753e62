"""The state of sshd: its files, its loaded configuration, and the keys that can log in."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from facts.framed import Framed
from facts.places import STATE
from facts.sections import answers, probe
from facts.units import seconds_of

ROLLBACK_STATE = f"{STATE}/ssh"
"""The files that an unconfirmed change must restore."""


@dataclass(frozen=True)
class SshState:
    """What `Sshd` found.

    ``effective`` are the pairs of ``sshd -T``; empty if the configuration is invalid. ``came_by``
    is the port of sshd that this login uses; None without SSH.
    """

    effective: frozenset[tuple[str, str]]
    is_outdated: bool
    """A file that sshd reads at start is newer than its last start or reload."""
    is_unproved: bool
    """A change was made and no login has confirmed it yet."""
    came_by: int | None
    has_host_key: bool
    has_strong_moduli: bool
    passwordless: frozenset[str]
    """Accounts whose password is empty."""
    keyed: dict[str, int]
    """Users with a file of keys in root's folder, to its size in bytes."""
    key_files: dict[str, str]
    """Each of them and of the requested users, to the files where sshd looks for the user's
    keys."""


class Sshd(Framed[SshState]):
    """Everything that `ssh` needs to know of a host, in one remote command."""

    def command(self, host_key: str, moduli: str, keys: str, users: list[str]) -> str:
        """Build the probe for this host key, file of moduli, folder of keys, and these users."""
        people = " ".join(map(shlex.quote, users))
        # Files whose name is not a user name are not ours.
        listed = f"(cd {keys} && stat --format='%n %s' * | grep -x '[a-z_][a-z0-9_-]* [0-9]*')"
        questions = {
            "effective": "sshd -T",
            "read": "systemctl show --timestamp=us+utc --property=StateChangeTimestamp --value ssh",
            "files": f"cd /etc/ssh && stat --format=%.6Y sshd_config sshd_config.d/* {host_key}",
            "rollback": f"[ -e {ROLLBACK_STATE}/armed ] && echo yes",
            # sudo drops the variable with the login's origin; its parent process still has it.
            "came-by": (
                "p=$$; while [ $p -gt 1 ]; do"
                " c=$(grep -zm1 ^SSH_CONNECTION= /proc/$p/environ) && { echo $c; break; };"
                " n=1; while read -r k v; do [ $k = PPid: ] && n=$v; done < /proc/$p/status;"
                " p=$n; done"
            ),
            "key": f"ls {host_key}",
            "moduli": f"test -s {moduli} && awk '$5 < 3071 {{ exit 1 }}' {moduli} && echo strong",
            "passwordless": "awk -F: '$2 == \"\" { print $1 }' /etc/shadow",
            "keyed": listed,
            "key-files": (
                f"for u in $({{ printf '%s\\n' {people}; {listed} | cut -d ' ' -f 1; }}"
                " | sort -u); do"
                ' echo "$u $(sshd -T -C "user=$u,host=stranger,addr=192.0.2.1"'
                " | sed -n 's/^authorizedkeysfile //p')\"; done"
            ),
        }
        return probe(questions)

    def process(self, output: list[str]) -> SshState:
        """Parse the probe's output."""
        sections = answers(output)
        read = seconds_of(next(iter(sections["read"]), ""))
        newest = max(map(float, sections["files"]), default=0.0)
        came_by = next(iter(sections["came-by"]), "").split()
        key_files = (line.partition(" ") for line in sections["key-files"])
        pairs = (line.partition(" ") for line in sections["effective"])
        return SshState(
            effective=frozenset((keyword, value) for keyword, _, value in pairs),
            is_outdated=read is None or newest > read,
            is_unproved=bool(sections["rollback"]),
            came_by=int(came_by[-1]) if came_by else None,
            has_host_key=bool(sections["key"]),
            has_strong_moduli=bool(sections["moduli"]),
            passwordless=frozenset(sections["passwordless"]),
            keyed={user: int(size) for user, size in map(str.split, sections["keyed"])},
            key_files={user: path for user, _, path in key_files if user},
        )
