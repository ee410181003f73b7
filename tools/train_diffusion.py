"""Teaches the bundled base's UNet and both text encoders to draw emoji by name.

    python -m tools.train_diffusion --work build/base
    torchrun --nproc-per-node 2 -m tools.train_diffusion --work build/base    # a process a core

The bundled one was trained in three courses, each begun from the state of the one before: `--steps 1900 --recoloured 0`,
`--steps 3800` stopped after step 2800, and `--steps 3500`. Needs the autoencoder of `tools.train_vae`. Interrupted runs go
on from the last saved state by the same command: each step draws its pictures, captions and noise from a generator seeded
by the step's number.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tools import emoji_art
from tools.clip_vocabulary import write_tokenizers
from tools.learner import Learner, parser_of
from tools.progress import join_processes, load_state
from tools.recolour import recoloured
from tools.train_vae import LATENT_CHANNELS, build_vae
from trainer.training.noise import add_noise, target

WIDTH_1, WIDTH_2 = 64, 80
STYLES = {emoji.package: emoji.style for emoji in emoji_art.TRAINING_SETS}


class Generator(nn.Module):
    """The parts that learn together: UNet and both text encoders."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(_text_config(WIDTH_1, layers=2, act="quick_gelu"))
        self.text_encoder_2 = CLIPTextModelWithProjection(_text_config(WIDTH_2, layers=3, act="gelu"))
        shape: dict[str, Any] = dict(
            sample_size=16,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            layers_per_block=2,
            block_out_channels=(48, 96, 112),
            norm_num_groups=16,
            use_linear_projection=True,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(1, 2, 4),
            transformer_layers_per_block=(1, 1, 2),
            cross_attention_dim=WIDTH_1 + WIDTH_2,
            addition_embed_type="text_time",
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=WIDTH_2 + 6 * 32,
        )
        self.unet = UNet2DConditionModel(**shape)
        for encoder in (self.text_encoder, self.text_encoder_2):
            # CLIP's own start (0.02) would whisper to a UNet that has minutes to listen.
            for name, table in encoder.named_parameters():
                if "token_embedding" in name:
                    nn.init.normal_(table, std=0.5)
                elif "position_embedding" in name:
                    nn.init.normal_(table, std=0.15)

    def forward(self, latents, timesteps, ids_1, ids_2, time_ids):
        hidden_1 = self.text_encoder(ids_1, output_hidden_states=True).hidden_states[-2]
        text_2 = self.text_encoder_2(ids_2, output_hidden_states=True)
        text = torch.cat([hidden_1, text_2.hidden_states[-2]], dim=-1)
        added = {"text_embeds": text_2.text_embeds, "time_ids": time_ids}
        return self.unet(latents, timesteps, text, added_cond_kwargs=added).sample


def _text_config(width: int, *, layers: int, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        hidden_act=act,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )


def noise_scheduler() -> EulerDiscreteScheduler:
    """SDXL's own noise levels, with v as the answer, as in SDXL's v-prediction family.

    Asked for the noise, a small UNet spends its training on copying its input: after 43,000 pictures the error was
    still 0.095 at step 980 of 1000, where the input is nearly the answer.
    """
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="leading",
        steps_offset=1,
    )


def caption(name: str, style: str | None) -> str:
    return emoji_art.article(name) + (f", {style}" if style else "")


def sampling_weights(art: emoji_art.Art) -> np.ndarray:
    """Things that several sets draw are seen more; the hundreds of clock faces, buttons and professions less."""
    drawn_by: dict[str, int] = {}
    for name in art.names:
        drawn_by[name] = drawn_by.get(name, 0) + 1
    weights = np.array([float(drawn_by[name]) ** 1.5 for name in art.names])
    seldom = (
        "man ",
        "woman ",
        "person ",
        "men ",
        "women ",
        "people ",
        "family ",
        "kiss ",
        "couple ",
        "japanese ",
        "keycap ",
    )
    for row, name in enumerate(art.names):
        if name.startswith(seldom) or name.endswith((" button", " oclock", " thirty")):
            weights[row] *= 0.2
    return weights / weights.sum()


def micro_conditions(count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, 6) original height and width, crop top and left, target height and width.

    Art is vector, so it has no original size: half the rows name a random one, and the base learns to bear any.
    """
    side = float(emoji_art.SIZE)
    sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]]).repeat(count, 1)
    named = torch.rand(count, generator=generator) < 0.5
    sizes[:, :2] = torch.where(
        named[:, None], (32 * 2 ** (6 * torch.rand(count, 2, generator=generator))).round(), sizes[:, :2]
    )
    sizes[:, 2:4] = torch.where(
        named[:, None], (32 * torch.rand(count, 2, generator=generator)).round(), sizes[:, 2:4]
    )
    return sizes


def encode_latents(
    work: Path, pictures: np.ndarray, kind: str = "latents"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 4, 16, 16) means and deviations of every picture, kept in `work`; each process encodes its share."""
    store = work / f"{kind}.pt"
    if not store.exists():
        vae = build_vae()
        load_state(work / "vae.pt", average=vae)
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        parts: list[Any] = [None] * world
        with torch.inference_mode():
            mine = [
                _encoded(vae, pictures[start : start + 32])
                for start in range(32 * rank, len(pictures), 32 * world)
            ]
        if world > 1:
            dist.all_gather_object(parts, mine)
        else:
            parts = [mine]
        batches = [parts[number % world][number // world] for number in range(sum(map(len, parts)))]
        if rank == 0:
            torch.save(
                dict(zip(("means", "deviations"), map(torch.cat, zip(*batches, strict=True)), strict=True)),
                store,
            )
        if world > 1:
            dist.barrier()
    saved = torch.load(store, weights_only=True)
    return saved["means"].float(), saved["deviations"].float()


def _encoded(vae: Any, pictures: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    posterior = vae.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
    return posterior.mean.half(), posterior.std.half()


def scaling_factor(means: torch.Tensor, deviations: torch.Tensor) -> float:
    """What makes the latents of unit variance."""
    return float(1 / (means.var() + deviations.square().mean()).sqrt())


def recoloured_art(art: emoji_art.Art) -> tuple[np.ndarray, list[str]]:
    """Every picture once in other colours, and the words for them; the same for the same art."""
    draw = np.random.default_rng(5)
    pairs = [recoloured(picture, draw) for picture in art.pictures]
    return np.stack([picture for picture, _ in pairs]), [words for _, words in pairs]


def main() -> None:
    parser = parser_of(__doc__, steps=3500, muon_rate=4e-3, adam_rate=1.5e-3, save_every=100)
    parser.add_argument(
        "--recoloured", type=float, default=0.3, help="share of pictures that are shown in other colours"
    )
    parser.add_argument("--batch", type=int, default=64, help="pictures a step, over all processes")
    options = parser.parse_args()
    rank, world = join_processes()
    torch.set_flush_denormal(True)

    art = emoji_art.load(options.work / "art")
    means, deviations = encode_latents(options.work, art.pictures)
    scale = scaling_factor(means, deviations)
    captions = [(caption(n, None), caption(n, STYLES[s])) for n, s in zip(art.names, art.sets, strict=True)]
    if options.recoloured:
        pictures, words = recoloured_art(art)
        more = encode_latents(options.work, pictures, "recoloured")
        means, deviations = torch.cat([means, more[0]]), torch.cat([deviations, more[1]])
        captions += [
            (f"{plain}, {w}", f"{styled}, {w}") for (plain, styled), w in zip(captions, words, strict=True)
        ]
    write_tokenizers(options.work / "tokenizers", options.work / "art")
    tokenizers = [
        CLIPTokenizer.from_pretrained(options.work / "tokenizers" / t) for t in ("tokenizer", "tokenizer_2")
    ]
    ids = [[tokenize(tokenizer, [pair[k] for pair in captions]) for k in (0, 1)] for tokenizer in tokenizers]
    empty = [tokenize(tokenizer, [""])[0] for tokenizer in tokenizers]
    weights = torch.from_numpy(sampling_weights(art))

    torch.manual_seed(0)
    model: Any = Generator().to(memory_format=torch.channels_last)  # pyright: ignore
    learner = Learner(model, options.work / "diffusion.pt", options, average=Generator())
    alphas = noise_scheduler().alphas_cumprod
    per_process = options.batch // world
    mine = slice(rank * per_process, (rank + 1) * per_process)
    started, recent = time.monotonic(), []
    for step in range(learner.first, options.steps):
        draw = torch.Generator().manual_seed(7_000_003 + step)
        rows = torch.multinomial(weights, options.batch, replacement=True, generator=draw)
        kind = torch.rand(options.batch, generator=draw)
        timesteps = torch.randint(1000, (options.batch,), generator=draw)[mine]
        noise = torch.randn(options.batch, LATENT_CHANNELS, 16, 16, generator=draw)[mine]
        spread = torch.randn(options.batch, LATENT_CHANNELS, 16, 16, generator=draw)[mine]
        sizes = micro_conditions(options.batch, draw)[mine]
        if options.recoloured:
            rows = torch.where(
                torch.rand(options.batch, generator=draw) < options.recoloured, rows + len(art.names), rows
            )
        rows, kind = rows[mine], kind[mine]
        latents = (means[rows] + spread * deviations[rows]) * scale
        noisy = add_noise(latents, noise, timesteps, alphas).to(memory_format=torch.channels_last)
        text = []
        for tokenizer in (0, 1):
            chosen = torch.where((kind < 0.35)[:, None], ids[tokenizer][0][rows], ids[tokenizer][1][rows])
            text.append(torch.where((kind > 0.9)[:, None], empty[tokenizer], chosen))  # caption dropout
        predicted = model(noisy, timesteps, text[0], text[1], sizes)
        answer = target("v_prediction", latents, noise, timesteps, alphas)
        # All noise levels alike: shapes are decided at the high ones, which min-SNR weights would hush.
        loss = (predicted - answer).square().mean()
        learner.step(step, loss, decay=min(1 - 10 / options.steps, (step + 1) / (step + 10)))
        recent.append(loss.item())
        if rank == 0 and (step + 1) % 50 == 0:
            speed = (step + 1 - learner.first) * options.batch / (time.monotonic() - started)
            print(
                f"step {step + 1}/{options.steps}  loss {np.mean(recent[-50:]):.4f}  {speed:.1f} pictures/s",
                flush=True,
            )
        if rank == 0:
            learner.keep(step + 1)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """(n, 77) token ids, padded as SDXL's pipeline pads."""
    return tokenizer(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids


if __name__ == "__main__":
    main()
