"""Prior preservation: the base's own predictions as targets, by an adapter at strength 0."""

from __future__ import annotations

import torch

from tests.conftest import MODELS
from trainer.adapter.lora import Adapter, LayerSpec
from trainer.sdxl.base import open_base
from trainer.sdxl.unet import predict
from trainer.training.prior_preservation import NoisyBatch, replace_targets_with_base
from trainer.training.text_conditioning import TextConditioner, TextModels


def test_only_the_selected_rows_get_the_prediction_of_the_base_as_target():
    base, cpu = open_base("tiny-sdxl", MODELS), torch.device("cpu")
    unet, models = base.unet(cpu, torch.float32), TextModels(base, cpu)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, unet.config["in_channels"], 16, 16, generator=generator)
    time_ids = torch.tensor([[128.0, 128, 0, 0, 128, 128]]).repeat(3, 1)
    batch = NoisyBatch(latents, torch.tensor([10, 400, 900]), time_ids, ["a star", "a cat", "an owl"])
    target = torch.zeros_like(latents)
    with torch.no_grad():
        text = TextConditioner({}, models).encode(batch.prompts)
        untouched = predict(unet, latents, batch.timesteps_N, text, time_ids)

    adapter = Adapter()  # of the UNet and of a text encoder, with weights far from zero
    for part, model, leaf in (("unet", unet, "attn1.to_q"), ("text_encoder", models.encoders[0], "q_proj")):
        paths = [path for path, _ in model.named_modules() if path.endswith(leaf)]
        adapter.attach(part, model, dict.fromkeys(paths, LayerSpec(rank=4, alpha=4.0)))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(generator=generator)
        changed = predict(unet, latents, batch.timesteps_N, text, time_ids)
    conditioner = TextConditioner({}, models, is_trained=True)
    replaced = replace_targets_with_base(target, [False, True, True], batch, unet, adapter, conditioner)
    assert torch.equal(replaced[0], target[0])
    torch.testing.assert_close(replaced[1:], untouched[1:], atol=1e-4, rtol=1e-4)
    assert (changed[1:] - untouched[1:]).abs().max() > 1e-2
    assert adapter.strength.value == 1.0
    assert not replaced.requires_grad
