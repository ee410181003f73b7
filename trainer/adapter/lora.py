"""LoRA layers, and the adapter: all adapted layers of the models that train, with one strength.

Shapes: N rows of the batch, T tokens, I inputs, O outputs, R rank; H height, W width and k the kernel of a
    convolution.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from trainer.adapter.flat_parameters import FlatVector
from trainer.adapter.fused_linear import LinearGroup
from trainer.adapter.layer import Dropout, Layer, LayerSpec, Strength, dropout_mask, fan_in, fill_random
from trainer.adapter.lycoris import MatrixLayer, product, shapes_of
from trainer.adapter.patching import patch_forwards, restore_forwards
from trainer.sdxl.protocols import Module


class LoraLinear(Layer):
    """A frozen linear layer plus strength * (alpha / rank) * B A x   (Hu et al. 2021, section 4.1).

    A and B are fp32 master weights. Products are computed in the precision of the base, gradients of A and B
    are fp32.
    """

    network = "lora"
    rank_dim = -1  # of the hidden activations

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
        shapes, device = shapes_of("lora", base, spec.rank, 0), base.weight.device
        # A, (R, I) or (R, I, k, k); B, (O, R) or (O, R, 1, 1), which is zero so that step 0 equals the base
        # model.
        self.down = nn.Parameter(torch.empty(shapes["down"], device=device, dtype=torch.float32))
        self.up = nn.Parameter(torch.zeros(shapes["up"], device=device, dtype=torch.float32))
        self._own_group: LinearGroup | None = None  # of this layer only

    def tensors(self) -> dict[str, nn.Parameter]:
        """Returns A as `down` and B as `up`."""
        return {"down": self.down, "up": self.up}

    def _replace(self, role: str, parameter: nn.Parameter) -> None:
        setattr(self, role, parameter)
        self._own_group = None

    @property
    def zero_init_role(self) -> str:
        """`up`, the matrix B."""
        return "up"

    def init_weights(self, generator: torch.Generator) -> None:
        """Draws A from the uniform distribution of PEFT and kohya: Kaiming with a = sqrt(5)."""
        fill_random(self.down, generator, uniform=1 / math.sqrt(fan_in(self.base)))

    def product(self) -> torch.Tensor:
        """Returns (alpha / rank) * B A in the shape of the base's weight."""
        return product("lora", self.tensors(), tuple(self.base.weight.shape)) * self.scale

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Returns A x, (N, T, R)."""
        return F.linear(x, self.down.to(x.dtype))

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns B h, (N, T, O)."""
        return F.linear(hidden, self.up.to(hidden.dtype))

    @property
    def can_run_grouped(self) -> bool:
        """Returns whether the present call can be computed by a `LinearGroup`.

        Not under a compiler, which fuses the plain formula well and can't trace the group; not with dropout;
        and not with a strength for each row while gradients are computed.
        """
        if torch.compiler.is_compiling() or self.dropout.is_on:
            return False
        return not (isinstance(self.strength.value, torch.Tensor) and torch.is_grad_enabled())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the base's output plus the change."""
        if self.can_run_grouped and self._has_own_group():
            assert self._own_group is not None
            return self._own_group(x)[0]
        hidden = self.hidden(x)
        if self.dropout.is_on:
            hidden = self._dropped(hidden)
        hidden = self.strength.scaled(hidden, self.alpha / self.rank)
        return self.base(x) + self.output(hidden)

    def _has_own_group(self) -> bool:
        if self._own_group is None and LinearGroup.fits([self]):
            self._own_group = LinearGroup((self,))
        return self._own_group is not None

    def _dropped(self, hidden: torch.Tensor) -> torch.Tensor:
        dropout, generator = self.dropout, self.dropout.generator(self.name, hidden.device)
        if dropout.module:
            is_kept = torch.rand((), generator=generator, device=generator.device) >= dropout.module
            hidden = hidden * is_kept.to(hidden.dtype)
        if dropout.network:
            hidden = hidden * dropout_mask(hidden.shape, dropout.network, generator).to(hidden.dtype)
        if dropout.rank:
            shape = [1] * hidden.dim()
            shape[0], shape[self.rank_dim] = len(hidden), self.rank
            hidden = hidden * dropout_mask(tuple(shape), dropout.rank, generator).to(hidden.dtype)
        return hidden


class LoraConv(LoraLinear):
    """LoCon: A is a convolution (R, I, k, k) with the base's stride and padding, B one of 1 x 1."""

    rank_dim = 1

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Returns A x, (N, R, H, W)."""
        conv = self.base
        assert isinstance(conv, nn.Conv2d)
        settings: Any = (conv.stride, conv.padding, conv.dilation)
        return F.conv2d(x, self.down.to(x.dtype), None, *settings)

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns B h, (N, O, H, W)."""
        return F.conv2d(hidden, self.up.to(hidden.dtype))


class Adapter:
    """All adapted layers, by part (`unet`, `text_encoder`, `text_encoder_2`) and module path.

    `attach` replaces layers of a model in place; the model's own weights are frozen and never written.

    Attributes:
        layers: part -> path -> layer.
        flat_vectors: the vectors that contain the master weights.
        strength: shared by all layers; see `at`.
    """

    def __init__(self, dropout: Dropout | None = None) -> None:
        self.layers: dict[str, dict[str, Layer]] = {}
        self.flat_vectors: list[FlatVector] = []
        self.strength = Strength()
        self.dropout = dropout or Dropout()

    def attach(self, part: str, model: Module, specs: dict[str, LayerSpec]) -> None:
        """Adapts the linear layers and convolutions of a model at the paths of `specs`."""
        model.requires_grad_(False)
        adapted = self.layers.setdefault(part, {})
        for path, spec in specs.items():
            base = model.get_submodule(path)
            assert isinstance(base, nn.Linear | nn.Conv2d), f"{path} is {type(base).__name__}"
            layer = self._layer(base, spec, f"{part}/{path}")
            model.set_submodule(path, layer)
            adapted[path] = layer
        patch_forwards(model)
        self.flatten()

    def flatten(self, groups: list[list[tuple[Layer, str]]] | None = None) -> None:
        """Moves all master weights into vectors; their values don't change.

        Parameters and gradients that were returned before are outdated.

        Args:
            groups: (layer, role) of the members of each vector; by default, one vector for each part.
        """
        if groups is None:
            weights = [(part, layer, role) for part, _, layer in self.walk() for role in layer.tensors()]
            groups = [
                [(layer, role) for owner, layer, role in weights if owner == part]
                for part in sorted(self.layers)
            ]
        self.flat_vectors = [FlatVector(group, _order) for group in groups if group]

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
        """Fills gradients with zeros in place; call it before the first backward pass and after each step."""
        for flat in self.flat_vectors:
            flat.zero_grad()

    def mark_dirty(self) -> None:
        """Renews copies in the base's precision at their next use.

        Call it after each step of an optimizer.
        """
        for flat in self.flat_vectors:
            flat.mark_dirty()

    def vectors(self) -> list[nn.Parameter]:
        """Returns all master weights as few long parameters."""
        return [flat.value for flat in self.flat_vectors]

    def _layer(self, base: nn.Linear | nn.Conv2d, spec: LayerSpec, name: str) -> Layer:
        kind = MatrixLayer
        if spec.network == "lora":
            kind = LoraLinear if isinstance(base, nn.Linear) else LoraConv
        return kind(base, spec, strength=self.strength, dropout=self.dropout, name=name)

    def detach(self, part: str, model: Module) -> None:
        """Puts the model's own layers back."""
        for path, layer in self.layers.pop(part, {}).items():
            model.set_submodule(path, layer.base)
        restore_forwards(model)

    def init_weights(self, seed: int) -> None:
        """Draws initial values, the same on every machine: on the CPU, in order of name."""
        generator = torch.Generator().manual_seed(seed)
        for _, _, layer in self.walk():
            layer.init_weights(generator)

    def walk(self) -> Iterator[tuple[str, str, Layer]]:
        """Yields (part, path, layer), in order of name."""
        for part in sorted(self.layers):
            for path in sorted(self.layers[part]):
                yield part, path, self.layers[part][path]

    def master_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields (`part/path.role`, tensor), in order of name."""
        for part, path, layer in self.walk():
            for role, parameter in layer.tensors().items():
                yield f"{part}/{path}.{role}", parameter

    def parameters(self, part: str | None = None) -> list[nn.Parameter]:
        """Returns the master weights of one part, or of all."""
        return [
            parameter
            for owner, _, layer in self.walk()
            if part in (None, owner)
            for parameter in layer.tensors().values()
        ]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the master weights by `part/path.role`, fp32 on the CPU, as checkpoints store them."""
        vectors = {id(flat): flat.value.detach().cpu() for flat in self.flat_vectors}
        slots = {
            f"{part}/{path}.{role}": layer.slots[role]
            for part, path, layer in self.walk()
            for role in layer.tensors()
        }
        return {name: slot.of(vectors[id(slot.flat)]).clone() for name, slot in slots.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Loads the result of `tensors()`.

        Raises:
            KeyError: if the keys are not those of this adapter.
        """
        expected = dict(self.master_weights())
        if set(expected) != set(tensors):
            raise KeyError(f"{len(set(expected) ^ set(tensors))} tensors do not match this adapter")
        for name, parameter in expected.items():
            parameter.copy_(tensors[name])
        self.mark_dirty()

    @torch.no_grad()
    def limit_norms(self, limit: float) -> None:
        """Scales every product of matrices whose Frobenius norm exceeds `limit` to that norm.

        This is kohya's `scale_weight_norms`. All factors of a product are scaled alike, so that none of them
        drifts.
        """
        for _, _, layer in self.walk():
            factors = [parameter for role, parameter in layer.tensors().items() if role != "dora_scale"]
            # The ratio stays on the device, so that the CPU need not wait for its value.
            ratio = (limit / layer.product().norm()).clamp(max=1)
            # A product that was scaled to the limit before exceeds it by rounding; it must not change at each
            # step.
            ratio = torch.where(ratio > 1 - 1e-5, 1.0, ratio)
            for parameter in factors:
                parameter.mul_(ratio ** (1 / len(factors)))


_ORDER_OF_PROJECTIONS = {"to_q": "0", "to_k": "1", "to_v": "2"}


def _order(member: tuple[Layer, str]) -> tuple[str, str, str]:
    """Returns the sort key of a member in its vector.

    The downs of an attention's q, k and v are neighbours, so that they fit a `LinearGroup`.
    """
    layer, role = member
    parent, _, leaf = layer.name.rpartition(".")
    return (
        (parent, role, _ORDER_OF_PROJECTIONS[leaf])
        if leaf in _ORDER_OF_PROJECTIONS
        else (layer.name, role, "")
    )
