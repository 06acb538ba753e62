"""Commands that an operator runs on the controller: ``python -m holdfast.commands.NAME``."""
