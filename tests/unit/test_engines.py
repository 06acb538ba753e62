"""vLLM's engines: what is refused before the first change, and what their units and doors say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from holdfast import settings as settings_module
from holdfast.backup import data
from holdfast.checks.engines import engines
from holdfast.checks.gpu import memory
from holdfast.checks.storage import storage
from holdfast.engines.fit import cards_of
from holdfast.engines.replacement import with_model
from holdfast.engines.server import Server, peer_word
from holdfast.engines.servers import SERVERS
from holdfast.engines.units import EngineNames, configuration, every, programs_of
from holdfast.owned import patterns
from holdfast.refusal import Refused
from holdfast.registry import declared_services
from holdfast.sandbox import AS_ROOT
from holdfast.servers import vllm
from holdfast.service import ON_FAILURE, texts
from holdfast.settings import HostSettings

SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
UUIDS = [f"GPU-00000000-0000-4000-8000-00000000000{index}" for index in range(2)]
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
"""Llama 3.1 8B, of which vLLM loads 14.99 GiB (vllm#10517)."""


@pytest.fixture
def description(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    index = {"metadata": {"total_size": 16_060_522_496}, "weight_map": {}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "cpu.txt").write_text("vllm==0.32.0+cpu --hash=sha256:00\n")
    return tmp_path


def _engine(**changes: Any) -> dict[str, Any]:
    return {
        "name": "chat",
        "checkpoint": "llama",
        "cards": ["top"],
        "port": 8100,
        "api_key": "CHAT_KEY",
        "context_tokens": 16384,
        "concurrent_requests": 4,
        **changes,
    }


def _settings(description: Path, *declared: dict[str, Any], **host: Any) -> HostSettings:
    cards = [
        {"name": name, "device": "2204", "vram_mib": 24576, "uuid": uuid}
        for name, uuid in zip(("top", "bottom"), UUIDS, strict=True)
    ]
    spare = {"name": "spare", "device": "2204", "vram_mib": 24576}
    guests = {"name": "guests", "device": "2204", "vram_mib": 24576, "role": "passthrough"}
    checkpoint = {
        "name": "llama",
        "source": "https://models.example/v1/llama",
        "sha256": SHA256,
        "size_mib": 15400.0,
        "description": str(description),
    }
    engines = list(declared) or [_engine()]
    on_cpu = any(not engine["cards"] for engine in engines)
    lock = {"lock": str(description / "cpu.txt")} if on_cpu else {}
    return HostSettings.model_validate(
        {
            "hostname": "rack",
            "distribution": "debian13",
            "interfaces": {"eth0": {"role": "lan"}},
            "gpus": {"cards": [*cards, spare, guests]},
            "storage": {"checkpoints": [checkpoint]},
            "vllm": {"engines": engines, **lock},
            **host,
        }
    )


def test_an_engine_that_fits_is_accepted(description: Path) -> None:
    assert list(engines(_settings(description))) == []
    both = _engine(cards=["top", "bottom"], context_tokens=65536, kv_dtype="fp8")
    assert list(engines(_settings(description, both))) == []


WRONG = [
    ("checkpoint", {"checkpoint": "lama"}, "no such model; write 'llama'"),
    ("cards[0]", {"cards": ["tpo"]}, "no such card; write 'top'"),
    ("cards[0]", {"cards": ["spare"]}, "UUID is not declared"),
    ("cards[0]", {"cards": ["guests"]}, "belongs to a guest"),
    ("utilisation", {"utilisation": 0.9}, "needs a reason"),
    ("cache_mib", {"cards": []}, "keeps its cache in host memory"),
    ("cache_mib", {"cache_mib": 1024}, "the cache size follows from utilisation"),
    ("flags.max-num-batch-tokens", {"flags": {"max-num-batch-tokens": 1}}, "no such flag"),
    ("flags.enforce-eager", {"flags": {"enforce-eager": "yes"}}, "takes a switch"),
    ("flags.block-size", {"flags": {"block-size": 16.5}}, "takes an integer"),
    ("flags.dtype", {"flags": {"dtype": "fp4"}}, "takes one of auto, bfloat16"),
    ("flags.port", {"flags": {"port": 1}}, "write the engine's port"),
    ("flags.no-enforce-eager", {"flags": {"no-enforce-eager": True}}, "'enforce-eager' False"),
    ("flags.data-parallel-size", {"flags": {"data-parallel-size": 2}}, "one server"),
    ("name", {"name": "more-loopback"}, "rename it"),
    ("flags.no-enable-log-requests", {"flags": {"no-enable-log-requests": True}}, "journal"),
    (
        "flags.max-num-batched-tokens",
        {"flags": {"max-num-batched-tokens": "8k"}},
        "the memory plan cannot be computed",
    ),
    ("context_tokens", {"context_tokens": 131072}, "would fit: "),
]


@pytest.mark.parametrize(("key", "changes", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_what_could_not_start_is_refused_with_a_mend(
    description: Path, key: str, changes: dict[str, Any], says: str
) -> None:
    (finding,) = engines(_settings(description, _engine(**changes)))
    assert finding.key == f"vllm.engines[0].{key}"
    assert says in f"{finding.wrong}; {finding.mend}"


@pytest.mark.parametrize(
    ("limits", "takes_videos"),
    [
        (None, True),
        ('{"image": 1}', True),
        ('{"image": 1, "video": 1}', True),
        ('{"image": 1, "video": 0}', False),
        ("no JSON", True),
        ("0", True),
    ],
)
def test_a_limit_of_no_videos_saves_the_memory_of_one(
    description: Path, limits: str | None, takes_videos: bool
) -> None:
    flags = {} if limits is None else {"limit-mm-per-prompt": limits}
    settings = _settings(description, _engine(flags=flags))
    (engine,) = settings.servers["vllm"].engines
    assert vllm.settings_of(engine, cards_of(settings, engine)).takes_videos == takes_videos


def test_a_misspelt_flag_is_answered_with_the_nearest(description: Path) -> None:
    misspelt = _engine(flags={"max-num-batch-tokens": 4096})
    (finding,) = engines(_settings(description, misspelt))
    assert finding.mend == "write 'max-num-batched-tokens'"


def test_what_does_not_fit_is_answered_with_what_would(description: Path) -> None:
    (finding,) = engines(_settings(description, _engine(context_tokens=131072)))
    assert "llama does not fit: " in finding.wrong
    # The card of the case above holds it with a cache of 8 bits or beside a second card.
    assert "2 cards" in finding.mend


def test_a_checkpoint_that_tells_nothing_is_refused_once(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    assert list(engines(settings)) == []
    (finding,) = storage("rack", {"rack": settings}, {"rack"})
    assert finding.key == "storage.checkpoints[0].description"
    assert "config.json" in finding.wrong


def test_two_engines_do_not_share_a_card_beyond_its_memory(description: Path) -> None:
    second = _engine(name="more", port=8101, utilisation=0.3)
    (finding,) = memory(_settings(description, _engine(), second))
    assert finding.key == "vllm.engines[1].utilisation"
    assert "chat 19660" in finding.wrong
    assert list(memory(_settings(description, _engine(utilisation=0.5), second))) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file"),
        ("torch==2.13.0 \\\n    --hash=sha256:00\n", "does not pin vllm"),
        ("vllm==0.9.0 --hash=sha256:00\n", "does not pin vllm 0.32.0"),
        ("vllm==0.32.0\n", "has no hash"),
    ],
)
def test_a_lock_that_locks_nothing_is_refused(
    description: Path, tmp_path: Path, text: str | None, says: str
) -> None:
    lock = tmp_path / "lock.txt"
    if text is not None:
        lock.write_text(text)
    declared = {"lock": str(lock), "engines": [_engine()]}
    (finding,) = engines(_settings(description, vllm=declared))
    assert finding.key == "vllm.lock"
    assert says in finding.wrong


def test_an_engine_on_the_cpu_needs_a_lock_of_such_a_build(description: Path) -> None:
    declared = {"engines": [_engine(cards=[], cache_mib=8192)]}
    (finding,) = engines(_settings(description, vllm=declared))
    assert finding.key == "vllm.lock"
    assert "chat names no card" in finding.wrong


def test_an_engine_on_the_cpu_must_fit_its_memory(description: Path) -> None:
    small = _engine(cards=[], cache_mib=8192, memory_max_mib=20480)
    (finding,) = engines(_settings(description, small))
    assert finding.key == "vllm.engines[0].memory_max_mib"
    enough = _engine(cards=[], cache_mib=8192, memory_max_mib=32768)
    assert list(engines(_settings(description, enough))) == []


def test_what_the_planner_cannot_count_is_not_refused_for_its_size(description: Path) -> None:
    smaller = _engine(context_tokens=131072, flags={"quantization": "fp8"})
    assert list(engines(_settings(description, smaller))) == []
    larger = _engine(context_tokens=131072, flags={"enable-lora": True})
    assert len(list(engines(_settings(description, larger)))) == 1


def test_the_projects_own_lock_pins_the_version_its_flags_are_of() -> None:
    pinned = re.search(r"^vllm==(\S+)", vllm.LOCK.read_text(), re.MULTILINE)
    assert pinned is not None
    assert pinned[1] == vllm.VERSION == json.loads(vllm.FLAGS.read_text())["version"]
    assert not (set(vllm.HELD) | vllm.UNCOUNTED) - set(vllm.flags())


HARMLESS = {
    *("enable-server-load-tracking", "max-lora-rank", "numa-bind-nodes"),
    *("aggregate-engine-logging", "disable-access-log-for-endpoints", "disable-log-stats"),
    *("disable-uvicorn-access-log", "enable-expert-parallel", "enable-logging-iteration-details"),
    *("log-error-stack", "logprobs-mode", "max-logprobs", "max-lora-cls-labels"),
    *("max-parallel-loading-workers", "ray-workers-use-nsight", "uvicorn-log-level"),
}
"""Flags whose names sound as if they moved a port, a card, a log or foreign code, and do not."""


def test_a_new_flag_that_could_move_the_walls_is_looked_at() -> None:
    walls = "parallel|rank|port|addr|host|log|plugin|cls|ssl|grpc|node|server|transfer|uds|api-key"
    sounding = {
        name
        for name in vllm.flags()
        if re.search(rf"(^|-)({walls})", name) and not name.startswith("no-")
    }
    assert sounding - set(vllm.HELD) - HARMLESS == set()


def _files(settings: HostSettings) -> dict[str, str]:
    names = every(settings)[0]
    return texts(programs_of(settings, names))


def test_every_flag_that_is_written_is_one_that_vllm_takes(description: Path) -> None:
    settings = _settings(description, _engine(flags={"enforce-eager": True}))
    said = yaml.safe_load(configuration(settings, every(settings)[0]))
    assert said["model"] == f"/var/lib/holdfast/models/llama-{SHA256[:12]}"
    assert said["gpu-memory-utilization"] == 0.8
    assert said["max-num-batched-tokens"] == 2048
    # Four doors ask every two seconds: 170,000 lines a day.
    assert said["disable-access-log-for-endpoints"] == "/health,/metrics"
    for name, value in said.items():
        assert name in vllm.flags()
        assert isinstance(value, list) or vllm.flags()[name].problem(value) is None


def test_the_engine_has_its_cards_and_no_network(description: Path) -> None:
    settings = _settings(description, _engine(cards=["bottom", "top"]))
    unit = _files(settings)["/etc/systemd/system/holdfast-vllm-chat.service"].splitlines()
    assert f"Environment=CUDA_VISIBLE_DEVICES={UUIDS[1]},{UUIDS[0]}" in unit
    assert "PrivateNetwork=yes" in unit
    assert "User=vllm-chat" in unit
    assert "PrivateDevices=no" in unit
    (waits,) = [line for line in unit if line.startswith("ExecStartPre=")]
    program = "/usr/bin/python3 -I /usr/local/sbin/holdfast-gpu-memory"
    assert waits.endswith(f"{program} 60 0.8 {UUIDS[1]} {UUIDS[0]}")
    assert waits.startswith(f"ExecStartPre={AS_ROOT} ")
    on_cpu = _settings(description, _engine(cards=[], cache_mib=4096))
    assert (
        "PrivateDevices=yes"
        in _files(on_cpu)["/etc/systemd/system/holdfast-vllm-chat.service"].splitlines()
    )


def test_engines_that_share_a_card_start_one_after_another(description: Path) -> None:
    shared = [
        _engine(utilisation=0.4),
        _engine(name="more", port=8101, cards=["top", "bottom"], utilisation=0.3),
        _engine(name="else", port=8102, cards=["bottom"], utilisation=0.3),
    ]
    settings = _settings(description, *shared)
    after = {}
    for engine in settings.servers["vllm"].engines:
        names = EngineNames(vllm.SERVER, engine)
        unit = texts(programs_of(settings, names))[f"/etc/systemd/system/{names.unit}"]
        after[engine.name] = re.findall(r"^After=holdfast-vllm-(\w+)\.service$", unit, re.M)
    assert after == {"chat": [], "more": ["chat"], "else": ["more"]}


def test_the_key_is_in_files_for_root_alone(description: Path) -> None:
    settings = _settings(description)
    names = every(settings)[0]
    key = SecretStr("a-key-of-some-length")
    engine, *_ = programs_of(settings, names)
    private = {each.path: each.text(lambda name: key) for each in engine.credentials}
    assert all(key.get_secret_value() in text for text in private.values())
    assert set(private) == {names.key, names.probe}
    unit = texts(programs_of(settings, names))[f"/etc/systemd/system/{names.unit}"]
    assert all(f":{path}" in unit for path in private)


def test_cards_that_hang_one_another_are_kept_apart(description: Path) -> None:
    for said in (None, True, False):
        settings = _settings(description, _engine(cards=["top", "bottom"], peer_access=said))
        (engine,) = settings.servers["vllm"].engines
        assert len(engine.cards) == 2
        unit = _files(settings)["/etc/systemd/system/holdfast-vllm-chat.service"]
        assert ("Environment=NCCL_P2P_DISABLE=1" in unit.splitlines()) == (said is False)
        told = configuration(settings, EngineNames(vllm.SERVER, engine))
        assert ("disable-custom-all-reduce: true" in told) == (said is False)
        word = peer_word(engine)
        assert (word is not None and "write peer_access False" in word) == (said is None)
    alone = _engine(cards=["top"], peer_access=False)
    found = [each for each in engines(_settings(description, alone)) if "peer_access" in each.key]
    assert [each.mend for each in found] == ["remove it"]
    (engine,) = _settings(description, _engine(cards=["top"])).servers["vllm"].engines
    assert peer_word(engine) is None


def test_its_watch_runs_as_the_engine_and_alerts(description: Path) -> None:
    written = _files(_settings(description, _engine(stall_seconds=90)))
    unit = written["/etc/systemd/system/holdfast-vllm-chat-watch.service"].splitlines()
    assert {"User=vllm-chat", "PrivateNetwork=yes", f"OnFailure={ON_FAILURE}"} <= set(unit)
    (command,) = [line for line in unit if line.startswith("ExecStart")]
    assert "/run/holdfast/holdfast-vllm-chat/http.sock" in command
    assert "--seconds 90 --busy vllm:num_requests_running" in command
    assert command.startswith("ExecStart=/usr/bin/python3 -I /usr/local/sbin/")
    engine = written["/etc/systemd/system/holdfast-vllm-chat.service"].splitlines()
    # Who ended it starts it by this alone.
    assert "Restart=always" in engine


def test_only_named_paths_pass_the_door(description: Path) -> None:
    written = _files(_settings(description))
    doors = {
        name: written[f"/etc/holdfast/vllm/chat-{name}.cfg"] for name in ("loopback", "tailnet")
    }
    for text in doors.values():
        (posted,) = re.findall(r"acl may_post path (.*)", text)
        assert posted.split() == ["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    asked = json.loads(written["/etc/holdfast/engines/chat.json"])["questions"]
    assert [path for path, _ in asked] == ["/v1/completions", "/v1/chat/completions"]
    base = _files(_settings(description, _engine(chat=False)))
    (posted,) = re.findall(r"acl may_post path (.*)", base["/etc/holdfast/vllm/chat-loopback.cfg"])
    assert posted.split() == ["/v1/completions"]
    assert json.loads(base["/etc/holdfast/engines/chat.json"])["questions"][0][0] == posted
    assert len(json.loads(base["/etc/holdfast/engines/chat.json"])["questions"]) == 1
    assert "/metrics" in doors["loopback"]
    assert "/metrics" not in doors["tailnet"]


def test_another_model_is_asked_for_by_engine(description: Path) -> None:
    settings = _settings(description)
    other = settings.storage.checkpoints[0].model_copy(update={"name": "other"})
    storage = settings.storage.model_copy(
        update={"checkpoints": [other, *settings.storage.checkpoints]}
    )
    both = settings.model_copy(update={"storage": storage})
    (changed,) = with_model({"rack": both, "bare": _bare()}, "chat", "other").values()
    assert changed.servers["vllm"].engines[0].checkpoint == "other"
    for engine, model, says in (("chat", "othr", "write 'other'"), ("chatt", "other", "'chat'")):
        with pytest.raises(Refused, match=says):
            with_model({"rack": both}, engine, model)


def _bare() -> HostSettings:
    return HostSettings.model_validate(
        {"hostname": "b", "distribution": "debian13", "interfaces": {"eth0": {"role": "lan"}}}
    )


def test_the_row_of_starts_is_longer_than_its_starts_can_take(description: Path) -> None:
    unit = _files(_settings(description, _engine(start_seconds=600)))[
        "/etc/systemd/system/holdfast-vllm-chat.service"
    ]
    values = dict(re.findall(r"^(StartLimit\w+|TimeoutStartSec)=(\d+)$", unit, re.MULTILINE))
    assert int(values["StartLimitIntervalSec"]) > int(values["StartLimitBurst"]) * 600


def test_an_engine_is_a_declared_service(description: Path) -> None:
    settings = _settings(description, _engine(scope="tailnet"))
    (service,) = [each for each in declared_services(settings) if each.name == "vllm-chat"]
    assert [(listen.port, listen.scope) for listen in service.listens] == [(8100, "tailnet")]


ROOT = Path(__file__).resolve().parents[2]
OWN = {
    "holdfast/fit": "its figures are those of vLLM, by whose name it calls them",
    "holdfast/settings/engines.py": "its example of an inventory",
}
"""Where else a server may be named, and why."""


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
def test_a_server_is_named_in_its_own_module_alone(server: Server) -> None:
    named = {
        str(file.relative_to(ROOT))
        for folder in ("holdfast", "deploys", "operations", "facts", "templates")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
        if server.name in f"{file.relative_to(ROOT)}\n{file.read_text()}".lower()
    }
    own = f"holdfast/servers/{server.name}"
    assert {name for name in named if not name.startswith((own, *OWN))} == set()


def test_each_server_has_the_name_of_its_module() -> None:
    assert tuple(server.name for server in SERVERS) == settings_module.SERVERS


def test_what_an_earlier_version_left_fails_no_backup_and_goes(description: Path) -> None:
    known = {each.path for each in data(_settings(description))}
    assert {"/var/lib/holdfast/engines", "/var/lib/holdfast/vllm"} <= known
    assert "/etc/holdfast/vllm/*.json" in patterns()
