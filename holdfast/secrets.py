"""Secrets: named in the inventory, stored in `.env`, in `secrets/` or in the environment.

A value leaves this module only as a ``Secret``, whose ``repr`` is masked.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr

Secret = SecretStr

_PLACEHOLDERS = ("change", "replace", "example", "placeholder", "password", "secret", "todo")


def folder() -> Path:
    """The folder of `.env` and `secrets/`: HOLDFAST_SECRETS, else the current directory."""
    return Path(os.environ.get("HOLDFAST_SECRETS") or ".")


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


def _parse_env(text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip().removeprefix("export ").strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, separator, value = stripped.partition("=")
        name = name.strip()
        if not separator or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"line {number} is not NAME=value; correct that line")
        if name in values:
            # A second value must not replace the first without notice: it could be a weaker key.
            raise ValueError(f"{name} is set twice (again in line {number}); keep one")
        values[name] = _unquoted(value.strip())
    return values


def _private_text(path: Path) -> str:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ValueError(f"mode {mode:o} lets other users read it; chmod 600 {path}")
    return path.read_text(encoding="utf-8")


def _env_values(root: Path) -> dict[str, str]:
    path = root / ".env"
    return _parse_env(_private_text(path)) if path.is_file() else {}


def read(name: str, root: Path | None = None) -> Secret | None:
    """The secret called ``name``; None if it is not set, or empty.

    It is read from the environment, else from ``<root>/secrets/<name>``, else from ``<root>/.env``.
    ``root`` is the HOLDFAST_SECRETS folder by default, else the current directory.

    Raises:
        ValueError: a file is readable by others, or `.env` holds a name twice or a line that is
            no assignment. The message holds no value.
    """
    root = root or folder()
    value = os.environ.get(name, "")
    if not value and (path := root / "secrets" / name).is_file():
        value = _private_text(path).strip()
    if not value:
        value = _env_values(root).get(name, "")
    return Secret(value) if value else None


def env_problem() -> str | None:
    """Why `.env` cannot be read, as "error; correction"; None if it can, or does not exist."""
    try:
        _env_values(folder())
    except UnicodeDecodeError:
        return "it is not UTF-8 text; save it as UTF-8"
    except OSError as error:
        return f"it cannot be read ({error.strerror}); make it yours with chown and chmod 600"
    except ValueError as error:
        return str(error)
    return None


def known_values(root: Path | None = None) -> frozenset[str]:
    """Every value in `.env` and `secrets/` that is long enough to be a secret, to be masked.

    Files that cannot be read are ignored here; `read` reports them.
    """
    root = root or folder()
    values: list[str] = []
    with suppress(OSError, ValueError):
        values += _env_values(root).values()
    for path in (root / "secrets").glob("*"):
        with suppress(OSError, ValueError):
            values.append(path.read_text(encoding="utf-8").strip())
    return frozenset(value for value in values if len(value) >= 8)


def weakness(secret: Secret) -> str | None:
    """Why ``secret`` is too weak, or None."""
    value = secret.get_secret_value()
    if len(value) < 16:
        return f"it has {len(value)} characters and needs at least 16"
    if len(set(value)) < 6:
        return "it repeats a few characters"
    if any(word in value.lower() for word in _PLACEHOLDERS):
        return "it looks like a placeholder"
    return None


def require(name: str) -> Secret:
    """The secret called ``name``, which `holdfast.site` has already checked.

    Raises:
        LookupError: it is not set.
    """
    secret = read(name)
    if secret is None:
        raise LookupError(f"secret {name} is not set")
    return secret
