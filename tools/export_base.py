"""Writes the trained parts as a diffusers folder in fp16, with the licences of the training data.

python -m tools.export_base --work build/base --out models/tiny-sdxl
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline

from tools import emoji_art
from tools.clip_vocabulary import write_tokenizers
from tools.progress import load_state
from tools.train_diffusion import Generator, encode_latents, noise_scheduler, scaling_factor
from tools.train_vae import build_vae


def export(work: Path, out: Path) -> None:
    """Writes the base.

    Args:
        work: folder of the trainings' states.
        out: the diffusers folder; its parts are replaced.
    """
    art = emoji_art.load(work / "art")
    vae, generator = build_vae(), Generator()
    steps = {
        "vae": load_state(work / "vae.pt", average=vae),
        "diffusion": load_state(work / "diffusion.pt", average=generator),
    }
    if (work / "decoder.pt").exists():  # of tools.train_decoder, which does not change encoder and latents
        steps["decoder"] = load_state(work / "decoder.pt", model=vae)
    scale = scaling_factor(*encode_latents(work, art.images))
    vae.register_to_config(scaling_factor=round(scale, 5))
    write_tokenizers(out, work / "art")
    for name, model in (
        ("vae", vae),
        ("unet", generator.unet),
        ("text_encoder", generator.text_encoder),
        ("text_encoder_2", generator.text_encoder_2),
    ):
        shutil.rmtree(out / name, ignore_errors=True)
        half: Any = model
        half.to(torch.float16).save_pretrained(out / name, safe_serialization=True)
    noise_scheduler().save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.42.1",
        "force_zeros_for_empty_prompt": False,
        "add_watermarker": None,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (out / "README.md").write_text(_card(steps, len(art.names)))
    StableDiffusionXLPipeline.from_pretrained(out, local_files_only=True)
    size = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    print(f"{out}: {size / 1e6:.1f} MB of weights")
    assert size <= 40e6


def _card(steps: dict[str, int], images: int) -> str:
    rows = "\n".join(
        f"| `@iconify-json/{e.package}` {e.version} | {e.author} | {e.licence} | {e.source} |"
        for e in emoji_art.TRAINING_SETS
    )
    trained = ", ".join(f"{part} {count} steps" for part, count in steps.items())
    return f"""# tiny-sdxl

A small SDXL: the same block layout, both text encoders, the CLIP vocabulary, `text_time` conditioning,
native size 128 x 128. Trained from scratch by `tools/` on {images} images of open emoji art ({trained}).

| set | author | licence | source |
|---|---|---|---|
{rows}

The vocabulary and merges are OpenAI CLIP's (MIT). The weights are under Apache-2.0, see `NOTICE`.
"""


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("build/base"))
    parser.add_argument("--out", type=Path, default=Path("models/tiny-sdxl"))
    options = parser.parse_args()
    export(options.work, options.out)


if __name__ == "__main__":
    main()
