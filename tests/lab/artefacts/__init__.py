"""What the lab serves to its machines, built once and kept by content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.lab.artefacts import container, go_tools, llama, restic, tailscale_repo, tiny_gguf
from tests.lab.artefacts.store import Entry

# In the order in which they are wanted: what is quick comes first.
RECIPES: dict[str, Callable[[], Entry]] = {
    "gguf": tiny_gguf.build,
    "llama": llama.build,
    "container": container.build,
    "rest-server": go_tools.REST_SERVER.build,
    "restic": go_tools.RESTIC.build,
    "restic-release": restic.build,
    "tailscale": go_tools.TAILSCALE.build,
    "tailscale-repository": tailscale_repo.build,
    "tailscale-operator": go_tools.TAILSCALE_OPERATOR.build,
    "headscale": go_tools.HEADSCALE.build,
}


@dataclass(frozen=True)
class Artefacts:
    """Every artefact of the lab, built."""

    entries: dict[str, Entry]

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]


def build(progress: Callable[[str, Entry], None] = lambda _name, _entry: None) -> Artefacts:
    """Build what is not built yet and return all of it; `progress` hears of each.

    Raises RuntimeError or LabError with the words of the tool that failed.
    """
    entries = {}
    for name, recipe in RECIPES.items():
        entries[name] = recipe()
        progress(name, entries[name])
    return Artefacts(entries)
