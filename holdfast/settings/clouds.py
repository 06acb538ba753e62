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
    """One model of one cloud, and its price."""

    name: Name
    """Its name in answers (X-Holdfast-Engine) and in ``routers[].keys[].clouds``."""
    api: Literal["openai", "anthropic"] = "openai"
    """Its API: OpenAI's chat completions, or Anthropic's messages."""
    base_url: CloudUrl
    """The URL before the API's paths; for ``openai`` it usually ends in ``/v1``."""
    model: Text
    """The cloud's name for the model; callers do not choose it."""
    api_key: SecretName
    input_usd: float = Field(ge=0.001, le=10000, allow_inf_nan=False)
    """Price of a million tokens of the prompt, USD."""
    output_usd: float = Field(ge=0.001, le=10000, allow_inf_nan=False)
    """Price of a million tokens of the answer, USD."""
    max_tokens: int = Field(default=4096, ge=1)
    """Longest answer, tokens: the limit of each request, and its default."""


class Clouds(Model):
    """Cloud models, which routers of profile ``personal`` and ``cloud`` may use through LiteLLM."""

    packages: Url | None = None
    """A mirror of the Python package index; default: PyPI."""
    providers: list[Provider] = Field(min_length=1)
