"""`python -m trainer ...`: every way in from the command line. Endings become an event and an exit status."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer import config as settings
from trainer.cli import MODELS as DEFAULT_MODELS
from trainer.cli import ModelsOption, dataset, lora
from trainer.cli.base import app as base_command
from trainer.data_folders import data_folders
from trainer.errors import ConfigError, RunError, TrainerError
from trainer.runs import events
from trainer.sampling_config import MAX_FILES, SAMPLERS, parse_weighted_file, sampling_config_from

app = typer.Typer(
    help="Impasto's trainer: pictures in, a LoRA file out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(lora.app, name="lora")
app.add_typer(dataset.app, name="dataset")
app.add_typer(base_command, name="base")


# Every setting not named below is reachable as `--set name=value` and by --config.
_NAMED = (
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
    "train_text_encoder_1",
    "train_text_encoder_2",
)


@app.command()
def train(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATASET...",
            help="Folders of pictures, captions beside them; or TOML files that list folders.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the run; must not hold one yet.")],
    preset: Annotated[
        str | None, typer.Option(help="style, character or concept; style unless the TOML file says another.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings, laid over the preset.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of docs/settings.md."),
    ] = None,
    models: ModelsOption = DEFAULT_MODELS,
    name: str | None = None,
    trigger: str | None = None,
    base: str | None = None,
    pace: Annotated[
        str | None, typer.Option(help="quick, balanced or thorough: half, all or twice the preset's steps.")
    ] = None,
    steps: int | None = None,
    batch: int | None = None,
    resolution: int | None = None,
    rank: int | None = None,
    alpha: float | None = None,
    precision: str | None = None,
    seed: int | None = None,
    learning_rate: float | None = None,
    optimizer: str | None = None,
    schedule: str | None = None,
    format: str | None = None,
    vram: Annotated[
        float | None,
        typer.Option("--vram", metavar="GB", help="Memory to stay within; the device's own otherwise."),
    ] = None,
    train_text_encoder_1: bool | None = None,
    train_text_encoder_2: bool | None = None,
    sample_prompt: Annotated[
        list[str] | None, typer.Option(help="Prompt of the strip; may be given again.")
    ] = None,
    sample_prompt_file: Annotated[
        Path | None, typer.Option(help="Text file of sample prompts, one a line, with kohya's flags.")
    ] = None,
) -> None:
    """Train a LoRA on a folder of pictures."""
    from trainer.dataset.sources import scan_all
    from trainer.headers.base_model import is_small
    from trainer.presets import preset_values
    from trainer.runs import run as runs

    if _rank() > 0:  # `torchrun`: the first process makes the run, the others join it
        _join(output, models)
        return
    if (output / "config.toml").exists():
        raise RunError(
            f"{output} already holds a run; choose another --output, or go on with it: python -m trainer resume {output}"
        )
    given = locals()
    said = {key: given[key] for key in _NAMED if given[key] is not None}
    if vram is not None:
        said["memory_budget"] = vram
    if sample_prompt or sample_prompt_file:
        said["sample_prompts"] = (
            *(sample_prompt or ()),
            *(_lines(sample_prompt_file) if sample_prompt_file else ()),
        )
    loose = {
        **(settings.read_toml(config) if config else {}),
        **said,
        **dict(_pair(text) for text in set_ or []),
    }
    loose.setdefault("name", output.resolve().name)
    preset = str(preset or loose.pop("preset", "style"))
    loose.pop("preset", None)
    if preset not in settings.PRESET_NAMES:
        raise ConfigError([f"preset must be one of {', '.join(settings.PRESET_NAMES)}, not {preset!r}"])
    settings.config_from({**loose, "preset": preset})  # before the pictures are read
    manifest = scan_all(folders, trigger=str(loose.get("trigger", "")))
    small = is_small(str(loose.get("base", settings.TrainConfig.base)), models)
    chosen = settings.config_from(
        preset_values(preset, sum(item.repeats for item in manifest.items), loose, small=small)
    )
    for problem in manifest.problems:
        typer.echo(f"note: {problem}", err=True)
    from trainer.training.preflight import preflight

    typer.echo(preflight(chosen, manifest, models, output.parent / ".cache").line())
    run = runs.create(output, chosen, manifest)
    for problem in manifest.problems:
        run.emit("problem", message=problem)
    _work(run, models)


def _lines(path: Path) -> list[str]:
    """Lines of a text file but empty ones and `#` comments. Raises ConfigError."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise ConfigError([f"{path} can't be read as text; give a file of prompts, one a line"]) from None
    return [line for line in lines if line and not line.startswith("#")]


def _pair(text: str) -> tuple[str, Any]:
    """`rank=8` to a typed value; TOML decides what a value is, and what it can't read is a text."""
    import tomllib

    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError([f"--set wants NAME=VALUE, not {text!r}"])
    try:
        return name.strip(), tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the run.")],
    models: ModelsOption = DEFAULT_MODELS,
    commands_offset: Annotated[
        int | None,
        # --heard is the name in queues that earlier versions wrote to disk.
        typer.Option(
            "--commands-offset",
            "--heard",
            hidden=True,
            help="Byte offset up to which commands.jsonl was read.",
        ),
    ] = None,
) -> None:
    """Go on with a run that was stopped or killed."""
    from trainer.runs.run import open_run

    if _rank() > 0:
        _join(folder, models)
        return
    _work(open_run(folder), models, commands_offset)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _join(folder: Path, models: Path) -> None:
    """A further process of `torchrun`: computes its share once the first one has made the run."""
    from trainer.runs.run import Run
    from trainer.train import train as recipe

    while not (folder / "config.toml").exists():  # should the first one fail, torchrun ends this one
        time.sleep(0.1)
    recipe(Run(folder, is_main_process=False), models)


def _work(run: Any, models: Path, commands_offset: int | None = None) -> None:
    """Trains in this process, with bars on the terminal; how it ends is the run's last event."""
    from trainer.cli.progress_bars import Bars
    from trainer.runs.failures import failure_fields
    from trainer.runs.run import claim, scan_sources

    with claim(run):
        # Stop can be pressed while the libraries still load, so the offset is read before they are imported.
        commands_offset = events.read(run.commands)[1] if commands_offset is None else commands_offset
        try:
            with Bars(run):
                scan_sources(run)
                from trainer.train import train as recipe

                how = recipe(run, models, commands_offset)
        except TrainerError as error:
            run.emit("ended", sync=True, how="failed", **failure_fields(error, _config_of(run)))
            raise
        except KeyboardInterrupt:
            run.emit(
                "ended", sync=True, how="stopped", message="stopped at once; the last checkpoint is kept"
            )
            raise
        except Exception as error:
            with (run.path / "trainer.log").open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            facts = failure_fields(error, _config_of(run))
            run.emit("ended", sync=True, how="failed", **facts)
            raise TrainerError(facts["message"]) from error
        run.emit("ended", sync=True, how=how)
    if how == "finished":
        typer.echo(f"{run.lora_file}\n{run.samples / 'strip.png'}")
    else:
        typer.echo(f"stopped; go on with: python -m trainer resume {run.path}")


def _config_of(run: Any) -> settings.TrainConfig | None:
    """A run's settings, when they can be read."""
    with contextlib.suppress(TrainerError):
        return run.config
    return None


@app.command()
def preview(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A LoRA .safetensors.")],
    prompt: Annotated[list[str], typer.Option(help="May be given again.")],
    out_dir: Annotated[Path, typer.Option(help="Where the pictures go.")],
    with_: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="FILE=WEIGHT", help="A further LoRA; up to four are mixed."),
    ] = None,
    strengths: Annotated[
        str, typer.Option(help="Of all LoRAs together, from -1 to 2, with commas.")
    ] = "0,0.25,0.5,0.75,1",
    seed: int = 0,
    steps: int = 16,
    guidance: float = 5.0,
    sampler: Annotated[str, typer.Option(help=f"One of {', '.join(SAMPLERS)}.")] = "euler",
    size: Annotated[
        str, typer.Option(metavar="WIDTHxHEIGHT", help="In px; the base's native size when not said.")
    ] = "",
    clip_skip: Annotated[
        int, typer.Option(help="Layer of the text encoders, from the end; 2 is SDXL's own.")
    ] = 2,
    negative: str = "",
    fast: Annotated[
        bool, typer.Option("--fast", help="About the same pictures for a third of the work, and marked so.")
    ] = False,
    base: str = "tiny-sdxl",
    models: ModelsOption = DEFAULT_MODELS,
) -> None:
    """Draw prompts at several strengths: one PNG each, and strip.png."""
    width, height = _size(size)
    request = sampling_config_from(
        {
            "prompts": tuple(prompt),
            "strengths": _strengths(strengths),
            "seed": seed,
            "steps": steps,
            "guidance": guidance,
            "sampler": sampler,
            "width": width,
            "height": height,
            "clip_skip": clip_skip,
            "negative": negative,
            "fast": fast,
        }
    )
    files = [(file, 1.0), *(parse_weighted_file(text) for text in with_ or [])]
    if len(files) > MAX_FILES:
        raise ConfigError([f"at most {MAX_FILES} LoRAs are mixed; merge some into one first: lora merge"])
    from trainer.lora_file.scales import file_notice
    from trainer.sampling.pipeline import generate_from_file

    for path, _ in files:
        if notice := file_notice(path):
            typer.echo(notice, err=True)
    for path in generate_from_file(files, request, out_dir, base=base, models=models):
        typer.echo(path)


def _size(text: str) -> tuple[int, int]:
    width, times, height = text.lower().partition("x")
    if not text:
        return 0, 0
    if not (times and width.isdecimal() and height.isdecimal() and len(text) < 20):
        raise ConfigError([f"size must be like 832x1216, not {text!r}"])
    return int(width), int(height)


def _strengths(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            [f"strengths must be numbers with commas between, like 0,0.5,1, not {text!r}"]
        ) from None


@app.command(hidden=True)
def session(folder: Path, models: ModelsOption = DEFAULT_MODELS) -> None:
    """The page's warm drawing process."""
    from trainer.workers.sampling import serve

    serve(folder, models)


@app.command(hidden=True)
def make(folder: Path, models: ModelsOption = DEFAULT_MODELS) -> None:
    """The page's work on LoRA files (trainer/workers/lora_tools.py)."""
    from trainer.workers.lora_tools import work

    if work(folder, models) != "finished":
        raise typer.Exit(1)


@app.command(hidden=True)
def planner(folder: Path, models: ModelsOption = DEFAULT_MODELS) -> None:
    """The page's estimates, before a training begins."""
    from trainer.workers.planning import serve

    serve(folder, models)


@app.command("caption-job", hidden=True)
def caption_job(folder: Path, models: ModelsOption = DEFAULT_MODELS) -> None:
    """The page's captioning: works on a job directory (trainer/runs/captioning_job.py)."""
    from trainer.workers.captioning import work

    if work(folder, models) != "finished":
        raise typer.Exit(1)


@app.command()
def device(
    json_: Annotated[bool, typer.Option("--json", hidden=True, help="Every device, for the queue.")] = False,
) -> None:
    """Say which device the training would use."""
    from trainer.hardware.device import describe, find_device, list_devices

    typer.echo(json.dumps(list_devices()) if json_ else describe(find_device()))


@app.command("settings")
def print_settings() -> None:
    """Print the table of all settings (docs/settings.md)."""
    typer.echo(settings.settings_table(), nl=False)


def _in_words(error: OSError) -> str:
    if isinstance(error, shutil.Error):  # of a folder that was copied: a list of (from, to, why)
        return f"{len(error.args[0])} files can't be copied, such as {error.args[0][0][0]} ({error.args[0][0][2]})"
    return (
        f"{error.strerror or error}: {error.filename}"
        if error.filename
        else f"a file can't be written or read ({error.strerror or error})"
    )


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EINVAL):
        return "choose another name or folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "allow writing there, or choose another folder"
    return "check the disk and try again"


def main() -> int:
    """The exit status; the only place that turns errors into words."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("xformers").setLevel(
        logging.ERROR
    )  # its kernels are for CUDA; without one it says so at length
    try:
        data_folders().prepare()
        ended = app(standalone_mode=False)
        return ended if isinstance(ended, int) else 0  # typer.Exit comes back as its status
    except TrainerError as error:
        print(f"impasto: {error}", file=sys.stderr)
    except (typer.Exit, SystemExit) as ending:
        return int(getattr(ending, "exit_code", getattr(ending, "code", 0)) or 0)
    except (typer.Abort, KeyboardInterrupt):
        print("impasto: stopped", file=sys.stderr)
    except OSError as error:
        print(f"impasto: {_in_words(error)}; {_remedy(error)}", file=sys.stderr)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            message = error.format_message() if hasattr(error, "format_message") else error  # pyright: ignore
            print(f"impasto: {message}; see python -m trainer --help", file=sys.stderr)
            return 2
        if os.environ.get("IMPASTO_DEBUG"):
            raise
        print(
            f"impasto: an unexpected fault ({type(error).__name__}: {error}); set IMPASTO_DEBUG=1 to see where",
            file=sys.stderr,
        )
    return 1


if __name__ == "__main__":
    sys.exit(main())
