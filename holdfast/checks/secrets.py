"""Secrets: set, strong, and each for one purpose."""

from __future__ import annotations

from holdfast import registry, secrets
from holdfast.checks.finding import NEW_SECRET, Finding, Findings
from holdfast.refusal import MASK
from holdfast.settings import HostSettings


def secrets_set(settings: HostSettings) -> Findings:
    """Secrets that are missing, weak or used twice."""
    purposes: dict[str, str] = {}
    values: dict[str, str] = {}
    for claim in registry.secret_claims(settings):
        # A tenant may hold the key of what it calls.
        is_lent = claim.purpose.startswith("services.")
        purpose = claim.purpose if is_lent else purposes.setdefault(claim.name, claim.purpose)
        if purpose != claim.purpose:
            yield Finding(
                claim.key,
                claim.name,
                f"{purpose} already uses this secret",
                "give it its own secret",
            )
            continue
        try:
            secret = secrets.read(claim.name)
        except ValueError as error:
            wrong, _, mend = str(error).partition("; ")
            yield Finding(claim.key, claim.name, wrong, mend)
            continue
        if secret is None:
            yield Finding(
                claim.key,
                claim.name,
                "this secret is not set",
                f"add {claim.name}={MASK} to {secrets.folder() / '.env'}",
            )
            continue
        weakness = secrets.weakness(secret)
        holder = values.setdefault(secret.get_secret_value(), claim.name)
        if weakness:
            yield Finding(
                claim.key,
                claim.name,
                f"this secret is too weak: {weakness}",
                NEW_SECRET,
            )
        elif holder != claim.name:
            yield Finding(
                claim.key,
                claim.name,
                f"{holder} has the same value",
                "give each secret its own value",
            )
