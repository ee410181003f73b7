"""Prior preservation by the switched-off adapter."""

from __future__ import annotations

import torch

from tests.conftest import MODELS
from trainer.adapter.lora import Adapter, LayerSpec
from trainer.sdxl.base import open_base
from trainer.training.prior_preservation import replace_targets_with_base
from trainer.training.text_conditioning import TextConditioner


def test_chosen_rows_are_taught_the_untouched_bases_answer_and_the_others_their_own():
    base, cpu = open_base("tiny-sdxl", MODELS), torch.device("cpu")
    unet, encoders, tokenizers = (
        base.unet(cpu, torch.float32),
        base.text_encoders(cpu, torch.float32),
        base.tokenizers(),
    )
    draws = torch.Generator().manual_seed(0)
    noisy = torch.randn(3, unet.config.in_channels, 16, 16, generator=draws)
    steps, time_ids = torch.tensor([10, 400, 900]), torch.tensor([[128.0, 128, 0, 0, 128, 128]]).repeat(3, 1)
    prompts = ["a star", "a cat", "an owl"]
    answer = torch.zeros_like(noisy)
    with torch.no_grad():
        text = TextConditioner({}, encoders, tokenizers).of(prompts)
        added = {"text_embeds": text.pooled_NP, "time_ids": time_ids}
        untouched = unet(noisy, steps, text.text_NTD, added_cond_kwargs=added).sample

    adapter = Adapter()  # of UNet and text encoder, far from nothing
    for part, model, path in (("unet", unet, "attn1.to_q"), ("text_encoder", encoders[0], "q_proj")):
        paths = [name for name, _ in model.named_modules() if name.endswith(path)]
        adapter.attach(part, model, dict.fromkeys(paths, LayerSpec(rank=4, alpha=4.0)))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(generator=draws)
        changed = unet(noisy, steps, text.text_NTD, added_cond_kwargs=added).sample
    texts = TextConditioner({}, encoders, tokenizers, are_trained=True)
    taught = replace_targets_with_base(
        answer,
        [False, True, True],
        prompts,
        unet=unet,
        adapter=adapter,
        texts=texts,
        noisy_NCHW=noisy,
        timestep_N=steps,
        time_ids=time_ids,
    )
    assert torch.equal(taught[0], answer[0])
    torch.testing.assert_close(taught[1:], untouched[1:], atol=1e-4, rtol=1e-4)
    assert (changed[1:] - untouched[1:]).abs().max() > 1e-2
    assert adapter.strength.value == 1.0 and not taught.requires_grad
