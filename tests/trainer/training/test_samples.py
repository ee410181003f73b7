"""Sample prompts with the flags of kohya's scripts, and the steps after which samples are generated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import INK, MODELS, trainer
from trainer.config import TrainConfig
from trainer.dataset.scan import scan
from trainer.errors import ConfigError
from trainer.sampling_config import parse_prompt_line
from trainer.sdxl.base import open_base
from trainer.training.samples import sample_configs, sample_is_due, sample_prompts_of

pytestmark = pytest.mark.usefixtures("shared_cache")


def configs_of(*prompts: str, **settings):
    return sample_configs(
        TrainConfig(sample_prompts=prompts, **settings), scan(INK), open_base("tiny-sdxl", MODELS)
    )


def test_flags_of_kohya_are_parsed():
    text, values = parse_prompt_line("a cat --n blurry, grey --w 832 --h 1216 --d 7 --l 6.5 --s 24")
    assert text == "a cat"
    assert values == {
        "negative": "blurry, grey",
        "width": 832,
        "height": 1216,
        "seed": 7,
        "guidance": 6.5,
        "steps": 24,
    }


@given(
    st.text(alphabet="abc ,.-", max_size=30).filter(lambda text: " --" not in f" {text}"),
    st.integers(0, 2**31 - 1),
    st.integers(1, 200),
)
def test_words_and_flags_of_any_prompt_are_parsed(text: str, seed: int, steps: int):
    assert parse_prompt_line(f"{text} --d {seed} --s {steps}") == (
        text.strip(),
        {"seed": seed, "steps": steps},
    )


@pytest.mark.parametrize("line", ["a --w", "a --q 3", "a --s 0", "a --d x", "a --l 99", "a --in rain"])
def test_an_unknown_flag_is_rejected(line: str):
    with pytest.raises(ConfigError, match="is not valid; the flags are --n, --w"):
        parse_prompt_line(line)


def test_a_size_that_the_base_can_not_generate_is_rejected():
    with pytest.raises(ConfigError, match="multiples of"):
        configs_of("a star --w 100")


def test_prompts_without_flags_share_a_batch_and_each_has_its_own_seed():
    configs = configs_of("a", "b", "c --d 3", "d --n blurry", "e", seed=10)
    assert [(first, config.prompts, config.seed, config.negative) for first, config in configs] == [
        (0, ("a", "b"), 10, ""),
        (2, ("c",), 3, ""),
        (3, ("d",), 13, "blurry"),
        (4, ("e",), 14, ""),
    ]
    assert sample_prompts_of(configs) == {"a", "b", "c", "d", "e", "blurry", ""}


def test_samples_are_due_after_each_interval_of_steps_or_epochs():
    def steps(config: TrainConfig, per_epoch: int = 4) -> list[int]:
        return [
            step
            for step in range(1, 13)
            if sample_is_due(config, step, (step - 1) // per_epoch, step // per_epoch)
        ]

    assert steps(TrainConfig()) == []
    assert steps(TrainConfig(sample_every=5)) == [5, 10]
    assert steps(TrainConfig(sample_every_epochs=1)) == [4, 8, 12]
    assert steps(TrainConfig(sample_every_epochs=2)) == [8]


def test_a_prompt_file_with_a_mistake_leaves_no_run_behind(tmp_path):
    (tmp_path / "prompts.txt").write_text("# mine\na star --s 2\na cat --w 100\n")
    done = trainer(
        "train",
        INK,
        "--output",
        tmp_path / "run",
        "--sample-prompt-file",
        tmp_path / "prompts.txt",
        check=False,
    )
    assert done.returncode == 1
    assert "multiples of" in done.stderr
    assert not (tmp_path / "run").exists()
