"""The path and text of each program of `holdfast.host_programs` on a host.

`operations.host_files.program` places a program at its path. An operation or a fact that runs one
without placing it sends the text.
"""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from types import ModuleType

from holdfast.host_programs import shared


def path_of(program: ModuleType) -> str:
    """The path of a program on a host, such as /usr/local/sbin/holdfast-gpu-memory."""
    name = program.__name__.rpartition(".")[2]
    return f"/usr/local/sbin/holdfast-{name.replace('_', '-')}"


def text_of(program: ModuleType) -> str:
    """The text of a program for a host: one file, with the code of `holdfast.host_programs.shared`.

    The text of the shared module replaces its import. So root imports from no folder, and a program
    always has the matching version of the shared code.
    """
    text = inspect.getsource(program)
    lines = text.splitlines(keepends=True)
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(shared.__name__):
            lines[node.lineno - 1 : node.end_lineno] = [_body(import_module(str(node.module)))]
    return "".join(lines)


def _body(module: ModuleType) -> str:
    """The text of a shared module from its first import on.

    It leaves out the docstring, and the import from ``__future__`` that every program has.
    """
    text = inspect.getsource(module)
    first = ast.parse(text).body[2]
    return f"# {module.__name__}\n" + "".join(text.splitlines(keepends=True)[first.lineno - 1 :])
