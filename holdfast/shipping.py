"""How the programs of `holdfast.host_programs` come to a host: the path there, and the text.

`operations.host_files.program` places one at its path; an operation or a fact that runs one without
placing it sends the text.
"""

from __future__ import annotations

import inspect
from types import ModuleType


def path_of(program: ModuleType) -> str:
    """Where a program lies on a host, such as /usr/local/sbin/holdfast-gpu-memory."""
    name = program.__name__.rpartition(".")[2]
    return f"/usr/local/sbin/holdfast-{name.replace('_', '-')}"


def text_of(program: ModuleType) -> str:
    """What a host runs."""
    return inspect.getsource(program)
