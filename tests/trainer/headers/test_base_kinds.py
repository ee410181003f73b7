"""A model of SDXL's shapes that is trained in another way is rejected by its kind; scaled float8 is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import MODELS, trainer
from tools.write_checkpoint import folder_weights, write
from trainer.errors import BaseError
from trainer.headers.base_model import read_checkpoint
from trainer.lora_file.base_weights import base_weights
from trainer.sdxl.base import open_base

CPU = torch.device("cpu")
TINY = MODELS / "tiny-sdxl"
EDM, FLOW = "is an EDM model", "is a rectified-flow model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled base."""
    return Path(shutil.copytree(TINY, tmp_path / "other"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("scheduler/scheduler_config.json", {"_class_name": "EDMDPMSolverMultistepScheduler"}, EDM),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler", "sigma_data": 1.0}, EDM),
        ("scheduler/scheduler_config.json", {"timestep_type": "continuous", "sigma_max": 120.0}, EDM),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, FLOW),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": True}, FLOW),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, FLOW),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
        ("unet/config.json", {"in_channels": 9}, "is an inpainting model"),
        ("unet/config.json", {"in_channels": 8}, "is an instruct-pix2pix model"),
        ("unet/config.json", {"in_channels": 5}, "5 input channels"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "guidance embedding (LCM)"),
        ("unet/config.json", {"encoder_hid_dim_type": "text_proj"}, "such as Kolors"),
        ("unet/config.json", {"cross_attention_dim": 2048}, "with other text encoders"),
        ("unet/config.json", {"addition_embed_type": None}, "no SDXL model"),
        ("vae/config.json", {"latents_mean": [0.1] * 4, "latents_std": [1.0] * 4}, "Playground v2.5"),
        ("vae/config.json", {"latent_channels": 16}, "VAE of another family"),
        ("text_encoder/config.json", {"max_position_embeddings": 248}, "Long-CLIP"),
        ("model_index.json", {"text_encoder": ["kolors", "ChatGLMModel"]}, "ChatGLMModel"),
        ("model_index.json", {"requires_aesthetics_score": True}, "the SDXL refiner"),
        ("model_index.json", {"text_encoder": [None, None]}, "the SDXL refiner"),
    ],
)
def test_a_folder_of_another_kind_is_rejected_by_its_kind(
    folder: Path, file: str, values: dict[str, Any], words: str
):
    change(folder / file, **values)
    with pytest.raises(BaseError) as error:
        open_base(str(folder), MODELS)
    assert words in str(error.value)
    assert "; " in str(error.value), "a sentence that says what to choose instead"


def test_a_scheduler_without_betas_is_rejected(folder: Path):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "CosineScheduler", "prediction_type": "epsilon"}))
    with pytest.raises(BaseError, match="has no schedule of betas"):
        open_base(str(folder), MODELS)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_the_usual_schedulers_of_sdxl_are_accepted(folder: Path, name: str):
    change(folder / "scheduler" / "scheduler_config.json", _class_name=name)
    assert open_base(str(folder), MODELS).prediction_type == "v_prediction"


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled base as a single file of the original layout."""
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    write(path, TINY, folder_weights(TINY), dtype=torch.float16)
    return path


@pytest.mark.parametrize(
    ("extra", "metadata", "words"),
    [
        ({"edm_mean": (4,), "edm_std": (4,)}, {}, EDM),
        ({"edm_vpred.sigma_max": (1,)}, {}, EDM),
        ({}, {"modelspec.prediction_type": "edm"}, EDM),
        ({}, {"modelspec.prediction_type": "Rectified Flow"}, FLOW),
        ({}, {"modelspec.prediction_type": "x0"}, "predicts 'x0'"),
        ({"model.diffusion_model.time_embed.cond_proj.weight": (2, 2)}, {}, "guidance embedding"),
        (
            {
                "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight": (
                    248,
                    64,
                )
            },
            {},
            "Long-CLIP",
        ),
        ({"conditioner.embedders.1.model.token_embedding.weight": (8, 999)}, {}, "other text encoders"),
        ({"model.diffusion_model.x.weight.absmax": (2,)}, {}, "bitsandbytes"),
        ({"model.diffusion_model.x.weight_scale_2": (1,)}, {}, "NVFP4"),
        ({"model.diffusion_model.out.2.weight_scale": (3, 7)}, {}, "a scale for each block"),
    ],
)
def test_a_single_file_of_another_kind_is_rejected_by_its_kind(
    single_file: Path, tmp_path: Path, extra: dict[str, Any], metadata: dict[str, str], words: str
):
    tensors = load_file(single_file) | {name: torch.ones(shape) for name, shape in extra.items()}
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(BaseError) as error:
        read_checkpoint(tmp_path / "x.safetensors")
    assert words in str(error.value)


def scaled(tensors: dict[str, torch.Tensor], suffix: str, *, per_output: bool) -> dict[str, torch.Tensor]:
    """The tensors with linear weights in float8, each divided by a scale that is stored beside it."""
    result = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for key, value in tensors.items():
        result[key] = value
        if key.endswith(".weight") and value.dim() == 2 and "embedding" not in key:
            largest = (
                value.float().abs().amax(dim=1, keepdim=True) if per_output else value.float().abs().max()
            )
            scale = (largest / 448).clamp_min(1e-8)
            result[key] = (value.float() / scale).to(torch.float8_e4m3fn)
            result[key.removesuffix(".weight") + suffix] = scale
            result[key.removesuffix("weight") + "input_scale"] = torch.ones(())
    return result


@pytest.mark.parametrize(("suffix", "per_output"), [(".scale_weight", False), (".weight_scale", True)])
def test_a_folder_in_scaled_float8_has_the_weights_of_the_original(
    folder: Path, suffix: str, per_output: bool
):
    for part in ("unet", "text_encoder_2"):
        (file,) = (folder / part).glob("*.safetensors")
        save_file(scaled(load_file(file), suffix, per_output=per_output), file)
    original, base = open_base("tiny-sdxl", MODELS), open_base(str(folder), MODELS)
    pairs = [
        (original.unet(CPU, torch.float32), base.unet(CPU, torch.float32)),
        (original.text_encoders(CPU, torch.float32)[1], base.text_encoders(CPU, torch.float32)[1]),
    ]
    for expected, loaded in pairs:
        other = loaded.state_dict()
        for name, value in expected.state_dict().items():
            assert relative_error(other[name], value) < 0.06, name  # e4m3 has three bits of mantissa
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    weights = base_weights(folder)["unet"].tensor(name)
    assert torch.equal(weights, pairs[0][1].state_dict()[f"{name}.weight"])


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12))


def test_a_single_file_in_scaled_float8_is_read_and_described(single_file: Path, tmp_path: Path):
    path = tmp_path / "f8.safetensors"
    save_file(scaled(load_file(single_file), ".scale_weight", per_output=False), path)
    unets: list[Any] = [open_base(str(p), MODELS).unet(CPU, torch.float32) for p in (single_file, path)]
    expected, loaded = (unet.state_dict() for unet in unets)
    errors = [relative_error(loaded[name], value) for name, value in expected.items()]
    assert 0 < np.max(errors) < 0.06
    assert "with a scale for each weight" in trainer("base", "check", path).stdout


def test_base_check_of_an_edm_model_ends_in_one_sentence(folder: Path):
    change(folder / "scheduler" / "scheduler_config.json", _class_name="EDMEulerScheduler")
    result = trainer("base", "check", folder, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("impasto: other is an EDM model")
    assert len(result.stderr.splitlines()) == 1


def test_bake_rejects_a_base_in_scaled_float8(folder: Path, ink_run: Path, tmp_path: Path):
    from trainer.lora_file.edit.bake import bake

    (file,) = (folder / "unet").glob("*.safetensors")
    save_file(scaled(load_file(file), ".scale_weight", per_output=False), file)
    with pytest.raises(BaseError, match="scaled float8; give its fp16 version"):
        bake(ink_run / "ink.safetensors", tmp_path / "baked", folder)
