"""A last course for the bundled autoencoder's decoder alone, on latents that are a little wrong, as drawn ones are.

    torchrun --nproc-per-node 2 -m tools.train_decoder --work build/base

What a UNet draws is never quite what the encoder says of a picture: ink's black then came out as (9, 0, 5), which no eye
sees and every measure of saturation counts in full. The encoder stays as it is, so latents and UNet do too.
"""

from __future__ import annotations

import time

import torch

from tools import emoji_art
from tools.learner import Learner, parser_of
from tools.progress import join_processes, load_state
from tools.train_vae import build_vae, crops, psnr, squared_error

WRONG = 0.2  # deviation of the latents' error; theirs is about 1
BEYOND = 1.3  # black and white are asked for this far out, so that a small error leaves them pure


def main() -> None:
    parser = parser_of(__doc__, steps=150, muon_rate=1.5e-3, adam_rate=3e-4, save_every=50)
    parser.add_argument("--batch", type=int, default=8, help="whole pictures a step, over all processes")
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
    learner = Learner(vae, options.work / "decoder.pt", options)
    started = time.monotonic()
    for step in range(learner.first, options.steps):
        generator = torch.Generator().manual_seed(9_000_011 + step * world + rank)
        batch = crops(pictures, options.batch // world, emoji_art.SIZE, generator).to(
            memory_format=torch.channels_last
        )
        with torch.no_grad():
            latents = vae.encode(batch).latent_dist.mean
            latents = latents + WRONG * torch.rand(len(batch), 1, 1, 1, generator=generator) * torch.randn(
                latents.shape, generator=generator
            )
        loss = squared_error(vae.decode(latents).sample, batch, beyond=BEYOND)
        learner.step(step, loss)
        if rank == 0 and (step + 1) % 10 == 0:
            print(
                f"step {step + 1}/{options.steps}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if rank == 0:
            learner.keep(step + 1)
    if rank == 0:
        ink = emoji_art.load(options.work / "art", (emoji_art.SAMPLE_SET,)).pictures[::16]
        print(
            f"PSNR held out {psnr(vae, art.pictures[art.held_out()][:96]):.2f} dB, ink {psnr(vae, ink):.2f} dB",
            flush=True,
        )


if __name__ == "__main__":
    main()
