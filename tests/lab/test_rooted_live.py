"""What a service could do to root, tried on a real systemd: `pytest -m lab` on this file.

Each attack was seen to succeed before its mend. It takes root and a minute, and no emulation.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from facts.firewall import PROGRAM as FIREWALL
from facts.firewall import ROLLBACK_STATE
from facts.ssh import ROLLBACK_STATE as ROLLBACK_OF_SSH
from holdfast import alerts, ssh
from holdfast import firewall as walls
from holdfast.engines.server import Load
from holdfast.engines.servers import declared_engines, engine_service
from holdfast.engines.units import (
    DEVICES,
    MEMORY_PROGRAM,
    EngineNames,
    devices,
    programs_of,
)
from holdfast.firewall import ROLLBACK_UNIT
from holdfast.gpu import driver
from holdfast.host_programs import firewall as firewall_program
from holdfast.host_programs import gpu_memory
from holdfast.python_environment import directory
from holdfast.render import render
from holdfast.servers.vllm import BENCH, LOCK
from holdfast.servers.vllm import SERVER as VLLM
from holdfast.service import texts
from holdfast.service.units import service_unit
from holdfast.settings import HostSettings
from holdfast.shipping import text_of
from operations import sshd
from tests.drill.converge import PYINFRA
from tests.lab.container_machine import ContainerMachine
from tests.lab.images import OPERATOR, ensure_image, lab_key
from tests.lab.machine import Spec
from tests.unit import test_engines, test_gpu_driver

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container machine needs root"),
]

SPEC = Spec("rooted", variant="rack", host_number=11, memory_mib=2048, cpus=2)
PATIENCE_SECONDS = 120
ROOT = Path(__file__).resolve().parents[2]
INSTALL = "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y"
ENVIRONMENT = directory(VLLM.name, LOCK.read_text(), "debian13")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerMachine]:
    """A machine with Python and ufw."""
    directory = tmp_path_factory.mktemp("lab") / "rooted"
    machine = ContainerMachine(directory, SPEC, ensure_image("debian-13", "rack"))
    try:
        machine.start()
        machine.wait_for_boot(PATIENCE_SECONDS)
        machine.wait_for_ssh(PATIENCE_SECONDS)
        machine.succeed(f"{INSTALL} curl iptables nftables python3 ufw", timeout_seconds=300)
        yield machine
    finally:
        machine.power_off()


def write(box: ContainerMachine, path: str, text: str, mode: str = "644") -> None:
    """Put a file of root's there."""
    quoted, parent = shlex.quote(path), shlex.quote(path.rpartition("/")[0])
    command = f"mkdir -p {parent} && cat > {quoted} && chmod {mode} {quoted}"
    done = box.run(command, stdin=text.encode())
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's description, as a plan reads it."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(test_engines.LLAMA))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 16_060_522_496}, "weight_map": {}})
    )
    return folder


@pytest.fixture(scope="module")
def engine(box: ContainerMachine, description: Path) -> EngineNames:
    """An engine on a card, whose program sleeps, and a driver that shows the card."""
    settings = test_engines._settings(description)
    names = EngineNames(VLLM, declared_engines(settings)[0])
    _install(box, settings, names)
    return names


@pytest.fixture(scope="module")
def measured(engine: EngineNames) -> str:
    """The script that measures that engine."""
    return render(
        "engines/bench.sh.j2",
        names=engine,
        user=engine_service(VLLM.name, engine.engine).user,
        cards=test_engines.UUIDS[:1],
        environment=ENVIRONMENT,
        variables=BENCH.environment,
        command=BENCH.command(engine.engine, "/var/lib/holdfast/models/llama", Load()),
        result_bytes=1000,
    )


def _install(box: ContainerMachine, settings: HostSettings, names: EngineNames) -> None:
    user = engine_service(VLLM.name, names.engine).user
    box.succeed(f"id {user} || useradd --system --shell /usr/sbin/nologin {user}")
    for path, text in texts(programs_of(settings, names)).items():
        write(box, path, text)
    write(box, MEMORY_PROGRAM, text_of(gpu_memory), "755")
    write(box, f"{ENVIRONMENT}/bin/vllm", "#!/bin/sh\nexec sleep infinity\n", "755")
    write(box, "/usr/bin/nvidia-smi", _SMI.format(uuid=test_engines.UUIDS[0]), "755")
    box.succeed(f"mkdir -p {settings.storage.models_path}")
    for secret in (names.key, names.probe):
        write(box, secret, "x\n", "600")
    box.succeed("systemctl daemon-reload")


# Total, reserved and free memory of the only card; and where it was asked, and by whom.
_SMI = """#!/bin/sh
{{ id -un; pwd; env; }} > /srv/asked
echo {uuid}, 24576, 400, 24000
"""

_PLANTED = "import os\nopen('/srv/owned-' + str(os.getuid()), 'w').close()\n"


def test_an_engine_that_was_broken_into_gives_root_no_code_to_run(
    box: ContainerMachine, engine: EngineNames
) -> None:
    user, cache = engine_service(VLLM.name, engine.engine).user, f"/var/cache/{engine.stem}"
    version = box.succeed("basename $(readlink -f /usr/bin/python3)").strip()
    site = f"{cache}/.local/lib/{version}/site-packages"
    as_user = f"runuser -u {user} --"
    box.succeed(f"install -d -o {user} -g {user} -m 700 {cache}; rm -f /srv/owned-* /srv/asked")
    box.succeed(f"{as_user} mkdir -p {site}")
    planted = box.run(f"{as_user} tee {site}/usercustomize.py", stdin=_PLANTED.encode())
    assert planted.returncode == 0
    box.succeed(f"systemctl start --no-block {engine.unit}")
    try:
        box.wait_until_succeeds("test -s /srv/asked", PATIENCE_SECONDS)
        asked = box.succeed("cat /srv/asked")
    finally:
        box.execute(f"systemctl kill --signal=KILL {engine.unit}; systemctl stop {engine.unit}")
    box.fail("ls /srv/owned-0")
    assert asked.splitlines()[:2] == ["root", "/"]
    assert cache not in asked


@pytest.fixture(scope="module")
def guarded(box: ContainerMachine) -> ContainerMachine:
    """A machine with a firewall that makes settings of its own, and our way back to it."""
    write(box, FIREWALL, text_of(firewall_program), "755")
    # It tells that it ran, and that it saw IPv6.
    guard = "#!/bin/sh\n[ -e /proc/net/if_inet6 ] && touch /run/guarded\n"
    write(box, walls.DOCKER_USER_SCRIPT, guard, "755")
    write(box, firewall_program.DOCKER[1], "", "755")
    write(box, alerts.NOTIFY.path("service"), service_unit(alerts.NOTIFY))
    for path, text in texts(walls.programs()).items():
        write(box, path, text)
    box.succeed(
        f"ufw allow 22/tcp && ufw --force enable"
        f" && chmod 600 /etc/default/ufw && systemctl daemon-reload"
        f" && systemctl enable {ROLLBACK_UNIT} ufw"
    )
    return box


_STATE = (
    "iptables -S; ip6tables -S; sha256sum /etc/ufw/*.rules; stat -c '%a %u %n' /etc/default/ufw"
    " /etc/ufw/user.rules; cat /proc/sys/net/ipv4/conf/all/accept_redirects"
)
_SPOILT = (
    f"rm -f /run/guarded; {FIREWALL} keep && ufw deny 22/tcp"
    " && sed -i s/DROP/ACCEPT/ /etc/default/ufw && chmod 644 /etc/default/ufw && ufw reload"
    " && sysctl -qw net.ipv4.conf.all.accept_redirects=1"
)


def test_a_firewall_comes_back_at_its_deadline(guarded: ContainerMachine) -> None:
    proved = guarded.succeed(_STATE)
    guarded.succeed(f"{_SPOILT} && {FIREWALL} arm 1")
    assert guarded.succeed(_STATE) != proved
    guarded.wait_until_succeeds(f"test ! -e {ROLLBACK_STATE}/armed", PATIENCE_SECONDS)
    assert guarded.succeed(_STATE) == proved
    guarded.succeed(f"test -e /run/guarded && ! systemctl is-failed {ROLLBACK_UNIT}")


def test_a_firewall_that_was_not_proved_comes_back_at_the_next_boot(
    guarded: ContainerMachine,
) -> None:
    proved = guarded.succeed(_STATE)
    guarded.succeed(_SPOILT)
    guarded.reboot(PATIENCE_SECONDS)
    guarded.fail(f"test -e {ROLLBACK_STATE}/armed")
    assert guarded.succeed(_STATE) == proved
    guarded.succeed("test -e /run/guarded && systemctl is-active ufw")


def test_a_proof_disarms_the_deadline(guarded: ContainerMachine) -> None:
    guarded.succeed(f"{_SPOILT} && {FIREWALL} arm 300")
    spoilt = guarded.succeed(_STATE)
    timer = ROLLBACK_UNIT.replace(".service", ".timer")
    guarded.succeed(f"systemctl is-active {timer} && {FIREWALL} disarm")
    guarded.fail(f"systemctl is-active {timer}")
    guarded.succeed(f"systemctl start {ROLLBACK_UNIT}")
    assert guarded.succeed(_STATE) == spoilt


_ALERT = f"{alerts.ALERTS}/{walls.WATCH}"


@pytest.fixture
def proved(guarded: ContainerMachine) -> ContainerMachine:
    """That machine, whose firewall a login has proved."""
    guarded.succeed(
        f"{FIREWALL} keep && ufw allow 22/tcp && sed -i 's/^\\(DEFAULT_[IF].*\\)=.*/\\1=DROP/'"
        f" /etc/default/ufw && ufw --force enable && {FIREWALL} load && {FIREWALL} disarm"
        f" && rm -f {_ALERT} && systemctl start {walls.WATCH}"
    )
    return guarded


@pytest.mark.parametrize(
    ("hurt", "told"),
    [
        ("ufw disable", "ufw was disabled"),
        ("/lib/ufw/ufw-init flush-all", "has been restored: gone: iptables -t filter -P"),
        ("iptables -P INPUT ACCEPT", "new: iptables -t filter -P INPUT ACCEPT"),
        ("ip6tables -F ufw6-before-input", "gone: ip6tables -t filter -A ufw6-before-input"),
        ("iptables -F INPUT; iptables -F FORWARD", "gone: iptables -t filter -A FORWARD -j ufw"),
        ("ip6tables -I INPUT -p tcp -j ACCEPT", "new: ip6tables -t filter -A INPUT -p tcp"),
        ("nft flush ruleset", "gone: iptables -t filter"),
    ],
)
def test_what_a_hand_takes_of_the_firewall_is_told_of_and_put_back(
    proved: ContainerMachine, hurt: str, told: str
) -> None:
    before = proved.succeed(_STATE)
    proved.succeed(hurt)
    proved.fail(f"systemctl start {walls.WATCH}")
    proved.wait_until_succeeds(f"test -e {_ALERT}", 10)
    said = proved.succeed(
        "journalctl --output=cat --no-pager"
        f" _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID {walls.WATCH})"
    )
    assert told in said
    assert proved.succeed(_STATE) == before
    proved.succeed(f"systemctl start {walls.WATCH} && {FIREWALL} proved")


def test_the_watch_looks_every_minute(proved: ContainerMachine) -> None:
    proved.succeed(f"systemctl enable --now {walls.TIMER} && ufw disable")
    proved.wait_until_succeeds(f"test -e {_ALERT} && ufw status | grep 'Status: active'", 75)
    proved.succeed(f"systemctl disable --now {walls.TIMER}")


def test_a_rule_that_ufw_was_given_by_hand_is_told_of_until_the_next_deploy(
    proved: ContainerMachine,
) -> None:
    proved.succeed("ufw allow 2222/tcp")
    proved.fail(f"systemctl start {walls.WATCH}")
    loaded = proved.succeed("stat -c %y /run/holdfast/firewall/left")
    proved.fail(f"systemctl start {walls.WATCH}")
    said = proved.succeed(f"journalctl --output=cat --no-pager --unit={walls.WATCH}")
    assert "new: iptables -t filter -A ufw-user-input -p tcp -m tcp --dport 2222" in said
    assert proved.succeed("stat -c %y /run/holdfast/firewall/left") == loaded, "loaded for nothing"
    proved.succeed("ufw delete allow 2222/tcp")
    proved.succeed(f"systemctl start {walls.WATCH}")


_CALLER = """
import socket, sys, time
end, got = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end:
    with socket.socket() as call:
        call.settimeout(0.05)
        got += call.connect_ex(("10.99.0.1", 4444)) == 0
print(got)
"""


@pytest.fixture
def neighbour(proved: ContainerMachine) -> Iterator[ContainerMachine]:
    """That machine with an undeclared port, and a neighbour that calls it."""
    write(proved, "/root/caller.py", _CALLER)
    proved.succeed(
        "ip netns add beside && ip link add near type veth peer name far netns beside"
        " && ip address add 10.99.0.1/24 dev near && ip link set near up"
        " && ip -n beside address add 10.99.0.2/24 dev far && ip -n beside link set far up"
        " && systemd-run --quiet --unit=stray python3 -m http.server --bind 10.99.0.1 4444"
    )
    yield proved
    proved.succeed("systemctl stop stray; ip netns delete beside")


@pytest.mark.parametrize(
    ("loads", "opens"),
    [
        ("ufw reload", True),
        (f"{FIREWALL} load", False),
        (f"{FIREWALL} keep && {FIREWALL} restore", False),
    ],
)
def test_a_firewall_that_is_loaded_again_has_no_open_moment(
    neighbour: ContainerMachine, loads: str, opens: bool
) -> None:
    tries = "ip netns exec beside python3 /root/caller.py 12 > /run/got & "
    neighbour.succeed(f"{tries} sleep 1; {{ {loads}; }} && {{ {loads}; }} && wait", 120)
    assert (int(neighbour.succeed("cat /run/got")) > 0) == opens
    neighbour.fail("nft list table inet holdfast_swap")
    neighbour.succeed(f"{FIREWALL} proved")


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.5])
def test_a_load_that_is_stopped_half_way_is_finished(
    proved: ContainerMachine, seconds: float
) -> None:
    proved.succeed(
        f"systemd-run --quiet --collect --unit=stopped {FIREWALL} load; sleep {seconds}"
        " && systemctl stop stopped"
    )
    proved.succeed(f"{FIREWALL} proved")
    proved.fail("nft list table inet holdfast_swap")


def test_a_boot_brings_back_what_was_proved(proved: ContainerMachine) -> None:
    proved.reboot(PATIENCE_SECONDS)
    proved.succeed(f"{FIREWALL} proved")
    proved.succeed("ufw disable")
    proved.reboot(PATIENCE_SECONDS)
    proved.fail(f"systemctl start {walls.WATCH}")
    proved.succeed(f"{FIREWALL} proved")


def test_the_files_of_cards_are_made_and_nothing_else(box: ContainerMachine) -> None:
    for path, text in texts([devices()]).items():
        write(box, path, text)
    write(box, "/usr/bin/nvidia-modprobe", _MODPROBE, "755")
    box.succeed("rm -f /dev/nvidia-uvm; systemctl daemon-reload")
    box.succeed(f"systemctl restart {DEVICES}")
    assert box.succeed("stat -c '%F %a %u:%g %t:%T' /dev/nvidia-uvm").strip() == (
        "character special file 660 0:44 1fb:0"
    )
    assert box.succeed("cat /dev/shm/tried").split() == ["open", "disk", "etc"]


# As NVIDIA's own does it, for a driver whose files belong to the group video; then what is not its
# business.
_MODPROBE = """#!/bin/sh
grep -q . /proc/devices /proc/modules || exit 1
mknod /dev/nvidia-uvm c 507 0 && chmod 660 /dev/nvidia-uvm && chown 0:44 /dev/nvidia-uvm
chmod 660 /dev/nvidia-uvm
{ cat /dev/nvidia-uvm || echo open; mknod /dev/disk b 8 0 || echo disk; touch /etc/x || echo etc
} > /dev/shm/tried 2> /dev/null
"""


_REACHES = """#!/bin/sh
for path in /sys/bus/pci/drivers_probe /sys/bus/pci/devices/*/driver_override \\
    /sys/kernel/mm/transparent_hugepage/enabled /sys/module/*/uevent /etc /var; do
    [ ! -w "$path" ] || echo "$path"
done > /dev/shm/reached
"""


def test_cards_are_told_their_driver_and_nothing_else_is_told_anything(
    box: ContainerMachine,
) -> None:
    # Cards are the controller's own here: what would be written is asked for, and not written. The
    # container cannot write there itself, so a fresh view of them takes the place of its own.
    box.succeed("mount -t sysfs sysfs /mnt")
    box.succeed("for part in bus devices; do mount --bind /mnt/$part /sys/$part; done")
    write(box, driver.VFIO, driver.files(test_gpu_driver.WITH_GUEST)[driver.VFIO])
    write(box, driver.VFIO_PROGRAM, _REACHES, "755")
    box.succeed(f"systemctl daemon-reload && systemctl restart {driver.VFIO_UNIT}")
    reached = box.succeed("cat /dev/shm/reached").split()
    assert [path for path in reached if not path.endswith("/driver_override")] == [
        "/sys/bus/pci/drivers_probe"
    ]
    assert len(reached) > 1
    # Waiting for a file system would be waiting for a disk, whose driver waits for this unit.
    after = box.succeed(f"systemctl show --property=After --value {driver.VFIO_UNIT}").split()
    early = {"modprobe@vfio_pci.service", "system.slice", "systemd-journald.socket"}
    assert set(after) == early
    box.succeed("umount /sys/bus /sys/devices /mnt")


STRANGER = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f stranger"
)
_HOME = f"/home/{OPERATOR}/.ssh"


@pytest.fixture
def logins(box: ContainerMachine) -> ContainerMachine:
    """A machine as it is before the first deploy: keys lie in homes."""
    own = lab_key().with_suffix(".pub").read_text()
    box.succeed(
        "rm -rf /etc/holdfast/ssh /etc/ssh/sshd_config.d/00-holdfast.conf /etc/victim"
        f" {_HOME} && install -d -o {OPERATOR} -g {OPERATOR} -m 700 {_HOME}"
        " && install -d -m 755 /etc/victim && systemctl reload-or-restart ssh"
    )
    write(box, f"{_HOME}/authorized_keys", f"{own}{STRANGER}\n", "600")
    box.succeed(f"chown {OPERATOR}: {_HOME}/authorized_keys")
    box.wait_for_ssh(PATIENCE_SECONDS)
    return box


def deploy_ssh(box: ContainerMachine, folder: Path, *keys: str) -> subprocess.CompletedProcess[str]:
    """Deploy SSH with these keys of the operator, by the operator's login."""
    # A copy without its public half: the plan would refuse keys that shut this one out.
    login = folder / "login"
    if not login.exists():
        login.touch(mode=0o600)
        login.write_bytes(lab_key().read_bytes())
    host = {
        "hostname": "rooted",
        "distribution": "debian13",
        "interfaces": {"eth0": {"role": "lan"}},
        "ssh_hostname": "127.0.0.1",
        "ssh_port": box.ssh_port,
        "ssh_user": OPERATOR,
        "ssh_key": str(login),
        "ssh_known_hosts_file": str(folder / "known_hosts"),
        "_sudo": True,
        "tailnet": None,
        "ssh": {"lan_access": "keep", "authorised_keys": {OPERATOR: [*keys]}},
    }
    inventory = folder / "inventory.py"
    inventory.write_text(f"hosts = [('@rack/rooted', {host!r})]\n")
    return subprocess.run(
        [PYINFRA, "-y", str(inventory), "tests/lab/ssh_site.py"],
        cwd=ROOT,
        env={**os.environ, "PYINFRA_PROGRESS": "off", "HOLDFAST_SECRETS": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_keys_move_to_roots_own_folder_and_homes_are_left_alone(
    logins: ContainerMachine, tmp_path: Path
) -> None:
    own = lab_key().with_suffix(".pub").read_text().strip()
    before = logins.succeed(f"sha256sum {_HOME}/authorized_keys")
    done = deploy_ssh(logins, tmp_path, own)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert f"ignores ~{OPERATOR}/.ssh/authorized_keys" in said
    assert logins.succeed(f"sha256sum {_HOME}/authorized_keys") == before
    assert logins.succeed(f"cat /etc/holdfast/ssh/{OPERATOR}") == f"{own}\n"
    # Nothing is left to do, and it is said once.
    again = deploy_ssh(logins, tmp_path, own)
    assert again.returncode == 0, again.stderr
    assert "ignores ~" not in again.stderr
    # A key that only the home holds is none, and that of a user who is not named still is.
    where = "sshd -T -C user={},host=a,addr=192.0.2.1 | sed -n 's/^authorizedkeysfile //p'"
    assert logins.succeed(where.format(OPERATOR)) == "/etc/holdfast/ssh/%u\n"
    assert logins.succeed(where.format("root")).startswith(".ssh/authorized_keys")


def test_a_home_that_leads_elsewhere_gives_nothing_away(
    logins: ContainerMachine, tmp_path: Path
) -> None:
    own = lab_key().with_suffix(".pub").read_text().strip()
    logins.succeed(f"mv {_HOME} /run/kept && ln -s /etc/victim {_HOME}")
    # The key that this login comes by is where the link leads: root's folder, readable to all.
    logins.succeed("install -m 644 /run/kept/authorized_keys /etc/victim")
    logins.succeed(f"chown -h {OPERATOR}: {_HOME}")
    done = deploy_ssh(logins, tmp_path, own)
    assert logins.succeed("stat -c '%U %a' /etc/victim /etc/victim/*") == "root 755\nroot 644\n"
    assert done.returncode == 0, done.stderr
    logins.succeed(f"rm -rf /run/kept {_HOME}")


def test_a_pipe_in_place_of_keys_keeps_no_deploy_waiting(
    logins: ContainerMachine, tmp_path: Path
) -> None:
    own = lab_key().with_suffix(".pub").read_text().strip()
    # sshd itself does not wait for a pipe; it looks into the second file.
    logins.succeed(
        f"mv {_HOME}/authorized_keys {_HOME}/authorized_keys2 && mkfifo {_HOME}/authorized_keys"
    )
    done = deploy_ssh(logins, tmp_path, own)
    assert done.returncode == 0, done.stderr


def test_keys_that_do_not_let_the_operator_in_are_taken_back(
    logins: ContainerMachine, tmp_path: Path
) -> None:
    done = deploy_ssh(logins, tmp_path, STRANGER)
    assert done.returncode != 0
    assert "the previous configuration is back in force" in done.stderr
    logins.fail(f"ls /etc/holdfast/ssh/{OPERATOR}")
    own = lab_key().with_suffix(".pub").read_text().strip()
    done = deploy_ssh(logins, tmp_path, own)
    assert done.returncode == 0, done.stderr


def _lock_out(box: ContainerMachine, seconds: int) -> None:
    """What a deploy leaves that dies after its change and before its proof."""
    keys, drop_in = f"/etc/holdfast/ssh/{OPERATOR}", sshd.DROP_IN
    box.succeed(
        f"{ssh.ROLLBACK_SCRIPT} keep {keys} {drop_in}"
        f" && {ssh.ROLLBACK_SCRIPT} arm {seconds}"
        f" && echo {shlex.quote(STRANGER)} > {keys} && echo Port 2022 > {drop_in}"
        " && systemctl reload ssh"
    )


@pytest.mark.parametrize("power", ["stays", "fails"])
def test_a_change_that_no_login_has_proved_is_undone(
    logins: ContainerMachine, tmp_path: Path, power: str
) -> None:
    own = lab_key().with_suffix(".pub").read_text().strip()
    done = deploy_ssh(logins, tmp_path, own)
    assert done.returncode == 0, done.stderr
    files = f"sha256sum /etc/holdfast/ssh/{OPERATOR} {sshd.DROP_IN}; ls -l /etc/holdfast/ssh"
    proved = logins.succeed(files)
    if power == "stays":
        _lock_out(logins, 1)
    else:
        _lock_out(logins, 3600)
        logins.crash()
        logins.start()
        logins.wait_for_boot(PATIENCE_SECONDS)
    logins.wait_until_succeeds(f"test ! -e {ROLLBACK_OF_SSH}/armed", PATIENCE_SECONDS)
    assert logins.succeed(files) == proved
    logins.wait_for_ssh(PATIENCE_SECONDS)
    logins.fail("ss -Hltn | grep -q :2022")
    logins.fail(f"systemctl is-failed {ssh.ROLLBACK_UNIT}")
    # And nothing is left to do.
    done = deploy_ssh(logins, tmp_path, own)
    assert done.returncode == 0, done.stderr


_CLIENT = """#!/bin/sh
[ "$1" = bench ] || exec sleep infinity
while [ "$1" != --result-dir ]; do shift; done
cd "$2" && {attack} || exit 1
"""
_ATTACKS = {
    "its result is another's file": "ln -s /etc/shadow result.json",
    "its folder is another's": 'f=$PWD; cd / && rm -r "$f" && ln -s /etc/victim "$f"',
}


@pytest.mark.parametrize("attack", _ATTACKS)
def test_a_bench_gives_an_engine_nothing_of_roots(
    box: ContainerMachine, engine: EngineNames, measured: str, attack: str
) -> None:
    user = engine_service(VLLM.name, engine.engine).user
    box.succeed("rm -rf /etc/victim && mkdir /etc/victim && echo secret > /etc/victim/result.json")
    box.succeed(f"chmod 600 /etc/victim/*; install -d -o {user} -m 700 /var/cache/{engine.stem}")
    write(box, f"{ENVIRONMENT}/bin/vllm", _CLIENT.format(attack=_ATTACKS[attack]), "755")
    done = box.run(measured)
    assert done.returncode != 0
    assert "root:" not in done.stdout + done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert box.succeed("stat -c '%U %a' /etc/victim; ls /etc/victim") == "root 755\nresult.json\n"


def test_a_bench_prints_its_result_and_leaves_nothing(
    box: ContainerMachine, engine: EngineNames, measured: str
) -> None:
    printf = """printf '{"a":\\n1}\\n' > result.json"""
    write(box, f"{ENVIRONMENT}/bin/vllm", _CLIENT.format(attack=printf), "755")
    assert box.succeed(measured).splitlines()[0] == '{"a":1}'
    box.fail(f"ls -d /run/holdfast-bench.* /var/cache/{engine.stem}/*")
