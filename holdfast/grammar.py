"""The settings models as a grammar: descriptions of the accepted values."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from holdfast.types import Word

_KINDS: dict[Any, str] = {
    str: "text in quotes",
    int: "a whole number without quotes",
    float: "a number without quotes",
    bool: "True or False",
}


_TEN_YEARS_DAYS = 3660


class Unit(NamedTuple):
    """The unit of the numbers of a key; a number above ``most`` is in another unit."""

    name: str
    """Empty for numbers without a unit."""
    most: int


_UNITS = {
    "mib": Unit("MiB", 2**26),
    "gib": Unit("GiB", 2**20),
    "days": Unit("days", _TEN_YEARS_DAYS),
    "hours": Unit("hours", 24 * _TEN_YEARS_DAYS),
    "minutes": Unit("minutes", 24 * 60 * _TEN_YEARS_DAYS),
    "seconds": Unit("seconds", 24 * 3600 * _TEN_YEARS_DAYS),
    "w": Unit("W", 10**6),
    "mhz": Unit("MHz", 10**6),
    "usd": Unit("USD", 10**6),
    "tokens": Unit("tokens", 10**8),
}
"""The unit by the last word of a key."""

_NO_UNIT = Unit("", 2**31 - 1)
"""Every program can read numbers up to this one."""


def unit_of(key: str) -> Unit:
    """The unit in the last word of a key."""
    return _UNITS.get(key.rpartition(".")[2].rpartition("_")[2], _NO_UNIT)


def arms(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union without None; one alternative if it is no union."""
    if get_origin(annotation) is Annotated:
        return (annotation,)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(arm for arm in get_args(annotation) if arm is not type(None))
    return (annotation,)


def annotation_of(model: type[BaseModel], name: object) -> Any:
    """The type of one key of a model, with its limits; None if there is no such key."""
    for field_name, field in model.model_fields.items():
        if name in (field_name, field.alias):
            if field.metadata:
                return Annotated[field.annotation, *field.metadata]
            return field.annotation
    return None


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys that an inventory may use in this model."""
    return [field.alias or name for name, field in model.model_fields.items()]


def describe(annotation: Any) -> str:
    """The accepted value in words, such as "a whole number without quotes from 1 to 65535"."""
    options = arms(annotation)
    if len(options) > 1:
        return " or ".join(describe(option) for option in options)
    (kind,) = options
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        word = next((item for item in arguments[1:] if isinstance(item, Word)), None)
        text = f"{word.what}, such as {word.example}" if word else describe(arguments[0])
        text += _limits(arguments[1:])
    elif origin is Literal:
        text = "one of " + ", ".join(map(repr, arguments))
    elif origin is list:
        text = f"a list, each item {describe(arguments[0])}"
    elif origin is dict:
        name, value = map(describe, arguments)
        text = f"a dict {{name: value}}, each name {name}, each value {value}"
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        text = "a dict with " + ", ".join(keys_of(kind))
    else:
        text = _KINDS[kind]
    return text


def _limits(metadata: tuple[Any, ...]) -> str:
    bounds: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, FieldInfo):
            return _limits(tuple(item.metadata))
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length"):
            if (bound := getattr(item, name, None)) is not None:
                bounds[name] = bound
    if {"ge", "le"} <= bounds.keys():
        return f" from {bounds['ge']} to {bounds['le']}"
    words = {
        "ge": "of at least {}",
        "gt": "above {}",
        "le": "of at most {}",
        "lt": "below {}",
        "min_length": "and at least {} long",
        "max_length": "and at most {} long",
    }
    return "".join(f" {words[name].format(bound)}" for name, bound in bounds.items())


def names_a_secret(annotation: Any) -> bool:
    """Whether the value is the name of a secret."""
    return any(
        isinstance(item, Word) and item.secret
        for arm in arms(annotation)
        for item in get_args(arm)[1:]
    )


def names_a_machine(annotation: Any) -> bool:
    """Whether the value is a name, an address or a URL."""
    return any(
        isinstance(item, Word) and item.machine
        for arm in arms(annotation)
        for item in get_args(arm)[1:]
    )


def walk(value: Any, annotation: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every value below ``value`` with its key and type, containers before their items.

    ``annotation`` is the type of ``value``; keys are written as an operator would, such as
    ``firewall.openings[0].port``.
    """
    yield key, value, annotation
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            written = field.alias or name
            below = f"{key}.{written}" if key else written
            yield from walk(getattr(value, name), annotation_of(type(value), name), below)
    elif isinstance(value, list | dict):
        (kind,) = arms(annotation)
        if get_origin(kind) is Annotated:
            (kind,) = arms(get_args(kind)[0])
        item_kind = get_args(kind)[-1]
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from walk(item, item_kind, f"{key}[{index}]")
        else:
            for name, item in value.items():
                yield from walk(item, item_kind, f"{key}.{name}")
