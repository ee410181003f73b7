"""The members of SDXL's models that this project uses, as types.

Functions that take a model and `Base`, which loads them, name these protocols; the classes of diffusers and
transformers satisfy them (CLIPTokenizer needs a cast: its ids come from `__getattr__`), and so do the small
stand-ins of the tests. Results of calls are `Any`: both libraries declare a union of a dataclass and a tuple
there (`return_dict`), and this project always reads the dataclass. Configurations are read by subscription
(`unet.config["sample_size"]`), the one access that the libraries' types know.

Shapes: N batch, C latent channels, H and W latent cells, T tokens, D width of both text encoders together, P
    pooled width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

import torch
from torch import nn


class HasWeights(Protocol):
    """A model whose memory can be counted."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterates over all weights."""
        ...

    def buffers(self) -> Iterator[torch.Tensor]:
        """Iterates over all buffers."""
        ...


class Module(HasWeights, Protocol):
    """The members of `torch.nn.Module` that are used on a whole model.

    Functions that work on any model (the adapter, the memory estimate) take this, so that a `UNet` can be
    passed on.
    """

    training: bool

    def train(self, mode: bool = True) -> Self:
        """Sets training mode: gradient checkpointing is active."""
        ...

    def eval(self) -> Self:
        """Sets evaluation mode."""
        ...

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Sets whether the weights collect gradients."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """Iterates over the model and all its submodules."""
        ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Iterates over (dotted path, submodule)."""
        ...

    def get_submodule(self, target: str) -> nn.Module:
        """Returns the submodule at a dotted path. Raises AttributeError."""
        ...

    def set_submodule(self, target: str, module: nn.Module) -> None:
        """Replaces the submodule at a dotted path. Raises AttributeError."""
        ...


class UNet(Module, Protocol):
    """SDXL's UNet, as `diffusers.UNet2DConditionModel`."""

    conv_in: nn.Conv2d
    time_embedding: Any
    down_blocks: nn.ModuleList
    mid_block: Any
    up_blocks: nn.ModuleList
    conv_norm_out: Any
    conv_act: Any
    conv_out: nn.Conv2d

    @property
    def config(self) -> dict[str, Any]:
        """The settings of `unet/config.json`."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        ...

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *,
        added_cond_kwargs: dict[str, torch.Tensor],
    ) -> Any:
        """Predicts noise or velocity; `.sample` of the result is (N, C, H, W).

        Args:
            sample: noisy latents (N, C, H, W).
            timestep: (N,) integers in [0, 1000), or a scalar for all rows.
            encoder_hidden_states: text states (N, T, D).
            added_cond_kwargs: `text_embeds` (N, P) and `time_ids` (N, 6).
        """
        ...

    @property
    def to(self) -> Any:
        """The method of `nn.Module` (diffusers wraps it in a way that type checkers can't bind)."""
        ...

    def get_time_embed(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor | None:
        """Returns the sinusoidal embedding of the timesteps (N, channels)."""
        ...

    def get_aug_embed(
        self,
        emb: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: dict[str, torch.Tensor],
    ) -> torch.Tensor | None:
        """Returns the embedding of the pooled text and the time ids (N, channels)."""
        ...

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any]) -> None:
        """Recomputes each block in the backward pass, through a function like `torch.utils.checkpoint`."""
        ...

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compiles each transformer block with torch.compile; arguments are those of torch.compile."""
        ...


class Vae(HasWeights, Protocol):
    """SDXL's VAE, as `diffusers.AutoencoderKL`."""

    use_tiling: bool
    tile_sample_min_size: int
    tile_latent_min_size: int

    @property
    def config(self) -> dict[str, Any]:
        """The settings of `vae/config.json`."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        ...

    def encode(self, x: torch.Tensor) -> Any:
        """Encodes images (N, 3, height, width) in [-1, 1].

        `.latent_dist` has `mean` and `logvar` (N, C, H, W).
        """
        ...

    def decode(self, z: Any) -> Any:
        """Decodes unscaled latents (N, C, H, W); `.sample` is (N, 3, height, width) in about [-1, 1]."""
        ...


class TextEncoder(Module, Protocol):
    """One of SDXL's two text encoders, as `transformers.CLIPTextModel` and `CLIPTextModelWithProjection`."""

    @property
    def config(self) -> Any:
        """The CLIPTextConfig; `num_hidden_layers` is used."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        ...

    def __call__(self, input_ids: torch.Tensor, *, output_hidden_states: bool) -> Any:
        """Encodes token ids (N, 77).

        `.hidden_states` has one tensor (N, 77, width) for the embedding and for each layer; item 0 of the
        second encoder's result is the pooled vector (N, P).
        """
        ...


class Tokenizer(Protocol):
    """CLIP's tokenizer, as `transformers.CLIPTokenizer`."""

    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    def __call__(self, text: str, *, add_special_tokens: bool, truncation: bool) -> Any:
        """Splits a text into tokens; `.input_ids` is the list of their ids."""
        ...

    def decode(self, token_ids: list[int]) -> Any:
        """Returns the text of some tokens."""
        ...


class NoiseScheduler(Protocol):
    """A sampler with its noise schedule, as `diffusers.EulerDiscreteScheduler`."""

    timesteps: torch.Tensor
    alphas_cumprod: torch.Tensor

    @property
    def config(self) -> dict[str, Any]:
        """The settings of `scheduler_config.json`."""
        ...

    @property
    def init_noise_sigma(self) -> Any:
        """The standard deviation of the latents at the first step."""
        ...

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> None:
        """Prepares a sampling of that many steps."""
        ...

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Scales latents (N, C, H, W) to the variance that the UNet expects at a timestep."""
        ...

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> Any:
        """Removes the noise of one step; `.prev_sample` (N, C, H, W) has the next lower noise level."""
        ...
