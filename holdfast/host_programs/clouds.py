"""Send requests to a router's clouds, in order and within budgets, and record the costs.

It is copied to hosts and runs in the environment of locks/litellm.txt. Only the router can connect,
and it sends the caller's name. Only the fields in `request` are passed on: no text in a body can
choose a server, a key or a price. The highest possible cost of a request is written into the ledger
before a packet is sent, and the actual cost replaces it afterwards. So parallel requests cannot
exceed a budget, and the unknown cost after a crash or a broken connection counts as spent. The
bytes are counted where they are sent (`paid`), because LiteLLM translates a body for its cloud, and
the cloud charges for the translated body.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import socketserver
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

LISTEN_FD = 3
"""The file descriptor of the socket that systemd passes on."""
BODY_MAX_BYTES = 8 << 20
ANSWER_SECONDS = 600
CONNECT_SECONDS = 5
RETRY_SECONDS = 10
"""Retry-After when no cloud answered."""
CONNECTIONS = 8
"""Connections to the ledger; further requests wait."""
LEDGER_SECONDS = 10
OWN_TOKENS = 1000
"""Text that a cloud may add to a prompt (a template, or instructions for tools), tokens."""
COPIES_MAX_BYTES = 64 << 10
"""Limit for the growth of a request when LiteLLM expands the references of its schemas."""
LIMITS = ("max_tokens", "max_completion_tokens")
"""The cloud's name for the field with the longest answer."""
ASKER_ERRORS = (400, 413, 422)
"""Statuses that blame the request: the next cloud would return the same."""
REFUSALS = (*ASKER_ERRORS, 401, 403, 404, 429, 503)
"""Statuses after which a cloud has charged nothing. After any other status it may have."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_FORMATS = ("text", "json_object", "json_schema")
_EFFORTS = ("none", "minimal", "low", "medium", "high")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS charge (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    caller text NOT NULL,
    cloud text NOT NULL,
    usd numeric(14, 8) NOT NULL,
    settled boolean NOT NULL DEFAULT false,
    prompt_tokens integer,
    answer_tokens integer
);
CREATE INDEX IF NOT EXISTS charge_caller ON charge (caller, at);
"""
_SPENT = (
    "SELECT coalesce(sum(usd), 0), date_trunc(%(period)s, now()) + ('1 ' || %(period)s)::interval"
    " FROM charge WHERE caller = %(caller)s AND at >= date_trunc(%(period)s, now())"
)


class Refused(Exception):
    """A request that is not answered."""

    def __init__(self, status: int, message: str, cloud: str = "") -> None:
        super().__init__(message)
        self.status, self.cloud = status, cloud


@dataclass(frozen=True)
class Cloud:
    """One model of one cloud; prices are those of a million tokens, USD."""

    name: str
    api: str
    base_url: str
    model: str
    input_usd: Decimal
    output_usd: Decimal
    max_tokens: int

    def usd(self, prompt_tokens: int, answer_tokens: int) -> Decimal:
        """The cost of these tokens."""
        return (prompt_tokens * self.input_usd + answer_tokens * self.output_usd) / 1_000_000


@dataclass(frozen=True)
class Caller:
    """A caller and its limits."""

    name: str
    clouds: tuple[str, ...]
    budget_usd: Decimal
    period: str


class Ledger:
    """The spending of each caller, in PostgreSQL, which accepts this program's user."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._turn = threading.Semaphore(CONNECTIONS)

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._turn, closing(self._connect()) as connection, connection:
            yield connection

    def open(self) -> None:
        """Create the table if it does not exist."""
        with self._transaction() as connection:
            connection.execute(_SCHEMA)

    def reserve(self, caller: Caller, cloud: Cloud, usd: Decimal) -> int:
        """Charge ``usd`` in advance; returns the charge's number.

        Raises:
            Refused: it is more than the caller has left.
        """
        asked = {"caller": caller.name, "period": caller.period}
        with self._transaction() as connection:
            # Other requests of this caller wait until this is written.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (caller.name,))
            spent, until = connection.execute(_SPENT, asked).fetchone()
            left = caller.budget_usd - spent
            if usd > left:
                raise Refused(
                    402,
                    f"{caller.name} has {max(left, Decimal(0)):.4f} of {caller.budget_usd} USD"
                    f" left until {until:%Y-%m-%d %H:%M %Z}, and this request may cost"
                    f" {usd:.4f}",
                )
            (number,) = connection.execute(
                "INSERT INTO charge (caller, cloud, usd) VALUES (%s, %s, %s) RETURNING number",
                (caller.name, cloud.name, usd),
            ).fetchone()
            return int(number)

    def settle(self, number: int, usd: Decimal, prompt_tokens: int, answer_tokens: int) -> None:
        """Write the actual cost of a charge."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE charge SET usd = %s, settled = true, prompt_tokens = %s,"
                " answer_tokens = %s WHERE number = %s",
                (usd, prompt_tokens, answer_tokens, number),
            )


def _number(value: Any) -> bool:
    # Infinity and nan are not less; an int is not converted to float, which may overflow.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**64


def _strings(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    )


PASSED: dict[str, Callable[[Any], bool]] = {
    "temperature": _number,
    "top_p": _number,
    "presence_penalty": _number,
    "frequency_penalty": _number,
    "seed": _number,
    "stop": _strings,
    "parallel_tool_calls": lambda value: isinstance(value, bool),
    "reasoning_effort": lambda value: value in _EFFORTS,
}
"""Fields that are passed to a cloud unchanged, each with its type."""


def _kept(value: Any, names: Iterable[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(400, f"{what} is not an object")
    return {name: value[name] for name in names if value.get(name) is not None}


def _text(content: Any) -> Any:
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise Refused(
                400, "only text can be sent to a cloud: the cost of other content cannot be bounded"
            )
        if not isinstance(part.get("text"), str):
            raise Refused(400, "a part of a message has no text")
    return [{"type": "text", "text": part["text"]} for part in parts]


def _function(value: Any, names: Iterable[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("type") != "function":
        raise Refused(400, "only tools of type 'function' can be sent to a cloud")
    function = _kept(value.get("function"), names, "a function")
    if not isinstance(function.get("name"), str):
        raise Refused(400, "a function has no name")
    return {"type": "function", "function": function}


def _call(value: Any) -> dict[str, Any]:
    made = _function(value, ("name", "arguments"))
    if not isinstance(value.get("id"), str) or not _strings(made["function"].get("arguments", "")):
        raise Refused(400, "a tool's call has no id")
    return {"id": value["id"], **made}


def _message(value: Any) -> dict[str, Any]:
    kept = _kept(value, ("role", "content", "name", "tool_call_id", "tool_calls"), "a message")
    if kept.get("role") not in _ROLES:
        raise Refused(400, "a message has no known role")
    for name in ("name", "tool_call_id"):
        if not isinstance(kept.get(name, ""), str):
            raise Refused(400, f"{name} of a message is not text")
    kept["content"] = _text(kept.get("content"))
    if calls := kept.pop("tool_calls", None):
        if not isinstance(calls, list):
            raise Refused(400, "tool_calls of a message is not a list")
        kept["tool_calls"] = [_call(each) for each in calls]
    return kept


def request(asked: Any) -> tuple[dict[str, Any], int | None]:
    """The part of a request's body that is passed on, and its longest answer, tokens.

    Unknown fields are left out, for example a server, a key or a header.

    Raises:
        Refused: it is not a chat completion, or its cost cannot be bounded.
    """
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        raise Refused(400, "this is not a chat completion request: it has no list of messages")
    made: dict[str, Any] = {"messages": [_message(each) for each in asked["messages"]]}
    if not made["messages"]:
        raise Refused(400, "the list of messages is empty")
    for name, is_right in PASSED.items():
        if (value := asked.get(name)) is not None:
            if not is_right(value):
                raise Refused(400, f"{name} is invalid")
            made[name] = value
    if tools := asked.get("tools"):
        if not isinstance(tools, list):
            raise Refused(400, "tools is not a list")
        names = ("name", "description", "parameters", "strict")
        made["tools"] = [_function(each, names) for each in tools]
    if (choice := asked.get("tool_choice")) is not None:
        made["tool_choice"] = choice if isinstance(choice, str) else _function(choice, ("name",))
    if (shape := asked.get("response_format")) is not None:
        kept = _kept(shape, ("type", "json_schema"), "response_format")
        if kept.get("type") not in _FORMATS:
            raise Refused(400, "response_format has no known type")
        made["response_format"] = kept
    limit = asked.get("max_completion_tokens") or asked.get("max_tokens")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise Refused(400, "max_tokens is not a whole number above 0")
    _check_size(made)
    return made, limit


def _check_size(made: dict[str, Any]) -> None:
    try:
        written(made)
        grows = copies([made.get("tools"), made.get("response_format")])
    except UnicodeEncodeError:
        raise Refused(400, "the text contains half of a surrogate pair") from None
    except RecursionError:
        raise Refused(400, "this is nested too deeply") from None
    if grows > COPIES_MAX_BYTES:
        raise Refused(400, f"its schemas expand to more than {COPIES_MAX_BYTES} bytes")


def written(said: Any) -> int:
    """Bytes of a body's text; an escape of JSON (``\\u00e9``) counts as the letter that it is.

    Raises:
        UnicodeEncodeError: half of a surrogate pair is in it.
    """
    return len(json.dumps(said, ensure_ascii=False).encode())


def copies(schemas: Any) -> int:
    """The most bytes by which schemas grow when each ``$ref`` is replaced by a copy of its target.

    They are only counted, because a few hundred bytes can expand to terabytes.

    Raises:
        Refused: a reference refers to itself, or is not text.
    """
    named: dict[str, list[Any]] = {}
    for node in _objects(schemas):
        for place in ("$defs", "definitions"):
            if isinstance(found := node.get(place), dict):
                for name, definition in found.items():
                    named.setdefault(name, []).append(definition)
    known: dict[str, int | None] = {}

    def in_node(node: Any) -> int:
        return sum(of_name(each["$ref"]) for each in _objects(node) if "$ref" in each)

    def of_name(reference: Any) -> int:
        if not isinstance(reference, str):
            raise Refused(400, "a $ref of a schema is not text")
        name = reference.rpartition("/")[2]
        if name not in known:
            known[name] = None
            wholes = (written(each) + in_node(each) for each in named.get(name, ()))
            known[name] = max(wholes, default=0)
        if (size := known[name]) is None:
            raise Refused(400, "a schema that refers to itself cannot be sent to a cloud")
        return size

    return in_node(schemas)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def dearest(cloud: Cloud, size: int, limit: int) -> Decimal:
    """The highest cost of a request of ``size`` bytes: each token has at least one byte."""
    return cloud.usd(size + OWN_TOKENS, limit)


def usage_of(said: Any) -> tuple[int, int] | None:
    """Tokens of prompt and answer in a cloud's usage figures, or None without them."""
    usage = getattr(said, "usage", None)
    counts = (getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))
    if all(isinstance(count, int) and count >= 0 for count in counts) and any(counts):
        return counts  # type: ignore[return-value]
    return None


@dataclass
class Charge:
    """The permission to send one request to one cloud; it is charged when its bytes are known."""

    ledger: Ledger
    caller: Caller
    cloud: Cloud
    tokens: int
    """The longest answer that may be requested."""
    number: int | None = None
    """The charge's number in the ledger, after it was charged."""
    failure: Exception | None = None
    """The HTTP client's exception, before LiteLLM translated it."""

    def pay(self, body: bytes) -> None:
        """Charge the highest cost of a request with this body.

        Raises:
            Refused: it is more than the caller has left, or requests a longer answer than allowed.
        """
        try:
            if self.number is not None:
                raise Refused(503, "the budget covers one request, and two would be sent")
            said = json.loads(body)
            limits = [said[name] for name in LIMITS if name in said]
            if not limits or any(limit > self.tokens for limit in limits) or said.get("n", 1) != 1:
                raise Refused(
                    400, f"the answer of {self.cloud.name} could be longer than the budget covers"
                )
            usd = dearest(self.cloud, written(said), self.tokens)
            self.number = self.ledger.reserve(self.caller, self.cloud, usd)
        except Exception as failure:
            self.failure = failure
            raise


_CHARGE: ContextVar[Charge] = ContextVar("charge")
"""The permission for the request that LiteLLM sends in this thread."""


def paid(send: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """``send`` of a transport and a request, which charges the request first.

    Raises:
        LookupError: LiteLLM sends something by itself.
    """

    def send_paid(transport: Any, request: Any) -> Any:
        _CHARGE.get().pay(request.read())
        return send(transport, request)

    return send_paid


Ask = Callable[..., Any]
"""`litellm.completion`, with every client wrapped in `paid`."""


class Asker:
    """Sends callers' requests to clouds."""

    def __init__(
        self, ask: Ask, clouds: list[Cloud], keys: dict[str, str], ledger: Ledger, timeout: Any
    ) -> None:
        self._ask, self._clouds, self._keys = ask, clouds, keys
        self._ledger, self._timeout = ledger, timeout

    def answer(
        self, caller: Caller, asked: Any
    ) -> tuple[str, Generator[dict[str, Any], None, None]]:
        """The name of the first cloud that answers, and its answer: the parts of a stream, or one.

        Raises:
            Refused: the request is wrong, no cloud answered, or it exceeds the budget.
        """
        made, limit = request(asked)
        streams = asked.get("stream") is True
        refused: Refused | None = None
        for cloud in self._clouds:
            if cloud.name not in caller.clouds:
                continue
            tokens = min(limit or cloud.max_tokens, cloud.max_tokens)
            charge = Charge(self._ledger, caller, cloud, tokens)
            parts = self._parts(charge, {**made, "max_tokens": tokens}, streams)
            try:
                # The caller gets no byte before a cloud has started its answer.
                first = next(parts)
            except Refused as failure:
                if failure.status in ASKER_ERRORS:
                    raise
                # An error of another cloud is more important than a budget that is too small for
                # this one.
                refused = (refused or failure) if failure.status == 402 else failure
                continue
            return cloud.name, _chain(first, parts, _wants_usage(asked) or not streams)
        raise refused or Refused(503, "no cloud is left to try")

    def _parts(
        self, charge: Charge, made: dict[str, Any], streams: bool
    ) -> Generator[dict[str, Any], None, None]:
        """Send to one cloud; the charge is settled when its answer ends with usage figures."""
        cloud = charge.cloud
        more = {"stream": True, "stream_options": {"include_usage": True}} if streams else {}
        said, raw = None, None
        counted: list[tuple[int, int]] = []
        _CHARGE.set(charge)
        try:
            said = self._ask(
                model=f"{cloud.api}/{cloud.model}",
                api_base=cloud.base_url,
                api_key=self._keys[cloud.name],
                timeout=self._timeout,
                num_retries=0,
                max_retries=0,
                # LiteLLM would look for tools of its own proxy, whose packages are not installed.
                _skip_mcp_handler=True,
                **made,
                **more,
            )
            if charge.number is None:
                raise Refused(503, "an answer arrived that was not charged to a budget")
            if streams:
                raw = said.completion_stream
                said.completion_stream = _own(raw, counted)
            elif usage := usage_of(said):
                counted.append(usage)
            for part in said if streams else [said]:
                yield part.model_dump(exclude_none=streams)
        except Exception as failure:
            if charge.number is None and charge.failure:
                raise charge.failure from None
            # A cloud that started an answer had accepted the request, even if an error follows.
            if charge.number is not None and said is None and is_free(failure):
                self._settle(charge.number, Decimal(0), 0, 0)
            raise _refusal(cloud, failure) from None
        finally:
            _close(raw)
        # This is not reached after a caller disconnected: then the cloud's usage is unknown.
        if counted:
            self._settle(charge.number, cloud.usd(*counted[-1]), *counted[-1])

    def _settle(self, number: int, usd: Decimal, prompt_tokens: int, answer_tokens: int) -> None:
        try:
            self._ledger.settle(number, usd, prompt_tokens, answer_tokens)
        except Exception as failure:
            # The answer is charged and is still returned: the ledger has its highest cost.
            sys.stderr.write(
                f"charge {number} keeps its reserved amount: {type(failure).__name__}\n"
            )


def _own(raw: Iterable[Any], counted: list[tuple[int, int]]) -> Iterator[Any]:
    """A cloud's own parts of a stream; the usage at its end is stored in ``counted``.

    For a stream without an end and a usage, LiteLLM would invent both.
    """
    ended = False
    for part in raw:
        choices = getattr(part, "choices", None) or ()
        ended = ended or any(getattr(each, "finish_reason", None) for each in choices)
        # Before the end a cloud may send intermediate usage figures.
        if ended and (usage := usage_of(part)):
            counted.append(usage)
        yield part
    if not ended:
        raise EOFError("the cloud's stream ended early")


def _close(raw: Any) -> None:
    with suppress(Exception):
        close = getattr(raw, "close", None)
        if close:
            close()


def _wants_usage(asked: dict[str, Any]) -> bool:
    options = asked.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _chain(
    first: dict[str, Any], rest: Generator[dict[str, Any], None, None], with_usage: bool
) -> Generator[dict[str, Any], None, None]:
    with closing(rest):
        for part in itertools.chain([first], rest):
            if not with_usage and part.pop("usage", None):
                choices = part.get("choices") or []
                if not any(each.get("delta") or each.get("finish_reason") for each in choices):
                    continue
            yield part


def _causes(failure: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [failure]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]


def is_free(failure: BaseException) -> bool:
    """Whether a failed request costs nothing: the cloud was not reached, or it refused.

    The cloud may charge for anything else, also for an unreadable answer.
    """
    causes = list(_causes(failure))
    kinds = {kind.__name__ for each in causes for kind in type(each).__mro__}
    if kinds & {"ConnectError", "ConnectTimeout", "UnsupportedProtocol"}:
        return True
    broke = {"TransportError", "APIConnectionError", "TimeoutException", "Timeout", "OSError"}
    # LiteLLM guesses a status from the text of an error; its cause has the cloud's own status.
    told = {getattr(each, "status_code", None) for each in causes} - {None}
    return not kinds & broke and bool(told) and told <= set(REFUSALS)


def _refusal(cloud: Cloud, failure: Exception) -> Refused:
    status = getattr(failure, "status_code", None)
    # Only its type: its text may contain the request.
    sys.stderr.write(f"{cloud.name}: {type(failure).__name__} {status or ''}\n")
    if status in ASKER_ERRORS:
        return Refused(int(status), f"{cloud.name} says: {str(failure)[:500]}", cloud.name)
    return Refused(503, "no cloud can answer now")


def error(status: int, message: str) -> bytes:
    """An error's body in the format of OpenAI's clients."""
    kind = "insufficient_quota" if status == 402 else "clouds"
    return json.dumps({"error": {"message": message, "type": kind, "code": status}}).encode()


def handler(asker: Asker, callers: dict[str, Caller], serves: str) -> type[BaseHTTPRequestHandler]:
    """Handles one connection; only the router can connect."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 120

        def do_GET(self) -> None:
            if not {"Content-Length", "Transfer-Encoding"}.isdisjoint(self.headers):
                # An unread body would be parsed as the next request.
                self.close_connection = True
                self._refuse(Refused(400, "a GET request must have no body"))
            elif self.path == "/health":
                self._send(200, "text/plain", b"ok")
            else:
                model = {"id": serves, "object": "model", "created": 0, "owned_by": "holdfast"}
                self._json(200, {"object": "list", "data": [model]})

        def do_POST(self) -> None:
            said = self.headers.get("Content-Length", "")
            length = int(said) if said.isdigit() else BODY_MAX_BYTES + 1
            if length > BODY_MAX_BYTES:
                self.close_connection = True
                self._refuse(Refused(413, "the request is too long for a cloud"))
                return
            body = self.rfile.read(length)
            caller = callers.get(self.headers.get("X-Holdfast-Caller", ""))
            try:
                if caller is None:
                    raise Refused(403, "this key is for local work only")
                try:
                    asked = json.loads(body)
                except (ValueError, RecursionError):
                    raise Refused(400, "the body is not valid JSON") from None
                cloud, parts = asker.answer(caller, asked)
            except Refused as refusal:
                self._refuse(refusal)
            except Exception as failure:
                # Without the ledger nothing is sent.
                _tell(failure)
                self._refuse(Refused(503, "clouds are unavailable now"))
            else:
                with closing(parts):
                    if asked.get("stream") is True:
                        self._stream(cloud, parts)
                    else:
                        # Read to its end, where the charge is settled.
                        (whole,) = parts
                        self._json(200, whole, cloud)

        def _stream(self, cloud: str, parts: Generator[dict[str, Any], None, None]) -> None:
            kinds = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}
            self._head(200, kinds, cloud)
            try:
                for part in parts:
                    self._chunk(f"data: {json.dumps(part)}\n\n".encode())
                self._chunk(b"data: [DONE]\n\n")
                self._chunk(b"")
            except (Refused, OSError):
                # An incomplete answer must not look complete.
                self.close_connection = True

        def _chunk(self, text: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
            self.wfile.flush()

        def _json(self, status: int, said: Any, cloud: str = "") -> None:
            self._send(status, "application/json", json.dumps(said).encode(), cloud)

        def _refuse(self, refused: Refused) -> None:
            text = error(refused.status, str(refused))
            self._send(refused.status, "application/json", text, refused.cloud)

        def _send(self, status: int, kind: str, body: bytes, cloud: str = "") -> None:
            headers = {"Content-Type": kind, "Content-Length": str(len(body))}
            if status == 503:
                headers["Retry-After"] = str(RETRY_SECONDS)
            self._head(status, headers, cloud)
            with suppress(OSError):
                self.wfile.write(body)

        def _head(self, status: int, headers: dict[str, str], cloud: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if cloud:
                self.send_header("X-Holdfast-Engine", cloud)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing: the router logs each request, and no text may be logged."""

    return Handler


def _tell(failure: BaseException) -> None:
    # Only its type and place: no text may be logged.
    where = traceback.extract_tb(failure.__traceback__)[-1]
    sys.stderr.write(f"{type(failure).__name__} at {where.name}:{where.lineno}\n")


class Server(socketserver.ThreadingUnixStreamServer):
    """A server on the socket that systemd made."""

    daemon_threads = True

    def __init__(self, fd: int, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__("", handler, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=fd)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing when the router disconnects."""
        failure = sys.exception()
        if failure and not isinstance(failure, OSError):
            _tell(failure)


def read(told: dict[str, Any]) -> tuple[list[Cloud], dict[str, Caller]]:
    """Clouds and callers of a configuration."""
    clouds = [
        Cloud(
            **each
            | {"input_usd": Decimal(each["input_usd"]), "output_usd": Decimal(each["output_usd"])}
        )
        for each in told["clouds"]
    ]
    callers = {
        name: Caller(name, tuple(each["clouds"]), Decimal(each["budget_usd"]), each["period"])
        for name, each in told["callers"].items()
    }
    return clouds, callers


def _ready(manager: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.connect(f"\0{manager[1:]}" if manager.startswith("@") else manager)
        told.send(b"READY=1")


async def _unasked(*_: Any, **__: Any) -> NoReturn:
    raise LookupError("this program makes no asynchronous requests")


def have_all_paid(httpx: Any) -> None:
    """Charge every request of this process, whichever of LiteLLM's clients sends it.

    Asynchronous clients, which this program does not use, send nothing.
    """
    httpx.HTTPTransport.handle_request = paid(httpx.HTTPTransport.handle_request)
    httpx.AsyncClient.send = _unasked


def main(path: str) -> int:
    """Serve requests with the configuration at ``path`` until stopped."""
    # Imported here, so that the rest can be read and tested without the environment.
    httpx, psycopg = import_module("httpx"), import_module("psycopg")
    litellm: Any = import_module("litellm")
    # LiteLLM would log the text of requests.
    logging.disable(logging.CRITICAL)
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    litellm.drop_params = True
    have_all_paid(httpx)
    told = json.loads(Path(path).read_text())
    keys = json.loads(Path(os.environ["CREDENTIALS_DIRECTORY"], "keys").read_text())
    clouds, callers = read(told)
    limits = f"-c statement_timeout={LEDGER_SECONDS}s"
    ledger = Ledger(
        lambda: psycopg.connect(host=told["ledger"], connect_timeout=LEDGER_SECONDS, options=limits)
    )
    ledger.open()
    timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    asker = Asker(litellm.completion, clouds, keys, ledger, timeout)
    with Server(LISTEN_FD, handler(asker, callers, told["serves"])) as server:
        _ready(os.environ["NOTIFY_SOCKET"])
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
