"""Frozen linear layers whose weight is kept in 8 or 4 bits: half or a quarter of bf16's memory, for a coarser base.

    int8   whole numbers from -127 to 127 times one scale for each row
    fp8    float8 e4m3 times one scale for each row (Micikevicius et al. 2022, "FP8 Formats for Deep Learning", section 3)
    nf4    16 quantiles of the normal distribution times one scale for each 64 values; two values a byte, the first in the
           upper half (Dettmers et al. 2023, "QLoRA", section 3 and appendix E; packed as bitsandbytes packs them)

The weight is made again for every product, backward too, and never kept: one layer's at a time exists. Unlike
in bitsandbytes' `Linear8bitLt` the input is neither rounded nor kept for the backward pass.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

BLOCK = 64  # values of nf4 that share a scale
_FP8_MOST = 448.0  # the largest number of e4m3

# QLoRA, appendix E: quantiles of N(0, 1) at evenly spaced probabilities, scaled to [-1, 1], with an exact zero.
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
    """A frozen linear layer; `weight` is what its codes stand for, in the working precision, made anew at each look."""

    def __init__(
        self, weight_OI: torch.Tensor, *, kind: str, dtype: torch.dtype, bias: torch.Tensor | None = None
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.out_features, self.in_features = weight_OI.shape
        self.kind, self.dtype = kind, dtype
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        codes, scales = pack(weight_OI.float(), kind)
        levels = torch.tensor(NF4_LEVELS, device=weight_OI.device, dtype=dtype)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer(
            "pairs", torch.cartesian_prod(levels, levels) if kind == "nf4" else None, persistent=False
        )

    @property
    def weight(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(O, I)"""
        codes: Any = self.codes
        if self.pairs is None:
            return codes.to(self.dtype).mul_(self.scales)
        values: Any = F.embedding(codes.int(), self.pairs)  # pyright: ignore
        return values.view(-1, BLOCK).mul_(self.scales).view(self.out_features, self.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled() and x.requires_grad:
            return _Product.apply(x, self)  # pyright: ignore
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.kind}"


class _Product(torch.autograd.Function):
    """Autograd's own linear would keep the weight until the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantisedLinear) -> torch.Tensor:  # pyright: ignore
        ctx.layer = layer
        return F.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # pyright: ignore
        return gradient @ ctx.layer.weight, None


def pack(weight_OI: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, fp32 scales) of an fp32 weight; for nf4 its size is a multiple of BLOCK."""
    tiny = torch.finfo(torch.float32).tiny
    if kind == "nf4":
        blocks = weight_OI.reshape(-1, BLOCK)
        scales = blocks.abs().amax(dim=1, keepdim=True).clamp_min(tiny)
        levels = torch.tensor(NF4_LEVELS, device=weight_OI.device)
        nearest = (
            torch.bucketize(blocks / scales, (levels[1:] + levels[:-1]) / 2, out_int32=True)
            .to(torch.uint8)
            .view(-1, 2)
        )
        return nearest[:, 0] << 4 | nearest[:, 1], scales
    scales = weight_OI.abs().amax(dim=1, keepdim=True).clamp_min(tiny) / (
        127 if kind == "int8" else _FP8_MOST
    )
    codes = weight_OI / scales
    return codes.round().to(torch.int8) if kind == "int8" else codes.to(torch.float8_e4m3fn), scales


def quantisable_paths(unet: nn.Module) -> list[str]:
    """Paths of the linear layers that are kept in fewer bits: attention, feed-forward and the projections around them.

    Convolutions, embeddings of time and norms stay: together 14 % of SDXL's UNet, and the parts that mind it most.
    """
    return [
        path
        for path, module in unet.named_modules()
        if isinstance(module, nn.Linear) and ".attentions." in path and module.weight.numel() % BLOCK == 0
    ]
