"""What an engine's units need to know of the server that runs: the same few questions for each.

vLLM answers them now; another server is another instance, listed in `holdfast.engines.servers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.completion import CHAT_PATH, COMPLETION_PATH
from holdfast.settings import Engine, HostSettings

GENERATE_PATHS = (CHAT_PATH, COMPLETION_PATH, "/v1/responses")
COMPLETE_PATHS = (COMPLETION_PATH,)
EMBED_PATHS = ("/v1/embeddings",)


@dataclass(frozen=True)
class Server:
    """A server of the OpenAI API on a Unix socket."""

    name: str
    command: str
    """Its executable in the environment, with the verb that serves."""
    key_variable: str
    """The environment variable that its API key is read from."""
    configuration: Callable[[Engine, str, str, int], dict[str, Any]]
    """Of an engine, its checkpoint's folder, its socket and the tokens of a batch that it was
    planned with: what the configuration file says."""
    environment: Callable[[Engine, str], Mapping[str, str]]
    """Of an engine and its cache's folder: its variables, none of them secret."""
    running_metric: str
    """Requests that it computes."""
    waiting_metric: str
    """Requests that it has accepted and not begun; drained is when both are 0 and stay so."""
    progress_metrics: tuple[str, ...]
    """Of these one moves whenever it gets on with a request, a long prompt's parts included."""
    packages: tuple[str, ...]
    """Distribution packages that it needs at run time."""
    engines: Callable[[HostSettings], Sequence[Engine]]
    """The engines that a host declares for it, under the inventory's key of its name."""
    lock: Callable[[HostSettings], Path]
    """The file that pins its Python environment."""
    index: Callable[[HostSettings], str | None]
    """The URL of a package index in place of PyPI."""


def paths(engine: Engine) -> tuple[str, ...]:
    """Where requests may be posted; what is not named here does not reach the engine."""
    if engine.task == "embed":
        return EMBED_PATHS
    return GENERATE_PATHS if engine.chat else COMPLETE_PATHS


def questions(engine: Engine) -> list[tuple[str, dict[str, Any]]]:
    """Path and body of the smallest requests that prove that the engine answers its callers.

    They are sampled in every way at once: an engine that answers a greedy request may still die of
    the first that has it compile a sampler (vLLM 0.32 on a CPU without a compiler). And an engine
    that completes a prompt may refuse every chat, as one without a chat template does.
    """
    if engine.task == "embed":
        return [("/v1/embeddings", {"model": engine.name, "input": "ready"})]
    sampled = {"temperature": 0.7, "top_k": 4, "top_p": 0.9, "min_p": 0.01}
    penalties = {"presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.1}
    asked = {"model": engine.name, "max_tokens": 2, **sampled, **penalties}
    chat = {**asked, "messages": [{"role": "user", "content": "ready"}], "logprobs": True}
    complete = (COMPLETION_PATH, {**asked, "prompt": "ready", "logprobs": 1})
    return [complete, (CHAT_PATH, chat)] if engine.chat else [complete]
