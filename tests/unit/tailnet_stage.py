"""A rack, a peer on its tailnet and a container, in three network namespaces.

Run as root by `test_tailnet_rules_live.py` in a network namespace of its own, with the rules of a
host, the program that keeps them, and whether to load them. Prints what the peer reached.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from select import select
from typing import Any

from holdfast import tailnet_rules
from tests.unit.egress_stage import sh

RACK = {4: "100.64.0.1", 6: "fd7a:115c:a1e0::1"}
ON_THE_LAN = "10.77.0.10"
PEER = {4: "100.64.0.2", 6: "fd7a:115c:a1e0::2"}
MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
CONTAINER = "172.17.0.2"
SSH, DECLARED, NOBODYS, DATAGRAMS = 22, 8090, 8099, 8091
PEERS_OWN = 8095
PUBLISHED, UNDECLARED = 8092, 8093
"""Ports that lead to the container's port 80."""
DOCKER = f"""
table ip docker {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        tcp dport {{ {PUBLISHED}, {UNDECLARED} }} dnat to {CONTAINER}:80
    }}
}}
"""
_CALL = """
import errno, json, socket, sys
said = {}
for protocol, address, port in json.loads(sys.argv[1]):
    name = f"{protocol} {address} {port}"
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as call:
            call.settimeout(2)
            call.connect((address, port))
            call.send(b"hello")
            said[name] = call.recv(9).decode()
    except OSError as error:
        said[name] = errno.errorcode.get(error.errno or 0, "silence")
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ping:
    ping.settimeout(2)
    # Echo request, id 1, sequence 1.
    ping.sendto(bytes.fromhex("0800f7fd00010001"), ("100.64.0.1", 0))
    try:
        said["ping"] = "answered" if ping.recv(64)[20] == 0 else "refused"
    except OSError:
        said["ping"] = "silence"
print(json.dumps(said))
"""


class Namespaces:
    """This namespace is the rack; ``peer`` and ``box`` are processes in those beside it."""

    def __init__(self, peer: int, box: int) -> None:
        self.peer = f"nsenter --target {peer} --net"
        self.box = f"nsenter --target {box} --net"
        sh(f"""
            ip link set lo up
            ip link add tailscale0 address {MAC[0]} type veth peer name far address {MAC[1]}
            ip link add eth0 type veth peer name near
            ip link add docker0 type veth peer name inside
            ip link set far netns {peer}
            ip link set near netns {peer}
            ip link set inside netns {box}
            ip address add {RACK[4]}/24 dev tailscale0
            ip address add {RACK[6]}/64 dev tailscale0 nodad
            ip address add {ON_THE_LAN}/24 dev eth0
            ip address add 172.17.0.1/24 dev docker0
            for link in tailscale0 eth0 docker0; do ip link set $link up; done
            # Tailscale's interface has no link layer, on which neighbours would be looked for.
            ip neighbour add {PEER[6]} lladdr {MAC[1]} dev tailscale0 nud permanent
            {self.peer} sh -euc '
                ip link set lo up
                ip address add {PEER[4]}/24 dev far
                ip address add {PEER[6]}/64 dev far nodad
                ip address add 10.77.0.20/24 dev near
                ip link set far up
                ip link set near up
                ip neighbour add {RACK[6]} lladdr {MAC[0]} dev far nud permanent
                ip route add 172.17.0.0/24 via {RACK[4]}'
            {self.box} sh -euc '
                ip link set lo up
                ip address add {CONTAINER}/24 dev inside
                ip link set inside up
                ip route add default via 172.17.0.1'
            sysctl --quiet --write net.ipv4.ip_forward=1
        """)
        subprocess.run(["nft", "--file", "-"], input=DOCKER, text=True, check=True)

    def calls(self) -> list[tuple[str, str, int]]:
        """What the peer tries."""
        ports = (SSH, DECLARED, NOBODYS)
        return [
            *(("tcp", address, port) for address in RACK.values() for port in ports),
            *(("udp", RACK[4], port) for port in (DATAGRAMS, NOBODYS)),
            ("tcp", ON_THE_LAN, NOBODYS),
            *(("tcp", RACK[4], port) for port in (PUBLISHED, UNDECLARED)),
            ("tcp", CONTAINER, 80),
        ]

    def tried(self) -> dict[str, str]:
        """What became of it."""
        calls = json.dumps(self.calls())
        done = subprocess.run(
            [*self.peer.split(), sys.executable, "-c", _CALL, calls],
            check=True,
            capture_output=True,
            text=True,
        )
        said: dict[str, str] = json.loads(done.stdout)
        return said


def listening(protocol: str, port: int) -> socket.socket:
    """A listener at every address of this namespace."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    listener = socket.socket(socket.AF_INET6, kind)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", port))
    if protocol == "tcp":
        listener.listen()
    return listener


def greet(*listeners: socket.socket) -> None:
    """Answer every call at these listeners, for ever; prints a line when it begins."""
    print(flush=True)
    while True:
        for listener in select(listeners, [], [])[0]:
            if listener.type == socket.SOCK_STREAM:
                connection, _ = listener.accept()
                connection.sendall(b"hello")
                connection.close()
            else:
                _, caller = listener.recvfrom(9)
                listener.sendto(b"hello", caller)


def refused() -> int:
    """Packets refused so far."""
    said = json.loads(sh(f"nft --json list counters table inet {tailnet_rules.TABLE}"))
    (counter,) = [each["counter"] for each in said["nftables"] if "counter" in each]
    return int(counter["packets"])


def calls_out(stage: Namespaces) -> str:
    """What the rack hears when it calls its peer."""
    with socket.create_connection((PEER[4], PEERS_OWN), timeout=2) as call:
        return call.recv(9).decode()


def in_namespace(of: str, text: str) -> None:
    """Run this module's ``text`` there, in the background."""
    code = f"from tests.unit.tailnet_stage import *; {text}"
    started = subprocess.Popen([*of.split(), sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert started.stdout is not None
    started.stdout.readline()


def main(folder: str, peer: str, box: str, wall: str) -> None:
    """Try everything, with the wall or without it, and print what came of it."""
    stage = Namespaces(int(peer), int(box))
    in_namespace(stage.box, "greet(listening('tcp', 80))")
    in_namespace(stage.peer, f"greet(listening('tcp', {PEERS_OWN}))")
    declared = [("tcp", SSH), ("tcp", DECLARED), ("tcp", NOBODYS), ("udp", DATAGRAMS)]
    in_namespace("env", f"greet(*[listening(*each) for each in {[*declared, ('udp', NOBODYS)]}])")
    program = f"sh {folder}/holdfast-tailnet"
    said: dict[str, Any] = {}
    if wall == "wall":
        sh(f"{program} load")
    said["tried"] = stage.tried()
    said["called"] = calls_out(stage)
    if wall == "wall":
        said["refused"] = refused()

        def watch() -> list[Any]:
            done = subprocess.run(
                [*program.split(), "watch"], capture_output=True, text=True, check=False
            )
            return [done.returncode, done.stderr.strip()]

        said["untouched"] = watch()
        table = f"inet {tailnet_rules.TABLE}"
        sh(f"nft insert rule {table} input accept")
        said["changed"] = [watch(), watch()]
        sh("nft flush ruleset")
        said["gone"] = [watch(), watch()]
        said["tried after it was gone"] = stage.tried()
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
