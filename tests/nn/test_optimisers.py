"""Our optimisers against torch.optim, schedules against torch.optim.lr_scheduler, and what starting them costs."""

import copy
import io
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import advml
from advml.config import _bind_settings, settings
from advml.errors import AdvmlError
from advml.nn.optimisers import (
    Adam,
    AdamW,
    OptimiserSettings,
    Rmsprop,
    Sgd,
    clip_gradients,
    learning_rate,
    make_optimiser,
    sweep,
)

ROOT = Path(advml.__file__).parents[1]
DEFAULTS = OptimiserSettings(
    optimiser="adam",
    lr=0.1,
    momentum=0.0,
    nesterov=False,
    betas=(0.9, 0.999),
    weight_decay=0.0,
    schedule="constant",
    warmup=0,
    step_every=7,
    step_factor=0.5,
    clip_norm=None,
)

RULES = {
    "sgd": (Sgd, torch.optim.SGD, {}),
    "sgd, decay": (Sgd, torch.optim.SGD, {"weight_decay": 0.1}),
    "momentum": (Sgd, torch.optim.SGD, {"momentum": 0.9}),
    "momentum, decay": (Sgd, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (Sgd, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "nesterov, decay": (Sgd, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (Adam, torch.optim.Adam, {}),
    "adam, betas, eps": (Adam, torch.optim.Adam, {"betas": (0.8, 0.95), "eps": 1e-3}),
    "adam, decay": (Adam, torch.optim.Adam, {"weight_decay": 0.1}),
    "adamw": (AdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
    "adamw, no decay": (AdamW, torch.optim.AdamW, {"weight_decay": 0.0}),
    "rmsprop": (Rmsprop, torch.optim.RMSprop, {}),
    "rmsprop, momentum, decay": (Rmsprop, torch.optim.RMSprop, {"momentum": 0.9, "weight_decay": 0.1}),
}


class Net(nn.Module):
    """Two layers always used, one used in some updates, one never."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8, dtype=dtype), nn.Linear(8, 3, dtype=dtype)
        self.sometimes, self.never = nn.Linear(8, 8, dtype=dtype), nn.Linear(2, 2, dtype=dtype)

    def forward(self, x, detour):
        hidden = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.sometimes(hidden)) if detour else hidden)


def train(network, optimiser, updates):
    dtype = network.first.weight.dtype
    set_lr = getattr(optimiser, "param_groups", None)
    for update in updates:
        generator = torch.Generator().manual_seed(update)
        x = torch.randn(16, 6, generator=generator, dtype=dtype)
        y = torch.randint(3, (16,), generator=generator)
        lr = 0.01 / (1 + update % 5)
        if set_lr:
            set_lr[0]["lr"] = lr
        else:
            optimiser.lr = lr
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x, detour=update % 3 == 1), y).backward()
        optimiser.step()


@pytest.mark.parametrize("rule", RULES)
def test_bit_equal_to_torch_in_float32(rule):
    """Adam in the fused form, the others in the foreach form."""
    ours, theirs, options = RULES[rule]
    form = "fused" if issubclass(ours, Adam) else "foreach"
    network, reference = Net(torch.float32), Net(torch.float32)
    train(network, ours(network.parameters(), lr=0.01, **options), range(50))
    train(reference, theirs(reference.parameters(), lr=0.01, **{form: True}, **options), range(50))
    for (name, mine), expected in zip(network.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, expected), name


FADING = ("momentum", "nesterov", "adam", "adam, betas, eps", "adamw", "rmsprop, momentum, decay")


@pytest.mark.parametrize("rule", FADING)
def test_what_fades_becomes_zero_and_weights_stay_bit_equal(rule):
    """Gradients that end, as of an input that is black in all of a new task, leave no subnormal numbers behind."""
    ours, theirs, options = RULES[rule]
    options = {**options, "weight_decay": 0.0}  # it would keep gradients from ending
    form = "fused" if issubclass(ours, Adam) else "foreach"
    generator = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(40, 30, generator=generator) for _ in range(2))
    mine, reference = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimiser, other = ours([mine], lr=0.001, **options), theirs([reference], lr=0.001, **{form: True}, **options)
    for update in range(1, 1500):
        for parameter in (mine, reference):
            parameter.grad = gradient * torch.randn(40, 30, generator=torch.Generator().manual_seed(update))
            if update > 100:
                parameter.grad[:, :20] = 0
        optimiser.step()
        other.step()
    assert torch.equal(mine, reference)
    faded = "momentum" if "momentum" in optimiser.slots else "mean"
    assert subnormal(optimiser.slots[faded][0]) == 0
    theirs_of_it = other.state[reference]["exp_avg" if faded == "mean" else "momentum_buffer"]
    assert subnormal(theirs_of_it) > 0  # the case is one
    assert (optimiser.slots[faded][0][:, :20] == 0).all()
    assert (optimiser.slots[faded][0][:, 20:] != 0).all()


def subnormal(values):
    return int(((values != 0) & (values.abs() < torch.finfo(values.dtype).tiny)).sum())


def test_a_sweep_keeps_what_is_not_a_number():
    values = torch.tensor([math.nan, math.inf, -math.inf, -1e-29, 1e-31, -1e-31, 1e-40])
    sweep({"mean": [values]})
    assert values[0].isnan()
    assert values[1:].tolist() == [math.inf, -math.inf, pytest.approx(-1e-29), 0, 0, 0]


@pytest.mark.parametrize("rule", RULES)
def test_equal_to_torch_parameter_by_parameter_in_float64(rule):
    ours, theirs, options = RULES[rule]
    network, reference, start = Net(torch.float64), Net(torch.float64), Net(torch.float64)
    train(network, ours(network.parameters(), lr=0.01, **options), range(50))
    train(reference, theirs(reference.parameters(), lr=0.01, foreach=False, **options), range(50))
    torch.testing.assert_close(network.state_dict(), reference.state_dict(), rtol=1e-12, atol=1e-13)
    assert not torch.equal(network.first.weight, start.first.weight)
    assert not torch.equal(network.sometimes.weight, start.sometimes.weight)
    assert torch.equal(network.never.weight, start.never.weight)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("done", [0, 13])
def test_state_survives_a_file_bit_for_bit(rule, done):
    ours, _, options = RULES[rule]
    network = Net(torch.float32)
    optimiser = ours(network.parameters(), lr=0.01, **options)
    train(network, optimiser, range(done))
    file = io.BytesIO()
    torch.save({"optimiser": optimiser.state_dict(), "network": network.state_dict()}, file)
    train(network, optimiser, range(done, 30))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = Net(torch.float32)
    again.load_state_dict(saved["network"])
    resumed = ours(again.parameters(), lr=99.0, **options)
    resumed.load_state_dict(saved["optimiser"])
    assert resumed.lr == (0.01 if done == 0 else 0.01 / (1 + (done - 1) % 5))
    train(again, resumed, range(done, 30))
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("rule", RULES)
def test_parameters_and_gradients_may_lie_in_memory_as_they_like(rule):
    """Filters with channels last, gradients and a saved state without."""
    ours, _, options = RULES[rule]
    draw = torch.Generator().manual_seed(0)
    values, *gradients = (torch.randn(4, 3, 2, 2, generator=draw) for _ in range(5))
    plain, last = nn.Parameter(values.clone()), nn.Parameter(values.to(memory_format=torch.channels_last))
    optimiser, other = ours([plain], lr=0.01, **options), ours([last], lr=0.01, **options)
    for gradient in gradients[:2]:
        plain.grad = last.grad = gradient
        optimiser.step()
        other.step()
    assert torch.equal(plain, last)
    other.load_state_dict(optimiser.state_dict())
    for gradient in gradients[2:]:
        plain.grad, last.grad = gradient, gradient.to(memory_format=torch.channels_last)
        optimiser.step()
        other.step()
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_loaded_state_is_a_copy():
    network = Net(torch.float32)
    optimiser = Adam(network.parameters(), lr=0.01)
    train(network, optimiser, range(3))
    before = copy.deepcopy(optimiser.state_dict())
    other = Net(torch.float32)
    twin = Adam(other.parameters(), lr=0.01)
    twin.load_state_dict(optimiser.state_dict())
    train(other, twin, range(3))
    after = optimiser.state_dict()
    assert after["updates"] == before["updates"] == [3, 3, 3, 3, 1, 1, 0, 0]
    for mine, kept in zip(after["slots"]["mean"], before["slots"]["mean"], strict=True):
        assert (mine is None and kept is None) or torch.equal(mine, kept)


def test_foreign_state_is_refused():
    network = Net(torch.float32)
    adam = Adam(network.parameters(), lr=0.01)
    with pytest.raises(AdvmlError, match="resume with the configuration"):
        adam.load_state_dict(Sgd(network.parameters(), lr=0.01).state_dict())
    with pytest.raises(AdvmlError, match="2 parameters"):
        adam.load_state_dict(Adam(network.first.parameters(), lr=0.01).state_dict())


@pytest.mark.parametrize("rule", RULES)
def test_step_leaves_gradients_and_zero_grad_removes_them(rule):
    ours, _, options = RULES[rule]
    network = Net(torch.float32)
    optimiser = ours(network.parameters(), lr=0.01, **options)
    train(network, optimiser, range(2))
    network(torch.ones(2, 6), detour=False).square().sum().backward()
    before = network.first.weight.grad.clone()
    optimiser.step()
    assert torch.equal(network.first.weight.grad, before)
    optimiser.zero_grad()
    assert all(parameter.grad is None for parameter in network.parameters())


def test_starting_and_stepping_loads_no_compiler():
    code = """
import sys
import torch
assert "torch._dynamo" not in sys.modules, "import torch alone loads it: this test means nothing"
from advml.nn.optimisers import Adam, AdamW, Rmsprop, Sgd, clip_gradients
for cls in (Sgd, Adam, AdamW, Rmsprop):
    layer = torch.nn.Linear(2, 2)
    optimiser = cls(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        layer(torch.ones(1, 2)).sum().backward()
        clip_gradients(layer.parameters(), 1.0)
        optimiser.step()
        optimiser.load_state_dict(optimiser.state_dict())
print([name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor"))])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "cls", "attributes"),
    [
        ({"optimiser": "sgd", "momentum": 0.9, "nesterov": True}, Sgd, {"momentum": 0.9, "nesterov": True}),
        ({"optimiser": "adam", "betas": (0.5, 0.6)}, Adam, {"betas": (0.5, 0.6)}),
        ({"optimiser": "adamw", "weight_decay": 0.3}, AdamW, {"weight_decay": 0.3}),
        ({"optimiser": "rmsprop", "momentum": 0.8}, Rmsprop, {"momentum": 0.8}),
    ],
)
def test_make_optimiser(changes, cls, attributes):
    optimiser = make_optimiser([nn.Parameter(torch.zeros(2))], replace(DEFAULTS, **changes))
    assert type(optimiser) is cls
    assert {name: getattr(optimiser, name) for name in attributes} == attributes
    assert optimiser.lr == DEFAULTS.lr


def shipped():
    return OmegaConf.to_container(OmegaConf.load(ROOT / "configs/method/_base/optimiser.yaml"))


def test_yaml_and_settings_name_the_same_keys():
    assert set(shipped()) == {field.name for field in fields(OptimiserSettings)}


@settings
class MethodSettings(OptimiserSettings):
    penalty: float


def bound(**changes):
    values = {key: value for key, value in shipped().items() if key in DEFAULTS.__dict__}
    mistakes = []
    return _bind_settings(MethodSettings, values | {"penalty": 1.0} | changes, "method.", mistakes), mistakes


def test_shipped_defaults_bind():
    config, mistakes = bound()
    assert not mistakes
    assert (config.optimiser, config.lr, config.betas, config.momentum) == ("adam", 0.001, (0.9, 0.999), 0.0)


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"optimiser": "sgd", "nesterov": True}, "method.nesterov: needs optimiser sgd with a momentum above 0"),
        (
            {"optimiser": "rmsprop", "nesterov": True, "momentum": 0.9},
            "method.nesterov: needs optimiser sgd with a momentum above 0",
        ),
        (
            {"momentum": 0.9},
            "method.momentum: adam has none; set momentum to 0 or choose sgd or rmsprop",
        ),
        ({"lr": 0}, "method.lr: must be greater than 0, not 0"),
        ({"betas": [0.9, 1.0]}, "method.betas.1: must be less than 1, not 1.0"),
    ],
)
def test_mistakes_take_one_line(changes, mistake):
    assert bound(**changes) == (None, [mistake])


# --- schedules and clipping ----------------------------------------------------------------------------------------

TOTAL = 40


def torch_rates(config):
    """The rates of TOTAL updates by torch's own schedulers."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    rest, schedulers = TOTAL - config.warmup, torch.optim.lr_scheduler
    main = {
        "constant": lambda: schedulers.ConstantLR(optimiser, factor=1.0),
        "cosine": lambda: schedulers.CosineAnnealingLR(optimiser, T_max=rest),
        "linear": lambda: schedulers.LinearLR(optimiser, start_factor=1.0, end_factor=0.0, total_iters=rest),
        "step": lambda: schedulers.StepLR(optimiser, config.step_every, config.step_factor),
    }[config.schedule]
    if config.warmup:
        first = schedulers.LinearLR(optimiser, start_factor=1 / config.warmup, total_iters=config.warmup - 1)
        scheduler = schedulers.SequentialLR(optimiser, [first, main()], milestones=[config.warmup])
    else:
        scheduler = main()
    rates = []
    for _ in range(TOTAL):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "step"])
@pytest.mark.parametrize("warmup", [0, 2, 9])
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
def test_schedule_equals_torch(schedule, warmup):
    config = replace(DEFAULTS, schedule=schedule, warmup=warmup)
    ours = [learning_rate(config, update, TOTAL) for update in range(TOTAL)]
    assert ours == pytest.approx(torch_rates(config), rel=1e-9, abs=1e-15)
    assert len(set(ours)) > 1 or (schedule == "constant" and warmup == 0)


def test_schedule_at_the_edges():
    cosine = replace(DEFAULTS, schedule="cosine")
    assert learning_rate(cosine, 0, 10) == cosine.lr
    assert learning_rate(cosine, 10, 10) == learning_rate(cosine, 11, 10) == 0.0
    assert learning_rate(replace(cosine, warmup=1), 0, 10) == cosine.lr
    assert learning_rate(replace(cosine, warmup=20), 9, 10) == pytest.approx(cosine.lr / 2)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clip_gradients(max_norm):
    network = Net(torch.float64)
    network(torch.ones(4, 6, dtype=torch.float64), detour=True).square().sum().backward()
    used = [parameter for parameter in network.parameters() if parameter.grad is not None]
    before = torch.cat([parameter.grad.flatten() for parameter in used])
    norm = clip_gradients(network.parameters(), max_norm)
    after = torch.cat([parameter.grad.flatten() for parameter in used])
    assert float(norm) == pytest.approx(float(before.norm()), rel=1e-12)
    assert len(used) == 6
    torch.testing.assert_close(after, before * min(1.0, max_norm / float(norm)), rtol=1e-5, atol=0)
    assert float(after.norm()) <= max_norm
