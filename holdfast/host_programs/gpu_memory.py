#!/usr/bin/python3 -I
"""Before each start of an engine, wait until its cards have the memory that it will claim.

It is copied to hosts, so it uses only the standard library of Python 3.11. Called with
seconds, the claim on each card (a share of it such as 0.8, or 12000MiB) and the UUIDs of the cards;
exits 1 with a sentence for each card that has too little at the end, and names the processes that
use it. It kills none of them. BESIDES names files of process numbers (units' cgroup.procs) with
``:`` between them: the memory of those processes counts as free.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

SMI_SECONDS = 60
"""A faulty driver makes nvidia-smi hang."""
PAUSE_SECONDS = 1.0


def _smi(query: str) -> list[list[str]]:
    """The rows of an answer.

    Raises:
        OSError: nvidia-smi is not installed, failed, or did not answer.
    """
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SMI_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"nvidia-smi did not answer within {SMI_SECONDS} s") from None
    if done.returncode:
        raise OSError(" ".join((done.stdout + done.stderr).split()) or "nvidia-smi failed")
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]


def _processes(uuid: str) -> list[list[str]]:
    """Number, MiB and name of each process that uses memory of a card."""
    rows = _smi("--query-compute-apps=gpu_uuid,pid,used_memory,name")
    # The name is a path, and may contain commas.
    return [[pid, memory, ",".join(name)] for card, pid, memory, *name in rows if card == uuid]


def _holders(processes: Sequence[Sequence[str]]) -> str:
    """Those processes, in readable form."""
    found = []
    for pid, memory, name in processes:
        try:
            owner = f", of user {Path('/proc', pid).stat().st_uid}"
        except OSError:
            owner = ""
        found.append(f"process {pid} ({name}{owner}) has {memory} MiB")
    return "; ".join(found) or "the driver lists no process that uses it"


def lacking(claim: str, uuids: Sequence[str], besides: Collection[str]) -> Iterator[str]:
    """A sentence for each card that has less free memory than claimed: MiB, or a share of the
    usable memory. The memory of the processes in ``besides`` counts as free.

    Raises:
        OSError: the driver gives no answer.
    """
    rows = _smi("--query-gpu=uuid,memory.total,memory.reserved,memory.free")
    cards = {uuid: list(map(float, rest)) for uuid, *rest in rows}
    for uuid in uuids:
        if uuid not in cards:
            yield f"the driver does not show {uuid}: look at `systemctl status holdfast-gpu-limits`"
            continue
        total, reserved, free = cards[uuid]
        mib = claim.removesuffix("MiB")
        wanted = float(mib) if mib != claim else float(claim) * (total - reserved)
        if free >= wanted:
            continue
        processes = _processes(uuid)
        free += sum(float(memory) for pid, memory, _ in processes if pid in besides)
        others = [process for process in processes if process[0] not in besides]
        if free < wanted:
            yield (
                f"{uuid} has {free:.0f} MiB free, but {wanted:.0f} are claimed: {_holders(others)}"
            )


def main(seconds: str, claim: str, *uuids: str) -> int:
    """Wait; return 1 if a card has too little at the end."""
    deadline = time.monotonic() + float(seconds)
    files = filter(None, os.environ.get("BESIDES", "").split(":"))
    besides = [number for file in files for number in Path(file).read_text().split()]
    while True:
        try:
            problems = list(lacking(claim, uuids, besides))
        except (OSError, ValueError) as error:
            problems = [f"the cards' memory cannot be read: {error}"]
        if not problems or time.monotonic() >= deadline:
            break
        time.sleep(PAUSE_SECONDS)
    for problem in problems:
        print(f"<3>{problem}" if "JOURNAL_STREAM" in os.environ else problem, file=sys.stderr)  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
