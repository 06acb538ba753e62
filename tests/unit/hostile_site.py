"""What hostile text that the grammar accepts becomes: in every file, rule and command of a site.

    python -m tests.unit.hostile_site --rounds 200 --seed 7

Each round writes other accepted text into every word of an inventory that has every capability,
plans the whole site for it on pyinfra's fake connector, and has the programs that will read the
results read them: systemd-analyze, nft, haproxy, iptables-restore, sshd, shellcheck. A command must
have the shape that it has for harmless text. Nothing is changed anywhere. Prints what was done and
what went wrong; exits 1 where something did.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import jinja2
from pydantic import BaseModel, TypeAdapter, ValidationError
from pyinfra.api import Config, Inventory, State, StringCommand
from pyinfra.api.connect import connect_all
from pyinfra.api.host import Host
from pyinfra.api.state import StateStage
from pyinfra.context import ctx_config, ctx_host, ctx_inventory, ctx_state

from deploys import (
    backup,
    base,
    docker,
    egress,
    engines,
    firewall,
    gpu_containers,
    gpu_driver,
    gpu_limits,
    gpu_modes,
    services,
    ssh,
    storage,
    tailnet,
)
from facts.base import Account, BaseState, Ground
from facts.ssh import Sshd
from facts.units import UnitState, UnitStates
from holdfast import base as ground
from holdfast import firewall as walls
from holdfast import grammar, types
from holdfast import render as rendering
from holdfast.engines import throughput as bench
from holdfast.engines.servers import declared_engines
from holdfast.registry import declared_services
from holdfast.settings import HostSettings
from holdfast.types import Word
from operations.host_files import HostFile
from tests.drill.replay import a_sshd
from tests.unit.bare_machine import SSHD
from tests.unit.hostile_text import accepted, shape
from tests.unit.site_data import SHA256, good

DEPLOYS: tuple[Callable[..., Any], ...] = (
    *(base.apply, ssh.apply, firewall.apply, egress.apply, gpu_driver.apply, gpu_modes.declare),
    *(gpu_limits.apply, docker.apply, gpu_containers.apply, tailnet.apply, storage.apply),
    *(services.apply, backup.apply, engines.settle),
)
UNITS = ("service", "socket", "timer", "mount", "automount", "slice", "target")
_POLICY = "it is in the tailnet's policy alone, which is written as JSON"
_ONE_FORM = "its pattern has no room for hostile text"
UNTRIED: Mapping[Any, str] = {
    types.ControllerPath: "it names a file of this machine, and reaches no host",
    types.Sentence: "it is for readers of the inventory, and reaches no host",
    types.Caller: _POLICY,
    types.TailnetUser: _POLICY,
    types.TailnetGroup: _POLICY,
    types.Fingerprint: _ONE_FORM,
    types.PciDevice: _ONE_FORM,
    types.DriverBranch: _ONE_FORM,
    types.ContainerUser: _ONE_FORM,
    types.ImageDigest: _ONE_FORM,
    types.VariableName: _ONE_FORM,
    types.PublicKey: "its base64 must be a key's; `sshd` reads it from a file of its own",
}
"""Words in which no hostile text is tried, and why."""
EVERYTHING: dict[str, Any] = {
    "base": {
        "timezone": "Europe/Berlin",
        "locale": "de_DE.UTF-8",
        "ntp_servers": ["ntp.home.arpa"],
        "hosts": {"offsite.example": "203.0.113.7"},
        "disks": [{"path": "/srv", "free_gib": 1}],
    },
    "docker": {
        "repository": {
            "url": "https://mirror.house.example/docker",
            "key_url": "https://mirror.house.example/key",
            "suite": "trixie",
        },
        "dns": ["192.168.1.1"],
        "networks": [
            {"name": "home", "tier": "T1", "subnets": ["172.30.1.0/24"]},
            {"name": "out", "tier": "T3", "clouds": [{"name": "api.one.example"}]},
        ],
    },
    "gpus": {
        "cards": [
            {
                "name": "one",
                "device": "2204",
                "vram_mib": 24576,
                "uuid": "GPU-8f1c3a52-0000-1111-2222-333344445555",
                "pci_address": "0000:01:00.0",
                "power_cap_w": 300,
            },
            {"name": "guest", "device": "2204", "vram_mib": 24576, "role": "passthrough"}
            | {"pci_address": "0000:02:00.0"},
        ],
        "card_sets": [
            {
                "name": "set",
                "cards": ["one"],
                "default": "a",
                "modes": [{"name": "a", "services": ["chat"]}, {"name": "b"}],
            }
        ],
    },
    "clouds": {
        "packages": "https://mirror.house.example/simple",
        "providers": [
            {
                "name": "cloud",
                "base_url": "https://one.example/v1",
                "model": "big",
                "api_key": "CLOUD_KEY",
                "input_usd": 1.0,
                "output_usd": 2.0,
            }
        ],
    },
    "routers": [
        {"name": "work", "profile": "private", "port": 8200, "api_key": "CALLERS_KEY"}
        | {"engines": ["chat"], "floor": True, "queue": {}, "scope": "tailnet"},
        {"name": "mine", "profile": "personal", "port": 8201, "engines": ["chat"], "floor": True}
        | {"clouds": ["cloud"]}
        | {"keys": [{"name": "me", "api_key": "MY_KEY", "clouds": ["cloud"], "budget_usd": 1.0}]},
    ],
}


_TENANT: dict[str, Any] = {
    "command": ["serve", "all of it"],
    "environment": {"GREETING": "hello, you"},
    "secrets": {"token": "CALLERS_KEY"},
}


def site(folder: Path, network: str, source: str) -> HostSettings:
    """An inventory's host that has everything; addresses of ``network``, models from ``source``."""
    data = good()["rack"] | EVERYTHING
    (folder / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    data["base"] = data["base"] | {"trusted_cas": {"house": str(folder / "ca.pem")}}
    data["firewall"]["openings"] += [{"port": 9100, "sources": [network], "reason": "metrics"}]
    data["services"][0]["listens"][0]["sources"] = [network]
    data["services"][0]["peers"] = [{"network": network, "port": 443}]
    data["services"] += [
        {"name": "agent", "unit": "agent.service", "user": "agent", "tier": "T3"}
        | {"clouds": [{"name": "api.two.example"}], "data": []},
        {"name": "pictures", "tier": "T1", "network": "home", "listens": [{"port": 8188}]}
        | {"container": _TENANT | {"image": f"ghcr.io/example/pictures@sha256:{SHA256}"}}
        | {"data": [{"path": "/srv/pictures", "backup": "state"}]},
    ]
    data["storage"]["models"][0]["source"] = f"{source}/small.gguf"
    checkpoint = {"name": "tiny", "source": f"{source}/tiny", "sha256": SHA256, "size_mib": 10}
    data["storage"]["checkpoints"] = [checkpoint | {"description": str(folder)}]
    data["vllm"] = {
        "engines": [
            {"name": "chat", "checkpoint": "tiny", "cards": ["one"], "port": 8100}
            | {"api_key": "CHAT_KEY", "context_tokens": 4096, "cpus": "4-31"}
            | {"scope": "tailnet", "flags": {"served-model-name": "chat"}},
        ]
    }
    return HostSettings.model_validate(data)


@dataclass
class Hostile:
    """A site with other text in it: by word and old text the text that stands there instead."""

    dice: random.Random
    choices: dict[int, list[str]]
    wanted: dict[tuple[int, str], list[Any]] = field(default_factory=dict)
    chosen: dict[tuple[int, str], str] = field(default_factory=dict)

    def _kinds(self, annotation: Any, value: str) -> Iterator[tuple[int, Any]]:
        for arm in grammar.arms(annotation):
            if get_origin(arm) is Annotated and get_args(arm)[0] is str:
                word = next((each for each in get_args(arm) if isinstance(each, Word)), None)
                if word and id(word) in self.choices:
                    yield id(word), arm

    def _text(self, value: str, annotation: Any, collect: bool) -> str:
        for word, arm in self._kinds(annotation, value):
            if collect:
                self.wanted.setdefault((word, value), []).append(TypeAdapter(arm))
            else:
                return self.chosen.get((word, value), value)
        return value

    def _walk(self, value: Any, annotation: Any, collect: bool) -> Any:
        if isinstance(value, BaseModel):
            return {
                info.alias or name: self._walk(
                    getattr(value, name), grammar.annotation_of(type(value), name), collect
                )
                for name, info in type(value).model_fields.items()
                if getattr(value, name) is not None
            }
        if isinstance(value, str):
            return self._text(value, annotation, collect)
        if isinstance(value, list | dict):
            (kind, *_) = (
                each
                for arm in grammar.arms(annotation)
                for each in [get_args(arm)[0] if get_origin(arm) is Annotated else arm]
                if get_origin(each) in (list, dict)
            )
            if isinstance(value, list):
                return [self._walk(each, get_args(kind)[0], collect) for each in value]
            key_kind, item_kind = get_args(kind)
            return {
                self._text(key, key_kind, collect): self._walk(each, item_kind, collect)
                for key, each in value.items()
            }
        return value

    def of(self, settings: HostSettings) -> HostSettings:
        """``settings`` with every word's texts replaced, the same text by the same."""
        self._walk(settings, HostSettings, collect=True)
        taken: set[tuple[int, str]] = set()
        for (word, old), adapters in self.wanted.items():
            candidates = self.choices[word]
            for text in self.dice.sample(candidates, len(candidates)):
                if (word, text) not in taken and all(_takes(each, text) for each in adapters):
                    self.chosen[word, old] = text
                    taken.add((word, text))
                    break
        return HostSettings.model_validate(self._walk(settings, HostSettings, collect=False))


def _takes(adapter: TypeAdapter[Any], text: str) -> bool:
    try:
        adapter.validate_python(text)
    except ValidationError:
        return False
    return True


def _ground(settings: HostSettings) -> BaseState:
    return BaseState(
        distribution=settings.distribution,
        hostname="old",
        live_hostname="old",
        interfaces=frozenset(settings.interfaces),
        root_read_only=False,
        begun=True,
        free_mib={disk.path: 10**6 for disk in settings.base.disks},
        boot_free_mib=None,
        sysctls={},
        accounts={
            user: Account(1000, "/bin/sh", "/home/x") for user in ground.asked_accounts(settings)
        },
        hosts_file="127.0.0.1 localhost\n",
        timezone="Etc/UTC",
        legacy_timezone="Etc/UTC",
        locale="C.UTF-8",
        authorities=frozenset(),
        authorities_outdated=False,
        modes={},
        default_core_limit="0",
        audit_rules=frozenset(),
        audit_enabled=False,
    )


_DOWN = UnitState("loaded", "inactive", "disabled", False, None, None, None)


class _Units(dict[str, UnitState]):
    def __missing__(self, name: str) -> UnitState:
        return _DOWN


@dataclass
class Made:
    """What a site became."""

    files: list[HostFile] = field(default_factory=list)
    templates: dict[str, str] = field(default_factory=dict)
    commands: list[tuple[str, str]] = field(default_factory=list)
    """Operation and command."""
    failed: set[str] = field(default_factory=set)
    """Deploys and operations that made nothing."""


def make(settings: HostSettings) -> Made:
    """Plan the whole site for one host; every template and every operation."""
    made = Made()

    class Recorded(jinja2.Template):
        def render(self, *args: Any, **values: Any) -> str:
            text = super().render(*args, **values)
            made.templates[str(self.name)] = text
            return text

    environment = rendering._environment()
    environment.template_class = Recorded
    if environment.cache is not None:
        environment.cache.clear()
    begin, asked = HostFile.__init__, Host.get_fact

    def init(self: HostFile, *args: Any, **values: Any) -> None:
        begin(self, *args, **values)
        made.files.append(self)

    def get_fact(self: Host, fact: Any, *args: Any, **values: Any) -> Any:
        if fact is Ground:
            return _ground(settings)
        if fact is UnitStates:
            return _Units()
        if fact is Sshd:
            return SSHD
        return asked(self, fact, *args, **values)

    HostFile.__init__ = init  # type: ignore[method-assign]
    Host.get_fact = get_fact  # type: ignore[method-assign, assignment]
    try:
        _plan(settings, made)
    finally:
        HostFile.__init__ = begin  # type: ignore[method-assign]
        Host.get_fact = asked  # type: ignore[method-assign]
    return made


def _texts_of(kind: Any) -> bool:
    return get_origin(kind) is Annotated and get_args(kind)[0] is str


def _word(kind: Any) -> int:
    return next(id(each) for each in get_args(kind) if isinstance(each, Word))


def unreached(words_reached: set[int], templates: set[str]) -> list[str]:
    """What this trial leaves out without a reason: words and templates, a sentence each."""
    texts = {path: path.read_text() for path in rendering.TEMPLATES.rglob("*.j2")}
    parts = {part for text in texts.values() for part in re.findall(r'% include "(.+?)"', text)}
    names = {str(path.relative_to(rendering.TEMPLATES)) for path in texts}
    untried = {_word(kind) for kind in UNTRIED}
    return [
        *(
            f"no text was tried in the word {name}"
            for name, kind in sorted(vars(types).items())
            if _texts_of(kind) and _word(kind) not in words_reached | untried
        ),
        *(f"no site rendered {name}" for name in sorted(names - parts - templates)),
    ]


def _plan(settings: HostSettings, made: Made) -> None:
    state = State(check_for_changes=False)
    fake = {"fake_responses": {}, "fake_delay": 0.0, "fake_delay_jitter": 0.0}
    inventory = Inventory(([("@fake/rack", fake)], {}))  # type: ignore[no-untyped-call]
    with ctx_state.use(state), ctx_inventory.use(inventory):
        state.init(inventory, Config())  # type: ignore[no-untyped-call]
        state.set_stage(StateStage.Connect)
        connect_all(state)
        state.set_stage(StateStage.Prepare)
        (host,) = inventory
        with ctx_config.use(state.config.copy()), ctx_host.use(host):
            for engine in declared_engines(settings):
                made.commands.append(("a bench", bench.script(settings, engine, bench.Load())))
            for deploy in DEPLOYS:
                try:
                    deploy(settings=settings)
                except Exception as error:
                    made.failed.add(f"{deploy.__module__}: {type(error).__name__}: {error}")
            state.set_stage(StateStage.Execute)
            for operation in state.get_op_order():  # type: ignore[no-untyped-call]
                name = " / ".join(sorted(state.op_meta[operation].names))
                try:
                    for command in state.ops[host][operation].command_generator():
                        if isinstance(command, StringCommand):
                            made.commands.append((name, command.get_raw_value()))
                except Exception as error:
                    made.failed.add(f"{name}: {type(error).__name__}: {error}")


@dataclass
class Judge:
    """The programs that read a site's files, and what they said."""

    folder: Path
    sshd: Path | None
    sshd_parts: list[str] = field(default_factory=list)
    shapes: dict[str, set[str]] = field(default_factory=dict)
    usual: set[str] = field(default_factory=set)
    """What systemd-analyze says of harmless text, too: programs that are not installed here."""

    def learn(self, made: Made) -> None:
        """Take what harmless text becomes for right."""
        for name, command in made.commands:
            self.shapes.setdefault(name, set()).add(shape(command))
        self.usual |= {_without_names(line) for line in self._units(made)}

    def faults(self, made: Made, settings: HostSettings) -> list[str]:
        """What is wrong with a site; empty where nothing is."""
        units = [line for line in self._units(made) if _without_names(line) not in self.usual]
        bent = [
            f"another shape of {name!r}: {command}"
            for name, command in made.commands
            if shape(command) not in self.shapes.get(name, set())
        ]
        return [*units, *bent, *self._others(made), *self._tables(settings), *self._shells(made)]

    def _run(self, *command: str, stdin: str = "", **environment: str) -> list[str]:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | environment,
            cwd=self.folder,
        )
        return [f"{command[0]}: {done.stdout}{done.stderr}"] if done.returncode else []

    def _units(self, made: Made) -> list[str]:
        root = Path(tempfile.mkdtemp(dir=self.folder))
        paths = []
        for file in made.files:
            if file.path.startswith("/etc/systemd/system/"):
                path = root / file.path.removeprefix("/etc/systemd/system/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(file.content)
                if path.parent == root and path.suffix[1:] in UNITS and "@." not in path.name:
                    paths.append(str(path))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"SYSTEMD_UNIT_PATH": f"{root}:"},
        )
        lines = [line.replace(f"{root}/", "") for line in done.stderr.splitlines()]
        shutil.rmtree(root)
        calendars = {
            line.removeprefix("OnCalendar=")
            for file in made.files
            for line in file.content.splitlines()
            if line.startswith("OnCalendar=")
        }
        for calendar in sorted(calendars):
            told = subprocess.run(
                ["systemd-analyze", "calendar", calendar],
                capture_output=True,
                text=True,
                check=False,
            )
            if told.returncode or "Next elapse: never" in told.stdout:
                lines.append(f"calendar {calendar!r}: {told.stderr or 'never'}")
        return [line for line in lines if " is not executable" not in line]

    def _others(self, made: Made) -> list[str]:
        found = []
        credentials = self.folder / "credentials"
        credentials.mkdir(exist_ok=True)
        for file in made.files:
            if file.path.endswith(".nft"):
                nft = ("unshare", "--net", "nft", "--check", "--file", "-")
                found += self._run(*nft, stdin=file.content * 2)
            if file.path.endswith(".cfg"):
                stem = Path(file.path).stem
                keys = [
                    each for each in made.files if stem in each.path and "credential" in each.path
                ]
                (credentials / "keys").write_text("".join(each.content for each in keys) or "a b\n")
                configuration = self.folder / "haproxy.cfg"
                # systemd would hand it the sockets.
                here = f"bind unix@{self.folder}/door.sock"
                configuration.write_text(re.sub(r"bind fd@\S+", here, file.content))
                found += self._run(
                    "/usr/sbin/haproxy",
                    *("-c", "-f", str(configuration)),
                    CREDENTIALS_DIRECTORY=str(credentials),
                )
        if self.sshd:
            configuration, key = self.folder / "sshd.conf", self.folder / "host_key"
            if not key.exists():
                self._run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
            text = made.templates["ssh/sshd.conf.j2"]
            text = re.sub(r"(?m)^HostKey .*", f"HostKey {key}", text)
            configuration.write_text("\n".join([text, *self.sshd_parts]))
            # Root's would ask for the user that its package makes.
            somebody = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
            command = (*somebody, str(self.sshd), "-t", "-f", str(configuration))
            found += self._run(*command, LD_LIBRARY_PATH=str(self.sshd.parent))
        return found

    def _tables(self, settings: HostSettings) -> list[str]:
        found = []
        declared = walls.holes(settings, declared_services(settings), lan_ssh=walls.UNTIL_TAILNET)
        for family, program in ((4, "iptables-restore"), (6, "ip6tables-restore")):
            lines = walls.block(declared, set(settings.interfaces), family)  # type: ignore[arg-type]
            text = "\n".join(line for line in lines if not line.startswith("#")) + "\n"
            found += self._run("unshare", "--net", program, "--test", "--noflush", stdin=text)
        return found

    def _shells(self, made: Made) -> list[str]:
        root = Path(tempfile.mkdtemp(dir=self.folder))
        scripts = [
            file.content
            for file in made.files
            if file.content.startswith(("#!/bin/sh", "#!/bin/bash"))
        ]
        texts = [*scripts, *(f"#!/bin/sh\n{command}\n" for _, command in made.commands)]
        for index, text in enumerate(dict.fromkeys(texts)):
            (root / f"{index}.sh").write_text(text)
        found = self._run("shellcheck", "-S", "error", *map(str, sorted(root.iterdir())))
        shutil.rmtree(root)
        return found


def _without_names(line: str) -> str:
    return re.sub(r"[^\s:]*[0-9@./_-][^\s:]*", "_", line)


def words(dice: random.Random, many: int) -> dict[int, list[str]]:
    """Texts by word, of every word that stands for text and can be written otherwise."""
    found = {}
    for kind in vars(types).values():
        if _texts_of(kind) and kind not in UNTRIED:
            # The checks refuse / for every purpose.
            found[_word(kind)] = [each for each in accepted(kind, dice, many) if each != "/"]
    return found


def main(arguments: list[str]) -> int:
    """Judge as many rounds as asked for; 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--fetch-sshd", action="store_true", help="unpack one where none is installed"
    )
    asked = parser.parse_args(arguments)
    dice = random.Random(asked.seed)  # noqa: S311 - a seed must say which texts there were
    choices = words(dice, 60 + 4 * asked.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.environ["HOLDFAST_SECRETS"] = name
        program = Path("/usr/sbin/sshd")
        judge = Judge(folder, program if program.exists() else None)
        if asked.fetch_sshd:
            judge.sshd, judge.sshd_parts = a_sshd()
        plain = [
            site(folder, "192.168.1.0/24", "/mnt/nas/models"),
            site(folder, "fd00:1::/64", "https://models.example/v1"),
            site(folder, "192.168.1.0/24", "http://models.example/v1"),
            site(folder, "fd00:1::/64", "/srv/models"),
        ]
        secrets = {each for texts in choices.values() for each in texts}
        env = folder / ".env"
        env.touch(mode=0o600)
        named = sorted(each for each in secrets if re.fullmatch(r"[A-Z][A-Z0-9_]{2,60}", each))
        named += ["CLOUD_KEY", "CALLERS_KEY", "MY_KEY", "CHAT_KEY", "TAILSCALE_AUTH_KEY"]
        named += ["FLOOR_API_KEY", "NAS_BACKUP", "OFFSITE_BACKUP", "OFFSITE_LOGIN"]
        env.write_text(
            "".join(f"{key}=q8Zx-{n}-27xLmZp40wQr8\n" for n, key in enumerate(dict.fromkeys(named)))
        )
        for settings in plain:
            made = make(settings)
            judge.learn(made)
            if wrong := sorted(made.failed) + judge.faults(made, settings):
                print("harmless text fails, too:", *wrong, sep="\n  ")
                return 1
        templates: set[str] = set()
        used: set[tuple[int, str]] = set()
        bad = 0
        for number in range(asked.rounds):
            hostile = Hostile(dice, choices)
            settings = hostile.of(plain[number % len(plain)])
            made = make(settings)
            templates |= made.templates.keys()
            used |= {(word, text) for (word, _), text in hostile.chosen.items()}
            if wrong := sorted(made.failed) + judge.faults(made, settings):
                bad += 1
                print(f"round {number} of seed {asked.seed}:", *wrong, sep="\n  ")
    kinds = {word for word, _ in used}
    for line in (left := unreached(kinds, templates)):
        print(line)
    print(
        f"{len(kinds)} words x {len(templates)} templates x {len(used)} hostile texts in"
        f" {asked.rounds} sites: {asked.rounds - bad} passed, {bad} failed"
    )
    return 1 if bad or left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
