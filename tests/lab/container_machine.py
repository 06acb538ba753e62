"""A machine of the lab without emulation: the same image, booted by systemd in namespaces.

What is too slow for an emulated machine (a real vLLM, for one) runs here at the controller's own
speed, on the controller's kernel. Everything else is as on the lab's other machines: the image, the
login, the controller at 10.0.2.2, a port on 127.0.0.1 that leads to SSH, and a root shell beside
the network. The machine needs root, and neither its processes nor its mounts nor its network
outlive it: they belong to namespaces and to one cgroup, which is killed as a whole.

It is no boundary: root in there is root of the controller. Nor does it have all that a kernel of
its own would give it: no modules, no udev, no kernel's log, no audit, and of the sysctls only the
network's and its names; so the site converges but for `deploys/base.py`. Limits by cgroup
controllers that the controller's own cgroup v1 holds (memory, CPU, pids, on a hybrid machine) are
taken and not enforced, `MemoryMax=` for one: `controllers` tells which there are. Every other
directive of systemd's sandbox that was tried held; `test_container_live.py` tries them.

`python -m tests.lab.container_machine DIRECTORY DISK PORT INTERNET` keeps a machine powered through
its reboots; `ContainerMachine` is the client.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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

REPOSITORY = Path(__file__).parents[2]
GUEST_ADDRESS = "10.0.2.15"
"""What the network process gives its only guest by DHCP."""

START_TIMEOUT_SECONDS = 30
KILLED = 128 + signal.SIGKILL
CGROUP_TIMEOUT_SECONDS = 30
INIT_PID = "init.pid"
SUPERVISOR_LOG = "supervisor.log"
NETWORK_SOCKET = "network.sock"

# The first process must be in its group before its cgroup namespace is made, and alone in there:
# a group with processes of two kinds can hand no controller on.
_JOIN = """
read -r pid rest < /proc/self/stat
echo "$pid"
echo 0 > "$0/cgroup.procs"
exec unshare --cgroup sh -euc "$1" "$pid" "$2"
"""

_BOOT = """
mkdir -p lower work root
exec 3> init.pid 4>> console.log
mount -o loop,ro "$1" lower
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay root
mount -t proc proc root/proc
mount --bind root/proc/sys root/proc/sys
mount -o remount,bind,ro root/proc/sys
for own in net kernel/hostname kernel/domainname; do
    mount --bind "root/proc/sys/$own" "root/proc/sys/$own"
    mount -o remount,bind,rw "root/proc/sys/$own"
done
if [ -e root/proc/sysrq-trigger ]; then mount --bind /dev/null root/proc/sysrq-trigger; fi
cat /proc/sys/kernel/random/uuid > boot_id
mount --bind boot_id root/proc/sys/kernel/random/boot_id
mount -t sysfs -o ro sysfs root/sys
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
    /sbin/init </dev/null >&4 2>&4 3>&- 4>&-
"""

_NAMESPACES = ("--pid", "--mount", "--net", "--uts", "--ipc")


class ContainerMachine(Machine):
    """A machine that is a systemd container; it has no LAN, no snapshots and no kernel of its own.

    Its disk is a folder: what the machine wrote lies below `upper`, its journal included.
    """

    def __init__(self, directory: Path, spec: Spec, image: Image, internet: str = "") -> None:
        """``internet``: a network namespace of the controller, whose bridge cable wan0 leads to."""
        super().__init__(directory.absolute(), spec, image)
        self._internet = internet
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
                    *(self._marker(), str(self.image.disk), str(self.ssh_port), self._internet),
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
            "systemctl is-system-running --wait | grep -E 'running|degraded'", timeout_seconds
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
        """End whatever runs for a machine of which only the directory is known."""
        group = _group(directory.absolute())
        if group.exists():
            _end(group)
        for name in ("supervisor.pid", INIT_PID):
            (directory / name).unlink(missing_ok=True)

    def wipe(self) -> None:
        """Give the machine an empty disk: a new one, with new host keys."""
        if self.running():
            raise MachineError(f"{self.name} is running: crash or shut it down before wiping it")
        for folder in (self._disk, self.directory / "work"):
            shutil.rmtree(folder, ignore_errors=True)
        self.known_hosts.unlink(missing_ok=True)
        (self._disk / "etc").mkdir(parents=True)
        (self._disk / "etc" / "fstab").write_text("# The root of a container is mounted already.\n")

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
            # A nsenter that has forked stops when its child is stopped, as a shutdown does with all
            # processes; and the shutdown would wait for it.
            ["nsenter", f"--target={pid}", "--all", "--root", "--wd", "--no-fork"]
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
        """Refuse: there is no QEMU to ask for snapshots or cables."""
        raise MachineError(f"{self.name} is a container: it has no {command}")

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


def supervise(directory: Path, disk: Path, port: int, internet: str) -> None:
    """Boot a machine, and boot it again for as long as it asks for that; its power is ours.

    Raises LabError when a part of it does not start.
    """
    group = _group(directory)
    for name in ("machine", "supervisor"):
        (group / name).mkdir(parents=True, exist_ok=True)
    (group / "supervisor" / "cgroup.procs").write_text("0")
    for controller in (group / "cgroup.controllers").read_text().split():
        (group / "cgroup.subtree_control").write_text(f"+{controller}")
    # To reboot() in a PID namespace is to have its first process killed by this very signal.
    while _one_boot(directory, disk, port, internet, group / "machine") == -signal.SIGHUP:
        pass


def _one_boot(directory: Path, disk: Path, port: int, internet: str, group: Path) -> int:
    """Run a machine from power on to power off; returns how its first process ended."""
    machine = subprocess.Popen(
        ["unshare", "--fork", "--kill-child", *_NAMESPACES, "--propagation", "private"]
        + ["sh", "-euc", _JOIN, str(group), _BOOT, str(disk)],
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
            if internet:
                _connect(pid, internet)
            with _network(directory, pid, port):
                status = machine.wait()
        finally:
            # Without its network it would wait for ever, and so would we.
            machine.kill()
        (directory / INIT_PID).unlink(missing_ok=True)
    return status


def _connect(pid: str, internet: str) -> None:
    """Lay the cable from the machine's wan0 to the bridge in the namespace ``internet``."""
    there = ["ip", "-netns", internet, "link"]
    # Where the power was cut a moment ago, the kernel may not have taken away the old one yet.
    subprocess.run([*there, "delete", "rack"], check=False, capture_output=True)
    ends = ["wan0", "netns", pid, "type", "veth", "peer", "name", "rack", "netns", internet]
    output_of(["ip", "link", "add", *ends])
    output_of([*there, "set", "rack", "master", "cable", "up"])


@contextlib.contextmanager
def _network(directory: Path, pid: str, port: int) -> Iterator[None]:
    """The same network beside the machine that QEMU gives its guests, and a way to its SSH."""
    socket = directory / NETWORK_SOCKET
    socket.unlink(missing_ok=True)
    command = ["slirp4netns", "--mtu=65520", f"--api-socket={socket.name}", pid, "eth0"]
    network = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=directory)
    try:
        while not socket.exists():
            if network.poll() is not None:
                raise LabError("its network could not be made")
            time.sleep(0.01)
        forward = {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": port}
        forward |= {"guest_addr": GUEST_ADDRESS, "guest_port": 22}
        with connect_unix(directory, socket.name) as connection:
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
    parser.add_argument("internet")
    chosen = parser.parse_args()
    supervise(chosen.directory, chosen.disk, chosen.port, chosen.internet)
