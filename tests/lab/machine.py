"""One machine of the virtual rack: a QEMU process, its disk, and a root shell beside the network.

Everything a test does to a real machine has a verb here: start, power cut, reboot, wipe, pull the
LAN cable, run a command. Commands go through the guest agent's serial port, so a firewall or an
SSH daemon that the test has just broken does not stop it from looking inside.

The machine is found again from its directory alone: any process may pick up where another left.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shlex
import socket
import subprocess
import tarfile
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import agent
from tests.lab.acceleration import acceleration_works, accelerator, qemu_version
from tests.lab.agent import Completed
from tests.lab.images import OPERATOR, Image, LabError, lab_key
from tests.lab.network import port_socket
from tests.lab.process import alive, connect_unix, output_of, stop

BOOT_TIMEOUT_SECONDS = 1200
"""An emulated guest boots in 15 s on an idle machine, and in ten minutes among a dozen others."""

DEAD_GUEST = ("Kernel panic - not syncing", "systemd[1]: Freezing execution")
"""Last words on a console: waiting longer would only hide them."""

COMMAND_TIMEOUT_SECONDS = 900
POLL_SECONDS = 0.25

LAN_IPV4 = "10.77.0"
LAN_IPV6 = "fd77:"
DISK = "disk.qcow2"
MANAGEMENT_HOST = "10.0.2.2"
"""The controller's loopback, as a guest reaches it."""


class MachineError(LabError):
    """A machine did not do what the test needed; the message ends with its last console lines."""


@dataclass(frozen=True)
class Spec:
    """What a machine is made of."""

    name: str
    variant: str
    host_number: int
    memory_mib: int
    cpus: int

    @property
    def lan_ipv4(self) -> str:
        return f"{LAN_IPV4}.{self.host_number}"

    @property
    def lan_ipv6(self) -> str:
        return f"{LAN_IPV6}:{self.host_number}"


class Shell(ABC):
    """Something that runs a test's commands as root."""

    name: str

    @abstractmethod
    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    ) -> Completed:
        """Run a bash command; one that outlives the timeout is killed and ends with 124."""

    def execute(
        self, command: str, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
    ) -> tuple[int, str]:
        """Run a command and return its exit status and standard output, also where it fails."""
        done = self.run(command, timeout_seconds=timeout_seconds)
        return done.returncode, done.stdout

    def succeed(self, command: str, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS) -> str:
        """Run a command that must exit 0; returns its standard output."""
        done = self.run(command, timeout_seconds=timeout_seconds)
        if done.returncode != 0:
            raise MachineError(
                f"{self.name}: {command!r} ended with {done.returncode}, not 0\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout

    def fail(self, command: str, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS) -> str:
        """Run a command that must not exit 0; returns its standard output."""
        done = self.run(command, timeout_seconds=timeout_seconds)
        if done.returncode == 0:
            raise MachineError(f"{self.name}: {command!r} succeeded\n{done.stdout}{done.stderr}")
        return done.stdout


class Machine(Shell):
    """A machine of the lab. Create it through `Lab`, which gives it a directory and a LAN."""

    def __init__(self, directory: Path, spec: Spec, image: Image) -> None:
        self.directory = directory
        self.spec = spec
        self.image = image
        self.name = spec.name
        self._pid_file = directory / "qemu.pid"
        self._disk = directory / DISK
        self._port_file = directory / "ssh.port"
        self._process: subprocess.Popen[bytes] | None = None
        self._console_start = _size(self.console_log)

    # ---- power

    def start(self, *, snapshot: str | None = None) -> None:
        """Power on; returns at once, so that several machines can boot side by side.

        With `snapshot`, resume the running state that `save` kept under that tag.
        """
        if self.running():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._disk.exists():
            self.wipe()
        for attempt in range(3):
            self._launch(snapshot)
            error = self._wait_for_monitor()
            if error is None:
                return
            # Another lab may have taken the port between our asking for it and QEMU binding it.
            if "host forwarding" not in error or attempt == 2:
                raise MachineError(f"QEMU would not start {self.name}: {error}")
            self._port_file.unlink()

    def shutdown(self, timeout_seconds: float = BOOT_TIMEOUT_SECONDS) -> None:
        """Power off in order, as the power button does.

        Raises MachineError when the machine is still up after the timeout.
        """
        if not self.running():
            return
        self.qmp("system_powerdown")
        self._wait(lambda: not self.running(), "power off", timeout_seconds, powered=False)

    @staticmethod
    def power_off_leftover(directory: Path) -> None:
        """Cut the power of a machine of which only the directory is known."""
        pid_file = directory / "qemu.pid"
        stop(pid_file, marker=str(pid_file), kill=True)

    def crash(self) -> None:
        """Cut the power: what the guest had not flushed is lost, what it had flushed is not.

        Under cache=unsafe QEMU still hands the guest's flushes to the controller's page cache,
        which outlives QEMU: only a crash of the controller itself would lose more.
        """
        stop(self._pid_file, marker=self._marker(), kill=True)
        if self._process is not None:
            self._process.wait()

    def reboot(self, timeout_seconds: float = BOOT_TIMEOUT_SECONDS) -> None:
        """Reboot from inside and wait until the new boot takes commands; SSH may be shut by now."""
        before = self.succeed("cat /proc/sys/kernel/random/boot_id")
        # A guest may be down before its agent could answer.
        with contextlib.suppress(MachineError):
            self.execute("systemctl --no-block reboot")
        self.wait_for_boot(timeout_seconds, other_than=before)

    def wipe(self) -> None:
        """Put a fresh disk in: a new machine, with new host keys, and no snapshots."""
        if self.running():
            raise MachineError(f"{self.name} is running: crash or shut it down before wiping it")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._disk.unlink(missing_ok=True)
        self.known_hosts.unlink(missing_ok=True)
        overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw"]
        output_of([*overlay, "-b", self.image.disk, self._disk])

    def save(self, tag: str) -> None:
        """Keep the whole running state (memory and disk) under a tag, until the next wipe."""
        reply = self.qmp("human-monitor-command", {"command-line": f"savevm {tag}"}, 300)
        if reply:
            raise MachineError(f"{self.name} could not be saved as {tag}: {reply.strip()}")

    def restore(self, tag: str) -> None:
        """Go back to what `save` kept, in a new process, and set the guest's clock right."""
        self.crash()
        self.start(snapshot=tag)
        self.wait_for_boot()
        self._set_clock()

    def start_as_copy(self, disk: Path, tag: str) -> None:
        """Resume a saved state of the same kind of machine as a new one, with its own identity.

        The keys are made here: under emulation the guest would need most of a minute for them.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        output_of(["cp", "--sparse=always", "--reflink=auto", disk, self._disk])
        self.start(snapshot=tag)
        self.wait_for_boot()
        self._set_clock()
        archive = io.BytesIO()
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "etc/ssh").mkdir(parents=True)
            output_of(["ssh-keygen", "-A", "-f", name])
            with tarfile.open(fileobj=archive, mode="w") as tar:
                tar.add(Path(name) / "etc/ssh", "etc/ssh", filter=_owned_by_root)
        done = self.run(
            "rm -f /etc/machine-id && systemd-machine-id-setup && rm -f /etc/ssh/ssh_host_* && "
            "tar -x -C / && systemctl restart ssh",
            stdin=archive.getvalue(),
        )
        if done.returncode != 0:
            raise MachineError(f"{self.name} could not take its own identity: {done.stderr}")

    def _set_clock(self) -> None:
        self.succeed(f"date --set=@{time.time():.3f}")

    def running(self) -> bool:
        """Whether the machine has power."""
        if self._process is not None:
            self._process.poll()
        return alive(self._pid_file, marker=self._marker()) is not None

    # ---- waiting

    def wait_for_boot(
        self, timeout_seconds: float = BOOT_TIMEOUT_SECONDS, *, other_than: str = ""
    ) -> None:
        """Wait until the guest takes commands (from a boot other than the given boot id)."""

        def booted() -> bool:
            done = self.run("cat /proc/sys/kernel/random/boot_id", timeout_seconds=60)
            return done.returncode == 0 and done.stdout != other_than

        self._wait(booted, "boot", timeout_seconds)

    def wait_for_ssh(self, timeout_seconds: float = BOOT_TIMEOUT_SECONDS) -> None:
        """Wait until the SSH daemon greets us on the management port."""
        self._wait(self._greets, "answer SSH", timeout_seconds)

    def wait_for_login(self, timeout_seconds: float = BOOT_TIMEOUT_SECONDS) -> None:
        """Wait until a login can succeed: on the management port, or by the tailnet.

        A rack that is a member of its tailnet may have closed SSH to everything else.
        """

        def taken() -> bool:
            with contextlib.suppress(OSError):
                if self._greets():
                    return True
            member = "systemctl is-active --quiet ssh.service && tailscale status --peers=false"
            return self.run(member, timeout_seconds=60).returncode == 0

        self._wait(taken, "take a login", timeout_seconds)

    def _greets(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.ssh_port), 5) as connection:
            connection.settimeout(20)
            return connection.recv(4) == b"SSH-"

    def wait_for_unit(self, unit: str, timeout_seconds: float = BOOT_TIMEOUT_SECONDS) -> None:
        """Wait until a systemd unit is active.

        Raises MachineError at once when it has failed, with its status and journal.
        """
        quoted = shlex.quote(unit)

        def active() -> bool:
            state = self.succeed(f"systemctl show --value -p ActiveState {quoted}").strip()
            if state == "failed":
                _, status = self.execute(f"systemctl status -n 40 --no-pager -l {quoted}")
                raise _Hopeless(f"{unit} failed on {self.name}:\n{status}")
            return state == "active"

        self._wait(active, f"have {unit} active", timeout_seconds)

    def start_unit(self, unit: str, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS) -> None:
        """Start a systemd unit and wait until it is active or, a oneshot, has ended well.

        Raises MachineError with the last of the unit's journal where it has not.
        """
        quoted = shlex.quote(unit)
        done = self.run(f"systemctl start {quoted}", timeout_seconds=timeout_seconds)
        if done.returncode != 0:
            journal = self.execute(f"journalctl --output=cat --no-pager -n 20 -u {quoted}")[1]
            raise MachineError(f"{self.name}: {unit} did not start\n{journal}")

    def wait_until_succeeds(
        self, command: str, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
    ) -> str:
        """Repeat a command until it exits 0; returns its output."""
        output = ""

        def succeeded() -> bool:
            nonlocal output
            done = self.run(command, timeout_seconds=timeout_seconds)
            output = done.stdout
            return done.returncode == 0

        self._wait(succeeded, f"succeed in {command!r}", timeout_seconds)
        return output

    def wait_until_fails(
        self, command: str, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
    ) -> None:
        """Repeat a command until it exits other than 0."""
        self._wait(
            lambda: self.run(command, timeout_seconds=timeout_seconds).returncode != 0,
            f"fail in {command!r}",
            timeout_seconds,
        )

    # ---- commands, as root, beside the network

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    ) -> Completed:
        """Run a bash command as root through the guest agent.

        The command has ended when all that holds its output has: give what it leaves running in
        the background a unit of its own (`systemd-run`), or other places to write to.

        Raises MachineError when the agent does not answer (the guest is down or still booting).
        A command that outlives the timeout is killed in the guest and ends with 124.
        """
        try:
            return agent.run(self.directory, command, stdin=stdin, timeout_seconds=timeout_seconds)
        except (OSError, ValueError) as error:
            raise MachineError(
                f"{self.name} does not take commands ({error}); its console: {self.console_log}"
            ) from error

    def copy_to(self, source: Path, target: str, mode: str = "0644") -> None:
        """Copy a file of at most some tens of MiB into the guest, owned by root."""
        quoted = shlex.quote(target)
        done = self.run(f"install -D -m {mode} /dev/stdin {quoted}", stdin=source.read_bytes())
        if done.returncode != 0:
            raise MachineError(f"{self.name}: could not write {target}: {done.stderr}")

    def copy_from(self, source: str, target: Path) -> None:
        """Copy a file of at most some MiB out of the guest."""
        target.write_bytes(base64.b64decode(self.succeed(f"base64 {shlex.quote(source)}")))

    def journal(self) -> str:
        """The guest's journal of this boot."""
        return self.execute("journalctl --boot --no-pager --output=short-monotonic")[1]

    # ---- cables

    def block(self) -> None:
        """Pull the LAN cable; the management card stays."""
        self.qmp("set_link", {"name": "lan", "up": False})

    def unblock(self) -> None:
        """Put the LAN cable back."""
        self.qmp("set_link", {"name": "lan", "up": True})

    # ---- facts

    def has_disk(self) -> bool:
        """Whether the machine has a disk with a past."""
        return self._disk.exists()

    def has_port(self) -> bool:
        """Whether the machine has been started since the lab was made."""
        return self._port_file.exists()

    @property
    def ssh_port(self) -> int:
        """The port on the controller's 127.0.0.1 that leads to the guest's port 22."""
        return int(self._port_file.read_text())

    def ssh_settings(self) -> str:
        """What an SSH configuration says of this machine, as `NAME-lan`."""
        return (
            f"Host {self.name}-lan\n"
            f"    HostName 127.0.0.1\n"
            f"    Port {self.ssh_port}\n"
            f"    User {OPERATOR}\n"
            f"    IdentityFile {lab_key()}\n"
            f"    IdentitiesOnly yes\n"
            f"    UserKnownHostsFile {self.known_hosts}\n"
            f"    StrictHostKeyChecking accept-new\n\n"
        )

    @property
    def known_hosts(self) -> Path:
        """The host keys SSH clients learned from this machine; gone when it is wiped."""
        return self.directory / "known_hosts"

    @property
    def console_log(self) -> Path:
        """Everything the guest wrote to its serial console, over all its boots."""
        return self.directory / "console.log"

    def qmp(
        self, command: str, arguments: dict[str, Any] | None = None, timeout_seconds: float = 60
    ) -> Any:
        """Send QEMU's monitor a command and return what it answers."""
        with connect_unix(self.directory, "qmp.sock") as connection:
            connection.settimeout(timeout_seconds)
            stream = connection.makefile("rw")
            stream.readline()
            for name, values in (("qmp_capabilities", {}), (command, arguments or {})):
                stream.write(json.dumps({"execute": name, "arguments": values}) + "\n")
                stream.flush()
                reply: dict[str, Any] = {}
                while not {"return", "error"} & set(reply):
                    reply = json.loads(stream.readline())
                if "error" in reply:
                    raise MachineError(f"{self.name}: QEMU {command}: {reply['error']['desc']}")
        return reply["return"]

    # ---- inside

    def _launch(self, snapshot: str | None) -> None:
        if not self._port_file.exists():
            self._port_file.write_text(str(free_port()))
        for stale in ("qmp.sock", "agent.sock"):
            (self.directory / stale).unlink(missing_ok=True)
        self._console_start = _size(self.console_log)
        command = self.command(self.ssh_port)
        if snapshot is not None:
            command += ["-loadvm", snapshot]
        with (self.directory / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Relative socket paths stay short however deep the lab's directory lies.
                cwd=self.directory,
                start_new_session=True,
            )
        self._pid_file.write_text(str(self._process.pid))

    def command(self, ssh_port: int) -> list[str]:
        """QEMU's command line; snapshots can only be resumed with the devices they were made of."""
        spec = self.spec
        kernel_arguments = [
            "root=/dev/vda rw rootflags=noinit_itable console=ttyS0 net.ifnames=0 mitigations=off",
            f"lab.lan={spec.host_number}",
            "systemd.default_timeout_start_sec=300 systemd.default_device_timeout_sec=300",
        ]
        forward = f"hostfwd=tcp:127.0.0.1:{ssh_port}-:22"
        # The switch may start later than the machine, or again: the card keeps trying.
        reconnect = "reconnect-ms=500" if qemu_version() >= (9, 2) else "reconnect=1"
        lan = f"{reconnect},addr.type=unix,addr.path=../{port_socket(self.name)}"
        mac = f"52:54:00:77:{{card:02x}}:{spec.host_number:02x}"
        return [
            "qemu-system-x86_64",
            *("-name", self.name, "-pidfile", self._marker()),
            *("-machine", "q35,usb=off,vmport=off"),
            *accelerator(acceleration_works(self.image)),
            *("-smp", str(spec.cpus), "-m", f"{spec.memory_mib}M"),
            *("-nodefaults", "-display", "none", "-vga", "none"),
            *("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd)),
            *("-append", " ".join(kernel_arguments)),
            *("-drive", f"file={self._disk.name},if=none,id=root,cache=unsafe,discard=unmap"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-netdev", f"user,id=management,ipv6=off,{forward}"),
            *("-device", f"virtio-net-pci,netdev=management,romfile=,mac={mac.format(card=1)}"),
            *("-netdev", f"stream,id=lan,server=off,{lan}"),
            *("-device", f"virtio-net-pci,netdev=lan,romfile=,mac={mac.format(card=2)}"),
            *("-object", "rng-random,id=rng,filename=/dev/urandom"),
            *("-device", "virtio-rng-pci,rng=rng"),
            # Tells a resumed guest that it is a copy, so that its kernel reseeds its randomness.
            *("-device", "vmgenid,guid=auto"),
            *("-device", "virtio-serial-pci"),
            *("-chardev", "socket,id=agent,path=agent.sock,server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
            *("-chardev", "file,id=console,path=console.log,append=on"),
            *("-serial", "chardev:console"),
            *("-qmp", "unix:qmp.sock,server=on,wait=off"),
        ]

    def _marker(self) -> str:
        """What tells this machine's QEMU from every other process: the path of its pid file."""
        return str(self._pid_file)

    def _wait_for_monitor(self, timeout_seconds: float = 120) -> str | None:
        """Wait until QEMU takes commands; returns QEMU's words when it ended instead."""
        assert self._process is not None
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return (self.directory / "qemu.log").read_text(errors="replace").strip()
            try:
                self.qmp("query-status")
                return None
            except (OSError, ValueError):
                time.sleep(0.05)
        return "its monitor does not answer"

    def _wait(
        self, done: Callable[[], bool], what: str, timeout_seconds: float, *, powered: bool = True
    ) -> None:
        """Repeat a check until it holds; a guest that does not answer yet counts as not yet.

        Raises MachineError after the timeout, and at once when a `powered` machine lost its power.
        """
        deadline, last = time.monotonic() + timeout_seconds, ""
        while True:
            try:
                if done():
                    return
            except _Hopeless as error:
                raise MachineError(str(error)) from None
            except (OSError, ValueError, LabError) as error:
                last = f" ({error})"
            dead = next((words for words in DEAD_GUEST if words in self._since_start()), None)
            if powered and dead is not None:
                raise MachineError(f"{self.name} died ({dead}){self._console()}")
            if powered and not self.running():
                raise MachineError(
                    f"{self.name} lost power before it could {what}{self._console()}"
                )
            if time.monotonic() > deadline:
                raise MachineError(
                    f"{self.name} did not {what} within {timeout_seconds:.0f} s{last}"
                    f"{self._console()}"
                )
            time.sleep(POLL_SECONDS)

    def _since_start(self) -> str:
        """What the console said since this process gave the machine its power."""
        if not self.console_log.exists():
            return ""
        with self.console_log.open("rb") as console:
            console.seek(self._console_start)
            return console.read().decode(errors="replace")

    def _console(self, lines: int = 15) -> str:
        text = ""
        if self.console_log.exists():
            text = self.console_log.read_text(errors="replace")
        tail = "\n".join(text.splitlines()[-lines:])
        return f"; the last lines of {self.console_log}:\n{tail}"


class _Hopeless(Exception):
    """A wait that cannot end well."""


def base_of(directory: Path) -> Path | None:
    """The image directory that a machine's disk stands on, or None where it has no disk yet.

    Images change with the recipe; a disk stays with the image, kernel included, it was made from.
    """
    disk = directory / DISK
    if not disk.exists():
        return None
    info = json.loads(output_of(["qemu-img", "info", "--force-share", "--output=json", disk]))
    return Path(info["full-backing-filename"]).parent


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    return member


def free_port() -> int:
    """A port on 127.0.0.1 that was free when we asked."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
