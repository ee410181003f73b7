"""A last course for the bundled autoencoder's decoder alone, on latents that are a little wrong, as drawn ones are.

    torchrun --nproc-per-node 2 -m tools.train_decoder --work build/base

What a UNet draws is never quite what the encoder says of a picture: ink's black then came out as (9, 0, 5), which no eye
sees and every measure of saturation counts in full. The encoder stays as it is, so latents and UNet do too.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from tools import emoji_art
from tools.muon import Muon, set_rates, split
from tools.progress import average_gradients, join_processes, load_state, save_state
from tools.train_vae import build_vae, crops, psnr, squared_error

WRONG = 0.2  # deviation of the latents' error; theirs is about 1
BEYOND = 1.3  # black and white are asked for this far out, so that a small error leaves them pure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=8, help="whole pictures a step, over all processes")
    parser.add_argument("--muon-rate", type=float, default=1.5e-3)
    parser.add_argument("--adam-rate", type=float, default=3e-4)
    options = parser.parse_args()
    rank, world = join_processes()
    torch.set_flush_denormal(True)
    art = emoji_art.load(options.work / "art")
    pictures = torch.from_numpy(art.pictures[~art.held_out()])
    vae = build_vae()
    load_state(options.work / "vae.pt", average=vae)
    vae = vae.to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    matrices, others = split(vae)
    muon = Muon(matrices, options.muon_rate)
    adam = torch.optim.AdamW(others, lr=options.adam_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    store = options.work / "decoder.pt"
    first = load_state(store, model=vae, muon=muon, adam=adam)
    started = time.monotonic()
    for step in range(first, options.steps):
        generator = torch.Generator().manual_seed(9_000_011 + step * world + rank)
        batch = crops(pictures, options.batch // world, emoji_art.SIZE, generator).to(memory_format=torch.channels_last)
        set_rates(step, options.steps, (muon, options.muon_rate), (adam, options.adam_rate))
        with torch.no_grad():
            latents = vae.encode(batch).latent_dist.mean
            latents = latents + WRONG * torch.rand(len(batch), 1, 1, 1, generator=generator) * torch.randn(
                latents.shape, generator=generator
            )
        loss = squared_error(vae.decode(latents).sample, batch, beyond=BEYOND)
        loss.backward()
        average_gradients([*matrices, *others])
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        if rank == 0 and (step + 1) % 10 == 0:
            print(f"step {step + 1}/{options.steps}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", flush=True)
        if rank == 0 and ((step + 1) % 50 == 0 or step + 1 == options.steps):
            save_state(store, step + 1, model=vae, muon=muon, adam=adam)
    if rank == 0:
        ink = emoji_art.load(options.work / "art", (emoji_art.SAMPLE_SET,)).pictures[::16]
        print(f"PSNR held out {psnr(vae, art.pictures[art.held_out()][:96]):.2f} dB, ink {psnr(vae, ink):.2f} dB", flush=True)


if __name__ == "__main__":
    main()
