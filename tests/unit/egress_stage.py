"""A machine and a world beyond it, in two network namespaces: what is sent is counted over there.

Run as root by `test_egress_live.py` in a network namespace of its own, with the rules and users of
a host, and whether to load them. `games` is the user of a T1 service, `news` of a T2 service that
declares peers, `man` of one that declares clouds, `mail` of one that declares nothing. `home` and
`lab` are networks as Docker makes them, of T1 and of a T2 that declares clouds, each with a
container. Prints what each of them tried and what arrived.
"""

from __future__ import annotations

import contextlib
import ctypes
import encodings.idna  # noqa: F401  (before the change to a user who may not read it)
import errno
import io
import json
import os
import pwd
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast import base
from holdfast.doors import MARK
from holdfast.host_programs import egress as egress_program

WORLD = {4: "192.0.2.1", 6: "2001:db8::1"}
"""What lies beyond the gateway; the far namespace answers for it."""
NAS = {4: "10.77.0.30", 6: "fd77::30"}
OTHER_TIER = 4000
OWN_TIER = 8080
RACK = {4: "10.77.0.10", 6: "fd77::10"}
QUAD100 = "100.100.100.100"
RELAY = "198.51.100.9"
"""One of Tailscale's own."""
NETWORKS = {"home": 1, "lab": 2}
"""Docker's networks by their number."""
CLONE_NEWNET = 0x40000000
WITNESS = """
table inet witness {
    counter calls {
    }
    counter any {
    }
    counter neighbours {
    }
    set groups-ip {
        type ipv4_addr
        flags dynamic
    }
    set groups-ip6 {
        type ipv6_addr
        flags dynamic
    }
    chain arrived {
        type filter hook prerouting priority raw;
        tcp flags & (syn | ack) == syn counter name calls
        meta l4proto udp counter name calls
        meta l4proto { tcp, udp } counter name any
        ip6 saddr fd00:30::/32 meta l4proto icmpv6 counter name neighbours
        ip protocol igmp add @groups-ip { ip daddr }
        icmpv6 type { mld-listener-report, mld2-listener-report } add @groups-ip6 { ip6 daddr }
    }
}
"""
_FORCED = ("net/ipv4/conf/all/force_igmp_version", "net/ipv6/conf/all/force_mld_version")
_AS_DECLARED = "".join(f"echo {base.SYSCTLS[each]} > /proc/sys/{each}\n" for each in _FORCED)
_KERNELS_OWN = "".join(f"echo 0 > /proc/sys/{each}\n" for each in _FORCED)
"""How the kernel tells of the groups it is in: as the site has it, and as it does by itself."""
_SERVE = """
import signal, socket
ports = (22, 80, 443, 2049)
servers = [
    socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
    for port in ports
]
print(flush=True)
signal.pause()
"""


def sh(text: str) -> str:
    """Output of a shell command that must succeed."""
    return subprocess.run(["sh", "-euc", text], check=True, capture_output=True, text=True).stdout


def container_address(name: str, version: int) -> str:
    """The address of a network's only container."""
    number = NETWORKS[name]
    return f"172.30.{number}.2" if version == 4 else f"fd00:30:{number}::2"


def _container(name: str, number: int) -> subprocess.Popen[bytes]:
    """A network as Docker makes it, with a container on it that has no more than its network."""
    # The reader of what this program prints must not wait for it.
    inside = subprocess.Popen(["unshare", "--net", "sleep", "300"], stdout=subprocess.DEVNULL)
    ours = Path("/proc/self/ns/net").readlink()
    while Path(f"/proc/{inside.pid}/ns/net").readlink() == ours:
        time.sleep(0.02)
    bridge, v4, v6 = f"br-{name}", f"172.30.{number}", f"fd00:30:{number}:"
    sh(f"""
        ip link add {bridge} type bridge
        ip address add {v4}.1/24 dev {bridge}
        ip address add {v6}:1/64 dev {bridge} nodad
        ip link set {bridge} up
        ip link add veth{number} type veth peer name eth0 netns {inside.pid}
        ip link set veth{number} master {bridge} up
        nsenter --target {inside.pid} --net sh -euc '
            ip link set lo up
            ip address add {v4}.2/24 dev eth0
            ip address add {v6}:2/64 dev eth0 nodad
            ip link set eth0 up
            ip route add default via {v4}.1
            ip -6 route add default via {v6}:1'
    """)
    return inside


class Stage:
    """This namespace is the machine, ``pid`` lives in the one beyond."""

    def __init__(self, pid: int) -> None:
        self.far = f"nsenter --target {pid} --net"
        sh(f"""
            ip link set lo up
            {_AS_DECLARED}
            ip link add eth0 type veth peer name far
            ip link set far netns {pid}
            ip address add 10.77.0.10/24 dev eth0
            ip address add fd77::10/64 dev eth0 nodad
            ip link set eth0 up
            {self.far} sh -euc '
                ip link set lo up
                ip address add 10.77.0.30/24 dev far
                ip address add fd77::30/64 dev far nodad
                ip address add 192.0.2.1/32 dev lo
                ip address add 2001:db8::1/128 dev lo nodad
                ip address add {QUAD100}/32 dev lo
                ip address add {RELAY}/32 dev lo
                ip link set far up
                ip route add 172.30.0.0/16 via 10.77.0.10
                ip -6 route add fd00:30::/32 via fd77::10'
            ip route add default via 10.77.0.30
            ip -6 route add default via fd77::30
            sysctl --quiet --write net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
        """)
        processes = {name: _container(name, number) for name, number in NETWORKS.items()}
        self.containers = {name: process.pid for name, process in processes.items()}
        subprocess.run(
            [*self.far.split(), "nft", "--file", "-"], input=WITNESS, text=True, check=True
        )
        self.world = subprocess.Popen(
            [*self.far.split(), sys.executable, "-c", _SERVE], stdout=subprocess.PIPE
        )
        assert self.world.stdout is not None
        self.world.stdout.readline()
        self.processes = [self.world, *processes.values()]

    def groups(self) -> set[str]:
        """The groups that the far side was told of: where such reports have gone."""
        said = json.loads(sh(f"{self.far} nft --json list sets table inet witness"))
        sets = [each["set"] for each in said["nftables"] if "set" in each]
        return {str(group) for each in sets for group in each.get("elem", [])}

    def arrived(self, what: str) -> int:
        """What has come to the far side so far: new ``calls``, packets of ``any`` kind, or what
        containers say to ``neighbours``."""
        said = json.loads(sh(f"{self.far} nft --json list counter inet witness {what}"))
        return int(said["nftables"][1]["counter"]["packets"])


def as_user(name: str | int, attempt: Callable[[], None], container: int | None = None) -> str:
    """What becomes of an attempt as a user, an account's name or any id: errno's name or "sent".

    In the network of a ``container`` (its pid), where one is given.
    """
    read, write = os.pipe()
    if os.fork() == 0:
        said = "broken"
        try:
            if container:
                with Path(f"/proc/{container}/ns/net").open() as network:
                    assert ctypes.CDLL(None).setns(network.fileno(), CLONE_NEWNET) == 0
            os.setgroups([])
            user = name if isinstance(name, int) else pwd.getpwnam(name).pw_uid
            os.setgid(user)
            os.setuid(user)
            attempt()
            said = "sent"
        except OSError as error:
            said = errno.errorcode.get(error.errno or 0, str(error))
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        said = answer.read()
    os.wait()
    return said


def tcp(address: str, port: int) -> Callable[[], None]:
    """Connect."""
    return lambda: socket.create_connection((address, port), timeout=2).close()


def udp(address: str, port: int) -> Callable[[], None]:
    """Send a datagram."""

    def attempt() -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.connect((address, port))
            sender.send(b"name?")

    return attempt


def attempts() -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything that is tried, by name."""
    for version in (4, 6):
        yield f"tcp{version} world", tcp(WORLD[version], 443)
        yield f"udp{version} world", udp(WORLD[version], 443)
        yield f"dns{version} world", udp(WORLD[version], 53)
        yield f"tcp{version} nas, declared port", tcp(NAS[version], 2049)
        yield f"tcp{version} nas, other port", tcp(NAS[version], 22)
        yield f"dns{version} nas", udp(NAS[version], 53)
        yield f"tcp{version} other tier by the machine's address", tcp(RACK[version], OTHER_TIER)
    for address in ("127.0.0.1", "127.0.0.53", "::1"):
        yield f"dns loopback {address}", udp(address, 53)
        yield f"dns over tcp {address}", tcp(address, 53)
    yield "mdns loopback", udp("127.0.0.1", 5353)
    yield "dns over tls loopback", tcp("127.0.0.1", 853)
    yield "tailscale's own", tcp(QUAD100, 80)
    for address in ("127.0.0.1", "::1"):
        yield f"other tier {address}", tcp(address, OTHER_TIER)
        yield f"own tier {address}", tcp(address, OWN_TIER)


@contextmanager
def listening() -> Iterator[list[socket.socket]]:
    """Programs of this machine, as root: two resolvers' worth of ports and two services."""
    found = []
    for port in (53, 853, OTHER_TIER, OWN_TIER):
        server = socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64
        )
        found.append(server)
    resolver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    resolver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    resolver.bind(("::", 53))
    multicast = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    multicast.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    multicast.bind(("::", 5353))
    yield [*found, resolver, multicast]
    for each in (*found, resolver, multicast):
        each.close()


def asked(listeners: list[socket.socket]) -> list[int]:
    """Ports of this machine that something has come to."""
    found = []
    for listener in listeners:
        listener.setblocking(False)
        try:
            if listener.type == socket.SOCK_STREAM:
                listener.accept()[0].close()
            else:
                listener.recv(64)
            found.append(listener.getsockname()[1])
        except BlockingIOError:
            continue
    return sorted(set(found))


def container_attempts(network: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything that is tried from a container, by name."""
    for version in (4, 6):
        yield f"tcp{version} world", tcp(WORLD[version], 443)
        yield f"tcp{version} world, other port", tcp(WORLD[version], 80)
        yield f"udp{version} world", udp(WORLD[version], 443)
        yield f"dns{version} world", udp(WORLD[version], 53)
        yield f"tcp{version} nas, declared port", tcp(NAS[version], 2049)
        yield f"tcp{version} nas, other port", tcp(NAS[version], 22)
        yield f"dns{version} nas", udp(NAS[version], 53)
        gateway = container_address(network, version)[:-1] + "1"
        for what, address in (("bridge", gateway), ("machine", RACK[version])):
            yield f"dns{version} {what}", udp(address, 53)
            yield f"other tier, tcp{version} {what}", tcp(address, OTHER_TIER)
            yield f"own tier, tcp{version} {what}", tcp(address, OWN_TIER)
        for other in NETWORKS:
            if other != network:
                yield f"tcp{version} other network", tcp(container_address(other, version), 2342)
    yield "tailscale's own", tcp(QUAD100, 80)


ORDINARY = ("239.1.2.3", "ff05::5ec:4e7")
"""Groups of a user's choice."""
OF_AN_ADDRESS = "ff02::1:ff5e:c4e7"
"""A group such as an address of this machine has; no address here has it."""
SOURCE_SPECIFIC = "232.1.2.3"
NEW_ADDRESS = "fd77::abcd:1234"
GROUP_OF_NEW_ADDRESS = "ff02::1:ffcd:1234"


def join(*groups: str) -> Callable[[], None]:
    """Join groups on the cable to the far side, and stay for a moment."""

    def attempt() -> None:
        cable = socket.if_nametoindex("eth0")
        with contextlib.ExitStack() as stack:
            for group in groups:
                version = socket.AF_INET6 if ":" in group else socket.AF_INET
                member = stack.enter_context(socket.socket(version, socket.SOCK_DGRAM))
                number = socket.inet_pton(version, group)
                if version == socket.AF_INET6:
                    wanted = number + struct.pack("@I", cable)
                    member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, wanted)
                else:
                    wanted = number + struct.pack("@4si", bytes(4), cable)
                    member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, wanted)
            time.sleep(2)

    return attempt


def multicast_on_a_bridge(stage: Stage) -> dict[str, int]:
    """How often the T1 network was kept from leaving by what comes to a group on its bridge.

    From this machine itself, and from a container that says it is this machine.
    """
    bridge = socket.if_nametoindex("br-home")
    groups = {4: "224.0.0.251", 6: "ff02::fb"}
    members = []
    for version, group in groups.items():
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        member = socket.socket(family, socket.SOCK_DGRAM)
        number = socket.inet_pton(family, group)
        if version == 6:
            wanted = number + struct.pack("@I", bridge)
            member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, wanted)
            member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, bridge)
        else:
            wanted = number + struct.pack("@4si", bytes(4), bridge)
            member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, wanted)
            member.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, wanted)
        members.append((member, group))

    def denied() -> int:
        said = json.loads(sh(f"nft --json list counter inet {egress_program.TABLE} denied-home"))
        return int(said["nftables"][1]["counter"]["packets"])

    def forge() -> None:
        address = container_address("home", 6)[:-1] + "1"
        sh(f"ip -6 address add {address}/128 dev eth0 nodad")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.bind((address, 0))
            link = struct.pack("@I", socket.if_nametoindex("eth0"))
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link)
            sender.sendto(b"secret", (groups[6], 5353))
        sh(f"ip -6 address delete {address}/128 dev eth0")

    found, before = {}, denied()
    for member, group in members:
        member.sendto(b"hello", (group, 5353))
    found["of this machine"] = denied() - before
    before = denied()
    as_user("root", forge, stage.containers["home"])
    found["of a container"] = denied() - before
    for member, _ in members:
        member.close()
    return found


def memberships(stage: Stage) -> dict[str, Any]:
    """The groups that the far side hears of: of a T1 user's choice, and of a new address.

    Tried as the site has the kernel, and as the kernel is by itself.
    """
    groups = (*ORDINARY, OF_AN_ADDRESS, SOURCE_SPECIFIC)
    said: dict[str, Any] = {"joined": as_user("games", join(*groups))}
    # The kernel reports a group twice, the second time within ten seconds, and no more.
    for _ in range(3):
        sh(f"ip address add {NEW_ADDRESS}/64 dev eth0")
        deadline = time.monotonic() + 12
        while GROUP_OF_NEW_ADDRESS not in stage.groups() and time.monotonic() < deadline:
            time.sleep(0.2)
        if GROUP_OF_NEW_ADDRESS in stage.groups():
            break
        sh(f"ip address delete {NEW_ADDRESS}/64 dev eth0")
    said["heard"] = sorted(stage.groups())
    sh(_KERNELS_OWN)
    sh(f"{stage.far} nft flush set inet witness groups-ip")
    sh(f"{stage.far} nft flush set inet witness groups-ip6")
    said["joined later"] = as_user("games", join(*groups))
    said["heard from a kernel that is not set"] = sorted(stage.groups())
    return said


def try_all(stage: Stage, who: str) -> dict[str, Any]:
    """What becomes of the attempts of a user or a network's container.

    How many packets got away, and which ports of the machine were reached.
    """
    container = stage.containers.get(who)
    tries = container_attempts(who) if container else attempts()
    with listening() as listeners:
        before = stage.arrived("calls")
        outcomes = {
            name: as_user("root" if container else who, attempt, container)
            for name, attempt in tries
        }
        return {
            "outcomes": outcomes,
            "away": stage.arrived("calls") - before,
            "ports": asked(listeners),
        }


CALLERS = {"lan": NAS[4], "lan6": NAS[6], "world": WORLD[4]}
_CALL = """
import socket, sys, time
rack, source = sys.argv[1:]
print("ready", flush=True)
while True:
    try:
        call = socket.create_connection((rack, 2342), timeout=1, source_address=(source, 0))
        break
    except ConnectionRefusedError:
        time.sleep(0.02)
call.settimeout(3)
print(call.recv(9).decode())
"""


def _calls_from(command: list[str], address: str, source: str) -> subprocess.Popen[str]:
    """A caller that calls until it is let in, or hears nothing.

    It has started when this returns: who answers waits for a call, and not for a process.
    """
    caller = subprocess.Popen(
        [*command, sys.executable, "-c", _CALL, address, source],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert caller.stdout is not None
    caller.stdout.readline()
    return caller


def container_answers(stage: Stage, source: str) -> str:
    """What the container of the T1 network says to a caller with the address ``source``."""
    version = 6 if ":" in source else 4
    address = container_address("home", version)
    ours = source == address[:-1] + "1"
    caller = _calls_from([] if ours else stage.far.split(), address, source)

    def serve() -> None:
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        server = socket.create_server((address, 2342), family=family)
        server.settimeout(2)
        server.accept()[0].sendall(b"hello")

    as_user("root", serve, stage.containers["home"])
    return caller.communicate(timeout=60)[0].strip()


def answers(stage: Stage, source: str, *, handed: bool) -> str:
    """What a T1 service says to a caller with the address ``source``.

    It listens itself, or on a port that root has ``handed`` to it, as systemd does.
    """
    version = 6 if ":" in source else 4
    caller = _calls_from(stage.far.split(), RACK[version], source)

    def listen() -> socket.socket:
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        server = socket.create_server((RACK[version], 2342), family=family)
        server.settimeout(2)
        return server

    server = listen() if handed else None
    if server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)

    def serve() -> None:
        (server or listen()).accept()[0].sendall(b"hello")

    as_user("games", serve)
    if server:
        server.close()
    return caller.communicate(timeout=60)[0].strip()


def by_a_door() -> str:
    """What becomes of a call by a socket that root made for a door, and a T1 user took over."""
    with listening(), socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        door.settimeout(2)
        return as_user("games", lambda: door.connect(("127.0.0.1", 53)))


TAILSCALED_MARK = 0x80000
"""On every socket by which tailscaled leaves the machine."""


def by_tailscaled() -> dict[str, str]:
    """What becomes of calls of tailscaled's, whose control server is `WORLD` at port 443."""

    def marked(kind: socket.SocketKind, address: str, port: int) -> Callable[[], None]:
        def attempt() -> None:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, kind) as caller:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, TAILSCALED_MARK)
                caller.settimeout(2)
                caller.connect((address, port))
                caller.send(b"hello")

        return attempt

    tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
    tries = {
        "control": marked(tcp, WORLD[4], 443),
        "control, IPv6": marked(tcp, WORLD[6], 443),
        "control, another port": marked(tcp, WORLD[4], 22),
        "another relay": marked(tcp, RELAY, 443),
        "a peer by udp": marked(udp, WORLD[4], 443),
        "the router of the LAN": marked(tcp, NAS[4], 22),
    }
    return {name: as_user("root", attempt) for name, attempt in tries.items()}


def away_as_neighbours(stage: Stage) -> int:
    """Packets that a T1 container gets away as what neighbours say to each other, six kinds."""

    def attempt() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
            for kind in (131, 132, 133, 135, 136, 143):
                sender.sendto(bytes([kind, 0, 0, 0]) + b"secret" * 8, (WORLD[6], 0))

    as_user("root", attempt, stage.containers["home"])
    return stage.arrived("neighbours")


def away_from_open_connection(stage: Stage) -> int:
    """Packets that a connection gets away which a T1 user had before there were rules."""
    # A connection is whose it was when it was made.
    os.seteuid(pwd.getpwnam("games").pw_uid)
    connection = socket.create_connection((WORLD[4], 443), timeout=2)
    os.seteuid(0)
    assert egress_program.main("load") == 0
    before = stage.arrived("any")
    with contextlib.suppress(OSError):
        connection.send(b"secret")
    connection.close()
    deadline = time.monotonic() + 5
    # What the program has closed the kernel still tries to send.
    while sh(f"ss -Htn dst {WORLD[4]}") and time.monotonic() < deadline:
        time.sleep(0.05)
    return stage.arrived("any") - before


def tampered(stage: Stage, watch: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the watch tells, and what gets away, when the table or what it follows from changes."""
    said: dict[str, Any] = {}
    table = f"inet {egress_program.TABLE}"
    sh(f"nft flush chain {table} from-photos")
    said["changed"] = watch()
    sh(f"nft delete table {table}")
    said["gone"] = watch()
    said["away after it was gone"] = try_all(stage, "games")["away"]
    egress_program.main("load")
    said["loaded before anybody looked"] = watch()
    Path(egress_program.SUBUID).write_text("games:700000:100\nnews:800000:100\n")
    said["ids were lent"] = watch()
    said["table"] = sh(f"nft list chain {table} output")
    Path(egress_program.USERS).write_text('{"games": "photos", "nobody-here": "router"}')
    said["a user went"] = watch()
    said["table without the user"] = sh(f"nft list chain {table} output")
    sh(f"nft delete element {table} clouds-ip-lab '{{ {WORLD[4]} . 443 }}'")
    said["a set was changed"] = watch()
    said["refused meanwhile"] = try_all(stage, "lab")["outcomes"]["tcp4 world"]
    egress_program.main("resolve")
    said["let through again"] = try_all(stage, "lab")["outcomes"]["tcp4 world"]
    return said


def main(folder: str, far_pid: str, wall: str) -> None:
    """Try everything, with the wall or without it, and print what came of it."""
    egress_program.RULES = f"{folder}/egress.nft"
    egress_program.USERS = f"{folder}/users.json"
    egress_program.RECORD = f"{folder}/loaded.json"
    egress_program.SUBUID = f"{folder}/subuid"
    egress_program.CLOUDS = f"{folder}/clouds.json"
    egress_program.NETWORKS = f"{folder}/networks.json"
    egress_program.RESOLVERS = ()
    egress_program.DOCKER_RUNS = f"{folder}/docker.pid"
    egress_program._addresses = lambda name: [WORLD[4], WORLD[6]]
    stage = Stage(int(far_pid))
    said: dict[str, Any] = {}

    def watch() -> dict[str, Any]:
        """What two looks in a row have to tell, and what the first one says."""
        with contextlib.redirect_stderr(io.StringIO()) as words:
            status = egress_program.main("watch")
            lines = words.getvalue().splitlines()
            return {"first": status, "said": lines, "second": egress_program.main("watch")}

    Path(egress_program.SUBUID).write_text("games:700000:100\nmail:800000:100\n")
    if wall == "wall":
        said["away from an open connection"] = away_from_open_connection(stage)
        egress_program.main("watch")
        said["before names resolve"] = {who: try_all(stage, who) for who in ("man", "lab")}
        said["tailscaled before names resolve"] = by_tailscaled()
        egress_program.main("watch")
        egress_program.main("resolve")
        said["after names resolve"] = watch()
        egress_program.main("load")
    said["by ids"] = {
        who: as_user(who, tcp(WORLD[4], 443)) for who in (700_000, 800_000, 524_288, 2**31)
    }
    for who in ("games", "news", "mail", "man", "root", *NETWORKS):
        said[who] = try_all(stage, who)
    said["answers"] = {
        name: answers(stage, source, handed=False) for name, source in CALLERS.items()
    }
    gateways = {"this machine": "172.30.1.1", "this machine, IPv6": "fd00:30:1::1"}
    said["containers answer"] = {
        name: container_answers(stage, source) for name, source in {**CALLERS, **gateways}.items()
    }
    said["by a door"] = by_a_door()
    said["by tailscaled"] = by_tailscaled()
    said["away as neighbours"] = away_as_neighbours(stage)
    said["memberships"] = memberships(stage)
    said["handed"] = {name: answers(stage, source, handed=True) for name, source in CALLERS.items()}
    if wall == "wall":
        said["to a group on a bridge"] = multicast_on_a_bridge(stage)
        said["attempts"] = watch()
        said |= tampered(stage, watch)
    for process in stage.processes:
        process.kill()
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
