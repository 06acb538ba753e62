"""Turn pydantic's errors into sentences for an operator."""

from __future__ import annotations

import difflib
import re
from itertools import zip_longest
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from holdfast.grammar import annotation_of, arms, describe, keys_of, names_a_secret, unit_of
from holdfast.refusal import MISSING, Refusal, is_secret_key, shown


def _choose(options: tuple[Any, ...], tag: object) -> Any:
    for option in options:
        if getattr(option, "__name__", None) == tag:
            return option
        if get_origin(option) is Literal and str(tag).startswith("literal["):
            return option
    return options[0]


def _below(key: str, step: int | str) -> str:
    if not re.fullmatch(r"[\w.:@*+-]+", str(step), re.ASCII):
        return f"{key}[{step!r}]"
    return f"{key}.{step}" if key else str(step)


def locate(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[str, Any, str]:
    """The place of an error: its key in the inventory, the expected type, and the union's key.

    pydantic's locations contain the name of a union's arm, which the inventory does not have. The
    third value is the key of the union that contains the error, else "".
    """
    key, annotation, union = "", model, ""
    for step, following in zip_longest(location, location[1:]):
        if step == "[key]":
            break
        options = arms(annotation)
        if len(options) > 1:
            annotation, union = _choose(options, step), key
            continue
        (kind,) = options
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
            kind = arms(kind)[0]
        if isinstance(step, int) and get_origin(kind) is list:
            key, annotation = f"{key}[{step}]", get_args(kind)[0]
        else:
            key = _below(key, step)
            if get_origin(kind) is dict:
                # The error may be in a dict's key, not in its value.
                annotation = get_args(kind)[0 if following == "[key]" else 1]
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                annotation = annotation_of(kind, step)
    return key, annotation, union


def _nearest(word: object, words: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(str(word), words, n=1, cutoff=0.6)), None)


def _unknown_key(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[str, str]:
    name = str(location[-1])
    _, parent, _ = locate(model, location[:-1])
    kind = arms(parent)[0]
    if get_origin(kind) is Annotated:
        kind = arms(get_args(kind)[0])[0]
    keys = keys_of(kind)
    if is_secret_key(name):
        return "there is no such key, and an inventory holds no secrets", "put it in .env"
    if meant := _nearest(name, keys):
        return "there is no such key", f"write '{meant}', or remove it"
    return "there is no such key", f"remove it (known keys: {', '.join(sorted(keys))})"


_OUT_OF_BOUNDS = {
    "greater_than": "this is out of range",
    "less_than": "this is out of range",
    "too_short": "this is too short",
    "string_too_short": "this is too short",
    "too_long": "this is too long",
    "string_too_long": "this is too long",
}


def _words(error: ErrorDetails, model: type[BaseModel], expected: Any) -> tuple[str, str]:
    kind = error["type"]
    if kind == "extra_forbidden":
        return _unknown_key(model, error["loc"])
    if kind == "value_error":
        wrong, _, mend = str(error["ctx"]["error"]).partition("; ")
        return wrong, mend
    if kind == "invalid_key":
        return "a key must be text", "write it in quotes, or remove it"
    if kind == "missing":
        wrong = "this key is required"
    elif kind == "literal_error":
        literals = [arm for arm in arms(expected) if get_origin(arm) is Literal]
        choices = [str(value) for arm in literals for value in get_args(arm)]
        meant = _nearest(error["input"], choices)
        wrong = "this is not one of the choices" + (f" (is '{meant}' meant?)" if meant else "")
    else:
        wrong = _OUT_OF_BOUNDS.get(kind.removesuffix("_equal"), "this is of the wrong kind")
    return wrong, f"write {describe(expected)}"


def _relevant(errors: list[ErrorDetails], model: type[BaseModel]) -> list[ErrorDetails]:
    """``errors`` without duplicates for one value."""
    misnamed = [error["loc"][:-1] for error in errors if error["loc"][-1:] == ("[key]",)]
    kept: list[ErrorDetails] = []
    best: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        if error["type"] == "default_factory_not_called":
            # It follows from a value that is wrong itself.
            continue
        key, _, union = locate(model, error["loc"])
        if error["loc"][-1:] != ("[key]",) and any(
            error["loc"][: len(name)] == name for name in misnamed
        ):
            # The value of a wrong key may also be wrong: keys and values may be swapped.
            continue
        if union:
            # The error of the arm that read the value counts; otherwise that of the whole union.
            if key == union and error["type"] != "value_error":
                error["loc"] = error["loc"][:-1]
            best.setdefault(union, []).append(error)
        else:
            kept.append(error)
    for union, group in best.items():
        inside = [item for item in group if locate(model, item["loc"])[2] == union]
        kept += inside or [next((i for i in group if i["type"] == "literal_error"), group[0])]
    return kept


def refusals_from(
    host: str, error: ValidationError, model: type[BaseModel], secrets: frozenset[str]
) -> list[Refusal]:
    """One refusal for each error of ``host``; ``secrets`` are values that are never shown."""
    refusals = []
    for item in _relevant(error.errors(), model):
        key, expected, _ = locate(model, item["loc"])
        wrong, mend = _words(item, model, expected)
        if (unit := unit_of(key).name) and "number" in mend:
            mend += f", in {unit}"
        name = ""
        if names_a_secret(expected):
            # A wrong name of a secret is often the secret itself.
            name = "secret"
        elif item["type"] == "extra_forbidden" or "sha256" in key:
            name = str(item["loc"][-1])
        value = MISSING if item["type"] == "missing" else shown(item["input"], name, secrets)
        refusals.append(Refusal(host, key, value, wrong, mend))
    return refusals
