"""The whole firewall in one command: ufw's files, the kernel's rules, the external interfaces.

`ufw status` hides its rules while it is inactive, so the rules are read from ufw's own files.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import pairwise

from facts import sections
from facts.framed import Framed
from holdfast.host_programs import firewall
from holdfast.shipping import path_of

BLOCK_BEGIN = "# BEGIN holdfast DOCKER-USER"
BLOCK_END = "# END holdfast DOCKER-USER"
GUARD = "HOLDFAST-FORWARD"
"""Our chain in the mangle table."""
ROLLBACK_STATE = firewall.STATE
"""Whether a change waits for a confirming login, and the rules that were confirmed last."""
PROGRAM = path_of(firewall)
"""Undoes a change that no login confirms, and restores confirmed rules."""


LINKS = (
    'for link in /sys/class/net/*; do [ -d "$link" ] || continue;'
    ' printf %s "${link##*/}"; [ -e "$link/device" ] && printf " device";'
    ' for lower in "$link"/lower_*;'
    ' do [ -e "$lower" ] && printf " %s" "${lower##*/lower_}"; done; echo; done'
)
"""Prints the input of `external_interfaces` for each link."""


@dataclass(frozen=True)
class FamilyState:
    """One address family.

    ``rules`` are the tuples of ufw's rules file without their marker, ``lets`` the accepting lines
    of its before.rules and after.rules, ``block`` the lines of our marker block in its after.rules,
    ``live`` the filter table as ``iptables -S`` prints it and ``user_input_lines`` the number of
    rules that ufw's file has for its user input chain.
    """

    rules: tuple[str, ...] = ()
    lets: tuple[str, ...] = ()
    block: tuple[str, ...] = ()
    live: tuple[str, ...] = ()
    user_input_lines: int = 0


@dataclass(frozen=True)
class FirewallState:
    """The state of the firewall.

    ``options`` are the assignments in ufw's two configuration files, unquoted; empty without ufw.
    ``external`` names the interfaces that lead off this machine. ``armed``: a change was applied
    and not confirmed by a login. ``proved``: the rules in force are the confirmed ones.
    """

    options: dict[str, str]
    v4: FamilyState
    v6: FamilyState
    ipv6_in_kernel: bool
    external: frozenset[str]
    armed: bool
    proved: bool


def _questions(suffix: str) -> dict[str, str]:
    block = f"/^{BLOCK_BEGIN}/,/^{BLOCK_END}/p"
    user_rules = f"/etc/ufw/user{suffix}.rules"
    return {
        f"rules{suffix}": f"sed -n 's/^### tuple ### //p' {user_rules}",
        f"lets{suffix}": (
            f"grep -hE '^-A ufw{suffix}-(before|after)-(input|forward) .*-j ACCEPT'"
            f" /etc/ufw/before{suffix}.rules /etc/ufw/after{suffix}.rules"
        ),
        f"lines{suffix}": f"grep -c '^-A ufw{suffix}-user-input' {user_rules}",
        f"block{suffix}": f"sed -n {shlex.quote(block)} /etc/ufw/after{suffix}.rules",
        f"live{suffix}": (f"ip{suffix}tables -S; ip{suffix}tables -t mangle -S | grep -e {GUARD}"),
    }


def external_interfaces(links: list[str], routes: list[str]) -> frozenset[str]:
    """Interfaces that lead off the machine.

    These are interfaces with a device, those built on one (VLAN, bond, bridge) and those with a
    default route. Tailscale's is not included: the tailnet admitted its traffic. ``links`` are
    lines ``name [device] [lower interface]...``, ``routes`` default routes.
    """
    lowers = {name: rest for name, *rest in map(str.split, links)}
    found = {name for name, rest in lowers.items() if "device" in rest}
    for route in routes:
        words = route.split()
        found |= {name for word, name in pairwise(words) if word == "dev"}
    while grown := {name for name, rest in lowers.items() if found & set(rest)} - found:
        found |= grown
    ours = ("lo", "docker", "veth", "tailscale")
    return frozenset(name for name in found if not name.startswith(ours))


class Firewall(Framed[FirewallState]):
    """The firewall of this machine, with or without ufw."""

    def command(self) -> str:
        """Build the probe."""
        return sections.probe(
            {
                "options": "grep -hE '^[A-Z0-9_]+=' /etc/default/ufw /etc/ufw/ufw.conf",
                **_questions(""),
                **_questions("6"),
                "links": LINKS,
                "routes": "ip -o route show default; ip -6 -o route show default",
                "ipv6": "[ -e /proc/net/if_inet6 ] && echo yes",
                "armed": f"[ -e {ROLLBACK_STATE}/armed ] && echo yes",
                "proved": f"{PROGRAM} proved && echo yes",
            }
        )

    @staticmethod
    def default() -> FirewallState:
        """No firewall."""
        return FirewallState({}, FamilyState(), FamilyState(), True, frozenset(), False, False)

    def process(self, output: list[str]) -> FirewallState:
        """Parse the probe's output."""
        found = sections.answers([line for line in output if line.strip()])

        def family(suffix: str) -> FamilyState:
            return FamilyState(
                rules=tuple(found[f"rules{suffix}"]),
                lets=tuple(found[f"lets{suffix}"]),
                block=tuple(found[f"block{suffix}"]),
                live=tuple(line.rstrip() for line in found[f"live{suffix}"]),
                user_input_lines=int((found[f"lines{suffix}"] or ["0"])[0]),
            )

        options = dict(line.split("=", 1) for line in found["options"])
        return FirewallState(
            options={key: value.strip("\"' ") for key, value in options.items()},
            v4=family(""),
            v6=family("6"),
            ipv6_in_kernel=bool(found["ipv6"]),
            external=external_interfaces(found["links"], found["routes"]),
            armed=bool(found["armed"]),
            proved=bool(found["proved"]),
        )
