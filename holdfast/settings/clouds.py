"""The settings under ``clouds``.

For example::

    "clouds": {
        "providers": [
            {
                "name": "cheap",
                "base_url": "https://api.example.org/v1",
                "model": "their-big-one",
                "api_key": "CHEAP_CLOUD_KEY",
                "input_usd": 0.5,
                "output_usd": 1.5,
            }
        ]
    }
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from holdfast.types import CloudUrl, Model, Name, SecretName, Text, Url


class Provider(Model):
    """One model of one cloud, and what it costs."""

    name: Name
    """What answers call it (X-Holdfast-Engine), and keys that may use it."""
    api: Literal["openai", "anthropic"] = "openai"
    """What it speaks: OpenAI's chat completions, or Anthropic's messages."""
    base_url: CloudUrl
    """What its paths are appended to: for ``openai`` this ends in ``/v1`` as a rule."""
    model: Text
    """What the cloud calls it; callers do not choose it."""
    api_key: SecretName
    input_usd: float = Field(ge=0.001, le=10000, allow_inf_nan=False)
    """Price of a million tokens of the prompt, USD."""
    output_usd: float = Field(ge=0.001, le=10000, allow_inf_nan=False)
    """Price of a million tokens of the answer, USD."""
    max_tokens: int = Field(default=4096, ge=1)
    """Longest answer, tokens: what a request without a limit gets, and no request gets more."""


class Clouds(Model):
    """Models of others, which routers of profile ``personal`` and ``cloud`` may ask by LiteLLM."""

    packages: Url | None = None
    """A mirror of the Python package index; PyPI when absent."""
    providers: list[Provider] = Field(min_length=1)
