"""What a LoRA file holds for one module, made to fit a layer; and what several files hold for it, added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from trainer.adapter.lycoris import is_whole, magnitude, product
from trainer.errors import LoraFileError


@dataclass(frozen=True)
class Matrices:
    """What a file holds for one module, by role, fp32 (`trainer.adapter.lycoris` has roles and shapes)."""

    network: str  # lora, dora, loha, lokr or diff
    tensors: dict[str, torch.Tensor]
    alpha: float
    rank: int

    @property
    def is_convolution(self) -> bool:
        return (
            "down" in self.tensors and self.tensors["down"].dim() == 4 and self.tensors["down"].shape[-1] > 1
        )


def fitted(found: Matrices, base: nn.Linear | nn.Conv2d, otherwise: str) -> Matrices:
    """The matrices in the shapes that `base` wants. Raises LoraFileError that begins with `otherwise`."""
    shape, tensors, wrong = (
        tuple(base.weight.shape),
        dict(found.tensors),
        LoraFileError(f"{otherwise}; choose that base"),
    )
    kernel = shape[2:]
    try:
        if {"down", "up"} <= set(tensors):  # a linear layer's may be written as a 1 x 1 convolution's
            tensors["down"] = tensors["down"].reshape(found.rank, shape[1], *kernel)
            tensors["up"] = tensors["up"].reshape(shape[0], found.rank, *[1] * len(kernel))
        if "dora_scale" in tensors:
            scale, ones = tensors["dora_scale"], [1] * len(kernel)
            by_row = scale.shape[:1] == (shape[0],) or shape[0] == 1 == scale.numel()
            tensors["dora_scale"] = (
                scale.reshape(shape[0], 1, *ones) if by_row else scale.reshape(1, shape[1], *ones)
            )
        # On the meta device: shapes alone, however large a hostile file makes them.
        meta = {role: torch.empty(tensor.shape, device="meta") for role, tensor in tensors.items()}
        product(found.network, meta, shape)
    except (RuntimeError, IndexError, ValueError):
        raise wrong from None
    return Matrices(found.network, tensors, found.alpha, found.rank)


def scale_of(found: Matrices) -> float:
    return 1.0 if is_whole(found.tensors) else found.alpha / found.rank


def mixed(found: Sequence[tuple[float, Matrices]], base: nn.Linear | nn.Conv2d) -> Matrices:
    """The weighted sum of changes to one layer, sum of w_i alpha_i / R_i B_i A_i; the matrices are already `fitted` to it.

    LoRAs are put side by side, B = [w_1 s_1 B_1, w_2 s_2 B_2] and A = [A_1; A_2]: exact, their ranks add up. The change of a
    DoRA, LoHa or LoKr is no product that could be joined with others: there the sum is one whole matrix.
    """
    if all(each.network == "lora" for _, each in found):
        up = torch.cat([weight * scale_of(each) * each.tensors["up"] for weight, each in found], dim=1)
        down = torch.cat([each.tensors["down"] for _, each in found])
        return Matrices("lora", {"down": down, "up": up}, float(len(down)), len(down))
    whole = torch.stack([weight * _change(each, base) for weight, each in found]).sum(0)
    return Matrices("diff", {"diff": whole}, 1.0, 1)


def _change(found: Matrices, base: nn.Linear | nn.Conv2d) -> torch.Tensor:
    """What one file adds to the weight of its layer, fp32."""
    added = product(found.network, found.tensors, tuple(base.weight.shape)) * scale_of(found)
    if "dora_scale" not in found.tensors:
        return added
    weight, length = base.weight.detach().float().cpu(), found.tensors["dora_scale"]
    merged = weight + added
    return merged * (length / magnitude(merged, length.shape)) - weight
