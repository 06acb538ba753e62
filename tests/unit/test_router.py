"""Routers as real HAProxy processes, between stand-ins for engines, floor and cloud."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast import alerts, router
from holdfast.checks.router import router_keys, routers
from holdfast.registry import declared_services
from holdfast.sandbox import EXPOSURE_MAX
from holdfast.service import texts
from holdfast.service.units import service_unit
from holdfast.settings import HostSettings
from tests import malice
from tests.unit.fake_upstreams import (
    AUTHORISED,
    COMPLETIONS,
    PROMPT,
    SECRETS,
    Cloud,
    Running,
    StandIn,
    running,
    settings_of,
    until,
    written,
)

CALLERS = SECRETS["CALLERS_KEY"].get_secret_value()


@dataclass(frozen=True)
class Chain:
    """A private router, its two engines, its floor, and a cloud that must not be reached."""

    router: Running
    a: StandIn
    b: StandIn
    floor: StandIn
    cloud: Cloud

    def all_up(self) -> None:
        """Have everybody answer, with nothing remembered."""
        for stand_in in (self.a, self.b, self.floor):
            stand_in.be(True)
        for stand_in in (self.a, self.b, self.floor):
            stand_in.wait_until_known()
        until(lambda: self.router.ask().engine == "a")
        for stand_in in (self.a, self.b, self.floor):
            stand_in.seen.clear()


@pytest.fixture(scope="module")
def stand_ins() -> Iterator[list[StandIn]]:
    made = [StandIn("a"), StandIn("b"), StandIn("floor")]
    yield made
    for stand_in in made:
        stand_in.down()


@pytest.fixture(scope="module")
def private(stand_ins: list[StandIn]) -> Iterator[Chain]:
    cloud = Cloud()
    settings = settings_of(stand_ins, {"engines": ["a", "b"], "floor": True})
    with running(settings) as started:
        a, b, floor = stand_ins
        yield Chain(started, a, b, floor, cloud)
    cloud.close()


@pytest.fixture
def chain(private: Chain) -> Chain:
    private.all_up()
    return private


@pytest.mark.parametrize(
    "is_up",
    [*itertools.product((True, False), repeat=3)],
    ids=lambda up: "".join("01"[x] for x in up),
)
def test_the_first_that_is_up_answers(chain: Chain, is_up: tuple[bool, ...]) -> None:
    everybody = (chain.a, chain.b, chain.floor)
    for stand_in, up in zip(everybody, is_up, strict=True):
        stand_in.be(up)
    first = next((each for each, up in zip(everybody, is_up, strict=True) if up), None)
    # At once, before the next look at anybody's health, and after one.
    for reply in (chain.router.ask(), _after_a_look(chain)):
        if first is None:
            assert (reply.status, reply.engine) == (503, None)
            assert reply.headers["retry-after"]
        else:
            assert (reply.status, reply.engine) == (200, first.name)
            assert json.loads(reply.body) == {"by": first.name}


def _after_a_look(chain: Chain) -> Any:
    everybody = (chain.a, chain.b, chain.floor)
    health = 200 if any(each.is_up for each in everybody) else 503
    until(lambda: chain.router.ask("/health", key=None, method="GET").status == health)
    return chain.router.ask()


@pytest.mark.parametrize("breaks", ["drop", 502, 503])
def test_what_an_engine_has_not_answered_the_next_one_does(chain: Chain, breaks: int | str) -> None:
    chain.a.does = breaks
    reply = chain.router.ask()
    assert (reply.status, reply.engine) == (200, "b")
    chain.b.does = breaks
    reply = chain.router.ask()
    assert (reply.status, reply.engine) == (200, "floor")
    assert [json.loads(seen.body) for seen in chain.floor.seen] == [PROMPT]


@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_what_an_engine_says_of_a_request_is_the_answer(chain: Chain, status: int) -> None:
    chain.a.does = status
    reply = chain.router.ask()
    assert (reply.status, reply.engine) == (status, "a")
    assert chain.b.seen == chain.floor.seen == []


def test_an_answer_that_was_begun_is_not_begun_again_elsewhere(chain: Chain) -> None:
    chain.a.does = "cut"
    with pytest.raises(Exception, match="IncompleteRead"):
        chain.router.ask()
    assert chain.b.seen == chain.floor.seen == []


def test_a_request_larger_than_the_buffer_passes_whole(chain: Chain) -> None:
    large = {**PROMPT, "prompt": "x" * (4 * router.BUFFER_BYTES)}
    assert chain.router.ask(body=large).engine == "a"
    assert json.loads(chain.a.seen[0].body) == large
    chain.a.down()
    assert chain.router.ask(body=large).engine == "b"
    assert json.loads(chain.b.seen[0].body) == large


def test_each_upstream_sees_its_own_key_and_four_headers(chain: Chain) -> None:
    names = ("Cookie", "Proxy", "Proxy-Authorization", "X-Real-IP", "X_Under", "TE", "X-Request-Id")
    noise = dict.fromkeys((*names, "Forwarded", "Via", "OpenAI-Organization", "1st"), "spoofed")
    for stand_in, key in ((chain.a, "A_KEY"), (chain.b, "B_KEY"), (chain.floor, "FLOOR_API_KEY")):
        assert chain.router.ask(**noise).engine == stand_in.name
        (seen,) = stand_in.seen
        assert seen.headers.pop("connection") == "close"
        assert seen.headers == {
            "authorization": f"Bearer {SECRETS[key].get_secret_value()}",
            "content-type": "application/json",
            "content-length": str(len(json.dumps(PROMPT))),
            "host": "holdfast",
        }
        stand_in.down()


@pytest.mark.parametrize(
    "key", [None, "", "wrong", CALLERS[:-1], CALLERS + "x", "key-of-a-8d1f", CALLERS.upper()]
)
def test_each_wrong_key_gets_the_same_answer_and_reaches_no_engine(
    chain: Chain, key: str | None
) -> None:
    reply = chain.router.ask(key=key)
    told = {name: value for name, value in reply.headers.items() if name != "connection"}
    assert (reply.status, reply.engine) == (401, None)
    assert told == {"content-length": str(len(reply.body)), "content-type": "application/json"}
    assert json.loads(reply.body)["error"]["code"] == 401
    assert chain.a.seen == []


def test_models_are_read_and_only_by_who_has_the_key(chain: Chain) -> None:
    assert chain.router.ask("/v1/models", method="GET").engine == "a"
    assert chain.router.ask("/v1/models", method="GET", key=None).status == 401
    assert [seen.target for seen in chain.a.seen] == ["/v1/models"]


def test_its_health_needs_no_key_and_tells_whether_anybody_answers(chain: Chain) -> None:
    said = chain.router.ask("/health", key=None, method="GET")
    assert (said.status, said.body) == (200, b"ok")
    assert chain.a.seen == []


@pytest.mark.parametrize("body", malice.BODIES, ids="+".join)
def test_no_body_chooses_who_answers(chain: Chain, body: dict[str, Any]) -> None:
    text = json.dumps({**PROMPT, **body}).replace("CLOUD", f"127.0.0.1:{chain.cloud.port}").encode()
    for stand_in in (chain.a, chain.b, chain.floor):
        assert chain.router.ask(body=text).engine == stand_in.name
        assert stand_in.seen[-1].body == text
        stand_in.down()
    assert chain.router.ask(body=text).status == 503
    assert chain.cloud.visitors() == 0


EVIL_REQUESTS = [
    # Where it goes, by every header and line that a proxy could believe.
    ("POST /v1/completions", "Host: 127.0.0.1:CLOUD\r\nX-Forwarded-Host: 127.0.0.1:CLOUD\r\n", 200),
    ("POST /v1/completions", "Host: x\r\nProxy: http://127.0.0.1:CLOUD\r\n", 200),
    ("POST /v1/completions", "Host: x\r\nX-Original-URL: /anthropic/v1/messages\r\n", 200),
    ("POST http://127.0.0.1:CLOUD/v1/completions", "Host: 127.0.0.1:CLOUD\r\n", 404),
    ("POST http://127.0.0.1:CLOUD/v1/completions", "Host: x\r\n", 400),
    ("CONNECT 127.0.0.1:CLOUD", "Host: 127.0.0.1:CLOUD\r\n", 404),
    # What is asked, by every other spelling.
    ("POST /anthropic/v1/messages", "Host: x\r\n", 404),
    ("POST //v1//completions", "Host: x\r\n", 404),
    ("POST /v1/%63ompletions", "Host: x\r\n", 404),
    ("POST /v1/x/../completions", "Host: x\r\n", 404),
    ("POST /v1/completions/", "Host: x\r\n", 404),
    ("POST /v1/completions?api_base=http://127.0.0.1:CLOUD", "Host: x\r\n", 404),
    ("POST /v1/completions;x", "Host: x\r\n", 404),
    ("POST /V1/COMPLETIONS", "Host: x\r\n", 404),
    ("POST /v1/embeddings", "Host: x\r\n", 404),
    ("POST /invocations", "Host: x\r\n", 404),
    ("GET /v1/completions", "Host: x\r\n", 404),
    ("OPTIONS *", "Host: x\r\n", 404),
    ("GET /metrics", "Host: x\r\n", 404),
    ("GET /v1/queue/0", "Host: x\r\n", 404),
    # Another protocol.
    ("POST /v1/completions", "Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n", 200),
]


@pytest.mark.parametrize(("line", "headers", "status"), EVIL_REQUESTS)
def test_no_line_and_no_header_leads_elsewhere(
    chain: Chain, line: str, headers: str, status: int
) -> None:
    body = json.dumps(PROMPT)
    request = f"{line} HTTP/1.1\r\n{headers}{AUTHORISED}Content-Length: {len(body)}\r\n\r\n{body}"
    said = chain.router.send(request.replace("CLOUD", str(chain.cloud.port)).encode())
    assert said.startswith(f"HTTP/1.1 {status} ".encode()), said
    assert {seen.target for seen in chain.a.seen} <= {COMPLETIONS}
    assert all("upgrade" not in seen.headers for seen in chain.a.seen)
    assert len(chain.a.seen) == (status == 200)
    assert chain.cloud.visitors() == 0


_POST = f"POST {COMPLETIONS} HTTP/1.1\r\n{AUTHORISED}Host: x\r\n"


@pytest.mark.parametrize(
    "request_text",
    [
        # Both lengths: the chunks count, and what follows them is another request of its own.
        f"{_POST}Content-Length: 6\r\nTransfer-Encoding: chunked"
        f"\r\n\r\n0\r\n\r\nPOST /invocations HTTP/1.1\r\nHost: x\r\n{AUTHORISED}\r\n",
        f"{_POST}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        f"{_POST}Content-Length: 2\r\nContent-Length: 9\r\n\r\n{{}}",
        f"{_POST}Content-Length: +2\r\n\r\n{{}}",
        f"{_POST}Content-Length : 2\r\n\r\n{{}}",
        f"POST {COMPLETIONS}\tHTTP/1.1\r\n{AUTHORISED}Host: x\r\nContent-Length: 2\r\n\r\n{{}}",
        f"{_POST}X: a\r\n b\nContent-Length: 2\r\n\r\n{{}}",
    ],
)
def test_no_request_hides_in_another(chain: Chain, request_text: str) -> None:
    chain.router.send(request_text.encode("latin-1"))
    assert {seen.target for seen in chain.a.seen} <= {COMPLETIONS}
    assert len(chain.a.seen) <= 1
    assert all(seen.body in (b"", b"{}") for seen in chain.a.seen)
    assert chain.cloud.visitors() == 0


def test_a_request_in_chunks_is_refused_whole(chain: Chain) -> None:
    # HAProxy 3.0 would send it on without its body, once no header says that there is one.
    chunks = f"{_POST}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
    assert chain.router.send(chunks.encode()).startswith(b"HTTP/1.1 411 ")
    assert chain.a.seen == []


def test_the_other_version_of_the_protocol_is_not_spoken(chain: Chain) -> None:
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    said = chain.router.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
    assert said.startswith(b"HTTP/1.1 400 ")


def test_the_journal_tells_who_answered_and_nothing_of_what_was_asked(chain: Chain) -> None:
    chain.router.ask(**{"X-Holdfast-Engine": "me"})
    chain.router.ask(key="not-the-key-at-all")
    chain.router.ask("/v1/other?prompt=mine")
    until(lambda: "status=404" in _lines(chain)[-1])
    lines = _lines(chain)[-3:]
    pattern = r"profile=private router=work engine=(\S+) status=(\d+) retries=\S+ milliseconds=\d+"
    told = [re.fullmatch(pattern, line) for line in lines]
    assert [match and match.groups() for match in told] == [
        ("a", "200"),
        ("-", "401"),
        ("-", "404"),
    ]
    whole = chain.router.log.read_text()
    hidden = [
        PROMPT["prompt"],
        "not-the-key",
        "mine",
        *(s.get_secret_value() for s in SECRETS.values()),
    ]
    assert [text for text in hidden if str(text) in whole] == []


def _lines(chain: Chain) -> list[str]:
    told = chain.router.log.read_text().splitlines()
    return [line for line in told if line.startswith("profile=")]


def test_a_client_is_answered_by_its_engine_or_told_at_once(stand_ins: list[StandIn]) -> None:
    a, b, floor = stand_ins
    for stand_in in stand_ins:
        stand_in.be(True)
    settings = settings_of(stand_ins, {"profile": "client", "engines": ["a"]})
    with running(settings) as client:
        until(lambda: client.ask().status == 200)
        for away in ("down", "drop", 503):
            a.be(True)
            until(lambda: client.ask().status == 200)
            if away == "down":
                a.down()
            a.does = away
            began = time.monotonic()
            reply = client.ask()
            assert reply.status in (502, 503)
            assert time.monotonic() - began < 2
        a.down()
        until(lambda: client.ask("/health", method="GET", key=None).status == 503)
        assert (client.ask().status, client.ask().engine) == (503, None)
        assert b.seen == floor.seen == []


@pytest.mark.parametrize("drains", [False, True])
def test_haproxy_takes_every_configuration(tmp_path: Path, drains: bool) -> None:
    names = ("a", "b", "floor")
    ends: list[dict[str, Any]] = [
        {"engines": ["a", "b"], "floor": True, "queue": {}},
        {"engines": ["a"]},
        {"floor": True, "queue": {}},
        {"engines": ["a"], "profile": "client"},
    ]
    for declared in ends:
        settings = settings_of([StandIn(name) for name in names], declared)
        file = written(settings, str(tmp_path), "127.0.0.1:1", drains=drains)
        checked = subprocess.run(
            # HAProxy reads resolv.conf by itself, and opens a socket for each server in it: in a
            # unit without a network that is the end.
            [
                *("strace", "--quiet=all", "--trace=socket", "--follow-forks"),
                *("/usr/sbin/haproxy", "-c", "-V", "-f", str(file)),
            ],
            env={"CREDENTIALS_DIRECTORY": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr
        assert checked.stderr.count("[WARNING]") == checked.stderr.count("has no nameservers") == 1
        assert "AF_INET, SOCK_DGRAM" not in checked.stderr
        # Nothing that would look a name up.
        upstreams = re.findall(r"^    server \S+ (\S+)", file.read_text(), re.MULTILINE)
        assert all(re.match(r"127\.0\.0\.1:\d+$|unix@/", at) for at in upstreams)


def _private(**declared: Any) -> HostSettings:
    chain = {"engines": ["a", "b"], "floor": True, "queue": {}}
    return settings_of([StandIn("a"), StandIn("b"), StandIn("floor")], {**chain, **declared})


def _units(settings: HostSettings) -> dict[str, str]:
    written = texts(router.programs(settings))
    return {Path(path).name: text for path, text in written.items() if "/systemd/" in path}


def test_only_what_routes_has_a_network_and_that_is_loopback() -> None:
    units = _units(_private(scope="tailnet"))
    for name in ("work-loopback", "work-tailnet", "work-drain"):
        lines = units[f"holdfast-router-{name}.service"].splitlines()
        assert [line for line in lines if line.startswith("IPAddress")] == [
            "IPAddressDeny=any",
            "IPAddressAllow=127.0.0.1/32",
        ]
        assert "User=router-work" in lines
    for name in ("holdfast-queue-work.service", "holdfast-queue-work-age.service"):
        lines = units[name].splitlines()
        assert {"PrivateNetwork=yes", "User=queue-work", "UMask=0077"} <= set(lines)


def test_each_socket_is_open_to_the_one_user_who_needs_it() -> None:
    units = _units(_private())
    users = {
        name: re.findall(r"^Socket(?:User|Mode)=(\S+)$", text, re.MULTILINE)
        for name, text in units.items()
        if name.endswith(".socket") and "BindToDevice" not in text
    }
    assert users == {
        "holdfast-queue-work.socket": ["router-work", "0600"],
        "holdfast-router-work-drain.socket": ["queue-work", "0600"],
    }


def test_no_key_is_in_anything_but_the_credential() -> None:
    settings = _private()
    (declared,) = settings.routers
    names = router.RouterNames(declared)
    written = texts(router.programs(settings))
    values = [secret.get_secret_value() for secret in SECRETS.values()]
    assert [path for path, text in written.items() if any(value in text for value in values)] == []
    credential = router.keys(settings, declared, SECRETS.__getitem__)
    assert all(value in credential for value in values)
    for unit in ("loopback", "drain"):
        text = written[f"/etc/systemd/system/{names.stem}-{unit}.service"]
        assert f"LoadCredential=keys:{names.key_file}" in text.splitlines()


def test_a_router_and_its_queue_are_declared_services() -> None:
    services = {each.name: each for each in declared_services(_private(scope="tailnet"))}
    assert [(each.port, each.scope) for each in services["router-work"].listens] == [
        (8200, "tailnet")
    ]
    assert {services[name].tier for name in ("router-work", "queue-work")} == {"T1"}
    assert services["queue-work"].data[0].backup == "derived"


def test_systemd_judges_the_sandboxes_as_declared(tmp_path: Path) -> None:
    units = {**_units(_private()), alerts.NOTIFY.unit: service_unit(alerts.NOTIFY)}
    for name in (name for name in units if name.endswith(".service")):
        (tmp_path / name).write_text(units[name])
        threshold = f"--threshold={EXPOSURE_MAX * 10:.0f}"
        judged = subprocess.run(
            ["systemd-analyze", "security", "--offline=yes", threshold, tmp_path / name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert judged.returncode == 0, judged.stdout.splitlines()[-1:] + [judged.stderr]


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("engines[1]", {"engines": ["a", "bb"]}, "no such engine; write 'b'"),
    ("engines", {"engines": [], "floor": False}, "this router has no local upstream"),
    ("name", {"name": "x-drain"}, "rename it"),
    ("scope", {"scope": "tailnet"}, "this host has no tailnet"),
    ("engines", {"profile": "client", "floor": False, "queue": None}, "exactly one engine"),
    ("floor", {"profile": "client", "engines": ["a"], "queue": None}, "to another model"),
    ("queue", {"profile": "client", "engines": ["a"], "floor": False}, "returns an error at once"),
]


@pytest.mark.parametrize(("key", "declared", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_a_chain_that_cannot_hold_its_promise_is_refused(
    key: str, declared: dict[str, Any], says: str
) -> None:
    settings = _private(**declared).model_copy(update={"tailnet": None})
    (finding,) = routers(settings)
    assert finding.key == f"routers[0].{key}"
    assert says in f"{finding.wrong}; {finding.mend}"


def _changed(settings: HostSettings, **changes: Any) -> HostSettings:
    """The settings with another second engine."""
    vllm = settings.servers["vllm"]
    first, second = vllm.engines
    engines = [first, second.model_copy(update=changes)]
    return settings.model_copy(update={"vllm": vllm.model_copy(update={"engines": engines})})


def test_engines_that_cannot_stand_in_for_each_other_are_refused() -> None:
    assert list(routers(_private())) == []
    (finding,) = routers(_changed(_private(), checkpoint="other"))
    assert finding.key == "routers[0].engines[1]"
    assert "it serves other" in finding.wrong
    (finding,) = routers(_changed(_private(), chat=False))
    assert "answers chat requests" in finding.wrong
    (finding,) = routers(_changed(_private(), task="embed"))
    assert "its task is 'embed', and that of a is 'generate'" in finding.wrong
    (finding,) = routers(_changed(_private(engines=["b"], queue=None), task="embed"))
    assert finding.key == "routers[0].floor"
    (finding,) = routers(_changed(_private(engines=["queue"]), name="queue"))
    assert "rename the engine" in finding.mend


def test_a_floor_that_is_not_there_is_refused() -> None:
    (finding,) = routers(settings_of([StandIn("a")], {"engines": ["a"], "floor": True}))
    assert (finding.key, finding.mend) == ("routers[0].floor", "declare floor")


def test_a_key_that_no_header_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLERS_KEY", "two words that are long enough")
    (finding,) = router_keys(_private())
    assert finding.key == "routers[0].api_key"
    assert "without spaces" in finding.wrong
