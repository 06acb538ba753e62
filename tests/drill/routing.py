"""The drill of routing: chains whose engines come and go, and a cloud that nobody reaches.

On a systemd container at the controller's own speed, as `serving.py`, with stand-ins for engines
and the real floor. Once it has its packages, the internet that the machine reaches is the lab's own
(`tests/lab/services/cloud.py`), where every packet is counted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from holdfast import alerts, egress, floor
from holdfast.registry import router_service
from holdfast.router import CALLERS, RouterNames
from tests import malice
from tests.drill import personal, routers, sabotage, sabotages
from tests.drill.container_stage import ContainerStage
from tests.drill.converge import ROOT
from tests.drill.personal import Personal
from tests.drill.rehearsal import Act, Rehearsal, load_probe_image
from tests.drill.site import Site, versions
from tests.lab.artefacts import container, tiny_llama
from tests.lab.services.ca import CLOUDS
from tests.lab.services.cloud import ADDRESSES, NOBODY, RESOLVERS, Cloud

FOLDER = ROOT / ".lab" / "routing"
DEPLOY = "tests/drill/routing_site.py"
JUDGED = frozenset({"test_router.py", "test_clouds.py", "test_ledger.py"})
SECRETS = ("CHAT_KEY", "LEGAL_KEY", "WORK_KEY", "CLIENT_KEY", "FLOOR_API_KEY")
ENGINES = {"chat": 8100, "legal": 8101}
WORK, CLIENT = 8200, 8201
ONE = f"https://{CLOUDS[0]}/"
WAYS = ("-s -k -m 5 -o /dev/null -4", "-s -k -m 5 -o /dev/null -6")
WAITING = 20
WORK_ROUTER: dict[str, object] = {
    "name": "work",
    "profile": "private",
    "port": WORK,
    "api_key": "WORK_KEY",
    "engines": ["chat"],
    "floor": True,
    "queue": {"entries": WAITING, "max_age_minutes": 1},
}
CLIENT_ROUTER: dict[str, object] = {
    "name": "client",
    "profile": "client",
    "port": CLIENT,
    "api_key": "CLIENT_KEY",
    "engines": ["legal"],
}
ASKED = 300
VERSIONS = {
    "kernel": "uname -r",
    "systemd": "systemctl --version | head -n 1",
    "haproxy": "haproxy -v | head -n 1",
    "sqlite": "python3 -c 'import sqlite3; print(sqlite3.sqlite_version)'",
}
# Runs on the machine: asks so often, by a connection of its own each time; milliseconds a line.
_CLOCK = """
import http.client, sys, time
port, path, key, count = int(sys.argv[1]), "/v1/completions", sys.stdin.readline().strip(), {asked}
body = '{{"prompt": "ready", "max_tokens": 1}}'
headers = {{"Authorization": key, "Content-Type": "application/json"}}
for _ in range(count):
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", path, body, headers)
    assert connection.getresponse().read()
    connection.close()
    print((time.perf_counter() - began) * 1000)
"""


_OLDER = """
import sqlite3
with sqlite3.connect("/var/lib/holdfast/queue/work/queue.db") as store:
    store.execute("UPDATE entry SET asked = asked - 120")
"""

# A T1 service that is its owner's. systemd hands it its socket, which root has made, and by that it
# tries to call.
PHOTOS = 2342
_PHOTOS = """
import socket
listener = socket.socket(fileno=3)
caller, _ = listener.accept()
try:
    listener.shutdown(socket.SHUT_RDWR)
    listener.settimeout(3)
    listener.connect(("{cloud}", 443))
    said = "out"
except OSError as error:
    said = str(error)
caller.sendall(said.encode())
"""
PHOTOS_UNITS = {
    "photos.socket": f"[Socket]\nListenStream=0.0.0.0:{PHOTOS}\n",
    "photos.service": "[Service]\nUser=photos\nExecStart=/usr/bin/python3 /opt/photos.py\n",
}


class RoutingStage(ContainerStage):
    """A rack without emulation, its stand-in engines, and an internet with two clouds beside it."""

    def __init__(self, folder: Path = FOLDER, debian: int = 13) -> None:
        name = f"holdfast-cloud-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
        self.cloud = Cloud(folder / "cloud", name)
        model = tiny_llama.build().file(tiny_llama.FOLDER)
        super().__init__(
            folder,
            secrets=(*SECRETS, *personal.SECRETS),
            checkpoints=dict.fromkeys(ENGINES, model),
            served=personal.index(debian),
            debian=debian,
            cables={"wan0": name},
        )

    def raise_curtain(self) -> None:
        """Have the engines ready to be started."""
        self.cloud.start()
        super().raise_curtain()
        (self.folder / "cpu.txt").write_text("vllm==0.32.0+cpu --hash=sha256:00\n")
        self.rack.copy_to(ROOT / "tests/drill/stand_in_engine.py", "/opt/stand_in_engine.py")
        (self.folder / "photos.py").write_text(_PHOTOS.format(cloud=ADDRESSES[CLOUDS[0]][0]))
        self.rack.copy_to(self.folder / "photos.py", "/opt/photos.py")
        for name, text in PHOTOS_UNITS.items():
            self.rack.succeed(f"cat > /etc/systemd/system/{name} <<'END'\n{text}END")
        for name in ENGINES:
            kept = self.folder / "secrets" / f"{name.upper()}_KEY"
            self.rack.copy_to(kept, f"/root/{name}.key")

    def start_engines(self, names: Iterable[str] = ENGINES) -> None:
        """Have stand-ins answer; they do not outlive a boot."""
        for name in names:
            port = ENGINES[name]
            self.rack.succeed(
                f"systemd-run --quiet --collect --unit=stand-in-{name} python3"
                f" /opt/stand_in_engine.py {name} {port} /root/{name}.key /root/{name}.asked"
                f" && until curl --silent http://127.0.0.1:{port}/health; do sleep 0.1; done"
            )

    def stop_engine(self, name: str) -> None:
        """Have one not answer."""
        self.rack.succeed(f"systemctl stop stand-in-{name}")

    def lower_curtain(self) -> None:
        """Stop everything; logs and disks stay for a look."""
        super().lower_curtain()
        self.cloud.stop()

    def declare(self, routers: list[dict[str, object]], **more: object) -> None:
        """Write the inventory, with these routers and whatever is declared beside them."""
        common = {"context_tokens": 256, "cache_mib": 1024, "memory_max_mib": 8192}
        engines = [
            {"name": name, "checkpoint": name, "port": port, "api_key": f"{name.upper()}_KEY"}
            | common
            for name, port in ENGINES.items()
        ]
        declared = {
            "interfaces": {"eth0": {"role": "management"}, "wan0": {"role": "lan"}},
            "docker": {
                "source": "distribution",
                "dns": [RESOLVERS[0]],
                "networks": [
                    {"name": "sealed", "tier": "T1", "subnets": ["fd99:8::/64"]},
                    {
                        "name": "open",
                        "tier": "T3",
                        "peers": [{"network": each} for each in ("0.0.0.0/0", "::/0")],
                    },
                ],
            },
            "vllm": {"lock": str(self.folder / "cpu.txt"), "engines": engines},
            "routers": routers,
            "services": [
                {
                    **{"name": "photos", "unit": "photos.service", "user": "photos", "tier": "T1"},
                    "listens": [{"port": PHOTOS}],
                }
            ],
        }
        self.write_inventory(**declared, **more)


class RoutingDrill(Rehearsal):
    """One pass over what Holdfast promises of its routers for private work."""

    kind = "native"
    stage: RoutingStage

    def __init__(self, debian: int = 13) -> None:
        super().__init__(f"Holdfast drill of routing, Debian {debian}")
        self.debian = debian

    def acts(self) -> Sequence[Act]:
        """Private work alone, of which nothing leaves, then work that may go on to a cloud."""
        return (
            Act("build images and artefacts", self._build, vital=True),
            Act("boot a machine without emulation", self._boot, vital=True),
            Act("converge from nothing", self._converge_bare, vital=True, rows=(14,)),
            Act("converge again", self._converge_again, rows=(14,)),
            Act("verify", lambda: self.site.verify("after the first converge"), rows=(33,)),
            Act("declare private work alone", self._declare_private, vital=True, rows=(14,)),
            Act("kill in every combination", self._kill, rows=(13, 14)),
            Act("try to reach a cloud", self._cloud, rows=(15,)),
            Act("ask who tried", self._audit, rows=(15,)),
            Act("fill the queue, kill it, cut the power, drain it", self._fill_queue, rows=(14,)),
            Act("reboot private work", self._reboot_private, rows=(14, 15)),
            Act("declare clouds again", self._declare_clouds, vital=True, rows=(14, 15)),
            *self._go(),
            Act("containers of two tiers", self._containers, rows=(15,)),
            Act("what a router costs", self._latency, rows=(14,)),
            Act("sabotage", self._sabotage, rows=(34,)),
            Act("reboot", self._reboot, vital=True, rows=(14,)),
            Act("ask clouds after a reboot", lambda: self.personal.after_reboot(), rows=(14,)),
            Act("take a router away", self._take_away, rows=(14,)),
        )

    def _go(self) -> Sequence[Act]:
        """Work that may go on to a cloud, and whatever may not."""
        return tuple(
            Act(name, run, rows=(14, 15))
            for name, run in {
                "go on to a cloud, in every combination": lambda: self.personal.chain(),
                "ask for a cloud with a key that leads to none": lambda: self.personal.keys(),
                "spend a budget": lambda: self.personal.budget(),
                "restart what counts": lambda: self.personal.restarts(),
                "restore the ledger": lambda: self.personal.restore(),
                "rotate keys": lambda: self.personal.rotation(),
                "look for texts and keys in the journal": self._look_into_the_journal,
            }.items()
        )

    def _build(self) -> None:
        self.stage = RoutingStage(debian=self.debian)
        os.environ["HOLDFAST_SECRETS"] = str(self.stage.folder)
        self.site = Site(self.record, self.stage.inventory, self.stage.logs, DEPLOY, JUDGED)

    def _boot(self) -> None:
        self.stage.raise_curtain()
        self.personal = Personal(self.stage, self.site, [WORK_ROUTER, CLIENT_ROUTER])
        self.personal.prepare()
        self.personal.declare(personal.routers())

    def _converge_bare(self) -> None:
        self.site.converge("bare", fatal=True)
        self.stage.cloud.become_the_internet_of(self.stage.rack)
        self.stage.start_engines()

    def _converge_again(self) -> None:
        self.site.expect_nothing("again")
        self.record.versions |= versions(self.stage.rack, VERSIONS)

    def _declare_private(self) -> None:
        self.stage.declare([WORK_ROUTER, CLIENT_ROUTER])
        self.site.converge("private work", fatal=True)
        self._wait_for_health()

    def _kill(self) -> None:
        with self._nothing_leaves("whoever is killed"):
            self._chain()
            self._client()

    def _fill_queue(self) -> None:
        with self._nothing_leaves("while the queue fills and drains"):
            self._queue()

    def _reboot_private(self) -> None:
        with self._nothing_leaves("over a reboot"):
            self.stage.rack.reboot()
            self.stage.start_engines()
            self._wait_for_health()
            self.site.verify("of private work, after a reboot")

    def _declare_clouds(self) -> None:
        self.personal.declare(personal.routers())
        self.site.converge("clouds", fatal=True)
        self.site.expect_nothing("clouds, again")
        self._other_tiers()
        # What it asks each minute would be counted with what nobody may send.
        self.stage.rack.succeed(f"systemctl stop {egress.RESOLVE_TIMER}")

    def _look_into_the_journal(self) -> None:
        self.personal.silence()
        self.stage.rack.succeed(f"systemctl start {egress.RESOLVE_TIMER}")

    def _sabotage(self) -> None:
        sabotage.commit(self.site, self.stage.rack, (*sabotages.ROUTERS, *sabotages.CLOUDS))

    def _reboot(self) -> None:
        self.stage.rack.reboot()
        self.stage.start_engines()
        self._wait_for_health()
        self.site.verify("after a reboot")

    def _audit(self) -> None:
        """What `make sovereignty` tells of those attempts."""
        done = subprocess.run(
            [sys.executable, "-m", "holdfast.sovereignty", str(self.stage.inventory)],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        (self.stage.logs / "sovereignty.txt").write_text(done.stdout + done.stderr)
        rows = [[cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines()]
        told = {row[1]: row[4] for row in rows if len(row) == 6}
        tried = [wall.name for wall in egress.walls(self.stage.settings)]
        silent = [name for name in tried if not re.match("[1-9][0-9]* packets", told.get(name, ""))]
        good = done.returncode == 0 and not silent
        self.record.check("make sovereignty names each who tried", good, silent or told)

    def _other_tiers(self) -> None:
        """Root itself, in the group of a T1 unit, does not reach what leads on to a cloud."""
        rack, door = self.stage.rack, self._names(WORK).doors[0].service
        group = rack.succeed(f"systemctl show -P ControlGroup {door}").strip()
        for port, reached in {personal.HOME: False, personal.FAR: False, CLIENT: True}.items():
            call = f"curl --silent --max-time 5 {self._names(port).url}/health"
            rack.wait_until_succeeds(call, timeout_seconds=60)
            status, _ = rack.execute(f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs && {call}")
            told = f"{self._names(port).router.name} is {'' if reached else 'not '}reached from T1"
            self.record.check(told, (status == 0) is reached, status)

    def _containers(self) -> None:
        """What somebody starts by hand on a network of T1, and on one that may leave."""
        rack = self.stage.rack
        load_probe_image(rack)
        v4, v6 = NOBODY
        call = "timeout 6 /bin/busybox nc -w 3"
        calls = "; ".join(
            [
                *(f"{call} {address} 443 </dev/null" for address in (v4, v6)),
                f"timeout 6 /bin/busybox nslookup {CLOUDS[0]}",
                *(f"timeout 6 /bin/busybox nslookup {CLOUDS[0]} {each}" for each in RESOLVERS),
            ]
        )
        run = "docker run --rm --network {} " + f"{container.IMAGE} /bin/busybox sh -c '{calls}'"
        self.stage.cloud.forget()
        rack.execute(run.format("open"))
        seen = self.stage.cloud.packets()
        good = bool(seen.v4 and seen.dns)
        self.record.check("a container on a T3 network leaves, and asks names", good, seen)
        told = "a container started by hand on a T1 network"
        with self._is_told("sealed", told), self._nothing_leaves(told):
            rack.execute(run.format("sealed"))
        for trick, hurt in {
            "restarted": "systemctl restart docker",
            "reloaded": "ufw reload",
        }.items():
            told = f"the same with Docker or ufw {trick}"
            with self._is_told("sealed", told), self._nothing_leaves(told):
                rack.succeed(hurt)
                rack.execute(run.format("sealed"))

    def _names(self, port: int) -> RouterNames:
        return routers.at(self.stage.settings, port)

    def _ask(
        self,
        port: int,
        prompt: str = "ready",
        path: str = "/v1/completions",
        also: Mapping[str, object] | None = None,
    ) -> tuple[int, str, str, float]:
        """Status, who answered, text and seconds."""
        key = f"sed -n 's/^{CALLERS} /Authorization: /p' {self._names(port).key_file}"
        body = json.dumps({"prompt": prompt, "max_tokens": 1, **(also or {})})
        data = f"--json '{body.replace('CLOUD', CLOUDS[0])}'" if path == "/v1/completions" else ""
        said = self.stage.rack.succeed(
            f"{key} | curl --silent --max-time 30 --header @- {data} --write-out"
            " '\\n%header{x-holdfast-engine}\\n%{http_code}\\n%{time_total}'"
            f" http://127.0.0.1:{port}{path}"
        )
        text, engine, status, seconds = said.rsplit("\n", 3)
        return int(status), engine, text, float(seconds)

    def _wait_for_health(self, port: int = WORK, status: int = 200) -> None:
        self.stage.rack.wait_until_succeeds(
            "curl --silent --output /dev/null --write-out '%{http_code}'"
            f" http://127.0.0.1:{port}/health | grep -q {status}",
            timeout_seconds=60,
        )

    def _chain(self) -> None:
        rack, names = self.stage.rack, self._names(WORK)
        units = f"{names.queue_stem}.socket {names.queue_stem}.service"
        for chat, on_floor, queues in itertools.product((True, False), repeat=3):
            rack.succeed(f"systemctl {'start' if on_floor else 'stop'} {floor.UNIT}")
            rack.succeed(f"systemctl {'start' if queues else 'stop'} {units}")
            self._wait_until_told(2, on_floor)
            if not chat:
                self.stage.stop_engine("chat")
            first = self._ask(WORK)[:2]
            self._wait_until_told(1, chat)
            answers = {first, self._ask(WORK)[:2]}
            chain = ((chat, (200, "chat")), (on_floor, (200, "floor")), (queues, (202, "queue")))
            wanted = next((answer for up, answer in chain if up), (503, ""))
            state = " ".join(f"{name} {'up' if up else 'down'}," for up, (_, name) in chain)
            self.record.check(f"{state} at once and later", answers == {wanted}, answers)
            if not chat:
                self.stage.start_engines(["chat"])
                self._wait_until_told(1, True)
        rack.succeed(f"systemctl start {floor.UNIT} {units}")

    def _wait_until_told(self, rung: int, up: bool) -> None:
        """Wait until the router's checks see a rung of its ladder as it is."""
        server = f"rung-{rung}/engine"
        routers.wait_until_told(self.stage.rack, self._names(WORK), server, up=up)

    def _client(self) -> None:
        said = self._ask(CLIENT)
        self.record.check("the client's engine answers it", said[:2] == (200, "legal"), said)
        self.stage.stop_engine("legal")
        said = self._ask(CLIENT)
        good = said[0] == 503 and said[1] == "" and said[3] < 2
        self.record.check("without it the client has an error within two seconds", good, said)
        self.record.figures["a client's error"] = f"{said[3] * 1000:.0f} ms"
        self.stage.start_engines(["legal"])
        self._wait_for_health(CLIENT)

    @contextmanager
    def _nothing_leaves(self, what: str) -> Iterator[None]:
        self.stage.cloud.forget()
        yield
        seen = self.stage.cloud.packets()
        self.record.check(f"{what}: 0 packets to the cloud, v4, v6, DNS", not seen, seen)

    @contextmanager
    def _is_told(self, name: str, what: str) -> Iterator[None]:
        """An alert within the watch's next look, which names who tried."""
        rack, alert = self.stage.rack, f"{alerts.ALERTS}/{egress.WATCH}"
        # As often as it is asked here, systemd would give it up.
        since = rack.succeed(f"systemctl reset-failed; rm -f {alert}; date +%s").strip()
        yield
        rack.execute(f"systemctl start {egress.WATCH}")
        rack.wait_until_succeeds(f"test -s {alert}", timeout_seconds=70)
        told = rack.succeed(f"journalctl --unit={egress.WATCH} --since=@{since} --output=cat")
        good = f"{name} was kept from leaving" in told
        self.record.check(f"{what}: an alert names {name}", good, told)

    def _cloud(self) -> None:
        rack, names = self.stage.rack, self._names(WORK)
        self.stage.cloud.forget()
        rack.succeed(" && ".join(f"curl {way} {ONE}" for way in WAYS))
        seen = self.stage.cloud.packets()
        good = bool(seen.v4 and seen.v6 and seen.dns)
        self.record.check("root reaches the cloud, by v4, v6 and name", good, seen)
        door = names.doors[0].service
        keys, configuration = names.key_file, names.configuration("loopback")
        # As often as it is restarted here, systemd would give it up.
        again = f"systemctl reset-failed {door}; systemctl restart {door}"
        cloud = f"{ADDRESSES[CLOUDS[0]][0]}:443"
        tricks = {
            "a proxy variable": (
                f"systemctl set-environment http_proxy=http://{cloud} https_proxy=http://{cloud}"
                f" OPENAI_BASE_URL=https://{cloud} && {again}",
                f"systemctl unset-environment http_proxy https_proxy OPENAI_BASE_URL && {again}",
            ),
            "the hosts file": (
                f"cp /etc/hosts /root/hosts && echo '{cloud[:-4]} holdfast localhost engine"
                f" engines api.openai.com' >> /etc/hosts && {again}",
                f"cp /root/hosts /etc/hosts && {again}",
            ),
            "a cloud's key in its file": (
                f"cp -a {keys} /root/keys && echo cloud Bearer sk-{40 * 'a'} >> {keys} && {again}",
                f"cp -a /root/keys {keys} && {again}",
            ),
        }
        for trick, (hurt, heal) in tricks.items():
            with self._nothing_leaves(trick):
                rack.succeed(hurt)
                self._wait_for_health()
                said = {self._ask(WORK)[:2] for _ in range(3)}
                self.record.check(f"{trick}: answered here", said == {(200, "chat")}, said)
                rack.succeed(heal)
        self._wait_for_health()
        with self._nothing_leaves(f"{len(malice.BODIES)} malicious bodies"):
            said = {self._ask(WORK, also=body)[:2] for body in malice.BODIES}
            self.record.check("each was answered here", said == {(200, "chat")}, said)
        elsewhere = f"s/server engine 127.0.0.1:8100/server engine {cloud}/"
        other = "another upstream in its configuration"
        wall = router_service(names.router).name
        with self._is_told(wall, other), self._nothing_leaves(other):
            rack.succeed(f"cp -a {configuration} /root/cfg && sed -i '{elsewhere}' {configuration}")
            rack.succeed(again)
            self._wait_for_health()
            said = {self._ask(WORK)[:2] for _ in range(3)}
            self.record.check(f"{other}: answered here", said == {(200, "floor")}, said)
        rack.succeed(f"cp -a /root/cfg {configuration} && {again}")
        self._wait_for_health()
        self._shells([door, f"{names.drain_stem}.service", f"{names.queue_stem}.service"])
        self._handed()

    def _shells(self, units: list[str]) -> None:
        """Whoever may run a shell as a T1 user, or as root in a T1 unit's group."""
        rack = self.stage.rack
        for wall in egress.walls(self.stage.settings):
            if wall.tier != "T1":
                continue
            shell = f"setpriv --reuid={wall.user} --regid=$(id --group {wall.user}) --clear-groups"
            told = f"a shell as {wall.user} runs curl"
            with self._is_told(wall.name, told), self._nothing_leaves(told):
                rack.execute("; ".join(f"{shell} curl {way} {ONE}" for way in WAYS))
        with self._nothing_leaves("a shell of root in their groups"):
            for unit in units:
                group = rack.succeed(f"systemctl show -P ControlGroup {unit}").strip()
                join = f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs"
                rack.execute(f"{join} && ({'; '.join(f'curl {way} {ONE}' for way in WAYS)})")

    def _handed(self) -> None:
        """A T1 service that calls by the socket which systemd handed it."""
        rack, wall = self.stage.rack, egress.drop_in_path("photos.socket")
        ask = (
            "python3 -c 'import socket; print(socket.create_connection"
            f'(("127.0.0.1", {PHOTOS}), 10).recv(99).decode(), end="")\''
        )
        # As it is for whoever has it: their unit, their socket.
        again = "systemctl stop photos.socket photos.service; systemctl start photos.socket"
        rack.succeed(f"mv {wall} /root/wall && systemctl daemon-reload && {again}")
        said = rack.succeed(ask)
        self.record.check("a socket that systemd hands over is not its user's", said == "out", said)
        rack.succeed(f"mv /root/wall {wall} && systemctl daemon-reload && {again}")
        told = "a T1 service calls by the socket that systemd handed it"
        with self._nothing_leaves(told):
            said = rack.succeed(ask)
        self.record.check(f"{told}: refused", bool(said) and said != "out", said)
        rack.succeed("systemctl stop photos.socket photos.service")

    def _queue(self) -> None:
        rack, names = self.stage.rack, self._names(WORK)
        rack.succeed("rm -f /root/chat.asked")
        self.stage.stop_engine("chat")
        # Nobody answers after the power cut either, before the drill says so.
        rack.succeed(f"systemctl disable --now {floor.UNIT}")
        self._wait_for_health(status=503)
        rack.succeed(f"systemctl stop {names.queue_stem}.service")
        rack.succeed("rm -f /var/lib/holdfast/queue/work/*")
        places = []
        for number in range(WAITING):
            status, engine, text, _ = self._ask(WORK, f"question {number}")
            if (status, engine) == (202, "queue"):
                places.append(json.loads(text)["answer"])
            if number == WAITING // 3:
                rack.succeed(f"systemctl kill --signal=KILL {names.queue_stem}.service")
            if number == 2 * WAITING // 3:
                rack.crash()
                rack.start()
                rack.wait_for_boot()
                self._wait_for_health(status=503)
        self.record.check("each was accepted", len(places) == WAITING, len(places))
        said = self._ask(WORK, "one too many")
        self.record.check("one more than it holds is refused", said[0] == 503, said)
        told = rack.execute(f"systemctl start {names.queue_stem}-age.service")[0]
        self.record.check("nobody has waited too long yet", told == 0, told)
        (self.stage.folder / "older.py").write_text(_OLDER)
        rack.copy_to(self.stage.folder / "older.py", "/root/older.py")
        rack.succeed("python3 /root/older.py")
        rack.execute(f"systemctl start {names.queue_stem}-age.service")
        alert = f"/run/holdfast/alerts/{names.queue_stem}-age.service"
        rack.wait_until_succeeds(f"test -s {alert}", timeout_seconds=20)
        self.record.check("who waits too long is an alert", True, rack.succeed(f"cat {alert}"))
        began = time.monotonic()
        self.stage.start_engines()
        answers = []
        for place in places:
            while (said := self._ask(WORK, path=place))[0] == 202:
                if time.monotonic() - began > 120:
                    break
            answers.append(said[:2])
        self.record.figures[f"{WAITING} requests drained"] = f"{time.monotonic() - began:.0f} s"
        good = answers == [(200, "chat")] * WAITING
        self.record.check("each was answered when an engine was back", good, set(answers))
        asked = rack.succeed("cat /root/chat.asked").splitlines()
        wanted = [f"question {number}" for number in range(WAITING)]
        self.record.check("once each, in order", asked == wanted, asked)
        rack.succeed(f"rm {alert}; systemctl start {names.queue_stem}-age.service")
        rack.succeed(f"systemctl enable --now {floor.UNIT}")
        self._wait_for_health()

    def _latency(self) -> None:
        """Direct and by the router in turns, so that both have the same neighbours."""
        rack = self.stage.rack
        program = _CLOCK.format(asked=ASKED // 3)
        (self.stage.folder / "clock.py").write_text(program)
        rack.copy_to(self.stage.folder / "clock.py", "/root/clock.py")
        ways = {
            "direct": (ENGINES["chat"], "sed 's/^/Bearer /' /root/chat.key"),
            "by the router": (WORK, f"sed -n 's/^{CALLERS} //p' {self._names(WORK).key_file}"),
        }
        took: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(3):
            for way, (port, key) in ways.items():
                said = rack.succeed(f"{key} | python3 /root/clock.py {port}", timeout_seconds=120)
                took[way] += map(float, said.split())
        for way, values in took.items():
            cuts = statistics.quantiles(values, n=20)
            figure = f"p50 {cuts[9]:.2f} ms, p95 {cuts[18]:.2f} ms"
            self.record.figures[f"{len(values)} requests {way}"] = figure
        added = statistics.median(took["by the router"]) - statistics.median(took["direct"])
        self.record.check("a router adds less than 10 ms at the median", added < 10, f"{added:.2f}")

    def _take_away(self) -> None:
        names = self._names(WORK)
        self.stage.declare([CLIENT_ROUTER])
        self.site.converge("one router less")
        left = self.stage.rack.execute(
            f"ss -Hltn | grep ':{WORK} '; ls /etc/*/*/*{names.stem}* /etc/*/*/*{names.queue_stem}*"
            " /etc/*/*/*holdfast-clouds* /etc/*/*/holdfast-ledger* /etc/holdfast/ledger/*"
            " /etc/holdfast/router/work* 2>/dev/null;"
            " pgrep --list-full --uid router-work,clouds-home,holdfast-ledger"
        )
        self.record.check("a router that is declared no more is gone", not left[1], left[1])
        self.site.expect_nothing("one router less, again")
