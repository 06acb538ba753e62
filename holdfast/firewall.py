"""The rules of the firewall, and the commands that set them. Pure decisions.

ufw's rules guard the programs of the host (INPUT). Our own chains guard the containers (FORWARD),
because Docker opens published ports past ufw.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from facts.firewall import (
    BLOCK_BEGIN,
    BLOCK_END,
    GUARD,
    PROGRAM,
    ROLLBACK_STATE,
    FamilyState,
    FirewallState,
)
from holdfast import kernel_rules
from holdfast.host_programs import firewall as firewall_program
from holdfast.sandbox import LOADS_RULES, Directive
from holdfast.service import Program
from holdfast.settings import HostSettings, Listen, Opening, Service

Family = Literal[4, 6]
FAMILIES: tuple[Family, Family] = (4, 6)
ANYWHERE: dict[Family, str] = {4: "0.0.0.0/0", 6: "::/0"}

DOCKER_USER = "DOCKER-USER"
DOCKER_USER_SCRIPT = firewall_program.DOCKER_USER
LOAD = f"{PROGRAM} load"
"""Does what ``ufw reload`` does, but without a moment in which the firewall is open."""
ROLLBACK_UNIT = f"{firewall_program.ROLLBACK}.service"
"""Restores the last proved firewall, at the deadline of a change or at an earlier boot."""
WATCH = "holdfast-firewall-watch.service"
TIMER = "holdfast-firewall-watch.timer"

MARK = "holdfast:"
"""Prefix of the comment of every rule of ours."""
UNTIL_TAILNET = "ssh until the tailnet is proved"
"""Reason of the rule that opens SSH on the LAN at first; it distinguishes the rule from others."""
SSH = "ssh"
"""Reason of the rules of the SSH server: its service's name. They are there where the inventory
keeps SSH open on the LAN."""
WITHOUT_TAILNET = "ssh while the tailnet is lost"
"""Reason of the rule with which a host itself opens SSH on the LAN, and later closes it
(`tailnet_membership`)."""

OPTIONS = {
    "IPV6": "yes",
    "DEFAULT_INPUT_POLICY": "DROP",
    "DEFAULT_OUTPUT_POLICY": "ACCEPT",
    "DEFAULT_FORWARD_POLICY": "DROP",
    # ufw would flush the built-in chains, with the jumps of Docker and Tailscale in them.
    "MANAGE_BUILTINS": "no",
    # ufw would apply its own sysctls after ours.
    "IPT_SYSCTL": "",
}
"""The required settings of /etc/default/ufw."""

_OWN = {"RestrictAddressFamilies", "CapabilityBoundingSet"}
RUNS_UFW = (
    *(directive for directive in LOADS_RULES if directive.name not in _OWN),
    Directive(
        "RestrictAddressFamilies",
        "AF_UNIX AF_NETLINK AF_INET AF_INET6",
        "both kinds of iptables load rules over these",
    ),
    Directive("CapabilityBoundingSet", "CAP_NET_ADMIN CAP_NET_RAW", "iptables needs them"),
    Directive("ProcSubset", "all", "ufw checks for IPv6 and writes kernel settings"),
    Directive("ReadWritePaths", "-/etc/ufw", "ufw's rules are here"),
    Directive("ReadWritePaths", "-/run", "the locks of ufw and iptables are here"),
)
"""The lines of a unit that changes ufw's rules; it runs as root."""


@dataclass(frozen=True)
class Hole:
    """A port that other machines may reach, from a source and perhaps on one interface only.

    ``source`` is a network of the family. ``container`` says whether Docker publishes the port.
    """

    family: Family
    port: int
    protocol: str
    source: str
    interface: str | None
    container: bool
    why: str

    @property
    def comment(self) -> str:
        """The comment that marks the rule as ours."""
        return f"{MARK} {self.why}"

    @property
    def identity(self) -> str:
        """The rule without its comment, as in ufw's rules file."""
        anywhere = ANYWHERE[self.family]
        direction = f"in_{self.interface}" if self.interface else "in"
        source = self.source
        if source.endswith(("/32", "/128")):
            source = source.partition("/")[0]
        return f"allow {self.protocol} {self.port} {anywhere} any {source} {direction}"

    @property
    def rule(self) -> str:
        """The rule as in ufw's rules file."""
        return f"{self.identity} comment={self.comment.encode().hex()}"

    @property
    def command(self) -> str:
        """The command that adds the rule, or gives it its comment."""
        interface = f"in on {self.interface} " if self.interface else ""
        return (
            f"ufw allow {interface}proto {self.protocol} from {self.source}"
            f" to any port {self.port} comment {shlex.quote(self.comment)}"
        )

    @property
    def live(self) -> str:
        """The table and the rule in force, as ``iptables -S`` prints it after ufw has loaded it."""
        tables, infix = ("iptables", "") if self.family == 4 else ("ip6tables", "6")
        source = "" if self.source == ANYWHERE[self.family] else f"-s {self.source} "
        interface = f"-i {self.interface} " if self.interface else ""
        return (
            f"{tables} -t filter -A ufw{infix}-user-input {source}{interface}-p {self.protocol}"
            f" -m {self.protocol} --dport {self.port} -j ACCEPT"
        )

    def container_rule(self, chain: str) -> str:
        """The rule of ``chain`` that accepts the port, as ``iptables -S`` prints it.

        After Docker's translation a packet has the container's own port, so the rule matches the
        connection's original port. It matches translated connections only. Otherwise the same port
        of every container would be open to each machine with a route to its address.
        """
        source = "" if self.source == ANYWHERE[self.family] else f"-s {self.source} "
        interface = f"-i {self.interface} " if self.interface else ""
        return (
            f"-A {chain} {source}{interface}-p {self.protocol} -m conntrack --ctstate DNAT"
            f" --ctorigdstport {self.port} --ctdir ORIGINAL"
            f' -m comment --comment "{self.comment}" -j RETURN'
        )


def _holes(port: Listen | Opening, sources: list[str], why: str) -> list[Hole]:
    networks = [ipaddress.ip_network(source) for source in sources]
    return [
        Hole(
            family=family,
            port=port.port,
            protocol=port.protocol,
            source=str(network),
            interface=port.interface,
            container=port.container,
            why=why,
        )
        for family in FAMILIES
        for network in networks
        if network.version == family
    ]


def holes(settings: HostSettings, services: list[Service], *, lan_ssh: str | None) -> list[Hole]:
    """Every hole that the inventory declares, and SSH on the LAN if ``lan_ssh`` gives a reason.

    A service that listens on the tailnet needs none. Tailscale accepts packets of its interface
    before they reach ufw, and `holdfast.tailnet_rules` apply before both.
    """
    anywhere = list(ANYWHERE.values())
    wanted: list[Hole] = []
    if lan_ssh:
        sources = settings.ssh.lan_sources or anywhere
        wanted += _holes(Listen(port=settings.ssh.port), sources, lan_ssh)
    for service in services:
        for listen in service.listens:
            if listen.scope in ("lan", "public"):
                sources = listen.sources if listen.scope == "lan" else anywhere
                wanted += _holes(listen, sources, service.name)
    for opening in settings.firewall.openings:
        wanted += _holes(opening, opening.sources, opening.reason)
    # Two declarations of one hole make one rule, with the reason of the first.
    unique = {(hole.identity, hole.container): hole for hole in reversed(wanted)}
    return list(reversed(unique.values()))


def container_rules(
    chain: str, declared: list[Hole], external: set[str], family: Family
) -> list[str]:
    """The rules of ``chain`` for ``family``, as ``iptables -S`` prints them.

    Containers may call out and call each other. The tailnet may call published ports, as far as
    `holdfast.tailnet_rules` allow. From ``external`` interfaces only declared ports are open.
    """
    rule = f"-A {chain}"
    outside = sorted(external)
    holes = [hole for hole in declared if hole.container and hole.family == family]
    return [
        f"{rule} -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
        f"{rule} -m conntrack --ctstate INVALID -j DROP",
        f"{rule} -i tailscale0 -j RETURN",
        *(hole.container_rule(chain) for hole in holes),
        *(f"{rule} -i {name} -j DROP" for name in outside),
        # Allow packets that leave by an external interface, even if it is a bridge with a name
        # like Docker's.
        *(f"{rule} -o {name} -j RETURN" for name in outside),
        f"{rule} -i docker0 -j RETURN",
        f"{rule} -i br-+ -j RETURN",
        # Packets from an interface that did not exist when these rules were written.
        f"{rule} -o docker0 -j DROP",
        f"{rule} -o br-+ -j DROP",
        # A bridge with another name: a published port that is not declared stays closed.
        f"{rule} -m conntrack --ctstate DNAT -j DROP",
        f"{rule} -j RETURN",
    ]


def block(declared: list[Hole], external: set[str], family: Family) -> list[str]:
    """The marked block of after.rules; restoring it replaces both chains, each in one step.

    Both chains have the same rules. Docker provides DOCKER-USER for them, but at its start it
    removes the jump and adds it again. In between, running containers were reachable (measured: 394
    answers during two restarts). The other chain comes first, in a table that Docker does not
    change.
    """
    return [
        BLOCK_BEGIN,
        *("*filter", f":{DOCKER_USER} - [0:0]"),
        *container_rules(DOCKER_USER, declared, external, family),
        "COMMIT",
        *("*mangle", f":{GUARD} - [0:0]"),
        *container_rules(GUARD, declared, external, family),
        "COMMIT",
        BLOCK_END,
    ]


def external_interfaces(settings: HostSettings, state: FirewallState) -> set[str]:
    """The interfaces to other machines: those found on the host and those in the inventory."""
    return {*state.external, *settings.interfaces}


def _comment_of(rule: str) -> str:
    found = re.search(r" comment=([0-9a-f]*)$", rule)
    return bytes.fromhex(found.group(1)).decode(errors="replace") if found else ""


def _identity_of(rule: str) -> str:
    return re.sub(r" comment=[0-9a-f]*$", "", rule)


def lan_ssh_rules(state: FirewallState, why: str) -> list[str]:
    """The host's rules of both families that open SSH on the LAN for the reason ``why``."""
    return [
        rule
        for family in (state.v4, state.v6)
        for rule in family.rules
        if _comment_of(rule) == f"{MARK} {why}"
    ]


def lan_ssh_wanted(settings: HostSettings, state: FirewallState) -> str | None:
    """Why SSH must be open on the LAN for now; None if it must not be.

    It is open at first, until `withdraw` has closed it. Then it stays closed, even while other
    rules are repaired: a host that has our rules but not this one has already proved its tailnet.
    A host on which the inventory kept it open until now has proved none. If the host itself opened
    it because its tailnet is lost, the host also closes it.
    """
    if settings.ssh.lan_access == "keep":
        return None  # The ssh service declares where it listens.
    if settings.tailnet is None or lan_ssh_rules(state, UNTIL_TAILNET):
        return UNTIL_TAILNET
    if lan_ssh_rules(state, SSH):
        return UNTIL_TAILNET
    if settings.ssh.lan_return and lan_ssh_rules(state, WITHOUT_TAILNET):
        return WITHOUT_TAILNET
    ours = any(
        _comment_of(rule).startswith(MARK)
        for family in (state.v4, state.v6)
        for rule in family.rules
    )
    return None if ours else UNTIL_TAILNET


def describe(rule: str) -> str:
    """A rule of ufw's file, for an operator."""
    comment = _comment_of(rule)
    return _identity_of(rule) + (f" ({comment})" if comment else "")


def deletion(rule: str) -> str:
    """The command that removes one rule of ufw's file, ours or not."""
    action, protocol, port, destination, source_port, source, *rest = _identity_of(rule).split()
    direction = rest[-1]
    applications = rest[:-1] or ["-", "-"]
    routed = action.startswith("route:")
    verb, _, log = action.removeprefix("route:").partition("_")

    words = ["ufw", *(["route"] if routed else []), "delete", verb]
    for part in direction.split("!"):
        way, _, interface = part.partition("_")
        if interface:
            words += [way, "on", interface]
        elif not routed:
            words.append(way)
    if log:
        words.append(log)
    named = applications != ["-", "-"]
    if protocol != "any" and not named:
        words += ["proto", protocol]
    for word, address, its_port, application in (
        ("from", source, source_port, applications[1]),
        ("to", destination, port, applications[0]),
    ):
        words += [word, address]
        if application != "-":
            words += ["app", application.replace("%20", " ")]
        elif its_port != "any":
            words += ["port", its_port]
    return shlex.join(words)


def programs() -> tuple[Program, Program]:
    """What restores the last proved firewall, and what looks at the one in force.

    What they may not do would lock somebody out: `tests/lab/test_rooted_live.py` has them do it.
    """
    relaxed = (
        *RUNS_UFW,
        *(
            Directive("ReadWritePaths", f"-{path}", why)
            for path, why in (
                ("/etc/default", "what it restores"),
                (ROLLBACK_STATE, "whether a change waits for its proof"),
                ("/proc/sys/net", "the settings that ufw makes"),
            )
        ),
    )
    return (
        Program(
            service=Service(name="firewall-rollback", unit=ROLLBACK_UNIT, user="root", tier="T1"),
            description="Holdfast: undo a firewall change that no login has proved",
            kind="oneshot",
            source=firewall_program,
            command=(PROGRAM, "restore"),
            # ufw waits for it.
            start_seconds=600,
            at_boot=True,
            order=(
                Directive(
                    *("ConditionPathExists", f"{ROLLBACK_STATE}/armed"),
                    "It runs at boot, and at the deadline of a change.",
                ),
                Directive("DefaultDependencies", "no"),
                Directive("After", "local-fs.target"),
                Directive("Before", "ufw.service"),
            ),
            isolated=True,
            relaxed=relaxed,
        ),
        kernel_rules.watch(
            "firewall",
            "Holdfast: keep the proved firewall in force",
            PROGRAM,
            # Which has its guard in front of its rules once it has started.
            after="ufw.service docker.service",
            relaxed=relaxed,
        ),
    )


@dataclass(frozen=True)
class Plan:
    """The commands to run, in order, and the foreign rules that they remove.

    ``preparation`` only changes files; they take effect with ``action``.
    """

    preparation: list[str]
    action: list[str]
    foreign: list[str]

    @property
    def commands(self) -> list[str]:
        """All commands, in order; empty if the host is already as declared."""
        return [*self.preparation, *self.action]


def _chain(live: tuple[str, ...], name: str) -> list[str]:
    return [line for line in live if line.startswith(f"-A {name} ")]


def jump_is_first(live: tuple[str, ...]) -> bool:
    """Whether FORWARD jumps to DOCKER-USER before Docker's own rules and any ACCEPT."""
    deciding = [line for line in _chain(live, "FORWARD") if re.search(r" -j (DOCKER|ACCEPT)", line)]
    return bool(deciding) and deciding[0] == "-A FORWARD -j DOCKER-USER"


def _guarded(
    live: tuple[str, ...], declared: list[Hole], external: set[str], family: Family
) -> bool:
    return (
        jump_is_first(live)
        and f"-A FORWARD -j {GUARD}" in live
        and all(
            _chain(live, chain) == container_rules(chain, declared, external, family)
            for chain in (DOCKER_USER, GUARD)
        )
    )


def _undeclared(lets: Iterable[str]) -> list[str]:
    """The rules in ``lets`` (of ufw's files, or from ``iptables -S``) that no network needs.

    ufw accepts mDNS and SSDP by default. A service that needs them declares that it listens there.
    """
    needed = (
        r" -i lo | --ctstate RELATED,ESTABLISHED | -p (icmp|icmpv6|ipv6-icmp) "
        r"| --sport 67 --dport 68 | --sport 547 (-d \S+ )?--dport 546 "
    )
    return [line for line in lets if not re.search(needed, line)]


def _without(path: str, lines: list[str]) -> str:
    new = f"{path}.holdfast-new"
    these = shlex.join(word for line in lines for word in ("-e", line))
    # grep exits with 1 if no line is left.
    return (
        f"umask 077; {{ grep -vxF {these} {path} || test $? = 1; }} > {new}"
        f" && chmod 640 {new} && mv -fT {new} {path}"
    )


def _ufw_in_force(family: FamilyState, infix: str) -> bool:
    own = rf"-A ufw{infix}-(before|after)-(input|forward) .*-j ACCEPT"
    if _undeclared(line for line in family.live if re.match(own, line)):
        return False
    policies = {"-P INPUT DROP", "-P FORWARD DROP", "-P OUTPUT ACCEPT"}
    jumps = {f"-A {chain} -j ufw{infix}-before-{chain.lower()}" for chain in ("INPUT", "FORWARD")}
    hook = f"-A ufw{infix}-before-input -j ufw{infix}-user-input"
    loaded = len(_chain(family.live, f"ufw{infix}-user-input"))
    return {*policies, *jumps, hook} <= {*family.live} and loaded == family.user_input_lines


def _set_options(wanted: dict[str, str]) -> str:
    path = "/etc/default/ufw"
    lines = [
        f'{key}="{value}"' if value in ("", "DROP", "ACCEPT") else f"{key}={value}"
        for key, value in wanted.items()
    ]
    drop = "|".join(wanted)
    new = f"{path}.holdfast-new"
    return (
        f"grep -vE '^({drop})=' {path} > {new}; printf '%s\\n' {shlex.join(lines)} >> {new}"
        f" && chmod 644 {new} && mv -fT {new} {path}"
    )


def _write_block(path: str, lines: list[str]) -> str:
    new = f"{path}.holdfast-new"
    return (
        f"umask 077; sed '/^{BLOCK_BEGIN}/,/^{BLOCK_END}/d' {path} > {new}"
        f" && printf '%s\\n' {shlex.join(lines)} >> {new}"
        f" && chmod 640 {new} && mv -fT {new} {path}"
    )


def plan(settings: HostSettings, declared: list[Hole], state: FirewallState) -> Plan:
    """The commands that change ``state`` to what ``declared`` demands; none if it is so already.

    Rules are added before others are removed, and ufw is enabled last. So no access that exists
    before and after is interrupted.
    """
    commands: list[str] = []
    options = {key: value for key, value in OPTIONS.items() if state.options.get(key) != value}
    if options:
        commands.append(_set_options(options))

    external = external_interfaces(settings, state)
    blocks_changed = False
    removals: list[str] = []
    foreign: list[str] = []
    families: dict[Family, FamilyState] = {4: state.v4, 6: state.v6}
    for family, present in families.items():
        suffix = "6" if family == 6 else ""
        lines = block(declared, external, family)
        if tuple(lines) != present.block:
            blocks_changed = True
            commands.append(_write_block(f"/etc/ufw/after{suffix}.rules", lines))
        if undeclared := _undeclared(present.lets):
            foreign += undeclared
            commands += [
                _without(f"/etc/ufw/{when}{suffix}.rules", undeclared)
                for when in ("before", "after")
            ]
        wanted = [hole for hole in declared if hole.family == family and not hole.container]
        commands += [hole.command for hole in wanted if hole.rule not in present.rules]
        identities = {hole.identity for hole in wanted}
        for rule in present.rules:
            if _identity_of(rule) not in identities:
                removals.append(deletion(rule))
                if not _comment_of(rule).startswith(MARK):
                    foreign.append(describe(rule))
    # One command may remove the rules of both families, for example those of an application.
    commands += dict.fromkeys(removals)

    enabled = state.options.get("ENABLED") == "yes"
    in_force = _ufw_in_force(state.v4, "") and (
        _ufw_in_force(state.v6, "6") or not state.ipv6_in_kernel
    )
    preparation = [] if enabled else commands
    commands = commands if enabled else ["ufw --force enable"]
    # A login must prove the rules that a boot will load; ufw's own commands leave other rules.
    if commands or not in_force:
        commands.append(LOAD)

    if settings.docker is not None:
        guarded = all(
            _guarded(present.live, declared, external, family)
            for family, present in families.items()
            if family == 4 or state.ipv6_in_kernel
        )
        if blocks_changed or not guarded:
            commands.append(DOCKER_USER_SCRIPT)
    return Plan(preparation, commands, foreign)
