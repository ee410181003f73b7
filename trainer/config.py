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

OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "adafactor", "lion", "schedulefree", "came", "custom")
SCHEDULES = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "rex", "inverse_sqrt", "wsd")
SNR_WEIGHTINGS = ("min_snr", "soft_min_snr", "debiased", "none")
TIMESTEPS = ("uniform", "logit_normal", "cubic_low", "cubic_high")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
RECOMPUTE = ("none", "feed-forward", "deep", "all")  # from the fastest to the one that needs least memory
QUANTISED = ("none", "int8", "fp8", "nf4")
FORMATS = ("kohya", "diffusers")
NETWORKS = ("lora", "locon", "dora", "loha", "lokr")
BLOCKS = 23  # of SDXL's UNet, as kohya counts them
PRESET_NAMES = ("style", "character", "concept")
PACES = ("quick", "balanced", "thorough")


def setting(
    default: Any, label: str, *, group: str, help: str, unit: str = "",
    low: float | None = None, high: float | None = None, choices: tuple[str, ...] = (),
) -> Any:
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
    pace: str = setting("balanced", "Pace", group="run", choices=PACES, help="How long: quick is a first look in half the steps, thorough takes twice as many.")
    seed: int = setting(0, "Seed", group="run", low=0, high=2**31 - 1, help="The same seed on the same machine gives the same file.")

    steps: int = setting(300, "Steps", group="training", low=1, high=1_000_000, help="Optimizer steps.")
    batch: int = setting(4, "Batch", unit="pictures", group="training", low=1, high=256, help="Pictures that a step looks at together.")
    accumulation: int = setting(1, "Accumulation", unit="batches", group="training", low=1, high=256, help="Batches whose gradients are added up before a step.")
    resolution: int = setting(0, "Resolution", unit="px", group="training", low=0, high=4096, help="Side of a square of the training area; 0 takes the base model's native size.")
    precision: str = setting("auto", "Precision", group="training", choices=PRECISIONS, help="Of the frozen base; the adapter always learns in fp32. auto: bf16 on CUDA; on a CPU whichever is faster there.")
    gradient_checkpointing: str = setting("auto", "Gradient checkpointing", group="training", choices=("auto", *RECOMPUTE), help="What the backward pass computes again instead of keeping it: less memory, at most a third slower. auto: as little as fits.")
    quantised_base: str = setting("auto", "Quantised base", group="training", choices=("auto", *QUANTISED), help="How the frozen UNet's linear layers are kept: int8 and fp8 take half of bf16's memory (int8 rounds less), nf4 a quarter, for a coarser base and slower steps. auto: as the base is, int8 or then nf4 only where nothing else makes it fit.")
    memory_budget: float = setting(0.0, "Memory budget", unit="GB", group="training", low=0.0, high=10_000.0, help="What auto must fit into, on a card of that size or a larger one; 0 takes what the device has free.")
    compile: str = setting("auto", "Compile", group="training", choices=("auto", "on", "off"), help="Translates the UNet's transformer blocks for this device: faster steps after a first one that takes a minute; kept for later trainings. auto: on CUDA with Triton, for SDXL's size and 300 steps or more. On a CPU it needs a C++ compiler.")
    max_grad_norm: float = setting(1.0, "Clip gradients at", group="training", low=0.0, high=1000.0, help="Largest norm of a step's gradient; 0 does not clip.")

    rank: int = setting(16, "Rank", group="adapter", low=1, high=1024, help="Width of the two thin matrices: more can hold more, and makes a larger file.")
    alpha: float = setting(16.0, "Alpha", group="adapter", low=0.001, high=4096.0, help="Scale of the change: alpha / rank.")
    network: str = setting("lora", "Network", group="adapter", choices=NETWORKS, help="lora: attention layers, read by every tool; locon: the UNet's convolutions too, for texture; dora: with a learned magnitude for each column of the weight; loha: a product of two LoRAs, softer; lokr: a Kronecker product, the smallest file. Tools differ over dora: ComfyUI, Forge, A1111 and InvokeAI read it as trained, diffusers and kohya's scripts leave the magnitude out. diffusers reads neither loha nor lokr.")
    conv_rank: int = setting(8, "Rank in convolutions", group="adapter", low=1, high=1024, help="Of locon, and where include_layers names a convolution.")
    conv_alpha: float = setting(8.0, "Alpha in convolutions", group="adapter", low=0.001, high=4096.0, help="Of locon, and where include_layers names a convolution.")
    lokr_factor: int = setting(8, "LoKr factor", group="adapter", low=0, high=1024, help="Most rows and columns of lokr's first matrix: smaller makes a larger file that can hold more; 0 makes both matrices as nearly alike as can be.")
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
    text_encoder_stop: float = setting(1.0, "Text encoders learn until", group="adapter", low=0.0, high=1.0, help="Share of the steps after which the text encoders' adapters stay as they are and only the UNet's goes on learning; 1 is to the end.")
    block_ranks: str = setting("", "Rank of each block", group="adapter", help="23 whole numbers with commas between, kohya's UNet blocks: 0 time and label embedding, 1-9 input, 10-12 middle, 13-21 output, 22 last convolution. 0 leaves a block out; alpha / rank stays as it is.")
    block_rates: str = setting("", "Learning rate of each block", group="adapter", help="23 factors of the learning rate with commas between, blocks as in block_ranks; 0 leaves a block out.")
    include_layers: tuple[str, ...] = setting((), "Include layers", group="adapter", help="Patterns like *.attn2.* or unet.up_blocks.*: only layers that match one are adapted, in place of the usual ones.")
    exclude_layers: tuple[str, ...] = setting((), "Exclude layers", group="adapter", help="Patterns like mid_block.*: layers that match one are not adapted.")
    network_dropout: float = setting(0.0, "Network dropout", group="adapter", low=0.0, high=0.9, help="Share of the adapter's hidden values left out of each training step, against learning pictures by heart.")
    rank_dropout: float = setting(0.0, "Rank dropout", group="adapter", low=0.0, high=0.9, help="Share of the rank left out for each picture (of the change's rows in loha and lokr).")
    module_dropout: float = setting(0.0, "Module dropout", group="adapter", low=0.0, high=0.9, help="Share of the adapted layers left out of each training step.")
    lora_plus_ratio: float = setting(1.0, "LoRA+ ratio", group="adapter", low=1.0, high=1000.0, help="How many times faster the matrix that starts at zero learns (Hayou et al. 2024); 16 is usual, 1 is off.")
    rank_stabilised: bool = setting(False, "Rank-stabilised scale", group="adapter", help="Scale alpha / sqrt(rank) in place of alpha / rank, for large ranks (Kalajdzievski 2023).")
    scale_weight_norms: float = setting(0.0, "Largest weight norm", group="adapter", low=0.0, high=1000.0, help="After each step, a layer's change with a larger norm is shrunk to it; 1 is usual, 0 is off.")
    start_from: str = setting("", "Start from", group="adapter", help="A LoRA file of the same network and ranks: its matrices are what the training starts with.")

    optimizer: str = setting("adamw", "Optimizer", group="optimizer", choices=OPTIMIZERS, help="adamw keeps its moments in 8 bits where only that fits (a CUDA card, bitsandbytes); adamw8bit always does; lion wants about a third of AdamW's learning rate; schedulefree needs no schedule; custom takes optimizer_class.")
    optimizer_class: str = setting("", "Optimizer class", group="optimizer", help="For optimizer custom: the dotted name of any installed PyTorch optimizer, e.g. pytorch_optimizer.Ranger21.")
    optimizer_args: tuple[str, ...] = setting((), "Optimizer arguments", group="optimizer", help="name=value for the optimizer, e.g. betas=(0.9, 0.99) or eps=1e-6.")
    weight_decay: float = setting(0.01, "Weight decay", group="optimizer", low=0.0, high=10.0, help="Pull of the adapter towards nothing.")
    schedule: str = setting("cosine", "Schedule", group="optimizer", choices=SCHEDULES, help="How the learning rate changes over the run; wsd holds it and falls at the end.")
    warmup_steps: int = setting(10, "Warm-up", unit="steps", group="optimizer", low=0, high=100_000, help="Steps over which the learning rate rises from 0.")
    restarts: int = setting(3, "Cosine restarts", group="optimizer", low=1, high=100, help="Cycles of cosine_with_restarts.")
    schedule_power: float = setting(2.0, "Schedule power", group="optimizer", low=0.1, high=10.0, help="Exponent of the polynomial schedule.")
    decay_share: float = setting(0.2, "Decay share", group="optimizer", low=0.01, high=1.0, help="Last share of the steps over which the wsd schedule falls.")
    min_rate: float = setting(0.0, "Minimum rate", group="optimizer", low=0.0, high=1.0, help="Share of the learning rate that a schedule ends at instead of 0.")
    ema_decay: float = setting(0.0, "EMA decay", group="optimizer", low=0.0, high=0.99999, help="The file and the samples take a moving average of the adapter's weights, e.g. 0.99; slower at first, so that the start is forgotten. 0 takes the weights themselves.")

    prediction_type: str = setting("auto", "Prediction type", group="objective", choices=("auto", "epsilon", "v_prediction"), help="What the UNet predicts: noise or velocity. auto: as the base model's scheduler says.")
    zero_terminal_snr: str = setting("auto", "Zero terminal SNR", group="objective", choices=("auto", "on", "off"), help="The last noise level is noise alone (Lin et al. 2023), for v-prediction. auto: as the base model's scheduler says.")
    snr_weighting: str = setting("min_snr", "SNR weighting", group="objective", choices=SNR_WEIGHTINGS, help="How noise levels are weighed: min_snr (Hang et al. 2023), its smooth form (Crowson et al. 2024), debiased estimation (Yu et al. 2023), or all alike.")
    min_snr_gamma: float = setting(5.0, "Min-SNR gamma", group="objective", low=0.0, high=100.0, help="Gamma of min_snr and soft_min_snr; 0 switches them off.")
    loss: str = setting("mse", "Loss", group="objective", choices=("mse", "huber", "smooth_l1"), help="Of the prediction's error; huber and smooth_l1 grow only linearly for large errors, which forgives odd pictures.")
    huber_delta: float = setting(0.1, "Huber delta", group="objective", low=1e-4, high=100.0, help="Size of an error from which huber and smooth_l1 grow linearly; with a schedule, its smallest value.")
    huber_schedule: str = setting("snr", "Huber schedule", group="objective", choices=("constant", "exponential", "snr"), help="How delta follows the noise level: the same, falling from 1 to huber_delta, or by the signal-to-noise ratio.")
    noise_offset: float = setting(0.0, "Noise offset", group="objective", low=0.0, high=1.0, help="Lets pictures become darker and lighter as a whole.")
    noise_offset_random: bool = setting(False, "Random noise offset", group="objective", help="Draws each picture's offset from 0 to noise_offset.")
    multires_noise_iterations: int = setting(0, "Multi-resolution noise", unit="levels", group="objective", low=0, high=12, help="Coarser noise added to the fine (pyramid noise), for strong light and dark; 6 is usual, 0 is off.")
    multires_noise_discount: float = setting(0.3, "Multi-resolution discount", group="objective", low=0.0, high=1.0, help="Each coarser level's share of the one before.")
    input_perturbation: float = setting(0.0, "Input perturbation", group="objective", low=0.0, high=1.0, help="More noise in what the UNet sees than it is asked for, against exposure bias (Ning et al. 2023); 0.1 is usual.")
    timestep_min: int = setting(0, "Lowest timestep", group="objective", low=0, high=999, help="Trains only from this noise level on; 0 is nearly clean.")
    timestep_max: int = setting(999, "Highest timestep", group="objective", low=0, high=999, help="Trains only up to this noise level; 999 is nearly pure noise.")
    timestep_distribution: str = setting("uniform", "Timestep distribution", group="objective", choices=TIMESTEPS, help="Which noise levels are drawn more often: all alike; the middle (logit_normal, also called sigmoid); the low ones, for detail; the high ones, for composition.")
    timestep_location: float = setting(0.0, "Logit-normal location", group="objective", low=-5.0, high=5.0, help="Of logit_normal: below 0 prefers low noise levels, above 0 high ones.")
    timestep_scale: float = setting(1.0, "Logit-normal scale", group="objective", low=0.05, high=10.0, help="Of logit_normal: smaller stays nearer to the location.")
    mask: str = setting("none", "Mask", group="objective", choices=("none", "file", "alpha"), help="Where the loss counts: everywhere; where a mask is white (art.mask.png beside art.png, or masks/art.png); or where the picture is not transparent.")
    mask_outside: float = setting(0.0, "Weight outside the mask", group="objective", low=0.0, high=1.0, help="How much the rest of a masked picture still counts.")
    prior_folder: str = setting("", "Class pictures", group="objective", help="A folder of pictures of the class (e.g. other cats), seen as often as yours, so that the class keeps its look.")
    prior_caption: str = setting("", "Class caption", group="objective", help="Caption of class pictures that have none, and prompt of the base's own answer; empty takes each caption without the trigger word.")
    prior_weight: float = setting(1.0, "Weight of the class", group="objective", low=0.0, high=100.0, help="How much class pictures, and the base's own answers, count.")
    base_prior_share: float = setting(0.0, "Share of the base's own answers", group="objective", low=0.0, high=0.9, help="Share of the pictures for which the adapter learns to leave the base's answer to the class caption as it is; needs no class pictures.")

    caption_dropout: float = setting(0.05, "Caption dropout", group="captions", low=0.0, high=1.0, help="Share of pictures shown without their caption.")
    tag_dropout: float = setting(0.0, "Tag dropout", group="captions", low=0.0, high=1.0, help="Chance of each tag (text between commas) to be left out; the kept ones and the trigger word stay.")
    shuffle_tags: bool = setting(False, "Shuffle tags", group="captions", help="Draws another order of the tags each time, so that none matters by its place.")
    keep_tokens: int = setting(0, "Keep tags", unit="tags", group="captions", low=0, high=100, help="First tags that are neither shuffled nor left out, the trigger word counted.")
    caption_lines: bool = setting(False, "One caption a line", group="captions", help="Each line of a caption file is a caption of its own, and one is drawn each time; otherwise lines are joined.")
    wildcards: bool = setting(False, "Wildcards", group="captions", help="{red|blue} in a caption draws one of the words each time.")
    caption_prefix: str = setting("", "Caption prefix", group="captions", help="Text before every caption; never shuffled or left out with tags.")
    caption_suffix: str = setting("", "Caption suffix", group="captions", help="Text after every caption; never shuffled or left out with tags.")
    caption_windows: int = setting(1, "Caption length", unit="times 75 tokens", group="captions", low=1, high=8, help="How many windows of 75 tokens of a caption are read; more only when captions are long.")
    weighted_captions: bool = setting(False, "Weights in captions", group="captions", help="(word:1.2) in a caption is emphasis; off, brackets are plain text, as in many tags.")
    clip_skip: int = setting(2, "Clip skip", group="captions", low=2, high=12, help="Which layer of the text encoders is read, from the end: 2 is SDXL's own.")

    flip: bool = setting(False, "Mirror", group="dataset", help="Also shows each picture mirrored; not for writing or one-sided faces.")
    random_crop: bool = setting(False, "Random crops", group="dataset", help="Cuts what a bucket leaves over at a random place instead of evenly.")
    colour_jitter: float = setting(0.0, "Colour jitter", group="dataset", low=0.0, high=0.5, help="Largest change of brightness, contrast, saturation and, a fifth as far, hue; not for teaching a palette.")
    variants: int = setting(4, "Cached variants", unit="per picture", group="dataset", low=1, high=64, help="Random crops and colours are made this many times for each picture and cached, so that the VAE can leave memory.")
    resolutions: tuple[int, ...] = setting((), "Several resolutions", unit="px", group="dataset", help="Trains each picture at each of these sides, e.g. [768, 1024], instead of at resolution.")
    bucket_step: int = setting(64, "Bucket step", unit="px", group="dataset", low=8, high=512, help="Bucket sides are multiples of this; the base model may ask for less.")
    bucket_min: int = setting(0, "Smallest bucket side", unit="px", group="dataset", low=0, high=8192, help="0 takes half the resolution.")
    bucket_max: int = setting(0, "Largest bucket side", unit="px", group="dataset", low=0, high=8192, help="0 takes twice the resolution.")
    no_upscale: bool = setting(False, "Never upscale", group="dataset", help="A picture smaller than the training area gets a bucket of its own size.")

    checkpoint_every: int = setting(100, "Checkpoint every", unit="steps", group="output", low=1, high=1_000_000, help="How often the state is saved to resume from.")
    keep_checkpoints: int = setting(4, "Keep checkpoints", group="output", low=1, high=1000, help="Older ones are removed once a newer one is safe; those kept can be compared and chosen from afterwards.")
    sample_every: int = setting(0, "Samples every", unit="steps", group="output", low=0, high=1_000_000, help="How often pictures are drawn during training; 0 draws only the final strip.")
    sample_every_epochs: int = setting(0, "Samples every", unit="epochs", group="output", low=0, high=1_000_000, help="The same, counted in times that every picture has been seen; 0 is off.")
    sample_at_start: bool = setting(False, "Samples at the start", group="output", help="Also draws the pictures before the first step: the base as it is.")
    sample_prompts: tuple[str, ...] = setting((), "Sample prompts", group="output", help="Prompts of the samples and the strip, each with kohya's flags if wanted: --n negative, --w --h size, --d seed, --l guidance, --s steps; empty takes captions of the set.")
    sample_steps: int = setting(16, "Sampling steps", group="output", low=1, high=200, help="Denoising steps of a sample.")
    format: str = setting("kohya", "File format", group="output", choices=FORMATS, help="kohya loads everywhere; diffusers is what load_lora_weights writes.")
    log_with: str = setting("none", "Log with", group="output", choices=("none", "tensorboard", "wandb"), help="Also writes loss and learning rate for TensorBoard (into the run's folder: tensorboard --logdir) or Weights & Biases.")

    validation_share: float = setting(0.0, "Share set aside", group="validation", low=0.0, high=0.5, help="Share of the pictures that are not trained on but measured with; tells when training goes too far.")
    validation_folder: str = setting("", "Folder set aside", group="validation", help="Pictures to measure with, instead of a share of the training's.")
    validation_every: int = setting(50, "Measure every", unit="steps", group="validation", low=1, high=1_000_000, help="How often the pictures set aside are measured; the best step's weights are kept.")

    title: str = setting("", "Title", group="file", help="Shown by model browsers; empty takes the name.")
    author: str = setting("", "Author", group="file", help="Shown by model browsers.")
    licence: str = setting("", "Licence", group="file", help="Under which others may use the file.")
    description: str = setting("", "Description", group="file", help="Shown by model browsers.")
    tags: str = setting("", "Tags", group="file", help="Words with commas between that model browsers list the file under; empty takes the preset.")
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
        if not problems and not all(64 <= side <= 4096 for side in self.resolutions):
            problems.append("resolutions must each be from 64 to 4096")
        if not problems and self.bucket_min and self.bucket_max and self.bucket_min > self.bucket_max:
            problems.append(f"bucket_min {self.bucket_min} is above bucket_max {self.bucket_max}; lower bucket_min")
        if not problems:
            problems += self._contradictions()
        if problems:
            raise ConfigError(problems)

    def _contradictions(self) -> list[str]:
        """Settings that are right alone and wrong together."""
        problems = []
        if self.optimizer == "custom" and "." not in self.optimizer_class:
            problems.append("optimizer custom needs optimizer_class, a dotted name like torch.optim.SGD")
        if self.optimizer != "custom" and self.optimizer_class:
            problems.append("optimizer_class counts only with optimizer custom; set that, or leave it empty")
        if self.optimizer == "schedulefree" and self.schedule != "constant":
            problems.append("optimizer schedulefree takes the place of a schedule; set schedule to constant")
        if self.optimizer == "schedulefree" and self.ema_decay:
            problems.append("optimizer schedulefree averages the weights itself; set ema_decay to 0")
        if self.timestep_min > self.timestep_max:
            problems.append(f"timestep_min {self.timestep_min} is above timestep_max {self.timestep_max}; lower timestep_min")
        if self.zero_terminal_snr == "on" and self.prediction_type == "epsilon":
            problems.append("zero_terminal_snr needs v_prediction: at the last noise level there is nothing to tell noise from; set it to off")
        if self.validation_share and self.validation_folder:
            problems.append("validation_share and validation_folder both set pictures aside; give one of them")
        return problems + _network_problems(self)


def block_values(text: str) -> tuple[float, ...]:
    """The numbers of `block_ranks` or `block_rates`; () when empty. ValueError when one is no number."""
    return tuple(float(word) for word in text.split(",")) if text.strip() else ()


def _network_problems(config: TrainConfig) -> list[str]:
    problems = []
    for name, most in (("block_ranks", 1024), ("block_rates", 1000)):
        try:
            values = block_values(getattr(config, name))
        except ValueError:
            values = (-1.0,)
        whole = name == "block_rates" or all(value.is_integer() for value in values)
        if values and not (len(values) == BLOCKS and whole and all(0 <= value <= most for value in values)):
            kind = "whole numbers" if name == "block_ranks" else "numbers"
            problems.append(f"{name} must be {BLOCKS} {kind} from 0 to {most} with commas between, or empty")
    if config.format == "diffusers" and config.network not in ("lora", "locon"):
        problems.append(f"format diffusers can't hold {config.network} as it was trained; set format to kohya")
    if config.optimizer == "schedulefree" and config.scale_weight_norms:
        problems.append("optimizer schedulefree averages the weights itself, which undoes scale_weight_norms; set it to 0")
    if not problems and config.optimizer == "prodigy" and (config.lora_plus_ratio != 1 or len(set(block_values(config.block_rates)) - {0.0}) > 1):
        problems.append("prodigy finds one rate for all; set lora_plus_ratio to 1 and leave block_rates empty, or choose adamw")
    return problems


_HINTS = typing.get_type_hints(TrainConfig)


def kind_of(declared: dataclasses.Field, hints: dict[str, Any] = _HINTS) -> type:
    """The Python type of a setting's value: str, int, float, bool or tuple (of texts or whole numbers).

    Args:
        hints: the type hints of the setting's dataclass, when that is not TrainConfig.
    """
    hint = hints[declared.name]
    return typing.get_origin(hint) or hint


def problem_with(declared: dataclasses.Field, value: Any, hints: dict[str, Any] = _HINTS) -> str | None:
    """What is wrong with a value, in words that name the setting; None when all is well."""
    kind, facts, name = kind_of(declared, hints), declared.metadata, declared.name
    if kind is tuple:
        part = typing.get_args(hints[name])[0]
        fine = isinstance(value, tuple) and all(type(item) is part for item in value)
        if not fine:
            return f"{name} must be a list of {'texts' if part is str else 'whole numbers'}"
        return None if part is not str or all(map(is_text, value)) else f"{name} holds characters that are no text; type it again"
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
        return f"{name} must be from {in_digits(low)} to {in_digits(high)}, not {in_digits(value)}"
    if isinstance(value, str) and name == "name" and (not value.strip() or not is_text(value) or any(c in value for c in '/\\:*?"<>|') or value.startswith(".") or len(value.encode(errors="replace")) > 200):
        return 'name must be a file name without / \\ : * ? " < > |, at most 200 bytes long'
    if isinstance(value, str) and name != "name" and len(value) > 2000:
        return f"{name} must be a text of at most 2000 characters"
    if isinstance(value, str) and not is_text(value):
        return f"{name} holds characters that are no text; type it again"
    return None


def is_text(value: str) -> bool:
    """Whether a file can hold it: no NUL, and no half character, which a shell gives for bytes that are no UTF-8."""
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def in_digits(value: Any) -> str:
    """A number as a person would write it: 2147483647, not 2.14748e+09."""
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:g}"


def config_from(values: dict[str, Any]) -> TrainConfig:
    """A config from loose values (TOML, form, command line). Raises ConfigError, also for an unknown name."""
    unknown = [f"{key!r} is no setting; see docs/settings.md" for key in values if key not in _HINTS]
    if unknown:
        raise ConfigError(unknown)
    chosen = {key: fitted(value, _HINTS[key]) for key, value in values.items()}
    if isinstance(chosen.get("gradient_checkpointing"), bool):  # a switch in runs of version 0.1
        chosen["gradient_checkpointing"] = "all" if chosen["gradient_checkpointing"] else "none"
    return TrainConfig(**chosen)


def fitted(value: Any, hint: Any) -> Any:
    """What JSON and TOML can't tell apart as the hint has it: a list as a tuple, a whole number as a float."""
    kind = typing.get_origin(hint) or hint
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    return float(value) if kind is float and type(value) is int else value


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
        span = ", ".join(facts["choices"]) or (f"{in_digits(facts['low'])} – {in_digits(facts['high'])}" if facts["low"] is not None else "")
        default = list(declared.default) if isinstance(declared.default, tuple) else declared.default
        unit = f" {facts['unit']}" if facts["unit"] else ""
        words = facts["help"].replace("|", "\\|")
        rows.append(f"| `{declared.name}` | `{default}`{unit} | {span} | {words} |")
    return "\n".join(rows) + "\n"


