"""The native rack's stage: the whole site in one container, and everything that stands around it.

The rack is a systemd container at the controller's own speed (`tests/lab/container_machine.py`).
Around it are a LAN with a hostile neighbour, an internet whose packets are counted, two members of
its tailnet, a second place for backups, and nine cards that are doubles.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast.engines.servers import declared_engines
from holdfast.engines.units import EngineNames
from holdfast.servers import vllm
from tests.doubles import guest
from tests.doubles.rack import DRIVER_VERSION, Rack, known
from tests.drill import engines as engines_of_drill
from tests.drill import modes, personal, private, tenants
from tests.drill.converge import ROOT
from tests.drill.engines import CHECKPOINT, OTHER
from tests.drill.stage import OTHER_SECRETS, RackStage
from tests.lab import artefacts
from tests.lab.artefacts import archive, nvidia_repo, tiny_llama, vllm_cpu
from tests.lab.artefacts.store import Entry, sha256
from tests.lab.container_machine import ContainerMachine
from tests.lab.images import Image, ensure_image
from tests.lab.lan import Neighbour
from tests.lab.machine import Machine, Shell, Spec
from tests.lab.services import Services
from tests.lab.services.cloud import RESOLVERS, Cloud, marking

FOLDER = ROOT / ".lab" / "native"
SPEC = Spec("rack", variant="rack", host_number=10, memory_mib=8192, cpus=2)
SECRETS = (
    *(*OTHER_SECRETS, "CHAT_KEY", "WORK_KEY", "CLIENT_KEY", *personal.SECRETS),
    *tenants.SECRETS,
)
PRIVATE_ROUTERS = (private.WORK_ROUTER, private.CLIENT_ROUTER | {"engines": ["chat"]})
NAS = "/srv/nas"
"""A folder of the rack that stands for what a NAS keeps."""
WHEELS = "simple"
"""Where the download site has vLLM's package index."""


class NativeStage(RackStage):
    """A rack that is a container, and its LAN, internet, tailnet, NAS and cards."""

    secrets = SECRETS
    card_names = (*modes.NAMES, *(f"shelf-{number}" for number in range(3, 10)))

    def __init__(self, debian: int = 13, folder: Path = FOLDER) -> None:
        super().__init__(folder)
        self.debian = debian
        # Side by side: some are built by two processors, some are fetched.
        with ThreadPoolExecutor() as pool:
            imaged = pool.submit(_image_and_driver, debian)
            fetched = pool.submit(vllm_cpu.build)
            indexed = pool.submit(personal.index, debian)
            artefacts.build()
            image, self.nvidia = imaged.result()
            self.wheels, index = fetched.result(), indexed.result()
        self.checkpoints = {
            CHECKPOINT: tiny_llama.build().file(tiny_llama.FOLDER),
            OTHER: tiny_llama.build(tiny_llama.OTHER_SEED).file(tiny_llama.FOLDER),
        }
        repositories = (nvidia_repo.DRIVER, nvidia_repo.TOOLKIT)
        self.services = Services(
            folder / "services",
            {
                **self.checkpoints,
                **index,
                WHEELS: self.wheels.file(vllm_cpu.INDEX),
                **{name: self.nvidia.file(name) for name in repositories},
            },
        )
        mark = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
        self.cloud = Cloud(folder / "cloud", f"holdfast-cloud-{mark}", self.services.authority)
        self.lan = Neighbour(folder)
        self.cards: Rack = known("rack9x3090")
        ContainerMachine.power_off_leftover(folder / "rack")
        self._rack = ContainerMachine(
            folder / "rack",
            SPEC,
            image,
            {"eth1": self.lan.namespace, "wan0": self.cloud.namespace},
        )
        self._rack.wipe()
        self.changes: dict[str, Any] = {}
        self._asked: dict[str, int] = {}

    @property
    def machines(self) -> Iterable[Machine]:
        """The rack."""
        return (self._rack,)

    @property
    def rack(self) -> Machine:
        """The container."""
        return self._rack

    @property
    def neighbour(self) -> Shell:
        """The hostile host on the LAN."""
        return self.lan

    @property
    def inventory(self) -> Path:
        """What the rack is to be, as it was declared last."""
        return self.folder / "inventory.py"

    @property
    def site(self) -> str:
        """Where the rack fetches what it is given, as a URL."""
        return self.services.site

    def raise_curtain(self) -> None:
        """Start services, networks and the rack, put the cards in, and declare the whole site."""
        self.adopt_environment()
        self.services.start()
        self.cloud.start()
        self.lan.start()
        self.power_on_rack()
        self.write_inventory_data()
        self.declare()
        self.adopt_policy()

    def power_on_rack(self) -> None:
        """Start the rack and wait until it takes logins; a new one is given its cards."""
        self._rack.start()
        self._rack.wait_for_boot()
        self._rack.wait_for_login()
        if self._rack.execute(f"test -e {guest.DESCRIPTION}")[0] != 0:
            self._give_cards()

    def wipe_rack(self) -> None:
        """Lose the rack and its disk; the NAS, a folder in there, is another machine's."""
        self._rack.crash()
        kept = self.folder / "nas"
        shutil.rmtree(kept, ignore_errors=True)
        # With owners and modes, and without a copy.
        (self._rack.disk / NAS.lstrip("/")).rename(kept)
        self._rack.wipe()
        kept.rename(_made(self._rack.disk / NAS.lstrip("/")))
        self.power_on_rack()
        self._rack.known_hosts.touch()
        self.invite_rack()

    def lower_curtain(self) -> None:
        """Stop everything; logs and disks stay for a look."""
        self._rack.crash()
        self.cloud.stop()
        self.lan.stop()
        self.services.stop()

    def declare(self, **changes: object) -> None:
        """Write the inventory: the whole site, but for all ``changes`` of its top-level keys."""
        self.changes |= changes
        text = f"hosts = [('@rack/rack', {self.inventory_data()!r})]\n"
        self.inventory.write_text(text)

    @contextmanager
    def declared(self, **changes: object) -> Iterator[None]:
        """Have something else in the inventory meanwhile."""
        before = dict(self.changes)
        self.declare(**changes)
        try:
            yield
        finally:
            self.changes = before
            self.declare()

    def change_engine(self, **changes: object) -> None:
        """Declare the engine with these changes."""
        self.declare(vllm=self.vllm([engines_of_drill.declared("chat", **changes)]))

    def declare_routers(self, routers: list[dict[str, object]], **more: object) -> None:
        """Declare these routers alone; without the block ``clouds`` none of them leads to one."""
        self.declare(routers=routers, clouds=more.get("clouds"))

    def describe(self) -> None:
        """Make the rack's hardware what its cards are now."""
        self._rack.succeed(guest.describing(self.cards.model_dump_json(indent=1)))

    def inventory_data(self) -> dict[str, Any]:
        """`inventories/drill.py`, with everything that no virtual machine of the lab carries.

        What needs a kernel of its own is left out: the NFS mount, for one.
        """
        data = super().inventory_data()
        data["interfaces"]["wan0"] = {"role": "lan"}
        data["firewall"]["rollback_seconds"] = 30
        # Names are asked of the counted internet, not of the tailnet's resolver.
        data["tailnet"]["accept_dns"] = False
        data["docker"]["dns"] = [RESOLVERS[0]]
        data["storage"] = self._storage(data["storage"]["models"][0])
        data["backup"]["repositories"][0]["path"] = f"{NAS}/backup/rack"
        data["gpus"] = self._gpus()
        data["vllm"] = self.vllm([engines_of_drill.declared("chat")])
        data["docker"]["networks"].append(private.OPEN_NETWORK)
        data["services"] += [private.PHOTOS_SERVICE, *modes.services()]
        data |= personal.declared(self.site)
        data["routers"] = [*PRIVATE_ROUTERS, *personal.routers()]
        return data | self.changes

    def start_engines(self, names: Iterable[str] = ("chat",)) -> None:
        """Open the doors of engines."""
        for name in names:
            self._rack.succeed(f"systemctl enable --now {self._door(name)}.socket")

    def stop_engine(self, name: str) -> None:
        """Shut an engine's door, over reboots too; the engine itself would take a minute."""
        door = self._door(name)
        self._rack.succeed(f"systemctl disable --now {door}.socket && systemctl stop {door}")

    def forget_asked(self, name: str) -> None:
        """Forget what an engine was asked; one that was restarted has forgotten it already."""
        unit = self._engine_names(name).unit
        self._rack.wait_until_succeeds(f"systemctl --quiet is-active {unit}", timeout_seconds=600)
        self._asked[name] = self._answered(name)

    def asked(self, name: str) -> int:
        """How often an engine has answered since; it notes no texts."""
        return self._answered(name) - self._asked[name]

    def _answered(self, name: str) -> int:
        told = self._rack.succeed(
            f"curl --silent --unix-socket {self._engine_names(name).socket} http://engine/metrics"
        )
        values = re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", told, re.MULTILINE)
        return int(sum(map(float, values)))

    def _door(self, name: str) -> str:
        return self._engine_names(name).doors[0].stem

    def _engine_names(self, name: str) -> EngineNames:
        found = next(each for each in declared_engines(self.settings) if each.name == name)
        return EngineNames(vllm.SERVER, found)

    def vllm(self, engines: list[dict[str, object]]) -> dict[str, object]:
        """The block of vLLM with these engines."""
        lock, packages = str(self.wheels.file("vllm.txt")), f"{self.site}/{WHEELS}/"
        return {"lock": lock, "packages": packages, "engines": engines}

    def _storage(self, model: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.site}/models/tiny.gguf"
        return {
            "models": [{**model, "source": url}],
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
        }

    def _gpus(self) -> dict[str, Any]:
        driver, toolkit = map(self._repository, (nvidia_repo.DRIVER, nvidia_repo.TOOLKIT))
        return {
            "cards": [
                {
                    "name": name,
                    "device": "2204",
                    "vram_mib": 24576,
                    "uuid": card.uuid,
                    "pci_address": card.address,
                    "power_cap_w": modes.CAP_W,
                }
                for name, card in zip(self.card_names, self.cards.cards, strict=True)
            ],
            "card_sets": [modes.card_set()],
            "driver": {
                "branch": DRIVER_VERSION.partition(".")[0],
                "source": "vendor",
                "repository": driver,
            },
            "container_toolkit_repository": toolkit,
        }

    def _repository(self, name: str) -> dict[str, object]:
        return nvidia_repo.declared(f"{self.site}/{name}")

    def _give_cards(self) -> None:
        folder, packed = self.folder / "hardware", self.folder / "hardware.tar"
        shutil.rmtree(folder, ignore_errors=True)
        guest.hardware(self.cards, folder)
        guest.driven(DRIVER_VERSION, folder)
        modes.lay_stand_ins(self.cards, folder)
        marking(folder)
        archive.pack(folder, packed, ".")
        self._rack.copy_to(packed, "/root/hardware.tar")
        self._rack.succeed(
            "tar -C / --keep-directory-symlink -xf /root/hardware.tar"
            # A container has no use for one, and this one is never made again.
            " && rm /boot/initrd.img-*"
            " && systemctl daemon-reload && systemctl start lab-rack-pci",
            timeout_seconds=60,
        )


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _image_and_driver(debian: int) -> tuple[Image, Entry]:
    """The rack's image, and the repositories of its cards' driver."""
    image = ensure_image(f"debian-{debian}", SPEC.variant)
    return image, nvidia_repo.build_for_container(image)
