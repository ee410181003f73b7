"""Declaration of a setting: one dataclass field that carries its label, bounds, choices and help text.

Form, command line, validation, TOML and `docs/settings.md` are derived from these fields.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest number that a setting (or each number of a list) accepts, and their unit."""

    low: float
    high: float
    unit: str = ""


def setting(
    default: Any,
    label: str,
    *,
    group: str,
    help: str,
    bounds: Bounds | None = None,
    choices: tuple[str, ...] = (),
    check: Callable[[str, Any], str | None] | None = None,
) -> Any:
    """Returns a dataclass field with all that is known about a setting in its metadata.

    Args:
        default: has the type of the setting; `kind_of` relies on it.
        label: short name on the page, in the words of kohya's scripts and A1111.
        group: heading in the form and comment in TOML files.
        help: effect of the setting and consequences of changing it.
        check: from the setting's name and a value of the right type to a problem, or None.
    """
    metadata = {
        "label": label,
        "group": group,
        "help": help,
        "unit": bounds.unit if bounds else "",
        "low": bounds.low if bounds else None,
        "high": bounds.high if bounds else None,
        "choices": choices,
        "check": check,
    }
    return dataclasses.field(default=default, metadata=metadata)


def kind_of(declared: dataclasses.Field[Any]) -> type:
    """The Python type of a setting's value: str, int, float, bool or tuple."""
    return type(declared.default)


@functools.cache
def item_types(declaring: type) -> Mapping[str, type]:
    """Element type of each list setting of a dataclass: str for `tuple[str, ...]`."""
    hints = typing.get_type_hints(declaring)
    return {
        name: typing.get_args(hint)[0] for name, hint in hints.items() if typing.get_origin(hint) is tuple
    }


def coerced(declared: dataclasses.Field[Any], value: Any, item_type: type | None = None) -> Any:
    """Converts what JSON and TOML can't distinguish: a list becomes a tuple, a whole number a float.

    Values of any other wrong type are returned unchanged, for validation to report.
    """
    kind = kind_of(declared)
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(_as_float(item) for item in value) if item_type is float else tuple(value)
    return _as_float(value) if kind is float else value


def _as_float(value: Any) -> Any:
    try:
        return float(value) if type(value) is int else value
    except OverflowError:  # an int that no float can hold; validation rejects it as out of bounds
        return value


def coerced_values(declaring: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """`coerced` for several settings of one dataclass; every key must be a field of it."""
    declared = {field.name: field for field in dataclasses.fields(declaring)}
    items = item_types(declaring)
    return {name: coerced(declared[name], value, items.get(name)) for name, value in values.items()}
