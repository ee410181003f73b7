"""ImageMetrics the bundled base: how well its autoencoder draws, and whether its pictures are what they are called.

    python -m tools.assess_base --work build/base --base models/tiny-sdxl --sheet docs/contact-sheet.png
    python -m tools.assess_base ... --lora outputs/ink/ink.safetensors      also: does a style arrive, concepts kept?

The probe is a small classifier of 100 concepts, trained on the real pictures of five sets with their colours, contrast
and lines changed, and tested on a sixth style that it never saw.
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
SIDE = 48  # px, of the probe's view


def probe_concepts(art: emoji_art.Art, ink: emoji_art.Art) -> list[str]:
    """Things that every set and the unseen style draw, in the order of their names, evenly picked."""
    sets = set(art.sets)
    drawn: dict[str, set[str]] = {}
    for name, owner in zip(art.names, art.sets, strict=True):
        drawn.setdefault(name, set()).add(owner)
    unwanted = (
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
        for n in sorted(drawn)
        if drawn[n] == sets and n in set(ink.names) and not any(w in n for w in unwanted)
    ]
    return [shared[i * len(shared) // CONCEPTS] for i in range(CONCEPTS)]


def build_probe() -> nn.Module:
    widths, layers = (3, 32, 64, 96, 128), []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * (SIDE // 16) ** 2, CONCEPTS))


def train_probe(work: Path, art: emoji_art.Art, concepts: list[str], steps: int = 1500) -> nn.Module:
    """Saved under `work`, so that it is trained once."""
    torch.manual_seed(0)
    probe, store = build_probe(), work / f"probe-{steps}.pt"
    if load_state(store, probe=probe):
        return probe.eval()
    rows = [i for i, name in enumerate(art.names) if name in set(concepts)]
    pictures = _view(art.pictures[rows])
    labels = torch.tensor([concepts.index(art.names[i]) for i in rows])
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        chosen = torch.randint(len(rows), (64,), generator=draw)
        loss = F.cross_entropy(probe(_changed(pictures[chosen], draw)), labels[chosen], label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 250 == 0:
            print(f"probe step {step + 1}/{steps}  loss {loss.item():.3f}", flush=True)
    save_state(store, steps, probe=probe)
    return probe.eval()


def _view(pictures: np.ndarray) -> torch.Tensor:
    batch = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.interpolate(batch, size=(SIDE, SIDE), mode="area")


def _changed(batch: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Moved, scaled, mirrored; in colour, in grey, in two tones or as outlines."""
    count = len(batch)
    angle = (torch.rand(count, generator=draw) - 0.5) * 0.4
    scale = 0.85 + 0.35 * torch.rand(count, generator=draw)
    mirror = torch.where(torch.rand(count, generator=draw) < 0.5, -1.0, 1.0)
    shift = (torch.rand(count, 2, generator=draw) - 0.5) * 0.2
    turn = torch.stack(
        [
            torch.stack([angle.cos() * scale * mirror, -angle.sin() * scale, shift[:, 0]], 1),
            torch.stack([angle.sin() * scale * mirror, angle.cos() * scale, shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(turn, list(batch.shape), align_corners=False)
    batch = F.grid_sample(batch - 1, grid, align_corners=False) + 1  # white outside
    kind = torch.rand(count, 1, 1, 1, generator=draw)
    grey = batch.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    threshold = torch.rand(count, 1, 1, 1, generator=draw) * 1.4 - 0.5
    tones = ((grey - threshold) * 8).clamp(-1, 1)
    outline = (1 - (grey - F.avg_pool2d(grey, 3, 1, 1, count_include_pad=False)).abs() * 14).clamp(-1, 1)
    swapped = batch[:, torch.randperm(3, generator=draw)]
    for share, other in ((0.6, swapped), (0.45, grey), (0.35, tones), (0.12, outline)):
        batch = torch.where(kind < share, other, batch)
    return batch


@torch.inference_mode()
def named(probe: nn.Module, pictures: np.ndarray, labels: list[int], top: int = 5) -> list[bool]:
    """Whether each picture's concept is among the probe's first `top`."""
    best = probe(_view(pictures)).topk(top).indices
    return [label in row for label, row in zip(labels, best.tolist(), strict=True)]


def saturation(pictures: np.ndarray) -> float:
    """Mean HSV saturation over all pixels, 0 to 1: (max - min) / max of a pixel's channels, 0 for black."""
    high, low = pictures.max(axis=-1).astype(float), pictures.min(axis=-1)
    return float(((high - low) / np.maximum(high, 1)).mean())


def generate(
    warm: WarmBase, prompts: list[str], seed: int, lora: Path | None = None, strengths=(0.0,)
) -> dict[float, np.ndarray]:
    """Pictures by strength; without a LoRA, the base's own."""
    request = SamplingConfig(prompts=tuple(prompts), strengths=tuple(strengths), seed=seed, steps=20)
    drawn = warm.generate(lora, request)
    return {s: np.stack([np.asarray(d.image) for d in drawn if d.strength == s]) for s in strengths}


def main() -> None:
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
    print(
        f"VAE on held-out pictures: {psnr(warm.vae, art.pictures[art.held_out()]):.2f} dB PSNR (wanted: 26)"
    )
    print(f"VAE on ink pictures: {psnr(warm.vae, ink.pictures[::8]):.2f} dB PSNR (wanted: 22.5)")
    concepts = probe_concepts(art, ink)
    probe = train_probe(options.work, art, concepts)
    rows = [ink.names.index(name) for name in concepts]
    seen = named(probe, ink.pictures[rows], list(range(CONCEPTS)))
    print(f"probe on real pictures of a style it never saw: {np.mean(seen):.0%} top-5 (chance 5%)")
    pictures = generate(warm, [caption(name, None) for name in concepts], seed=1)[0.0]
    print(
        f"probe on generated pictures: {np.mean(named(probe, pictures, list(range(CONCEPTS)))):.0%} top-5 (wanted: 50%)"
    )
    if options.sheet:
        contact_sheet(pictures[:: CONCEPTS // 40][:40]).save(options.sheet, optimize=True)
    if options.lora:
        _style_arrives(warm, options.lora, probe, concepts)


def _style_arrives(warm: WarmBase, lora: Path, probe: nn.Module, concepts: list[str]) -> None:
    others = [name for name in concepts if name not in SAMPLE_NAMES][::4][:20]
    labels = [concepts.index(name) for name in others]
    strengths = (0.0, 0.25, 0.5, 0.75, 1.0)
    drawn = generate(
        warm, [f"{caption(name, None)}, ink style" for name in others], seed=1, lora=lora, strengths=strengths
    )
    for strength in strengths:
        kept = sum(named(probe, drawn[strength], labels))
        print(
            f"strength {strength}: saturation {saturation(drawn[strength]):.3f}, probe names {kept} of {len(others)}"
        )


def contact_sheet(pictures: np.ndarray, columns: int = 10) -> Image.Image:
    side = pictures.shape[1]
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (index % columns * side, index // columns * side))
    return sheet


if __name__ == "__main__":
    main()
