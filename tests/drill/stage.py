"""The drill's stage: a rack, its neighbour, what the controller serves, and the inventory."""

from __future__ import annotations

import json
import os
import runpy
import secrets
import subprocess
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Any

from holdfast.settings import HostSettings
from tests.drill.converge import ROOT
from tests.drill.rehearsal import Scenery
from tests.lab.images import OPERATOR, lab_key
from tests.lab.lab import Lab
from tests.lab.machine import Machine, Shell
from tests.lab.services import Services

FOLDER = ROOT / ".lab"
INVENTORY = ROOT / "inventories" / "drill.py"
NAS_EXPORT = "/srv/holdfast"
AUTH_KEY = "TAILSCALE_AUTH_KEY"
OTHER_SECRETS = ("FLOOR_API_KEY", "RESTIC_NAS_PASSWORD", "RESTIC_OFFSITE_PASSWORD")
OFFSITE_PASSWORD = "OFFSITE_USER_PASSWORD"


class RackStage(Scenery):
    """A rack that takes the whole site, and what the controller serves beside it."""

    debian: int
    services: Services
    secrets: tuple[str, ...] = OTHER_SECRETS
    """Secrets that have no other source than chance."""

    @property
    @abstractmethod
    def rack(self) -> Machine:
        """The machine on trial."""

    @property
    @abstractmethod
    def neighbour(self) -> Shell:
        """A hostile host on the rack's LAN."""

    @property
    def inventory(self) -> Path:
        """The inventory that the drill deploys."""
        return INVENTORY

    @property
    def settings(self) -> HostSettings:
        """What the inventory says.

        Not read through pyinfra: its inventories bring gevent, which patches every reader.
        """
        return HostSettings.model_validate(self.inventory_data())

    def inventory_data(self) -> dict[str, Any]:
        """The rack's data in `inventories/drill.py`."""
        (host,) = runpy.run_path(str(INVENTORY))["hosts"]
        data: dict[str, Any] = host[1]
        return data

    def adopt_environment(self) -> None:
        """Have inventories that this process and its children read be this stage's."""
        os.environ["HOLDFAST_LAB"] = str(self.folder / "lab.json")
        os.environ["HOLDFAST_SECRETS"] = str(self.folder)

    def write_inventory_data(self) -> None:
        """Write `lab.json`, the SSH configuration and the secrets of this lab."""
        facts = self.services.facts()
        facts |= {
            "debian": self.debian,
            "ssh_config": str(self.folder / "ssh_config"),
            "operator_key": lab_key().with_suffix(".pub").read_text().strip(),
        }
        (self.folder / "lab.json").write_text(json.dumps(facts, indent=2) + "\n")
        self._write_ssh_config()
        for name in self.secrets:
            if not self._secret(name).exists():
                self.renew(name)
        password = Path(facts["offsite"]["password_file"]).read_text().strip()
        self._keep_secret(OFFSITE_PASSWORD, password)
        self.invite_rack()

    def adopt_policy(self) -> None:
        """Have the control server enforce what `make policy` prints.

        Without its tests: no machine with the rack's tag has joined yet.
        """
        self.services.headscale.adopt_policy({**self.policy(), "tests": []})

    def policy(self) -> dict[str, Any]:
        """What `make policy` prints of the rack."""
        done = subprocess.run(
            [sys.executable, "-m", "holdfast", "policy", str(self.inventory)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def invite_rack(self) -> None:
        """Mint a key for one join, and forget a rack of that name which is no more."""
        self.services.headscale.delete_node("rack")
        # A power cut just after the control server has taken the key would use it up.
        key = self.services.headscale.create_preauth_key("rack", tags=("tag:rack",), reusable=True)
        self._keep_secret(AUTH_KEY, key.read_text().strip())
        key.unlink()

    def wipe_rack(self) -> None:
        """Cut the rack's power, give it an empty disk and boot it: the machine was lost."""
        self.rack.crash()
        self.rack.wipe()
        self.power_on_rack()
        # A new machine has new host keys; the operator who replaced it knows that.
        self.rack.known_hosts.touch()
        self.invite_rack()

    @abstractmethod
    def raise_curtain(self) -> None:
        """Start everything, bare, and declare the rack."""

    @abstractmethod
    def power_on_rack(self) -> None:
        """Start the rack and wait until it takes logins."""

    def secret(self, name: str) -> str:
        """The value of a secret, for the drill's own logins."""
        return self._secret(name).read_text().strip()

    def renew(self, secret: str) -> str:
        """Give a secret a new value; returns it."""
        value = secrets.token_urlsafe(32)
        self._keep_secret(secret, value)
        return value

    def _secret(self, name: str) -> Path:
        return self.folder / "secrets" / name

    def _keep_secret(self, name: str, value: str) -> None:
        path = self._secret(name)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(value + "\n")

    def _write_ssh_config(self) -> None:
        rack = self.rack
        rack.known_hosts.touch()
        by_tailnet = (
            "Host rack\n"
            f"    ProxyCommand {self.services.tailnet.proxy_command()}\n"
            f"    User {OPERATOR}\n"
            f"    IdentityFile {lab_key()}\n"
            "    IdentitiesOnly yes\n"
            f"    UserKnownHostsFile {rack.known_hosts}\n"
            "    StrictHostKeyChecking accept-new\n"
        )
        (self.folder / "ssh_config").write_text(rack.ssh_settings() + by_tailnet)


class Stage(RackStage):
    """A rack, a neighbour and a NAS on one LAN of virtual machines."""

    def __init__(self, debian: int, folder: Path = FOLDER) -> None:
        super().__init__(folder)
        self.debian = debian
        self.services = Services(folder / "services")
        self.lab = Lab.create(folder / "machines", release=f"debian-{debian}")

    @property
    def machines(self) -> Lab:
        """The lab's."""
        return self.lab

    @property
    def rack(self) -> Machine:
        """The lab's."""
        return self.lab.rack

    @property
    def neighbour(self) -> Machine:
        """The lab's."""
        return self.lab.neighbour

    def raise_curtain(self) -> None:
        """Start services and machines, and write what `inventories/drill.py` reads."""
        self.adopt_environment()
        self.services.start()
        self.lab.start()
        model = self.services.artefacts["gguf"].file("tiny.gguf")
        self.lab.nas.copy_to(model, f"{NAS_EXPORT}/models/{model.name}")
        self.write_inventory_data()
        self.adopt_policy()

    def power_on_rack(self) -> None:
        """Start the rack and wait until it takes logins."""
        self.lab.start("rack")

    def lower_curtain(self) -> None:
        """Stop everything; logs and disks stay for a look."""
        self.lab.power_off()
        self.services.stop()
