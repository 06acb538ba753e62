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
    """A queue of requests on disk, which survives restarts, until an upstream can answer."""

    entries: int = Field(default=500, ge=1, le=100000)
    """Requests and answers kept at once; when it is full, further requests get 503 with
    ``Retry-After``."""
    concurrent_requests: int = Field(default=1, ge=1, le=64)
    """Requests that it sends at once when an upstream answers again, the oldest first."""
    max_age_minutes: int = Field(default=60, ge=1)
    """A request that waits longer raises an alert, minutes."""
    keep_hours: int = Field(default=24, ge=1, le=720)
    """Time until an answer is removed, hours."""


class CallerKey(Model):
    """The key of one person or agent for a router with clouds."""

    name: Name = Field(max_length=24)
    """The caller's name; the ledger counts by it."""
    api_key: SecretName
    clouds: list[Name] = []
    """Which of the router's clouds it may use; empty: local work only."""
    budget_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Limit of its spending on clouds in a period, USD; required with ``clouds``."""
    period: Literal["day", "week", "month"] = "month"
    """When the budget starts again: at midnight, on Monday or on the 1st, in ``base.timezone``."""


class Router(Model):
    """One address for a chain of engines, tried in order."""

    name: Name = Field(max_length=24)
    """Its units are ``holdfast-router-NAME`` and its user is ``router-NAME``."""
    profile: Literal["private", "client", "personal", "cloud"]
    """``private``: engines, then the floor and the queue. ``client``: one engine, otherwise an
    error. ``personal``: engines, the floor, then clouds. ``cloud``: clouds only."""
    port: Port
    scope: Literal["loopback", "tailnet"] = "loopback"
    callers: list[Caller] = []
    """Who on the tailnet may call it; empty: every member."""
    api_key: SecretName | None = None
    """The key of all callers of a ``private`` or ``client`` router. They never see the engines' own
    keys."""
    keys: list[CallerKey] = []
    """The keys of a ``personal`` or ``cloud`` router, one for each caller."""
    engines: list[Name] = []
    """Engines of this host, in the order in which they are tried."""
    floor: bool = False
    """Whether the floor answers when no engine does."""
    clouds: list[Name] = []
    """Providers declared under ``clouds.providers``, in the order in which they are tried when no
    engine and no floor answers."""
    queue: Queue | None = None
    """None: if no upstream answers, the caller gets an error at once."""
