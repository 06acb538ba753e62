"""A whole site on a host whose logins print lines of their own: `pytest -m lab` on this file.

It takes root and some minutes, and no emulation.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drill.converge import ROOT, SITE, converge
from tests.drill.not_here import ELSEWHERE
from tests.lab.container_machine import ContainerMachine
from tests.lab.images import OPERATOR, ensure_image, lab_key
from tests.lab.machine import Spec

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container machine needs root"),
]

SPEC = Spec("greeting", variant="rack", host_number=12, memory_mib=2048, cpus=2)
PATIENCE_SECONDS = 120
SITE_SECONDS = 900
HOMES = {"root": "/root", OPERATOR: f"/home/{OPERATOR}"}
NOISY = """\
echo hello
echo Id=ssh.service
echo 'two words' >&2
printf 'no end of line'
trap 'echo bye' EXIT
"""
"""Replaces Debian's `.bashrc`, which returns in a shell that is not interactive."""


LEFT_OUT = [
    "--deselect=tests/host/test_{}.py::test_{}".format(*name.split("::"))
    for name, _ in ELSEWHERE["native"]
]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerMachine]:
    """A machine that root can log in to."""
    directory = tmp_path_factory.mktemp("lab") / "greeting"
    machine = ContainerMachine(directory, SPEC, ensure_image("debian-13", "rack"))
    try:
        machine.start()
        machine.wait_for_boot(PATIENCE_SECONDS)
        machine.wait_for_ssh(PATIENCE_SECONDS)
        machine.succeed("apt-get update -qq", timeout_seconds=PATIENCE_SECONDS)
        machine.succeed(f"install -Dm 600 {HOMES[OPERATOR]}/.ssh/authorized_keys -t /root/.ssh")
        yield machine
    finally:
        machine.power_off()


def greet(box: ContainerMachine, text: str) -> None:
    """Have the shell of each login begin with ``text``."""
    for user, home in HOMES.items():
        command = f"cat > {home}/.bashrc && chown {user}: {home}/.bashrc"
        assert box.run(command, stdin=text.encode()).returncode == 0


def write_inventory(box: ContainerMachine, folder: Path, user: str) -> Path:
    """The host, by the login of ``user``."""
    host = {
        "hostname": "greeting",
        "distribution": "debian13",
        "interfaces": {"eth0": {"role": "lan"}},
        "ssh_hostname": "127.0.0.1",
        "ssh_port": box.ssh_port,
        "ssh_user": user,
        "ssh_key": str(lab_key()),
        "ssh_known_hosts_file": str(folder / "known_hosts"),
        "_sudo": user != "root",
        "base": {"locale": "de_DE.UTF-8"},
        "ssh": {
            "lan_access": "keep",
            "root_login": "key",
            "authorised_keys": {
                user: [lab_key().with_suffix(".pub").read_text().strip()] for user in HOMES
            },
        },
        "docker": None,
        "tailnet": None,
    }
    inventory = folder / f"{user}.py"
    inventory.write_text(f"hosts = [('@rack/greeting', {host!r})]\n")
    return inventory


def verify(inventory: Path) -> subprocess.CompletedProcess[str]:
    """The checks of the host."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        + ["tests/host", "--inventory", str(inventory), *LEFT_OUT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SITE_SECONDS,
        check=False,
    )


def test_what_logins_print_changes_no_deploy_and_no_check(
    box: ContainerMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_SECRETS", str(tmp_path))
    greet(box, NOISY)
    inventories = {user: write_inventory(box, tmp_path, user) for user in HOMES}
    first = converge(inventories["root"], "first", tmp_path)
    assert first.ok, first.log.read_text()
    assert first.changed
    for user, inventory in inventories.items():
        again = converge(inventory, f"again as {user}", tmp_path)
        assert again.ok, again.log.read_text()
        assert again.changed == [], again.log.read_text()
        verified = verify(inventory)
        assert verified.returncode == 0, verified.stdout


@pytest.mark.parametrize("text", ["exit 0\n", "exec > /dev/null\n"])
def test_a_login_that_swallows_answers_ends_the_deploy(
    box: ContainerMachine, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_SECRETS", str(tmp_path))
    greet(box, text)
    inventory = write_inventory(box, tmp_path, "root")
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "deploy", str(inventory), SITE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    verified = verify(inventory)
    assert verified.returncode == 1, verified.stdout
    for ended in (done, verified):
        said = " ".join((ended.stdout + ended.stderr).split())
        assert "the output of a command is incomplete" in said
        assert "Traceback" not in said
