"""Requests that would lead a router elsewhere, had it ears for them.

``CLOUD`` stands for the address and port of a cloud.
"""

from __future__ import annotations

from typing import Any

BODIES: list[dict[str, Any]] = [
    {"fallbacks": ["cloud"]},
    {"context_window_fallbacks": [{"llama": ["cloud"]}], "num_retries": 9},
    {"api_base": "http://CLOUD/v1", "api_key": "sk-1"},
    {"base_url": "http://CLOUD/v1"},
    {"api_type": "azure", "azure_endpoint": "http://CLOUD", "api_version": "2024-10-21"},
    {"custom_llm_provider": "openai", "litellm_params": {"api_base": "http://CLOUD/v1"}},
    {"router_settings_override": {"fallbacks": [{"llama": ["cloud"]}]}},
    {"model": "openai/gpt-4o"},
    {"model": "cloud"},
    {"model": "http://CLOUD/v1"},
    {"model_list": [{"litellm_params": {"api_base": "http://CLOUD"}}]},
    {"user_config": {"model_list": [{"litellm_params": {"api_base": "http://CLOUD"}}]}},
    {"extra_headers": {"Host": "CLOUD"}, "mock_testing_fallbacks": True},
    {"extra_body": {"proxy": "http://CLOUD"}, "metadata": {"tags": ["cloud"]}},
    {"messages": [{"content": [{"image_url": {"url": "http://CLOUD/i.png"}}]}]},
    {"tools": [{"type": "mcp", "server_url": "http://CLOUD/mcp", "require_approval": "never"}]},
]
"""What a body may hold beside its prompt."""
