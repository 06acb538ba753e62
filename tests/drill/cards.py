"""Tests of the cards of one rack: caps, a container's card, and a card that falls off the bus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from holdfast.gpu import containers, limits
from tests.doubles.rack import Rack
from tests.drill.rehearsal import Act, load_probe_image
from tests.drill.site import Site
from tests.lab.artefacts import container
from tests.lab.machine import Machine

CAP_W = 280
VANISHING = 3
"""Index of the card that falls off the bus."""
LIMITS = "nvidia-smi --query-gpu=power.limit --format=csv,noheader,nounits"
ALL_CAPPED = f'[ "$({LIMITS} | sort | uniq -c | xargs)" = "9 {CAP_W}.00" ]'


class Stage(Protocol):
    """The stage that these tests need."""

    @property
    def rack(self) -> Machine:
        """The machine."""

    @property
    def cards(self) -> Rack:
        """The rack's cards."""

    @property
    def card_names(self) -> tuple[str, ...]:
        """The names of the cards in the inventory."""

    def describe(self) -> None:
        """Make the rack's hardware match its cards."""


def acts(tried: Callable[[], Cards]) -> Sequence[Act]:
    """The acts of a drill that use the cards."""
    return (Act("give a container its card", lambda: tried().give_one_away(), rows=(4, 5)),)


class Cards:
    """Tests of nine cards of one rack."""

    def __init__(self, stage: Stage, site: Site) -> None:
        self.stage, self.site, self.record = stage, site, site.record

    def expect_caps(self, when: str) -> None:
        """Check that every card has its cap."""
        rack = self.stage.rack
        rack.wait_until_succeeds(ALL_CAPPED, timeout_seconds=400)
        result = rack.succeed(f"systemctl show --property=Result --value {limits.SERVICE}").strip()
        self.record.check(f"nine caps of {CAP_W} W {when}", result == "success", result, rows=(4,))

    def give_one_away(self) -> None:
        """Start a container that requests a card."""
        rack, uuid = self.stage.rack, self.stage.cards.cards[0].uuid
        specified = rack.succeed(f"cat {containers.SPECIFICATION}")
        missing = [card.uuid for card in self.stage.cards.cards if card.uuid not in specified]
        self.record.check("the CDI specification names every card", not missing, missing)
        load_probe_image(rack)
        told = rack.succeed(
            f"docker run --rm --device nvidia.com/gpu={uuid} {container.IMAGE} /bin/busybox env",
            timeout_seconds=300,
        )
        given = [line for line in told.splitlines() if line.startswith("HOLDFAST_CARD=")]
        self.record.check(
            "a container gets the card that it requests", given == [f"HOLDFAST_CARD={uuid}"], given
        )

    def lose_one(self, said: str = "fell off the bus in this boot (Xid 79") -> None:
        """Let a card fall off the bus; the next run must stop, say so, and change nothing."""
        rack, record, name = self.stage.rack, self.record, self.stage.card_names[VANISHING]
        lost = self.stage.cards.cards[VANISHING]
        lost.state = "lost"
        self.stage.describe()
        bus = lost.address.rpartition(".")[0]
        rack.succeed(f"echo 'kernel: NVRM: Xid (PCI:{bus}): 79, pid=1' > /dev/kmsg")
        rack.wait_until_succeeds(f"systemctl is-failed {limits.SERVICE}", timeout_seconds=300)
        status = rack.succeed(
            f"systemctl status --full --no-pager --lines=20 {limits.SERVICE}; true"
        )
        told = name in status and "is gone" in status
        record.check("the unit's status names the card that is gone", told, name)
        # A run would repair this, if it got that far.
        rack.succeed(f"rm {containers.SPECIFICATION}")
        outcome = self.site.deploy("sick")
        sentence = f"{name} {said}"
        stopped = not outcome.ok and sentence in outcome.log.read_text()
        record.check("the next run stops and says why", stopped, sentence)
        untouched = rack.execute(f"test -e {containers.SPECIFICATION}")[0] != 0
        state = "the next run touches nothing that relies on cards"
        record.survived("a card falls off the bus", state, untouched)

    def find_it_again(self) -> None:
        """Put the card back; the next run finds everything as declared."""
        self.stage.cards.cards[VANISHING].state = "well"
        self.stage.describe()
        self.site.converge("every card is back")
        self.expect_caps("once every card is back")
