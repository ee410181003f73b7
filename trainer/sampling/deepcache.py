"""Fast previews by DeepCache and a guidance interval: about the same composition for far less work.

In SDXL's shape a fast preview costs a third of a full one. Its PNG metadata says that it is a fast preview,
since a LoRA should be judged by full images.

Guidance ends after the first steps, which fix the composition (Castillo et al. 2023, "Adaptive Guidance").
The outputs of the deep levels hardly change from step to step, so they are computed in every third step only;
in the steps between, only the outermost level runs, on the deep levels' last output (Ma et al. 2023,
"DeepCache: Accelerating Diffusion Models for Free").
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch

from trainer.sdxl.protocols import UNet
from trainer.sdxl.text import Conditioning
from trainer.sdxl.unet import predict

GUIDED = 0.4  # share of the steps that have guidance
EVERY = 3  # the deep levels run in one of so many steps
DESCRIPTION = f"Fast preview: guidance on {GUIDED:.0%} of the steps, deep layers on one step in {EVERY}"


class DeepCache:
    """A UNet that computes some steps with its outermost level alone; a context manager for one pass."""

    def __init__(self, unet: UNet, steps: int) -> None:
        self.unet, self.steps = unet, steps
        self._deep: torch.Tensor | None = None  # input of the last up block in the last full step
        self._steps_since = 0
        # The shortcut needs SDXL's form, an outermost level without attention; other UNets run in full each
        # step.
        self._can_skip = not (
            hasattr(unet.down_blocks[0], "attentions") or hasattr(unet.up_blocks[-1], "attentions")
        )

    def __enter__(self) -> DeepCache:
        self._hook = self.unet.up_blocks[-1].register_forward_pre_hook(self._store, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()

    def _store(self, block: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._deep, self._steps_since = kwargs["hidden_states"], 0

    def is_guided(self, step: int) -> bool:
        """Returns True for the steps with guidance; steps count from 1."""
        return step <= max(1, round(GUIDED * self.steps))

    def __call__(
        self,
        latents_NCHW: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: Conditioning,
        time_ids_N6: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the UNet's prediction, as `predict`, from the cached deep levels where they may be used."""
        self._steps_since += 1
        deep = self._deep
        # The number of rows changes when guidance ends; the cached output of the other number can't be used
        # then.
        is_stale = deep is None or len(deep) != len(latents_NCHW) or self._steps_since >= EVERY
        if deep is None or is_stale or not self._can_skip:
            return predict(self.unet, latents_NCHW, timestep, conditioning, time_ids_N6)
        return self._outermost(latents_NCHW, timestep, conditioning, time_ids_N6, deep)

    def _outermost(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: Conditioning,
        time_ids: torch.Tensor,
        deep: torch.Tensor,
    ) -> torch.Tensor:
        """Repeats `UNet2DConditionModel.forward` without everything between its first and its last block."""
        unet, steps_since = self.unet, self._steps_since
        embedding = unet.time_embedding(unet.get_time_embed(sample=latents, timestep=timestep))
        added = {"text_embeds": conditioning.pooled_NP, "time_ids": time_ids}
        embedding = embedding + unet.get_aug_embed(
            emb=embedding, encoder_hidden_states=conditioning.text_NTD, added_cond_kwargs=added
        )
        hidden = unet.conv_in(latents)
        skips = [hidden]
        first: Any = unet.down_blocks[0]
        for resnet in first.resnets:
            hidden = resnet(hidden, embedding)
            skips.append(hidden)
        last: Any = unet.up_blocks[-1]
        skips_of_last = tuple(skips[-len(last.resnets) :])
        hidden = last(hidden_states=deep, temb=embedding, res_hidden_states_tuple=skips_of_last)
        self._steps_since = steps_since  # this call has run the hook, which set it to 0
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
