"""Command-line options derived from declared settings.

    @app.command()
    @with_options(SamplingConfig, names=("seed", "steps"))
    def preview(file: Path, **options: Any) -> None: ...

is for typer the same as

    def preview(file: Path, seed: int = 0, steps: int = 16) -> None: ...
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from trainer.config import kind_of

Command = Callable[..., None]


def with_options(
    declaring: type,
    names: Sequence[str] | None = None,
    *,
    flags: Mapping[str, str] | None = None,
    required: bool = True,
) -> Callable[[Command], Command]:
    """Returns a decorator that replaces a command's `**options` by one option for each setting.

    typer reads `__signature__` and `__annotations__` of a command, so both are replaced; the function itself
    still receives the options as keywords.

    Args:
        declaring: dataclass whose fields are settings.
        names: settings that get an option; all by default.
        flags: setting -> flag, where it differs from `--name-of-setting`.
        required: False makes None, not the declared default, the value of an option that is not given.
    """
    declared = {field.name: field for field in dataclasses.fields(declaring)}
    chosen = [declared[name] for name in names] if names is not None else [*declared.values()]
    flags = flags or {}

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        derived = [_parameter(field, flags.get(field.name), required=required) for field in chosen]
        parameters = [*own, *derived]
        command.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportFunctionMemberAccess]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, of a command with `required=False`."""
    return {name: value for name, value in options.items() if value is not None and value != []}


def _parameter(declared: dataclasses.Field[Any], flag: str | None, *, required: bool) -> inspect.Parameter:
    metadata, kind = declared.metadata, kind_of(declared)
    choices = f" One of {', '.join(metadata['choices'])}." if metadata["choices"] else ""
    unit = metadata["unit"]
    option = typer.Option(
        *([flag] if flag else []),
        help=metadata["help"] + choices,
        metavar=unit.upper() if unit.isalpha() else None,
    )
    # A list is given by repeating the option.
    hint: Any = list[str] if kind is tuple else kind
    default = [] if kind is tuple else declared.default
    if not required:
        hint, default = hint | None, None
    return inspect.Parameter(
        declared.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option]
    )
