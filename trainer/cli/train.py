"""`python -m trainer train` and `resume`: creates a run, or opens one, and trains in this process."""

from __future__ import annotations

import contextlib
import os
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.cli import MODELS, ModelsOption
from trainer.cli.options import given, with_options
from trainer.config import PRESET_NAMES, TrainConfig, config_from, read_toml
from trainer.errors import ConfigError, TrainerError
from trainer.runs import events
from trainer.text_files import encoding_notes, read_text

if TYPE_CHECKING:
    from trainer.runs.run import Run

# Settings with an option of their own; all others are set by --set NAME=VALUE or in a TOML file.
_SETTINGS = (
    "preset",
    "name",
    "trigger",
    "base",
    "pace",
    "steps",
    "batch",
    "resolution",
    "rank",
    "alpha",
    "precision",
    "seed",
    "learning_rate",
    "optimizer",
    "schedule",
    "format",
    "memory_budget",
    "train_text_encoder_1",
    "train_text_encoder_2",
    "sample_prompts",
)
_FLAGS = {"memory_budget": "--vram", "sample_prompts": "--sample-prompt"}


@with_options(TrainConfig, _SETTINGS, flags=_FLAGS, required=False)
def train(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATASET...",
            help="Folders of pictures with captions beside them, or TOML files that list such folders.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the run; it must not contain a run yet.")],
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings, which override the preset.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any other setting of docs/settings.md; repeatable."
        ),
    ] = None,
    models: ModelsOption = MODELS,
    sample_prompt_file: Annotated[
        Path | None, typer.Option(help="Text file with one sample prompt a line, with kohya's flags.")
    ] = None,
    **options: Any,
) -> None:
    """Train a LoRA on folders of pictures.

    Settings come from, in rising priority: preset, TOML file, options, --set.
    """
    from trainer.runs.run import check_is_unused

    if _rank() > 0:
        _join(output, models)
        return
    check_is_unused(output)
    for note in encoding_notes((path.name, path) for path in (config, sample_prompt_file) if path):
        typer.echo(f"note: {note}", err=True)
    own = given(options)
    if sample_prompt_file:
        own["sample_prompts"] = [*own.get("sample_prompts", ()), *_prompt_lines(sample_prompt_file)]
    preset = own.pop("preset", None)
    values = {**(read_toml(config) if config else {}), **own, **dict(map(_name_and_value, set_ or []))}
    values["preset"] = preset or values.get("preset", "style")
    values.setdefault("name", output.resolve().name)
    _train_new(folders, output, values, models)


def resume(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the run.")],
    models: ModelsOption = MODELS,
    commands_offset: Annotated[
        int | None,
        # The second name occurs in queues that earlier versions wrote to disk.
        typer.Option(
            "--commands-offset",
            "--heard",
            hidden=True,
            help="Byte offset in commands.jsonl; commands before it are ignored.",
        ),
    ] = None,
) -> None:
    """Continue a run that was stopped or interrupted."""
    from trainer.runs.run import open_run

    if _rank() > 0:
        _join(folder, models)
        return
    _run_training(open_run(folder), models, commands_offset)


def _train_new(folders: list[Path], output: Path, values: dict[str, Any], models: Path) -> None:
    """Creates a run from the given settings, completed by their preset, and trains it."""
    from trainer.config.presets import preset_values
    from trainer.dataset.exposures import EpochLength
    from trainer.dataset.sources import scan_all, with_class_and_validation
    from trainer.headers.base_model import bucket_geometry, is_small
    from trainer.runs.run import create

    preset = str(values.pop("preset"))
    if preset not in PRESET_NAMES:
        raise ConfigError([f"preset must be one of {', '.join(PRESET_NAMES)}, not {preset!r}"])
    # Invalid settings are reported before a large dataset is scanned.
    own = config_from({**values, "preset": preset})
    apart = (own.prior_folder, own.validation_folder)
    manifest = with_class_and_validation(scan_all(folders, trigger=own.trigger, apart=apart), own)
    completed = preset_values(
        preset,
        sum(item.repeats for item in manifest.items if item.role == "train"),
        values,
        small=is_small(own.base, models),
        epoch_length=EpochLength(manifest.items, *bucket_geometry(own.base, models)),
        processes=int(os.environ.get("WORLD_SIZE", "1")),
    )
    config = config_from(completed)
    for problem in (*manifest.problems, *manifest.notes):
        typer.echo(f"note: {problem}", err=True)
    from trainer.training.preflight import preflight

    typer.echo(preflight(config, manifest, models, output.parent / ".cache").summary())
    run = create(output, config, manifest)
    for problem in (*manifest.problems, *manifest.notes):
        run.emit("problem", message=problem)
    _run_training(run, models)


def _prompt_lines(path: Path) -> list[str]:
    """Lines of a text file without empty ones and `#` comments. Raises ConfigError."""
    try:
        lines = [line.strip() for line in read_text(path).text.splitlines()]
    except OSError:
        raise ConfigError([f"{path} can't be read as text; give a file with one prompt a line"]) from None
    return [line for line in lines if line and not line.startswith("#")]


def _name_and_value(text: str) -> tuple[str, Any]:
    """Splits `rank=8` into a name and a typed value: TOML's, or text if it is no TOML. Raises ConfigError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError([f"--set needs NAME=VALUE, not {text!r}"])
    try:
        return name.strip(), tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def _rank() -> int:
    """Index of this process under `torchrun`; 0 creates the run, the others join it."""
    return int(os.environ.get("RANK", "0"))


def _join(folder: Path, models: Path) -> None:
    """Trains as a further process of `torchrun`, once the first one has created the run."""
    from trainer.runs.run import Run
    from trainer.train import train as recipe

    while not (folder / "config.toml").exists():  # if the first process fails, torchrun ends this one
        time.sleep(0.1)
    recipe(Run(folder, is_main_process=False), models)


def _run_training(run: Run, models: Path, commands_offset: int | None = None) -> None:
    """Trains in this process with progress bars; the run's last event says how the training ended."""
    from trainer.cli.progress_bars import Bars
    from trainer.runs.failures import failure_fields
    from trainer.runs.run import claim, scan_sources
    from trainer.runs.work import run_to_end

    def work() -> str:
        with Bars(run):
            scan_sources(run)
            from trainer.train import train as recipe

            return recipe(run, models, offset)

    with claim(run):
        # Stop can be pressed while the libraries still load, so the offset is read before they are imported.
        offset = events.read(run.commands)[1] if commands_offset is None else commands_offset
        ending = run_to_end(
            run,
            work,
            interrupted="Stopped at once; the last checkpoint is kept",
            failure_fields=lambda error: failure_fields(error, _config_if_readable(run)),
        )
    if ending == "finished":
        typer.echo(f"{run.lora_file}\n{run.samples / 'strip.png'}")
    else:
        typer.echo(f"Stopped. Continue with: python -m trainer resume {run.path}")


def _config_if_readable(run: Run) -> TrainConfig | None:
    with contextlib.suppress(TrainerError):
        return run.config
    return None
