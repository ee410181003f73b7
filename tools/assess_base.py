"""Measures the bundled base: error of the autoencoder, recognisable concepts in generated images.

    python -m tools.assess_base --work build/base --base models/tiny-sdxl --sheet docs/contact-sheet.png
    python -m tools.assess_base ... --lora outputs/ink/ink.safetensors      also: style and concepts of a LoRA

The probe is a small classifier of 100 concepts. It is trained on the images of five sets with random changes
of colours, contrast and lines, and tested on a sixth set in another style.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from tools import emoji_art
from tools.make_sample_set import NAMES as SAMPLE_NAMES
from tools.progress import load_state, save_state
from tools.train_diffusion import caption
from tools.train_vae import psnr
from trainer.sampling.pipeline import WarmBase
from trainer.sampling_config import SamplingConfig
from trainer.sdxl.base import open_base

CONCEPTS = 100
SIDE = 48  # px, of the probe's input


def probe_concepts(art: emoji_art.Art, ink: emoji_art.Art) -> list[str]:
    """Returns 100 names that all sets and the test style have, evenly spaced in alphabetical order."""
    sets = set(art.sets)
    sets_of: dict[str, set[str]] = {}
    for name, owner in zip(art.names, art.sets, strict=True):
        sets_of.setdefault(name, set()).add(owner)
    excluded = (
        "square",
        "circle",
        "diamond",
        "heart",
        "moon",
        "button",
        "face",
        "man",
        "woman",
        "black",
        "white",
        "japanese",
        "oncoming",
    )
    shared = [
        n
        for n in sorted(sets_of)
        if sets_of[n] == sets and n in set(ink.names) and not any(w in n for w in excluded)
    ]
    return [shared[i * len(shared) // CONCEPTS] for i in range(CONCEPTS)]


def build_probe() -> nn.Module:
    """Returns an untrained classifier of images (N, 3, 48, 48)."""
    widths, layers = (3, 32, 64, 96, 128), []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * (SIDE // 16) ** 2, CONCEPTS))


def train_probe(work: Path, art: emoji_art.Art, concepts: list[str], steps: int = 1500) -> nn.Module:
    """Trains the probe, or loads the one that an earlier call has saved in `work`."""
    torch.manual_seed(0)
    probe, store = build_probe(), work / f"probe-{steps}.pt"
    if load_state(store, probe=probe):
        return probe.eval()
    rows = [i for i, name in enumerate(art.names) if name in set(concepts)]
    images = _resized(art.images[rows])
    labels = torch.tensor([concepts.index(art.names[i]) for i in rows])
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        batch = torch.randint(len(rows), (64,), generator=generator)
        logits = probe(_augmented(images[batch], generator))
        loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 250 == 0:
            print(f"probe step {step + 1}/{steps}  loss {loss.item():.3f}", flush=True)
    save_state(store, steps, probe=probe)
    return probe.eval()


def _resized(images: np.ndarray) -> torch.Tensor:
    batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.interpolate(batch, size=(SIDE, SIDE), mode="area")


def _augmented(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns images moved, scaled and mirrored; in colour, in grey, in two tones or as outlines."""
    count = len(batch)
    angle = (torch.rand(count, generator=generator) - 0.5) * 0.4
    scale = 0.85 + 0.35 * torch.rand(count, generator=generator)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    shift = (torch.rand(count, 2, generator=generator) - 0.5) * 0.2
    transform = torch.stack(
        [
            torch.stack([angle.cos() * scale * mirror, -angle.sin() * scale, shift[:, 0]], 1),
            torch.stack([angle.sin() * scale * mirror, angle.cos() * scale, shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(transform, list(batch.shape), align_corners=False)
    batch = F.grid_sample(batch - 1, grid, align_corners=False) + 1  # white outside
    kind = torch.rand(count, 1, 1, 1, generator=generator)
    grey = batch.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    threshold = torch.rand(count, 1, 1, 1, generator=generator) * 1.4 - 0.5
    tones = ((grey - threshold) * 8).clamp(-1, 1)
    outline = (1 - (grey - F.avg_pool2d(grey, 3, 1, 1, count_include_pad=False)).abs() * 14).clamp(-1, 1)
    swapped = batch[:, torch.randperm(3, generator=generator)]
    for share, other in ((0.6, swapped), (0.45, grey), (0.35, tones), (0.12, outline)):
        batch = torch.where(kind < share, other, batch)
    return batch


@torch.inference_mode()
def is_recognised(probe: nn.Module, images: np.ndarray, labels: list[int], top: int = 5) -> list[bool]:
    """Returns for each image whether its concept is among the `top` most likely ones."""
    best = probe(_resized(images)).topk(top).indices
    return [label in row for label, row in zip(labels, best.tolist(), strict=True)]


def saturation(images: np.ndarray) -> float:
    """Returns the mean HSV saturation of all pixels, 0 to 1.

    (max - min) / max of the channels, 0 for black.
    """
    high, low = images.max(axis=-1).astype(float), images.min(axis=-1)
    return float(((high - low) / np.maximum(high, 1)).mean())


def generate(
    warm: WarmBase,
    prompts: list[str],
    seed: int,
    lora: Path | None = None,
    strengths: tuple[float, ...] = (0.0,),
) -> dict[float, np.ndarray]:
    """Returns one image for each prompt, (n, height, width, 3), by strength of the LoRA."""
    config = SamplingConfig(prompts=tuple(prompts), strengths=strengths, seed=seed, steps=20)
    results = warm.generate(lora, config)
    return {s: np.stack([np.asarray(r.image) for r in results if r.strength == s]) for s in strengths}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("build/base"))
    parser.add_argument("--base", type=Path, default=Path("models/tiny-sdxl"))
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--lora", type=Path)
    options = parser.parse_args()
    art = emoji_art.load(options.work / "art")
    ink = emoji_art.load(options.work / "art", (emoji_art.SAMPLE_SET,))
    warm = WarmBase(open_base(str(options.base), options.base.parent))
    held_out = psnr(warm.vae, art.images[art.held_out()])
    print(f"VAE on held-out images: {held_out:.2f} dB PSNR (target: 26)")
    print(f"VAE on ink images: {psnr(warm.vae, ink.images[::8]):.2f} dB PSNR (target: 22.5)")
    concepts = probe_concepts(art, ink)
    probe = train_probe(options.work, art, concepts)
    rows = [ink.names.index(name) for name in concepts]
    labels = list(range(CONCEPTS))
    share = np.mean(is_recognised(probe, ink.images[rows], labels))
    print(f"probe on images in a style without training: {share:.0%} top-5 (chance: 5%)")
    images = generate(warm, [caption(name, None) for name in concepts], seed=1)[0.0]
    share = np.mean(is_recognised(probe, images, labels))
    print(f"probe on generated images: {share:.0%} top-5 (target: 50%)")
    if options.sheet:
        contact_sheet(images[:: CONCEPTS // 40][:40]).save(options.sheet, optimize=True)
    if options.lora:
        _assess_lora(warm, options.lora, probe, concepts)


def _assess_lora(warm: WarmBase, lora: Path, probe: nn.Module, concepts: list[str]) -> None:
    """Prints saturation (style) and recognised concepts at several strengths of a LoRA of the sample set."""
    others = [name for name in concepts if name not in SAMPLE_NAMES][::4][:20]
    labels = [concepts.index(name) for name in others]
    strengths = (0.0, 0.25, 0.5, 0.75, 1.0)
    prompts = [f"{caption(name, None)}, ink style" for name in others]
    for strength, images in generate(warm, prompts, seed=1, lora=lora, strengths=strengths).items():
        count = sum(is_recognised(probe, images, labels))
        recognised = f"{count} of {len(others)} concepts recognised"
        print(f"strength {strength}: saturation {saturation(images):.3f}, {recognised}")


def contact_sheet(images: np.ndarray, columns: int = 10) -> Image.Image:
    """Returns all images in a grid."""
    side = images.shape[1]
    sheet = Image.new("RGB", (columns * side, -(-len(images) // columns) * side), "white")
    for index, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (index % columns * side, index // columns * side))
    return sheet


if __name__ == "__main__":
    main()
