"""LoRA's layers, and the adapter: all adapted layers of a model with a strength for each batch row.

Shapes: N rows of the batch, T tokens, I inputs, O outputs, R rank; H height, W width and k the kernel of a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from trainer.adapter.layer import Dropout, Layer, Strength, draw, fan_in, keep
from trainer.adapter.networks import MatrixLayer, Shapes, product, shapes_of


class LoraLinear(Layer):
    """A frozen linear layer plus strength * (alpha / rank) * B A x.

    A and B are fp32 masters; the product runs in the dtype of the base, and their gradients come back as fp32.
    """

    network = "lora"
    rank_dim = -1  # of the hidden activations

    def __init__(
        self, base: nn.Linear | nn.Conv2d, *, rank: int, alpha: float, strength: Strength, dropout: Dropout | None = None, name: str = ""
    ) -> None:
        super().__init__(base, rank=rank, alpha=alpha, strength=strength, dropout=dropout, name=name)
        shapes, device = shapes_of("lora", base, rank, 0), base.weight.device
        self.down = nn.Parameter(torch.empty(shapes["down"], device=device, dtype=torch.float32))  # A (R, I) or (R, I, k, k)
        # B starts at zero, so that step 0 equals the base model.
        self.up = nn.Parameter(torch.zeros(shapes["up"], device=device, dtype=torch.float32))  # B (O, R) or (O, R, 1, 1)

    def tensors(self) -> dict[str, nn.Parameter]:
        return {"down": self.down, "up": self.up}

    @property
    def zero(self) -> str:
        return "up"

    def start(self, generator: torch.Generator) -> None:
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(x)
        if self.dropout.is_on:
            hidden = self._dropped(hidden)
        hidden = self.strength.scaled(hidden, self.alpha / self.rank)
        return self.base(x) + self.output(hidden)

    def _dropped(self, hidden: torch.Tensor) -> torch.Tensor:
        draws, drop = self.dropout.draws(self.name, hidden.device), self.dropout
        if drop.module:
            hidden = hidden * (torch.rand((), generator=draws, device=draws.device) >= drop.module).to(hidden.dtype)
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
class Size:
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
        self.strength = Strength()
        self.dropout = dropout or Dropout()

    def attach(self, part: str, model: nn.Module, sizes: dict[str, Size]) -> None:
        """Adapts the linear layers and convolutions of `model` at the paths of `sizes`."""
        model.requires_grad_(False)
        adapted = self.layers.setdefault(part, {})
        for path, size in sizes.items():
            base = model.get_submodule(path)
            assert isinstance(base, nn.Linear | nn.Conv2d), f"{path} is {type(base).__name__}"
            layer = self._layer(base, size, f"{part}/{path}")
            model.set_submodule(path, layer)
            adapted[path] = layer

    def _layer(self, base: nn.Linear | nn.Conv2d, size: Size, name: str) -> Layer:
        if size.network == "lora":
            kind = LoraLinear if isinstance(base, nn.Linear) else LoraConv
            return kind(base, rank=size.rank, alpha=size.alpha, strength=self.strength, dropout=self.dropout, name=name)
        shapes = size.shapes or shapes_of(size.network, base, size.rank, size.factor)
        return MatrixLayer(
            base, network=size.network, shapes=shapes,
            rank=size.rank, alpha=size.alpha, strength=self.strength, dropout=self.dropout, name=name,
        )  # fmt: skip

    def detach(self, part: str, model: nn.Module) -> None:
        """Gives the model its own layers back."""
        for path, layer in self.layers.pop(part, {}).items():
            model.set_submodule(path, layer.base)

    def start(self, seed: int) -> None:
        """First values, the same on every machine: drawn on the CPU in order of name."""
        generator = torch.Generator().manual_seed(seed)
        for _, _, layer in self.walk():
            layer.start(generator)

    def walk(self) -> Iterator[tuple[str, str, Layer]]:
        """(part, path, layer), in order of name."""
        for part in sorted(self.layers):
            for path in sorted(self.layers[part]):
                yield part, path, self.layers[part][path]

    def masters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(`part/path.role`, tensor), in order of name."""
        for part, path, layer in self.walk():
            for role, parameter in layer.tensors().items():
                yield f"{part}/{path}.{role}", parameter

    def parameters(self, part: str | None = None) -> list[nn.Parameter]:
        return [parameter for owner, _, layer in self.walk() if part in (None, owner) for parameter in layer.tensors().values()]

    def tensors(self) -> dict[str, torch.Tensor]:
        """`part/path.role` on the CPU, fp32: what a checkpoint keeps."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.masters()}

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Puts back what `tensors()` gave. A key too many or too few is a KeyError."""
        expected = dict(self.masters())
        if set(expected) != set(tensors):
            raise KeyError(f"{len(set(expected) ^ set(tensors))} tensors do not match this adapter")
        for name, parameter in expected.items():
            parameter.copy_(tensors[name])

    @torch.no_grad()
    def limit_norms(self, most: float) -> None:
        """Shrinks every product of matrices whose Frobenius norm exceeds `most` to it (kohya's `scale_weight_norms`).

        All factors shrink alike, so that none of them drifts.
        """
        for _, _, layer in self.walk():
            factors = [parameter for role, parameter in layer.tensors().items() if role != "dora_scale"]
            ratio = (most / layer.product().norm()).clamp(max=1)  # stays on the device: no wait for its value
            for parameter in factors:
                parameter.mul_(ratio ** (1 / len(factors)))
