"""Routers that lead to clouds: who gets there, with what, and within which budget."""

from __future__ import annotations

import asyncio
import contextvars
import json
import re
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from facts.egress import Attempts
from holdfast import backup, clouds, egress, ledger, router, sovereignty
from holdfast.checks.router import routers
from holdfast.host_programs import clouds as clouds_program
from holdfast.host_programs.clouds import (
    PASSED,
    Asker,
    Caller,
    Cloud,
    Ledger,
    Refused,
    dearest,
    paid,
    request,
    written,
)
from holdfast.registry import declared_services
from holdfast.routing import clouds_service, ledger_service
from holdfast.sandbox import EXPOSURE_MAX
from holdfast.service import texts as texts_of
from holdfast.settings import HostSettings
from tests.unit.fake_upstreams import (
    SECRETS as LOCAL_SECRETS,
)
from tests.unit.fake_upstreams import (
    Running,
    StandIn,
    folder_for_sockets,
    free_port,
    settings_of,
    until,
)

ALICE, CHILD = "key-of-alice-1d92", "key-of-the-child-5b"
SECRETS = {
    **LOCAL_SECRETS,
    "ALICE_KEY": SecretStr(ALICE),
    "CHILD_KEY": SecretStr(CHILD),
    "ONE_KEY": SecretStr("sk-of-cloud-one-9c"),
    "TWO_KEY": SecretStr("sk-of-cloud-two-2e"),
}
CHAT = clouds.PATH
BODY = ("messages", "tools", "tool_choice", "response_format", "max_tokens", "stream")
ASKED = {"model": "llama", "messages": [{"role": "user", "content": "a secret of mine"}]}


def provider(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "base_url": f"https://{name}.cloud.example/v1",
        "model": f"big-{name}",
        "api_key": f"{name.upper()}_KEY",
        "input_usd": 3.0,
        "output_usd": 15.0,
    } | changes


def caller(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "api_key": f"{name.upper()}_KEY"} | changes


def host(stand_ins: list[StandIn] | None = None, **declared: Any) -> HostSettings:
    """A host with a personal router: an engine, the floor, two clouds, and two who may call."""
    names = [StandIn("a"), StandIn("floor")] if stand_ins is None else stand_ins
    home = {
        "name": "home",
        "profile": "personal",
        "api_key": None,
        "engines": ["a"],
        "floor": True,
        "clouds": ["one", "two"],
        "keys": [caller("alice", clouds=["one", "two"], budget_usd=5.0), caller("child")],
    }
    settings = settings_of(names, home | declared)
    given = {"clouds": {"providers": [provider("one"), provider("two")]}}
    parsed = HostSettings.model_validate(
        {"hostname": "x", "distribution": "debian13", "interfaces": {"e": {"role": "lan"}}} | given
    )
    return settings.model_copy(update={"clouds": parsed.clouds})


@dataclass
class Charges(Ledger):
    """The ledger's promises without PostgreSQL: charges by number."""

    usd: list[Decimal] = field(default_factory=list)
    settled: set[int] = field(default_factory=set)

    def reserve(self, caller: Caller, cloud: Cloud, usd: Decimal) -> int:
        if sum(self.usd) + usd > caller.budget_usd:
            raise Refused(402, "too dear")
        self.usd.append(usd)
        return len(self.usd) - 1

    def settle(self, number: int, usd: Decimal, prompt_tokens: int, answer_tokens: int) -> None:
        self.usd[number] = usd
        self.settled.add(number)


class Said:
    """An answer, or a part of one, as LiteLLM gives it."""

    def __init__(
        self, text: str, usage: SimpleNamespace | None = None, end: str | None = None
    ) -> None:
        self.text, self.usage = text, usage
        self.choices = [SimpleNamespace(finish_reason=end)]

    def model_dump(self, *, exclude_none: bool) -> dict[str, Any]:
        said: dict[str, Any] = {"choices": [{"delta": {"content": self.text} if self.text else {}}]}
        return said | ({"usage": {"total_tokens": 30}} if self.usage else {})


USED = SimpleNamespace(prompt_tokens=10, completion_tokens=20)
GUESSED = SimpleNamespace(prompt_tokens=1, completion_tokens=1)


class Stream:
    """A stream as LiteLLM gives it: what a cloud sends, and an end and a count if that has none."""

    def __init__(self, sends: list[Any]) -> None:
        self.completion_stream = self._raw(sends)
        self.closed = False

    def _raw(self, sends: list[Any]) -> Iterator[Said]:
        try:
            for each in sends:
                if isinstance(each, Exception):
                    raise each
                yield each
        finally:
            self.closed = True

    def __iter__(self) -> Iterator[Said]:
        counted = False
        for part in self.completion_stream:
            counted = counted or part.usage is not None
            yield part
        if not counted:
            yield Said("", GUESSED, "stop")


class Status(Exception):
    """A cloud's refusal."""

    def __init__(self, status_code: int) -> None:
        super().__init__("no")
        self.status_code = status_code


class ConnectError(Exception):
    """As httpx calls a cloud that is not reached."""


@dataclass
class Clouds:
    """What stands where `litellm.completion` does, and what it was asked."""

    does: dict[str, Any] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    """What was sent to a cloud."""
    streams: list[Stream] = field(default_factory=list)
    adds: dict[str, Any] = field(default_factory=dict)
    """What it makes of a body for its cloud."""
    times: int = 1
    """How often it sends that."""

    def __call__(self, **asked: Any) -> Any:
        name = asked["model"].rpartition("-")[2]
        does = self.does.get(name)
        known = {key: value for key, value in asked.items() if key in (*BODY, *PASSED)}
        body = json.dumps({**known, **self.adds}).encode()
        send = paid(lambda transport, request: self.asked.append(asked))
        for _ in range(self.times):
            try:
                send(None, SimpleNamespace(read=lambda: body))
            except Refused as refused:
                # LiteLLM has one kind of error for all that happens in there.
                raise ConnectionError("wrapped") from refused
        if isinstance(does, Exception):
            raise does
        if asked.get("tools") and not asked.get("_skip_mcp_handler"):
            raise ModuleNotFoundError("No module named 'mcp'")
        if asked.get("stream"):
            whole = [Said("he"), Said("llo", end="stop"), Said("", USED)]
            self.streams.append(Stream(does if isinstance(does, list) else whole))
            return self.streams[-1]
        return Said(f"{name} answers", None if does == "silent" else USED)


ONE = Cloud("one", "openai", "https://one/v1", "big-one", Decimal(3), Decimal(15), 1000)
TWO = Cloud("two", "openai", "https://two/v1", "big-two", Decimal(3), Decimal(15), 1000)
WHO = Caller("alice", ("one", "two"), Decimal(5), "day")
COST = (10 * Decimal(3) + 20 * Decimal(15)) / 1_000_000


def asker(asks: Clouds, charges: Charges) -> Asker:
    return Asker(asks, [ONE, TWO], {"one": "sk-1", "two": "sk-2"}, charges, 60)


MALICE: list[dict[str, Any]] = [
    {"api_base": "http://evil/v1", "api_key": "sk-1", "base_url": "http://evil"},
    {"fallbacks": ["two"], "num_retries": 9, "context_window_fallbacks": [{"one": ["two"]}]},
    {"router_settings_override": {"fallbacks": [{"one": ["two"]}]}},
    {"model": "openai/gpt-4o"},
    {"model_list": [{"litellm_params": {"api_base": "http://evil"}}]},
    {"user_config": {"model_list": []}, "litellm_params": {}, "litellm_metadata": {}},
    {"extra_headers": {"Host": "evil"}, "extra_body": {"x": 1}, "extra_query": {"x": 1}},
    {"metadata": {"tags": ["x"]}, "mock_response": "hi", "mock_testing_fallbacks": True},
    {"custom_llm_provider": "azure", "azure_endpoint": "http://evil", "api_version": "1"},
    {"n": 100, "service_tier": "priority", "web_search_options": {}, "store": True},
    {"timeout": 0, "client": "x", "proxy": "http://evil", "caching": True, "user": "bob"},
]


@pytest.mark.parametrize("more", MALICE, ids="+".join)
def test_of_a_body_only_what_is_known_goes_on(more: dict[str, Any]) -> None:
    asks = Clouds()
    asker(asks, Charges()).answer(WHO, {**ASKED, **more})
    assert asks.asked == [
        {
            "model": "openai/big-one",
            "api_base": "https://one/v1",
            "api_key": "sk-1",
            "timeout": 60,
            "num_retries": 0,
            "max_retries": 0,
            "_skip_mcp_handler": True,
            "messages": ASKED["messages"],
            "max_tokens": 1000,
        }
    ]


def test_what_a_chat_needs_goes_on_as_it_was_written() -> None:
    function = {"name": "look", "parameters": {"type": "object"}}
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    whole = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "y"},
        ],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x"}},
        "temperature": 0.5,
        "stop": ["a"],
        "seed": 1,
    }
    made, limit = request({**whole, "max_completion_tokens": 7})
    assert (made, limit) == (whole, 7)


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": {"a": 1}}]}]},
        {"messages": [{"role": "user", "content": {"type": "text"}}]},
        {"messages": [{"role": "root", "content": "x"}]},
        {"messages": ["x"]},
        {"messages": []},
        {"messages": None},
        {"tools": [{"type": "mcp", "server_url": "http://evil"}]},
        {"tools": [{"type": "function", "function": {"name": 1}}]},
        {"tools": "all"},
        {"tool_choice": {"type": "mcp"}},
        {"response_format": {"type": "http"}},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"temperature": float("-inf")},
        {"temperature": 10**400},
        {"messages": [{"role": "assistant", "tool_calls": 5}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"max_tokens": -1},
        {"max_tokens": True},
        {"max_tokens": "9"},
        {"stop": [{"a": 1}]},
    ],
    ids=str,
)
def test_what_could_cost_more_than_can_be_told_is_refused(more: dict[str, Any]) -> None:
    asks = Clouds()
    with pytest.raises(Refused) as refused:
        asker(asks, Charges()).answer(WHO, {**ASKED, **more})
    assert refused.value.status == 400
    assert asks.asked == []


def answered(asks: Clouds, charges: Charges, who: Caller = WHO, **more: Any) -> tuple[str, Any]:
    name, parts = asker(asks, charges).answer(who, {**ASKED, **more})
    return name, list(parts)


def test_the_first_that_answers_is_asked_and_paid_for() -> None:
    refusals = [Status(status) for status in (401, 403, 404, 429, 503)]
    for failure in (*refusals, ConnectError()):
        asks, account = Clouds({"one": failure}), Charges()
        assert answered(asks, account)[0] == "two"
        assert (account.usd, account.settled) == ([Decimal(0), COST], {0, 1})


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_a_cloud_says_of_a_request_is_the_answer(status: int) -> None:
    asks, account = Clouds({"one": Status(status)}), Charges()
    with pytest.raises(Refused) as refused:
        answered(asks, account)
    assert (refused.value.status, refused.value.cloud) == (status, "one")
    assert (len(asks.asked), account.usd) == (1, [Decimal(0)])


def test_tools_go_on_and_are_paid_for() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    asks, account = Clouds(), Charges()
    assert answered(asks, account, tools=tools)[0] == "one"
    assert (asks.asked[0]["tools"], account.usd) == (tools, [COST])


def guessed(status: int, said: int) -> Exception:
    """A status that LiteLLM read out of an error's words, over the one that the cloud said."""
    failure = Status(status)
    failure.__context__ = Status(said)
    return failure


@pytest.mark.parametrize(
    "failure",
    [
        *(TimeoutError(), OSError(), ConnectionResetError(), ImportError()),
        *(Status(status) for status in (408, 409, 499, 500, 502, 504, 524)),
        guessed(429, 500),
    ],
    ids=repr,
)
def test_what_may_have_been_charged_counts_as_spent(failure: Exception) -> None:
    asks, account = Clouds({"one": failure}), Charges()
    assert answered(asks, account)[0] == "two"
    assert account.settled == {1}
    assert account.usd[0] > Decimal("0.015")


def test_an_answer_that_its_cloud_did_not_count_counts_as_spent() -> None:
    uncounted = [Said("he"), Said("llo", end="stop")]
    # What was counted on the way is not all.
    early = [Said("he", USED), Said("llo", end="stop")]
    for does in ("silent", uncounted, early):
        account = Charges()
        answered(Clouds({"one": does}), account, stream=does != "silent")
        assert account.settled == set()
        assert account.usd[0] > Decimal("0.015")


@pytest.mark.parametrize(
    "rest",
    [
        [Status(500)],
        [Status(400)],
        [ConnectError()],
        [Said("llo")],
        [Said("llo"), Said("", USED)],
        [Said("llo", end="stop"), Status(500)],
    ],
    ids=["an error", "a refusal", "another", "no end", "no end, but a count", "an end, an error"],
)
def test_a_stream_that_breaks_off_counts_as_spent(rest: list[Any]) -> None:
    account = Charges()
    with pytest.raises(Refused):
        answered(Clouds({"one": [Said("he"), *rest]}), account, stream=True)
    assert account.settled == set()
    assert account.usd[0] > Decimal("0.015")


@pytest.mark.parametrize("sends", [[Status(429)], []], ids=["a refusal", "nothing"])
def test_one_that_breaks_off_before_its_first_word_does_too(sends: list[Any]) -> None:
    account = Charges()
    assert answered(Clouds({"one": sends}), account, stream=True)[0] == "two"
    assert account.settled == {1}
    assert account.usd[0] > Decimal("0.015")


def test_a_caller_who_leaves_has_spent_what_was_reserved() -> None:
    asks, account = Clouds(), Charges()
    _, parts = asker(asks, account).answer(WHO, {**ASKED, "stream": True})
    next(parts)
    parts.close()
    assert asks.streams[0].closed
    assert account.settled == set()
    assert account.usd[0] > Decimal("0.015")


def test_a_stream_is_counted_whether_or_not_its_caller_wants_to_know() -> None:
    for options, told in ((None, 2), ({"include_usage": True}, 3)):
        account = Charges()
        _, parts = answered(Clouds(), account, stream=True, stream_options=options)
        assert len(parts) == told
        assert account.usd == [COST]


def test_a_budget_is_reserved_before_anybody_is_asked() -> None:
    # A thousand tokens of an answer may cost 0.015 USD.
    poor = Caller("alice", ("one",), Decimal("0.0195"), "day")
    asks, account = Clouds(), Charges()
    begun = asker(asks, account).answer(poor, ASKED)
    with pytest.raises(Refused) as refused:
        answered(asks, account, poor)
    assert (refused.value.status, len(asks.asked)) == (402, 1)
    # It cost less than it might have: there is room again.
    list(begun[1])
    assert answered(asks, account, poor)[0] == "one"


def test_no_token_has_less_than_a_byte() -> None:
    for text in ("x", "ß" * 50, "\U0001f600" * 9):
        made, _ = request({"messages": [{"role": "user", "content": text}]})
        at_least = ONE.usd(len(text.encode()) + clouds_program.OWN_TOKENS, 5)
        assert dearest(ONE, written(made), 5) > at_least


def test_what_leaves_is_what_is_reserved_for_and_not_what_came_in() -> None:
    grown = {"output_format": "x" * 2_774_576}
    asks, account = Clouds(adds=grown), Charges()
    with pytest.raises(Refused) as refused:
        answered(asks, account)
    assert (refused.value.status, asks.asked, account.usd) == (402, [], [])
    rich = Caller("alice", ("one",), Decimal(9), "day")
    answered(Clouds(adds=grown, does={"one": "silent"}), account, rich)
    assert account.usd[0] > ONE.usd(2_774_576, 1000)


def test_an_escape_is_no_more_than_the_letter_that_it_stands_for() -> None:
    account = Charges()
    answered(Clouds({"one": "silent"}), account, messages=[{"role": "user", "content": "ß" * 9000}])
    assert ONE.usd(18_000, 1000) < account.usd[0] < ONE.usd(20_000, 1000)


@pytest.mark.parametrize(
    "adds", [{"max_tokens": 1001}, {"max_completion_tokens": 5000}, {"n": 2}], ids=str
)
def test_no_cloud_is_asked_for_more_than_was_reserved_for(adds: dict[str, Any]) -> None:
    asks, account = Clouds(adds=adds), Charges()
    with pytest.raises(Refused):
        answered(asks, account)
    assert (asks.asked, account.usd) == ([], [])


def test_what_is_paid_for_once_is_sent_once() -> None:
    asks, account = Clouds(times=2), Charges()
    with pytest.raises(Refused) as refused:
        answered(asks, account)
    assert (refused.value.status, len(asks.asked), account.settled) == (503, 2, set())
    assert [charge["model"] for charge in asks.asked] == ["openai/big-one", "openai/big-two"]


def test_an_answer_that_was_not_paid_for_is_none() -> None:
    with pytest.raises(Refused) as refused:
        answered(Clouds(times=0), Charges())
    assert refused.value.status == 503


def test_what_has_no_charge_is_not_sent() -> None:
    sent: list[Any] = []
    send = paid(lambda transport, request: sent.append(request))
    with pytest.raises(LookupError):
        contextvars.Context().run(send, None, SimpleNamespace(read=lambda: b"{}"))
    assert sent == []


def test_no_client_sends_what_is_not_paid_for() -> None:
    class Sends:
        """A transport or client of httpx as LiteLLM finds it."""

        def handle_request(self, request: Any) -> None:
            raise AssertionError("it was sent")

        async def send(self, request: Any) -> None:
            raise AssertionError("it was sent")

    httpx = SimpleNamespace(HTTPTransport=Sends, AsyncClient=Sends)
    clouds_program.have_all_paid(httpx)
    request = SimpleNamespace(read=lambda: b"{}")
    with pytest.raises(LookupError):
        contextvars.Context().run(Sends().handle_request, request)
    with pytest.raises(LookupError):
        asyncio.run(Sends().send(request))


def bomb(depth: int, width: int = 2) -> dict[str, Any]:
    """A schema of a few hundred bytes whose references stand for ``width ** depth`` copies."""
    refers = [
        {
            "type": "object",
            "properties": {f"p{n}": {"$ref": f"#/$defs/d{at + 1}"} for n in range(width)},
        }
        for at in range(depth)
    ]
    return {
        "type": "object",
        "properties": {"all": {"$ref": "#/$defs/d0"}},
        "$defs": {
            **{f"d{at}": each for at, each in enumerate(refers)},
            f"d{depth}": {"enum": ["x"]},
        },
    }


def in_format(schema: Any) -> dict[str, Any]:
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"response_format": shape}


def in_tool(schema: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "x", "parameters": schema}}]}


def moved(schema: dict[str, Any]) -> dict[str, Any]:
    """The same with its definitions below another and under their older name."""
    definitions = schema["$defs"]
    return {**schema, "$defs": {"holder": {"definitions": definitions}}}


LOOP = {
    "properties": {"a": {"$ref": "#/$defs/a"}},
    "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}},
}


@pytest.mark.parametrize("where", [in_format, in_tool])
@pytest.mark.parametrize(
    "schema",
    [
        bomb(12),
        bomb(200, 9),
        moved(bomb(12)),
        LOOP,
        {"items": {"$ref": 5}},
        {"$defs": {"a": {"const": "x" * 9000}}, "allOf": [{"$ref": "#/$defs/a"}] * 9},
    ],
    ids=["twelve", "two hundred", "moved", "loop", "no text", "one long one"],
)
def test_a_schema_that_grows_is_refused_before_it_does(where: Any, schema: Any) -> None:
    asks = Clouds()
    with pytest.raises(Refused) as refused:
        answered(asks, Charges(), **where(schema))
    assert (refused.value.status, asks.asked) == (400, [])


@pytest.mark.parametrize("where", [in_format, in_tool])
def test_a_schema_with_references_as_programs_write_them_passes(where: Any) -> None:
    asks = Clouds()
    answered(asks, Charges(), **where(bomb(3)))
    assert len(asks.asked) == 1


def test_what_is_nested_without_end_is_refused() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(Refused) as refused:
        answered(Clouds(), Charges(), **in_tool(deep))
    assert refused.value.status == 400


def test_who_may_use_one_cloud_is_answered_by_no_other() -> None:
    asks = Clouds({"one": Status(503)})
    with pytest.raises(Refused) as refused:
        answered(asks, Charges(), Caller("alice", ("one",), Decimal(5), "day"))
    assert (refused.value.status, len(asks.asked)) == (503, 1)


def told(handler: Any, text: bytes) -> bytes:
    """What a handler says to a connection on which this, and no more, arrives."""
    here, there = socket.socketpair()
    with here, there:
        here.sendall(text)
        here.shutdown(socket.SHUT_WR)
        handler(there, ("local", 0), None)
        there.shutdown(socket.SHUT_WR)
        return here.makefile("rb").read()


def hiding(path: str, length: str, hidden: bytes) -> bytes:
    """A GET with a body that is a request of its own."""
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\n{length.format(len(hidden))}\r\n\r\n"
    return head.encode() + hidden


@pytest.mark.parametrize("length", ["Content-Length: {}", "Transfer-Encoding: chunked"])
def test_no_request_hides_in_the_body_of_a_get(length: str) -> None:
    body = json.dumps(ASKED).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nX-Holdfast-Caller: alice\r\nContent-Length: {len(body)}"
    asks = Clouds()
    made = clouds_program.handler(asker(asks, Charges()), {"alice": WHO}, "llama")
    for path in ("/health", "/v1/models"):
        said = told(made, hiding(path, length, head.encode() + b"\r\n\r\n" + body))
        assert said.startswith(b"HTTP/1.1 400 ")
        assert said.count(b"HTTP/1.1 ") == 1
        assert told(made, hiding(path, "X: {}", b"")).startswith(b"HTTP/1.1 200 ")
    assert asks.asked == []


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@dataclass(frozen=True)
class Home:
    """A running router, its clouds and those before them."""

    router: Running
    asks: Clouds
    account: Charges
    a: StandIn
    floor: StandIn

    def ask(self, key: str = ALICE, path: str = CHAT, **more: Any) -> tuple[int, str | None]:
        said = self.router.ask(path, {**ASKED, **more}, key)
        return said.status, said.engine


@contextmanager
def running(settings: HostSettings) -> Iterator[tuple[Running, Clouds, Charges]]:
    """The one router of a host and what asks clouds for it, with quicker looks."""
    (declared,) = settings.routers
    folder, port = folder_for_sockets(), free_port()
    text = router.configuration(settings, declared, f"127.0.0.1:{port}", folder)
    text = text.replace("inter 2s fastinter 500ms", "inter 20ms fastinter 20ms")
    text = text.replace(clouds.socket(declared), f"{folder}/clouds.sock")
    Path(folder, "router.cfg").write_text(text)
    Path(folder, "keys").write_text(router.keys(settings, declared, SECRETS.__getitem__))
    asks, account = Clouds(), Charges()
    told = json.loads(clouds.configuration(settings, declared))
    known, callers = clouds_program.read(told)
    keys = json.loads(clouds.keys(settings, declared, SECRETS.__getitem__))
    made = clouds_program.handler(Asker(asks, known, keys, account, 60), callers, told["serves"])
    log = Path(folder, "log")
    with _Server(f"{folder}/clouds.sock", made) as server, log.open("wb") as sink:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        process = subprocess.Popen(
            ["env", "--ignore-environment", f"CREDENTIALS_DIRECTORY={folder}"]
            + ["/usr/sbin/haproxy", "-db", "-f", f"{folder}/router.cfg"],
            stdout=sink,
            stderr=sink,
        )
        found = Running(port, log)
        try:
            until(lambda: process.poll() is not None or _listens(port))
            assert process.poll() is None, log.read_text()
            yield found, asks, account
        finally:
            process.kill()
            process.wait()
            server.shutdown()
            shutil.rmtree(folder)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def started() -> Iterator[Home]:
    a, floor = StandIn("a"), StandIn("floor")
    with running(host([a, floor])) as (found, asks, account):
        yield Home(found, asks, account, a, floor)
    a.down()
    floor.down()


@pytest.fixture
def home(started: Home) -> Home:
    for stand_in in (started.a, started.floor):
        stand_in.be(True)
        stand_in.wait_until_known()
    started.asks.does.clear()
    until(lambda: started.ask() == (200, "a"))
    started.asks.asked.clear()
    started.a.seen.clear()
    return started


@pytest.mark.parametrize("up", range(16))
def test_local_work_comes_first_and_clouds_in_order(home: Home, up: int) -> None:
    ladder = {
        name: bool(up & 1 << place) for place, name in enumerate(("a", "floor", "one", "two"))
    }
    home.a.be(ladder["a"])
    home.floor.be(ladder["floor"])
    home.asks.does = {name: Status(503) for name in ("one", "two") if not ladder[name]}
    first = next(((200, name) for name, is_up in ladder.items() if is_up), (503, None))
    local = first if first[1] in ("a", "floor") else (503, None)
    # At once, before the next look at anybody's health, and after one.
    assert home.ask() == first
    until(lambda: home.ask(CHILD) == local)
    assert home.ask() == first
    if first[1] in ("a", "floor"):
        assert home.asks.asked == []


@pytest.mark.parametrize("more", MALICE, ids="+".join)
def test_a_key_that_leads_to_no_cloud_reaches_none(home: Home, more: dict[str, Any]) -> None:
    for stand_in in (home.a, home.floor):
        assert home.ask(CHILD, **more) == (200, stand_in.name)
        stand_in.down()
    assert home.ask(CHILD, **more) == (503, None)
    assert home.asks.asked == []


@pytest.mark.parametrize("header", ["X-Holdfast-Caller", "x-holdfast-caller", "X_Holdfast_Caller"])
def test_no_caller_says_himself_whose_key_he_has(home: Home, header: str) -> None:
    home.a.down()
    home.floor.down()
    assert home.router.ask(CHAT, ASKED, CHILD, **{header: "alice"}).status == 503
    assert home.asks.asked == []


@pytest.mark.parametrize(
    "key",
    [
        None,
        "",
        ALICE[:-1],
        ALICE + "x",
        "alice",
        router.digest(SECRETS["ALICE_KEY"]),
        "key-of-a-8d1f",
        "sk-of-cloud-one-9c",
    ],
)
def test_a_caller_without_a_key_reaches_no_cloud(home: Home, key: str | None) -> None:
    reply = home.router.ask(CHAT, ASKED, key)
    assert (reply.status, reply.engine, home.a.seen) == (401, None, [])
    assert json.loads(reply.body)["error"]["code"] == 401


def test_engines_are_told_no_key_of_their_callers(home: Home) -> None:
    home.ask()
    (seen,) = home.a.seen
    assert seen.headers["authorization"] == "Bearer key-of-a-8d1f"
    assert ALICE not in str(seen)


def test_clouds_are_asked_chats_alone(home: Home) -> None:
    home.a.down()
    home.floor.down()
    assert home.ask(path="/v1/completions", prompt="x") == (503, None)
    assert home.asks.asked == []
    assert home.ask(path="/anthropic/v1/messages")[0] == 404
    models = home.router.ask("/v1/models", key=ALICE, method="GET")
    assert json.loads(models.body)["data"][0]["id"] == "llama"


def test_a_budget_that_is_spent_silences_clouds_alone(home: Home) -> None:
    home.account.usd.append(Decimal(5))
    try:
        assert home.ask() == (200, "a")
        home.a.down()
        assert home.ask() == (200, "floor")
        home.floor.down()
        reply = home.router.ask(CHAT, ASKED, ALICE)
        assert (reply.status, reply.engine) == (402, None)
        assert json.loads(reply.body)["error"]["type"] == "insufficient_quota"
        assert home.asks.asked == []
    finally:
        home.account.usd.pop()


def test_a_stream_comes_part_by_part(home: Home) -> None:
    home.a.down()
    home.floor.down()
    reply = home.router.ask(CHAT, {**ASKED, "stream": True}, ALICE)
    assert (reply.status, reply.engine) == (200, "one")
    events = reply.body.decode().strip().split("\n\n")
    assert [event.removeprefix("data: ") for event in events][-1] == "[DONE]"
    assert len(events) == 3


def test_a_stream_that_its_cloud_does_not_end_has_no_end(home: Home) -> None:
    home.a.down()
    home.floor.down()
    home.asks.does = {"one": [Said("he"), Said("llo")]}
    with pytest.raises(IncompleteRead) as broken:
        home.router.ask(CHAT, {**ASKED, "stream": True}, ALICE)
    assert b"llo" in broken.value.partial
    assert b"[DONE]" not in broken.value.partial


def test_the_journal_tells_who_asked_and_who_answered(home: Home) -> None:
    home.a.down()
    home.floor.down()
    home.ask()
    home.ask(key="no-key-of-anybody")
    until(lambda: "status=401" in home.router.log.read_text().splitlines()[-1])
    told = home.router.log.read_text()
    assert "profile=personal router=home caller=alice engine=one status=200" in told
    secrets = [ALICE, "no-key-of-anybody", "a secret of mine"]
    assert [text for text in secrets if text in told] == []


def test_a_cloud_router_asks_clouds_alone() -> None:
    far = host(
        profile="cloud",
        engines=[],
        floor=False,
        keys=[caller("alice", clouds=["two"], budget_usd=1.0)],
    )
    with running(far) as (found, asks, _):
        until(lambda: found.ask("/health", key=None, method="GET").status == 200)
        assert found.ask(CHAT, ASKED, ALICE).engine == "two"
        assert found.ask(CHAT, ASKED, CHILD).status == 401
        assert found.ask("/v1/completions", ASKED, ALICE).status == 404
        assert [each["model"] for each in asks.asked] == ["openai/big-two"]


def test_its_tiers_and_whom_it_may_call_follow_from_the_declaration() -> None:
    services = {service.name: service for service in declared_services(host())}
    tiers = {name: services[name].tier for name in ("router-home", "clouds-home", "ledger")}
    assert tiers == {"router-home": "T2", "clouds-home": "T2", "ledger": "T1"}
    called = [(cloud.name, cloud.port) for cloud in services["clouds-home"].clouds]
    assert called == [("one.cloud.example", 443), ("two.cloud.example", 443)]
    walls = {wall.name: wall for wall in egress.walls(host())}
    assert walls["router-home"].peers == ["ip daddr 127.0.0.1/32"]
    rows = sovereignty.rows(host(), Attempts(enforced=True))
    told = {row.service: row.may_call for row in rows}
    assert told["router-home"] == "this machine"
    assert told["ledger"] == "nothing: it has no network"
    far = host(profile="cloud", engines=[], floor=False)
    service = clouds_service(far, far.routers[0])
    assert service and service.tier == "T3"


def _units(settings: HostSettings) -> dict[str, str]:
    texts = texts_of([*router.programs(settings), *ledger.programs(settings)])
    return {Path(path).name: text for path, text in texts.items() if "/systemd/" in path}


def test_each_key_is_where_it_is_needed_and_nowhere_else() -> None:
    settings = host()
    (declared,) = settings.routers
    values = {name: secret.get_secret_value() for name, secret in SECRETS.items()}
    programs = [*router.programs(settings), *ledger.programs(settings)]
    texts = list(texts_of(programs).values())
    assert [name for name, value in values.items() if any(value in text for text in texts)] == []
    own = router.keys(settings, declared, SECRETS.__getitem__)
    assert {name for name, value in values.items() if value in own} == {"A_KEY", "FLOOR_API_KEY"}
    theirs = clouds.keys(settings, declared, SECRETS.__getitem__)
    assert {name for name, value in values.items() if value in theirs} == {"ONE_KEY", "TWO_KEY"}


def test_the_socket_to_the_clouds_is_the_routers_alone() -> None:
    units = _units(host())
    lines = units["holdfast-clouds-home.socket"].splitlines()
    assert {"SocketUser=router-home", "SocketMode=0600"} <= set(lines)
    lines = units["holdfast-router-home-loopback.service"].splitlines()
    assert [line for line in lines if line.startswith("IPAddress")] == [
        "IPAddressDeny=any",
        "IPAddressAllow=127.0.0.1/32",
    ]


def test_the_ledger_has_no_network_and_no_password() -> None:
    texts = {Path(path).name: text for path, text in texts_of(ledger.programs(host())).items()}
    assert "PrivateNetwork=yes" in texts["holdfast-ledger.service"].splitlines()
    assert "listen_addresses = ''" in texts["postgresql.conf"].splitlines()
    rules = [line for line in texts["pg_hba.conf"].splitlines() if not line.startswith("#")]
    assert rules == ["local all holdfast-ledger peer", "local sameuser all peer"]
    without = host(clouds=[], keys=[caller("child")])
    assert ledger_service(without) is None
    assert ledger.programs(without) == []


def test_the_ledger_is_written_out_before_each_backup() -> None:
    repository = {"name": "nas", "kind": "path", "path": "/mnt/b", "password": "NAS_BACKUP"}
    settings = host()
    kept = HostSettings.model_validate(
        {
            **{"hostname": "rack", "distribution": "debian13"},
            "interfaces": {"eth0": {"role": "lan"}},
            "backup": {"repositories": [repository], "single_place_waiver": "one is enough here"},
        }
    )
    settings = settings.model_copy(update={"backup": kept.backup})
    unit = texts_of(backup.programs(settings))["/etc/systemd/system/holdfast-backup@nas.service"]
    assert f"After={ledger.DUMP}" in unit.splitlines()
    assert "/var/backups/holdfast-ledger" in backup.sources(settings)
    assert "/var/lib/holdfast/ledger" in backup.derived(settings)
    plain = texts_of(backup.programs(kept))["/etc/systemd/system/holdfast-backup@nas.service"]
    assert ledger.DUMP not in plain


def test_systemd_judges_the_sandboxes_as_declared(tmp_path: Path) -> None:
    units = _units(host())
    for name in (name for name in units if name.endswith(".service")):
        (tmp_path / name).write_text(units[name])
        judged = subprocess.run(
            ["systemd-analyze", "security", "--offline=yes"]
            + [f"--threshold={EXPOSURE_MAX * 10:.0f}", tmp_path / name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert judged.returncode == 0, judged.stdout.splitlines()[-1:] + [judged.stderr]


_ALICE = caller("alice", clouds=["one"], budget_usd=5.0)
_FAR: dict[str, Any] = {"profile": "cloud", "engines": [], "floor": False, "keys": [_ALICE]}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    (
        "clouds",
        {"profile": "private", "api_key": "WORK_KEY", "keys": []},
        "must not fall back to a",
    ),
    (
        "clouds",
        {"profile": "client", "api_key": "WORK_KEY", "keys": [], "floor": False},
        "'client' router must not fall back to a cloud",
    ),
    (
        "keys",
        {"profile": "private", "api_key": "WORK_KEY", "clouds": []},
        "one key for all callers",
    ),
    (
        "api_key",
        {"profile": "private", "clouds": [], "keys": []},
        "router needs a key",
    ),
    ("api_key", {"api_key": "WORK_KEY"}, "give each person or agent an entry in keys"),
    ("keys", {"keys": []}, "no caller could use this router"),
    ("clouds[1]", {"clouds": ["one", "tow"], "keys": [_ALICE]}, "no such cloud; write 'two'"),
    ("queue", {"queue": {}}, "must not reach a cloud"),
    ("clouds", {"keys": [caller("child")]}, "none of its keys may use a cloud"),
    ("keys[1].api_key", {"keys": [_ALICE, {**_ALICE, "name": "bob"}]}, "alice has this secret"),
    (
        "keys[1].api_key",
        {"keys": [caller("child"), {**_ALICE, "api_key": "CHILD_KEY"}]},
        "child has",
    ),
    ("keys[0].clouds[0]", {"clouds": ["two"], "keys": [_ALICE]}, "home has no such cloud"),
    ("keys[0].budget_usd", {"keys": [caller("alice", clouds=["one"])]}, "has no limit"),
    ("keys[1].budget_usd", {"keys": [_ALICE, caller("child", budget_usd=1.0)]}, "costs nothing"),
    ("keys[1].clouds", {**_FAR, "keys": [_ALICE, caller("child")]}, "may use no cloud"),
    ("clouds", {**_FAR, "clouds": [], "keys": []}, "needs a cloud"),
    ("engines", {**_FAR, "engines": ["a"]}, "a 'cloud' router uses clouds only"),
    ("floor", {**_FAR, "floor": True}, "a 'cloud' router uses clouds only"),
]


@pytest.mark.parametrize(("key", "declared", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_what_a_router_to_clouds_cannot_hold_is_refused(
    key: str, declared: dict[str, Any], says: str
) -> None:
    found = {finding.key: finding for finding in routers(host(**{"name": "home", **declared}))}
    finding = found[f"routers[0].{key}"]
    assert says in f"{finding.wrong}; {finding.mend}"
    # A cloud router without a cloud has no caller who could use it either.
    assert len(found) <= 2


def test_what_it_can_hold_is_not() -> None:
    assert list(routers(host())) == []
    assert list(routers(host(**_FAR))) == []
    (finding,) = routers(_renamed(host(), "one", "a"))
    assert finding.mend == "rename the cloud"


def _renamed(settings: HostSettings, old: str, new: str) -> HostSettings:
    text = settings.model_dump_json(by_alias=True, include={"clouds", "routers"})
    return HostSettings.model_validate_json(
        json.dumps(
            json.loads(settings.model_dump_json(by_alias=True))
            | json.loads(text.replace(f'"{old}"', f'"{new}"'))
        )
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://one.example/v1",
        "https://203.0.113.1/v1",
        "https://[2001:db8::1]/v1",
        "https://one.example/v1/",
        "https://key@one.example/v1",
        "https://one.example/v1?x=1",
        "https://localhost/v1",
    ],
)
def test_a_cloud_that_cannot_be_named_to_the_kernel_is_refused(url: str) -> None:
    base = {"hostname": "x", "distribution": "debian13", "interfaces": {"e": {"role": "lan"}}}
    with pytest.raises(ValidationError):
        HostSettings.model_validate(
            base | {"clouds": {"providers": [provider("one", base_url=url)]}}
        )


def test_the_lock_pins_every_package_by_hash() -> None:
    lock = clouds.LOCK.read_text()
    packages = re.findall(r"^(\S+==\S+)", lock, re.MULTILINE)
    assert "litellm==1.106.0" in packages
    assert len(packages) == len(re.findall(r"==.*\\\n    --hash=sha256:", lock))
