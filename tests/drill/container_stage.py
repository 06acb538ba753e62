"""A stage of one machine without emulation, and the site on the controller that it deploys."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from holdfast.settings import HostSettings
from tests.drill.rehearsal import Scenery
from tests.lab.artefacts import llama, tiny_gguf, tiny_llama
from tests.lab.artefacts.store import sha256
from tests.lab.container_machine import ContainerMachine
from tests.lab.images import ensure_image
from tests.lab.machine import MANAGEMENT_HOST, Machine, Spec
from tests.lab.services.daemon import private_directory
from tests.lab.services.files import FileServer

SPEC = Spec("rack", variant="rack", host_number=10, memory_mib=8192, cpus=2)


class ContainerStage(Scenery):
    """A rack in a systemd container, with the floor's model and checkpoints ready to download."""

    settings: HostSettings
    """The inventory that was written last."""

    def __init__(
        self,
        folder: Path,
        *,
        secrets: Iterable[str],
        checkpoints: Mapping[str, Path],
        served: Mapping[str, Path] | None = None,
        debian: int = 13,
        cables: Mapping[str, str] | None = None,
    ) -> None:
        """``served``: what else is fetched; ``cables``: as `ContainerMachine` takes them."""
        super().__init__(folder)
        self.debian = debian
        self.secrets = tuple(secrets)
        self.checkpoints = dict(checkpoints)
        ContainerMachine.power_off_leftover(folder / "rack")
        image = ensure_image(f"debian-{debian}", SPEC.variant)
        self.rack = ContainerMachine(folder / "rack", SPEC, image, cables)
        self.rack.wipe()
        self.llama = llama.build().file("llama-server.tar.gz")
        self.gguf = tiny_gguf.build().file("tiny.gguf")
        own = {self.llama.name: self.llama, self.gguf.name: self.gguf}
        content = {**own, **self.checkpoints, **(served or {})}
        self.files = FileServer(private_directory(folder / "services"), content)

    @property
    def machines(self) -> Iterable[Machine]:
        """The rack."""
        return (self.rack,)

    @property
    def inventory(self) -> Path:
        """The settings of the rack."""
        return self.folder / "inventory.py"

    @property
    def site(self) -> str:
        """The server from which the rack downloads."""
        return f"http://{MANAGEMENT_HOST}:{self.files.port}"

    def raise_curtain(self) -> None:
        """Start the file server and the rack, and create the secrets."""
        self.files.start()
        self.rack.start()
        self.rack.wait_for_boot()
        self.rack.wait_for_ssh()
        (self.folder / "ssh_config").write_text(self.rack.ssh_settings())
        for name in self.secrets:
            self.renew(name)

    def renew(self, secret: str) -> str:
        """Give a secret a new value; returns it."""
        kept = self.folder / "secrets"
        kept.mkdir(mode=0o700, exist_ok=True)
        value = secrets.token_urlsafe(32)
        (kept / secret).touch(mode=0o600)
        (kept / secret).write_text(f"{value}\n")
        return value

    def lower_curtain(self) -> None:
        """Stop everything; logs and disks stay for inspection."""
        self.rack.crash()
        self.files.stop()

    def write_inventory(self, **more: object) -> None:
        """Write the inventory: the ground, the floor, the checkpoints, and what is declared."""
        data = {
            "hostname": "rack",
            "distribution": f"debian{self.debian}",
            "interfaces": {"eth0": {"role": "management"}},
            "lan_address": "rack-lan",
            "ssh_hostname": "rack-lan",
            "ssh_config_file": str(self.folder / "ssh_config"),
            "ssh_user": "operator",
            "_sudo": True,
            "docker": None,
            "tailnet": None,
            "ssh": {"lan_access": "keep"},
            "storage": {
                "models": [
                    {
                        "name": "tiny",
                        "source": f"{self.site}/{self.gguf.name}",
                        "sha256": sha256(self.gguf),
                        "size_mib": 1,
                        "filename": self.gguf.name,
                    }
                ],
                "checkpoints": [
                    {
                        "name": name,
                        "source": f"{self.site}/{name}",
                        "sha256": sha256(folder / tiny_llama.SUMS),
                        "size_mib": 2,
                        "description": str(folder),
                    }
                    for name, folder in self.checkpoints.items()
                ],
            },
            "floor": {
                "release": {
                    "version": "lab",
                    "url": f"{self.site}/{self.llama.name}",
                    "sha256": sha256(self.llama),
                },
                "model": "tiny",
                "scope": "loopback",
                "context_tokens": 256,
                "threads": 1,
                "memory_max_mib": 512,
            },
            **more,
        }
        # Not read back, because pyinfra's inventories import gevent, which patches the process.
        self.settings = HostSettings.model_validate(data)
        self.inventory.write_text(f"hosts = [('@rack/rack', {data!r})]\n")
