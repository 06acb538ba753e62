"""The drill of routing: chains whose engines come and go, and a cloud that nobody reaches.

On a systemd container at the controller's own speed, as `serving.py`, with stand-ins for engines
and the real floor. The cloud is a listener on the controller, which the machine could reach.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

from holdfast import floor, inventory_file
from holdfast.registry import queue_service
from holdfast.router import CALLERS, RouterNames
from tests.drill import sabotage, sabotages
from tests.drill.converge import ROOT
from tests.drill.rehearsal import Rehearsal, Scenery
from tests.drill.site import Site, versions
from tests.lab.artefacts import llama, tiny_gguf, tiny_llama
from tests.lab.artefacts.store import sha256
from tests.lab.container_machine import ContainerMachine
from tests.lab.images import ensure_image
from tests.lab.machine import MANAGEMENT_HOST, Machine, Spec
from tests.lab.services.daemon import private_directory
from tests.lab.services.files import FileServer
from tests.unit.fake_upstreams import Cloud

FOLDER = ROOT / ".lab" / "routing"
SPEC = Spec("rack", variant="rack", host_number=10, memory_mib=2048, cpus=2)
DEPLOY = "tests/drill/routing_site.py"
JUDGED = frozenset({"test_router.py"})
SECRETS = ("CHAT_KEY", "LEGAL_KEY", "WORK_KEY", "CLIENT_KEY", "FLOOR_API_KEY")
ENGINES = {"chat": 8100, "legal": 8101}
WORK, CLIENT = 8200, 8201
WAITING = 20
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


class RoutingStage(Scenery):
    """A rack without emulation, its stand-in engines, and a cloud beside it."""

    def __init__(self, folder: Path = FOLDER, debian: int = 13) -> None:
        super().__init__(folder)
        self.debian = debian
        ContainerMachine.power_off_leftover(folder / "rack")
        image = ensure_image(f"debian-{debian}", SPEC.variant)
        self.rack = ContainerMachine(folder / "rack", SPEC, image)
        self.rack.wipe()
        self.model = tiny_llama.build().file(tiny_llama.FOLDER)
        self.llama = llama.build().file("llama-server.tar.gz")
        self.gguf = tiny_gguf.build().file("tiny.gguf")
        served = {self.llama.name: self.llama, self.gguf.name: self.gguf}
        served |= dict.fromkeys(ENGINES, self.model)
        self.files = FileServer(private_directory(folder / "services"), served)
        self.cloud = Cloud()

    @property
    def machines(self) -> Iterable[Machine]:
        """The rack."""
        return (self.rack,)

    @property
    def inventory(self) -> Path:
        """What the rack is to be."""
        return self.folder / "inventory.py"

    def raise_curtain(self) -> None:
        """Start the file server, the rack and its engines, and write the inventory."""
        self.files.start()
        self.rack.start()
        self.rack.wait_for_boot()
        self.rack.wait_for_ssh()
        (self.folder / "ssh_config").write_text(self.rack.ssh_settings())
        kept = self.folder / "secrets"
        kept.mkdir(mode=0o700, exist_ok=True)
        for name in SECRETS:
            (kept / name).touch(mode=0o600)
            (kept / name).write_text(secrets.token_urlsafe(32) + "\n")
        (self.folder / "cpu.txt").write_text("vllm==0.32.0+cpu --hash=sha256:00\n")
        self.declare(both=True)
        self.rack.copy_to(ROOT / "tests/drill/stand_in_engine.py", "/opt/stand_in_engine.py")
        for name in ENGINES:
            self.rack.copy_to(kept / f"{name.upper()}_KEY", f"/root/{name}.key")

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
        self.rack.crash()
        self.files.stop()
        self.cloud.close()

    def declare(self, *, both: bool) -> None:
        """Write the inventory, with both routers or the client's alone."""
        site = f"http://{MANAGEMENT_HOST}:{self.files.port}"
        common = {"context_tokens": 256, "cache_mib": 1024, "memory_max_mib": 8192}
        engines = [
            {"name": name, "checkpoint": name, "port": port, "api_key": f"{name.upper()}_KEY"}
            | common
            for name, port in ENGINES.items()
        ]
        work = {
            "name": "work",
            "profile": "private",
            "port": WORK,
            "api_key": "WORK_KEY",
            "engines": ["chat"],
            "floor": True,
            "queue": {"entries": WAITING, "max_age_minutes": 1},
        }
        client = {"name": "client", "profile": "client", "port": CLIENT, "api_key": "CLIENT_KEY"}
        settings = {
            "hostname": "rack",
            "distribution": f"debian{self.debian}",
            "interfaces": {"eth0": {"role": "management"}},
            "lan_address": "rack-lan",
            "ssh_hostname": "rack-lan",
            "ssh_config_file": str(self.folder / "ssh_config"),
            "ssh_user": "operator",
            "_sudo": True,
            "docker": None,
            "tailnet": None,
            "ssh": {"lan_access": "keep"},
            "storage": {
                "models": [
                    {
                        "name": "tiny",
                        "source": f"{site}/{self.gguf.name}",
                        "sha256": sha256(self.gguf),
                        "size_mib": 1,
                        "filename": self.gguf.name,
                    }
                ],
                "checkpoints": [
                    {
                        "name": name,
                        "source": f"{site}/{name}",
                        "sha256": sha256(self.model / tiny_llama.SUMS),
                        "size_mib": 2,
                        "description": str(self.model),
                    }
                    for name in ENGINES
                ],
            },
            "floor": {
                "release": {
                    "version": "lab",
                    "url": f"{site}/{self.llama.name}",
                    "sha256": sha256(self.llama),
                },
                "model": "tiny",
                "scope": "loopback",
                "context_tokens": 256,
                "threads": 1,
                "memory_max_mib": 512,
            },
            "vllm": {"lock": str(self.folder / "cpu.txt"), "engines": engines},
            "routers": [*([work] if both else []), client | {"engines": ["legal"]}],
        }
        self.inventory.write_text(f"hosts = [('@rack/rack', {settings!r})]\n")


class RoutingDrill(Rehearsal):
    """One pass over what Holdfast promises of its routers for private work."""

    stage: RoutingStage

    def __init__(self, debian: int = 13) -> None:
        super().__init__(f"Holdfast drill of routing, Debian {debian}")
        self.debian = debian

    def _act(self) -> None:
        record = self.record
        with record.phase("build images and artefacts", vital=True):
            self.stage = RoutingStage(debian=self.debian)
            os.environ["HOLDFAST_SECRETS"] = str(self.stage.folder)
            self.site = Site(record, self.stage.inventory, self.stage.logs, DEPLOY, JUDGED)
        with record.phase("boot a machine without emulation", vital=True):
            self.stage.raise_curtain()
        with record.phase("converge from nothing", vital=True):
            self.site.converge("bare", fatal=True)
            self.stage.start_engines()
        with record.phase("converge again"):
            self.site.expect_nothing("again")
            record.versions |= versions(self.stage.rack, VERSIONS)
        with record.phase("verify"):
            self.site.verify("after the first converge")
        with record.phase("kill in every combination"):
            self._chain()
            self._client()
        with record.phase("try to reach a cloud"):
            self._cloud()
        with record.phase("fill the queue, kill it, cut the power, drain it"):
            self._queue()
        with record.phase("what a router costs"):
            self._latency()
        with record.phase("sabotage"):
            sabotage.commit(self.site, self.stage.rack, sabotages.ROUTERS)
        with record.phase("reboot", vital=True):
            self.stage.rack.reboot()
            self.stage.start_engines()
            self._wait_for_health()
            self.site.verify("after a reboot")
        with record.phase("take a router away"):
            self._take_away()

    def _names(self, port: int) -> RouterNames:
        (settings,) = inventory_file.load(str(self.stage.inventory)).values()
        return next(RouterNames(each) for each in settings.routers if each.port == port)

    def _ask(
        self, port: int, prompt: str = "ready", path: str = "/v1/completions", more: str = ""
    ) -> tuple[int, str, str, float]:
        """Status, who answered, text and seconds."""
        key = f"sed -n 's/^{CALLERS} /Authorization: /p' {self._names(port).key_file}"
        body = json.dumps({"prompt": prompt, "max_tokens": 1})
        data = f"--json '{body}'" if path == "/v1/completions" else ""
        said = self.stage.rack.succeed(
            f"{key} | curl --silent --max-time 30 --header @- {data} {more} --write-out"
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
        door = self._names(WORK).doors[0].service
        told = (
            "journalctl --output=cat"
            f" _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID {door})"
            f" | grep 'rung-{rung}/engine is' | tail -n 1 | grep -q 'is DOWN'"
        )
        self.stage.rack.wait_until_succeeds(f"{'!' if up else ''} ({told})", timeout_seconds=60)

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

    def _cloud(self) -> None:
        rack, port, names = self.stage.rack, self.stage.cloud.port, self._names(WORK)
        cloud = f"{MANAGEMENT_HOST}:{port}"
        call = f"timeout 5 bash -c '</dev/tcp/{MANAGEMENT_HOST}/{port}'"
        rack.succeed(call)
        control = self.stage.cloud.visitors()
        self.record.check("the control reaches the cloud", control == 1, control)
        door = names.doors[0].service
        tricks = {
            "a proxy variable": (
                f"systemctl set-environment http_proxy=http://{cloud} https_proxy=http://{cloud}"
                f" OPENAI_BASE_URL=http://{cloud} && systemctl restart {door}",
                "systemctl unset-environment http_proxy https_proxy OPENAI_BASE_URL",
            ),
            "the hosts file": (
                f"cp /etc/hosts /root/hosts && echo '{MANAGEMENT_HOST} holdfast localhost"
                f" engine engines api.openai.com' >> /etc/hosts && systemctl restart {door}",
                "cp /root/hosts /etc/hosts",
            ),
            "another upstream in its configuration": (
                f"cp -a {names.configuration('loopback')} /root/cfg && sed -i"
                f" 's/server engine 127.0.0.1:8100/server engine {cloud}/'"
                f" {names.configuration('loopback')} && systemctl restart {door}",
                f"cp -a /root/cfg {names.configuration('loopback')} && systemctl restart {door}",
            ),
        }
        for trick, (hurt, heal) in tricks.items():
            rack.succeed(hurt)
            self._wait_for_health()
            said = [self._ask(WORK)[:2] for _ in range(3)]
            seen = self.stage.cloud.visitors()
            good = seen == 0 and {status for status, _ in said} == {200}
            self.record.check(f"{trick}: answered here, 0 connections to the cloud", good, said)
            rack.succeed(heal)
        services = [door, f"{names.drain_stem}.service"]
        queue = queue_service(names.router)
        services += [queue.unit] if queue else []
        for service in services:
            group = rack.succeed(f"systemctl show -P ControlGroup {service}").strip()
            rack.execute(f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs && {call}")
        seen = self.stage.cloud.visitors()
        self.record.check("a shell in their groups does not reach the cloud", seen == 0, seen)

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
        self.stage.declare(both=False)
        self.site.converge("one router less")
        left = self.stage.rack.execute(
            f"ss -Hltn | grep ':{WORK} '; ls /etc/*/*/*{names.stem}* /etc/*/*/*{names.queue_stem}*"
            " /etc/holdfast/router/work* 2>/dev/null; pgrep --list-full --uid router-work"
        )
        self.record.check("a router that is declared no more is gone", not left[1], left[1])
        self.site.expect_nothing("one router less, again")
