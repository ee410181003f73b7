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
    """Print the device that a training would use, and the limits of the container it is in."""
    from trainer.hardware.device import describe, find_device, list_devices
    from trainer.hardware.limits import container_limits, describe_limits

    if json_:
        typer.echo(json.dumps(list_devices()))
        return
    typer.echo(describe(find_device()))
    if limits := describe_limits(container_limits()):
        typer.echo(limits)


def print_settings() -> None:
    """Print the table of all settings (docs/settings.md)."""
    typer.echo(settings_table(), nl=False)
