"""Frozen linear layers with weights in 8 or 4 bits: half or a quarter of bf16's memory, for a coarser base.

    int8   integers from -127 to 127 times one scale for each row
    fp8    float8 e4m3 times one scale for each row
           (Micikevicius et al. 2022, "FP8 Formats for Deep Learning", section 3)
    nf4    16 quantiles of the normal distribution times one scale for each 64 values;
           two values a byte, the first in the upper half, as in bitsandbytes
           (Dettmers et al. 2023, "QLoRA", section 3 and appendix E)

Why three formats: int8 has equal steps over the range of a row, so its error is the same for all weights; fp8
has steps relative to the value, so small weights are more exact and large ones less; nf4 needs half of their
memory, and its levels are quantiles, so that normally distributed weights use all 16 equally often. Scales
stay in fp32. Each row (int8, fp8) or run of 64 values along a row (nf4) has its own, because one outlier
makes the steps coarse for all values that share its scale.

The weight is dequantised for every product, in the backward pass too, and never stored: only one layer's
weight exists at a time. Unlike in bitsandbytes' `Linear8bitLt` the input is not quantised and not stored for
the backward pass.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from trainer.sdxl.protocols import Module

BLOCK = 64  # values of nf4 that share a scale
_FP8_MAX = 448.0  # the largest number of e4m3

# QLoRA, appendix E: quantiles of N(0, 1) at evenly spaced probabilities, scaled to [-1, 1], with an exact
# zero.
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class QuantisedLinear(nn.Linear):
    """A frozen linear layer that stores codes and scales.

    `weight` is a property that dequantises at each access, so that the fused products of `trainer.adapter`
    and the check of a LoRA file read it like the weight of `nn.Linear`.

    Args:
        weight_OI: the weight to quantise.
        kind: int8, fp8 or nf4.
        dtype: of the dequantised weight and of the products.
    """

    def __init__(
        self, weight_OI: torch.Tensor, *, kind: str, dtype: torch.dtype, bias: torch.Tensor | None = None
    ) -> None:
        # nn.Linear's own __init__ would allocate a weight of full size.
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight_OI.shape
        self.kind, self.dtype = kind, dtype
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        codes, scales = pack(weight_OI.float(), kind)
        levels = torch.tensor(NF4_LEVELS, device=weight_OI.device, dtype=dtype)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        # The values of both halves of a byte, for each of the 256 bytes: unpacking nf4 is one lookup (256,
        # 2).
        self.register_buffer(
            "pairs", torch.cartesian_prod(levels, levels) if kind == "nf4" else None, persistent=False
        )

    @property
    def weight(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The dequantised weight (O, I) in `dtype`, a new tensor at each access."""
        codes: Any = self.codes
        if self.pairs is None:
            return codes.to(self.dtype).mul_(self.scales)
        values: Any = F.embedding(codes.int(), self.pairs)  # pyright: ignore
        return values.view(-1, BLOCK).mul_(self.scales).view(self.out_features, self.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the layer's output (..., O) for x (..., I)."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _Product.apply(x, self)
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Adds the format to the representation of `nn.Linear`."""
        return f"{super().extra_repr()}, {self.kind}"


class _Product(torch.autograd.Function):
    """y = x W^T + b with dx = dy W; W is dequantised again in the backward pass.

    The autograd node of `F.linear` saves its weight for the backward pass. Here that would keep the
    dequantised weights of all layers in memory until then, which is more than an unquantised base takes. The
    layer is frozen, so W and b need no gradients, and x needs not be saved either.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantisedLinear) -> torch.Tensor:  # pyright: ignore
        ctx.layer = layer
        return F.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # pyright: ignore
        return gradient @ ctx.layer.weight, None


def pack(weight_OI: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (codes, fp32 scales) of an fp32 weight.

    The scale of a group of values is its largest magnitude divided by the largest code, so no value is
    clipped: value = code * scale. For nf4 the weight's size must be a multiple of BLOCK.
    """
    tiny = torch.finfo(torch.float32).tiny  # a group of zeros would divide by zero
    if kind == "nf4":
        blocks = weight_OI.reshape(-1, BLOCK)
        scales = blocks.abs().amax(dim=1, keepdim=True).clamp_min(tiny)
        levels = torch.tensor(NF4_LEVELS, device=weight_OI.device)
        # The nearest level's number is the count of midpoints between levels below the value.
        nearest = (
            torch.bucketize(blocks / scales, (levels[1:] + levels[:-1]) / 2, out_int32=True)
            .to(torch.uint8)
            .view(-1, 2)
        )
        return nearest[:, 0] << 4 | nearest[:, 1], scales
    largest = 127 if kind == "int8" else _FP8_MAX
    scales = weight_OI.abs().amax(dim=1, keepdim=True).clamp_min(tiny) / largest
    codes = weight_OI / scales
    return codes.round().to(torch.int8) if kind == "int8" else codes.to(torch.float8_e4m3fn), scales


def quantisable_paths(unet: Module) -> list[str]:
    """Returns the paths of the linear layers to quantise: attention, feed-forward, projections around them.

    Convolutions, time embeddings and norms keep their precision: they are 14 % of SDXL's UNet, and the most
    sensitive.
    """
    return [
        path
        for path, module in unet.named_modules()
        if isinstance(module, nn.Linear) and ".attentions." in path and module.weight.numel() % BLOCK == 0
    ]
