"""Trains the UNet and both text encoders of the bundled base on emoji art with their names.

    python -m tools.train_diffusion --work build/base
    torchrun --nproc-per-node 2 -m tools.train_diffusion --work build/base    # one process for each core

The bundled base had three trainings, each resumed from the state of the one before: `--steps 1900
--recoloured 0`, `--steps 3800` stopped after step 2800, and `--steps 3500`. Requires the autoencoder of
`tools.train_vae`.

Every `--save-every` steps the state is written; the same command resumes from it. Each step draws its images,
captions and noise from a generator seeded by the number of the step, so that a resumed training has the same
result as one without a break.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
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
from tools.learner import Learner, build_parser
from tools.progress import join_processes, load_state
from tools.recolour import recolour
from tools.train_vae import LATENT_CHANNELS, build_vae
from trainer.training.noise import add_noise, target

WIDTH_1, WIDTH_2 = 64, 80
STYLES = {emoji.package: emoji.style for emoji in emoji_art.TRAINING_SETS}


class Generator(nn.Module):
    """The parts that are trained together: UNet and both text encoders."""

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
            # CLIP's initial deviation of 0.02 is for long trainings; here, it would leave the text without
            # effect.
            for name, table in encoder.named_parameters():
                if "token_embedding" in name:
                    nn.init.normal_(table, std=0.5)
                elif "position_embedding" in name:
                    nn.init.normal_(table, std=0.15)

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        ids_1: torch.Tensor,
        ids_2: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the prediction of v, (N, 4, 16, 16).

        Args:
            ids_1: (N, 77) tokens of the first tokenizer; `ids_2` those of the second.
            time_ids: (N, 6), see `micro_conditions`.
        """
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
    """Returns the scheduler: SDXL's noise levels, with v-prediction.

    With epsilon-prediction a small UNet spends its training on copying its input: after 43,000 images the
    error was still 0.095 at timestep 980 of 1000, where the input is nearly the target.
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
    """Returns the caption of an image, such as `an owl, noto style`."""
    return emoji_art.article(name) + (f", {style}" if style else "")


def sampling_weights(art: emoji_art.Art) -> np.ndarray:
    """Returns the probability (n,) of each image.

    Objects of several sets have more; the hundreds of clock faces, buttons and professions have less.
    """
    counts: dict[str, int] = {}
    for name in art.names:
        counts[name] = counts.get(name, 0) + 1
    weights = np.array([float(counts[name]) ** 1.5 for name in art.names])
    rare = (
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
        if name.startswith(rare) or name.endswith((" button", " oclock", " thirty")):
            weights[row] *= 0.2
    return weights / weights.sum()


def micro_conditions(count: int, generator: torch.Generator) -> torch.Tensor:
    """Returns (count, 6): original height and width, crop top and left, target height and width.

    Vector art has no original size. Half of the rows have a random one, so that the base works with any.
    """
    side = float(emoji_art.SIZE)
    sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]]).repeat(count, 1)
    is_random = (torch.rand(count, generator=generator) < 0.5)[:, None]
    original = (32 * 2 ** (6 * torch.rand(count, 2, generator=generator))).round()
    sizes[:, :2] = torch.where(is_random, original, sizes[:, :2])
    corner = (32 * torch.rand(count, 2, generator=generator)).round()
    sizes[:, 2:4] = torch.where(is_random, corner, sizes[:, 2:4])
    return sizes


def encode_latents(
    work: Path, images: np.ndarray, kind: str = "latents"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns means and deviations (n, 4, 16, 16) of all images, cached in `work`.

    Each process encodes its share.
    """
    store = work / f"{kind}.pt"
    if not store.exists():
        vae = build_vae()
        load_state(work / "vae.pt", average=vae)
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        starts = range(32 * rank, len(images), 32 * world)
        with torch.inference_mode():
            mine = [_encoded(vae, images[start : start + 32]) for start in starts]
        parts: list[Any] = [mine]
        if world > 1:
            parts = [None] * world
            dist.all_gather_object(parts, mine)
        batches = [parts[number % world][number // world] for number in range(sum(map(len, parts)))]
        if rank == 0:
            means, deviations = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
            torch.save({"means": means, "deviations": deviations}, store)
        if world > 1:
            dist.barrier()
    saved = torch.load(store, weights_only=True)
    return saved["means"].float(), saved["deviations"].float()


def _encoded(vae: Any, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    posterior = vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
    return posterior.mean.half(), posterior.std.half()


def scaling_factor(means: torch.Tensor, deviations: torch.Tensor) -> float:
    """Returns the factor that gives the latents unit variance."""
    return float(1 / (means.var() + deviations.square().mean()).sqrt())


def recoloured_art(art: emoji_art.Art) -> tuple[np.ndarray, list[str]]:
    """Returns each image in other colours, and the words for them; always the same for the same art."""
    generator = np.random.default_rng(5)
    pairs = [recolour(image, generator) for image in art.images]
    return np.stack([image for image, _ in pairs]), [words for _, words in pairs]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One process's part of a batch of N."""

    latents: torch.Tensor  # (N, 4, 16, 16), scaled
    noise: torch.Tensor  # (N, 4, 16, 16)
    timesteps: torch.Tensor  # (N,)
    ids: list[torch.Tensor]  # (N, 77) for each tokenizer
    sizes: torch.Tensor  # (N, 6)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Encoded images and captions. Images from `count` on are the recoloured ones, in the same order."""

    means: torch.Tensor  # (n, 4, 16, 16), not scaled
    deviations: torch.Tensor
    scale: float
    ids: list[tuple[torch.Tensor, torch.Tensor]]  # for each tokenizer: (n, 77) without style, with style
    empty: list[torch.Tensor]  # for each tokenizer: (77,)
    weights: torch.Tensor  # (count,) probability of each image

    def batch(self, step: int, options: argparse.Namespace, mine: slice) -> Batch:
        """Draws the batch of a step; it depends on the number of the step alone.

        Args:
            mine: rows of this process. All processes draw the whole batch, so that the result does not depend
                on their number.
        """
        count, total = len(self.weights), options.batch
        generator = torch.Generator().manual_seed(7_000_003 + step)
        rows = torch.multinomial(self.weights, total, replacement=True, generator=generator)
        kind = torch.rand(total, generator=generator)
        timesteps = torch.randint(1000, (total,), generator=generator)[mine]
        noise = torch.randn(total, LATENT_CHANNELS, 16, 16, generator=generator)[mine]
        spread = torch.randn(total, LATENT_CHANNELS, 16, 16, generator=generator)[mine]
        sizes = micro_conditions(total, generator)[mine]
        if options.recoloured:
            is_recoloured = torch.rand(total, generator=generator) < options.recoloured
            rows = torch.where(is_recoloured, rows + count, rows)
        rows, kind = rows[mine], kind[mine, None]
        ids = []
        for (plain, styled), empty in zip(self.ids, self.empty, strict=True):
            captions = torch.where(kind < 0.35, plain[rows], styled[rows])
            ids.append(torch.where(kind > 0.9, empty, captions))  # caption dropout
        latents = (self.means[rows] + spread * self.deviations[rows]) * self.scale
        return Batch(latents=latents, noise=noise, timesteps=timesteps, ids=ids, sizes=sizes)


def prepare(options: argparse.Namespace) -> TrainingData:
    """Returns the data of a training, encoded once and cached in `options.work`."""
    work = options.work
    art = emoji_art.load(work / "art")
    means, deviations = encode_latents(work, art.images)
    scale = scaling_factor(means, deviations)
    captions = [(caption(n, None), caption(n, STYLES[s])) for n, s in zip(art.names, art.sets, strict=True)]
    if options.recoloured:
        images, words = recoloured_art(art)
        more = encode_latents(work, images, "recoloured")
        means, deviations = torch.cat([means, more[0]]), torch.cat([deviations, more[1]])
        captions += [
            (f"{plain}, {w}", f"{styled}, {w}") for (plain, styled), w in zip(captions, words, strict=True)
        ]
    write_tokenizers(work / "tokenizers", work / "art")
    tokenizers = [
        CLIPTokenizer.from_pretrained(work / "tokenizers" / name) for name in ("tokenizer", "tokenizer_2")
    ]
    plain, styled = ([pair[kind] for pair in captions] for kind in (0, 1))
    return TrainingData(
        means=means,
        deviations=deviations,
        scale=scale,
        ids=[(tokenize(tokenizer, plain), tokenize(tokenizer, styled)) for tokenizer in tokenizers],
        empty=[tokenize(tokenizer, [""])[0] for tokenizer in tokenizers],
        weights=torch.from_numpy(sampling_weights(art)),
    )


def train(data: TrainingData, options: argparse.Namespace, *, rank: int = 0, world: int = 1) -> Generator:
    """Trains the model, or resumes the training in `options.work`; returns the average of its weights.

    Args:
        options: of `build_parser`, `batch` (over all processes) and `recoloured`.
    """
    torch.manual_seed(0)
    model: Any = Generator()
    model = model.to(memory_format=torch.channels_last)
    average = Generator()
    learner = Learner(model, options.work / "diffusion.pt", options, average)
    alphas = noise_scheduler().alphas_cumprod
    per_process = options.batch // world
    mine = slice(rank * per_process, (rank + 1) * per_process)
    started, losses = time.monotonic(), []
    for step in range(learner.first, options.steps):
        batch = data.batch(step, options, mine)
        noisy = add_noise(batch.latents, batch.noise, batch.timesteps, alphas)
        noisy = noisy.to(memory_format=torch.channels_last)
        predicted = model(noisy, batch.timesteps, *batch.ids, batch.sizes)
        # All noise levels have the same weight. min-SNR would lower that of the high ones, which decide
        # shapes.
        goal = target("v_prediction", batch.latents, batch.noise, batch.timesteps, alphas)
        loss = (predicted - goal).square().mean()
        learner.step(step, loss, decay=min(1 - 10 / options.steps, (step + 1) / (step + 10)))
        losses.append(loss.item())
        if rank != 0:
            continue
        if (step + 1) % 50 == 0:
            rate = (step + 1 - learner.first) * options.batch / (time.monotonic() - started)
            mean = np.mean(losses[-50:])
            print(f"step {step + 1}/{options.steps}  loss {mean:.4f}  {rate:.1f} images/s", flush=True)
        learner.save_if_due(step + 1)
    return average


def main() -> None:
    """Runs the command."""
    parser = build_parser(__doc__, steps=3500, muon_rate=4e-3, adam_rate=1.5e-3, save_every=100)
    parser.add_argument("--recoloured", type=float, default=0.3, help="share of images in other colours")
    parser.add_argument("--batch", type=int, default=64, help="images in a step, over all processes")
    options = parser.parse_args()
    rank, world = join_processes()
    torch.set_flush_denormal(True)
    train(prepare(options), options, rank=rank, world=world)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Returns token ids (n, 77), with the padding of SDXL's pipeline."""
    encoded: Any = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return encoded.input_ids


if __name__ == "__main__":
    main()
