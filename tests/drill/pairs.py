"""Every ordered pair of a few names, as one walk."""

from __future__ import annotations

from collections.abc import Iterator


def walk(names: list[str], start: str) -> Iterator[str]:
    """Every ordered pair once, as one walk from ``start``: the names it comes to."""
    left = {name: [other for other in names if other != name] for name in names}
    # Hierholzer: a complete directed graph has an Eulerian circuit from any of its nodes.
    stack, circuit = [start], []
    while stack:
        if left[stack[-1]]:
            stack.append(left[stack[-1]].pop())
        else:
            circuit.append(stack.pop())
    yield from circuit[::-1][1:]
