"""The drill's stage: the lab's machines and services, and the inventory data that names them."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.drill.converge import ROOT
from tests.drill.rehearsal import Scenery
from tests.lab.images import OPERATOR, lab_key
from tests.lab.lab import Lab
from tests.lab.services import Services

FOLDER = ROOT / ".lab"
INVENTORY = ROOT / "inventories" / "drill.py"
NAS_EXPORT = "/srv/holdfast"
AUTH_KEY = "TAILSCALE_AUTH_KEY"
OTHER_SECRETS = ("FLOOR_API_KEY", "RESTIC_NAS_PASSWORD", "RESTIC_OFFSITE_PASSWORD")
OFFSITE_PASSWORD = "OFFSITE_USER_PASSWORD"


class Stage(Scenery):
    """A rack, a neighbour and a NAS on one LAN, with what the controller serves beside them."""

    def __init__(self, debian: int, folder: Path = FOLDER) -> None:
        super().__init__(folder)
        self.debian = debian
        self.services = Services(folder / "services")
        self.lab = Lab.create(folder / "machines", release=f"debian-{debian}")

    @property
    def machines(self) -> Lab:
        """The lab's."""
        return self.lab

    def raise_curtain(self) -> None:
        """Start services and machines, and write what `inventories/drill.py` reads."""
        self.services.start()
        self.lab.start()
        model = self.services.artefacts["gguf"].file("tiny.gguf")
        self.lab.nas.copy_to(model, f"{NAS_EXPORT}/models/{model.name}")
        self.write_inventory_data()

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
        for name in OTHER_SECRETS:
            if not self._secret(name).exists():
                self._keep_secret(name, secrets.token_urlsafe(32))
        password = Path(facts["offsite"]["password_file"]).read_text().strip()
        self._keep_secret(OFFSITE_PASSWORD, password)
        self.invite_rack()
        # Nobody of its tag has joined yet, and what the policy's tests say of it cannot be asked.
        self.services.headscale.adopt_policy({**self.policy(), "tests": []})

    def policy(self) -> dict[str, Any]:
        """What `make policy` prints of the rack."""
        done = subprocess.run(
            [sys.executable, "-m", "holdfast.tailnet_policy", str(INVENTORY)],
            cwd=ROOT,
            env={
                **os.environ,
                "HOLDFAST_LAB": str(self.folder / "lab.json"),
                "HOLDFAST_SECRETS": str(self.folder),
            },
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
        key = self.services.headscale.create_preauth_key("rack", tags=("tag:rack",))
        self._keep_secret(AUTH_KEY, key.read_text().strip())
        key.unlink()

    def wipe_rack(self) -> None:
        """Cut the rack's power, give it an empty disk and boot it: the machine was lost."""
        rack = self.lab.rack
        rack.crash()
        rack.wipe()
        self.lab.start("rack")
        # A new machine has new host keys; the operator who replaced it knows that.
        rack.known_hosts.touch()
        self.invite_rack()

    def secret(self, name: str) -> str:
        """The value of a secret, for the drill's own logins."""
        return self._secret(name).read_text().strip()

    def lower_curtain(self) -> None:
        """Stop everything; logs and disks stay for a look."""
        self.lab.power_off()
        self.services.stop()

    def _secret(self, name: str) -> Path:
        return self.folder / "secrets" / name

    def _keep_secret(self, name: str, value: str) -> None:
        path = self._secret(name)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(value + "\n")

    def _write_ssh_config(self) -> None:
        rack = self.lab.rack
        rack.known_hosts.touch()
        by_lan = self.lab.write_ssh_config().read_text()
        by_tailnet = (
            "Host rack\n"
            f"    ProxyCommand {self.services.tailnet.proxy_command()}\n"
            f"    User {OPERATOR}\n"
            f"    IdentityFile {lab_key()}\n"
            "    IdentitiesOnly yes\n"
            f"    UserKnownHostsFile {rack.known_hosts}\n"
            "    StrictHostKeyChecking accept-new\n"
        )
        (self.folder / "ssh_config").write_text(by_lan + by_tailnet)
