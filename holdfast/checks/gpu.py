"""The declared cards: errors that are visible without the machine."""

from __future__ import annotations

from holdfast import registry
from holdfast.checks.finding import Finding, Findings, nearest
from holdfast.engines.servers import declared_engines
from holdfast.gpu import modes, power
from holdfast.gpu.cards import KNOWN, VRAM_TOLERANCE, declared_cards
from holdfast.registry import GpuClaim
from holdfast.settings import GpuCard, Gpus, HostSettings


def own_card(key: str, name: str, settings: HostSettings, why_uuid: str) -> Findings:
    """A card that is not declared, belongs to a guest, or has no stable identity."""
    declared = declared_cards(settings)
    card = declared.get(name)
    if card is None:
        mend = nearest(name, set(declared))
        yield Finding(key, name, "gpus.cards declares no such card", mend)
    elif card.role != "compute":
        yield Finding(key, name, "this card belongs to a guest", "name a card of role 'compute'")
    elif card.uuid is None:
        mend = "write the uuid that `holdfast gpus` shows"
        yield Finding(key, name, f"its UUID is not declared, and {why_uuid}", mend)


def cards(settings: HostSettings) -> Findings:
    """Cards that are declared twice, or contradict their model."""
    holders: dict[str, str] = {}
    for index, card in enumerate(settings.gpus.cards if settings.gpus else []):
        key = f"gpus.cards[{index}]"
        for field, value in (("uuid", card.uuid), ("pci_address", card.pci_address)):
            holder = holders.setdefault(value, card.name) if value else card.name
            if holder != card.name:
                yield Finding(
                    f"{key}.{field}",
                    value,
                    f"{holder} has the same value",
                    "write what `holdfast gpus` shows for this card",
                )
        yield from _cap(key, card)
        yield from _model(key, card)


def _cap(key: str, card: GpuCard) -> Findings:
    if card.role == "passthrough":
        for field in ("power_cap_w", "clock_max_mhz"):
            if (limit := getattr(card, field)) is not None:
                yield Finding(
                    f"{key}.{field}",
                    limit,
                    f"{card.name} belongs to a guest, so this host's driver cannot limit it",
                    "remove it and limit the card in the guest",
                )
    elif card.power_cap_w is not None:
        yield from cap_of(f"{key}.power_cap_w", card.power_cap_w, card)


def cap_of(key: str, cap: int, card: GpuCard) -> Findings:
    """A power limit (W) that no card of this model accepts."""
    known = KNOWN.get(card.device)
    if known and cap < known.power_min_w:
        yield Finding(
            key,
            cap,
            f"an {known.name} accepts no less than {known.power_min_w} W",
            f"write {known.power_min_w} or more, or limit it further with clock_max_mhz",
        )
    elif known and known.power_max_w and cap > known.power_max_w:
        yield Finding(
            key,
            cap,
            f"an {known.name} accepts no more than {known.power_max_w} W",
            f"write {known.power_max_w} or less",
        )


def _model(key: str, card: GpuCard) -> Findings:
    known = KNOWN.get(card.device)
    if known is None:
        return
    if known.vram_mib and abs(card.vram_mib - known.vram_mib) > VRAM_TOLERANCE * known.vram_mib:
        yield Finding(
            f"{key}.vram_mib",
            card.vram_mib,
            f"an {known.name} ({card.device}) has {known.vram_mib} MiB",
            "write that, or correct the device id",
        )
    if card.link_width > known.lanes:
        yield Finding(
            f"{key}.link_width",
            card.link_width,
            f"an {known.name} has {known.lanes} lanes",
            f"write {known.lanes} or less",
        )


def power_supplies(settings: HostSettings) -> Findings:
    """Supplies with an impossible wiring, or with too much load."""
    gpus = settings.gpus
    if gpus is None:
        return
    names = [supply.name for supply in gpus.power_supplies]
    moments = modes.every_moment(gpus)
    # A supply with the same correction in two modes is reported once, although the watts differ.
    found = {(f.supply, f.mend): f for moment in moments for f in power.faults(moment)}
    for fault in found.values():
        index = names.index(fault.supply)
        yield Finding(f"gpus.power_supplies[{index}]", fault.supply, fault.wrong, fault.mend)


def memory(settings: HostSettings) -> Findings:
    """Services that together claim more GPU memory than the cards have, in any mode."""
    if settings.gpus is None:
        for claim in registry.gpu_claims(settings):
            yield Finding(
                claim.key, claim.written, "this host declares no card", "declare gpus, or remove it"
            )
        return
    declared = {service.name for service in settings.services}
    declared |= {engine.name for engine in declared_engines(settings)}
    if any(set(mode.services) - declared for one in settings.gpus.card_sets for mode in one.modes):
        # The services of a mode are known only after the mode's own finding is corrected.
        return
    found = [
        finding
        for modes, claims in registry.gpu_claims_by_mode(settings)
        for finding in _overclaimed(settings.gpus, claims, modes)
    ]
    # A service that runs in every mode would be reported for each mode.
    yield from {finding.key: finding for finding in reversed(found)}.values()


def _overclaimed(gpus: Gpus, claims: list[GpuClaim], modes: str) -> Findings:
    """Claims that exceed the cards in one combination of modes, which ``modes`` names."""
    is_told = False
    for card in gpus.cards:
        own = [claim for claim in claims if claim.card == card.name]
        claimed = sum(claim.mib for claim in own)
        if claimed > card.vram_mib:
            is_told = True
            yield Finding(
                own[-1].key,
                own[-1].written,
                f"{claimed} MiB of {card.name} are claimed{modes} ({_tenants(own)}), and it"
                f" has {card.vram_mib}",
                "claim less, or move one service to another card",
            )
    offered = sum(card.vram_mib for card in gpus.cards if card.role == "compute")
    claimed = sum(claim.mib for claim in claims)
    if claimed > offered and not is_told:
        yield Finding(
            claims[-1].key,
            claims[-1].written,
            f"{claimed} MiB are claimed{modes} ({_tenants(claims)}) and the compute cards have"
            f" {offered}",
            "claim less, or move one service to another host",
        )


def _tenants(claims: list[GpuClaim]) -> str:
    return ", ".join(f"{claim.owner} {claim.mib}" for claim in claims)
