"""`python -m trainer dataset ...`: look at a folder of pictures before training on it, and caption it."""

from __future__ import annotations

import dataclasses
import inspect
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.captioning_config import HINTS, CaptionOptions, options_from
from trainer.cli import MODELS as DEFAULT_MODELS
from trainer.cli import ModelsOption
from trainer.config import TrainConfig, kind_of
from trainer.errors import CaptionerError, TrainerError

app = typer.Typer(
    help="Look at a folder before training on it, and caption its pictures.", no_args_is_help=True
)

_SWITCHES = {"overwrite": "--overwrite/--only-missing"}


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    base: Annotated[str, typer.Option(help="The base model that would train.")] = "tiny-sdxl",
    resolution: Annotated[
        int, typer.Option(help="Side of the training area in px; 0 takes the base model's native size.")
    ] = 0,
    bucket_step: int = 64,
    preset: Annotated[str, typer.Option(help="What is taught: style, character or concept.")] = "style",
    models: ModelsOption = DEFAULT_MODELS,
) -> None:
    """Say which pictures would train, in which bucket, what is cropped, and what is wrong with them."""
    from trainer.dataset.checks import findings
    from trainer.dataset.image_metrics import measure
    from trainer.dataset.scan import scan

    manifest = scan(folder)
    config = TrainConfig(base=base, resolution=resolution, bucket_step=bucket_step)
    from trainer.sdxl.base import open_base
    from trainer.training.examples import bucket_plan

    sizes, crops = (
        [(item.width, item.height) for item in manifest.items],
        [item.crop for item in manifest.items],
    )
    placements = bucket_plan(config, open_base(base, models)).place_all(sizes, crops)
    for item, placement in zip(manifest.items, placements, strict=True):
        cut = f", {placement.cropped_share:.0%} cropped" if placement.cropped_share >= 0.005 else ""
        small = ", smaller than its bucket" if placement.resized[0] > item.width else ""
        bucket = "x".join(map(str, placement.bucket))
        typer.echo(
            f"{item.name}: {item.width}x{item.height} -> {bucket}{cut}{small}: {item.caption or '(no caption)'}"
        )
    for problem in manifest.problems:
        typer.echo(f"left out: {problem}")
    names = [Path(item.path).relative_to(manifest.folder).as_posix() for item in manifest.items]
    measures = {name: measure(Path(item.path)) for name, item in zip(names, manifest.items, strict=True)}
    for finding in findings(measures, dict(zip(names, placements, strict=True)), preset):
        typer.echo(
            f"please note: {finding.picture} {finding.sentence}"
            if finding.picture
            else f"please note: {finding.sentence}"
        )
    typer.echo(f"{len(manifest.items)} pictures, {len(manifest.problems)} problems")


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of CaptionOptions in place of its `**options`."""
    signature = inspect.signature(command, eval_str=True)
    given = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    made = [_option(declared) for declared in dataclasses.fields(CaptionOptions)]
    command.__signature__ = signature.replace(parameters=[*given, *made])  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*given, *made)}
    return command


def _option(declared: dataclasses.Field) -> inspect.Parameter:
    facts, kind = declared.metadata, kind_of(declared, HINTS)
    names = [_SWITCHES[declared.name]] if declared.name in _SWITCHES else []
    choices = f" One of {', '.join(facts['choices'])}." if facts["choices"] else ""
    option = typer.Option(*names, help=facts["help"] + choices)
    # Several words of a list are given with commas or by naming the option again.
    hint, default = (list[str], []) if kind is tuple else (kind, declared.default)
    return inspect.Parameter(
        declared.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option]
    )


@app.command()
@_with_options
def caption(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of pictures.")],
    model: Annotated[
        str,
        typer.Option(help="A name under models/captioners, a folder, or OWNER/NAME of the Hugging Face hub."),
    ],
    fetch: Annotated[bool, typer.Option("--fetch", help="Download the model if it is not here.")] = False,
    models: ModelsOption = DEFAULT_MODELS,
    **options: Any,
) -> None:
    """Write a caption beside each picture that has none: sentences by BLIP or Florence-2, tags by a WD tagger."""
    if fetch:
        os.environ["HF_HUB_OFFLINE"] = "0"  # before anything loads the hub's library
    options["exclude_tags"] = [
        tag.strip() for text in options["exclude_tags"] for tag in text.split(",") if tag.strip()
    ]
    chosen = options_from(options)
    from trainer.captioning.folder import CaptioningTask, caption_folder
    from trainer.cli.progress_bars import Bars
    from trainer.headers.captioner import is_hub_id, open_captioner
    from trainer.runs.commands import CommandInbox
    from trainer.runs.run import Run

    try:
        opened = open_captioner(model, models)
    except CaptionerError:
        if not (fetch and is_hub_id(model)):
            raise
        from trainer.captioning.fetch import fetch as fetched

        fetched(model, models, typer.echo)
        opened = open_captioner(model, models)
    with tempfile.TemporaryDirectory() as place:
        run = Run(Path(place))
        with Bars(run):
            how = caption_folder(run, CaptioningTask(folder, opened, chosen), CommandInbox(run), set())
        done = _captions_of(run)
    if how == "stopped":
        raise TrainerError(
            f"stopped; {done} captions are written: the same command without --overwrite goes on with the others"
        )
    typer.echo(f"{done} captions by {opened.name} ({opened.kind})")


def _captions_of(run: Any) -> int:
    from trainer.runs import events

    return sum(event["kind"] == "captioned" for event in events.read(run.events)[0])
