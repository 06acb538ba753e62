"""The real LiteLLM between a caller and a cloud: what leaves against what is paid for.

`pytest -m lab tests/lab/test_litellm_live.py`. It installs LiteLLM from the project's lock and
sends to loopback alone; it takes half a minute.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast.clouds import LOCK
from holdfast.host_programs import clouds as clouds_program
from holdfast.shipping import text_of
from tests.unit.test_clouds import bomb, in_format, in_tool

pytestmark = pytest.mark.lab

HERE = Path(__file__).parent
CLOUDS = [
    *(("openai", model) for model in ("big-one", "gpt-4o", "o3-mini", "gpt-5.1", "gpt-5-mini")),
    *(("anthropic", model) for model in ("claude-3-5-sonnet-20241022", "claude-sonnet-4-5")),
    *(("anthropic", model) for model in ("claude-opus-4-1", "claude-opus-4-6", "claude-x")),
]


def says(*texts: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for text in texts]}


def with_chat(more: dict[str, Any]) -> dict[str, Any]:
    return says("hello") | more


FUNCTION = {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {}}}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "look", "arguments": '{"a": "\u00e9"}'},
}
TOOLS = {"tools": [{"type": "function", "function": FUNCTION}]}
HISTORY = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": "hello", "name": "alice"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "y" * 500},
    ]
}
BODIES: dict[str, dict[str, Any]] = {
    "text": says("hello"),
    "long": says("x" * 100_000),
    "letters": says("\u00df\u4e2d\U0001f600" * 500),
    "control characters": says('\x01\x7f"\\\n' * 500),
    "parts": says([{"type": "text", "text": "a"}, {"type": "text", "text": "b" * 999}]),
    "many": says(*["x"] * 500),
    "nothing": says("", "x"),
    "system": {"messages": [{"role": "system", "content": "y"}, *says("x")["messages"]]},
    "history": HISTORY | TOOLS,
    "history without tools": HISTORY,
    "tools": with_chat(TOOLS),
    "a hundred tools": with_chat({"tools": TOOLS["tools"] * 100}),
    "a tool without parameters": with_chat(
        {"tools": [{"type": "function", "function": {"name": "look"}}]}
    ),
    "tools with references": with_chat(in_tool(bomb(3))),
    **{
        f"choice {choice}": with_chat(TOOLS | {"tool_choice": choice})
        for choice in ("auto", "none", "required")
    },
    "one choice": with_chat(
        TOOLS | {"tool_choice": {"type": "function", "function": {"name": "look"}}}
    ),
    "one at a time": with_chat(TOOLS | {"parallel_tool_calls": False}),
    "an object": with_chat({"response_format": {"type": "json_object"}}),
    "a schema": with_chat(in_format({"type": "object", "properties": {"a": {"type": "string"}}})),
    "a schema with references": with_chat(in_format(bomb(3))),
    "a schema with many": with_chat(in_format(bomb(5))),
    "a schema and tools": with_chat(TOOLS | in_format(bomb(3))),
    "numbers": with_chat({"temperature": 0.5, "top_p": 0.9, "seed": 7, "presence_penalty": 0.1}),
    "stops": with_chat({"stop": ["a" * 99, "b"]}),
    **{
        f"effort {effort}": with_chat({"reasoning_effort": effort})
        for effort in ("none", "minimal", "low", "medium", "high")
    },
    "effort and tools": with_chat(TOOLS | {"reasoning_effort": "high"}),
    "effort and a schema": with_chat(in_format(bomb(3)) | {"reasoning_effort": "high"}),
    "short": with_chat({"max_tokens": 1}),
    "long answer": with_chat({"max_completion_tokens": 10**9}),
    "a stream": with_chat({"stream": True}),
    "a stream with tools": with_chat(TOOLS | {"stream": True}),
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds LiteLLM as hosts have it."""
    folder = tmp_path_factory.mktemp("litellm")
    found = folder / "bin/python"
    install = ["--python", str(found), "--require-hashes", "-r", str(LOCK)]
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, folder], check=True)
    subprocess.run(["uv", "pip", "install", "--quiet", *install], check=True)
    return found


def asked(python: Path, tmp_path: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What became of each case."""
    Path(tmp_path, "clouds.py").write_text(text_of(clouds_program))
    done = subprocess.run(
        [python, "-I", HERE / "litellm_wire.py", tmp_path],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(told) == len(cases)
    return told


def test_every_shape_is_paid_for_as_it_leaves(python: Path, tmp_path: Path) -> None:
    shapes = [(name, api, model) for name in BODIES for api, model in CLOUDS]
    cases = [{"api": api, "model": model, "body": BODIES[name]} for name, api, model in shapes]
    wrong = []
    for shape, became in zip(shapes, asked(python, tmp_path, cases), strict=True):
        paid = [int(float(usd)) for usd in became["charges"]]
        sent = [json.loads(each["body"]) for each in became["received"]]
        sizes = [clouds_program.written(each) + clouds_program.OWN_TOKENS for each in sent]
        lengths = [each[name] for each in sent for name in clouds_program.LIMITS if name in each]
        is_right = paid == sizes and len(sent) == 1 and len(lengths) == 1 and lengths[0] <= 4096
        if not is_right or (became["status"] != 200 and not BODIES[shape[0]].get("stream")):
            wrong.append((shape, became["status"], paid, sizes, lengths))
    assert not wrong, "\n".join(map(str, wrong))


def test_what_a_budget_does_not_hold_does_not_leave(python: Path, tmp_path: Path) -> None:
    # Dollars for which every body pays as it comes in, and none as Anthropic's API is sent it.
    cases = [
        {"api": "anthropic", "model": "claude-sonnet-4-5", "body": BODIES[name], "budget": budget}
        for name, budget in (("a schema with many", 3000), ("long", 100_000))
    ]
    for became in asked(python, tmp_path, cases):
        assert became == {"status": 402, "charges": [], "received": []}


def test_no_cloud_has_a_request_sent_again(python: Path, tmp_path: Path) -> None:
    cases = [
        {"api": api, "model": model, "body": BODIES["text"], "redirects": True}
        for api, model in CLOUDS
    ]
    for became in asked(python, tmp_path, cases):
        assert became["status"] == 503
        assert (len(became["charges"]), len(became["received"])) == (1, 1)
