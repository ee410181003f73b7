"""Modules of a LoRA file: the tensors for one layer of the base, and the change of its weight that they make.

Roles, shapes and formulas of the networks are those of `trainer.adapter.lycoris`: O outputs, I inputs (times
the area of the kernel for a convolution), R rank. `trainer.lora_file.reader` makes modules of a file.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from trainer.adapter.roles import is_whole
from trainer.errors import LoraFileError
from trainer.lora_file.arrays import Array
from trainer.lora_file.product_shapes import product_shape
from trainer.lora_file.sdxl_modules import sdxl
from trainer.lora_file.tensor_names import ALPHA, DORA, DOWN, LOHA, MID, UP

if TYPE_CHECKING:
    import torch

PART_LABELS = {"unet": "UNet", "text_encoder": "text encoder 1", "text_encoder_2": "text encoder 2"}
NETWORK_LABELS = {
    "lora": "LoRA",
    "locon": "LoCon",
    "dora": "DoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "diff": "whole matrix",
}
_LOKR_FIRST = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
_LOKR_SECOND = ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
_NETWORKS = (  # roles of a network, without alpha and dora_scale
    ("lora", {DOWN, UP}),
    ("diff", {"diff"}),
    ("loha", set(LOHA)),
    *(("lokr", first | second) for first in _LOKR_FIRST for second in _LOKR_SECOND),
    ("tucker", {DOWN, UP, MID}),
    ("tucker", {*LOHA, "hada_t1", "hada_t2"}),
    *(("tucker", first | {"lokr_w2_a", "lokr_w2_b", "lokr_t2"}) for first in _LOKR_FIRST),
)
_UNSUPPORTED = (  # networks that are recognised by a role, and not computed with
    ("a1", "GLoRA"),
    ("oft_R", "OFTv2"),
    ("oft_blocks", "OFT or BOFT"),
    ("oft_diag", "OFT"),
    ("diff_b", "change of a bias"),
    ("w_norm", "change of a normalisation layer"),
    ("b_norm", "change of a normalisation layer"),
    ("on_input", "IA3"),
)


@dataclass(frozen=True)
class LoraModule:
    """Tensors of a LoRA file for one layer of the base.

    Attributes:
        part: `unet`, `text_encoder` or `text_encoder_2`.
        path: module path in the part, without `text_model.`.
        tensors: matrices, `alpha` and `dora_scale` by role. The reader adds an `alpha` where a file keeps the
            scale in another place.
    """

    part: str
    path: str
    tensors: Mapping[str, torch.Tensor]

    @property
    def place(self) -> tuple[str, str]:
        """(part, path)."""
        return self.part, self.path

    @property
    def network(self) -> str | None:
        """`lora`, `dora`, `loha`, `lokr`, `tucker` or `diff`; None if only names and values are checked."""
        roles = set(self.tensors) - {ALPHA, DORA}
        network = next((name for name, expected in _NETWORKS if roles == expected), None)
        return "dora" if network == "lora" and self.is_decomposed else network

    @property
    def is_decomposed(self) -> bool:
        """True for a DoRA of any network: its change depends on the weight of the base."""
        return DORA in self.tensors

    @property
    def kind(self) -> str:
        """The network in words."""
        if self.network == "lora" and self.kernel:
            return NETWORK_LABELS["locon"]
        if self.network in ("lora", "dora"):
            return NETWORK_LABELS[self.network]
        prefix = "weight-decomposed " if self.is_decomposed else ""
        if self.network == "tucker":
            name = "LoHa" if "hada_t1" in self.tensors else "LoKr" if "lokr_t2" in self.tensors else "LoRA"
            return f"{prefix}{name} with a Tucker decomposition"
        if self.network:
            return prefix + NETWORK_LABELS[self.network]
        roles = set(self.tensors) - {ALPHA}
        named = next((name for role, name in _UNSUPPORTED if role in roles), None)
        return named or f"network of {', '.join(sorted(roles))}"

    @property
    def rank(self) -> int | None:
        """R, or None where no matrix is a product of thinner ones."""
        if is_whole(self.tensors):
            return None
        roles = (DOWN, "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
        thin = next((self.tensors[role] for role in roles if role in self.tensors), None)
        return thin.shape[0] if thin is not None and thin.dim() else None

    @property
    def alpha(self) -> float | None:
        """The alpha of the file; every reader takes alpha = R where it is absent."""
        alpha = self.tensors.get(ALPHA)
        return float(alpha.flatten()[0]) if alpha is not None and alpha.numel() else None

    @property
    def scale(self) -> float:
        """alpha / R, or 1 without an alpha or a rank."""
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank

    @property
    def kernel(self) -> tuple[int, ...]:
        """() for a linear layer, (k, k) for a convolution."""
        shape = sdxl().shape(self.part, self.path)
        return tuple(shape[2:]) if shape else tuple(self.tensors[DOWN].shape[2:])

    @functools.cached_property
    def sides(self) -> tuple[int, int] | None:
        """(O, I) of the change; None without a network, or where the matrices don't fit each other.

        Computed from shapes alone, so that those of a hostile file allocate nothing.
        """
        if self.network is None or any(map(_is_odd, self.tensors.items())):
            return None
        shapes = {role: tuple(tensor.shape) for role, tensor in self.tensors.items()}
        try:
            rows = 0 if self.network == "tucker" else self._rows(self.network)
            return product_shape(self.network, shapes, rows)
        except (IndexError, KeyError, ValueError):
            return None

    def with_alpha(self, alpha: float) -> LoraModule:
        """The module with another alpha, of the type that its other tensors have."""
        is_array = any(isinstance(tensor, Array) for tensor in self.tensors.values())
        tensor = cast("torch.Tensor", Array.of(alpha)) if is_array else alpha_tensor(alpha)
        return replace(self, tensors={**self.tensors, ALPHA: tensor})

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(up (O, R), down (R, I)) of a LoRA or DoRA in fp32, without the scale."""
        return self.tensors[UP].float().flatten(1), self.tensors[DOWN].float().flatten(1)

    def product(self) -> torch.Tensor:
        """The product of the matrices times the scale, (O, I) in fp32, before a DoRA normalises it.

        Raises:
            LoraFileError: the tensors are of no network that is computed with.
        """
        if self.network is None:
            raise LoraFileError(self.unsupported())
        return self._unscaled() * self.scale

    def as_lora(self) -> LoraModule:
        """The same change as a plain LoRA, if it is a LoRA with a Tucker decomposition; otherwise the module.

        Its core (R, R, k, k) is multiplied into the down matrix, exactly: the rank stays.
        """
        if set(self.tensors) - {ALPHA, DORA} != {DOWN, UP, MID}:
            return self
        import torch

        tensors = {role: tensor for role, tensor in self.tensors.items() if role != MID}
        core, down = self.tensors[MID].float(), self.tensors[DOWN].float().flatten(1)
        tensors[DOWN] = torch.einsum("abkl,bi->aikl", core, down).contiguous()
        return replace(self, tensors=tensors)

    def unsupported(self) -> str:
        """A sentence for a module whose change is not computed."""
        return (
            f"{self.part}.{self.path} is of the kind {self.kind}, which only lora inspect, check and convert "
            "read; train it as LoRA, LoHa or LoKr, or load it in the program that made it"
        )

    def change(self, weight: torch.Tensor | None = None) -> torch.Tensor:
        """The change of the base's weight at strength 1, fp32; (O, I), or in the shape of a given `weight`.

        With a `dora_scale` m it is m V / |V| - W with V = W + alpha / R * up down (Liu et al. 2024, eq. 5).
        The norm is that of each row where m is (O, 1), and that of each column (input channel) where m is (1,
        I).

        Args:
            weight: W, the weight of the base in its shape; only a DoRA needs it.

        Raises:
            LoraFileError: the tensors are of no network that is computed with, or of a DoRA and `weight` is
                missing.
        """
        if weight is None:
            if self.is_decomposed and self.network:
                raise LoraFileError(
                    f"{self.part}.{self.path} is a {self.kind}, whose change depends on the weights of its "
                    "base; add --base BASE to the command"
                )
            return self.product()
        added = self.product().reshape(weight.shape)
        if not self.is_decomposed:
            return added
        from trainer.adapter.lycoris import magnitude

        merged = weight.float() + added
        length = self.tensors[DORA].float()
        length = length.reshape(*length.shape[:2], *[1] * (weight.dim() - 2))
        return merged * (length / magnitude(merged, length.shape)) - weight.float()

    def _unscaled(self) -> torch.Tensor:
        """The product of the matrices, (O, I) in fp32."""
        from trainer.adapter.lycoris import product

        tensors = {role: tensor.float() for role, tensor in self.tensors.items()}
        if self.network == "tucker":
            return _tucker_product(tensors).flatten(1)
        network = self.network or ""
        return product(network, tensors, (self._rows(network), -1))

    def _rows(self, network: str) -> int:
        """O, from the shapes of the matrices."""
        sizes = {role: tensor.shape[0] for role, tensor in self.tensors.items() if tensor.dim()}
        if network == "lokr":
            first, second = (
                sizes[role] if (role := f"lokr_w{number}") in sizes else sizes[f"{role}_a"]
                for number in (1, 2)
            )
            return first * second
        return sizes[{"loha": "hada_w1_a", "diff": "diff"}.get(network, UP)]


def _is_odd(item: tuple[str, torch.Tensor]) -> bool:
    """True for an empty tensor, and for a matrix that is neither of a linear layer nor of a convolution."""
    role, tensor = item
    return 0 in tensor.shape or (role not in (ALPHA, DORA, "diff") and tensor.dim() not in (2, 4))


def _tucker_product(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Product (O, I, k, k) of a convolution in LyCORIS' Tucker form: a core (R, R, k, k) and two matrices.

    Raises:
        KeyError, RuntimeError: matrices are missing or don't fit.
    """
    import torch

    def with_core(core: str, left: str, right: str) -> torch.Tensor:
        return torch.einsum("abkl,ao,bi->oikl", tensors[core], tensors[left], tensors[right]).contiguous()

    if MID in tensors:  # up and down are 1 x 1 convolutions, (O, R, 1, 1) and (R, I, 1, 1)
        up, down = tensors[UP].flatten(1), tensors[DOWN].flatten(1)
        return torch.einsum("abkl,oa,bi->oikl", tensors[MID], up, down)
    if "hada_t1" in tensors:
        return with_core("hada_t1", "hada_w1_a", "hada_w1_b") * with_core("hada_t2", "hada_w2_a", "hada_w2_b")
    first = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    return torch.kron(first[..., None, None], with_core("lokr_t2", "lokr_w2_a", "lokr_w2_b"))


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file in memory: its metadata and its modules in order of part and path."""

    path: Path
    metadata: Mapping[str, str]
    modules: tuple[LoraModule, ...]

    @functools.cached_property
    def by_layer(self) -> Mapping[tuple[str, str], LoraModule]:
        """Modules by (part, path)."""
        return {(module.part, module.path): module for module in self.modules}

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype of its matrices."""
        import torch

        dtypes = [
            tensor.dtype
            for module in self.modules
            for role, tensor in module.tensors.items()
            if role != ALPHA
        ]
        widest = dtypes[0]
        for dtype in dtypes:
            # fp8 has no promotion rules; results of fp8 matrices are written in fp16.
            widest = torch.float16 if dtype.itemsize == 1 else torch.promote_types(widest, dtype)
        return widest


def side_by_side(terms: Sequence[tuple[float, LoraModule]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(up (O, R), down (R, I)) in fp32 of the weighted sum of LoRA modules; R is the sum of their ranks.

    up = [w_1 s_1 up_1, w_2 s_2 up_2] and down = [down_1; down_2] with scales s_i: exact, and of scale 1.
    """
    import torch

    pairs = [(weight * module.scale, *module.matrices()) for weight, module in terms]
    up = torch.cat([factor * up for factor, up, _ in pairs], dim=1)
    return up, torch.cat([down for _, _, down in pairs])


def lora_module(
    part: str, path: str, up: torch.Tensor, down: torch.Tensor, *, alpha: float, dtype: torch.dtype
) -> LoraModule:
    """A LoRA module of up (O, R) and down (R, I), in the shapes of its layer."""
    kernel = LoraModule(part, path, {DOWN: down}).kernel
    if kernel:
        inputs = down.shape[1] // (kernel[0] * kernel[1])
        up, down = up[:, :, None, None], down.reshape(-1, inputs, *kernel)
    return LoraModule(
        part,
        path,
        {UP: up.to(dtype).contiguous(), DOWN: down.to(dtype).contiguous(), ALPHA: alpha_tensor(alpha)},
    )


def alpha_tensor(alpha: float) -> torch.Tensor:
    """A tensor without dimensions, as sd-scripts needs it; in fp16 where that is exact, otherwise in fp32."""
    import torch

    half = torch.tensor(alpha, dtype=torch.float16)
    return half if float(half) == alpha else torch.tensor(alpha, dtype=torch.float32)
