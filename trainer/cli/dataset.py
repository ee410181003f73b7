"""`python -m trainer dataset ...`: checks a folder of pictures before training, and captions it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.captioning_config import CaptionOptions, options_from
from trainer.cli import MODELS, ModelsOption
from trainer.cli.options import with_options
from trainer.config import TrainConfig, config_from
from trainer.errors import CaptionerError, TrainerError

if TYPE_CHECKING:
    from trainer.headers.captioner import Captioner

app = typer.Typer(help="Check a folder of pictures before training, and caption it.", no_args_is_help=True)


@app.command()
@with_options(TrainConfig, ("base", "resolution", "bucket_step", "preset"))
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of pictures.")],
    models: ModelsOption = MODELS,
    **options: Any,
) -> None:
    """Print each picture's bucket and crop, and problems with the pictures."""
    from trainer.dataset.buckets import bucket_plan_of
    from trainer.dataset.checks import findings
    from trainer.dataset.image_metrics import measure
    from trainer.dataset.scan import scan

    manifest = scan(folder)
    config = config_from(options)
    from trainer.sdxl.base import open_base

    base = open_base(config.base, models)
    sizes = [(item.width, item.height) for item in manifest.items]
    crops = [item.crop for item in manifest.items]
    placements = bucket_plan_of(config, base.native_size, base.latent_factor).place_all(sizes, crops)
    names = [Path(item.path).relative_to(manifest.folder).as_posix() for item in manifest.items]
    for name, item, placement in zip(names, manifest.items, placements, strict=True):
        cropped = f", {placement.cropped_share:.0%} cropped" if placement.cropped_share >= 0.005 else ""
        small = ", smaller than its bucket" if placement.resized[0] > item.width else ""
        bucket = "x".join(map(str, placement.bucket))
        caption = item.caption or "(no caption)"
        typer.echo(f"{name}: {item.width}x{item.height} -> {bucket}{cropped}{small}: {caption}")
    for problem in manifest.problems:
        typer.echo(f"left out: {problem}")
    for note in manifest.notes:
        typer.echo(f"note: {note}")
    measures = {name: measure(Path(item.path)) for name, item in zip(names, manifest.items, strict=True)}
    for finding in findings(measures, dict(zip(names, placements, strict=True)), config.preset):
        typer.echo(
            f"note: {finding.picture} {finding.sentence}" if finding.picture else f"note: {finding.sentence}"
        )
    typer.echo(f"{len(manifest.items)} pictures, {len(manifest.problems)} problems")


@app.command()
@with_options(CaptionOptions, flags={"overwrite": "--overwrite/--only-missing"})
def caption(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of pictures.")],
    model: Annotated[
        str,
        typer.Option(help="A name under models/captioners, a folder, or OWNER/NAME of the Hugging Face hub."),
    ],
    fetch: Annotated[bool, typer.Option("--fetch", help="Download the model if it is not here.")] = False,
    models: ModelsOption = MODELS,
    **options: Any,
) -> None:
    """Caption the pictures that have no caption: sentences by BLIP or Florence-2, tags by a WD tagger."""
    if fetch:
        os.environ["HF_HUB_OFFLINE"] = "0"  # huggingface_hub reads it once, when it is imported
    # Tags can be separated by commas, or given by repeating the option.
    options["exclude_tags"] = [
        tag.strip() for text in options["exclude_tags"] for tag in text.split(",") if tag.strip()
    ]
    chosen = options_from(options)
    from trainer.captioning.folder import CaptioningTask, caption_folder
    from trainer.cli.progress_bars import Bars
    from trainer.runs import events
    from trainer.runs.commands import CommandInbox
    from trainer.runs.run import Run

    captioner = _open_captioner(model, models, fetch=fetch)
    with tempfile.TemporaryDirectory() as job_folder:
        run = Run(Path(job_folder))
        with Bars(run):
            ending = caption_folder(run, CaptioningTask(folder, captioner, chosen), CommandInbox(run), set())
        done = sum(event["kind"] == "captioned" for event in events.read(run.events)[0])
    if ending == "stopped":
        raise TrainerError(
            f"stopped after {done} captions; run the same command without --overwrite to caption the others"
        )
    typer.echo(f"{done} captions by {captioner.name} ({captioner.kind})")


def _open_captioner(model: str, models: Path, *, fetch: bool) -> Captioner:
    """Opens a captioning model, after downloading it if allowed and necessary. Raises CaptionerError."""
    from trainer.headers.captioner import is_hub_id, open_captioner

    try:
        return open_captioner(model, models)
    except CaptionerError:
        if not (fetch and is_hub_id(model)):
            raise
    from trainer.captioning.fetch import fetch as fetch_captioner

    fetch_captioner(model, models, typer.echo)
    return open_captioner(model, models)
