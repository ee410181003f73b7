"""Metadata of LoRA files: kohya's `ss_*`, `modelspec.*` of ModelSpec 1.0.1, and hashes of the tensors.

Captions and folder names are written only where the settings say so: anyone who gets the file can read them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

from trainer import SOFTWARE
from trainer.config import TrainConfig, block_values
from trainer.dataset.manifest import Manifest
from trainer.lora_file.dataset_metadata import BucketedImage, caption_entries, dataset_entries
from trainer.lora_file.folded_scale import with_one_alpha
from trainer.lora_file.modules import LoraModule


@dataclass(frozen=True, kw_only=True)
class Training:
    """Results of a training that its settings don't contain.

    Attributes:
        precision: dtype of the base during the training, as kohya names it.
        gradient_checkpointing: True if any activations were recomputed.
        steps: optimizer steps that were done; a stopped training has fewer than its settings ask for.
        pictures: training images read, repeats counted.
        started: seconds since 1970, as is `finished`.
        batches_per_epoch: of each process, as kohya counts them.
        processes: number of processes that `torchrun` started.
        images: every image with its bucket, once for each resolution.
        base_file: the checkpoint's file name, or that of its folder.
        vae_file: name of a VAE that was used in place of the base's; "" for its own.
        hashes: (short hash, SHA-256) of the files `base` and `vae`; a folder has none.
    """

    base_file: str
    prediction_type: str
    zero_terminal_snr: bool
    resolution: int
    precision: str
    gradient_checkpointing: bool = False
    steps: int
    pictures: int
    started: float
    finished: float
    epochs: int
    batches_per_epoch: int
    processes: int = 1
    images: tuple[BucketedImage, ...]
    vae_file: str = ""
    hashes: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def metadata(config: TrainConfig, manifest: Manifest, training: Training) -> dict[str, str]:
    """All metadata of a trained file except its hashes, which need the tensors."""
    return {**_kohya(config, manifest, training), **_modelspec(config, training)}


def _kohya(config: TrainConfig, manifest: Manifest, training: Training) -> dict[str, str]:
    """kohya's `ss_*` entries, with the names and values that sd-scripts writes."""
    dataset = dataset_entries(config, manifest, training.images, training.resolution)
    values: dict[str, Any] = {
        # A1111 hides a file with metadata but without this entry while an SDXL model is loaded.
        "base_model_version": "sdxl_base_v1-0",
        "v2": False,
        "output_name": config.name,
        **_base(training),
        **training_network(config),
        **_optimisation(config, training),
        **_objective(config, training),
        "num_batches_per_epoch": training.batches_per_epoch,
        "num_train_images": training.pictures,
        **dataset,
        **(caption_entries(config, manifest, dataset) if config.save_captions else {}),
        "training_started_at": training.started,
        "training_finished_at": training.finished,
        "session_id": int(training.started * 1000) % 2**32,
        "training_comment": f"trigger: {config.trigger}" if config.trigger else None,
    }
    return {f"ss_{name}": str(value) for name, value in values.items()}


def _optimisation(config: TrainConfig, training: Training) -> dict[str, Any]:
    """Optimizer, schedule, steps and precision."""
    text_rates = []
    if config.train_text_encoder_1:
        text_rates.append(config.text_encoder_1_learning_rate)
    if config.train_text_encoder_2:
        text_rates.append(config.text_encoder_2_learning_rate)
    return {
        "learning_rate": config.learning_rate,
        "unet_lr": config.learning_rate,
        "text_encoder_lr": text_rates or None,
        "optimizer": config.optimizer,
        "lr_scheduler": config.schedule,
        "lr_warmup_steps": config.warmup_steps,
        "max_grad_norm": config.max_grad_norm,
        "max_train_steps": config.steps,
        "steps": training.steps,
        "epoch": training.epochs,
        "num_epochs": training.epochs,
        "gradient_checkpointing": training.gradient_checkpointing,
        "gradient_accumulation_steps": config.accumulation,
        "mixed_precision": training.precision,
        "fp8_base_unet": config.quantised_base == "fp8",
        "quantised_base": config.quantised_base if config.quantised_base in ("int8", "nf4") else None,
        "seed": config.seed,
        "batch_size_per_device": config.batch,
        "total_batch_size": config.batch * config.accumulation * training.processes,
    }


def _objective(config: TrainConfig, training: Training) -> dict[str, Any]:
    """Loss, noise and conditioning; None for a setting that is off."""
    gamma = config.min_snr_gamma if config.snr_weighting == "min_snr" else None
    iterations = config.multires_noise_iterations
    return {
        "min_snr_gamma": gamma or None,
        "debiased_estimation": config.snr_weighting == "debiased",
        "noise_offset": config.noise_offset or None,
        "noise_offset_random_strength": config.noise_offset_random,
        "multires_noise_iterations": iterations or None,
        "multires_noise_discount": config.multires_noise_discount if iterations else None,
        "ip_noise_gamma": config.input_perturbation or None,
        "loss_type": "l2" if config.loss == "mse" else config.loss,
        "huber_schedule": config.huber_schedule,
        "huber_c": config.huber_delta,
        "v_parameterization": training.prediction_type == "v_prediction",
        "zero_terminal_snr": training.zero_terminal_snr,
        "scale_weight_norms": config.scale_weight_norms or None,
        "prior_loss_weight": config.prior_weight,
        "max_token_length": 75 * config.caption_windows,
        "clip_skip": config.clip_skip if config.clip_skip != 2 else None,
    }


def _base(training: Training) -> dict[str, Any]:
    """Names and hashes of the base and of a VAE beside it, as kohya computes them."""
    values: dict[str, Any] = {"sd_model_name": training.base_file}
    if training.vae_file:
        values["vae_name"] = training.vae_file
    for name, prefix in (("base", "sd_model"), ("vae", "vae")):
        if name in training.hashes:
            values[f"{prefix}_hash"], values[f"new_{prefix}_hash"] = training.hashes[name]
    return values


def training_network(config: TrainConfig) -> dict[str, Any]:
    """The entries of kohya's metadata that begin with `network_`, from the settings of a training."""
    # Readers divide by the rank; the scale of a rank-stabilised LoRA is alpha / sqrt(rank) (Kalajdzievski
    # 2023).
    stabiliser = config.rank**0.5 if config.rank_stabilised else 1
    arguments = {name: str(value) for name, value in _network_arguments(config).items() if value}
    return {
        "network_module": "networks.lora" if config.network in ("lora", "locon") else "lycoris.kohya",
        "network_dim": config.rank,
        "network_alpha": config.alpha * stabiliser,
        "network_dropout": config.network_dropout or None,
        "network_args": json.dumps(arguments),
    }


def _network_arguments(config: TrainConfig) -> dict[str, Any]:
    """The values of kohya's `--network_args` for these settings; the caller leaves false values out."""
    algorithm: dict[str, Any] = {
        "dora": {"algo": "lora", "dora_wd": True, "wd_on_output": "False"},
        "loha": {"algo": "loha"},
        "lokr": {"algo": "lokr", "factor": config.lokr_factor or -1},
    }.get(config.network, {})
    is_locon = config.network == "locon"
    return {
        **algorithm,
        "conv_dim": config.conv_rank if is_locon else None,
        "conv_alpha": config.conv_alpha if is_locon else None,
        "block_dims": ",".join(f"{value:g}" for value in block_values(config.block_ranks)),
        "rank_dropout": config.rank_dropout,
        "module_dropout": config.module_dropout,
        "loraplus_lr_ratio": config.lora_plus_ratio if config.lora_plus_ratio != 1 else None,
        "rs_lora": config.rank_stabilised,
    }


def network_metadata(modules: Iterable[LoraModule], previous: Mapping[str, str]) -> dict[str, str]:
    """Rank and alpha of modules as sd-scripts writes them, and the entries without which A1111 hides a file.

    Ranks and alphas that differ are `Dynamic`. They are those of the UNet's linear layers where there are
    any.

    Args:
        previous: metadata of the file that the modules come from; its module and version entries are kept.
    """
    modules = with_one_alpha(modules)
    of_unet = [module for module in modules if module.part == "unet"] or modules
    linear = [module for module in of_unet if not module.kernel]
    ranks = {module.rank for module in linear or of_unet}
    alphas = {module.alpha for module in linear if module.alpha is not None} or {m.alpha for m in of_unet}
    network_module = (
        "networks.lora" if all(module.network == "lora" for module in modules) else "lycoris.kohya"
    )
    return {
        "format": "pt",
        "ss_base_model_version": previous.get("ss_base_model_version", "sdxl_base_v1-0"),
        "ss_v2": previous.get("ss_v2", "False"),
        "ss_network_module": previous.get("ss_network_module", network_module),
        "ss_network_dim": _one_or_dynamic(ranks),
        "ss_network_alpha": _one_or_dynamic(alphas),
        "modelspec.sai_model_spec": previous.get("modelspec.sai_model_spec", "1.0.1"),
        "modelspec.architecture": previous.get("modelspec.architecture", "stable-diffusion-xl-v1-base/lora"),
    }


def _one_or_dynamic(values: Collection[float | None]) -> str:
    """The value as text, or sd-scripts' word for several values."""
    value = next(iter(values))
    return "Dynamic" if len(values) > 1 or value is None else f"{value:g}"


def _modelspec(config: TrainConfig, training: Training) -> dict[str, str]:
    """ModelSpec 1.0.1; entries without a value are left out."""
    side = training.resolution
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": "stable-diffusion-xl-v1-base/lora",
        "implementation": SOFTWARE,
        "title": config.title or config.name,
        "resolution": f"{side}x{side}",
        "date": datetime.fromtimestamp(training.finished, UTC).isoformat(timespec="seconds"),
        "prediction_type": "v" if training.prediction_type == "v_prediction" else "epsilon",
        "author": config.author,
        "license": config.licence,
        "trigger_phrase": config.trigger,
        "description": config.description,
        "tags": config.tags or config.preset,
        "usage_hint": f"Put {config.trigger!r} in the prompt." if config.trigger else "",
    }
    return {f"modelspec.{name}": value for name, value in values.items() if value}


def thumbnail(image: Image.Image) -> str:
    """A JPEG of at most 256 px as a data URL; small, because ComfyUI reads headers of at most 1 MiB."""
    small = image.convert("RGB")
    small.thumbnail((256, 256))
    data = io.BytesIO()
    small.save(data, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def with_hashes(tensors: dict[str, torch.Tensor], entries: dict[str, str]) -> dict[str, str]:
    """Metadata with its hashes, as kohya computes them: over a file with the `ss_*` entries alone.

    sshs_model_hash  SHA-256 of all bytes after the header; it does not depend on the metadata.
    sshs_legacy_hash SHA-256 of the 64 KiB at 1 MiB, its first eight digits.
    """
    blob = save(tensors, {key: value for key, value in entries.items() if key.startswith("ss_")})
    tensor_hash = hashlib.sha256(blob[8 + int.from_bytes(blob[:8], "little") :]).hexdigest()
    legacy = hashlib.sha256(blob[0x100000:0x110000]).hexdigest()[:8]
    return {
        **entries,
        "sshs_model_hash": tensor_hash,
        "sshs_legacy_hash": legacy,
        "modelspec.hash_sha256": f"0x{tensor_hash}",
    }
