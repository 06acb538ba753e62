"""Engines answer, require their key, and expose only their paths.

The drill tests whether an engine restarts after a kill; on a rack this would take minutes without
an answer.
"""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host

from facts.places import PROGRAMS
from holdfast.engines.server import paths, questions
from holdfast.engines.servers import environment
from holdfast.engines.units import EngineNames, every
from holdfast.settings import HostSettings
from tests.host.doors import engine_is_wanted


@pytest.fixture(scope="module")
def engines(host: Host, settings: HostSettings) -> list[EngineNames]:
    engines = every(settings)
    if not engines:
        pytest.skip("this host has no engine")
    found = [names for names in engines if engine_is_wanted(host, settings, names.engine.name)]
    if not found:
        pytest.skip("no engine belongs to the active mode")
    return found


def _ask(
    host: Host, engine: EngineNames, path: str, body: object = None, key: str = ""
) -> tuple[int, str]:
    # The header is sent on standard input, because this file forbids keys in command lines.
    header = f'printf "Authorization: Bearer %s" "$(cat {engine.key})"' if key == "own" else "echo"
    data = f"--json '{json.dumps(body)}'" if body is not None else ""
    answer = host.check_output(
        f"{header} | curl --silent --path-as-is --max-time 300 --header @- {data}"
        f" --write-out '\\n%{{http_code}}' 'http://127.0.0.1:{engine.engine.port}{path}'"
    )
    text, _, status = answer.rpartition("\n")
    return int(status), text


def test_each_answers_with_its_key(host: Host, engines: list[EngineNames]) -> None:
    for engine in engines:
        for path, body in questions(engine.engine):
            status, text = _ask(host, engine, path, body, key="own")
            assert status == 200, text
            assert json.loads(text)["model"] == engine.engine.name


def test_each_refuses_a_wrong_key(host: Host, engines: list[EngineNames]) -> None:
    for engine in engines:
        _, body = questions(engine.engine)[0]
        answers = {path: _ask(host, engine, path, body)[0] for path in paths(engine.engine)}
        assert set(answers.values()) == {401}, answers


@pytest.mark.parametrize(
    "path",
    [
        *("/invocations", "/v1/../invocations", "/v1//completions", "/%76%31/completions"),
        *("/tokenize", "/pooling", "/score", "/rerank", "/v1/load_lora_adapter", "/sleep"),
        *("/collective_rpc", "/server_info", "/reset_prefix_cache", "/abort_requests", "/pause"),
    ],
)
def test_no_other_path_reaches_an_engine(host: Host, engines: list[EngineNames], path: str) -> None:
    for engine in engines:
        _, body = questions(engine.engine)[0]
        for key in ("", "own"):
            status, text = _ask(host, engine, path, body, key=key)
            # The proxy's own error, because the engine's 404 is JSON.
            assert (status, "<html>" in text) == (404, True), text


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "HEAD"])
def test_a_path_accepts_only_its_own_method(
    host: Host, engines: list[EngineNames], method: str
) -> None:
    for engine in engines:
        path, _ = questions(engine.engine)[0]
        for target in (path, f"http://127.0.0.1:{engine.engine.port}{path}"):
            answer = host.check_output(
                "curl --silent --max-time 60 --output /dev/null --write-out '%{http_code}'"
                f" --request {method} --request-target {target}"
                f" {'--head' if method == 'HEAD' else ''} http://127.0.0.1:{engine.engine.port}/"
            )
            # The engine would answer 405 or a higher status.
            assert answer == "404"


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/version", "/server_info", "/ping"])
def test_nothing_else_can_be_read(host: Host, engines: list[EngineNames], path: str) -> None:
    for engine in engines:
        status, text = _ask(host, engine, path, key="own")
        assert (status, "<html>" in text) == (404, True), text


def test_its_health_and_its_metrics_are_there(host: Host, engines: list[EngineNames]) -> None:
    for engine in engines:
        assert _ask(host, engine, "/health")[0] == 200
        status, text = _ask(host, engine, "/metrics")
        assert status == 200
        assert engine.server.running_metric in text
        assert engine.server.waiting_metric in text


def test_each_uses_only_the_pinned_environment(
    host: Host, settings: HostSettings, engines: list[EngineNames]
) -> None:
    for engine in engines:
        server = engine.server
        executable = f"{environment(settings, server).folder}/bin/{server.command.split()[0]}"
        pid = host.check_output(f"systemctl show --property=MainPID --value {engine.unit}")
        arguments = host.check_output(f"tr '\\0' '\\n' < /proc/{pid}/cmdline").splitlines()
        assert executable in arguments
        folder = f"{PROGRAMS}/{server.name}"
        writable = host.check_output(f"find {folder} ! -user root -o -perm /022 ! -type l")
        assert writable == ""
