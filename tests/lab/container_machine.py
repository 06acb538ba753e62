"""A machine of the lab without emulation: the same image, booted by systemd in namespaces.

What is too slow for an emulated machine (a real vLLM, for one) runs here at the controller's own
speed, on the controller's kernel. Everything else is as on the lab's other machines: the image, the
login, the controller at 10.0.2.2, a port on 127.0.0.1 that leads to SSH, and a root shell beside
the network. The machine needs root, and neither its processes nor its mounts nor its network
outlive it: they belong to namespaces and to one cgroup, which is killed as a whole.

It is no boundary: root in there is root of the controller. Nor does it have all that a kernel of
its own would give it. `NOT_ENFORCED` says what a site sets in there and the kernel does not do; for
this the machine has stand-ins (`container_layer/`, a layer of its disk below what the site writes):

- /proc/sys is a copy, but for the network and the machine's names, which are its own for real.
- /sys is read-only, but for the network's devices. udev runs, for the units of network cards.
- `auditctl` keeps its rules and lists them; auditd and AppArmor run empty.
- Time synchronisation runs and may not set the clock. Nothing in there may.

Every other directive of systemd's sandbox that was tried held; `test_container_live.py` tries them.
Limits by cgroup controllers that the controller's own cgroup v1 holds (memory, CPU, pids, on a
hybrid machine) are taken and not enforced: `controllers` tells which there are.

`python -m tests.lab.container_machine DIRECTORY DISK PORT NUMBER [INTERFACE=NAMESPACE ...]` keeps a
machine powered through its reboots; `ContainerMachine` is the client.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.lab.agent import ENVIRONMENT, Completed
from tests.lab.images import Image
from tests.lab.machine import (
    BOOT_TIMEOUT_SECONDS,
    COMMAND_TIMEOUT_SECONDS,
    Machine,
    MachineError,
    Spec,
    free_port,
)
from tests.lab.process import LabError, connect_unix, output_of

NOT_ENFORCED = (
    "Sysctls outside net are written and read back; the kernel does not follow them.",
    "Audit rules are kept and listed; no event is recorded.",
    "AppArmor's service runs; no program is confined by a profile.",
    "The clock is the controller's; time synchronisation cannot set it.",
    "The kernel is the controller's: no module is loaded, and its log is not in the journal.",
    "Limits of memory, CPU and tasks hold only where the controller has them in cgroup v2.",
    "A power cut kills every process; what was written and not flushed is not lost.",
    "An engine's sampler is not compiled, which would take 11 s of each start on a CPU.",
)
"""What a site sets up in a container machine, or goes through there, and does not prove there."""

REPOSITORY = Path(__file__).parents[2]
GUEST_ADDRESS = "10.0.2.15"
"""What the network process gives its only guest by DHCP."""

START_TIMEOUT_SECONDS = 30
KILLED = 128 + signal.SIGKILL
CGROUP_TIMEOUT_SECONDS = 30
INIT_PID = "init.pid"
SUPERVISOR_LOG = "supervisor.log"
NETWORK_SOCKET = "network.sock"
LAYER = Path(__file__).with_name("container_layer")
DIVERTED = ("/usr/sbin/auditctl", "/sbin/auditctl")
"""Files of packages that give way to ours, by the names that Debian 13 and 12 ship them under."""
LAN_INTERFACE = "eth1"
"""The card on the LAN."""

# The first process must be in its group before its cgroup namespace is made, and alone in there:
# a group with processes of two kinds can hand no controller on.
_JOIN = """
read -r pid rest < /proc/self/stat
echo "$pid"
echo 0 > "$0/cgroup.procs"
exec unshare --cgroup sh -euc "$1" "$pid" "$2" "$3"
"""

_BOOT = """
mkdir -p lower work root sysctls lab/var/lib/dpkg
exec 3> init.pid 4>> console.log
mount -o loop,ro "$1" lower
cat lower/var/lib/dpkg/diversions diversions > lab/var/lib/dpkg/diversions
# Volatile: a flush costs nothing, and what was written is kept by the controller's kernel. The mark
# that a disk was used so is for those who fear that kernel's end.
rm -rf work/work/incompat
mount -t overlay -o "lowerdir=$2lab:lower,upperdir=upper,workdir=work,volatile" overlay root
mount -t proc proc root/proc
mount --bind root/proc/sys root/proc/sys
mount -o remount,bind,ro root/proc/sys
mount --bind root/proc/sys/net root/proc/sys/net
mount -o remount,bind,rw root/proc/sys/net
mount -t tmpfs -o mode=0755,nosuid,nodev,noexec tmpfs sysctls
for tree in kernel fs dev vm; do
    # Some can only be written, and some belong to hardware that is not there.
    cp -r --preserve=mode "root/proc/sys/$tree" sysctls/ 2>/dev/null || :
done
for own in hostname domainname random; do
    mount --bind "root/proc/sys/kernel/$own" "sysctls/kernel/$own"
done
for name in hostname domainname; do mount -o remount,bind,rw "sysctls/kernel/$name"; done
for tree in kernel fs dev vm; do mount --rbind "sysctls/$tree" "root/proc/sys/$tree"; done
mount --bind cmdline root/proc/cmdline
if [ -e root/proc/sysrq-trigger ]; then mount --bind /dev/null root/proc/sysrq-trigger; fi
cat /proc/sys/kernel/random/uuid > boot_id
mount --bind boot_id root/proc/sys/kernel/random/boot_id
mount -t sysfs sysfs root/sys
for part in root/sys/*; do
    mount --bind "$part" "$part"
    mount -o remount,bind,ro "$part"
done
mount --bind root/sys/devices/virtual/net root/sys/devices/virtual/net
mount -o remount,bind,rw root/sys/devices/virtual/net
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs root/run
# Where udev's socket is not there yet, systemd takes the machine for one without devices.
mkdir root/run/udev
touch root/run/udev/control
mount -t cgroup2 cgroup2 root/sys/fs/cgroup
mount -t bpf bpf root/sys/fs/bpf
mount -t tmpfs -o mode=0755,nosuid tmpfs root/dev
for device in null zero full random urandom tty; do
    touch "root/dev/$device"
    mount --bind "/dev/$device" "root/dev/$device"
done
if [ -e /dev/net/tun ]; then
    mkdir root/dev/net
    touch root/dev/net/tun
    mount --bind /dev/net/tun root/dev/net/tun
fi
mkdir root/dev/pts
mount -t devpts -o newinstance,nosuid,noexec,gid=5,mode=0620,ptmxmode=0666 devpts root/dev/pts
ln -s pts/ptmx root/dev/ptmx
until [ -e root/sys/class/net/eth0 ]; do sleep 0.01; done
cd root
pivot_root . .
umount -l .
mount --make-rshared /
echo "$0" >&3
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    setpriv --bounding-set=-sys_time /sbin/init </dev/null >&4 2>&4 3>&- 4>&-
"""

_NAMESPACES = ("--pid", "--mount", "--net", "--uts", "--ipc")


class ContainerMachine(Machine):
    """A machine that is a systemd container, without a kernel of its own.

    Its disk is a folder: what the machine wrote lies below `upper`, its journal included.
    """

    def __init__(
        self, directory: Path, spec: Spec, image: Image, cables: Mapping[str, str] | None = None
    ) -> None:
        """``cables``: from an interface of the machine, to the network namespace of the controller
        whose bridge ``cable`` it leads to; the namespace must be there before the machine starts.
        """
        super().__init__(directory.absolute(), spec, image)
        self.cables = dict(cables or {})
        self._pid_file = self.directory / "supervisor.pid"
        self._disk = self.directory / "upper"

    def start(self, *, snapshot: str | None = None) -> None:
        """Power on; returns once the machine's first process runs.

        Raises MachineError with the supervisor's words when it does not.
        """
        if snapshot is not None:
            raise MachineError(f"{self.name} is a container: it cannot resume {snapshot}")
        if os.geteuid() != 0:
            raise MachineError(f"{self.name} is a container: start it as root")
        if self.running():
            return
        self.power_off_leftover(self.directory)
        if not self.has_disk():
            self.wipe()
        if not self.has_port():
            self._port_file.write_text(str(free_port()))
        for program in ("unshare", "nsenter", "slirp4netns"):
            if shutil.which(program) is None:
                raise LabError(f"{program} is not installed here: run tests/lab/setup")
        log_path = self.directory / SUPERVISOR_LOG
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.lab.container_machine"),
                    *(self._marker(), str(self.image.disk), str(self.ssh_port)),
                    str(self.spec.host_number),
                    *(f"{interface}={space}" for interface, space in self.cables.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                start_new_session=True,
            )
        self._pid_file.write_text(str(self._process.pid))
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._init_pid():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.crash()
                raise MachineError(f"{self.name} did not start: {log_path.read_text().strip()}")
            time.sleep(0.02)

    def wait_for_boot(
        self, timeout_seconds: float = BOOT_TIMEOUT_SECONDS, *, other_than: str = ""
    ) -> None:
        """Wait until the boot has ended, well or with a unit that failed."""
        super().wait_for_boot(timeout_seconds, other_than=other_than)
        self.wait_until_succeeds(
            "systemctl is-system-running --wait | grep -E 'running|degraded'"
            # An address that may be another machine's yet cannot be used. On a bridge that has
            # nothing on it, it stays so.
            " && ! ip -6 -oneline address show tentative | while read -r _ link _; do"
            ' grep --line-regexp 1 "/sys/class/net/$link/carrier"; done | grep --quiet 1',
            timeout_seconds,
        )

    def shutdown(self, timeout_seconds: float = BOOT_TIMEOUT_SECONDS) -> None:
        """Power off in order.

        Raises MachineError when the machine is still up after the timeout.
        """
        if not self.running():
            return
        with contextlib.suppress(MachineError):
            self.execute("systemctl --no-block poweroff")
        self._wait(lambda: not self.running(), "power off", timeout_seconds, powered=False)
        self.crash()

    def crash(self) -> None:
        """Kill everything that runs in there at once, as a power cut would; the disk stays.

        What the machine wrote and never flushed is not lost: the controller's kernel has it.
        """
        self.power_off_leftover(self.directory)
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def power_off(self) -> None:
        """Cut the power, for those who end with that word; nothing but files is left."""
        self.crash()

    @staticmethod
    def power_off_leftover(directory: Path) -> None:
        """End each process of a machine of which only the directory is known."""
        group = _group(directory.absolute())
        if group.exists():
            _end(group)
        for name in ("supervisor.pid", INIT_PID):
            (directory / name).unlink(missing_ok=True)

    def wipe(self) -> None:
        """Give the machine an empty disk: a new one, with new host keys."""
        if self.running():
            raise MachineError(f"{self.name} is running: crash or shut it down before wiping it")
        self._stack_file.unlink(missing_ok=True)
        # A minute's work on a disk with a real engine's packages: what is thrown away is removed
        # while the next one boots.
        gone = self.directory / f"gone-{time.monotonic_ns()}"
        gone.mkdir(parents=True)
        for folder in (self._disk, self.directory / "work", self._layers):
            if folder.exists():
                folder.rename(gone / folder.name)
        subprocess.Popen(["nice", "rm", "-rf", "--", gone], start_new_session=True)
        self.known_hosts.unlink(missing_ok=True)
        self._disk.mkdir(parents=True)

    def save(self, tag: str) -> None:
        """Keep the disk under a tag, until the next wipe; one that runs is rebooted for it.

        Raises MachineError when the tag is taken or does not do as a folder's name.
        """
        layer = self._layers / tag
        if not re.fullmatch("[a-z0-9-]+", tag) or layer.exists():
            raise MachineError(f"{self.name} cannot be saved as {tag!r}: choose another tag")
        was_running = self.running()
        self.shutdown()
        self._layers.mkdir(exist_ok=True)
        self._disk.rename(layer)
        self._disk.mkdir()
        self._stack_file.write_text("".join(f"{each}\n" for each in [*self._stack(), tag]))
        if was_running:
            self.start()
            self.wait_for_boot()

    def restore(self, tag: str) -> None:
        """Cut the power, go back to the disk that `save` kept, and boot.

        Raises MachineError when no such disk was kept, or only on a way that was left since.
        """
        stack = self._stack()
        if tag not in stack:
            raise MachineError(f"{self.name} has no disk saved as {tag!r} to go back to")
        self.crash()
        shutil.rmtree(self._disk)
        self._disk.mkdir()
        kept = stack[: stack.index(tag) + 1]
        for left in set(stack) - set(kept):
            shutil.rmtree(self._layers / left)
        self._stack_file.write_text("".join(f"{each}\n" for each in kept))
        self.start()
        self.wait_for_boot()

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    ) -> Completed:
        """Run a bash command as root in the machine's namespaces; see `Machine.run`."""
        pid = self._init_pid()
        if not pid:
            raise MachineError(f"{self.name} does not take commands: it has no power")
        limit = ("timeout", "--kill-after=5", f"{timeout_seconds:.0f}")
        done = subprocess.run(
            # It reads its own capabilities in /proc, by a number that inside is another process's.
            ["setpriv", "--bounding-set=-sys_time"]
            # A nsenter that has forked stops when its child is stopped, as a shutdown does with all
            # processes; and the shutdown would wait for it.
            + ["nsenter", f"--target={pid}", "--all", "--root", "--wd", "--no-fork"]
            + ["env", "-i", *ENVIRONMENT, *limit, "/bin/bash", "-c", command],
            input=stdin,
            capture_output=True,
            check=False,
        )
        errors = done.stderr.decode(errors="replace")
        killed = done.returncode == KILLED and not _lives(pid)
        if killed or done.returncode < 0 or (done.returncode and errors.startswith("nsenter:")):
            raise MachineError(f"{self.name} lost power while it ran {command!r}; {errors}")
        return Completed(done.returncode, done.stdout.decode(errors="replace"), errors)

    def qmp(
        self, command: str, arguments: dict[str, object] | None = None, timeout_seconds: float = 60
    ) -> None:
        """Refuse: there is no QEMU to ask."""
        raise MachineError(f"{self.name} is a container: it has no {command}")

    def block(self) -> None:
        """Pull the LAN cable, until `unblock` or the next boot."""
        self._set_lan("down")

    def unblock(self) -> None:
        """Put the LAN cable back."""
        self._set_lan("up")

    def _set_lan(self, state: str) -> None:
        there = ["ip", "-netns", self.cables[LAN_INTERFACE], "link"]
        output_of([*there, "set", _far_end(self.directory, LAN_INTERFACE), state])

    @property
    def disk(self) -> Path:
        """The folder that holds what the machine wrote, from /; for while it has no power."""
        return self._disk

    def controllers(self) -> set[str]:
        """The cgroup controllers that limits in there can be enforced with."""
        return set(self.succeed("cat /sys/fs/cgroup/cgroup.controllers").split())

    def _init_pid(self) -> int:
        """The machine's first process as the controller sees it, and 0 when it has no power."""
        try:
            return int((self.directory / INIT_PID).read_text())
        except (OSError, ValueError):
            return 0

    def _marker(self) -> str:
        return str(self.directory)

    @property
    def _layers(self) -> Path:
        return self.directory / "layers"

    @property
    def _stack_file(self) -> Path:
        return self.directory / "stack"

    def _stack(self) -> list[str]:
        """Tags of the saved disks that the present one stands on, the oldest first."""
        return self._stack_file.read_text().split() if self._stack_file.exists() else []


def why_not_native() -> str:
    """Why this controller cannot run a container machine; empty where it can."""
    if os.geteuid() != 0:
        return "this is not root, and a container machine needs it"
    try:
        _group(Path("/"))
    except LabError as error:
        return str(error)
    return ""


def supervise(
    directory: Path, disk: Path, port: int, number: int, cables: Mapping[str, str]
) -> None:
    """Boot a machine, and boot it again for as long as it asks for that; its power is ours.

    Raises LabError when a part of it does not start.
    """
    group = _group(directory)
    for name in ("machine", "supervisor"):
        (group / name).mkdir(parents=True, exist_ok=True)
    (group / "supervisor" / "cgroup.procs").write_text("0")
    for controller in (group / "cgroup.controllers").read_text().split():
        (group / "cgroup.subtree_control").write_text(f"+{controller}")
    _write_layer(directory / "lab")
    diverted = "".join(f"{path}\n{path}.distrib\n:\n" for path in DIVERTED)
    (directory / "diversions").write_text(diverted)
    # As QEMU's machines have it: the image's `lab-lan-address` reads it.
    (directory / "cmdline").write_text(f"lab.lan={number}\n")
    stack = (directory / "stack").read_text().split() if (directory / "stack").exists() else []
    layers = "".join(f"layers/{tag}:" for tag in reversed(stack))
    boot = [str(group / "machine"), _BOOT, str(disk), layers]
    # To reboot() in a PID namespace is to have its first process killed by this very signal.
    while _one_boot(directory, port, cables, boot) == -signal.SIGHUP:
        pass


def _write_layer(layer: Path) -> None:
    """Write the layer of the disk that holds the stand-ins, which belongs to root there."""
    shutil.rmtree(layer, ignore_errors=True)
    shutil.copytree(LAYER, layer)
    for path in (layer, *layer.rglob("*")):
        os.chown(path, 0, 0)
        path.chmod(0o755 if path.is_dir() or "sbin" in path.parts else 0o644)
    (layer / "etc").mkdir(mode=0o755)
    (layer / "etc" / "fstab").write_text("# The root of a container is mounted already.\n")


def _one_boot(directory: Path, port: int, cables: Mapping[str, str], boot: Sequence[str]) -> int:
    """Run a machine from power on to power off; returns how its first process ended."""
    machine = subprocess.Popen(
        ["unshare", "--fork", "--kill-child", *_NAMESPACES, "--propagation", "private"]
        + ["sh", "-euc", _JOIN, *boot],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd=directory,
    )
    assert machine.stdout is not None
    with machine:
        if not (pid := machine.stdout.readline().strip()):
            raise LabError("its namespaces could not be made")
        try:
            for interface, namespace in cables.items():
                _plug(directory, pid, interface, namespace)
            with _network(directory, pid, port):
                status = machine.wait()
        finally:
            # Without its network it would wait for ever, and so would we.
            machine.kill()
        (directory / INIT_PID).unlink(missing_ok=True)
    return status


def _far_end(directory: Path, interface: str) -> str:
    """The end of a machine's cable that is on the bridge: at most 15 characters, one a cable."""
    return f"lab{hashlib.sha256(f'{directory}/{interface}'.encode()).hexdigest()[:12]}"


def _plug(directory: Path, pid: str, interface: str, namespace: str) -> None:
    """Lay the cable from an interface of the machine to the bridge in a namespace."""
    there = ["ip", "-netns", namespace, "link"]
    far = _far_end(directory, interface)
    # Where the power was cut a moment ago, the kernel may not have taken away the old one yet.
    subprocess.run([*there, "delete", far], check=False, capture_output=True)
    ends = [interface, "netns", pid, "type", "veth", "peer", "name", far, "netns", namespace]
    output_of(["ip", "link", "add", *ends])
    output_of([*there, "set", far, "master", "cable", "up"])


@contextlib.contextmanager
def _network(directory: Path, pid: str, port: int) -> Iterator[None]:
    """The same network beside the machine that QEMU gives its guests, and a way to its SSH."""
    socket = directory / NETWORK_SOCKET
    socket.unlink(missing_ok=True)
    command = ["slirp4netns", "--mtu=65520", f"--api-socket={socket.name}", pid, "eth0"]
    network = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=directory)
    try:
        while True:
            # Its socket is there a moment before it listens.
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                connection = connect_unix(directory, socket.name)
                break
            if network.poll() is not None:
                raise LabError("its network could not be made")
            time.sleep(0.01)
        forward = {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": port}
        forward |= {"guest_addr": GUEST_ADDRESS, "guest_port": 22}
        with connection:
            request = {"execute": "add_hostfwd", "arguments": forward}
            connection.sendall(json.dumps(request).encode())
            connection.shutdown(1)
            reply = json.loads(connection.makefile().read())
        if "error" in reply:
            raise LabError(f"port {port} could not be forwarded: {reply['error']['desc']}")
        yield
    finally:
        network.terminate()
        network.wait()


def _group(directory: Path) -> Path:
    """The cgroup of the machine in a directory, below the controller's cgroup2 mount."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if kind == "cgroup2":
            name = hashlib.sha256(str(directory).encode()).hexdigest()[:12]
            return Path(mount) / f"holdfast-lab-{name}"
    raise LabError("this controller has no cgroup2 mounted: a container's processes need one")


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _end(group: Path) -> None:
    """Kill every process in a cgroup and remove it, with what lies below."""
    (group / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + CGROUP_TIMEOUT_SECONDS
    while "populated 1" in (group / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise LabError(f"the processes of {group} cannot be ended")
        time.sleep(0.01)
    for folder in sorted(group.rglob("*/"), reverse=True):
        folder.rmdir()
    group.rmdir()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("disk", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("number", type=int)
    parser.add_argument("cables", nargs="*", metavar="INTERFACE=NAMESPACE")
    chosen = parser.parse_args()
    laid = dict(cable.split("=", 1) for cable in chosen.cables)
    supervise(chosen.directory, chosen.disk, chosen.port, chosen.number, laid)
