"""Tests of routers for private work: engines start and stop, and no packet reaches a cloud.

The machine's internet is the lab's (`tests/lab/services/cloud.py`), which counts every packet.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from holdfast import alerts, egress, floor
from holdfast.engines.servers import declared_engines
from holdfast.router import CALLERS, RouterNames
from holdfast.routing import router_service
from holdfast.settings import HostSettings
from tests import malice
from tests.drill import routers
from tests.drill.converge import ROOT
from tests.drill.rehearsal import Act, load_probe_image
from tests.drill.site import Site
from tests.lab.artefacts import container
from tests.lab.machine import Machine
from tests.lab.services.ca import CLOUDS
from tests.lab.services.cloud import ADDRESSES, NOBODY, RESOLVERS, Cloud

WORK, CLIENT = 8200, 8201
ONE = f"https://{CLOUDS[0]}/"
WAYS = ("-s -k -m 5 -o /dev/null -4", "-s -k -m 5 -o /dev/null -6")
WAITING = 20
MAX_AGE_MINUTES = 60
"""A request may wait so long; the drill waits for none, because a busy machine boots slowly."""
ASK_BY_THEMSELVES = (egress.RESOLVE_TIMER, "apt-daily.timer", "apt-daily-upgrade.timer")
"""Timers whose services look up names of the internet."""
WORK_ROUTER: dict[str, object] = {
    "name": "work",
    "profile": "private",
    "port": WORK,
    "api_key": "WORK_KEY",
    "engines": ["chat"],
    "floor": True,
    "queue": {"entries": WAITING, "max_age_minutes": MAX_AGE_MINUTES},
}
CLIENT_ROUTER: dict[str, object] = {
    "name": "client",
    "profile": "client",
    "port": CLIENT,
    "api_key": "CLIENT_KEY",
    "engines": ["legal"],
}
ASKED = 300
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
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200, answer.status
    connection.close()
    print((time.perf_counter() - began) * 1000)
"""


_OLDER = """
import sqlite3
with sqlite3.connect("/var/lib/holdfast/queue/work/queue.db") as store:
    store.execute("UPDATE entry SET asked = asked - ?", ({seconds},))
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
PHOTOS_SERVICE: dict[str, object] = {
    **{"name": "photos", "unit": "photos.service", "user": "photos", "tier": "T1"},
    "listens": [{"port": PHOTOS}],
}
OPEN_NETWORK: dict[str, object] = {
    "name": "open",
    "tier": "T3",
    "peers": [{"network": each} for each in ("0.0.0.0/0", "::/0")],
}
PHOTOS_UNITS = {
    "photos.socket": f"[Socket]\nListenStream=0.0.0.0:{PHOTOS}\n",
    "photos.service": "[Service]\nUser=photos\nExecStart=/usr/bin/python3 /opt/photos.py\n",
}


class Stage(Protocol):
    """The stage that these tests need."""

    @property
    def rack(self) -> Machine:
        """The machine."""

    @property
    def cloud(self) -> Cloud:
        """Its internet."""

    @property
    def folder(self) -> Path:
        """A folder on the controller for what is copied to the machine."""

    @property
    def inventory(self) -> Path:
        """The inventory's file."""

    @property
    def logs(self) -> Path:
        """Where logs are kept."""

    @property
    def settings(self) -> HostSettings:
        """The settings of the rack."""

    def declare_routers(self, routers: list[dict[str, object]], **more: object) -> None:
        """Write the inventory, with these routers and nothing else that asks a cloud."""

    def start_engines(self, names: Iterable[str] = ...) -> None:
        """Have engines answer, all of them by default."""

    def stop_engine(self, name: str) -> None:
        """Stop an engine, also after a reboot."""

    def forget_asked(self, name: str) -> None:
        """Forget what an engine was asked."""

    def asked(self, name: str) -> list[str] | int:
        """What an engine was asked since, in order; how often, where it keeps that to itself."""


def stop_asking(rack: Machine) -> list[str]:
    """Stop the timers of `ASK_BY_THEMSELVES`, whose packets would be counted with those on trial.

    A service of theirs that runs is waited for. Returns the timers that were active.
    """
    active = [
        timer
        for timer in ASK_BY_THEMSELVES
        if rack.execute(f"systemctl --quiet is-active {timer}")[0] == 0
    ]
    if active:
        rack.succeed(f"systemctl stop {' '.join(active)}")
        # To stop one as well would leave it failed.
        services = " ".join(timer.replace(".timer", ".service") for timer in active)
        rack.wait_until_succeeds(f"! systemctl is-active {services} | grep --quiet activating")
    return active


def acts(tried: Callable[[], Private]) -> Sequence[Act]:
    """Private work only, none of which may leave."""
    return (
        Act("declare private work alone", lambda: tried().declare(), vital=True, rows=(14,)),
        Act("kill in every combination", lambda: tried().kill(), rows=(13, 14)),
        Act("try to reach a cloud", lambda: tried().reach(), rows=(15,)),
        Act("ask who tried", lambda: tried().audit(), rows=(15,)),
        Act("fill the queue, kill it, cut the power, drain it", lambda: tried().fill(), rows=(14,)),
    )


class Private:
    """Tests of the routers of one rack whose work stays on it."""

    def __init__(self, stage: Stage, site: Site, routers: Sequence[dict[str, object]]) -> None:
        self.stage, self.site, self.record = stage, site, site.record
        self.routers = list(routers)

    def declare(self) -> None:
        """Remove all routers with clouds."""
        self.stage.declare_routers(self.routers)
        self.site.converge("private work", fatal=True)
        self.wait_until_ready()

    def kill(self) -> None:
        """Stop engine, floor and queue in every combination."""
        with self.nothing_leaves("while engines come and go"):
            self._chain()
            self._client()

    def fill(self) -> None:
        """Let requests wait while nothing answers, through a kill and a power cut."""
        with self.nothing_leaves("while the queue fills and drains"):
            self._queue()

    def hand_over(self) -> None:
        """Give the rack a T1 service that the inventory only names, with a socket of systemd's."""
        (self.stage.folder / "photos.py").write_text(_PHOTOS.format(cloud=ADDRESSES[CLOUDS[0]][0]))
        self.stage.rack.copy_to(self.stage.folder / "photos.py", "/opt/photos.py")
        for name, text in PHOTOS_UNITS.items():
            self.stage.rack.succeed(f"cat > /etc/systemd/system/{name} <<'END'\n{text}END")

    def audit(self) -> None:
        """The output of `holdfast sovereignty` about those attempts."""
        done = subprocess.run(
            [sys.executable, "-m", "holdfast", "sovereignty", str(self.stage.inventory)],
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
        self.record.check("holdfast sovereignty names each user that tried", good, silent or told)

    def containers(self) -> None:
        """Containers started by hand on a T1 network, and on one that may call out."""
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
        sealed, leaving = (self._network(tier) for tier in ("T1", "T3"))
        run = "docker run --rm --network {} " + f"{container.IMAGE} /bin/busybox sh -c '{calls}'"
        self.stage.cloud.forget()
        rack.execute(run.format(leaving))
        seen = self.stage.cloud.packets()
        good = bool(seen.v4 and seen.dns)
        self.record.check("a container on a T3 network can call out and resolve names", good, seen)
        told = "a container started by hand on a T1 network"
        with self._is_told(sealed, told), self.nothing_leaves(told):
            rack.execute(run.format(sealed))
        for trick, hurt in {
            "restarted": "systemctl restart docker",
            "reloaded": "ufw reload",
        }.items():
            told = f"the same with Docker or ufw {trick}"
            with self._is_told(sealed, told), self.nothing_leaves(told):
                rack.succeed(hurt)
                rack.execute(run.format(sealed))

    def _engine_port(self, name: str) -> int:
        declared = declared_engines(self.stage.settings)
        return next((each.port for each in declared if each.name == name), 0)

    def _network(self, tier: str) -> str:
        docker = self.stage.settings.docker
        return next(each.name for each in docker.networks if each.tier == tier) if docker else ""

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

    def wait_until_ready(self) -> None:
        """Wait until each router knows of an engine that answers.

        Each asks the engines on its own: what one has seen, another may still have to see.
        """
        for router in self.stage.settings.routers:
            if router.engines:
                self.wait_for_health(router.port)
            # A floor is enough for its health.
            for rung in range(1, len(router.engines) + 1):
                self._wait_until_told(rung, True, router.port)

    def wait_for_health(self, port: int = WORK, status: int = 200) -> None:
        self.stage.rack.wait_until_succeeds(
            "curl --silent --output /dev/null --write-out '%{http_code}'"
            f" {self._names(port).url}/health | grep -q {status}",
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
            good = answers == {wanted}
            away = [name for up, (_, name) in chain if not up]
            if away and wanted[0] == 200:
                fault = f"{' and '.join(away)} stopped"
                self.record.survived(fault, f"{wanted[1]} answers", good, answers)
            else:
                self.record.check(f"{state} at once and later", good, answers)
            if not chat:
                self.stage.start_engines(["chat"])
                self._wait_until_told(1, True)
        rack.succeed(f"systemctl start {floor.UNIT} {units}")
        self.wait_until_ready()

    def _wait_until_told(self, rung: int, up: bool, port: int = WORK) -> None:
        """Wait until the checks of a router that runs see a rung of its ladder as it is."""
        server = f"rung-{rung}/engine"
        routers.wait_until_told(self.stage.rack, self._names(port), server, up=up)

    def _client(self) -> None:
        (engine,) = self._names(CLIENT).router.engines
        said = self._ask(CLIENT)
        self.record.check("the client's engine answers it", said[:2] == (200, engine), said)
        self.stage.stop_engine(engine)
        said = self._ask(CLIENT)
        good = said[0] == 503 and said[1] == "" and said[3] < 2
        state = "the client has an error within two seconds, and no other engine's answer"
        self.record.survived("the client's engine stopped", state, good, said)
        self.record.figures["a client's error"] = f"{said[3] * 1000:.0f} ms"
        # A check of an engine that has just begun to start may fail: up is what is seen after down.
        for router in self.stage.settings.routers:
            if engine in router.engines:
                self._wait_until_told(1 + router.engines.index(engine), False, router.port)
        self.stage.start_engines([engine])
        self.wait_until_ready()

    @contextmanager
    def nothing_leaves(self, what: str) -> Iterator[None]:
        stopped = stop_asking(self.stage.rack)
        self.stage.cloud.forget()
        yield
        seen = self.stage.cloud.packets()
        if stopped:
            self.stage.rack.succeed(f"systemctl start {' '.join(stopped)}")
        self.record.check(f"{what}: 0 packets to the cloud, v4, v6, DNS", not seen, seen)

    @contextmanager
    def _is_told(self, name: str, what: str) -> Iterator[None]:
        """An alert within the watch's next look, which names who tried."""
        rack, alert = self.stage.rack, f"{alerts.ALERTS}/{egress.WATCH}"
        # As often as it is asked here, systemd would give it up.
        since = rack.succeed(f"systemctl reset-failed; rm -f {alert}; date +%s").strip()
        yield
        rack.execute(f"systemctl start {egress.WATCH}")
        rack.wait_until_succeeds(f"test -s {alert}", timeout_seconds=120)
        told = rack.succeed(f"journalctl --unit={egress.WATCH} --since=@{since} --output=cat")
        good = f"{name} was refused" in told
        self.record.check(f"{what}: an alert names {name}", good, told)

    def reach(self) -> None:
        """Try every path to a cloud that a careless or hostile operator has."""
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
            with self.nothing_leaves(trick):
                rack.succeed(hurt)
                self.wait_for_health()
                self._wait_until_told(1, True)
                said = {self._ask(WORK)[:2] for _ in range(3)}
                self.record.check(f"{trick}: answered on this host", said == {(200, "chat")}, said)
                rack.succeed(heal)
        self.wait_for_health()
        self._wait_until_told(1, True)
        with self.nothing_leaves(f"{len(malice.BODIES)} malicious bodies"):
            said = {self._ask(WORK, also=body)[:2] for body in malice.BODIES}
            # An engine may refuse a model that it does not serve, and words that it does not know.
            here = {engine for _, engine in said} == {"chat"} and (200, "chat") in said
            self.record.check("each was answered on this host", here, said)
        elsewhere = f"s/server engine 127.0.0.1:8100/server engine {cloud}/"
        other = "another upstream in its configuration"
        wall = router_service(names.router).name
        with self._is_told(wall, other), self.nothing_leaves(other):
            rack.succeed(f"cp -a {configuration} /root/cfg && sed -i '{elsewhere}' {configuration}")
            rack.succeed(again)
            self.wait_for_health()
            self._wait_until_told(2, True)
            said = {self._ask(WORK)[:2] for _ in range(3)}
            self.record.survived(other, "the floor answers", said == {(200, "floor")}, said)
        rack.succeed(f"cp -a /root/cfg {configuration} && {again}")
        self.wait_for_health()
        self._shells([door, f"{names.drain_stem}.service", f"{names.queue_stem}.service"])
        self._handed()

    def _shells(self, units: list[str]) -> None:
        """A user who may run a shell as a T1 user, or as root in a T1 unit's cgroup."""
        rack = self.stage.rack
        for wall in egress.walls(self.stage.settings):
            if wall.tier != "T1":
                continue
            shell = f"setpriv --reuid={wall.user} --regid=$(id --group {wall.user}) --clear-groups"
            told = f"a shell as {wall.user} runs curl"
            with self._is_told(wall.name, told), self.nothing_leaves(told):
                rack.execute("; ".join(f"{shell} curl {way} {ONE}" for way in WAYS))
        with self.nothing_leaves("a shell of root in their groups"):
            for unit in units:
                group = rack.succeed(f"systemctl show -P ControlGroup {unit}").strip()
                join = f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs"
                rack.execute(f"{join} && ({'; '.join(f'curl {way} {ONE}' for way in WAYS)})")

    def _handed(self) -> None:
        """A T1 service that calls through a socket that systemd opened for it."""
        rack, wall = self.stage.rack, egress.drop_in_path("photos.socket")
        ask = (
            "python3 -c 'import socket; print(socket.create_connection"
            f'(("127.0.0.1", {PHOTOS}), 10).recv(99).decode(), end="")\''
        )
        # As it is for a service that has it: its unit, its socket.
        again = "systemctl stop photos.socket photos.service; systemctl start photos.socket"
        rack.succeed(f"mv {wall} /root/wall && systemctl daemon-reload && {again}")
        said = rack.succeed(ask)
        self.record.check(
            "a socket from systemd does not belong to the unit's user", said == "out", said
        )
        rack.succeed(f"mv /root/wall {wall} && systemctl daemon-reload && {again}")
        told = "a T1 service calls by the socket that systemd handed it"
        with self.nothing_leaves(told):
            said = rack.succeed(ask)
        self.record.check(f"{told}: refused", bool(said) and said != "out", said)
        rack.succeed("systemctl stop photos.socket photos.service")

    def _queue(self) -> None:
        rack, names = self.stage.rack, self._names(WORK)
        self.stage.stop_engine("chat")
        # No engine answers after the power cut either, before the drill says so.
        rack.succeed(f"systemctl disable --now {floor.UNIT}")
        self.wait_for_health(status=503)
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
                self.wait_for_health(status=503)
        good, seen = len(places) == WAITING, len(places)
        self.record.survived("the queue killed while work waits", "each was accepted", good, seen)
        said = self._ask(WORK, "one too many")
        self.record.check("a full queue refuses one more request", said[0] == 503, said)
        told = rack.execute(f"systemctl start {names.queue_stem}-age.service")[0]
        self.record.check("no request has waited too long yet", told == 0, told)
        (self.stage.folder / "older.py").write_text(_OLDER.format(seconds=2 * 60 * MAX_AGE_MINUTES))
        rack.copy_to(self.stage.folder / "older.py", "/root/older.py")
        rack.succeed("python3 /root/older.py")
        rack.execute(f"systemctl start {names.queue_stem}-age.service")
        alert = f"/run/holdfast/alerts/{names.queue_stem}-age.service"
        rack.wait_until_succeeds(f"test -s {alert}", timeout_seconds=60)
        self.record.check(
            "a request that waits too long raises an alert", True, rack.succeed(f"cat {alert}")
        )
        self.stage.forget_asked("chat")
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
        state = "each was answered when an engine was back"
        self.record.survived("a power cut while work waits", state, good, set(answers))
        asked = self.stage.asked("chat")
        wanted = [f"question {number}" for number in range(WAITING)]
        self.record.check("each is answered once, in order", asked in (wanted, WAITING), asked)
        rack.succeed(f"rm {alert}; systemctl start {names.queue_stem}-age.service")
        rack.succeed(f"systemctl enable --now {floor.UNIT}")
        self.wait_for_health()

    def latency(self) -> None:
        """Direct and by the router in turns, so that both have the same neighbours."""
        rack = self.stage.rack
        program = _CLOCK.format(asked=ASKED // 3)
        (self.stage.folder / "clock.py").write_text(program)
        rack.copy_to(self.stage.folder / "clock.py", "/root/clock.py")
        ways = {
            "direct": (self._engine_port("chat"), "engine:chat"),
            "by the router": (WORK, CALLERS),
        }
        took: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(3):
            for way, (port, name) in ways.items():
                key = f"sed -n 's/^{name} //p' {self._names(WORK).key_file}"
                said = rack.succeed(f"{key} | python3 /root/clock.py {port}", timeout_seconds=120)
                took[way] += map(float, said.split())
        for way, values in took.items():
            cuts = statistics.quantiles(values, n=20)
            figure = f"p50 {cuts[9]:.2f} ms, p95 {cuts[18]:.2f} ms"
            self.record.figures[f"{len(values)} requests {way}"] = figure
        added = statistics.median(took["by the router"]) - statistics.median(took["direct"])
        self.record.check("a router adds less than 10 ms at the median", added < 10, f"{added:.2f}")

    def take_away(self) -> None:
        names = self._names(WORK)
        self.stage.declare_routers([CLIENT_ROUTER])
        self.site.converge("one router less")
        left = self.stage.rack.execute(
            f"ss -Hltn | grep ':{WORK} '; ls /etc/*/*/*{names.stem}* /etc/*/*/*{names.queue_stem}*"
            " /etc/*/*/*holdfast-clouds* /etc/*/*/holdfast-ledger* /etc/holdfast/ledger/*"
            " /etc/holdfast/router/work* 2>/dev/null;"
            " pgrep --list-full --uid router-work,clouds-home,holdfast-ledger"
        )
        self.record.check("a router that is no longer declared is gone", not left[1], left[1])
        self.site.expect_nothing("one router less, again")
