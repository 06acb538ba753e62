"""The verdicts of two independent auditors: Lynis on the rack, ssh-audit against it."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path

from tests.drill.stage import RackStage

LYNIS_AIM = 85
"""Lynis 3.1.4 gives a fresh Debian 13 an index of 65."""


def lynis(stage: RackStage) -> int:
    """Install Lynis on the rack, run it, keep its log; returns the hardening index (0 to 100)."""
    rack = stage.rack
    rack.succeed(
        "DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends lynis",
        timeout_seconds=900,
    )
    # CRYP-7902 reads every certificate on the disk, a quarter of an hour under emulation.
    rack.succeed(
        "echo skip-test=CRYP-7902 > /etc/lynis/custom.prf &&"
        " lynis audit system --quick --no-colors > /root/lynis.out 2>&1; true",
        timeout_seconds=3000,
    )
    rack.copy_from("/var/log/lynis-report.dat", stage.logs / "lynis-report.dat")
    found = re.search(r"hardening_index=(\d+)", (stage.logs / "lynis-report.dat").read_text())
    return int(found.group(1)) if found else 0


def ssh_audit(stage: RackStage) -> list[str]:
    """Algorithms that ssh-audit rejects, over the tailnet, the only path to the daemon."""
    command = shlex.split(stage.services.tailnet.proxy_command())
    command = [word.replace("%h", "rack").replace("%p", "22") for word in command]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_bridge, args=(listener, command), daemon=True).start()
        port = listener.getsockname()[1]
        shown = subprocess.run(
            [str(Path(sys.executable).with_name("ssh-audit")), "--json", "--skip-rate-test"]
            + ["-p", str(port), "127.0.0.1"],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        ).stdout
    (stage.logs / "ssh-audit.json").write_text(shown)
    report = json.loads(shown)
    return [
        f"{kind} {entry['algorithm']}: {'; '.join(entry['notes']['fail'])}"
        for kind in ("kex", "key", "enc", "mac")
        for entry in report[kind]
        if entry.get("notes", {}).get("fail")
    ]


def _bridge(listener: socket.socket, command: list[str]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            subprocess.Popen(command, stdin=connection.fileno(), stdout=connection.fileno())
