"""A new login to a host, which proves that a change locked no operator out."""

from __future__ import annotations

from collections.abc import Callable

from pyinfra import logger
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.host import Host

from holdfast.connector import Path


def attempt(host: Host, path: Path | None, otherwise: str) -> bool:
    """Whether a new login succeeds, over ``path`` or as the present connection does.

    If it fails, the error is logged with the consequence ``otherwise``.
    """
    login: Callable[[Path | None], None] | None = getattr(host.connector, "new_login", None)
    try:
        if login is None:
            raise ConnectError("this needs a new login, and only the @rack connector opens one")
        login(path)
    except (ConnectError, OSError) as error:
        complain(host, f"{error}; {otherwise}.")
        return False
    return True


def complain(host: Host, sentence: str) -> None:
    """Log an error of a host."""
    host.log_styled(sentence, fg="red", log_func=logger.error)
