"""What a T1 user opens in /run, tried on a real systemd: `pytest -m lab` on this file.

Root's programs listen there for every user: a resolver, D-Bus, the log. Each promise is tried with
its wall and without it. It takes root and a minute, and no emulation.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator

import pytest

from facts.egress import EgressAttempts
from holdfast import alerts, egress, floor
from holdfast.host_programs import egress as egress_program
from holdfast.render import render
from holdfast.sandbox import NOTIFY_SOCKET, sandbox
from holdfast.service import texts
from holdfast.settings import HostSettings, Service
from holdfast.shipping import text_of
from holdfast.storage import model_path
from tests.lab.container_machine import ContainerMachine
from tests.lab.images import ensure_image
from tests.lab.machine import Spec
from tests.unit.site_data import good

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container machine needs root"),
]

SPEC = Spec("sockets", variant="rack", host_number=12, memory_mib=2048, cpus=2)
PATIENCE_SECONDS = 120
INSTALL = "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y"
PACKAGES = "haproxy curl dbus nftables python3 rsyslog systemd-container systemd-resolved"
PROBE = "/bin/sh -c 'exec python3 -I /opt/probe.py \"$(cat /opt/tries.json)\"'"
"""Tries every socket there is."""
_PROBE = """
import json, os, socket, sys
opened = []
for kind, path in json.loads(sys.argv[1]):
    with socket.socket(socket.AF_UNIX, getattr(socket, kind)) as caller:
        caller.settimeout(5)
        try:
            caller.connect(path)
            opened.append(path)
        except OSError:
            pass
print("opened=" + json.dumps(sorted(opened)), flush=True)
"""
_LLAMA = """#!/usr/bin/python3 -I
import http.server, os, socketserver, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\\n")
    do_POST = do_GET
    def address_string(self):
        return "door"

path = sys.argv[sys.argv.index("--host") + 1]
socketserver.ThreadingUnixStreamServer(path, Answer).serve_forever()
"""


def rack() -> HostSettings:
    """A host with a floor and with a T1 service that is its owner's."""
    return HostSettings.model_validate(good()["rack"])


def write(box: ContainerMachine, path: str, text: str, mode: str = "644") -> None:
    """Put a file of root's there."""
    quoted, parent = shlex.quote(path), shlex.quote(path.rpartition("/")[0])
    command = f"mkdir -p {parent} && cat > {quoted} && chmod {mode} {quoted}"
    done = box.run(command, stdin=text.encode())
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerMachine]:
    """A machine with programs that listen for every user, and with the rules for egress."""
    directory = tmp_path_factory.mktemp("lab") / "sockets"
    machine = ContainerMachine(directory, SPEC, ensure_image("debian-13", "rack"))
    settings = rack()
    try:
        machine.start()
        machine.wait_for_boot(PATIENCE_SECONDS)
        machine.succeed(f"{INSTALL} {PACKAGES}", timeout_seconds=300)
        machine.succeed("systemctl start systemd-nsresourced.socket")
        for user in sorted({wall.user for wall in egress.walls(settings)}):
            machine.succeed(f"id {user} || useradd --system --shell /usr/sbin/nologin {user}")
        write(machine, egress.PROGRAM, text_of(egress_program), "755")
        for path, text in {
            **texts([alerts.NOTIFY]),
            **texts(egress.programs(settings)),
        }.items():
            write(machine, path, text)
        machine.succeed(f"systemctl daemon-reload && systemctl enable {egress.SERVICE}")
        machine.reboot(PATIENCE_SECONDS)
        machine.wait_for_boot(PATIENCE_SECONDS)
        machine.succeed("systemctl start systemd-nsresourced.socket")
        write(machine, "/opt/probe.py", _PROBE)
        yield machine
    finally:
        machine.power_off()


def listening(box: ContainerMachine) -> list[tuple[str, str]]:
    """Kind and path of each socket below /run that any user may open."""
    fact = EgressAttempts()
    found = fact.process(box.succeed(fact.command()).splitlines()).sockets
    return [(each.kind, each.path) for each in found if each.path.startswith("/run/")]


def opened(words: str) -> set[str]:
    """What the probe says that it has opened."""
    (line,) = (each for each in words.splitlines() if "opened=" in each)
    return set(json.loads(line.partition("opened=")[2]))


def run_photos(box: ContainerMachine, command: str, **declared: object) -> str:
    """What a command says in the owner's service, declared so; without a declaration, no wall."""
    drop_in = egress.drop_in_path("photos.service")
    box.succeed(f"rm -f {drop_in}")
    if declared:
        settings = rack()
        service = settings.services[0].model_copy(update=declared)
        walled = settings.model_copy(update={"services": [service]})
        write(box, drop_in, egress.drop_ins(walled)["photos.service"])
    unit = f"Type=oneshot\nUser=photos\nExecStart={command}\nStandardOutput=truncate:/root/said\n"
    write(box, "/etc/systemd/system/photos.service", f"[Service]\n{unit}")
    box.succeed("systemctl daemon-reload && systemctl start photos.service")
    return box.succeed("cat /root/said")


def test_any_user_opens_what_root_listens_at(box: ContainerMachine) -> None:
    write(box, "/opt/tries.json", json.dumps(listening(box)))
    paths = {path for _, path in listening(box)}
    assert "/run/dbus/system_bus_socket" in paths
    assert "/run/systemd/resolve/io.systemd.Resolve" in paths
    assert "/run/systemd/io.systemd.NamespaceResource" in paths
    shell = "setpriv --reuid=games --regid=games --clear-groups"
    assert paths <= opened(box.succeed(f"{shell} {PROBE}"))


def test_an_owners_t1_service_opens_what_it_declares_alone(box: ContainerMachine) -> None:
    write(box, "/opt/tries.json", json.dumps(listening(box)))
    log, bus = {NOTIFY_SOCKET, *egress.LOG_SOCKETS}, "/run/dbus/system_bus_socket"
    assert "/run/systemd/resolve/io.systemd.Resolve" in opened(run_photos(box, PROBE))
    assert opened(run_photos(box, PROBE, run_paths=[])) == log
    for path in (bus, "/run/dbus"):
        assert opened(run_photos(box, PROBE, run_paths=[path])) == {*log, bus}


def test_an_owners_t1_service_leaves_its_unit_by_no_program_of_roots(
    box: ContainerMachine,
) -> None:
    box.succeed("install -o root -m 4755 /usr/bin/id /opt/id")
    assert run_photos(box, "/opt/id --user --name") == "root\n"
    assert run_photos(box, "/opt/id --user --name", run_paths=[]) == "photos\n"


@pytest.mark.parametrize("isolated", [True, False])
def test_our_own_t1_units_open_nothing_and_have_what_they_need(
    box: ContainerMachine, isolated: bool
) -> None:
    write(box, "/opt/tries.json", json.dumps(listening(box)))
    write(box, "/root/key", "s3cret\n", "600")
    lines = sandbox(
        Service(name="ours", unit="ours.service", user="photos", tier="T1"), isolated=isolated
    )
    program = (
        'set -eu; touch /run/holdfast/ours/own; cat "$CREDENTIALS_DIRECTORY/key";'
        f" {PROBE}; ls /run;"
        ' python3 -Ic "import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);'
        " s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])\"; exec sleep infinity"
    )
    write(box, "/opt/ours.sh", program)
    text = (
        "[Service]\nType=notify\nNotifyAccess=all\nTimeoutStartSec=120\n"
        "RuntimeDirectory=holdfast/ours\nLoadCredential=key:/root/key\n"
        "ExecStart=/bin/sh /opt/ours.sh\n" + render("service/sandbox.j2", sandbox=lines)
    )
    write(box, "/etc/systemd/system/ours.service", text)
    box.succeed("systemctl daemon-reload && systemctl restart ours.service")
    said = box.succeed(
        "journalctl --output=cat _SYSTEMD_INVOCATION_ID="
        "$(systemctl show --value --property=InvocationID ours.service)"
    )
    assert "s3cret" in said
    assert opened(said) - {NOTIFY_SOCKET} == set()
    assert "\ndbus\n" not in said
    box.succeed("systemctl stop ours.service")


def test_a_door_finds_its_program_again_after_a_restart(box: ContainerMachine) -> None:
    settings = rack()
    assert settings.floor is not None
    (program,) = floor.programs(settings)
    assert program.proxied is not None
    write(box, program.command[0], _LLAMA, "755")
    for path, text in texts([program]).items():
        write(box, path, text)
    for path in (floor.KEY_FILE, floor.PROBE_FILE):
        write(box, path, f'url = "http://floor/"\nunix-socket = "{floor.SOCKET}"\n', "600")
    model = settings.storage.models[0]
    write(box, model_path(settings.storage, model), "weights\n")
    loopback, *_ = program.proxied.doors
    box.succeed(f"systemctl daemon-reload && systemctl start {floor.UNIT} {loopback.socket}")
    ask = f"curl --fail --silent --max-time 10 http://127.0.0.1:{settings.floor.port}/health"
    assert box.succeed(ask) == "ok\n"
    before = box.succeed(f"systemctl show --value --property=MainPID {loopback.service}")
    box.succeed(f"systemctl restart {floor.UNIT}")
    assert box.succeed(ask) == "ok\n"
    assert box.succeed(f"systemctl show --value --property=MainPID {loopback.service}") == before
