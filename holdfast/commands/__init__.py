"""The sub-commands of `holdfast`; each file of this folder is one.

A sub-command is added by one file. `holdfast/commands/gpus.py` defines a function `gpus`. Its
docstring is the help text, its arguments are those of the command, and it returns the exit status
(an underscore in the name becomes a dash). It raises `Refused` for an inventory with errors. It
imports what it needs inside the function, so that help and completion stay quick. A file whose name
begins with an underscore is no sub-command.
"""

from typing import Annotated

import typer

SITE = "deploys/site.py"

Inventory = Annotated[
    str, typer.Argument(metavar="INVENTORY", help="The file in inventories/ that lists the hosts.")
]
Deploy = Annotated[str, typer.Argument(metavar="DEPLOY", help="The deploy to run on each host.")]
