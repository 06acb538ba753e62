"""What hosts answered to facts, by the fact's name in recorded/facts, and how a fact reads it."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

from pyinfra.api import FactBase

import facts
from facts.framed import BEGIN, END, Framed

RECORDED = Path(__file__).parent / "recorded" / "facts"


def every_fact() -> list[type[FactBase[Any]]]:
    """The classes of facts that the modules of `facts` define."""
    modules = [import_module(f"facts.{each.name}") for each in pkgutil.iter_modules(facts.__path__)]
    return [
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, type)
        and issubclass(each, FactBase)
        and each.__module__ == module.__name__
        and each is not Framed
    ]


def recorded(fact: type[FactBase[Any]]) -> list[str]:
    """The lines that a host answered to ``fact``."""
    return (RECORDED / f"{fact.__name__}.txt").read_text().splitlines()


def framed_lines(lines: list[str]) -> list[str]:
    """``lines`` as a framed command prints them."""
    return ["", BEGIN, *lines, "", END]


def read(fact: type[FactBase[Any]], lines: list[str] | None = None) -> Any:
    """What ``fact`` says where a host answers ``lines``; the recorded ones when None."""
    return fact().process(framed_lines(recorded(fact) if lines is None else lines))
