"""The command `holdfast`: its sub-commands, their help, and how a bad call ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast import __main__ as command_line
from holdfast import commands
from tests.unit.recorded_facts import framed_lines
from tests.unit.site_data import keep_secrets

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_AN_INVENTORY = re.findall(
    r"^([a-z-]+):.*\n(?:\t.*\n)*?\t.*\$\(INVENTORY\)", MAKEFILE, re.MULTILINE
)


def _names() -> list[str]:
    """What can stand after `holdfast`."""
    listed = CliRunner().invoke(command_line.application(), ["--help"]).stdout
    return re.findall(r"^  ([a-z-]+) +", listed.partition("Commands:")[2], re.MULTILINE)


NAMES = _names()


def _run(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYINFRA_PROGRESS": "off"} | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_every_target_with_an_inventory_is_a_sub_command() -> None:
    typed = dict(re.findall(r"^([a-z-]+):.*\n\t@?\$\(RUN\) holdfast ([a-z-]+)", MAKEFILE, re.M))
    assert set(typed) == set(WITH_AN_INVENTORY)
    assert set(typed.values()) == set(NAMES)


def test_what_the_pages_type_is_a_sub_command() -> None:
    typed = {
        name
        for page in PAGES
        for name in re.findall(r"(?:^|`)holdfast ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert {"plan", "deploy", "replace"} <= typed
    assert typed <= set(NAMES)


def test_the_installed_command_is_the_same() -> None:
    (script,) = entry_points(group="console_scripts", name="holdfast")
    assert script.load() is command_line.main


def test_a_file_in_the_folder_is_a_sub_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "count_words.py").write_text(
        "def count_words(text: str) -> int:\n"
        '    """Count the words of a text."""\n'
        "    return len(text.split())\n"
    )
    (tmp_path / "_shared.py").write_text("raise AssertionError\n")
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    application = command_line.application()
    listed = CliRunner().invoke(application, ["--help"]).stdout
    assert re.search("count-words +Count the words of a text.\n", listed)
    assert CliRunner().invoke(application, ["count-words", "one two three"]).exit_code == 3


def test_each_has_one_line_of_help() -> None:
    done = CliRunner().invoke(command_line.application(), ["--help"], env={"COLUMNS": "80"})
    (listed,) = re.findall(r"Commands:\n((?:  .+\n)+)", done.stdout)
    lines = listed.splitlines()
    assert len(lines) == len(NAMES)
    assert [line for line in lines if not re.match(r"  [a-z-]+ +[A-Z].*[^.]\.$", line)] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_argument_is_a_usage_sentence(name: str) -> None:
    done = CliRunner().invoke(command_line.application(), [name])
    assert done.exit_code == 2
    assert done.stdout == ""
    usage, _, _, error = done.stderr.splitlines()
    assert re.match(rf"Usage: \S+ {name} \[OPTIONS\] {{INVENTORY}}", usage)
    assert error == "Error: Missing argument 'INVENTORY'."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plna"], "Did you mean 'plan'?"),
        (["replace", "x.py", "chat"], "Missing argument 'MODEL'"),
        (["bench", "x.py"], "Missing argument 'ENGINE'"),
        (["bench", "x.py", "chat", "--requests", "0"], "'--requests'"),
        (["bench", "x.py", "chat", "--requests", "many"], "'--requests'"),
        (["deploy", "x.py", "--dry"], "No such option: --dry"),
        (["policy", "x.py", "y.py"], "unexpected extra argument"),
    ],
)
def test_a_bad_call_is_a_usage_sentence(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(command_line.application(), arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_help_needs_no_pyinfra_and_no_settings() -> None:
    script = (
        "import sys\nfrom holdfast.__main__ import main\n"
        "try:\n    main(['plan', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "print({'pyinfra', 'paramiko', 'rich', 'holdfast.settings'} & {*sys.modules})\n"
    )
    done = _run("-c", script)
    assert done.stdout.startswith("Usage: ")
    assert done.stdout.endswith("\nset()\n")


def test_a_fault_of_holdfasts_own_is_one_sentence_without_a_secret(tmp_path: Path) -> None:
    keep_secrets(tmp_path, {"WORK_KEY": "w0rk-Rt58pLz-31Vqmc9x"})
    (tmp_path / "faulty.py").write_text(
        "def faulty() -> int:\n"
        "    key = 'w0rk-Rt58pLz-31Vqmc9x'\n"
        "    raise RuntimeError(f'no door for {key}')\n"
    )
    script = (
        "from holdfast import commands\n"
        f"commands.__path__.append({str(tmp_path)!r})\n"
        "from holdfast.__main__ import main\n"
        "main(['faulty'])\n"
    )
    done = _run("-c", script, cwd=tmp_path, HOLDFAST_SECRETS=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("RuntimeError: no door for ...: this is a bug in Holdfast")
    kept = (tmp_path / "pyinfra-debug.log").read_text()
    assert "faulty.py" in kept
    assert "w0rk-" not in done.stderr + kept


def test_verify_judges_a_host_and_takes_options_of_pytest(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "host"
    folder.mkdir(parents=True)
    (folder / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--inventory')\n"
    )
    (folder / "test_host.py").write_text(
        "def test_good(request):\n    assert request.config.option.inventory == 'mine.py'\n"
        "def test_bad():\n    assert False\n"
    )
    verify = ["-m", "holdfast", "verify", "mine.py"]
    judged = _run(*verify, cwd=tmp_path)
    assert (judged.returncode, "1 failed, 1 passed" in judged.stdout) == (1, True), judged.stdout
    good = _run(*verify, "--", "-k", "good", cwd=tmp_path)
    assert (good.returncode, "1 passed" in good.stdout) == (0, True), good.stdout


# A program of its own: pyinfra's command line patches sockets and threads when it is imported.
LIVE = """
import json, sys
from pyinfra.api import Inventory
from holdfast import inventory_file
from holdfast.__main__ import main
from holdfast.settings import HostSettings
names, fakes = [], []
for name, responses in json.loads(sys.argv[1]).items():
    fake = {"fake_responses": responses, "fake_delay": 0.0, "fake_delay_jitter": 0.0}
    fakes.append((name, fake))
    names.append(name)
bare = {"hostname": "b", "distribution": "debian13", "interfaces": {"eth0": {"role": "lan"}}}
inventory_file.read = lambda _: Inventory((fakes, {}))
inventory_file.load = lambda _: {name: HostSettings.model_validate(bare) for name in names}
main(sys.argv[2:])
"""


def _live(hosts: dict[str, object], *arguments: str) -> subprocess.CompletedProcess[str]:
    return _run("-c", LIVE, json.dumps(hosts), *arguments, COLUMNS="200")


def test_sovereignty_and_gpus_ask_each_host() -> None:
    broken = {"success": False, "stderr": "disk on fire"}
    answers = {"nft": framed_lines(["#= counters", "#= calls", "#= sockets"])}
    told = _live({"@fake/one": answers}, "sovereignty", "mine.py")
    assert told.returncode == 0, told.stderr
    assert "@fake/one: the kernel has no rules, deploy first" in told.stdout
    bare = {"query-gpu": framed_lines(["#= smi", "#= pci"])}
    told = _live({"@fake/one": bare, "@fake/two": {"query-gpu": broken}}, "gpus", "mine.py")
    assert told.returncode == 1
    assert told.stdout.startswith("# @fake/one: no NVIDIA card")
    assert "disk on fire" in told.stderr
    told = _live({"@fake/one": {"nft": broken}}, "sovereignty", "mine.py")
    assert (told.returncode, told.stdout) == (1, "")


def test_bench_of_an_engine_that_is_not_declared_is_a_sentence() -> None:
    done = _live({"@fake/one": {}}, "bench", "mine.py", "chat")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "mine.py declares 0 engines 'chat'\n"


BENCH = """
import json, sys
from pyinfra.api import Inventory
from holdfast import inventory_file
from holdfast.__main__ import main
(settings,) = inventory_file.load("inventories/complete.py").values()
fake = {"fake_responses": json.loads(sys.argv[1]), "fake_delay": 0.0, "fake_delay_jitter": 0.0}
inventory_file.read = lambda _: Inventory(([("@fake/rack", fake)], {}))
inventory_file.load = lambda _: {"@fake/rack": settings}
main(["bench", "mine.py", "chat", *sys.argv[2:]])
"""


def test_bench_keeps_a_row_and_reports_an_engine_that_became_slower(tmp_path: Path) -> None:
    names = re.findall(r"^([A-Z_]+)=$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    keep_secrets(tmp_path, {name: f"{name.lower()[:9]}-9fKq27xLmZ" for name in names})
    result = (ROOT / "tests/unit/recorded/bench_serve.json").read_text().strip()
    file = tmp_path / "serving.csv"

    def bench(result: str, *options: str) -> subprocess.CompletedProcess[str]:
        answers = json.dumps({"bench serve": framed_lines([result, "250.0, 61"])})
        arguments = [answers, "--csv", str(file), *options]
        return _run("-c", BENCH, *arguments, HOLDFAST_SECRETS=str(tmp_path))

    first = bench(result)
    assert (first.returncode, first.stderr) == (0, "")
    assert re.match(r"[\d.]+ tokens/s, first token after", first.stdout)
    assert len(file.read_text().splitlines()) == 2
    speed = json.loads(result)["output_throughput"]
    slow = result.replace(str(speed), str(speed / 10))
    # Another load is another measurement.
    assert bench(slow, "--requests", "7").returncode == 0
    slower = bench(slow)
    assert slower.returncode == 1
    assert "tokens/s and made" in slower.stderr
