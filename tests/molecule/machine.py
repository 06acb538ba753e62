"""`python -m tests.molecule.machine create|destroy SCENARIO`: what Molecule's playbooks run.

A scenario's machine is the lab's systemd container (`tests/lab/container_machine.py`), with its
inventory, `ssh_config`, secrets and logs in `.lab/molecule/SCENARIO`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import yaml

from tests.drill.container_stage import ContainerStage
from tests.drill.converge import ROOT
from tests.drill.serving import ServingStage
from tests.lab.container_machine import ContainerMachine
from tests.lab.images import OPERATOR, lab_key
from tests.lab.services.daemon import stop_all

FOLDER = ROOT / ".lab" / "molecule"
RESOLVER = "10.0.2.3"
"""The one that a container machine's network brings along."""


class BaseStage(ContainerStage):
    """A machine that is hardened, and serves nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, secrets=(), checkpoints={})

    def raise_curtain(self) -> None:
        """Have the base declared, with a network whose containers reach nothing."""
        super().raise_curtain()
        docker = {
            "source": "distribution",
            "dns": [RESOLVER],
            "networks": [{"name": "sealed-net", "tier": "T1", "subnets": ["fd99:8::/64"]}],
        }
        self.write_inventory(docker=docker, storage={}, floor=None)


STAGES = {"default": BaseStage, "serving": ServingStage}
"""Scenario -> the stage that has its machine and declares it."""


def create(scenario: str, folder: Path) -> None:
    """Start a scenario's machine, and write the file in which Molecule looks for it."""
    stage = STAGES[scenario](folder)
    stage.raise_curtain()
    instance = {
        "instance": stage.rack.name,
        "address": "127.0.0.1",
        "port": stage.rack.ssh_port,
        "user": OPERATOR,
        "identity_file": str(lab_key()),
    }
    Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).write_text(yaml.safe_dump([instance]))


def destroy(folder: Path) -> None:
    """Stop a scenario's machine and the services beside it; logs and disk stay for a look."""
    ContainerMachine.power_off_leftover(folder / "rack")
    stop_all(folder / "services")
    Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).unlink(missing_ok=True)


def main() -> None:
    """Do what a playbook asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["create", "destroy"])
    parser.add_argument("scenario", choices=STAGES)
    asked = parser.parse_args()
    folder = FOLDER / asked.scenario
    if asked.verb == "create":
        create(asked.scenario, folder)
    else:
        destroy(folder)


if __name__ == "__main__":
    main()
