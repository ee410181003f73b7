"""Optimizers, schedules and weight averages against formulas and other implementations."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from trainer.adapter.flat_parameters import join_state, split_state
from trainer.adapter.lora import Adapter, LayerSpec
from trainer.adapter.targets import parameter_groups
from trainer.config import OPTIMIZERS, SCHEDULES, TrainConfig, config_from
from trainer.config.presets import preset_values
from trainer.errors import ConfigError
from trainer.training.checkpoint import _flat, _unflat
from trainer.training.ema import EmaWeights
from trainer.training.optim import build_optimizer, learning_rate_factor, parse_arguments

CPU = torch.device("cpu")
ON_CPU = [name for name in OPTIMIZERS if name != "adamw8bit"]  # adamw8bit needs a CUDA card


def config_of(optimizer: str, **settings) -> TrainConfig:
    needed = {
        "schedulefree": {"schedule": "constant"},
        "custom": {"optimizer_class": "pytorch_optimizer.AdaBelief"},
    }.get(optimizer, {})
    return TrainConfig(optimizer=optimizer, **{**needed, **settings})


def regression(
    optimizer_config: TrainConfig, steps: int, rate: float
) -> tuple[list[float], torch.nn.Parameter, torch.optim.Optimizer]:
    """Losses of fitting a 4 x 6 matrix, whose starting loss is 1."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.nn.Parameter(torch.zeros(4, 6)), torch.randn(64, 6, generator=generator)
    y = x @ torch.randn(6, 4, generator=generator)
    optimizer = build_optimizer(optimizer_config, [{"params": [weight], "lr": rate}], CPU)
    losses = []
    for _ in range(steps):
        loss = (x @ weight.T - y).square().mean() / y.square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, weight, optimizer


@pytest.mark.parametrize("name", ON_CPU)
def test_every_optimizer_halves_the_loss(name: str):
    steps, rate = (600, 1.0) if name == "prodigy" else (60, 0.05)  # prodigy estimates its rate first
    losses, _, _ = regression(config_of(name), steps, rate)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ON_CPU)
def test_every_optimizer_continues_from_its_saved_state_to_the_same_bits(name: str):
    rate = 1.0 if name == "prodigy" else 0.02
    _, unbroken, _ = regression(config_of(name), 6, rate)
    _, weight, optimizer = regression(config_of(name), 3, rate)
    again = torch.nn.Parameter(weight.detach().clone())
    resumed = build_optimizer(config_of(name), [{"params": [again], "lr": rate}], CPU)
    resumed.load_state_dict(_unflat(*_flat(optimizer.state_dict())))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    y = x @ torch.randn(6, 4, generator=generator)
    for _ in range(3):
        ((x @ again.T - y).square().mean() / y.square().mean()).backward()
        resumed.step()
        resumed.zero_grad()
    assert torch.equal(again, unbroken)


def test_lion_moves_by_the_sign_of_its_momentum():
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0, 3.0]]))
    optimizer = build_optimizer(config_of("lion", weight_decay=0.1), [{"params": [weight], "lr": 0.01}], CPU)
    expected, momentum = weight.detach().clone(), torch.zeros(1, 3)
    for gradient in (torch.tensor([[0.5, -0.1, 2.0]]), torch.tensor([[-5.0, -0.2, 0.1]])):
        weight.grad = gradient.clone()
        optimizer.step()
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * (0.9 * momentum + 0.1 * gradient).sign()
        momentum = 0.99 * momentum + 0.01 * gradient
    torch.testing.assert_close(weight.detach(), expected)


def test_optimizer_arguments_reach_the_optimizer():
    _, _, optimizer = regression(
        config_of("adamw", optimizer_args=("betas=(0.5, 0.6)", "eps = 1e-3", "amsgrad=True")), 1, 0.1
    )
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.5, 0.6), 1e-3, True)


def test_a_custom_class_gets_rate_decay_and_arguments():
    config = config_of(
        "custom", optimizer_class="torch.optim.SGD", optimizer_args=("momentum=0.9",), weight_decay=0.3
    )
    optimizer = build_optimizer(config, [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.7}], CPU)
    group = optimizer.param_groups[0]
    assert type(optimizer) is torch.optim.SGD
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.7, 0.9, 0.3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "adamw", "optimizer_args": ("colour=1",)}, "correct optimizer_args"),
        ({"optimizer": "adamw", "optimizer_args": ("eps",)}, "name=value"),
        ({"optimizer": "adamw", "optimizer_args": ("lr=1",)}, "learning rates"),
        ({"optimizer": "custom", "optimizer_class": "nowhere.Optimizer"}, "install its package"),
        ({"optimizer": "custom", "optimizer_class": "torch.nn.Linear"}, "no PyTorch optimizer"),
        ({"optimizer": "custom", "optimizer_class": "torch.optim.LBFGS"}, "more than a gradient"),
    ],
)
def test_an_optimizer_that_can_not_be_built_raises_an_error_with_a_remedy(settings: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        build_optimizer(
            TrainConfig(**settings), [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1}], CPU
        )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "custom"}, "needs optimizer_class"),
        ({"optimizer": "adamw", "optimizer_class": "torch.optim.SGD"}, "is used only with optimizer custom"),
        ({"optimizer": "schedulefree", "schedule": "cosine"}, "set schedule to constant"),
        ({"optimizer": "schedulefree", "schedule": "constant", "ema_decay": 0.9}, "set ema_decay to 0"),
    ],
)
def test_settings_that_contradict_each_other_are_rejected(settings: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**settings)


def test_a_preset_gives_schedulefree_a_constant_schedule():
    assert config_from(preset_values("style", 24, {"optimizer": "schedulefree"})).schedule == "constant"


@given(
    st.text(alphabet="abc_", min_size=1).filter(str.isidentifier),
    st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_any_literal_argument_is_parsed_to_its_value(name: str, value):
    assert parse_arguments((f"{name}={value!r}",)) == {name: value}


def factors(**settings) -> list[float]:
    config = TrainConfig(**{"steps": 100, "warmup_steps": 20, **settings})
    return [learning_rate_factor(config, step) for step in range(config.steps)]


def scheduled(make) -> list[float]:
    """Factors of one of transformers' schedules over 100 steps, at rate 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(100):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"schedule": "linear"}, lambda o: transformers.get_linear_schedule_with_warmup(o, 20, 100)),
        ({"schedule": "cosine"}, lambda o: transformers.get_cosine_schedule_with_warmup(o, 20, 100)),
        (
            {"schedule": "cosine_with_restarts", "restarts": 2},
            lambda o: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(o, 20, 100, 2),
        ),
        (
            {"schedule": "polynomial", "schedule_power": 3.0, "min_rate": 0.1},
            lambda o: transformers.get_polynomial_decay_schedule_with_warmup(
                o, 20, 100, lr_end=0.1, power=3.0
            ),
        ),
        ({"schedule": "inverse_sqrt"}, lambda o: transformers.get_inverse_sqrt_schedule(o, 20)),
        (
            {"schedule": "cosine", "min_rate": 0.2},
            lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup(o, 20, 100, min_lr_rate=0.2),
        ),
        (
            {"schedule": "wsd", "decay_share": 0.3},
            lambda o: transformers.get_wsd_schedule(
                o, num_warmup_steps=20, num_decay_steps=30, num_stable_steps=50, decay_type="1-sqrt"
            ),
        ),
    ],
    ids=lambda value: value["schedule"] if isinstance(value, dict) else "",
)
def test_after_warm_up_schedules_equal_those_of_transformers(settings: dict, make):
    assert factors(**settings)[20:] == pytest.approx(scheduled(make)[20:], abs=1e-9)


def test_rex_follows_the_paper():
    for progress, factor in zip((n / 80 for n in range(80)), factors(schedule="rex")[20:], strict=True):
        assert factor == pytest.approx((1 - progress) / (1 - progress / 2))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("least", [0.0, 0.25])
def test_every_schedule_warms_up_and_stays_between_its_minimum_and_one(schedule: str, least: float):
    rates = factors(schedule=schedule, min_rate=least, restarts=1)
    assert rates[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert rates[20] == 1.0
    assert all(least <= factor <= 1 for factor in rates[20:])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def small_adapter() -> tuple[Adapter, torch.nn.Module]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    adapter = Adapter()
    adapter.attach("unet", model, {"0": LayerSpec(rank=2, alpha=2.0)})
    adapter.init_weights(0)
    return adapter, model


def trained(
    adapter: Adapter,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: EmaWeights,
    steps: int,
) -> None:
    for _ in range(steps):
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step()


def test_the_average_is_exponential_and_its_decay_grows_from_zero():
    adapter, model = small_adapter()
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.05)
    average = EmaWeights(adapter, optimizer, 0.3)
    expected = adapter.tensors()
    for step in range(1, 6):
        trained(adapter, model, optimizer, average, 1)
        decay = min(0.3, step / (9 + step)) if step > 1 else 0.0
        expected = {
            name: decay * old + (1 - decay) * adapter.tensors()[name] for name, old in expected.items()
        }
    averaged = average.tensors()
    assert averaged is not None
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, expected[name])
        assert not torch.equal(tensor, adapter.tensors()[name])


@pytest.mark.parametrize("kind", ["ema", "schedulefree"])
def test_swapping_in_the_average_and_out_restores_the_trained_weights(kind: str):
    adapter, model = small_adapter()
    config = config_of("schedulefree") if kind == "schedulefree" else config_of("adamw")
    optimizer = build_optimizer(config, [{"params": adapter.parameters(), "lr": 0.05}], CPU)
    average = EmaWeights(adapter, optimizer, 0.9 if kind == "ema" else 0.0)
    trained(adapter, model, optimizer, average, 4)
    before = adapter.tensors()
    with average.swapped_in():
        within = adapter.tensors()
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter.tensors().items())
    assert any(not torch.equal(before[name], tensor) for name, tensor in within.items())
    average.apply()
    assert all(torch.equal(within[name], tensor) for name, tensor in adapter.tensors().items())


def test_the_average_of_schedulefree_is_its_evaluation_weights():
    adapter, model = small_adapter()
    optimizer = build_optimizer(
        config_of("schedulefree"), [{"params": adapter.parameters(), "lr": 0.05}], CPU
    )
    average = EmaWeights(adapter, optimizer, 0.0)
    trained(adapter, model, optimizer, average, 5)
    y, z = adapter.parameters()[1].detach().clone(), optimizer.state[adapter.parameters()[1]]["z"]
    with average.swapped_in():
        x = adapter.parameters()[1].detach().clone()
    torch.testing.assert_close(y, 0.1 * z + 0.9 * x)  # Defazio et al. 2024, equation 1, beta = 0.9
    assert math.isfinite(float(x.sum()))


@pytest.mark.parametrize("name", ["adamw", "prodigy", "lion", "schedulefree"])
def test_the_state_of_a_vector_is_saved_by_matrix_and_loaded_into_either(name: str):
    """Checkpoints hold one state for each matrix, also where the optimizer updates one vector of them all."""
    adapter, model = small_adapter()
    config = config_of(name, steps=9)
    optimizer = build_optimizer(config, parameter_groups(config, adapter), CPU)
    adapter.zero_grad()
    for _ in range(3):
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        adapter.mark_dirty()
        adapter.zero_grad()
    by_matrices = split_state(optimizer, adapter.flat_vectors)
    order = [
        parameter
        for flat in adapter.flat_vectors
        for parameter in (layer.tensors()[role] for layer, role in flat.members)
    ]
    assert (
        sum(len(group["params"]) for group in by_matrices["param_groups"])
        == len(order)
        == len(adapter.parameters())
    )
    # An optimizer of the matrices loads it as its own state.
    by_matrix = build_optimizer(
        config, [{"params": order, "lr": group["lr"]} for group in parameter_groups_of_matrices(adapter)], CPU
    )
    by_matrix.load_state_dict(copy.deepcopy(by_matrices))
    per_value = [
        key
        for key, value in optimizer.state[adapter.vectors()[0]].items()
        if getattr(value, "numel", lambda: 1)() > 1
    ]
    assert per_value
    assert all(by_matrix.state[order[0]][key].shape[-2:] == order[0].shape[-2:] for key in per_value)
    # An optimizer of the vectors loads it bit for bit.
    again = build_optimizer(config, [{"params": [vector], "lr": 1e-3} for vector in adapter.vectors()], CPU)
    again.load_state_dict(join_state(by_matrices, again, adapter.flat_vectors))
    for vector in adapter.vectors():
        for key in per_value:
            assert torch.equal(again.state[vector][key].flatten(), optimizer.state[vector][key].flatten())


def parameter_groups_of_matrices(adapter: Adapter) -> list[dict]:
    return [
        {"params": [layer.tensors()[role] for layer, role in flat.members], "lr": 1e-3}
        for flat in adapter.flat_vectors
    ]
