"""merge and resize, and all commands on the command line: each new file has the expected change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from tests.trainer.lora_file.lora_samples import (
    ATTENTION,
    CONVOLUTION,
    TINY,
    Place,
    assert_same,
    by_command_line,
    changed_by_diffusers,
    changes_of,
    shape_of,
    write_lora,
)
from trainer.errors import LoraFileError
from trainer.lora_file.base_weights import base_weights
from trainer.lora_file.edit.convert import convert
from trainer.lora_file.edit.merge import Term, merge, term
from trainer.lora_file.edit.resize import resize
from trainer.lora_file.edit.svd import of_matrix, of_product
from trainer.lora_file.reader import read_modules


@settings(max_examples=25)
@given(
    weights=st.lists(st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    cut=st.integers(0, 6),
)
def test_a_concatenation_is_the_weighted_sum_also_of_different_modules(weights, seed, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")
    shapes = {
        (part, path): place.shape
        for part, w in base_weights(TINY).items()
        for path, place in w.places.items()
        if len(place.shape) >= 2
    }
    chosen = [
        ("unet", ATTENTION),
        ("unet", CONVOLUTION),
        ("text_encoder", "encoder.layers.0.mlp.fc1"),
        ("unet", "conv_in"),
    ]
    expected: dict[Place, torch.Tensor] = {}
    terms = []
    for number, weight in enumerate(weights):
        some = [place for n, place in enumerate(chosen) if (n + number + cut) % 3 or n == number % 4]
        changes = write_lora(
            folder / f"{number}.safetensors",
            {p: shapes[p] for p in some},
            seed=seed + number,
            rank=lambda n, r=number: 1 + (n + r) % 3,
        )
        terms.append(Term(folder / f"{number}.safetensors", weight))
        for place, change in changes.items():
            expected[place] = expected.get(place, torch.zeros(())) + weight * change
    merge(folder / "sum.safetensors", terms)
    assert_same(changes_of(folder / "sum.safetensors"), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_merged_file_changes_the_base_as_diffusers_does_with_both(places, tmp_path: Path, caplog):
    first = {
        place: shape for place, shape in places.items() if ".attn1." in place[1] or place[0] == "text_encoder"
    }
    second = {
        place: shape for place, shape in places.items() if ".attn" in place[1] or place[1] == CONVOLUTION
    }
    write_lora(tmp_path / "a.safetensors", first, seed=1, rank=lambda n: 2)
    write_lora(tmp_path / "b.safetensors", second, seed=2, rank=lambda n: 5)
    merge(
        tmp_path / "sum.safetensors",
        [Term(tmp_path / "a.safetensors", 0.7), Term(tmp_path / "b.safetensors", -0.4)],
    )
    union = {**first, **second}
    theirs = changed_by_diffusers(
        {tmp_path / "a.safetensors": 0.7, tmp_path / "b.safetensors": -0.4}, union, caplog
    )
    assert_same(changes_of(tmp_path / "sum.safetensors"), theirs, atol=1e-5)
    assert_same(changed_by_diffusers({tmp_path / "sum.safetensors": 1.0}, union, caplog), theirs, atol=1e-5)


@pytest.mark.parametrize("rank", [2, 4, 8])
def test_the_error_of_a_merge_by_svd_is_that_of_the_omitted_singular_values(rank: int, tmp_path: Path):
    place: Place = ("unet", CONVOLUTION)
    shapes: dict[Place, tuple[int, ...]] = {place: shape_of(CONVOLUTION)}
    one, two = (
        write_lora(tmp_path / f"{n}.safetensors", shapes, seed=n, rank=lambda n: 4)[place] for n in (1, 2)
    )
    terms = [Term(tmp_path / "1.safetensors", 1.5), Term(tmp_path / "2.safetensors", -1.0)]
    merge(tmp_path / "sum.safetensors", terms, method="svd", rank=rank)
    whole = 1.5 * one - two
    error = (changes_of(tmp_path / "sum.safetensors")[place] - whole).norm()
    left_out = torch.linalg.svdvals(whole)[
        rank:
    ].norm()  # Eckart & Young: no approximation of this rank errs less
    torch.testing.assert_close(error, left_out, rtol=1e-3, atol=1e-4)


def test_a_lora_minus_itself_is_a_file_that_changes_nothing(tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", {("unet", ATTENTION): shape_of(ATTENTION)})
    merge(
        tmp_path / "b.safetensors",
        [Term(tmp_path / "a.safetensors", 1), Term(tmp_path / "a.safetensors", -1)],
        method="svd",
        rank=4,
    )
    assert not changes_of(tmp_path / "b.safetensors")["unet", ATTENTION].abs().max() > 1e-6


@pytest.mark.parametrize(
    ("text", "file", "weight"),
    [
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors", "a.safetensors", 1),
        ("C:\\a.safetensors:-1", "C:\\a.safetensors", -1),
        ("C:\\a.safetensors", "C:\\a.safetensors", 1),
        ("style:ink.safetensors:1e-1", "style:ink.safetensors", 0.1),
        ("12:30:0.25", "12:30", 0.25),
    ],
)
def test_the_weight_is_read_from_the_right(text: str, file: str, weight: float):
    assert term(text) == Term(Path(file), weight)


@pytest.mark.parametrize("text", ["a.safetensors:0", "a.safetensors:inf"])
def test_a_weight_of_zero_or_infinity_is_refused(text: str):
    with pytest.raises(LoraFileError, match="weight"):
        term(text)


def test_loras_of_two_bases_are_not_merged(tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", {("unet", ATTENTION): (112, 144)})
    write_lora(tmp_path / "b.safetensors", {("unet", ATTENTION): (1280, 2048)})
    for how in ({}, {"method": "svd", "rank": 2}):
        with pytest.raises(LoraFileError, match="one base"):
            merge(
                tmp_path / "c.safetensors",
                [Term(tmp_path / "a.safetensors", 1), Term(tmp_path / "b.safetensors", 1)],
                **how,
            )


def test_merging_requires_a_rank_for_svd_and_refuses_one_for_concat(tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", {("unet", ATTENTION): (112, 144)})
    with pytest.raises(LoraFileError, match="--rank"):
        merge(tmp_path / "c.safetensors", [Term(tmp_path / "a.safetensors", 1)], method="svd")
    with pytest.raises(LoraFileError, match="concat keeps every rank"):
        merge(tmp_path / "c.safetensors", [Term(tmp_path / "a.safetensors", 1)], rank=4)


@settings(max_examples=40)
@given(
    out=st.integers(1, 12),
    inputs=st.integers(1, 12),
    rank=st.integers(1, 6),
    seed=st.integers(0, 999),
    share=st.floats(0.05, 1),
)
def test_singular_values_equal_those_of_torch_and_the_share_is_reached(out, inputs, rank, seed, share):
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(out, rank, generator=generator), torch.randn(rank, inputs, generator=generator)
    values = torch.linalg.svdvals(up @ down)
    for spectrum in (of_product(up, down), of_matrix(up @ down)):
        torch.testing.assert_close(spectrum.values, values[: len(spectrum.values)], rtol=1e-3, atol=1e-3)
        assert bool((values[len(spectrum.values) :] < 1e-3).all())
        size = spectrum.rank_for(share)
        assert spectrum.share(size) >= share - 1e-6
        assert size == 1 or spectrum.share(size - 1) < share
        left, right = spectrum.factors(len(spectrum.values))
        torch.testing.assert_close(left @ right, up @ down, rtol=1e-3, atol=1e-3)


def test_the_error_of_a_smaller_rank_is_that_of_the_omitted_singular_values(places, tmp_path: Path):
    some = dict(list(places.items())[::20])
    changes = write_lora(tmp_path / "a.safetensors", some, rank=lambda n: 6)
    layers = resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rank=2).layers
    small = changes_of(tmp_path / "b.safetensors")
    for module in layers:
        values = torch.linalg.svdvals(changes[module.part, module.path])
        error = (small[module.part, module.path] - changes[module.part, module.path]).norm()
        torch.testing.assert_close(error, values[2:].norm(), rtol=1e-3, atol=1e-4)
        assert module.share == pytest.approx(
            float(values[:2].square().sum() / values.square().sum()), abs=1e-4
        )


@pytest.mark.filterwarnings("ignore")
def test_ranks_by_energy_differ_and_are_still_read_right_by_diffusers(places, tmp_path: Path, caplog):
    some = {
        place: shape for place, shape in places.items() if ".attn" in place[1] or ".self_attn." in place[1]
    }
    write_lora(tmp_path / "a.safetensors", some, rank=lambda n: 3 + n % 6)
    layers = resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", energy=0.8, rank=4).layers
    assert len({module.rank for module in layers}) > 1
    assert max(module.rank for module in layers) <= 4
    assert all(module.share >= 0.8 or module.rank == 4 for module in layers)
    assert_same(
        changed_by_diffusers({tmp_path / "b.safetensors": 1.0}, some, caplog),
        changes_of(tmp_path / "b.safetensors"),
        atol=1e-5,
    )
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        assert file.metadata()["ss_network_dim"] == "Dynamic"
        assert "resized" in file.metadata()["ss_training_comment"]


def test_resizing_to_all_energy_keeps_the_change(places, tmp_path: Path):
    changes = write_lora(tmp_path / "a.safetensors", places)
    resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", energy=1)
    assert_same(changes_of(tmp_path / "b.safetensors"), changes, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"energy": 0.0}, {"energy": 95.0}])
def test_resizing_requires_a_rank_or_a_share(how: dict, tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", {("unet", ATTENTION): (112, 144)})
    with pytest.raises(LoraFileError, match="--energy"):
        resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **how)


def test_a_file_is_replaced_only_with_overwrite_and_never_in_part(places, tmp_path: Path, monkeypatch):
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_lora(source, places)
    out.write_bytes(b"precious")
    attempts = [
        lambda **k: convert(source, out, "kohya", **k),
        lambda **k: merge(out, [Term(source, 1)], **k),
        lambda **k: resize(source, out, rank=1, **k),
    ]
    for attempt in attempts:
        with pytest.raises(LoraFileError, match="--overwrite"):
            attempt()
    assert out.read_bytes() == b"precious"
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        attempts[0](overwrite=True)
    monkeypatch.undo()
    assert out.read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {
        source.name,
        out.name,
    }
    for attempt in attempts:
        attempt(overwrite=True)
        assert read_modules(out).modules


def test_values_that_do_not_fit_fp16_are_not_written(tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", {("unet", ATTENTION): shape_of(ATTENTION)})
    with pytest.raises(LoraFileError, match="does not fit float16"):
        merge(tmp_path / "b.safetensors", [Term(tmp_path / "a.safetensors", 1e7)], dtype=torch.float16)
    assert not (tmp_path / "b.safetensors").exists()


def test_all_commands_work_on_a_trained_file(ink_run: Path, tmp_path: Path, monkeypatch, capsys):
    def output_of(*arguments: str | Path) -> str:
        status, out, err = by_command_line(["lora", *arguments], monkeypatch, capsys)
        assert status == 0, err
        return out

    ink, base, again = ink_run / "ink.safetensors", tmp_path / "base", tmp_path / "again.safetensors"
    other, both, few = (tmp_path / f"{name}.safetensors" for name in ("other", "both", "few"))
    assert "names of diffusers" in output_of("convert", ink, other, "--to", "diffusers")
    assert "rank 32" in output_of("merge", both, f"{ink}:0.5", f"{other}:0.5")
    assert "squared singular values kept" in output_of(
        "resize", both, few, "--energy", "0.9", "--rank", "8", "--precision", "fp32"
    )
    assert {tensor.dtype for key, tensor in load_file(few).items() if key.endswith("lora_up.weight")} == {
        torch.float32
    }
    assert "weights of tiny-sdxl changed" in output_of(
        "bake", few, base, "--base", "tiny-sdxl", "--strength", "0.5"
    )
    assert "UNet" in output_of("extract", "tiny-sdxl", base, again, "--rank", "4")
    assert "LoRA" in output_of("inspect", few)
    # Both halves are the same change, so the sum is the trained one.
    expected = changes_of(ink)
    scale = max(float(change.abs().max()) for change in expected.values())
    assert_same(changes_of(both), expected, atol=2e-3 * scale)
