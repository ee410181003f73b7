"""Settings of the network that is trained: its kind, rank, learning rates, layers and dropout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from trainer.config import declaration
from trainer.config.declaration import Bounds

NETWORKS = ("lora", "locon", "dora", "loha", "lokr")
UNET_BLOCKS = 23  # of SDXL's UNet, as kohya's scripts count them

setting = partial(declaration.setting, group="adapter")


def block_values(text: str) -> tuple[float, ...]:
    """Numbers of `block_ranks` or `block_rates`; empty for an empty text. Raises ValueError."""
    return tuple(float(word) for word in text.split(",")) if text.strip() else ()


def _block_check(high: int, *, whole: bool) -> Callable[[str, str], str | None]:
    """Returns a check for a comma-separated list with one number for each block of the UNet.

    Args:
        high: largest number.
        whole: accept whole numbers only.
    """

    def check(name: str, text: str) -> str | None:
        try:
            values = block_values(text)
        except ValueError:
            values = (-1.0,)
        in_bounds = all(0 <= value <= high and (not whole or value.is_integer()) for value in values)
        if not values or (len(values) == UNET_BLOCKS and in_bounds):
            return None
        kind = "whole numbers" if whole else "numbers"
        return f"{name} must be {UNET_BLOCKS} {kind} from 0 to {high}, separated by commas, or empty"

    return check


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Settings of the LoRA network."""

    rank: int = setting(
        16,
        "Network rank",
        bounds=Bounds(1, 1024),
        help="Network rank (dim): a higher rank can learn more detail, makes a larger file and overfits "
        "sooner.",
    )
    alpha: float = setting(
        16.0,
        "Network alpha",
        bounds=Bounds(0.001, 4096.0),
        help="Scales the LoRA by alpha / rank: a lower alpha weakens each update, like a lower learning "
        "rate.",
    )
    network: str = setting(
        "lora",
        "Network type",
        choices=NETWORKS,
        help="lora: attention layers, loaded by every tool. locon: also the UNet's convolutions, for "
        "texture. dora: weight-decomposed LoRA with a learned magnitude for each column. loha: Hadamard "
        "product of two LoRAs, softer. lokr: Kronecker product, the smallest file. ComfyUI, Forge, A1111 "
        "and InvokeAI load dora completely; diffusers and kohya's scripts ignore its magnitude. diffusers "
        "loads neither loha nor lokr.",
    )
    conv_rank: int = setting(
        8,
        "Conv rank",
        bounds=Bounds(1, 1024),
        help="Rank of convolution layers (conv dim): of locon, and of convolutions that include_layers "
        "matches.",
    )
    conv_alpha: float = setting(
        8.0,
        "Conv alpha",
        bounds=Bounds(0.001, 4096.0),
        help="Alpha of convolution layers: of locon, and of convolutions that include_layers matches.",
    )
    lokr_factor: int = setting(
        8,
        "LoKr factor",
        bounds=Bounds(0, 1024),
        help="Largest number of rows and columns of LoKr's first matrix. A smaller factor makes a larger "
        "file that can learn more; 0 makes both matrices as similar in size as possible.",
    )
    learning_rate: float = setting(
        1e-3,
        "Learning rate",
        bounds=Bounds(0.0, 10.0),
        help="Learning rate of the UNet's LoRA. Too high makes training unstable or overfits, too low "
        "learns little. 1e-4 is usual for SDXL; set 1 for Prodigy.",
    )
    train_feed_forward: bool = setting(
        False,
        "Train feed-forward layers",
        help="Also trains the feed-forward and projection layers beside attention: a stronger effect, and a "
        "file nearly twice as large.",
    )
    train_text_encoder_1: bool = setting(
        False,
        "Train text encoder 1",
        help="Also trains the attention of CLIP-L, which helps with new words and can weaken what the base "
        "knows.",
    )
    train_text_encoder_2: bool = setting(
        False,
        "Train text encoder 2",
        help="Also trains the attention of OpenCLIP-bigG, SDXL's larger text encoder.",
    )
    text_encoder_1_rank: int = setting(
        8, "Text encoder 1 rank", bounds=Bounds(1, 1024), help="Rank of the LoRA in text encoder 1."
    )
    text_encoder_1_alpha: float = setting(
        8.0, "Text encoder 1 alpha", bounds=Bounds(0.001, 4096.0), help="Alpha of the LoRA in text encoder 1."
    )
    text_encoder_1_learning_rate: float = setting(
        5e-5,
        "Text encoder 1 learning rate",
        bounds=Bounds(0.0, 10.0),
        help="Learning rate of the LoRA in text encoder 1, usually lower than the UNet's.",
    )
    text_encoder_2_rank: int = setting(
        8, "Text encoder 2 rank", bounds=Bounds(1, 1024), help="Rank of the LoRA in text encoder 2."
    )
    text_encoder_2_alpha: float = setting(
        8.0, "Text encoder 2 alpha", bounds=Bounds(0.001, 4096.0), help="Alpha of the LoRA in text encoder 2."
    )
    text_encoder_2_learning_rate: float = setting(
        5e-5,
        "Text encoder 2 learning rate",
        bounds=Bounds(0.0, 10.0),
        help="Learning rate of the LoRA in text encoder 2, usually lower than the UNet's.",
    )
    text_encoder_stop: float = setting(
        1.0,
        "Stop text encoder training",
        bounds=Bounds(0.0, 1.0),
        help="Fraction of the steps after which the text encoders are frozen and only the UNet's LoRA is "
        "trained; 1 trains them to the end.",
    )
    block_ranks: str = setting(
        "",
        "Block ranks (block dims)",
        check=_block_check(1024, whole=True),
        help="23 whole numbers separated by commas, one for each of kohya's UNet blocks: 0 time and label "
        "embedding, 1-9 input, 10-12 middle, 13-21 output, 22 last convolution. 0 does not train the block; "
        "alpha / rank is the same in all blocks.",
    )
    block_rates: str = setting(
        "",
        "Block learning rates",
        check=_block_check(1000, whole=False),
        help="23 factors of the learning rate separated by commas, in the block order of block_ranks; 0 "
        "does not train the block.",
    )
    include_layers: tuple[str, ...] = setting(
        (),
        "Include layers",
        help="Patterns such as *.attn2.* or unet.up_blocks.*: trains exactly the layers that match one of "
        "them, instead of the usual ones.",
    )
    exclude_layers: tuple[str, ...] = setting(
        (),
        "Exclude layers",
        help="Patterns such as mid_block.*: layers that match one of them are not trained.",
    )
    network_dropout: float = setting(
        0.0,
        "Network dropout",
        bounds=Bounds(0.0, 0.9),
        help="Fraction of the LoRA's hidden values that are set to zero in each training step, against "
        "overfitting; 0.1 to 0.3 is usual, 0 is off.",
    )
    rank_dropout: float = setting(
        0.0,
        "Rank dropout",
        bounds=Bounds(0.0, 0.9),
        help="Fraction of the ranks that are skipped for each picture (for loha and lokr, of the output "
        "rows), against overfitting; 0 is off.",
    )
    module_dropout: float = setting(
        0.0,
        "Module dropout",
        bounds=Bounds(0.0, 0.9),
        help="Fraction of the LoRA's layers that are skipped in each training step, against overfitting; 0 "
        "is off.",
    )
    lora_plus_ratio: float = setting(
        1.0,
        "LoRA+ ratio",
        bounds=Bounds(1.0, 1000.0),
        help="Learning rate of the matrix that starts at zero, relative to the other (Hayou et al. 2024). "
        "16 is usual and learns faster; 1 is off.",
    )
    rank_stabilised: bool = setting(
        False,
        "Rank-stabilised LoRA (rsLoRA)",
        help="Scales by alpha / sqrt(rank) instead of alpha / rank, which makes high ranks learn more "
        "(Kalajdzievski 2023).",
    )
    scale_weight_norms: float = setting(
        0.0,
        "Scale weight norms",
        bounds=Bounds(0.0, 1000.0),
        help="Max weight norm of each layer: larger weights are scaled down after each step, against "
        "overfitting and so that LoRAs combine better. 1 is usual, 0 is off.",
    )
    start_from: str = setting(
        "",
        "Start from LoRA file",
        help="Continues the training of an existing LoRA file (network weights); it must have the same "
        "network type and ranks.",
    )
