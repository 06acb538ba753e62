"""The lab's internet: everything that leaves a machine by its default route ends here, counted.

A network namespace of the controller at the other end of a machine's card wan0. It holds a
resolver that knows two clouds by name, and both, which answer as OpenAI's API does; any other
address leads here, and no further. What arrives is counted before anything looks at it. Only
ARP, neighbour discovery and multicast of the link are not: no program's words are in them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.lab.machine import Machine
from tests.lab.process import LabError, output_of
from tests.lab.services.ca import CLOUDS, Authority
from tests.lab.services.daemon import Daemon, private_directory

# Documentation's own networks (RFC 5737, RFC 3849): public to every rule, and in use by no one.
MACHINE, GATEWAY = ("198.51.100.2", "2001:db8:1::2"), ("198.51.100.1", "2001:db8:1::1")
RESOLVERS = ("203.0.113.53", "2001:db8:2::53")
ADDRESSES = {
    name: (f"203.0.113.{number}", f"2001:db8:2::{number}") for number, name in enumerate(CLOUDS, 11)
}
NOBODY = ("203.0.113.99", "2001:db8:2::99")
"""Where no program listens; what is sent there is counted as well."""

MARK = "af11"
"""How a machine marks what is no program's on trial; that is not counted. `marking` does so."""

_COUNTERS = """
table inet counted {
    counter v4 {
    }
    counter v6 {
    }
    counter dns {
    }
    set called4 {
        type ipv4_addr . inet_proto; flags dynamic;
    }
    set called6 {
        type ipv6_addr . inet_proto; flags dynamic;
    }
    chain arriving {
        type filter hook prerouting priority raw; policy accept;
        iifname != "cable" return
        ip dscp MARK return
        ip6 dscp MARK return
        icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } return
        ip6 daddr ff00::/8 return
        meta nfproto ipv4 counter name v4 add @called4 { ip daddr . meta l4proto }
        meta nfproto ipv6 counter name v6 add @called6 { ip6 daddr . meta l4proto }
        meta l4proto { tcp, udp } th dport { 53, 853, 5353 } counter name dns
    }
}
"""

_MARKING = """
table inet {table}
delete table inet {table}
table inet {table} {{
    chain leaving {{
        type filter hook output priority mangle; policy accept;
        {match} ip dscp set {mark}
        {match} ip6 dscp set {mark}
    }}
}}
"""

_NETWORKD = f"""[Match]
Name=wan0

[Network]
LinkLocalAddressing=ipv6
IPv6AcceptRA=no
IPv6DuplicateAddressDetection=0
Address={MACHINE[0]}/30
Address={MACHINE[1]}/64

[Route]
Destination=0.0.0.0/1
Gateway={GATEWAY[0]}
GatewayOnLink=yes

[Route]
Destination=128.0.0.0/1
Gateway={GATEWAY[0]}
GatewayOnLink=yes

[Route]
Destination=::/0
Gateway={GATEWAY[1]}
GatewayOnLink=yes
"""


@dataclass(frozen=True)
class Packets:
    """What arrived: packets of IPv4, of IPv6, and those of both that asked a resolver; and to whom
    they were sent, by which protocol."""

    v4: int
    v6: int
    dns: int
    called: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.v4 or self.v6)


UNCOUNTED = {
    # It marks what may not go through the tailnet itself.
    "tailscaled": "meta mark and 0xff0000 == 0x80000",
    "systemd-timesyncd": 'meta skuid "systemd-timesync"',
}
"""Services that call out for reasons of their own, and what tells nft their packets.

tailscaled asks Tailscale's own servers for the name of a control server that is somebody else's,
also where the hosts file names it (1.102); time synchronisation asks for the names of its servers.
"""


def marking(folder: Path) -> None:
    """Lay out, from / in a folder, that what `UNCOUNTED` sends is marked from its next start on."""
    for service, match in UNCOUNTED.items():
        rules = f"usr/share/lab/{service}.nft"
        text = _MARKING.format(table=f"lab_{service.replace('-', '_')}", match=match, mark=MARK)
        # Before there is nft it starts without.
        drop_in = f"[Service]\nExecStartPre=-+/usr/sbin/nft --file /{rules}\n"
        placed = {rules: text, f"etc/systemd/system/{service}.service.d/lab-marking.conf": drop_in}
        for path, content in placed.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content)


class _Resolver(Daemon):
    """dnsmasq: it knows the clouds, and no other name."""

    def __init__(self, services: Path, namespace: str) -> None:
        super().__init__(services, "resolver")
        self._namespace = namespace

    def command(self) -> list[str]:
        """Everything said on the command line; it reads no file."""
        known = [f"--host-record={name},{v4},{v6}" for name, (v4, v6) in ADDRESSES.items()]
        return [
            *("ip", "netns", "exec", self._namespace, "dnsmasq", "--keep-in-foreground"),
            *("--conf-file=/dev/null", f"--pid-file={self.directory}/dnsmasq.pid", "--user=root"),
            *("--no-resolv", "--no-hosts", "--bind-interfaces", "--except-interface=lo0"),
            *(f"--listen-address={address}" for address in RESOLVERS),
            *known,
        ]

    def ready(self) -> bool:
        """Whether it has its port."""
        return _listens(self._namespace, "-u", 53)


class _Api(Daemon):
    """Both clouds' API, told apart by the name that they are called by."""

    def __init__(self, services: Path, namespace: str, authority: Authority) -> None:
        super().__init__(services, "api")
        self._namespace = namespace
        self._authority = authority

    def command(self) -> list[str]:
        """The API's program, in the namespace."""
        program = [sys.executable, "-m", "tests.lab.services.cloud_api", str(self.directory)]
        files = [self._authority.server_certificate, self._authority.server_key]
        return ["ip", "netns", "exec", self._namespace, *program, *map(str, files)]

    def ready(self) -> bool:
        """Whether it has its port."""
        return _listens(self._namespace, "-t", 443)


def _listens(namespace: str, kind: str, port: int) -> bool:
    told = output_of(["ip", "netns", "exec", namespace, "ss", "-Hln", kind, f"sport = :{port}"])
    return bool(told.strip())


class Cloud:
    """The internet of one machine, and the two clouds in it; needs root."""

    def __init__(self, services: Path, name: str, authority: Authority | None = None) -> None:
        """``name``: of its network namespace, which must be made before the machine's power.

        ``authority`` vouches for the clouds; one of their own where it is None.
        """
        self.namespace = name
        self.authority = authority or Authority(services / "ca")
        self._api = _Api(services, name, self.authority)
        self._resolver = _Resolver(services, name)
        self._services = services

    def start(self) -> None:
        """Make the namespace again and have both clouds answer in it."""
        if shutil.which("dnsmasq") is None:
            raise LabError("dnsmasq is not installed here: run tests/lab/setup")
        self.stop()
        private_directory(self._services)
        self.authority.create()
        output_of(["ip", "netns", "add", self.namespace])
        self._ip("link", "set", "lo", "up")
        for address in (*RESOLVERS, *(each for pair in ADDRESSES.values() for each in pair)):
            self._ip("address", "add", address, "dev", "lo")
        self._ip("link", "add", "cable", "type", "bridge")
        for address, length in zip(GATEWAY, (30, 64), strict=True):
            self._ip("address", "add", f"{address}/{length}", "dev", "cable", "nodad")
        self._ip("link", "set", "cable", "up")
        subprocess.run(
            ["ip", "netns", "exec", self.namespace, "nft", "--file", "-"],
            input=_COUNTERS.replace("MARK", MARK),
            text=True,
            check=True,
        )
        self._resolver.start()
        self._api.start()

    def stop(self) -> None:
        """Leave nothing of it."""
        self._api.stop()
        self._resolver.stop()
        if Path("/run/netns", self.namespace).exists():
            output_of(["ip", "netns", "delete", self.namespace])

    def become_the_internet_of(self, rack: Machine) -> None:
        """Have a machine, now and after every boot, reach everything beyond its own links by here.

        Its controller it still reaches.
        """
        rack.succeed(
            f"cat > /etc/systemd/network/20-wan.network <<'END'\n{_NETWORKD}END\n"
            f"networkctl reload && echo nameserver {RESOLVERS[0]} > /etc/resolv.conf"
        )
        for address in (address for pair in ADDRESSES.values() for address in pair):
            rack.wait_until_succeeds(f"timeout 5 bash -c '</dev/tcp/{address}/443'", 60)

    def packets(self) -> Packets:
        """What has arrived since the last look."""
        nft = ["ip", "netns", "exec", self.namespace, "nft", "--json"]
        told = json.loads(output_of([*nft, "reset", "counters", "table", "inet", "counted"]))
        counted = {
            entry["counter"]["name"]: int(entry["counter"]["packets"])
            for entry in told["nftables"]
            if "counter" in entry
        }
        called = []
        for name in ("called4", "called6"):
            listed = json.loads(output_of([*nft, "list", "set", "inet", "counted", name]))
            elements = listed["nftables"][-1]["set"].get("elem", [])
            called += [" ".join(map(str, element["concat"])) for element in elements]
            output_of([*nft, "flush", "set", "inet", "counted", name])
        return Packets(**counted, called=tuple(called))

    def asked(self) -> list[dict[str, object]]:
        """Every request that a cloud was sent: its cloud, path, key, body and bytes."""
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self._api.directory / "asked").open()]
        return []

    def forget(self) -> None:
        """Forget what was asked and what arrived."""
        (self._api.directory / "asked").unlink(missing_ok=True)
        self.packets()

    def answer(self, name: str, status: int = 200) -> None:
        """Have a cloud answer everything with ``status``."""
        (self._api.directory / name).write_text(str(status))

    def _ip(self, *words: str) -> None:
        output_of(["ip", "-netns", self.namespace, *words])
