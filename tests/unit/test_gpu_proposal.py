"""`holdfast gpus`: what a live machine has, as an inventory would say it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facts.gpu import GpuPicture
from facts.gpu_picture import Picture
from holdfast.gpu.proposal import proposal
from holdfast.settings import Gpus
from tests.unit.gpu_racks import RackName, lay_out, recorded
from tests.unit.local_host import LocalHost
from tests.unit.recorded_facts import framed_lines

ROOT = Path(__file__).resolve().parents[2]


def _pasted(text: str) -> dict[str, Any]:
    """What Python makes of the proposal inside the data of a host."""
    data = ast.literal_eval("{\n" + text + "\n}")
    assert isinstance(data, dict)
    gpus = data["gpus"]
    assert isinstance(gpus, dict)
    return gpus


@pytest.mark.parametrize("name", ["rtx3060", "rack9x3090", "rtx5090", "hgx8xh100", "h200"])
def test_pasted_it_is_an_inventory_that_says_what_was_measured(name: RackName) -> None:
    picture = recorded(name)
    settings = Gpus.model_validate(_pasted(proposal("rack", picture)))
    assert picture.smi is not None
    assert [
        (card.pci_address, card.device, card.uuid, card.vram_mib) for card in settings.cards
    ] == [(card.address, card.device, card.uuid, card.memory_total_mib) for card in picture.smi]
    assert [card.link_width for card in settings.cards] == [card.link_width for card in picture.pci]
    assert {card.power_cap_w for card in settings.cards} == {None}
    assert len({card.name for card in settings.cards}) == len(settings.cards)


def test_a_narrow_link_is_proposed_and_remarked_upon() -> None:
    (line,) = (
        row for row in proposal("a", recorded("rtx5090")).splitlines() if "link_width" in row
    )
    assert line.strip().startswith('"link_width": 8,  #')
    assert "x16" in line
    assert "can do" not in proposal("a", recorded("rtx3060"))


def test_a_limit_that_is_set_becomes_the_cap() -> None:
    picture = recorded("rack9x3090")
    assert picture.smi is not None
    capped = tuple(
        replace(card, power_limit_w=250.0) if card.index == 4 else card for card in picture.smi
    )
    settings = Gpus.model_validate(_pasted(proposal("a", replace(picture, smi=capped))))
    assert [card.power_cap_w for card in settings.cards] == [None] * 4 + [250] + [None] * 4


def test_a_card_without_a_driver_and_one_for_a_guest() -> None:
    picture = recorded("rack9x3090")
    guest = replace(picture.pci[0], driver="vfio-pci")
    down = replace(picture.pci[1], link_width=0, driver=None)
    text = proposal("a", replace(picture, pci=(guest, down), smi=None))
    first, second = _pasted(text)["cards"]
    assert first["role"] == "passthrough"
    assert (second["vram_mib"], second["link_width"]) == (0, 16)
    assert "uuid" not in first
    # Pasted as it is, the inventory is refused where the owner has to fill something in.
    with pytest.raises(ValueError, match="vram_mib"):
        Gpus.model_validate({"cards": [second]})


def test_no_card_is_a_sentence() -> None:
    text = proposal("tower", Picture())
    assert text.startswith("# tower: no NVIDIA card")
    assert "\n" not in text


# A program of its own: pyinfra's command line patches sockets and threads when it is imported.
PROPOSE = """
import json, sys
from holdfast.commands.gpus import propose
from pyinfra.api import Inventory
hosts = json.load(open(sys.argv[1]))
fakes = [
    (name, {"fake_responses": {"query-gpu": lines}, "fake_delay": 0.0, "fake_delay_jitter": 0.0})
    for name, lines in hosts.items()
]
sys.exit(propose(Inventory((fakes, {}))))
"""


def _propose(tmp_path: Path, hosts: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps(hosts))
    return subprocess.run(
        [sys.executable, "-c", PROPOSE, str(answers)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_host_of_an_inventory_is_asked(tmp_path: Path) -> None:
    rack = lay_out("rtx5090", tmp_path / "rack")
    host = LocalHost(programs=rack.programs)
    output = host._run(GpuPicture().command(root=str(rack.root))).stdout.splitlines()
    done = _propose(
        tmp_path,
        {
            "@fake/one": output,
            "@fake/broken": {"success": False, "stderr": "disk on fire"},
            "@fake/bare": framed_lines(["#= smi", "#= pci"]),
        },
    )
    assert done.returncode == 1
    assert proposal("@fake/one", rack.picture()) in done.stdout
    assert "# @fake/bare: no NVIDIA card" in done.stdout
    assert "disk on fire" in done.stderr
    assert "broken" not in done.stdout


def test_a_single_host_that_fails(tmp_path: Path) -> None:
    done = _propose(tmp_path, {"@fake/broken": {"success": False, "stderr": "disk on fire"}})
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_an_inventory_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "gpus", str(tmp_path / "none.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "no such file" in done.stderr
    assert "Traceback" not in done.stderr
