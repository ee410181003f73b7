"""Every setting, declared once: label, unit, range and help sit beside the default.

The command line, the page's form, TOML files, validation and the table in `docs/settings.md` are derived from here.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit

from trainer.errors import ConfigError

OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "adafactor")
SCHEDULES = ("constant", "linear", "cosine", "cosine_with_restarts")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
FORMATS = ("kohya", "diffusers")
PRESET_NAMES = ("style", "character", "concept")


def setting(
    default: Any, label: str, *, group: str, help: str, unit: str = "",
    low: float | None = None, high: float | None = None, choices: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    """A dataclass field that carries what the form, the command line and the docs need."""
    facts = {"label": label, "group": group, "help": help, "unit": unit, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=facts)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that decides a training, besides the pictures. Never changed after creation."""

    name: str = setting("my-lora", "Name", group="run", help="What the file will be called.")
    trigger: str = setting("", "Trigger word", group="run", help="A word that calls the style or character; put before every caption that lacks it.")
    base: str = setting("tiny-sdxl", "Base model", group="run", help="A folder under models/, or a path to a diffusers folder.")
    preset: str = setting("style", "Preset", group="run", choices=PRESET_NAMES, help="What is taught; sets everything else from the number of pictures.")
    seed: int = setting(0, "Seed", group="run", low=0, high=2**31 - 1, help="The same seed on the same machine gives the same file.")

    steps: int = setting(300, "Steps", group="training", low=1, high=1_000_000, help="Optimizer steps.")
    batch: int = setting(4, "Batch", unit="pictures", group="training", low=1, high=256, help="Pictures that a step looks at together.")
    accumulation: int = setting(1, "Accumulation", unit="batches", group="training", low=1, high=256, help="Batches whose gradients are added up before a step.")
    resolution: int = setting(0, "Resolution", unit="px", group="training", low=0, high=4096, help="Side of a square of the training area; 0 takes the base model's native size.")
    precision: str = setting("auto", "Precision", group="training", choices=PRECISIONS, help="Of the frozen base; the adapter always learns in fp32. auto: bf16 on CUDA, fp32 on CPU.")
    gradient_checkpointing: bool = setting(False, "Gradient checkpointing", group="training", help="Less memory, about a third slower.")
    max_grad_norm: float = setting(1.0, "Clip gradients at", group="training", low=0.0, high=1000.0, help="Largest norm of a step's gradient; 0 does not clip.")

    rank: int = setting(16, "Rank", group="adapter", low=1, high=1024, help="Width of the two thin matrices: more can hold more, and makes a larger file.")
    alpha: float = setting(16.0, "Alpha", group="adapter", low=0.001, high=4096.0, help="Scale of the change: alpha / rank.")
    learning_rate: float = setting(1e-3, "Learning rate", group="adapter", low=0.0, high=10.0, help="Of the UNet's adapter. Prodigy wants 1.")
    train_feed_forward: bool = setting(False, "Feed-forward and projections too", group="adapter", help="Adapts ff and proj layers beside attention: stronger, a file nearly twice as large.")
    train_text_encoder_1: bool = setting(False, "Train text encoder 1", group="adapter", help="Adapts CLIP-L's attention.")
    train_text_encoder_2: bool = setting(False, "Train text encoder 2", group="adapter", help="Adapts OpenCLIP-bigG's attention.")
    text_encoder_1_rank: int = setting(8, "Text encoder 1 rank", group="adapter", low=1, high=1024, help="Rank in text encoder 1.")
    text_encoder_1_alpha: float = setting(8.0, "Text encoder 1 alpha", group="adapter", low=0.001, high=4096.0, help="Alpha in text encoder 1.")
    text_encoder_1_learning_rate: float = setting(5e-5, "Text encoder 1 learning rate", group="adapter", low=0.0, high=10.0, help="Of text encoder 1's adapter.")
    text_encoder_2_rank: int = setting(8, "Text encoder 2 rank", group="adapter", low=1, high=1024, help="Rank in text encoder 2.")
    text_encoder_2_alpha: float = setting(8.0, "Text encoder 2 alpha", group="adapter", low=0.001, high=4096.0, help="Alpha in text encoder 2.")
    text_encoder_2_learning_rate: float = setting(5e-5, "Text encoder 2 learning rate", group="adapter", low=0.0, high=10.0, help="Of text encoder 2's adapter.")

    optimizer: str = setting("adamw", "Optimizer", group="optimizer", choices=OPTIMIZERS, help="adamw8bit needs a CUDA card and bitsandbytes.")
    weight_decay: float = setting(0.01, "Weight decay", group="optimizer", low=0.0, high=10.0, help="Pull of the adapter towards nothing.")
    schedule: str = setting("cosine", "Schedule", group="optimizer", choices=SCHEDULES, help="How the learning rate changes over the run.")
    warmup_steps: int = setting(10, "Warm-up", unit="steps", group="optimizer", low=0, high=100_000, help="Steps over which the learning rate rises from 0.")
    restarts: int = setting(3, "Cosine restarts", group="optimizer", low=1, high=100, help="Cycles of cosine_with_restarts.")

    min_snr_gamma: float = setting(5.0, "Min-SNR gamma", group="objective", low=0.0, high=100.0, help="Evens out what noise levels teach (Hang et al. 2023); 0 switches it off.")
    noise_offset: float = setting(0.0, "Noise offset", group="objective", low=0.0, high=1.0, help="Lets pictures become darker and lighter as a whole.")
    caption_dropout: float = setting(0.05, "Caption dropout", group="objective", low=0.0, high=1.0, help="Share of pictures shown without their caption.")

    bucket_step: int = setting(64, "Bucket step", unit="px", group="dataset", low=8, high=512, help="Bucket sides are multiples of this; the base model may ask for less.")
    bucket_min: int = setting(0, "Smallest bucket side", unit="px", group="dataset", low=0, high=8192, help="0 takes half the resolution.")
    bucket_max: int = setting(0, "Largest bucket side", unit="px", group="dataset", low=0, high=8192, help="0 takes twice the resolution.")
    no_upscale: bool = setting(False, "Never upscale", group="dataset", help="A picture smaller than the training area gets a bucket of its own size.")

    checkpoint_every: int = setting(100, "Checkpoint every", unit="steps", group="output", low=1, high=1_000_000, help="How often the state is saved to resume from.")
    keep_checkpoints: int = setting(2, "Keep checkpoints", group="output", low=1, high=1000, help="Older ones are removed once a newer one is safe.")
    sample_every: int = setting(0, "Samples every", unit="steps", group="output", low=0, high=1_000_000, help="How often pictures are drawn during training; 0 draws only the final strip.")
    sample_prompts: tuple[str, ...] = setting((), "Sample prompts", group="output", help="Prompts of the samples and the strip; empty takes the first captions.")
    sample_steps: int = setting(16, "Sampling steps", group="output", low=1, high=200, help="Denoising steps of a sample.")
    format: str = setting("kohya", "File format", group="output", choices=FORMATS, help="kohya loads everywhere; diffusers is what load_lora_weights writes.")
    title: str = setting("", "Title", group="file", help="Shown by model browsers; empty takes the name.")
    author: str = setting("", "Author", group="file", help="Shown by model browsers.")
    licence: str = setting("", "Licence", group="file", help="Under which others may use the file.")
    thumbnail: str = setting("picture", "Thumbnail in the file", group="file", choices=("picture", "none"), help="picture: your first picture, at most 256 px, which model browsers show; none keeps it out.")
    save_captions: bool = setting(False, "Captions in the file", group="file", help="Writes folder names and tag counts into the file, where anyone can read them.")

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raises ConfigError with every problem found."""
        problems = []
        for declared in dataclasses.fields(self):
            problem = problem_with(declared, getattr(self, declared.name))
            if problem:
                problems.append(problem)
        if not problems and 0 < self.resolution < 64:
            problems.append(f"resolution must be 0 or at least 64, not {self.resolution}")
        if not problems and self.bucket_min and self.bucket_max and self.bucket_min > self.bucket_max:
            problems.append(f"bucket_min {self.bucket_min} is above bucket_max {self.bucket_max}; lower bucket_min")
        if problems:
            raise ConfigError(problems)


_HINTS = typing.get_type_hints(TrainConfig)


def kind_of(declared: dataclasses.Field) -> type:
    """The Python type of a setting's value: str, int, float, bool or tuple."""
    hint = _HINTS[declared.name]
    return typing.get_origin(hint) or hint


def problem_with(declared: dataclasses.Field, value: Any) -> str | None:
    """What is wrong with a value, in words that name the setting; None when all is well."""
    kind, facts, name = kind_of(declared), declared.metadata, declared.name
    if kind is tuple:
        fine = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        return None if fine else f"{name} must be a list of texts"
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        return f"{name} must be {words[kind]}, not {value!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} must be a finite number"
    if facts["choices"] and value not in facts["choices"]:
        return f"{name} must be one of {', '.join(facts['choices'])}, not {value!r}"
    low, high = facts["low"], facts["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        return f"{name} must be from {low:g} to {high:g}, not {value:g}"
    if isinstance(value, str) and name == "name" and (not value.strip() or any(c in value for c in '/\\:*?"<>|\0') or value.startswith(".") or len(value.encode(errors="replace")) > 200):
        return 'name must be a file name without / \\ : * ? " < > |, at most 200 bytes long'
    if isinstance(value, str) and name != "name" and (len(value) > 2000 or "\0" in value):
        return f"{name} must be a text of at most 2000 characters"
    return None


def config_from(values: dict[str, Any]) -> TrainConfig:
    """A config from loose values (TOML, form, command line). Raises ConfigError, also for an unknown name."""
    declared = {f.name: f for f in dataclasses.fields(TrainConfig)}
    unknown = [f"{key!r} is no setting; see docs/settings.md" for key in values if key not in declared]
    if unknown:
        raise ConfigError(unknown)
    chosen = {}
    for key, value in values.items():
        kind = kind_of(declared[key])
        if kind is tuple and isinstance(value, list):
            value = tuple(value)
        if kind is float and type(value) is int:
            value = float(value)
        chosen[key] = value
    return TrainConfig(**chosen)


def read_toml(path: Path) -> dict[str, Any]:
    """Loose values of a TOML file. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path} does not exist; give the path of a TOML file"]) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"{path.name} can't be read as TOML: {error}"]) from None


def to_toml(config: TrainConfig) -> str:
    """The whole config as TOML, grouped and explained."""
    document, group = tomlkit.document(), None
    for declared in dataclasses.fields(config):
        if declared.metadata["group"] != group:
            group = declared.metadata["group"]
            document.add(tomlkit.comment(group))
        value = getattr(config, declared.name)
        document.add(declared.name, tomlkit.item(list(value) if isinstance(value, tuple) else value))
    return tomlkit.dumps(document)


def settings_table() -> str:
    """The Markdown table of `docs/settings.md`."""
    rows = ["| setting | default | range | what it does |", "|---|---|---|---|"]
    for declared in dataclasses.fields(TrainConfig):
        facts = declared.metadata
        span = ", ".join(facts["choices"]) or (f"{facts['low']:g} – {facts['high']:g}" if facts["low"] is not None else "")
        default = list(declared.default) if isinstance(declared.default, tuple) else declared.default
        unit = f" {facts['unit']}" if facts["unit"] else ""
        rows.append(f"| `{declared.name}` | `{default}`{unit} | {span} | {facts['help']} |")
    return "\n".join(rows) + "\n"


