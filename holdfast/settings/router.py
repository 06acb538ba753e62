"""The settings under ``routers``.

For example::

    "routers": [
        {
            "name": "work",
            "profile": "private",
            "port": 8200,
            "api_key": "WORK_API_KEY",
            "engines": ["chat"],
            "floor": True,
            "queue": {"entries": 500, "max_age_minutes": 60},
        },
        {
            "name": "home",
            "profile": "personal",
            "port": 8210,
            "engines": ["chat"],
            "clouds": ["cheap"],
            "keys": [
                {"name": "alice", "api_key": "ALICE_KEY", "clouds": ["cheap"], "budget_usd": 20.0},
                {"name": "child", "api_key": "CHILD_KEY"},
            ],
        },
    ]
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from holdfast.types import Caller, Model, Name, Port, SecretName


class Queue(Model):
    """Requests that wait on disk, through restarts too, until something can answer them."""

    entries: int = Field(default=500, ge=1, le=100000)
    """Requests and answers kept at once; when it is full, further requests get 503 with
    ``Retry-After``."""
    concurrent_requests: int = Field(default=1, ge=1, le=64)
    """Requests that are asked at once when something answers again, the oldest first."""
    max_age_minutes: int = Field(default=60, ge=1)
    """A request that has waited longer is an alert, minutes."""
    keep_hours: int = Field(default=24, ge=1, le=720)
    """How long an answer can be fetched before it is removed, hours."""


class CallerKey(Model):
    """What one person or agent sends to a router that leads to clouds."""

    name: Name = Field(max_length=24)
    """Whose it is; the ledger counts by this name."""
    api_key: SecretName
    clouds: list[Name] = []
    """Which of the router's clouds it may use; none: local work only."""
    budget_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """What it may spend on clouds in a period, USD; required with ``clouds``."""
    period: Literal["day", "week", "month"] = "month"
    """When the budget starts again: at midnight, on Monday or on the 1st, by ``base.timezone``."""


class Router(Model):
    """One address for a chain of engines, tried in order."""

    name: Name = Field(max_length=24)
    """Its units and its user are called ``holdfast-router-NAME`` and ``router-NAME``."""
    profile: Literal["private", "client", "personal", "cloud"]
    """``private`` goes on to the next in the chain; ``client`` has one engine and else an error.
    ``personal`` goes on to clouds after engines and floor; ``cloud`` has clouds alone."""
    port: Port
    scope: Literal["loopback", "tailnet"] = "loopback"
    callers: list[Caller] = []
    """Who on the tailnet may call it; empty: every member."""
    api_key: SecretName | None = None
    """What callers of a ``private`` or ``client`` router must send; each engine's own key stays on
    this host."""
    keys: list[CallerKey] = []
    """What callers of a ``personal`` or ``cloud`` router must send, each their own."""
    engines: list[Name] = []
    """Engines declared under ``vllm.engines``, in the order in which they are tried."""
    floor: bool = False
    """Whether the floor answers when no engine does."""
    clouds: list[Name] = []
    """Providers declared under ``clouds.providers``, in the order in which they are tried when no
    engine and no floor answers."""
    queue: Queue | None = None
    """None: when nothing answers that is an error at once."""
