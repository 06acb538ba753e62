"""What Holdfast needs to know of a program that serves models: the same few questions for each.

Each module of `holdfast.servers` answers them for one program, as its `SERVER`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from holdfast.completion import CHAT_PATH, COMPLETION_PATH
from holdfast.fit.planner import Card, EngineSettings
from holdfast.settings import Engine

GENERATE_PATHS = (CHAT_PATH, COMPLETION_PATH, "/v1/responses")
COMPLETE_PATHS = (COMPLETION_PATH,)
EMBED_PATHS = ("/v1/embeddings",)


class Flag(BaseModel):
    """A flag of a server, as the server's own parser describes it."""

    kind: Literal["switch", "integer", "number", "text"]
    choices: list[str] | None = None

    def problem(self, value: bool | float | str) -> str | None:
        """What the flag takes, where it does not take ``value``; or None."""
        fits = {
            "switch": isinstance(value, bool),
            "integer": isinstance(value, int) and not isinstance(value, bool),
            "number": isinstance(value, int | float) and not isinstance(value, bool),
            "text": not isinstance(value, bool),
        }
        if not fits[self.kind]:
            return f"takes {'an' if self.kind == 'integer' else 'a'} {self.kind} here"
        if self.choices and str(value) not in self.choices:
            return f"takes one of {', '.join(self.choices)}"
        return None


@dataclass(frozen=True)
class Memory:
    """How `holdfast.fit` computes what a server needs of a card."""

    settings: Callable[[Engine, Sequence[Card]], EngineSettings]
    """Of an engine and its cards: what decides whether it fits.

    Raises pydantic.ValidationError where a flag has a value that the planner cannot use.
    """
    flags: Mapping[str, str]
    """Flags that decide it, and what the planner calls them."""
    saving: frozenset[str]
    """Flags that the planner does not count and by which a model may fit that it would refuse."""
    uncounted: frozenset[str]
    """All flags that change what fits and that the planner does not count."""
    processes_bytes: int
    """Memory of an engine's processes on a CPU, without weights and cache."""


@dataclass(frozen=True)
class Load:
    """What a benchmark asks of an engine."""

    requests: int = 64
    concurrent_requests: int = 8
    input_tokens: int = 512
    output_tokens: int = 128


@dataclass(frozen=True)
class Measured:
    """What a server's benchmark found; times in milliseconds."""

    requests: int
    failed: int
    tokens_per_second: float
    ttft_median_ms: float
    ttft_p99_ms: float
    tpot_median_ms: float
    tpot_p99_ms: float


@dataclass(frozen=True)
class Bench:
    """The benchmark that comes with a server."""

    command: Callable[[Engine, str, Load], Sequence[str]]
    """Of an engine, its checkpoint's folder and a load: an executable of the environment and its
    arguments. It asks the engine's loopback port, reads the key from OPENAI_API_KEY and writes
    `result.json`, an object, into its working folder."""
    measured: Callable[[Mapping[str, Any]], Measured]
    """Of that object: what was found."""
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Server:
    """A server of the OpenAI API on a Unix socket."""

    name: str
    """The name of its module, of its Python package and of its key in an inventory. It is part of
    the names of units, users and folders."""
    title: str
    """What its makers call it."""
    version: str
    """The version that the flags are those of; every lock must pin it."""
    lock: Path | None
    """The lock that comes with Holdfast; None: every inventory names its own."""
    command: str
    """Its executable in the environment, with the verb that serves; `--config FILE` follows."""
    key_variable: str
    """The environment variable that its API key is read from."""
    configuration: Callable[[Engine, str, str, Sequence[Card]], dict[str, Any]]
    """Of an engine, its checkpoint's folder, its socket and its cards: what the configuration file,
    which is YAML, says."""
    model_key: str
    """The key of the configuration that names the checkpoint's folder."""
    environment: Callable[[Engine, str], Mapping[str, str]]
    """Of an engine and its cache's folder: its variables, none of them secret."""
    flags: Callable[[], Mapping[str, Flag]]
    """The flags that an inventory may set, without dashes, and those of ``held``."""
    held: Mapping[str, str]
    """Flags that an inventory may not set, and what to do instead or why."""
    running_metric: str
    """Requests that it computes."""
    waiting_metric: str
    """Requests that it has accepted and not begun; drained is when both are 0 and stay so."""
    progress_metrics: tuple[str, ...]
    """Of these one moves whenever it gets on with a request, a long prompt's parts included."""
    packages: tuple[str, ...]
    """Distribution packages that it needs at run time."""
    drain_seconds: int
    """How long it may finish what it has begun when it is stopped; it gets as long again to let go
    of its cards."""
    memory: Memory | None = None
    """None: Holdfast does not know how much memory it needs, and refuses no engine for its size."""
    bench: Bench | None = None
    """None: `holdfast bench` does not measure its engines."""


def paths(engine: Engine) -> tuple[str, ...]:
    """Where requests may be posted; what is not named here does not reach the engine."""
    if engine.task == "embed":
        return EMBED_PATHS
    return GENERATE_PATHS if engine.chat else COMPLETE_PATHS


def questions(engine: Engine) -> list[tuple[str, dict[str, Any]]]:
    """Path and body of the smallest requests that prove that the engine answers its callers.

    They are sampled in every way at once: an engine that answers a greedy request may still die of
    the first that has it compile a sampler, where the host has no compiler. And an engine that
    completes a prompt may refuse every chat, as one without a chat template does.
    """
    if engine.task == "embed":
        return [("/v1/embeddings", {"model": engine.name, "input": "ready"})]
    sampled = {"temperature": 0.7, "top_k": 4, "top_p": 0.9, "min_p": 0.01}
    penalties = {"presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.1}
    asked = {"model": engine.name, "max_tokens": 2, **sampled, **penalties}
    chat = {**asked, "messages": [{"role": "user", "content": "ready"}], "logprobs": True}
    complete = (COMPLETION_PATH, {**asked, "prompt": "ready", "logprobs": 1})
    return [complete, (CHAT_PATH, chat)] if engine.chat else [complete]


def peer_word(engine: Engine) -> str | None:
    """What a plan says of an engine whose cards may hang one another; None where it says nothing.

    No inventory tells whether a bridge of NVLink joins two cards, so the plan says it until
    peer_access is set.
    """
    if len(engine.cards) < 2 or engine.peer_access is not None:
        return None
    return (
        f"{', '.join(engine.cards)} share it: without NVLink between them NCCL may hang"
        ". If it does, write peer_access False; once it answers, True"
    )
