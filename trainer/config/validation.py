"""Validation of one setting: a validator for each type, then the setting's own `check`.

Every problem is a sentence that begins with the setting's name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from trainer.config.declaration import item_types, kind_of

MAX_TEXT_LENGTH = 2000  # characters

Validator = Callable[[str, Any, dataclasses.Field[Any]], str | None]


def problems_in(settings: Any) -> list[str]:
    """Every invalid value of a dataclass of settings, as sentences; empty if all are valid."""
    items = item_types(type(settings))
    problems = (
        problem_with(declared, getattr(settings, declared.name), items.get(declared.name))
        for declared in dataclasses.fields(settings)
    )
    return [problem for problem in problems if problem]


def problem_with(declared: dataclasses.Field[Any], value: Any, item_type: type | None = None) -> str | None:
    """The first problem with one value, or None.

    Args:
        item_type: type of each element, for a list.
    """
    kind = kind_of(declared)
    problem = (
        _list_problem(declared, value, item_type or str)
        if kind is tuple
        else _VALIDATORS[kind](declared.name, value, declared)
    )
    check = declared.metadata["check"]
    return problem or (check(declared.name, value) if check else None)


def _bool_problem(name: str, value: Any, declared: dataclasses.Field[Any]) -> str | None:
    return None if isinstance(value, bool) else f"{name} must be true or false, not {value!r}"


def _int_problem(name: str, value: Any, declared: dataclasses.Field[Any]) -> str | None:
    if not isinstance(value, int) or isinstance(value, bool):  # bool is a subclass of int
        return f"{name} must be a whole number, not {value!r}"
    return _bounds_problem(name, value, declared)


def _float_problem(name: str, value: Any, declared: dataclasses.Field[Any]) -> str | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return f"{name} must be a number, not {value!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} must be a finite number"
    return _bounds_problem(name, value, declared)


def _str_problem(name: str, value: Any, declared: dataclasses.Field[Any]) -> str | None:
    if not isinstance(value, str):
        return f"{name} must be text, not {value!r}"
    choices = declared.metadata["choices"]
    if choices and value not in choices:
        return f"{name} must be one of {', '.join(choices)}, not {value!r}"
    if len(value) > MAX_TEXT_LENGTH:
        return f"{name} must be at most {MAX_TEXT_LENGTH} characters long"
    return None if is_text(value) else f"{name} contains characters that can't be saved; type it again"


_VALIDATORS: dict[type, Validator] = {
    bool: _bool_problem,
    int: _int_problem,
    float: _float_problem,
    str: _str_problem,
}
_ITEM_WORDS = {str: "texts", int: "whole numbers", float: "numbers"}


def _list_problem(declared: dataclasses.Field[Any], value: Any, item_type: type) -> str | None:
    name = declared.name
    if not isinstance(value, tuple) or not all(type(item) is item_type for item in value):
        return f"{name} must be a list of {_ITEM_WORDS[item_type]}"
    if item_type is str:
        fine = all(map(is_text, value))
        return None if fine else f"{name} contains characters that can't be saved; type it again"
    problems = (_VALIDATORS[item_type](f"each of {name}", item, declared) for item in value)
    return next((problem for problem in problems if problem), None)


def _bounds_problem(name: str, value: float, declared: dataclasses.Field[Any]) -> str | None:
    low, high = declared.metadata["low"], declared.metadata["high"]
    if low is None or low <= value <= high:
        return None
    return f"{name} must be from {format_number(low)} to {format_number(high)}, not {format_number(value)}"


def is_text(value: str) -> bool:
    """True if a UTF-8 file can hold the text.

    A shell passes bytes that are not UTF-8 as lone surrogates, which can't be encoded. No path may hold NUL.
    """
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def format_number(value: float) -> str:
    """A number without needless digits or exponents: 2147483647, not 2.14748e+09."""
    if isinstance(value, int) and abs(value) >= 1e15:
        return f"{Decimal(value):.6g}"  # also for an int that no float can hold
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:g}"
