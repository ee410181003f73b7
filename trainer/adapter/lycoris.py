"""Layers whose change is computed as a whole matrix: DoRA, LoHa, LoKr, and a full matrix (diff).

The roles are the names that LyCORIS writes into files. O outputs, I inputs times the kernel's area, R rank.

    dora   lora_down (R, I), lora_up (O, R), dora_scale (1, I)
    loha   hada_w1_a (O, R), hada_w1_b (R, I), hada_w2_a (O, R), hada_w2_b (R, I)
    lokr   lokr_w1 or its _a, _b;  lokr_w2 or its _a, _b
    diff   diff, of the weight's own shape
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.adapter.layer import (
    Dropout,
    Layer,
    LayerSpec,
    Strength,
    apply_weight,
    dropout_mask,
    fan_in,
    fill_random,
)
from trainer.adapter.roles import is_whole, split


def product(
    network: str,
    tensors: Mapping[str, torch.Tensor],
    shape: tuple[int, ...],
    keep_R: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the product of the matrices, without its scale, as a weight of `shape`.

    LoHa: (w1_a w1_b) * (w2_a w2_b), elementwise (Hyeon-Woo et al. 2022, prop. 1).
    LoKr: w1 ⊗ w2, Kronecker's product (Yeh et al. 2024, section 4.1).

    Args:
        keep_R: factors of the ranks, for rank dropout; LoRA and DoRA only.

    Raises:
        RuntimeError: if the matrices do not fit the shape.
    """
    if network == "loha":
        # OneTrainer's matrices of a convolution are (O, R, 1, 1) and (R, I, k, k).
        first, second = (
            tensors[f"hada_w{n}_a"].flatten(1) @ tensors[f"hada_w{n}_b"].flatten(1) for n in (1, 2)
        )
        whole = first * second
    elif network == "lokr":
        first, second = (_factor(tensors, name) for name in ("lokr_w1", "lokr_w2"))
        whole = torch.kron(first if second.dim() == 2 else first[..., None, None], second)
    elif network == "diff":
        whole = tensors["diff"]
    else:
        down = tensors["down"].flatten(1)
        whole = tensors["up"].flatten(1) @ (down if keep_R is None else down * keep_R[:, None])
    return whole.reshape(shape)


def _factor(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return tensors[name] if name in tensors else tensors[f"{name}_a"] @ tensors[f"{name}_b"].flatten(1)


def magnitude(weight: torch.Tensor, like: tuple[int, ...] | torch.Size) -> torch.Tensor:
    """Returns the norms of a weight's columns for `like` (1, I), or of its rows for (O, 1)."""
    kept = 0 if like[0] == weight.shape[0] and like[0] > 1 else 1
    norm = torch.linalg.vector_norm(weight, dim=[d for d in range(weight.dim()) if d != kept], keepdim=True)
    return norm.clamp_min(torch.finfo(norm.dtype).tiny)


class MatrixLayer(Layer):
    """base(x) + strength * op(x, change), where the change is computed once for all rows of the batch.

    With a `dora_scale` m the change is m (W + P) / |W + P| - W with the product P (Liu et al. 2024, eq. 5).
    The norm is a constant for gradients (section 4.3). m has one entry for each column, as in the paper and
    in ComfyUI, Forge, A1111 and InvokeAI; one for each row, as in PEFT, is supported too.
    """

    def __init__(
        self,
        base: nn.Linear | nn.Conv2d,
        spec: LayerSpec,
        *,
        strength: Strength,
        dropout: Dropout | None = None,
        name: str = "",
    ) -> None:
        super().__init__(base, spec, strength=strength, dropout=dropout, name=name)
        self.network = spec.network
        shapes = spec.shapes or shapes_of(spec.network, base, spec.rank, spec.factor)
        weight = base.weight  # read once: a quantised base dequantises it at each access
        device, self.shape = weight.device, tuple(weight.shape)
        self.matrices = nn.ParameterDict(
            {role: torch.empty(s, device=device, dtype=torch.float32) for role, s in shapes.items()}
        )

    def tensors(self) -> dict[str, nn.Parameter]:
        """Returns the matrices by role."""
        return {
            role: parameter
            for role, parameter in self.matrices.items()
            if isinstance(parameter, nn.Parameter)
        }

    def _replace(self, role: str, parameter: nn.Parameter) -> None:
        self.matrices[role] = parameter

    @property
    def zero_init_role(self) -> str:
        """The role of the matrix that is initialised to zero."""
        if self.network == "lokr":
            return "lokr_w2" if "lokr_w2" in self.matrices else "lokr_w2_b"
        return {"loha": "hada_w2_a", "diff": "diff"}.get(self.network, "up")

    @property
    def scale(self) -> float:
        """alpha / rank, or 1 if all matrices are full."""
        return 1.0 if is_whole(self.matrices.keys()) else self.alpha / self.rank

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draws initial values: of DoRA and LoKr as PEFT (Kaiming, a = sqrt(5)), of LoHa as LyCORIS."""
        for role, parameter in self.tensors().items():
            if role == self.zero_init_role:
                parameter.zero_()
            elif role == "dora_scale":
                parameter.copy_(magnitude(self.base.weight.float(), parameter.shape))
            elif self.network == "loha":
                fill_random(parameter, generator, normal=0.1 if role.endswith("_a") else 1.0)
            else:
                fill_random(parameter, generator, uniform=1 / math.sqrt(math.prod(parameter.shape[1:])))

    def product(self) -> torch.Tensor:
        """Returns the scaled product of the matrices in the shape of the base's weight."""
        return self._product(None)

    def _product(self, keep_R: torch.Tensor | None) -> torch.Tensor:
        whole = product(self.network, self.tensors(), self.shape, keep_R)
        return whole if self.scale == 1.0 else whole * self.scale

    def change(self) -> torch.Tensor:
        """Returns the change of the base's weight at strength 1, with DoRA's magnitude."""
        return self._decomposed(self.product())

    def _decomposed(self, added: torch.Tensor) -> torch.Tensor:
        """Returns the change for a product; DoRA rescales the merged weight to its magnitude."""
        if "dora_scale" not in self.matrices:
            return added
        base, scale = self.base.weight.float(), self.tensors()["dora_scale"]
        merged = base + added
        return merged * (scale / magnitude(merged.detach(), scale.shape)) - base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the base's output plus the change."""
        branch = self._with_dropout if self.dropout.is_on else self._branch
        if not torch.is_grad_enabled():
            return self.base(x) + branch(x)
        # Autograd would keep the full matrices of all layers, gigabytes in SDXL, until the backward pass.
        # They are recomputed there, at the cost of one product for each layer.
        return self.base(x) + checkpoint(branch, x, use_reentrant=False, preserve_rng_state=False)

    def _branch(self, x: torch.Tensor) -> torch.Tensor:
        return self.strength.scaled(apply_weight(self.base, x, self.change().to(x.dtype)), 1.0)

    def _with_dropout(self, x: torch.Tensor) -> torch.Tensor:
        dropout, generator = self.dropout, self.dropout.generator(self.name, x.device)
        if "up" in self.matrices:
            keep_R = dropout_mask((self.rank,), dropout.rank, generator) if dropout.rank else None
            change = self._decomposed(self._product(keep_R))
        else:
            change = self.change()
            if dropout.rank:
                rows = (len(change), *[1] * (change.dim() - 1))
                change = change * dropout_mask(rows, dropout.rank, generator)
        if dropout.module:
            is_kept = torch.rand((), generator=generator, device=generator.device) >= dropout.module
            change = change * is_kept
        branch = self.strength.scaled(apply_weight(self.base, x, change.to(x.dtype)), 1.0)
        if dropout.network:
            branch = branch * dropout_mask(branch.shape, dropout.network, generator).to(branch.dtype)
        return branch


def shapes_of(
    network: str, base: nn.Linear | nn.Conv2d, rank: int, factor: int
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a new layer's matrices by role.

    Args:
        factor: of LoKr, the largest number of rows and columns of w1; 0 makes w1 and w2 as similar in size as
            possible.
    """
    out, into, kernel = base.weight.shape[0], base.weight.shape[1], tuple(base.weight.shape[2:])
    if network == "loha":
        return {
            f"hada_w{n}_{side}": (out, rank) if side == "a" else (rank, fan_in(base))
            for n in (1, 2)
            for side in "ab"
        }
    if network == "lokr":
        (out_1, out_2), (in_1, in_2) = split(out, factor), split(into, factor)
        shapes: dict[str, tuple[int, ...]] = {"lokr_w1": (out_1, in_1)}
        if rank < max(out_2, in_2) / 2:
            return {**shapes, "lokr_w2_a": (out_2, rank), "lokr_w2_b": (rank, in_2 * math.prod(kernel))}
        return {**shapes, "lokr_w2": (out_2, in_2, *kernel)}
    down = (rank, into, *kernel)
    up = (out, rank, *[1] * len(kernel))
    return {"down": down, "up": up, "dora_scale": (1, into, *[1] * len(kernel))}
