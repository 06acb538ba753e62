"""What pyinfra reads before any inventory: one without a host of ours ends the run here.

pyinfra itself goes through with no host and succeeds: a misspelt name would look like a deploy.
Commands that are no deploy of ours, such as `pyinfra HOST exec -- uptime`, are not touched.
"""

from pathlib import Path

import click

from holdfast import inventory_file

_asked = click.get_current_context().params
_deploys = Path(__file__).resolve().parent / "deploys"

if any(Path(each).resolve().parent == _deploys for each in _asked["operations"]):
    with inventory_file.refusals():
        inventory_file.read(_asked["inventory"])
