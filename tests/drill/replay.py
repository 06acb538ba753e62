"""A fast target: a real sshd on the controller that answers as a recorded host did.

An emulated guest takes a second for what a real one does in milliseconds, so the time of a run on
it says nothing about the controller's own. Here the connection, the channels and the round trips
are real, and each command's answer is looked up; what a host would need to find the answer is the
one thing left out.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from tests.drill.transcript import Answer
from tests.lab.artefacts import store
from tests.lab.artefacts.debian import Suite
from tests.lab.images import OPERATOR
from tests.lab.process import LabError

UNIT = "sudo -n true"
"""The command whose round trip is the unit of the bench; every target answers it."""

_UNKNOWN = 99
_LOOK_UP = """\
#!/bin/sh
cd {answers} || exit {unknown}
key=$(printf %s "$SSH_ORIGINAL_COMMAND" | sha256sum)
if ! cd "${{key%% *}}" 2>/dev/null; then
    printf '%s\\0' "$SSH_ORIGINAL_COMMAND" >> {asked}
    echo "this command was never recorded: $SSH_ORIGINAL_COMMAND" >&2
    exit {unknown}
fi
test -s stderr && cat stderr >&2
test -s stdout && cat stdout
read -r status < status
exit "$status"
"""


class FastTarget:
    """An sshd under ``folder`` on a port of its own, for the time of a `with` block.

    It runs as any user, listens on the loopback only, takes one key that lives in its folder,
    and runs nothing but the look-up.
    """

    def __init__(self, folder: Path, answers: list[Answer]) -> None:
        self.folder = folder.absolute()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._asked = self.folder / "unknown"
        self._keep(answers)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]

    @property
    def ssh_config(self) -> Path:
        """What makes `rack` and `rack-lan` lead here."""
        return self.folder / "ssh_config"

    @property
    def look_up(self) -> Path:
        """The program that answers ``SSH_ORIGINAL_COMMAND``."""
        return self.folder / "look-up"

    def unknown(self) -> list[str]:
        """Commands that were asked and never recorded."""
        return self._asked.read_text().split("\0")[:-1] if self._asked.exists() else []

    def lab_file(self, original: Path) -> Path:
        """A copy of a lab's `lab.json` whose SSH configuration is this target's."""
        path = self.folder / "lab.json"
        facts = json.loads(original.read_text()) | {"ssh_config": str(self.ssh_config)}
        path.write_text(json.dumps(facts, indent=2) + "\n")
        return path

    def __enter__(self) -> FastTarget:
        command = ["sh", str(self._configure(*a_sshd()))]
        isolated = ["unshare", "--user", "--map-root-user", "--mount", *command]
        log = self.folder / "sshd.log"
        with log.open("wb") as sink:
            self._process = subprocess.Popen(isolated, stderr=sink)
        deadline = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < deadline:
            if "Server listening" in log.read_text():
                return self
            time.sleep(0.01)
        self._process.terminate()
        raise LabError(f"sshd did not start on the controller: {log.read_text().strip()}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)

    def _keep(self, answers: list[Answer]) -> None:
        root = self.folder / "answers"
        # A question asked twice gets the answer it got first: in a run that changes nothing the
        # host is the same both times.
        for answer in [*reversed(answers), Answer(UNIT, "", "", 0)]:
            place = root / hashlib.sha256(answer.command.encode()).hexdigest()
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            (place / "stdout").write_text(answer.stdout)
            (place / "stderr").write_text(answer.stderr)
            (place / "status").write_text(f"{answer.status}\n")
        paths = {"answers": root, "asked": self._asked}
        quoted = {name: shlex.quote(str(path)) for name, path in paths.items()}
        self.look_up.write_text(_LOOK_UP.format(unknown=_UNKNOWN, **quoted))

    def _configure(self, sshd: Path, options: list[str]) -> Path:
        """Write keys and configuration; returns the script that becomes sshd."""
        for name in ("host-key", "client-key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", name],
                cwd=self.folder,
                check=True,
            )
        directives = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f'HostKey "{self.folder}/host-key"',
            f'AuthorizedKeysFile "{self.folder}/client-key.pub"',
            "AuthenticationMethods publickey",
            "StrictModes no",
            "UsePAM no",
            "PidFile none",
            f"ForceCommand exec sh {shlex.quote(str(self.look_up))}",
            *options,
        ]
        (self.folder / "sshd_config").write_text("".join(f"{line}\n" for line in directives))
        host_key = (self.folder / "host-key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        self.ssh_config.write_text(
            "Host rack rack-lan\n"
            "    HostName 127.0.0.1\n"
            f"    Port {self.port}\n"
            f"    User {OPERATOR}\n"
            f"    IdentityFile {self.folder}/client-key\n"
            "    IdentitiesOnly yes\n"
            f"    UserKnownHostsFile {self.folder}/known_hosts\n"
        )
        # The rack's operator is no user of the controller. In a user namespace of its own sshd
        # sees one, and is not root even when the bench is.
        (self.folder / "passwd").write_text(f"{OPERATOR}:x:1000:1000::/:/bin/sh\n")
        script = self.folder / "start"
        script.write_text(
            "set -e\n"
            f"mount --bind {shlex.quote(str(self.folder / 'passwd'))} /etc/passwd\n"
            f"export LD_LIBRARY_PATH={shlex.quote(str(sshd.parent))}\n"
            "exec unshare --user --map-user=1000 --map-group=1000"
            f" {shlex.quote(str(sshd))} -D -e -f {shlex.quote(str(self.folder / 'sshd_config'))}\n"
        )
        return script


def a_sshd() -> tuple[Path, list[str]]:
    """The sshd to run, and what its configuration must say to have it find its own parts.

    One that is not installed is fetched and unpacked: installing it would open a port.
    """
    installed = Path("/usr/sbin/sshd")
    if installed.exists():
        return installed, []
    folder = store.stored("sshd", {"suite": _codename()}, _fetch).directory
    # Since OpenSSH 9.8 and 10.0 these are programs of their own.
    parts = {"SshdSessionPath": folder / "sshd-session", "SshdAuthPath": folder / "sshd-auth"}
    return folder / "sshd", [f'{name} "{path}"' for name, path in parts.items() if path.exists()]


def _codename() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"]


def _fetch(target: Path) -> str:
    suite = Suite(_codename(), target / "apt")
    tree = suite.unpack("openssh-server")
    version = suite.version("openssh-server")
    for pattern in ("usr/sbin/sshd", "usr/lib/openssh/sshd-*", "**/libwrap.so.0"):
        for path in tree.glob(pattern):
            shutil.copy(path, target)
    shutil.rmtree(target / "apt")
    return version
