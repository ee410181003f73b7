"""`python -m trainer device` and `settings`: print information and change nothing."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from trainer.config import settings_table


def device(
    json_: Annotated[
        bool, typer.Option("--json", hidden=True, help="Print every device as JSON, for the queue.")
    ] = False,
) -> None:
    """Print the device that a training would use."""
    from trainer.hardware.device import describe, find_device, list_devices

    typer.echo(json.dumps(list_devices()) if json_ else describe(find_device()))


def print_settings() -> None:
    """Print the table of all settings (docs/settings.md)."""
    typer.echo(settings_table(), nl=False)
