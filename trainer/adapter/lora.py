"""LoRA's layers, and the adapter: all adapted layers of a model with a strength for each batch row.

Shapes: N rows of the batch, T tokens, I inputs, O outputs, R rank; H height, W width and k the kernel of a convolution.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from trainer.adapter.flat_parameters import FlatVector
from trainer.adapter.fused_linear import LinearGroup
from trainer.adapter.layer import Dropout, Layer, Strength, draw, fan_in, keep
from trainer.adapter.lycoris import MatrixLayer, Shapes, product, shapes_of
from trainer.adapter.patching import patch_forwards, restore_forwards
from trainer.sdxl.protocols import Module


class LoraLinear(Layer):
    """A frozen linear layer plus strength * (alpha / rank) * B A x.

    A and B are fp32 masters; the product runs in the dtype of the base, and their gradients come back as fp32.
    """

    network = "lora"
    rank_dim = -1  # of the hidden activations

    def __init__(
        self,
        base: nn.Linear | nn.Conv2d,
        *,
        rank: int,
        alpha: float,
        strength: Strength,
        dropout: Dropout | None = None,
        name: str = "",
    ) -> None:
        super().__init__(base, rank=rank, alpha=alpha, strength=strength, dropout=dropout, name=name)
        shapes, device = shapes_of("lora", base, rank, 0), base.weight.device
        self.down = nn.Parameter(
            torch.empty(shapes["down"], device=device, dtype=torch.float32)
        )  # A (R, I) or (R, I, k, k)
        # B starts at zero, so that step 0 equals the base model.
        self.up = nn.Parameter(
            torch.zeros(shapes["up"], device=device, dtype=torch.float32)
        )  # B (O, R) or (O, R, 1, 1)

        self._alone: LinearGroup | None = None

    def tensors(self) -> dict[str, nn.Parameter]:
        return {"down": self.down, "up": self.up}

    def _replace(self, role: str, parameter: nn.Parameter) -> None:
        setattr(self, role, parameter)
        self._alone = None

    @property
    def zero_init_role(self) -> str:
        return "up"

    def init_weights(self, generator: torch.Generator) -> None:
        """A from the uniform distribution that PEFT and kohya use: Kaiming with a = sqrt(5)."""
        draw(self.down, generator, uniform=1 / math.sqrt(fan_in(self.base)))

    def product(self) -> torch.Tensor:
        return product("lora", self.tensors(), tuple(self.base.weight.shape)) * self.scale

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """A x, (N, T, R)."""
        return F.linear(x, self.down.to(x.dtype))

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """B h, (N, T, O)."""
        return F.linear(hidden, self.up.to(hidden.dtype))

    @property
    def can_run_grouped(self) -> bool:
        """Whether this call can be computed by a `LinearGroup`; a compiler fuses the plain formula better than it traces that."""
        if torch.compiler.is_compiling() or self.dropout.is_on:
            return False
        return not (isinstance(self.strength.value, torch.Tensor) and torch.is_grad_enabled())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.can_run_grouped and self._can_stand_alone():
            assert self._alone is not None
            return self._alone(x)[0]
        hidden = self.hidden(x)
        if self.dropout.is_on:
            hidden = self._dropped(hidden)
        hidden = self.strength.scaled(hidden, self.alpha / self.rank)
        return self.base(x) + self.output(hidden)

    def _can_stand_alone(self) -> bool:
        if self._alone is None and LinearGroup.fits([self]):
            self._alone = LinearGroup((self,))
        return self._alone is not None

    def _dropped(self, hidden: torch.Tensor) -> torch.Tensor:
        draws, drop = self.dropout.draws(self.name, hidden.device), self.dropout
        if drop.module:
            hidden = hidden * (torch.rand((), generator=draws, device=draws.device) >= drop.module).to(
                hidden.dtype
            )
        if drop.network:
            hidden = hidden * keep(hidden.shape, drop.network, draws).to(hidden.dtype)
        if drop.rank:
            shape = [1] * hidden.dim()
            shape[0], shape[self.rank_dim] = len(hidden), self.rank
            hidden = hidden * keep(tuple(shape), drop.rank, draws).to(hidden.dtype)
        return hidden


class LoraConv(LoraLinear):
    """LoCon: A is a convolution (R, I, k, k) with the base's stride and padding, B one of 1 x 1."""

    rank_dim = 1

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """A x, (N, R, H, W)."""
        conv = self.base
        assert isinstance(conv, nn.Conv2d)
        return F.conv2d(x, self.down.to(x.dtype), None, conv.stride, conv.padding, conv.dilation)  # pyright: ignore[reportArgumentType]

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """B h, (N, O, H, W)."""
        return F.conv2d(hidden, self.up.to(hidden.dtype))


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """What a layer's change is made of."""

    rank: int
    alpha: float
    network: str = "lora"  # lora, dora, loha, lokr or diff
    factor: int = 0  # of LoKr
    shapes: Shapes | None = None  # of a file's matrices; None: what the network starts with


class Adapter:
    """Every adapted layer, by part (`unet`, `text_encoder`, `text_encoder_2`) and module path.

    `attach` puts it into a model in place; the model's own weights are frozen and never written.
    """

    def __init__(self, dropout: Dropout | None = None) -> None:
        self.layers: dict[str, dict[str, Layer]] = {}
        self.flat_vectors: list[FlatVector] = []
        self.strength = Strength()
        self.dropout = dropout or Dropout()

    def attach(self, part: str, model: Module, sizes: dict[str, LayerSpec]) -> None:
        """Adapts the linear layers and convolutions of `model` at the paths of `sizes`."""
        model.requires_grad_(False)
        adapted = self.layers.setdefault(part, {})
        for path, size in sizes.items():
            base = model.get_submodule(path)
            assert isinstance(base, nn.Linear | nn.Conv2d), f"{path} is {type(base).__name__}"
            layer = self._layer(base, size, f"{part}/{path}")
            model.set_submodule(path, layer)
            adapted[path] = layer
        patch_forwards(model)
        self.flatten()

    def flatten(self, groups: list[list[tuple[Layer, str]]] | None = None) -> None:
        """Puts all masters into a vector for each of `groups` of (layer, role), one for each part without; values stay.

        Parameters and gradients handed out before are outdated.
        """
        if groups is None:
            masters = [(part, layer, role) for part, _, layer in self.walk() for role in layer.tensors()]
            groups = [
                [(layer, role) for owner, layer, role in masters if owner == part]
                for part in sorted(self.layers)
            ]
        self.flat_vectors = [FlatVector(group, _place) for group in groups if group]

    @contextlib.contextmanager
    def at(self, strength: float | torch.Tensor) -> Iterator[None]:
        """Sets the strength of all layers for a block, and afterwards the previous one again.

        Args:
            strength: one number for all rows of a batch, or one for each row (N,).
        """
        previous, self.strength.value = self.strength.value, strength
        try:
            yield
        finally:
            self.strength.value = previous

    def zero_grad(self) -> None:
        """Zeros in place; to be called before the first backward pass and after each step."""
        for flat in self.flat_vectors:
            flat.zero_grad()

    def mark_dirty(self) -> None:
        """To be called when an optimizer has made a step."""
        for flat in self.flat_vectors:
            flat.mark_dirty()

    def vectors(self) -> list[nn.Parameter]:
        """All masters as few long parameters."""
        return [flat.value for flat in self.flat_vectors]

    def _layer(self, base: nn.Linear | nn.Conv2d, size: LayerSpec, name: str) -> Layer:
        if size.network == "lora":
            kind = LoraLinear if isinstance(base, nn.Linear) else LoraConv
            return kind(
                base,
                rank=size.rank,
                alpha=size.alpha,
                strength=self.strength,
                dropout=self.dropout,
                name=name,
            )
        shapes = size.shapes or shapes_of(size.network, base, size.rank, size.factor)
        return MatrixLayer(
            base,
            network=size.network,
            shapes=shapes,
            rank=size.rank,
            alpha=size.alpha,
            strength=self.strength,
            dropout=self.dropout,
            name=name,
        )

    def detach(self, part: str, model: Module) -> None:
        """Gives the model its own layers back."""
        for path, layer in self.layers.pop(part, {}).items():
            model.set_submodule(path, layer.base)
        restore_forwards(model)

    def init_weights(self, seed: int) -> None:
        """First values, the same on every machine: drawn on the CPU in order of name."""
        generator = torch.Generator().manual_seed(seed)
        for _, _, layer in self.walk():
            layer.init_weights(generator)

    def walk(self) -> Iterator[tuple[str, str, Layer]]:
        """(part, path, layer), in order of name."""
        for part in sorted(self.layers):
            for path in sorted(self.layers[part]):
                yield part, path, self.layers[part][path]

    def master_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(`part/path.role`, tensor), in order of name."""
        for part, path, layer in self.walk():
            for role, parameter in layer.tensors().items():
                yield f"{part}/{path}.{role}", parameter

    def parameters(self, part: str | None = None) -> list[nn.Parameter]:
        return [
            parameter
            for owner, _, layer in self.walk()
            if part in (None, owner)
            for parameter in layer.tensors().values()
        ]

    def tensors(self) -> dict[str, torch.Tensor]:
        """`part/path.role` on the CPU, fp32: what a checkpoint keeps."""
        vectors = {id(flat): flat.value.detach().cpu() for flat in self.flat_vectors}
        slots = {
            f"{part}/{path}.{role}": layer.slots[role]
            for part, path, layer in self.walk()
            for role in layer.tensors()
        }
        return {name: place.of(vectors[id(place.flat)]).clone() for name, place in slots.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Puts back what `tensors()` gave. A key too many or too few is a KeyError."""
        expected = dict(self.master_weights())
        if set(expected) != set(tensors):
            raise KeyError(f"{len(set(expected) ^ set(tensors))} tensors do not match this adapter")
        for name, parameter in expected.items():
            parameter.copy_(tensors[name])
        self.mark_dirty()

    @torch.no_grad()
    def limit_norms(self, most: float) -> None:
        """Shrinks every product of matrices whose Frobenius norm exceeds `most` to it (kohya's `scale_weight_norms`).

        All factors shrink alike, so that none of them drifts.
        """
        for _, _, layer in self.walk():
            factors = [parameter for role, parameter in layer.tensors().items() if role != "dora_scale"]
            ratio = (most / layer.product().norm()).clamp(max=1)  # stays on the device: no wait for its value
            ratio = torch.where(
                ratio > 1 - 1e-5, 1.0, ratio
            )  # what was shrunk before stays as it is, to the bit
            for parameter in factors:
                parameter.mul_(ratio ** (1 / len(factors)))


_SIDES = {"to_q": "0", "to_k": "1", "to_v": "2"}


def _place(master: tuple[Layer, str]) -> tuple[str, str, str]:
    """Order in a vector: an attention's downs side by side, those of k and v next to each other."""
    layer, role = master
    parent, _, leaf = layer.name.rpartition(".")
    return (parent, role, _SIDES[leaf]) if leaf in _SIDES else (layer.name, role, "")
