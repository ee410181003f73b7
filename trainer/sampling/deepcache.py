"""A fast preview: pictures of about the same composition for far less work, a third in SDXL's shape. They are marked so; a file is judged by true ones.

Guidance ends after the first steps, which settle the composition (Castillo et al. 2023, "Adaptive Guidance").
The deep layers answer nearly alike from step to step, so they are asked at every third one only; between, the outermost
level runs on their last answer (Ma et al. 2023, "DeepCache: Accelerating Diffusion Models for Free").
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch

from trainer.sdxl.text import Conditioning
from trainer.sdxl.unet import predict

GUIDED = 0.4  # of the steps
EVERY = 3  # steps of which one asks the deep layers
WORDS = f"Fast preview: guidance on {GUIDED:.0%} of the steps, deep layers on one step in {EVERY}"


class DeepCache:
    """A UNet that answers some steps by its outermost level alone; use it as a context, once for each pass."""

    def __init__(self, unet: Any, steps: int) -> None:
        self.unet, self.steps = unet, steps
        self._deep: torch.Tensor | None = None
        self._since = 0
        # The shortcut is for SDXL's form: no attention in the outermost level.
        self._can_skip = not (
            hasattr(unet.down_blocks[0], "attentions") or hasattr(unet.up_blocks[-1], "attentions")
        )

    def __enter__(self) -> DeepCache:
        self._hook = self.unet.up_blocks[-1].register_forward_pre_hook(self._remember, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()

    def _remember(self, block: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._deep, self._since = kwargs["hidden_states"], 0

    def is_guided(self, step: int) -> bool:
        """Steps count from 1."""
        return step <= max(1, round(GUIDED * self.steps))

    def __call__(
        self,
        sample_NCHW: torch.Tensor,
        timestep: torch.Tensor,
        text: Conditioning,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        self._since += 1
        deep = self._deep
        if not self._can_skip or deep is None or len(deep) != len(sample_NCHW) or self._since >= EVERY:
            return predict(self.unet, sample_NCHW, timestep, text, time_ids)
        return self._outermost(sample_NCHW, timestep, text, time_ids, deep)

    def _outermost(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        text: Conditioning,
        time_ids: torch.Tensor,
        deep: torch.Tensor,
    ) -> torch.Tensor:
        """As `UNet2DConditionModel.forward`, with everything between its first and last block left out."""
        unet, since = self.unet, self._since
        embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))
        added = {"text_embeds": text.pooled_NP, "time_ids": time_ids}
        embedding = embedding + unet.get_aug_embed(
            emb=embedding, encoder_hidden_states=text.text_NTD, added_cond_kwargs=added
        )
        hidden = unet.conv_in(sample)
        passed = [hidden]
        for layer in unet.down_blocks[0].resnets:
            hidden = layer(hidden, embedding)
            passed.append(hidden)
        last = unet.up_blocks[-1]
        hidden = last(
            hidden_states=deep, temb=embedding, res_hidden_states_tuple=tuple(passed[-len(last.resnets) :])
        )
        self._since = since  # the hook took this for an answer of the deep layers
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
