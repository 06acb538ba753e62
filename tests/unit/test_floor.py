"""The floor's units: no network for the engine, no secret on a command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from holdfast import alerts, floor
from holdfast.sandbox import EXPOSURE_MAX
from holdfast.service import Program, texts
from holdfast.service.units import service_unit
from holdfast.settings import HostSettings

SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def _settings(**values: Any) -> HostSettings:
    return HostSettings.model_validate(
        {
            "hostname": "rack",
            "distribution": "debian13",
            "interfaces": {"eth0": {"role": "lan"}},
            "storage": {
                "models": [
                    {
                        "name": "small",
                        "source": "https://models.example/small.gguf",
                        "sha256": SHA256,
                        "size_mib": 100.0,
                        "filename": "small.gguf",
                    }
                ]
            },
            "floor": {
                "release": {"version": "1", "url": "https://x.example/l.tgz", "sha256": SHA256},
                "model": "small",
                **values,
            },
        }
    )


def _units(**values: Any) -> dict[str, str]:
    return {Path(path).name: text for path, text in texts([_program(**values)]).items()}


def _program(**values: Any) -> Program:
    (program,) = floor.programs(_settings(**values))
    return program


def _values(text: str, name: str) -> list[str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return [value for key, _, value in pairs if key == name]


def test_the_engine_and_its_proxies_have_no_network() -> None:
    services = [text for name, text in _units().items() if name.endswith(".service")]
    assert len(services) == 3
    for text in services:
        assert _values(text, "PrivateNetwork") == ["yes"]
        assert _values(text, "RestrictAddressFamilies") == ["AF_UNIX"]


def test_every_port_is_bound_to_an_interface() -> None:
    sockets = {name: text for name, text in _units().items() if name.endswith(".socket")}
    interfaces = [value for text in sockets.values() for value in _values(text, "BindToDevice")]
    assert interfaces == ["lo", "tailscale0"]
    loopback = sockets["holdfast-floor-loopback.socket"]
    assert _values(loopback, "ListenStream") == ["127.0.0.1:8080"]
    assert all(_values(text, "IPAddressDeny") == ["any"] for text in sockets.values())


@pytest.mark.parametrize(("scope", "is_open"), [("loopback", False), ("tailnet", True)])
def test_the_tailnet_door_is_open_only_where_the_scope_says_so(scope: str, is_open: bool) -> None:
    proxied = _program(scope=scope).proxied
    assert proxied is not None
    assert {door.name: door.is_open for door in proxied.doors} == {
        "loopback": True,
        "tailnet": is_open,
    }


def test_the_key_is_a_credential_and_on_no_command_line() -> None:
    unit = _units()["holdfast-floor.service"]
    assert "--api-key-file %d/floor-api-key" in unit
    assert not any(word == "--api-key" for word in unit.split())
    assert "floor-api-key:/etc/holdfast/credentials/floor-api-key" in unit


def test_the_probe_asks_for_a_token_of_each_kind_through_the_engines_socket() -> None:
    paths = []
    for text in floor.probe(SecretStr("k" * 20)).split("\nnext\n"):
        lines = dict(line.split(" = ", 1) for line in text.splitlines() if "=" in line)
        values = {name: json.loads(value) for name, value in lines.items()}
        assert values["header"] == f"Authorization: Bearer {'k' * 20}"
        assert json.loads(values["json"])["max_tokens"] == 1
        assert values["unix-socket"] == floor.SOCKET
        paths.append(values["url"].removeprefix("http://engine"))
    assert paths == ["/v1/chat/completions", "/v1/completions"]


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("a-key-that-is-long-enough", None),
        ("#a-key-that-would-be-a-comment", "must not start with #"),
        ("two keys on one line", "without spaces"),
        ("a-key-with\na-second-line", "printable"),
        ('quotes-"-end-the-value', "double quotes"),
    ],
)
def test_a_key_that_would_not_protect_is_refused(key: str, problem: str | None) -> None:
    found = floor.key_problem(SecretStr(key))
    assert (found is None) if problem is None else (problem in (found or ""))


def test_a_host_without_a_floor_has_no_program_of_one() -> None:
    settings = _settings().model_copy(update={"floor": None})
    assert floor.programs(settings) == []


def test_systemd_judges_the_sandbox_as_declared(tmp_path: Path) -> None:
    units = {**_units(), alerts.NOTIFY.unit: service_unit(alerts.NOTIFY)}
    for name in (name for name in units if name.endswith(".service")):
        (tmp_path / name).write_text(units[name])
        judged = subprocess.run(
            [
                "systemd-analyze",
                "security",
                "--offline=yes",
                f"--threshold={EXPOSURE_MAX * 10:.0f}",
                tmp_path / name,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert judged.returncode == 0, judged.stdout.splitlines()[-1:] + [judged.stderr]
