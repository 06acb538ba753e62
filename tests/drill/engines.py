"""Tests of a rack's engines: the plan against the engine, other models, kills, a bench."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from holdfast import floor
from holdfast.engines import throughput
from holdfast.engines.fit import fit_of
from holdfast.engines.units import REPLACE_PROGRAM, EngineNames, every
from holdfast.servers import vllm
from holdfast.settings import HostSettings
from tests.drill.converge import ROOT
from tests.drill.rehearsal import Act
from tests.drill.site import Site
from tests.lab.machine import Machine

CHECKPOINT = "tiny-llama"
OTHER = "other-llama"
ASK_FLOOR = f"curl --max-time 20 --config {floor.PROBE_FILE} 2>&1 && echo ok"
PAUSE_SECONDS = 0.2
"""Pause between two calls; without it they would take a processor from an engine that loads."""


class Stage(Protocol):
    """The stage that these tests need."""

    @property
    def rack(self) -> Machine:
        """The machine."""

    @property
    def inventory(self) -> Path:
        """The inventory's file."""

    @property
    def logs(self) -> Path:
        """Where logs are kept."""

    @property
    def settings(self) -> HostSettings:
        """The settings of the rack."""

    def change_engine(self, **changes: object) -> None:
        """Write the inventory, with the engine "chat" changed and everything else unchanged."""


def declared(name: str, **changes: object) -> dict[str, object]:
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
        # A graph, which saves time on a card, costs a minute of compilation on a CPU.
        "flags": {"enforce-eager": True},
        **changes,
    }


def acts(tried: Callable[[], Engines]) -> Sequence[Act]:
    """Engines that are compared with their plan, measured, replaced and killed."""
    return (
        Act("compare the plan with the engine", lambda: tried().compare(), rows=(10,)),
        Act("bench", lambda: tried().bench(), rows=(29,)),
        Act("replace a model", lambda: tried().replace(), rows=(11,)),
        Act("replace it by what does not serve", lambda: tried().replace_in_vain(), rows=(11,)),
        Act("kill an engine, and ask the floor", lambda: tried().kill_both(), rows=(9, 13)),
    )


def _is_whole(said: str) -> bool:
    """Whether an answer is complete, or is that of a door that refuses callers."""
    text, _, status = said.rpartition(" ")
    if status != "200":
        return status == "503"
    return bool(json.loads(text)["usage"]["completion_tokens"] == 100)


class Engines:
    """Tests of the engines of one rack; the first is called "chat"."""

    def __init__(self, stage: Stage, site: Site, chance: random.Random | None = None) -> None:
        """``chance`` chooses one fault of those that are tried; each is where it is None."""
        self.stage, self.site, self.record = stage, site, site.record
        self._chance = chance

    def compare(self) -> None:
        """Compare the plan's blocks and flags with what the engine reports."""
        for engine in self.names():
            self._compare_cache(engine)
        self._compare_flags()

    def kill_both(self) -> None:
        """Kill the engine, and one of its workers, while callers send requests."""
        self._kill("the engine", "$main")
        self._kill("a worker", "$(pgrep --parent $main | tail -n 1)")

    def names(self) -> list[EngineNames]:
        """What belongs to each declared engine."""
        return every(self.stage.settings)

    def wait_until_serving(self) -> None:
        """Wait until systemd regards every engine's unit as started."""
        for names in self.names():
            self.stage.rack.wait_until_succeeds(
                f"systemctl --quiet is-active {names.unit}", timeout_seconds=600
            )

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
        program = ROOT / "holdfast/servers/vllm/print_flags.py"
        self.stage.rack.copy_to(program, "/root/print_flags.py")
        told = self.stage.rack.succeed(
            "VLLM_LOGGING_LEVEL=ERROR /opt/holdfast/vllm/*/bin/python /root/print_flags.py"
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
        """The folder of the model with which chat answers; empty if it does not."""
        (names, *_) = self.names()
        told = self.stage.rack.execute(
            f"curl --config {names.probe} && sed -n 's/^model: //p' {names.configuration}",
            timeout_seconds=320,
        )
        return told[1].strip().rpartition("/")[2] if told[0] == 0 else ""

    @contextmanager
    def asking(self, command: str) -> Iterator[list[str]]:
        """Run ``command`` on the rack repeatedly during the block; yields its outputs."""
        ended, answers = threading.Event(), list[str]()

        def ask() -> None:
            while not ended.wait(PAUSE_SECONDS):
                answers.append(self.stage.rack.execute(command, timeout_seconds=60)[1].strip())

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield answers
        finally:
            ended.set()
            thread.join()

    def expect_floor(self, said: list[str]) -> None:
        """Check that the floor answered every time."""
        answered, asked = said.count("ok"), len(said)
        others = sorted({each for each in said if each != "ok"})
        seen = f"{answered} of {asked}{f'; else {others}' if others else ''}"
        self.record.check("the floor answers all the time", answered == asked > 0, seen)

    def replace(self) -> None:
        """Replace the engine's model while callers send requests."""
        (names, *_) = self.names()
        body = {"model": "chat", "prompt": "ready", "max_tokens": 100, "ignore_eos": True}
        ask_chat = (
            f'printf "Authorization: Bearer %s" "$(cat {names.key})" | curl --silent --header @-'
            f" --json '{json.dumps(body)}' --max-time 60 --write-out ' %{{http_code}}'"
            f" http://127.0.0.1:{names.engine.port}/v1/completions"
        )
        self.stage.change_engine(checkpoint=OTHER)
        with self.asking(ASK_FLOOR) as floor_says, self.asking(ask_chat) as chat_says:
            self.site.converge("another model")
        serving = self._serving()
        self.record.check("the other model serves", serving.startswith(OTHER), serving)
        noted = json.loads(self.stage.rack.succeed("cat /var/lib/holdfast/engines/chat.json"))
        self.record.figures["replacement"] = noted.get("away", noted["step"])
        self.expect_floor(floor_says)
        cut = [said for said in chat_says if not _is_whole(said)]
        self.record.check(
            "each request was answered completely or refused at once",
            not cut and any(said.endswith("200") for said in chat_says),
            cut[:1] or f"{len(chat_says)} asked",
        )
        self.site.expect_nothing("another model, again")

    def replace_in_vain(self) -> None:
        """Offer models that cannot be served; the previous one must go on serving."""
        rack, (names, *_) = self.stage.rack, self.names()
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
        cut = "the power is cut in the middle"
        chosen = [*faults, cut]
        if self._chance:
            chosen = [self._chance.choice(chosen)]
        for fault in chosen:
            if fault == cut:
                self._cut_power(names, before, f"{copy} && {offer}")
                continue
            rack.succeed(faults[fault])
            status, _ = rack.execute(f"{REPLACE_PROGRAM} chat", timeout_seconds=900)
            serving = self._serving()
            good = status == 1 and serving == before
            told = f"a replacement where {fault}"
            self.record.survived(told, "the old model serves", good, serving or status)

    def _cut_power(self, names: EngineNames, before: str, prepare: str) -> None:
        rack = self.stage.rack
        rack.succeed(f"{prepare} && systemd-run --quiet --unit=replace {REPLACE_PROGRAM} chat")
        rack.wait_until_succeeds(
            "grep -q swapped /var/lib/holdfast/engines/chat.json", timeout_seconds=120
        )
        rack.crash()
        rack.start()
        rack.wait_for_boot()
        rack.wait_until_succeeds(f"systemctl --quiet is-active {names.unit}", timeout_seconds=600)
        serving, told = self._serving(), rack.succeed("cat /var/lib/holdfast/engines/chat.json")
        self.record.survived(
            "a replacement where the power is cut in the middle",
            "the old model serves",
            serving == before and "rolled back" in told,
            serving or told,
        )

    def bench(self) -> None:
        """Measure the engine, and have a slower run reported."""
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
            "a slower bench is reported",
            slower.returncode == 1 and "tokens/s and made" in slower.stderr,
            slower.stderr.strip()[-200:],
        )

    def _bench_once(self, file: Path) -> subprocess.CompletedProcess[str]:
        asked = "--requests 16 --concurrent-requests 4 --input-tokens 64 --output-tokens 32"
        return subprocess.run(
            [sys.executable, "-m", "holdfast", "bench", str(self.stage.inventory), "chat"]
            + ["--csv", str(file), *asked.split()],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def _kill(self, victim: str, pid: str) -> None:
        rack, (names, *_) = self.stage.rack, self.names()
        before = self._processes(names)
        self.record.check(f"{victim}: a process to kill exists", len(before) > 1, len(before))
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
            # 401 is the engine's own answer: it listens before its unit is regarded as started.
            if status != "401" and (status != "503" or float(seconds) > 2):
                odd.append(f"{status} after {seconds} s")
            answered += rack.execute(f"curl --max-time 20 --config {floor.PROBE_FILE}")[0] == 0
            if time.monotonic() - began > names.engine.start_seconds:
                break
            time.sleep(PAUSE_SECONDS)
        took = f"{time.monotonic() - began:.0f} s"
        self.record.figures[f"{victim} killed, until it completes again"] = took
        back = rack.execute(f"curl --config {names.probe}")[0] == 0
        self.record.survived(f"{victim} killed", "it is back by itself", back, took)
        left = before & self._processes(names) | self._alive(before)
        self.record.check(f"{victim} killed: no process of it is left", not left, left or "")
        self.record.check(
            f"{victim} killed: callers get an error within two seconds", not odd, odd or asked
        )
        self.record.survived(
            f"{victim} killed",
            "the floor answers all the time",
            answered == asked > 0,
            f"{answered} of {asked}",
        )

    def _processes(self, names: EngineNames) -> set[str]:
        rack = self.stage.rack
        group = rack.succeed(f"systemctl show -P ControlGroup {names.unit}").strip()
        return set(rack.succeed(f"cat /sys/fs/cgroup{group}/cgroup.procs").split())

    def _alive(self, pids: set[str]) -> set[str]:
        return set(self.stage.rack.execute(f"ps -o pid= -p {','.join(pids)}")[1].split())
