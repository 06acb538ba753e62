"""Every command that takes an inventory: one sentence and a failure where nothing can be done."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import paramiko
import pytest
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from tests.unit.site_data import SECRETS, keep_secrets

ROOT = Path(__file__).resolve().parents[2]

# What the file holds, and what the one sentence says: key, value, mend.
FILES: dict[str, tuple[str, str, str]] = {
    "hosts = []": ("hosts", "[]", "list one as @rack/NAME"),
    "hosts = ()": ("hosts", "()", "write a list"),
    "hosts = {'@rack/a'}": ("hosts", "{'@rack/a'}", "write a list"),
    "hosts = (['@rack/a'], {})": ("hosts", "(['@rack/a'], {})", "write a list"),
    "nets = ['192.168.1.0/24']": ("nets[0]", "192.168.1.0/24", "call it _nets"),
    "ports = [1]": ("ports[0]", "1", "call it _ports"),
    "net = ('192.168.1.0/24', 'home')": ("net", "('192.168.1.0/24', 'home')", "call it _net"),
    "net = ()": ("net", "()", "call it _net"),
    "x = 1\nimport broken_inventory": (
        "line 2",
        "broken_inventory.py, line 3",
        "correct that line",
    ),
    "": ("hosts", "[]", "list one as @rack/NAME"),
    "x = 1": ("hosts", "[]", "list one as @rack/NAME"),
    "_hosts = ['@rack/a']": ("hosts", "[]", "list one as @rack/NAME"),
    "hosts = [(": ("line 1", "hosts = [(", "correct that line"),
    "x = 1\n  hosts = []": ("line 2", "hosts = []", "correct that line"),
    "import nosuchmodule": ("line 1", "import nosuchmodule", "correct that line"),
    "x = 1\nfrom inventories.nothing import hosts": ("line 2", "import hosts", "correct that line"),
    "open('/nonexistent')": ("line 1", "open", "correct that line"),
    "hosts = [1 / 0]": ("line 1", "1 / 0", "correct that line"),
    "raise SystemExit(0)": ("line 1", "SystemExit", "correct that line"),
    "import os\nhosts = [os.environ['NO_SUCH']]": ("line 2", "NO_SUCH", "correct that line"),
    "hosts = '@rack/a'": ("hosts", "@rack/a", "write a list"),
    "hosts = {'@rack/a': {}}": ("hosts", "@rack/a", "write a list"),
    "hosts = None": ("hosts", "None", "write a list"),
    "hosts = [1]": ("hosts[0]", "1", "@rack/NAME"),
    "hosts = [None]": ("hosts[0]", "None", "@rack/NAME"),
    "hosts = [['@rack/a', {}]]": ("hosts[0]", "@rack/a", "@rack/NAME"),
    "hosts = [('@rack/a',)]": ("hosts[0]", "@rack/a", "@rack/NAME"),
    "hosts = [('@rack/a', [1])]": ("hosts[0]", "@rack/a", "@rack/NAME"),
    "hosts = [('@rack/a', {}, {})]": ("hosts[0]", "@rack/a", "@rack/NAME"),
    "hosts = [('@rack/a', {1: 2})]": ("hosts[0].1", "1", "in quotes"),
    "hosts = ['@rakc/a']": ("hosts[0]", "@rakc/a", "@rack/NAME"),
    "hosts = ['@local']": ("hosts[0]", "@local", "@rack/NAME"),
    "hosts = ['@docker/debian']": ("hosts[0]", "@docker/debian", "@rack/NAME"),
    "hosts = ['@rack']": ("hosts[0]", "@rack", "@rack/NAME"),
    "hosts = ['@rack/']": ("hosts[0]", "@rack/", "@rack/NAME"),
    "hosts = ['@rack/a b']": ("hosts[0]", "a b", "@rack/NAME"),
    "hosts = ['@rack/-oProxyCommand=x']": ("hosts[0]", "...", "@rack/NAME"),
    "hosts = ['plain']": ("hosts[0]", "plain", "write @rack/plain"),
    "hosts = ['']": ("hosts[0]", "''", "@rack/NAME"),
    "hosts = ['@rack/a', '@rack/a']": ("hosts[1]", "@rack/a", "keep one"),
    "hosts = ['@rack/a', ('@rack/A', {})]": ("hosts[1]", "@rack/A", "keep one"),
}


_SCRIPT = """
import json, sys
from holdfast.inventory_file import read
from holdfast.refusal import Refused
said = {}
for path in sys.argv[1:]:
    try:
        read(path)
    except Refused as refused:
        said[path] = [str(each) for each in refused.refusals]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """A folder of files, and what was said of each: by one program, for pyinfra's command line
    patches sockets and threads where it is imported.
    """
    folder = tmp_path_factory.mktemp("inventories")
    for index, text in enumerate(FILES):
        (folder / f"{index}.py").write_text(text)
    (folder / "latin.py").write_bytes(b"hosts = ['\xff']")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "broken_inventory.py").write_text("x = 1\ny = 2\nhosts = [(")
    (folder / "folder").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *map(str, folder.iterdir())],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(elsewhere)},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("text", FILES)
def test_a_file_of_no_inventory_is_one_sentence(
    text: str, said: tuple[Path, dict[str, list[str]]]
) -> None:
    key, value, mend = FILES[text]
    folder, sentences = said
    file = str(folder / f"{[*FILES].index(text)}.py")
    (sentence,) = sentences[file]
    assert sentence.startswith(f"{file}: {key} = ")
    assert value in sentence
    assert mend in sentence
    assert "\n" not in sentence


def test_a_file_that_is_no_text_is_one_sentence(said: tuple[Path, dict[str, list[str]]]) -> None:
    folder, sentences = said
    (latin,) = sentences[str(folder / "latin.py")]
    (nothing,) = sentences[str(folder / "folder")]
    assert "not UTF-8 text" in latin
    assert "no such file" in nothing


TARGETS = re.findall(
    r"^([a-z-]+):.*\n(?:\t.*\n)*?\t.*\$\(INVENTORY\)", (ROOT / "Makefile").read_text(), re.MULTILINE
)


def test_every_target_fails_in_one_sentence_where_there_is_no_inventory(tmp_path: Path) -> None:
    assert {"plan", "gpus", "deploy", "replace", "verify", "sovereignty", "policy"} < {*TARGETS}
    empty = tmp_path / "empty.py"
    empty.write_text("hosts = []\n")
    words = {str(empty): "list one as @rack/NAME", "inventories/misspelt.py": "no such file"}
    runs = {
        (target, inventory): subprocess.Popen(
            # uv would look for packages; what is installed is what is meant.
            ["make", "-s", target, f"INVENTORY={inventory}", "RUN=", "ENGINE=a", "MODEL=b"],
            cwd=ROOT,
            env=os.environ
            | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            | {"MAKEFLAGS": "-o setup -o setup-lab"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for target, inventory in zip(TARGETS, [*words] * len(TARGETS), strict=False)
    }
    for (target, inventory), run in runs.items():
        output, _ = run.communicate(timeout=240)
        assert run.returncode != 0, (target, output)
        assert words[inventory] in output, (target, output)
        assert "Traceback" not in output, (target, output)
        assert "INTERNALERROR" not in output, (target, output)


PLAIN = {
    "inventories/misspelt.py": "no such file",
    "hosts = []": "list one as @rack/NAME",
    "_hosts = ['@rack/a']": "list one as @rack/NAME",
    "hosts = '@rack/a'": "write a list",
    "raise SystemExit(0)": "correct that line",
    # Not in a file, where it has no settings.
    "@rack/a": "no such file",
}


@pytest.mark.parametrize("given", PLAIN)
def test_pyinfra_itself_does_not_deploy_to_no_host(given: str, tmp_path: Path) -> None:
    inventory = tmp_path / "mine.py"
    is_text = "hosts" in given or "Exit" in given
    if is_text:
        inventory.write_text(f"{given}\n")
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "pyinfra", "-y", str(inventory) if is_text else given, deploy],
            cwd=ROOT,
            env=os.environ | {"PYINFRA_PROGRESS": "off"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for deploy in ("deploys/site.py", str(ROOT / "deploys/replace.py"))
    ]
    for run in runs:
        output, _ = run.communicate(timeout=240)
        assert run.returncode != 0, output
        assert PLAIN[given] in output
        assert "Traceback" not in output


class _Host(paramiko.ServerInterface):
    """An SSH server that lets anybody in and runs each command with a ``PATH`` of its own.

    ``systemd`` stands for the folder that systemd makes where it runs.
    """

    def __init__(self, path: str, systemd: str) -> None:
        self.path = path
        self.systemd = systemd.encode()

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        def run() -> None:
            shell = shutil.which("sh") or "/bin/sh"
            here = command.replace(b"/run/systemd/system", self.systemd)
            ran = subprocess.run(
                [shell, "-c", here], env={"PATH": self.path}, check=False, capture_output=True
            )
            # One thread says that the command was accepted, and then reads this answer. A channel
            # that closes before the command was accepted is a refusal to the client.
            channel.get_transport().global_request("accepted@holdfast")
            channel.sendall(ran.stdout)
            channel.sendall_stderr(ran.stderr)
            channel.send_exit_status(ran.returncode)
            with suppress(OSError, EOFError):
                channel.close()

        threading.Thread(target=run, daemon=True).start()
        return True


@pytest.fixture
def knocked() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def _serve(door: socket.socket, path: str | None, systemd: str) -> None:
    """Answer each connection: as a host, or by hanging up before a word where ``path`` is None."""
    key = paramiko.RSAKey.generate(2048)

    def answer() -> None:
        while True:
            try:
                there, _ = door.accept()
            except OSError:
                return
            if path is None:
                there.close()
                continue
            transport = paramiko.Transport(there)
            transport.add_server_key(key)
            transport.start_server(event=threading.Event(), server=_Host(path, systemd))

    threading.Thread(target=answer, daemon=True).start()


UNFIT = {
    "hangs up": (None, "Error reading SSH protocol banner"),
    "no systemd": ("exit 0", "does not run systemd"),
    "a password": ("exit 1", "asks operator for a password"),
    "no sudo": ("", "sudo is not installed"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_host_on_which_nothing_can_be_done_is_one_sentence(
    kind: str, knocked: socket.socket, tmp_path: Path
) -> None:
    sudo, words = UNFIT[kind]
    programs = tmp_path / "bin"
    programs.mkdir()
    if sudo:
        (programs / "sudo").write_text(f"#!/bin/sh\n{sudo}\n")
        (programs / "sudo").chmod(0o755)
    systemd = "/nonexistent" if kind == "no systemd" else str(tmp_path)
    _serve(knocked, None if sudo is None else str(programs), systemd)
    key = tmp_path / "key"
    paramiko.RSAKey.generate(2048).write_private_key_file(str(key))
    keep_secrets(tmp_path, SECRETS)
    inventory = tmp_path / "mine.py"
    inventory.write_text(
        f"""hosts = [("@rack/rack", {{
            "hostname": "rack", "distribution": "debian13",
            "interfaces": {{"eth0": {{"role": "lan"}}}}, "ssh_hostname": "127.0.0.1",
            "ssh_port": {knocked.getsockname()[1]}, "ssh_user": "operator", "_sudo": True,
            "ssh_key": {str(key)!r}, "ssh_known_hosts_file": {str(tmp_path / "known")!r},
        }})]"""
    )
    run = _holdfast(tmp_path, "deploy", inventory, ROOT / "deploys/site.py")
    assert run.returncode != 0, run.stderr
    sentences = [line for line in run.stderr.splitlines() if words in line]
    assert len(sentences) == 1, run.stderr
    assert "rack" in sentences[0]
    assert "Traceback" not in run.stderr


@pytest.fixture
def machine(knocked: socket.socket, tmp_path: Path) -> dict[str, object]:
    """What an inventory says of a host on which something can be done: this machine, by SSH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sudo").write_text("#!/bin/sh\nexit 0\n")
    (programs / "sudo").chmod(0o755)
    _serve(knocked, f"{programs}:{os.environ['PATH']}", str(tmp_path))
    key = tmp_path / "key"
    paramiko.RSAKey.generate(2048).write_private_key_file(str(key))
    return {
        "ssh_hostname": "127.0.0.1",
        "ssh_port": knocked.getsockname()[1],
        "ssh_key": str(key),
        "ssh_known_hosts_file": str(tmp_path / "known"),
    }


def _holdfast(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "holdfast", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"HOLDFAST_SECRETS": str(folder), "PYINFRA_PROGRESS": "off"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_plan_changes_nothing_and_a_deploy_does(
    machine: dict[str, object], tmp_path: Path
) -> None:
    keep_secrets(tmp_path, SECRETS)
    bare = {"hostname": "b", "distribution": "debian13", "interfaces": {"eth0": {"role": "lan"}}}
    inventory, deploy, made = (tmp_path / name for name in ("mine.py", "deploy.py", "made"))
    inventory.write_text(f"hosts = [('@rack/b', {bare | machine!r})]")
    deploy.write_text(
        "from pyinfra.operations import server\n"
        f"server.shell(name='Make it', commands=[': > {made}'])\n"
    )

    offline = _holdfast(tmp_path, "plan", inventory, deploy, "--offline")
    assert (offline.returncode, offline.stderr) == (0, "")
    assert offline.stdout == "1 host, nothing to refuse\n"
    planned = _holdfast(tmp_path, "plan", inventory, deploy)
    assert planned.returncode == 0, planned.stderr
    assert "1 host, nothing to refuse" in planned.stdout
    assert "Make it" in planned.stderr
    assert not made.exists()

    deployed = _holdfast(tmp_path, "deploy", inventory, deploy)
    assert deployed.returncode == 0, deployed.stderr
    assert made.exists()

    absent = _holdfast(tmp_path, "deploy", inventory, tmp_path / "absent.py")
    assert absent.returncode == 1
    assert "absent.py" in absent.stderr
    assert "Traceback" not in absent.stderr


def test_a_replacement_names_its_engine_and_model(
    machine: dict[str, object], tmp_path: Path
) -> None:
    names = re.findall(r"^([A-Z_]+)=$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    keep_secrets(tmp_path, {name: f"{name.lower()[:9]}-9fKq27xLmZ" for name in names})
    inventory, asked = tmp_path / "mine.py", tmp_path / "asked"
    inventory.write_text(
        "from inventories.complete import hosts as _complete\n"
        "((_name, _rack),) = _complete\n"
        "(_model,) = _rack['storage']['checkpoints']\n"
        f"_model = _model | {{'description': {str(ROOT)!r} + '/' + _model['description']}}\n"
        "_models = [_model, _model | {'name': 'other'}]\n"
        "_storage = _rack['storage'] | {'checkpoints': _models}\n"
        "_services = [each for each in _rack['services'] if 'python' not in each]\n"
        "_rack = _rack | {'storage': _storage, 'services': _services}\n"
        f"hosts = [(_name, _rack | {machine!r})]\n"
    )
    (tmp_path / "deploys").mkdir()
    (tmp_path / "deploys" / "replace.py").write_text(
        "import os\n"
        f"open({str(asked)!r}, 'w').write(os.environ['ENGINE'] + ' ' + os.environ['MODEL'])\n"
    )
    wrong = _holdfast(tmp_path, "replace", inventory, "chatt", "other")
    assert wrong.returncode == 1
    (sentence,) = wrong.stderr.splitlines()
    assert sentence.startswith("inventory: ENGINE = 'chatt': no host of the inventory declares")
    assert not asked.exists()
    done = _holdfast(tmp_path, "replace", inventory, "chat", "other")
    assert done.returncode == 0, done.stderr
    assert asked.read_text() == "chat other"
