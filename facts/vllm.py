"""All files of vLLM's engines on a host, declared or not."""

from __future__ import annotations

from facts.framed import Framed
from facts.places import CONFIGURATION, CREDENTIALS, SYSTEM


class EngineFiles(Framed[list[str]]):
    """Paths of every unit, configuration and key of an engine. One command."""

    def command(self) -> str:
        """Build the probe."""
        return (
            f"ls {SYSTEM}/holdfast-vllm-*.service {SYSTEM}/holdfast-vllm-*.socket"
            f" {SYSTEM}/holdfast-vllm-*.timer"
            f" {CREDENTIALS}/holdfast-vllm-* {CONFIGURATION}/vllm/*.yaml {CONFIGURATION}/vllm/*.cfg"
            f" {CONFIGURATION}/vllm/*.json 2>/dev/null; true"
        )

    @staticmethod
    def default() -> list[str]:
        """No files."""
        return []

    def process(self, output: list[str]) -> list[str]:
        """One path a line."""
        return list(output)
