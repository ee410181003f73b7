"""LoRA files written without the code under test, and the changes that diffusers reads from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import save_file

from tests.conftest import MODELS
from trainer.__main__ import main
from trainer.adapter.lora import Adapter
from trainer.lora_file.base_weights import base_weights
from trainer.lora_file.module_names import kohya_name
from trainer.lora_file.reader import read_modules
from trainer.sampling.pipeline import WarmBase
from trainer.sampling.sampler import Sampler
from trainer.sampling_config import SamplingConfig

TINY = MODELS / "tiny-sdxl"
METADATA = {
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_output_name": "sample",
    "modelspec.author": "a painter",
}
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONVOLUTION = "up_blocks.0.upsamplers.0.conv"
Place = tuple[str, str]  # (part, path)
Naming = Callable[[str, str], str]


def every_layer() -> dict[Place, tuple[int, ...]]:
    """Every linear and convolution layer of the bundled base, with the shape of its weight."""
    return {
        (part, path): place.shape
        for part, weights in base_weights(TINY).items()
        for path, place in weights.places.items()
        if len(place.shape) >= 2 and not path.startswith("embeddings.") and path != "text_projection"
    }


def shape_of(path: str) -> tuple[int, ...]:
    """The shape of a weight of the bundled base's UNet."""
    return every_layer()["unet", path]


def write_lora(
    path: Path,
    places: Mapping[Place, tuple[int, ...]],
    *,
    naming: Naming = kohya_name,
    seed: int = 0,
    rank: Callable[[int], int] = lambda n: 3,
    alpha: Callable[[int], float | None] = lambda n: 2.0,
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[Place, torch.Tensor]:
    """Writes a LoRA in kohya's format without the code under test; returns its changes, each (O, I)."""
    generator = torch.Generator().manual_seed(seed)
    tensors, changes = {}, {}
    for number, ((part, where), shape) in enumerate(places.items()):
        own, kernel = rank(number), shape[2:]
        down = (0.1 * torch.randn(own, *shape[1:], generator=generator)).to(dtype)
        up = (0.1 * torch.randn(shape[0], own, *[1] * len(kernel), generator=generator)).to(dtype)
        name, scale = naming(part, where), alpha(number)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if scale is not None:
            tensors[f"{name}.alpha"] = torch.tensor(scale)
        changes[part, where] = (
            (own if scale is None else scale) / own * up.float().flatten(1) @ down.float().flatten(1)
        )
    save_file(tensors, path, metadata=METADATA if metadata is None else metadata)
    return changes


def changes_of(path: Path) -> dict[Place, torch.Tensor]:
    return {(module.part, module.path): module.change() for module in read_modules(path).modules}


def assert_same(
    actual: Mapping[Place, torch.Tensor], expected: Mapping[Place, torch.Tensor], atol: float = 1e-6
) -> None:
    assert set(actual) == set(expected)
    for place, change in expected.items():
        torch.testing.assert_close(
            actual[place].flatten(1),
            change.flatten(1),
            rtol=1e-4,
            atol=atol,
            msg=lambda m, p=place: f"{p}: {m}",
        )


def pipeline() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(TINY, dtype=torch.float32, local_files_only=True)


def weights_of(pipe: StableDiffusionXLPipeline, places: Mapping[Place, object]) -> dict[Place, torch.Tensor]:
    weights = {}
    for part, path in places:
        model = getattr(pipe, part)
        prefix = "text_model." if hasattr(model, "text_model") else ""
        module = model.get_submodule(prefix + path)
        weights[part, path] = getattr(module, "base_layer", module).weight.detach().clone().flatten(1)
    return weights


def changed_by_diffusers(
    files: Mapping[Path, float], places: Mapping[Place, object], caplog
) -> dict[Place, torch.Tensor]:
    """The changes of the weights when diffusers fuses the files; it must use every tensor of them."""
    pipe = pipeline()
    before = weights_of(pipe, places)
    caplog.clear()
    quiet = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_warning()
    diffusers_logging.enable_propagation()  # to caplog
    try:
        for number, path in enumerate(files):
            pipe.load_lora_weights(str(path), adapter_name=f"n{number}")
    finally:
        diffusers_logging.disable_propagation()
        diffusers_logging.set_verbosity(quiet)
    messages = [
        r.getMessage()
        for r in caplog.records
        if "unexpected keys" in r.getMessage() or "UNEXPECTED" in r.getMessage()
    ]
    assert not messages, messages
    pipe.set_adapters([f"n{number}" for number in range(len(files))], list(files.values()))
    pipe.fuse_lora(adapter_names=[f"n{number}" for number in range(len(files))])
    after = weights_of(pipe, places)
    return {place: after[place] - before[place] for place in before}


def drawn_by_the_base_alone(warm: WarmBase, request: SamplingConfig) -> list[Any]:
    """The images of the last request to `warm`, from the same texts and without an adapter."""
    sampler = Sampler(
        base=warm.base, unet=warm.unet, vae=warm.vae, scheduler=warm.scheduler, adapter=Adapter()
    )
    cached = next(iter(warm.cached.values()))
    return sampler.generate(request, sampler.prompt_encoder(cached, cached.__getitem__))


def by_command_line(arguments: list[str | Path], monkeypatch, capsys) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of `python -m trainer ...`, in this process."""
    monkeypatch.setattr("sys.argv", ["trainer", *map(str, arguments)])
    status = main()
    output = capsys.readouterr()
    return status, output.out, output.err
