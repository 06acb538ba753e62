"""One run of the site by the very command that a user types, and what it changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from holdfast.capabilities import CAPABILITIES

ROOT = Path(__file__).resolve().parents[2]
SITE = "deploys/site.py"
PYINFRA = Path(sys.executable).with_name("pyinfra")


@dataclass(frozen=True)
class Outcome:
    """What one converge did. ``seconds`` is wall time, connection included."""

    label: str
    ok: bool
    seconds: float
    operations: int
    changed: list[str]
    failed: list[str]
    log: Path


def steps() -> list[str]:
    """The named steps of the site, in the order in which it takes them: `@deploy("Name")`.

    Those that a rack is sure to take: what checks cards or withdraws a rule may have no operation.
    """
    site = (ROOT / SITE).read_text()
    found = []
    for module, function in re.findall(r"^(\w+)\.(\w+)\(", site, re.MULTILINE):
        if module == "services":
            found += [each.title for each in CAPABILITIES if each.is_deployed]
            continue
        text = (ROOT / "deploys" / f"{module}.py").read_text()
        name = re.search(rf'^@deploy\("(.+)"\)\ndef {function}\(', text, re.MULTILINE)
        found += [name.group(1)] if name else []
    return found


def command(inventory: Path, deploy_file: str = SITE) -> list[str]:
    """The run a user types, with its result as JSON."""
    return [str(PYINFRA), "-y", "--json", str(inventory), deploy_file]


def start(inventory: Path, log: Path) -> subprocess.Popen[bytes]:
    """Begin a converge and leave it running: for those who mean to interrupt it."""
    with log.open("wb") as sink:
        return subprocess.Popen(
            command(inventory), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=sink, env=_environment()
        )


def converge(
    inventory: Path,
    label: str,
    logs: Path,
    deploy_file: str = SITE,
    timeout_seconds: int = 2400,
) -> Outcome:
    """Run the site, or the part in ``deploy_file``, to its end; the log is kept under ``logs``."""
    log = logs / f"converge-{label.replace(' ', '-')}.log"
    began = time.monotonic()
    with log.open("wb") as sink:
        done = subprocess.run(
            command(inventory, deploy_file),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=sink,
            env=_environment(),
            timeout=timeout_seconds,
            check=False,
        )
    seconds = time.monotonic() - began
    with log.open("ab") as sink:
        sink.write(done.stdout)
    try:
        results = json.loads(done.stdout)["results"]
    except (json.JSONDecodeError, KeyError):
        # Nothing is printed when the only host fails; the log says why.
        last = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        return Outcome(label, False, seconds, 0, [], [f"no result; it ended with:\n{last}\n"], log)
    operations = results["operations"]
    failed = [operation["name"] for operation in operations if operation["error"]]
    return Outcome(
        label=label,
        ok=done.returncode == 0 and not failed and not results["failed_hosts"],
        seconds=seconds,
        operations=len(operations),
        changed=[operation["name"] for operation in operations if operation["success"]],
        failed=failed,
        log=log,
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYINFRA_PROGRESS": "off"}
