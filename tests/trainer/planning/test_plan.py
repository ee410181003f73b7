"""Plans: the options that make a training fit into memory, and its estimated cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import INK, MODELS
from trainer.config import config_from
from trainer.dataset.manifest import Manifest
from trainer.dataset.scan import scan
from trainer.errors import MemoryShortError
from trainer.planning import plan as planning
from trainer.planning.budget import GB, process_bytes
from trainer.planning.memory import MemoryEstimate, WorkloadShape, caption_bytes, weight_bytes
from trainer.planning.plan import (
    MemoryOptions,
    Plan,
    config_of_earlier_run,
    encoding_tile_of_earlier_run,
    plan,
    sampling_limits_beside_models,
)
from trainer.runs import run
from trainer.sampling_config import SamplingLimits
from trainer.sdxl.base import ORIGINAL, open_base
from trainer.training.preflight import plan_training

CPU, CARD = torch.device("cpu"), torch.device("cuda")
SMALL = WorkloadShape(configs=MODELS / "tiny-sdxl", dtype=torch.float32, width=128, height=128)
SDXL = WorkloadShape(configs=ORIGINAL, dtype=torch.bfloat16, width=1024, height=1024)
CONTEXT = 0.6  # GB of a card's driver


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of measurements that the tests of this file share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def planned(kept: Path):
    """A function that returns plans for the bundled base."""

    def of(**settings) -> Plan:
        return plan(config_from({"steps": 100, **settings}), SMALL, CPU, kept)

    return of


def test_the_cheapest_options_that_fit_are_chosen(planned):
    free = planned()
    assert free.options == MemoryOptions()
    assert free.peak < free.budget
    tight = planned(memory_budget=(process_bytes(CPU) + free.estimate.peak - 1e6) / GB)
    assert tight.level == "feed-forward"
    assert tight.peak <= tight.budget
    assert "recomputing feed-forward layers, to fit" in tight.summary()


def test_text_encoders_that_stay_in_memory_are_counted(tmp_path: Path, monkeypatch):
    """Both stay if one of them trains, or if captions vary more than the cache can contain."""
    base = open_base("tiny-sdxl", MODELS)
    encoders = sum(weight_bytes(encoder) for encoder in base.text_encoders(CPU, torch.float32))
    manifest = scan(INK)

    def need(**settings) -> MemoryEstimate:
        return plan_training(
            config_from({"steps": 100, "batch": 4, **settings}), manifest, base, CPU, tmp_path
        ).estimate

    plain, learning = need(), need(train_text_encoder_1=True)
    assert learning.base - plain.base == encoders
    varied = need(shuffle_tags=True)
    assert varied.base == plain.base  # 24 captions in a few orders of their tags
    assert varied.cached >= plain.cached > 24 * caption_bytes(SMALL)
    monkeypatch.setattr("trainer.training.text_conditioning.MAX_CACHED_PROMPTS", 3)
    assert need(wildcards=True).base - plain.base == encoders


def test_sampling_is_divided_only_if_it_does_not_fit(kept: Path):
    shape = dataclasses.replace(SMALL, drawn_rows=20)

    def within(spare: float) -> Plan:
        settings = {"gradient_checkpointing": "all", "batch": 1, "quantised_base": "none"}
        need = plan(config_from(settings), shape, CPU, kept).estimate
        budget = (process_bytes(CPU) + need.base + need.adapter + need.drawing + spare) / GB
        return plan(config_from({**settings, "memory_budget": budget}), shape, CPU, kept)

    assert not within(+10e6).options.sampling_limits.pixels
    tight = within(-10e6)
    assert 0 < tight.options.sampling_limits.pixels < 20 * 128 * 128
    assert tight.peak <= tight.budget
    assert "samples generated in several passes" in tight.summary()


def test_images_are_encoded_in_tiles_only_if_whole_ones_do_not_fit(kept: Path):
    """Large images over a quantised base, whose steps take less memory than encoding an image."""
    large = dataclasses.replace(SDXL, width=1536, height=1536, drawn=(1024, 1024), drawn_rows=1)

    def within(budget: float) -> Plan:
        config = config_from(
            {"batch": 1, "quantised_base": "nf4", "gradient_checkpointing": "all", "memory_budget": budget}
        )
        return plan(config, large, CPU, kept)

    own = process_bytes(CPU) / GB + 0.07  # of bf16 kernels on a CPU
    wide = within(own + 20)
    caching = wide.estimate.before / GB
    assert wide.options.encoding_tile == 0
    assert wide.estimate.peak == wide.estimate.before
    assert "encoded in tiles" not in wide.summary()
    tight = within(own + caching - 0.1)
    assert tight.options.encoding_tile == 1024
    assert "images encoded in tiles, to fit" in tight.summary()
    assert tight.peak <= tight.budget
    assert tight.estimate.before < 0.6 * wide.estimate.before
    assert tight.estimate.peak < wide.estimate.peak


def test_a_preview_on_a_full_card_is_generated_in_parts(monkeypatch):
    def room(free: float) -> SamplingLimits:
        monkeypatch.setattr("trainer.planning.plan.free_bytes", lambda device: int(free))
        return sampling_limits_beside_models(SMALL.configs, torch.float32, (256, 256), 5, CPU)

    assert room(64e9) == SamplingLimits()
    assert room(100e6) == SamplingLimits()
    assert room(30e6).tile == 64
    assert 0 < room(30e6).pixels < 5 * 256 * 256


def test_options_are_ordered_by_their_cost(monkeypatch):
    """First time, then the precision of the optimizer, then that of the base."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    given = [
        (way.level, way.optimizer, way.quantised) for way in planning.option_candidates(config_from({}), CARD)
    ]
    assert given[:4] == [(level, "adamw", "none") for level in ("none", "feed-forward", "deep", "all")]
    assert list(dict.fromkeys((optimizer, base) for _, optimizer, base in given)) == [
        ("adamw", "none"),
        ("adamw8bit", "none"),
        ("adamw8bit", "int8"),
        ("adamw8bit", "nf4"),
    ]


@pytest.mark.parametrize("settings", [{"optimizer": "lion"}, {"optimizer_args": ("betas=(0.9, 0.99)",)}])
def test_an_optimizer_that_the_user_set_is_not_exchanged(settings, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    assert {way.optimizer for way in planning.option_candidates(config_from(settings), CARD)} == {
        settings.get("optimizer", "adamw")
    }


def test_without_a_card_or_bitsandbytes_the_optimizer_is_not_exchanged(monkeypatch):
    assert {way.optimizer for way in planning.option_candidates(config_from({}), CPU)} == {"adamw"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert {way.optimizer for way in planning.option_candidates(config_from({}), CARD)} == {"adamw"}


def test_sdxl_trains_and_samples_in_8_gb_and_quantised_in_6(kept: Path):
    """1024 px, batch 1, bf16, a strip of five samples, beside a card's context."""

    def within(budget: float, **settings) -> Plan:
        config = config_from({"batch": 1, "gradient_checkpointing": "all", **settings})
        mine = process_bytes(CPU) / GB - CONTEXT
        found = plan(dataclasses.replace(config, memory_budget=budget + mine), SDXL, CPU, kept)
        assert CONTEXT * GB + found.estimate.peak <= budget * GB
        return found

    in_8 = within(8)
    assert in_8.options.quantised == "none"
    assert in_8.options.sampling_limits.tile == 512
    assert "decoded in tiles" in in_8.summary()
    assert within(6).options.quantised == "int8"
    assert "the base model in int8" in within(6).summary()
    assert within(6, quantised_base="nf4").estimate.base < 2.0 * GB


def test_the_error_for_too_little_memory_names_settings_to_change(planned):
    with pytest.raises(
        MemoryShortError,
        match=r"needs \d\.\d GB .* the base model in nf4\), but only 0\.1 GB .*; try .*a smaller resolution",
    ):
        planned(memory_budget=0.1)
    with pytest.raises(
        MemoryShortError,
        match=r"batch 2 with accumulation 2, or gradient_checkpointing auto, or quantised_base auto",
    ):
        planned(memory_budget=0.1, gradient_checkpointing="none", quantised_base="none")


def test_options_that_the_user_set_are_used(planned):
    chosen = planned(gradient_checkpointing="deep", quantised_base="fp8")
    assert (chosen.level, chosen.options.quantised) == ("deep", "fp8")
    assert (
        config_from({"gradient_checkpointing": True}).gradient_checkpointing == "all"
    )  # the form of version 0.1


def test_a_resumed_run_uses_the_precision_optimizer_and_tiles_of_its_first_process(tmp_path: Path):
    made = run.create(tmp_path / "run", config_from({}), Manifest(folder="", items=()))
    assert config_of_earlier_run(made) == made.config
    assert encoding_tile_of_earlier_run(made) == 0
    made.emit("planned", words="", level="all", optimizer="adamw8bit", quantised="int8", tile=1024)
    made.emit("planned", words="", level="none", optimizer="adamw8bit", quantised="int8", tile=0)
    assert (config_of_earlier_run(made).optimizer, config_of_earlier_run(made).quantised_base) == (
        "adamw8bit",
        "int8",
    )
    assert encoding_tile_of_earlier_run(made) == 1024
