"""Caps on a fake rack of nine cards, on a real kernel and systemd: `pytest -m lab tests/lab`."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.gpu import limits
from tests.doubles import guest
from tests.doubles.rack import Rack, known
from tests.drill.converge import Outcome, converge
from tests.lab import Lab
from tests.lab.machine import Machine

pytestmark = pytest.mark.lab

CAP_W = 280
DESCRIPTION = "/etc/holdfast-rack.json"
SITE = Path(__file__).with_name("gpu_site.py")
LIMITS = "nvidia-smi --query-gpu=power.limit --format=csv,noheader,nounits"
ALL_CAPPED = f'[ "$({LIMITS} | sort | uniq -c | xargs)" = "9 {CAP_W}.00" ]'


@pytest.fixture(scope="module")
def cards() -> Rack:
    """Nine RTX 3090, with persistence as nvidia-persistenced gives it."""
    rack = known("rack9x3090")
    for card in rack.cards:
        card.persistence = True
    return rack


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, cards: Rack) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("guest")
    guest.guest(cards, folder / "root")
    archive = folder / "guest.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / "root", arcname=".", filter=_owned_by_root)
    with Lab.create(tmp_path_factory.mktemp("lab"), machines=("rack",)) as lab:
        lab.start(warm=("rack",))
        lab.rack.copy_to(archive, "/root/guest.tar")
        lab.rack.succeed(
            "apt-get update -qq && DEBIAN_FRONTEND=noninteractive"
            " apt-get install -qq -y --no-install-recommends python3"
            " && tar -C / --keep-directory-symlink -xf /root/guest.tar && ldconfig"
            " && udevadm control --reload && systemctl daemon-reload"
            " && systemctl start holdfast-rack-pci",
            timeout_seconds=900,
        )
        yield lab


@pytest.fixture(scope="module")
def deploy(
    lab: Lab, cards: Rack, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Outcome]:
    """Run the site's GPU part on the rack; takes a label for the log."""
    folder = tmp_path_factory.mktemp("site")
    declared = [
        {
            "name": f"shelf-{number}",
            "device": "2204",
            "vram_mib": 24576,
            "uuid": card.uuid,
            "pci_address": card.address,
            "power_cap_w": CAP_W,
        }
        for number, card in enumerate(cards.cards, start=1)
    ]
    settings = {
        "hostname": "rack",
        "distribution": "debian13",
        "interfaces": {"eth0": {"role": "management"}, "eth1": {"role": "lan"}},
        "lan_address": "rack-lan",
        "ssh_config_file": str(lab.directory / "ssh_config"),
        "ssh_user": "operator",
        "_sudo": True,
        "tailnet": None,
        "docker": None,
        "ssh": {"lan_access": "keep", "lan_sources": ["10.0.2.0/24"]},
        "gpus": {"cards": declared, "containers": False},
    }
    inventory = folder / "inventory.py"
    inventory.write_text(f"hosts = [('@rack/rack', {settings!r})]\n")
    return lambda label: converge(inventory, label, folder, site=SITE)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def test_every_card_is_capped_and_a_second_run_changes_nothing(
    lab: Lab, deploy: Callable[[str], Outcome]
) -> None:
    first = deploy("bare")
    assert first.ok, first.failed
    lab.rack.succeed(ALL_CAPPED, timeout_seconds=120)
    second = deploy("again")
    assert (second.ok, second.changed) == (True, [])


def test_caps_are_back_by_themselves_after_the_driver_was_reloaded(lab: Lab) -> None:
    lab.rack.succeed("rm -f /run/holdfast-rack/*")
    lab.rack.fail(ALL_CAPPED, timeout_seconds=120)
    lab.rack.wait_until_succeeds(ALL_CAPPED, timeout_seconds=300)


def test_caps_are_back_after_a_reboot(lab: Lab) -> None:
    lab.rack.reboot()
    lab.rack.wait_until_succeeds(ALL_CAPPED, timeout_seconds=400)
    assert _result(lab.rack) == "success"


def test_a_card_that_vanishes_is_told_by_the_unit_and_by_the_next_run(
    lab: Lab, deploy: Callable[[str], Outcome]
) -> None:
    rack = lab.rack
    description = json.loads(rack.succeed(f"cat {DESCRIPTION}"))
    description["cards"][3]["state"] = "lost"
    rack.succeed(
        f"cat > {DESCRIPTION}.new <<'END' && mv {DESCRIPTION}.new {DESCRIPTION}\n"
        f"{json.dumps(description)}\nEND"
    )
    rack.succeed("echo 'kernel: NVRM: Xid (PCI:0000:44:00): 79, pid=1' > /dev/kmsg")
    rack.wait_until_succeeds(f"systemctl is-failed {limits.SERVICE}", timeout_seconds=300)
    said = rack.succeed(f"journalctl --boot --output=cat --unit={limits.SERVICE}")
    assert "shelf-4" in said
    assert "is gone" in said
    outcome = deploy("sick")
    assert not outcome.ok
    assert "shelf-4 fell off the bus in this boot (Xid 79" in outcome.log.read_text()


def _result(rack: Machine) -> str:
    return rack.succeed(f"systemctl show --property=Result --value {limits.SERVICE}").strip()
