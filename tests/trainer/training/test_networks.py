"""Whole trainings of each network: their files, their resumption, and the files that they start from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import INK, MODELS, trainer
from tests.trainer.adapter.test_lycoris import MIXED, config_of, in_unet, randomised
from trainer.config import config_from
from trainer.config.presets import preset_values
from trainer.dataset.scan import scan
from trainer.errors import LoraFileError
from trainer.lora_file.attach import start_from
from trainer.lora_file.describe import describe
from trainer.lora_file.writer import save_lora
from trainer.runs import events, run
from trainer.sdxl.base import open_base
from trainer.train import train
from trainer.training import checkpoint as state

pytestmark = pytest.mark.usefixtures("shared_cache")


@pytest.fixture(scope="module")
def base():
    return open_base("tiny-sdxl", MODELS)


QUICK = {
    "steps": 3,
    "batch": 2,
    "resolution": 64,
    "precision": "fp32",
    "rank": 4,
    "checkpoint_every": 2,
    "warmup_steps": 1,
    "sample_prompts": ("a star --w 64 --h 64 --s 1",),
    "thumbnail": "none",
    "include_layers": ("mid_block.*to_q", "mid_block.*to_out.0", "up_blocks.0.attentions.0.*to_v"),
}


def new_run(path: Path, **settings) -> run.Run:
    values = {**preset_values("style", 24), **QUICK, "name": "lora", **settings}
    return run.create(path, config_from(values), scan(INK))


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "lora", "include_layers": (), "block_ranks": MIXED, "train_feed_forward": False},
        {"network": "locon", "include_layers": (), "conv_rank": 2, "train_feed_forward": False},
        {"network": "dora", "lora_plus_ratio": 4.0},
        {
            "network": "loha",
            "train_text_encoder_1": True,
            "include_layers": ("*mid_block*to_q", "text_encoder.*self_attn.*"),
        },
        {"network": "lokr", "rank_stabilised": True, "scale_weight_norms": 0.01},
    ],
    ids=lambda settings: settings["network"],
)
def test_each_network_trains_to_a_checked_file_that_names_its_network(settings, tmp_path: Path):
    done = new_run(tmp_path / "run", **settings)
    assert train(done, MODELS) == "finished"
    assert (done.samples / "strip.png").is_file()
    description = dict(describe(done.lora_file))
    assert description["network"].lower() == settings["network"]
    assert description["ss_network_module"] in ("networks.lora", "lycoris.kohya")
    learned = load_file(state.checkpoints(done)[0] / "adapter.safetensors")
    # SDXL does not use the last layer of text encoder 1, so that layer gets no gradient.
    untrained = {name.rpartition(".")[0] for name, tensor in learned.items() if not bool(tensor.any())}
    assert all(name.startswith("text_encoder/encoder.layers.") for name in untrained)
    assert len({name.split(".")[2] for name in untrained}) <= 1


@pytest.mark.parametrize("network", ["lora", "dora", "lokr"])
def test_a_resumed_training_drops_out_the_same_parts_as_an_unbroken_one(
    network: str, tmp_path: Path, monkeypatch
):
    settings = {
        "network": network,
        "network_dropout": 0.2,
        "rank_dropout": 0.2,
        "module_dropout": 0.2,
        "scale_weight_norms": 0.5,
    }
    whole, broken = new_run(tmp_path / "whole", **settings), new_run(tmp_path / "broken", **settings)
    assert train(whole, MODELS) == "finished"
    emit = run.Run.emit

    def stop_at_two(self, kind, **fields):
        emit(self, kind, **fields)
        if kind == "step" and fields["step"] == 2:
            events.append(self.commands, "stop")

    monkeypatch.setattr(run.Run, "emit", stop_at_two)
    assert train(broken, MODELS) == "stopped"
    monkeypatch.undo()
    assert train(broken, MODELS) == "finished"
    files = [(state.checkpoints(one)[0] / "adapter.safetensors").read_bytes() for one in (whole, broken)]
    assert files[0] == files[1]
    undropped = new_run(tmp_path / "undropped", network=network, scale_weight_norms=0.5)
    train(undropped, MODELS)
    assert (state.checkpoints(undropped)[0] / "adapter.safetensors").read_bytes() != files[0]


def test_a_training_starts_from_a_file_and_resumes_after_the_file_is_deleted(tmp_path: Path):
    first = new_run(tmp_path / "first")
    train(first, MODELS)
    start = tmp_path / "start.safetensors"
    start.write_bytes(first.lora_file.read_bytes())
    unchanged = new_run(tmp_path / "unchanged", start_from=str(start), learning_rate=0.0, steps=2)
    assert train(unchanged, MODELS) == "finished"
    before, after = load_file(start), load_file(unchanged.lora_file)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    start.unlink()
    assert train(unchanged, MODELS) == "finished"


def test_settings_that_do_not_fit_leave_no_run_behind(tmp_path: Path):
    for arguments, word in (
        (["--set", 'include_layers=["attn2"]'], "matches no linear layer"),
        (["--set", f"start_from={tmp_path / 'none.safetensors'}"], "does not exist"),
        (["--set", "block_rates=1,2"], "block_rates must be 23 numbers"),
    ):
        done = trainer("train", INK, "--output", tmp_path / "run", *arguments, check=False)
        assert done.returncode == 1
        assert word in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "run").exists()


# Starting from a file.


@pytest.mark.parametrize(
    ("network", "format"),
    [("lora", "diffusers"), ("locon", "kohya"), ("dora", "kohya"), ("loha", "kohya"), ("lokr", "kohya")],
)
def test_a_training_starts_from_a_file_of_any_scale(base, network: str, format: str, tmp_path: Path):
    source, _ = in_unet(base, config_of(network))
    save_lora(tmp_path / "a.safetensors", randomised(source), {}, format=format)
    fresh, _ = in_unet(base, config_of(network, alpha=3.0, conv_alpha=5.0))
    start_from(tmp_path / "a.safetensors", fresh)
    for (_, _, original), (_, _, loaded) in zip(source.walk(), fresh.walk(), strict=True):
        torch.testing.assert_close(loaded.change(), original.change(), rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"network": "loha"}, "and this training makes a LoHa"),
        ({"rank": 8}, "rank 4"),
        ({"train_feed_forward": False}, "adapts"),
    ],
)
def test_a_file_that_does_not_fit_the_training_is_rejected(base, settings, word: str, tmp_path: Path):
    source, _ = in_unet(base, config_of("lora"))
    save_lora(tmp_path / "a.safetensors", source, {})
    fresh, _ = in_unet(base, config_of(**{"network": "lora", **settings}))
    with pytest.raises(LoraFileError, match=word):
        start_from(tmp_path / "a.safetensors", fresh)


@pytest.mark.parametrize("factor", [2, 4])
def test_lokr_factor_limits_the_first_matrix_of_lokr(base, factor: int):
    adapter, _ = in_unet(base, config_of("lokr", lokr_factor=factor))
    shapes = [tuple(layer.tensors()["lokr_w1"].shape) for _, _, layer in adapter.walk()]
    assert max(max(shape) for shape in shapes) == factor
