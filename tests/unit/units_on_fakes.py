"""Plans the whole site like `plan_on_fakes`, and prints the text of every service unit of ours."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Any

import jinja2

from holdfast import base
from operations.host_files import HostFile
from tests.unit import plan_on_fakes


def main(path: str, ground: str) -> None:
    """Print the units that the hosts of an inventory file get, and the templates that were used.

    Units are path to text.
    """
    units: dict[str, str] = {}
    templates: set[str] = set()
    construct, get_template = HostFile.__init__, jinja2.Environment.get_template

    def record(self: HostFile, path: str, content: str, *more: Any, **named: Any) -> None:
        construct(self, path, content, *more, **named)
        if path.endswith(".service"):
            units[path] = content

    def get(self: jinja2.Environment, name: Any, *more: Any) -> jinja2.Template:
        templates.add(str(name))
        return get_template(self, name, *more)

    HostFile.__init__ = record  # type: ignore[method-assign]
    jinja2.Environment.get_template = get  # type: ignore[method-assign, assignment]
    # The recorded ground is another machine's.
    base.refusals = lambda *_: []
    with redirect_stdout(sys.stderr):
        plan_on_fakes.main(path, ground)
    print(json.dumps({"units": units, "templates": sorted(templates)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
