"""Refusals: one sentence with host, key, value and correction, before any change."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from pyinfra.api.exceptions import PyinfraError

from holdfast.secrets import known_values

MASK = "..."
_SECRET_KEY = re.compile(r"passw|passphrase|secret|token|credential|(^|_|-)key$|api_?key", re.I)
_SECRET_PARAMETER = re.compile(r"(?i)([a-z_-]*(?:passw|secret|token|key|sig)[a-z_-]*=)[^&\s]+")
_LONGEST_SHOWN = 80


class Missing:
    """The value of a missing key."""

    def __repr__(self) -> str:
        return "(missing)"


MISSING = Missing()


def masked(text: str, secrets: frozenset[str] | None = None) -> str:
    """``text`` with a mask for every secret in it: those given, else every value in `.env`."""
    known = known_values() if secrets is None else secrets
    # A message may quote a value, or print it in lower case.
    spelt = {form for secret in known for form in (secret, repr(secret)[1:-1])}
    pattern = "|".join(re.escape(each) for each in sorted(spelt, key=len, reverse=True))
    return re.sub(pattern, MASK, text, flags=re.IGNORECASE) if spelt else text


def _masked_value(value: object, secrets: frozenset[str]) -> object:
    if isinstance(value, str):
        return value if masked(value, secrets) == value else MASK
    if isinstance(value, dict):
        return {
            _masked_value(key, secrets): _masked_value(item, secrets) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(_masked_value(item, secrets) for item in value)
    return value


@dataclass(frozen=True)
class Refusal:
    """One reason not to start. ``key`` is the place in the inventory, ``value`` its value there.

    It never contains a value of `.env`. ``value`` is printed: pass it through `shown` if it may
    contain a secret that is not in `.env`.
    """

    host: str
    key: str
    value: object
    wrong: str
    mend: str

    def __post_init__(self) -> None:
        """Mask secrets."""
        secrets = known_values()
        for name in ("host", "key", "wrong", "mend"):
            object.__setattr__(self, name, masked(getattr(self, name), secrets))
        object.__setattr__(self, "value", _masked_value(self.value, secrets))

    def __str__(self) -> str:
        sentence = f"{self.host}: {self.key} = {self.value!r}: {self.wrong}; {self.mend}."
        return re.sub(r"\s*\n\s*", " ", sentence)


class Refused(PyinfraError):
    """The inventory has errors. Raised before the first connection."""

    def __init__(self, refusals: list[Refusal]) -> None:
        self.refusals = refusals
        super().__init__(
            "\n".join(["nothing was touched, the inventory is refused:", *map(str, refusals)])
        )


def is_secret_key(key: str) -> bool:
    """Whether a key of this name usually holds a secret."""
    return bool(_SECRET_KEY.search(key))


def looks_random(text: str) -> bool:
    """Whether ``text`` could be a password, key or token: long, without spaces and random."""
    if re.fullmatch(r"[0-9a-f]{40,}", text):
        return True
    if re.match(r"https?://|/[a-z]+(/|$)", text):
        # Model and release names in URLs and paths look random and are not.
        return False
    # The digest of an image is public.
    for word in re.split(r"[\s/:,]+", re.sub(r"@sha256:[0-9a-f]{64}$", "", text)):
        # A random word of 16 base64 characters has 3.5 bits a character or more; names and file
        # names rarely mix digits with both cases.
        counts = Counter(word)
        entropy = -sum(n / len(word) * math.log2(n / len(word)) for n in counts.values())
        kinds = sum(bool(re.search(kind, word)) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
        if len(word) >= 16 and entropy > 3.3 and kinds >= 2 and not re.search(r"\.[a-z]", word):
            return True
    return False


class _Masked:
    def __repr__(self) -> str:
        return f"'{MASK}'"


_DEEPEST_SHOWN = 8


def shown(
    value: Any, key: str = "", secrets: frozenset[str] = frozenset(), *, depth: int = 0
) -> Any:
    """``value`` for a message: each value that is, or could be, a secret is masked.

    ``key`` is the key of the value; ``secrets`` are known secrets. Deep levels are left out,
    because a dict may contain itself.
    """
    if depth > _DEEPEST_SHOWN:
        return _Masked()
    if isinstance(value, dict):
        return {
            name: shown(item, str(name), secrets, depth=depth + 1) for name, item in value.items()
        }
    if type(value) in (list, tuple, set):
        return type(value)(shown(item, key, secrets, depth=depth + 1) for item in value)
    if not isinstance(value, str):
        return _Masked() if is_secret_key(key) and value is not None else value
    is_random = looks_random(value) and "sha256" not in key
    if is_secret_key(key) or is_random or any(secret in value for secret in secrets):
        return _Masked()
    text = re.sub(r"//[^/\s]*@", f"//{MASK}@", value)
    text = _SECRET_PARAMETER.sub(rf"\1{MASK}", text)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + MASK
