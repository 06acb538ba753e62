"""The drill of routers with clouds: chains, keys, budgets and their ledger.

The clouds are the lab's (`tests/lab/services/cloud.py`), which counts every packet. LiteLLM,
PostgreSQL and HAProxy are real.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from holdfast import clouds, floor, ledger
from holdfast.router import RouterNames
from holdfast.routing import LEDGER_DUMPS
from holdfast.settings import HostSettings
from tests import malice
from tests.drill import routers as routers_of_rack
from tests.drill.private import CLIENT, WORK, stop_asking
from tests.drill.rehearsal import Act
from tests.drill.site import Site
from tests.lab.artefacts import litellm
from tests.lab.machine import Machine
from tests.lab.services.ca import CLOUDS
from tests.lab.services.cloud import Cloud
from tests.lab.services.cloud_api import BREAKS

HOME, FAR = 8210, 8211
SECRETS = (
    *("ALICE_KEY", "AGENT_KEY", "CHILD_KEY", "DEAR_KEY"),
    *("CLOUD_ONE_KEY", "CLOUD_TWO_KEY", "CLOUD_DEAR_KEY"),
)
INDEX = "litellm"
LEDGER = "/var/lib/holdfast/ledger"
BUDGET_USD = 0.5
INPUT_USD, OUTPUT_USD = 1.0, 1000.0
MAX_TOKENS = 100
DEAR: dict[str, Any] = {
    "name": "dear",
    "api": "anthropic",
    "base_url": f"https://{CLOUDS[1]}",
    # LiteLLM knows it: it writes out what a schema refers to.
    "model": "claude-sonnet-4-5",
    "api_key": "CLOUD_DEAR_KEY",
    "input_usd": INPUT_USD,
    "output_usd": 15.0,
    "max_tokens": MAX_TOKENS,
}
"""A cloud for whose API a request is translated; a key of the same name leads to it alone."""
DEAR_BUDGET_USD = 0.05
ANSWER_USD = 0.02001
"""What the lab's clouds say they used, 10 tokens and 20, costs; five times as much is reserved."""
PATH = clouds.PATH
MODEL = "chat"
PROMPT = "a question of my own"
MALICE: tuple[dict[str, Any], ...] = (
    *malice.BODIES,
    {"metadata": {"tags": ["one"]}, "litellm_metadata": {"user_api_key_alias": "alice"}},
    {"user": "alice", "mock_response": "hello", "timeout": 0},
    {"n": 50, "service_tier": "priority", "web_search_options": {}},
)
"""Fields that a body may contain, besides its messages, to choose the engine or the price."""
SPENT = "the budget is still spent"
SENT = {"model", "messages", "max_tokens", "stream", "stream_options"}
"""The fields of such a body that a cloud may receive."""
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def routers() -> list[dict[str, Any]]:
    """The routers under test."""
    alice = {"name": "alice", "api_key": "ALICE_KEY", "budget_usd": 1000.0}
    agent = {"name": "agent", "api_key": "AGENT_KEY", "budget_usd": BUDGET_USD, "period": "week"}
    home = {
        "name": "home",
        "profile": "personal",
        "port": HOME,
        "engines": ["chat"],
        "floor": True,
        "clouds": ["one", "two"],
        "keys": [
            {**alice, "clouds": ["one", "two"]},
            {**agent, "clouds": ["two"]},
            {"name": "child", "api_key": "CHILD_KEY"},
        ],
    }
    dear = {"name": "dear", "api_key": "DEAR_KEY", "budget_usd": DEAR_BUDGET_USD, "period": "week"}
    far = {
        "name": "far",
        "profile": "cloud",
        "port": FAR,
        "clouds": ["one", "dear"],
        "keys": [{**alice, "clouds": ["one"]}, {**dear, "clouds": ["dear"]}],
    }
    return [home, far]


def declared(site: str) -> dict[str, Any]:
    """What stands beside the routers in the inventory; ``site`` serves `index`."""
    providers = [
        {
            "name": name,
            "base_url": f"https://{cloud}/v1",
            "model": f"model-of-{name}",
            "api_key": f"CLOUD_{name.upper()}_KEY",
            "input_usd": INPUT_USD,
            "output_usd": OUTPUT_USD,
            "max_tokens": MAX_TOKENS,
        }
        for name, cloud in zip(("one", "two"), CLOUDS, strict=True)
    ]
    return {"clouds": {"packages": f"{site}/{INDEX}", "providers": [*providers, DEAR]}}


def index(debian: int) -> dict[str, Path]:
    """Files that the stage's file server must serve besides its own."""
    return {INDEX: litellm.build(debian).file(litellm.INDEX)}


def sql(rack: Machine, user: str, asked: str) -> str:
    """The ledger's content, as the user of the program that asks clouds."""
    return rack.succeed(
        f"runuser --user {user} -- psql --no-psqlrc --tuples-only --no-align"
        f" --host={ledger.SOCKET_FOLDER} --command={shlex.quote(asked)}"
    ).strip()


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
        """Where the stage's secrets lie, below ``secrets``."""

    @property
    def settings(self) -> HostSettings:
        """The settings of the rack."""

    @property
    def site(self) -> str:
        """Where the rack fetches what it is given, as a URL."""

    def renew(self, secret: str) -> str:
        """Give a secret a new value."""

    def declare_routers(self, routers: list[dict[str, object]], **more: object) -> None:
        """Write the inventory."""

    def start_engines(self, names: Iterable[str]) -> None:
        """Have engines answer."""

    def stop_engine(self, name: str) -> None:
        """Stop an engine."""


def acts(tried: Callable[[], Personal]) -> Sequence[Act]:
    """Work that may go to a cloud, and work that may not."""
    return (
        Act("declare clouds again", lambda: tried().begin(), vital=True, rows=(14, 15)),
        *(
            Act(name, run, rows=(14, 15))
            for name, run in {
                "go on to a cloud, in every combination": lambda: tried().chain(),
                "ask for a cloud with a key that leads to none": lambda: tried().keys(),
                "spend a budget": lambda: tried().budget(),
                "restart what counts": lambda: tried().restarts(),
                "restore the ledger": lambda: tried().restore(),
                "rotate keys": lambda: tried().rotation(),
                "look for texts and keys in the journal": lambda: tried().end(),
            }.items()
        ),
    )


class Personal:
    """Tests of the routers with clouds of one rack."""

    def __init__(self, stage: Stage, site: Site, beside: Iterable[dict[str, object]] = ()) -> None:
        """``beside``: routers that are none of its own."""
        self.stage, self.site, self.record = stage, site, site.record
        self.beside = list(beside)
        self._known_usd = 0.0
        self._stopped: list[str] = []

    @property
    def rack(self) -> Machine:
        """The machine."""
        return self.stage.rack

    def prepare(self) -> None:
        """Have the rack trust the authority of the lab's clouds, as `deploys/base.py` would."""
        self.rack.copy_to(
            self.stage.cloud.authority.certificate, "/usr/local/share/ca-certificates/lab.crt"
        )
        self.rack.succeed("update-ca-certificates", timeout_seconds=120)
        self.hand_over()

    def hand_over(self) -> None:
        """Give root on the rack the callers' keys."""
        for name in SECRETS:
            self.rack.copy_to(self.stage.folder / "secrets" / name, f"/root/{name}")

    def _names(self, port: int) -> RouterNames:
        return routers_of_rack.at(self.stage.settings, port)

    def _command(self, port: int, key: str, body: dict[str, Any], path: str = PATH) -> str:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], **body}
        return (
            f"sed 's/^/Authorization: Bearer /' /root/{key} | curl --silent --max-time 60"
            f" --header @- --json {shlex.quote(json.dumps(asked))} --write-out"
            f" '\\n%header{{x-holdfast-engine}}\\n%{{http_code}}\\n' {self._names(port).url}{path}"
        )

    def _ask(
        self, port: int = HOME, key: str = "ALICE_KEY", path: str = PATH, **body: Any
    ) -> tuple[int, str, str]:
        """Status, name of the engine that answered, and text."""
        said = self.rack.succeed(self._command(port, key, body, path), timeout_seconds=90)
        text, engine, status = said.rstrip("\n").rsplit("\n", 2)
        return int(status), engine, text

    def _have(self, *, chat: bool, on_floor: bool) -> None:
        """Start or stop engine and floor, and wait until the router has noticed."""
        self.rack.succeed(f"systemctl {'start' if on_floor else 'stop'} {floor.UNIT}")
        self.stage.stop_engine("chat")
        # A check of an engine that has just begun to start may fail: up is what is seen after down.
        self._wait_until_told("rung-1/engine", False)
        if chat:
            self.stage.start_engines(["chat"])
            self._wait_until_told("rung-1/engine", True)
        self._wait_until_told("rung-2/engine", on_floor)

    def _wait_until_told(self, server: str, up: bool) -> None:
        routers_of_rack.wait_until_told(self.rack, self._names(HOME), server, up=up)

    def _wait_for_clouds(self) -> None:
        """Wait until both routers know that what asks their clouds answers."""
        for port in (HOME, FAR):
            self.rack.wait_until_succeeds(
                f"curl --silent --fail {self._names(port).url}/health", timeout_seconds=120
            )
        self._wait_until_told("clouds/clouds", True)

    def _spent(self, caller: str) -> float:
        asked = f"SELECT coalesce(sum(usd), 0) FROM charge WHERE caller = '{caller}'"  # noqa: S608
        return float(self._sql(asked))

    def _sql(self, asked: str) -> str:
        return sql(self.rack, "clouds-home", asked)

    def chain(self) -> None:
        """Engine, floor and both clouds, running and stopped in every combination."""
        self._wait_for_clouds()
        names = {"one": CLOUDS[0], "two": CLOUDS[1]}
        for chat, on_floor in itertools.product((True, False), repeat=2):
            self._have(chat=chat, on_floor=on_floor)
            for one, two in itertools.product((True, False), repeat=2):
                for name, up in (("one", one), ("two", two)):
                    self.stage.cloud.answer(names[name], 200 if up else 503)
                self.stage.cloud.packets()
                said = self._ask()[:2]
                left = self.stage.cloud.packets()
                ladder = {"chat": chat, "floor": on_floor, "one": one, "two": two}
                wanted = next(((200, name) for name, up in ladder.items() if up), (503, ""))
                state = " ".join(f"{name} {'up' if up else 'down'}," for name, up in ladder.items())
                good = said == wanted and not (left and (chat or on_floor))
                told = "0 packets" if chat or on_floor else "asked"
                self.record.check(f"{state} {wanted[1] or wanted[0]}, {told}", good, (said, left))
        for cloud in CLOUDS:
            self.stage.cloud.answer(cloud)
        said = self._ask(FAR)[:2]
        self.record.check("the cloud router asks its cloud", said == (200, "one"), said)
        said = self._ask(FAR, key="CHILD_KEY")[:2]
        self.record.check("and refuses an unknown key", said == (401, ""), said)
        text = self._ask(stream=True)[2]
        good = text.count("data: ") > 3 and text.rstrip().endswith("[DONE]")
        self.record.check("a stream arrives in parts", good, text)
        said, seen = self._ask(tools=[TOOL])[:2], self.stage.cloud.asked()[-1]["body"]
        good = said == (200, "one") and isinstance(seen, dict) and seen.get("tools") == [TOOL]
        self.record.check("tools are passed to a cloud", good, (said, seen))
        settled = self._sql("SELECT count(*) FROM charge WHERE NOT settled")
        self.record.check(
            "every charge is settled, including the stream's", settled == "0", settled
        )
        self.stage.cloud.answer(CLOUDS[0], BREAKS)
        status, text = self.rack.execute(self._command(HOME, "ALICE_KEY", {"stream": True}))
        self.stage.cloud.answer(CLOUDS[0])
        most = f"usd > {MAX_TOKENS * OUTPUT_USD / 1e6}"
        kept = self._sql(f"SELECT count(*) FROM charge WHERE NOT settled AND {most}")  # noqa: S608
        good = status != 0 and "answers" in text and "[DONE]" not in text and kept == "1"
        seen = (status, text, kept)
        self.record.survived("a cloud breaks off its stream", "it counts in full", good, seen)

    def keys(self) -> None:
        """A key without clouds, and bodies that request one nevertheless."""
        self._have(chat=False, on_floor=False)
        self.stage.cloud.forget()
        for body in MALICE:
            asked = json.loads(json.dumps(body).replace("CLOUD", CLOUDS[0]))
            said = self._ask(key="CHILD_KEY", **asked)[:2]
            left = self.stage.cloud.packets()
            good = said == (503, "") and not left
            self.record.check(f"a local key, {', '.join(body)}: 0 packets", good, (said, left))
        told = []
        for body in MALICE:
            asked = json.loads(json.dumps(body).replace("CLOUD", "evil.cloud.drill"))
            told.append(self._ask(**asked)[:2])
        seen = self.stage.cloud.asked()
        own = "Bearer " + (self.stage.folder / "secrets" / "CLOUD_ONE_KEY").read_text().strip()
        strange = [
            each
            for each in seen
            if each["key"] != own
            or each["cloud"] != CLOUDS[0]
            or not isinstance(each["body"], dict)
            or set(each["body"]) - SENT
            or each["body"]["model"] != "model-of-one"
        ]
        # An image and a tool elsewhere are refused: what they cost is not known.
        good = set(told) == {(200, "one"), (400, "")} and told.count((200, "one")) == len(seen)
        self.record.check("a key with clouds: the declared cloud is asked", good, told)
        self.record.check("and no other address", not strange, strange)
        for path in ("/anthropic/v1/messages", "/v1/embeddings", "/key/generate", "/openai/v1/x"):
            said = self._ask(path=path)[:2]
            self.record.check(f"{path} is refused", said == (404, ""), said)
        said = self._ask(path="/v1/completions", prompt="x")[:2]
        self.record.check("clouds get chat completions only", said == (503, ""), said)
        self.record.check(
            "and no other request was sent", len(self.stage.cloud.asked()) == len(seen)
        )

    def budget(self) -> None:
        """An agent with many parallel requests until its budget is spent, and other callers."""
        self._have(chat=False, on_floor=False)
        self.stage.cloud.forget()
        before = self._spent("agent")
        one = self._command(HOME, "AGENT_KEY", {})
        self.rack.succeed(f"for n in $(seq 60); do {one} & done; wait", 120)
        said = [self._ask(key="AGENT_KEY") for _ in range(3)]
        while said[-1][0] == 200:
            said.append(self._ask(key="AGENT_KEY"))
        spent, asked = self._spent("agent"), len(self.stage.cloud.asked())
        good = spent <= BUDGET_USD and abs(before + asked * ANSWER_USD - spent) < 1e-6 and asked > 0
        self.record.check("parallel requests never exceed the budget", good, (spent, asked))
        self.record.figures["an agent's budget"] = f"{spent:.2f} of {BUDGET_USD} USD, {asked} asked"
        self._known_usd = spent
        self.stage.cloud.packets()
        status, engine, text = self._ask(key="AGENT_KEY")
        left = self.stage.cloud.packets()
        good = (status, engine) == (402, "") and not left and "insufficient_quota" in text
        self.record.check("budget spent: 402, and 0 packets", good, (status, text, left))
        said = [self._ask()]
        self.record.check("other callers are still served", said[0][:2] == (200, "one"), said)
        self._have(chat=True, on_floor=True)
        local = self._ask(key="AGENT_KEY")[:2]
        self.record.check("and so is local work with that key", local == (200, "chat"), local)
        self._have(chat=False, on_floor=False)

    def restarts(self) -> None:
        """Spending is not forgotten, and without the ledger nothing is sent."""
        self.rack.succeed("systemctl stop holdfast-ledger.service")
        self.stage.cloud.packets()
        said, left = self._ask()[:2], self.stage.cloud.packets()
        good = said == (503, "") and not left
        self.record.survived("the ledger stopped", "503, and 0 packets", good, (said, left))
        status, _ = self.rack.execute(
            f"cd {LEDGER} && mv [1-9]* 9 && systemctl start holdfast-ledger.service"
        )
        told = self.rack.succeed(
            "journalctl --unit=holdfast-ledger.service --output=cat --lines=20"
        )
        good = status != 0 and "the ledger was written by PostgreSQL 9, but this is" in told
        self.record.survived("a ledger of another PostgreSQL", "it is not forgotten", good, told)
        self.rack.succeed(
            f"systemctl stop holdfast-ledger.service && mv {LEDGER}/9"
            f" {LEDGER}/{ledger.MAJOR[self.stage.settings.distribution]}"
            " && systemctl reset-failed && systemctl start holdfast-ledger.service"
        )
        run = "systemctl show -P InvocationID holdfast-ledger.service"
        killed = self.rack.succeed(run).strip()
        self.rack.succeed("systemctl kill --signal=KILL holdfast-ledger.service")
        # It is active for a moment yet; its next run is another one.
        self.rack.wait_until_succeeds(
            f'test "$({run})" != {killed} && systemctl is-active holdfast-ledger.service', 60
        )
        # With their sockets: their routers ask how they are, and would start them again.
        units = " ".join(
            f"{clouds.stem(self._names(port).router)}.{kind}"
            for port in (HOME, FAR)
            for kind in ("socket", "service")
        )
        # A connection that was kept says goodbye.
        self.rack.succeed(f"systemctl stop {units}")
        self.stage.cloud.packets()
        self.rack.succeed(f"systemctl start {units}")
        self._wait_for_clouds()
        left = self.stage.cloud.packets()
        self.record.check(
            "the program that asks clouds starts without sending a packet", not left, left
        )
        self.record.survived("the ledger killed", SPENT, *self._still_spent())

    def _other_tiers(self) -> None:
        """Root itself, in the group of a T1 unit, does not reach what leads on to a cloud."""
        rack, door = self.rack, self._names(WORK).doors[0].service
        group = rack.succeed(f"systemctl show -P ControlGroup {door}").strip()
        for port, reached in {HOME: False, FAR: False, CLIENT: True}.items():
            call = f"curl --silent --max-time 5 {self._names(port).url}/health"
            rack.wait_until_succeeds(call, timeout_seconds=60)
            status, _ = rack.execute(f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs && {call}")
            told = f"{self._names(port).router.name} is {'' if reached else 'not '}reached from T1"
            self.record.check(told, (status == 0) is reached, status)

    def _still_spent(self) -> tuple[bool, object]:
        """Whether the spending is still recorded, and what was seen."""
        said = self._ask(key="AGENT_KEY")[0]
        spent = self._spent("agent")
        return (said, spent) == (402, self._known_usd), (said, spent)

    def restore(self) -> None:
        """Dump the ledger, lose it, and restore it."""
        unit = clouds.stem(self._names(HOME).router)
        self.rack.succeed(f"systemctl start {ledger.DUMP}")
        self._sql("DROP TABLE charge")
        # As docs/routing.md says.
        self.rack.succeed(f"systemctl stop {unit}.socket {unit}.service")
        self.rack.succeed(
            "runuser --user clouds-home -- psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1"
            f" --single-transaction --host={ledger.SOCKET_FOLDER}"
            f" < {LEDGER_DUMPS}/clouds-home.sql"
        )
        self.rack.succeed(f"systemctl start {unit}.socket {unit}.service")
        self._wait_for_clouds()
        self.record.survived("loss of the ledger", SPENT, *self._still_spent())

    def rotation(self) -> None:
        """Give one caller a new key, and remove another caller."""
        self._have(chat=True, on_floor=True)
        self.rack.succeed("cp /root/CHILD_KEY /root/OLD_KEY; cp /root/AGENT_KEY /root/GONE_KEY")
        self.stage.renew("CHILD_KEY")
        home, far = routers()
        keys = [key for key in home["keys"] if key["name"] != "agent"]
        self.declare([home | {"keys": keys}, far])
        self.hand_over()
        self.site.converge("another key")
        self._wait_for_clouds()
        said = {key: self._ask(key=key)[0] for key in ("OLD_KEY", "CHILD_KEY", "GONE_KEY")}
        wanted = {"OLD_KEY": 401, "CHILD_KEY": 200, "GONE_KEY": 401}
        self.record.check("the old key is refused, the new one is accepted", said == wanted, said)
        self.declare(routers())
        self.site.converge("the agent again")
        self._wait_for_clouds()
        self._have(chat=False, on_floor=False)
        self.record.check(f"for who comes back {SPENT}", *self._still_spent())
        self._have(chat=True, on_floor=True)

    def begin(self) -> None:
        """Declare routers with clouds besides those without."""
        self.declare(routers())
        self.site.converge("clouds", fatal=True)
        self.site.expect_nothing("clouds, again")
        self._other_tiers()
        # What they ask would be counted with what may not leave.
        self._stopped = stop_asking(self.rack)

    def end(self) -> None:
        """Check that no text and no key is in the journal."""
        self.silence()
        if self._stopped:
            self.rack.succeed(f"systemctl start {' '.join(self._stopped)}")

    def silence(self) -> None:
        """No text and no key is in the journal."""
        values = [(self.stage.folder / "secrets" / name).read_text().strip() for name in SECRETS]
        (self.stage.folder / "words").write_text("\n".join([PROMPT, *values]) + "\n")
        self.rack.copy_to(self.stage.folder / "words", "/root/words")
        told = self.rack.execute(
            "journalctl --output=cat --unit 'holdfast-*' | grep --fixed-strings --file=/root/words"
        )
        self.record.check("no text and no key in the journal", told[0] == 1, told[1][:200])

    def after_reboot(self) -> None:
        """The spending is still recorded."""
        self._wait_for_clouds()
        self._have(chat=False, on_floor=False)
        self.record.survived("a reboot", SPENT, *self._still_spent())
        self._have(chat=True, on_floor=True)

    def declare(self, wanted: Iterable[dict[str, Any]]) -> None:
        """Write the inventory with these routers, and the others."""
        self.stage.declare_routers([*self.beside, *wanted], **declared(self.stage.site))
