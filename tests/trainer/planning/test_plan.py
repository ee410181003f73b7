"""A training is made to fit the memory that there is, giving up least; and what it will take is told."""

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
CONTEXT = 0.6  # GB that a card's driver takes


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is counted once is kept, as between trainings."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def planned(kept: Path):
    """Plans of the bundled base."""

    def of(**settings) -> Plan:
        return plan(config_from({"steps": 100, **settings}), SMALL, CPU, kept)

    return of


def test_the_cheapest_way_to_fit_is_taken(planned):
    free = planned()
    assert free.options == MemoryOptions() and free.peak < free.budget
    tight = planned(memory_budget=(process_bytes(CPU) + free.estimate.peak - 1e6) / GB)
    assert (
        tight.level == "feed-forward"
        and tight.peak <= tight.budget
        and "recomputing feed-forward layers, to fit" in tight.summary()
    )


def test_text_encoders_that_stay_are_counted_whole(tmp_path: Path, monkeypatch):
    """One that learns keeps the other beside it, and so do captions of more kinds than are remembered."""
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
    assert varied.base == plain.base  # 24 captions in a few orders
    assert varied.cached >= plain.cached > 24 * caption_bytes(SMALL)
    monkeypatch.setattr("trainer.training.text_conditioning.MAX_CACHED_PROMPTS", 3)
    assert need(wildcards=True).base - plain.base == encoders


def test_a_drawing_is_divided_only_where_it_must_be(kept: Path):
    shape = dataclasses.replace(SMALL, drawn_rows=20)

    def within(spare: float) -> Plan:
        settings = {"gradient_checkpointing": "all", "batch": 1, "quantised_base": "none"}
        need = plan(config_from(settings), shape, CPU, kept).estimate
        budget = (process_bytes(CPU) + need.base + need.adapter + need.drawing + spare) / GB
        return plan(config_from({**settings, "memory_budget": budget}), shape, CPU, kept)

    assert not within(+10e6).options.sampling_limits.pixels
    tight = within(-10e6)
    assert 0 < tight.options.sampling_limits.pixels < 20 * 128 * 128 and tight.peak <= tight.budget
    assert "samples generated in several passes" in tight.summary()


def test_pictures_are_cached_in_tiles_only_where_the_whole_would_not_fit(kept: Path):
    """Larger ones over a quantised base: no step of theirs takes as much as encoding one whole."""
    large = dataclasses.replace(SDXL, width=1536, height=1536, drawn=(1024, 1024), drawn_rows=1)

    def within(budget: float) -> Plan:
        config = config_from(
            {"batch": 1, "quantised_base": "nf4", "gradient_checkpointing": "all", "memory_budget": budget}
        )
        return plan(config, large, CPU, kept)

    own = process_bytes(CPU) / GB + 0.07  # that bf16 takes on a CPU
    wide = within(own + 20)
    caching = wide.estimate.before / GB
    assert (
        wide.options.encoding_tile == 0
        and wide.estimate.peak == wide.estimate.before
        and "encoded in tiles" not in wide.summary()
    )
    tight = within(own + caching - 0.1)
    assert tight.options.encoding_tile == 1024 and "images encoded in tiles, to fit" in tight.summary()
    assert tight.peak <= tight.budget and tight.estimate.before < 0.6 * wide.estimate.before
    assert tight.estimate.peak < wide.estimate.peak


def test_a_preview_on_a_full_card_draws_in_parts(monkeypatch):
    def room(free: float) -> SamplingLimits:
        monkeypatch.setattr("trainer.planning.plan.free_bytes", lambda device: int(free))
        return sampling_limits_beside_models(SMALL.configs, torch.float32, (256, 256), 5, CPU)

    assert room(64e9) == SamplingLimits() and room(100e6) == SamplingLimits()
    assert room(30e6).tile == 64 and 0 < room(30e6).pixels < 5 * 256 * 256


def test_what_is_given_up_comes_in_order(monkeypatch):
    """Time, then the optimizer's digits, then the base's."""
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
def test_an_optimizer_that_was_chosen_is_kept(settings, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    assert {way.optimizer for way in planning.option_candidates(config_from(settings), CARD)} == {
        settings.get("optimizer", "adamw")
    }


def test_without_a_card_or_its_library_the_optimizer_stays(monkeypatch):
    assert {way.optimizer for way in planning.option_candidates(config_from({}), CPU)} == {"adamw"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert {way.optimizer for way in planning.option_candidates(config_from({}), CARD)} == {"adamw"}


def test_true_sdxl_trains_and_draws_in_8_gb_and_quantised_in_6(kept: Path):
    """1024 px, batch 1, bf16, a strip of five pictures; beside a card's context."""

    def within(budget: float, **settings) -> Plan:
        config = config_from({"batch": 1, "gradient_checkpointing": "all", **settings})
        mine = process_bytes(CPU) / GB - CONTEXT
        found = plan(dataclasses.replace(config, memory_budget=budget + mine), SDXL, CPU, kept)
        assert CONTEXT * GB + found.estimate.peak <= budget * GB
        return found

    in_8 = within(8)
    assert (
        in_8.options.quantised == "none"
        and in_8.options.sampling_limits.tile == 512
        and "decoded in tiles" in in_8.summary()
    )
    assert within(6).options.quantised == "int8" and "the base model in int8" in within(6).summary()
    assert within(6, quantised_base="nf4").estimate.base < 2.0 * GB


def test_a_training_that_cannot_fit_says_what_to_change(planned):
    with pytest.raises(
        MemoryShortError,
        match=r"needs \d\.\d GB .* the base model in nf4\), but only 0\.1 GB are available; try .*a smaller resolution",
    ):
        planned(memory_budget=0.1)
    with pytest.raises(
        MemoryShortError,
        match=r"batch 2 with accumulation 2, or gradient_checkpointing auto, or quantised_base auto",
    ):
        planned(memory_budget=0.1, gradient_checkpointing="none", quantised_base="none")


def test_what_was_chosen_is_kept(planned):
    chosen = planned(gradient_checkpointing="deep", quantised_base="fp8")
    assert (chosen.level, chosen.options.quantised) == ("deep", "fp8")
    assert (
        config_from({"gradient_checkpointing": True}).gradient_checkpointing == "all"
    )  # as runs of version 0.1 wrote it


def test_a_resumed_run_keeps_the_base_optimizer_and_tiles_that_it_began_with(tmp_path: Path):
    made = run.create(tmp_path / "run", config_from({}), Manifest(folder="", items=()))
    assert config_of_earlier_run(made) == made.config and encoding_tile_of_earlier_run(made) == 0
    made.emit("planned", words="", level="all", optimizer="adamw8bit", quantised="int8", tile=1024)
    made.emit("planned", words="", level="none", optimizer="adamw8bit", quantised="int8", tile=0)
    assert (config_of_earlier_run(made).optimizer, config_of_earlier_run(made).quantised_base) == (
        "adamw8bit",
        "int8",
    ) and encoding_tile_of_earlier_run(made) == 1024
