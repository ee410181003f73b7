"""Prior preservation without class pictures: in some rows the adapter learns to leave the base's own answer as it is."""

from __future__ import annotations

from typing import Any

import torch

from trainer.adapter.lora import Adapter
from trainer.sdxl.unet import predict
from trainer.training.text_conditioning import TextConditioner


@torch.no_grad()
def replace_targets_with_base(
    answer_NCHW: torch.Tensor,
    keeps_base: list[bool],
    prompts: list[str],
    *,
    unet: Any,
    adapter: Adapter,
    texts: TextConditioner,
    noisy_NCHW: torch.Tensor,
    timestep_N: torch.Tensor,
    time_ids: torch.Tensor,
) -> torch.Tensor:
    """The target with the rows of `keeps_base` replaced by what the base says to them with the adapter switched off.

    The prior term of Ruiz et al. 2023 (DreamBooth, section 3.3), with the base's answer in place of a picture that it drew.
    """
    rows = [row for row, keeps in enumerate(keeps_base) if keeps]
    if not rows:
        return answer_NCHW
    with adapter.at(0.0):
        text = texts.of([prompts[row] for row in rows]).to(noisy_NCHW.device, noisy_NCHW.dtype)
        timesteps = timestep_N[rows].to(noisy_NCHW.device)
        said = predict(unet, noisy_NCHW[rows], timesteps, text, time_ids[rows])
    answer = answer_NCHW.clone()
    answer[rows] = said.to(answer.dtype)
    return answer
