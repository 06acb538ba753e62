"""The declared cards: what no machine needs to be asked to refuse."""

from __future__ import annotations

from holdfast import registry
from holdfast.checks.finding import Finding, Findings, nearest
from holdfast.gpu import modes, power
from holdfast.gpu.cards import KNOWN, VRAM_TOLERANCE
from holdfast.registry import GpuClaim
from holdfast.settings import GpuCard, Gpus, HostSettings


def own_card(key: str, name: str, settings: HostSettings, why_uuid: str) -> Findings:
    """A card that is not declared, not this host's own, or may be another one tomorrow."""
    declared = registry.cards(settings)
    card = declared.get(name)
    if card is None:
        mend = nearest(name, set(declared))
        yield Finding(key, name, "gpus.cards declares no such card", mend)
    elif card.role != "compute":
        yield Finding(key, name, "this card belongs to a guest", "name a card of role 'compute'")
    elif card.uuid is None:
        mend = "write the uuid that `make gpus` shows"
        yield Finding(key, name, f"its UUID is not declared, and {why_uuid}", mend)


def cards(settings: HostSettings) -> Findings:
    """Cards that are declared twice, or as their model cannot be."""
    holders: dict[str, str] = {}
    for index, card in enumerate(settings.gpus.cards if settings.gpus else []):
        key = f"gpus.cards[{index}]"
        for field, value in (("uuid", card.uuid), ("pci_address", card.pci_address)):
            holder = holders.setdefault(value, card.name) if value else card.name
            if holder != card.name:
                yield Finding(
                    f"{key}.{field}",
                    value,
                    f"{holder} has it too, and no two cards can",
                    "write what `make gpus` shows of this card",
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
                    f"{card.name} belongs to a guest, and no driver here can limit it",
                    "remove it and limit the card in the guest",
                )
    elif card.power_cap_w is not None:
        yield from cap_of(f"{key}.power_cap_w", card.power_cap_w, card)


def cap_of(key: str, cap: int, card: GpuCard) -> Findings:
    """A power limit (W) that no card of this model takes."""
    known = KNOWN.get(card.device)
    if known and cap < known.power_min_w:
        yield Finding(
            key,
            cap,
            f"an {known.name} refuses less than {known.power_min_w} W",
            f"write {known.power_min_w} or more, or hold it lower by clock_max_mhz",
        )
    elif known and known.power_max_w and cap > known.power_max_w:
        yield Finding(
            key,
            cap,
            f"an {known.name} takes {known.power_max_w} W at most",
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
            "write that, or the device id of the card that it is",
        )
    if card.link_width > known.lanes:
        yield Finding(
            f"{key}.link_width",
            card.link_width,
            f"an {known.name} has {known.lanes} lanes",
            f"write {known.lanes} or less",
        )


def power_supplies(settings: HostSettings) -> Findings:
    """Supplies that are wired in an impossible way, or asked for more than they should give."""
    gpus = settings.gpus
    if gpus is None:
        return
    names = [supply.name for supply in gpus.power_supplies]
    moments = modes.every_moment(gpus)
    # A supply with the same mend at two moments is reported once, though the watts differ.
    found = {(f.supply, f.mend): f for moment in moments for f in power.faults(moment)}
    for fault in found.values():
        index = names.index(fault.supply)
        yield Finding(f"gpus.power_supplies[{index}]", fault.supply, fault.wrong, fault.mend)


def memory(settings: HostSettings) -> Findings:
    """Services that claim more GPU memory than there is, in any mode."""
    if settings.gpus is None:
        for claim in registry.gpu_claims(settings):
            yield Finding(
                claim.key, claim.written, "this host declares no card", "declare gpus, or remove it"
            )
        return
    declared = {service.name for service in settings.services}
    declared |= {engine.name for engine in registry.engines(settings)}
    if any(set(mode.services) - declared for one in settings.gpus.card_sets for mode in one.modes):
        # Who runs at once is not known before the mode's own finding is mended.
        return
    found = [
        finding
        for modes, claims in registry.gpu_claims_by_mode(settings)
        for finding in _overclaimed(settings.gpus, claims, modes)
    ]
    # What runs in every mode is too much in every mode.
    yield from {finding.key: finding for finding in reversed(found)}.values()


def _overclaimed(gpus: Gpus, claims: list[GpuClaim], modes: str) -> Findings:
    """What is too much of the cards at one moment; ``modes`` says when, for people."""
    is_told = False
    for card in gpus.cards:
        own = [claim for claim in claims if claim.card == card.name]
        claimed = sum(claim.mib for claim in own)
        if claimed > card.vram_mib:
            is_told = True
            yield Finding(
                own[-1].key,
                own[-1].written,
                f"{claimed} MiB of {card.name} are claimed{modes} ({_tenants(own)}), which has"
                f" {card.vram_mib}",
                "claim less, or give one another card",
            )
    offered = sum(card.vram_mib for card in gpus.cards if card.role == "compute")
    claimed = sum(claim.mib for claim in claims)
    if claimed > offered and not is_told:
        yield Finding(
            claims[-1].key,
            claims[-1].written,
            f"{claimed} MiB are claimed{modes} ({_tenants(claims)}) and the compute cards have"
            f" {offered}",
            "claim less, or move one to another host",
        )


def _tenants(claims: list[GpuClaim]) -> str:
    return ", ".join(f"{claim.owner} {claim.mib}" for claim in claims)
