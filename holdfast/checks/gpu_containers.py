"""Containers with cards: a repository that would not be used."""

from __future__ import annotations

from holdfast.checks.finding import Finding, Findings
from holdfast.settings import HostSettings


def repository(settings: HostSettings) -> Findings:
    """A repository of the container toolkit that would not be used."""
    gpus = settings.gpus
    if gpus is None or gpus.container_toolkit_repository is None:
        return
    if settings.docker is None or not gpus.containers:
        why = "this host has no Docker" if settings.docker is None else "gpus.containers is False"
        yield Finding(
            "gpus.container_toolkit_repository.url",
            gpus.container_toolkit_repository.url,
            f"{why}, so this repository is not used",
            "remove it",
        )
