"""Tests that every registered method gets by being registered: its shipped YAML at the sizes of tiny.yaml.

Whatever the mathematics, a method must move its parameters, be the same after a stop, measure without disturbing
itself, and give the same bytes twice.
"""

import io
import random
import signal
import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from pretended import DEVICE, Accelerator, Far
from runs import assert_same_run, assert_same_state, load

from advml import registry
from advml.compose import compose, with_overrides
from advml.config import bind
from advml.contracts import Method
from advml.roots import config_root, members
from advml.runner import environment
from advml.runner.budget import Budget
from advml.runner.checkpoint import copied, tensors
from advml.runner.context import DTYPES, RunContext
from advml.runner.fit import check_fit
from advml.runner.folder import RunFolder
from advml.runner.loop import Loop
from advml.runner.randomness import numeric_settings, reseed
from advml.runner.recorder import Recorder, read
from advml.runner.run import Asked, load_view, resume, start
from advml.runner.signals import StopRequest

SIZES = yaml.safe_load((Path(__file__).parent / "tiny.yaml").read_text())
METHODS = sorted(members("method", [config_root()]))
CPU = torch.device("cpu")
COMMON = ("device=cpu", "threads=1", "progress=off", "figures=false", "checkpoint_seconds=0")
VARIANTS = [(method, variant) for method in METHODS for variant in SIZES.get(method, {})]
FIRST = {method: next(iter(SIZES[method])) for method in SIZES}


def marked(method, variant):
    """Slow but for a method's first variant."""
    marks = () if variant == FIRST[method] else pytest.mark.slow
    return pytest.param(method, variant, marks=marks, id=f"{method}-{variant}")


every_variant = pytest.mark.parametrize(("method", "variant"), VARIANTS, ids=["-".join(pair) for pair in VARIANTS])
every_method = pytest.mark.parametrize(("method", "variant"), [marked(*pair) for pair in VARIANTS])
"""A variant of each method; the others are slow. For what the runner does whatever the variant, in whole runs."""

WITHOUT_BATCH_NORM = {"dp_sgd"}  # it refuses what mixes examples
WITH_NORMS_OF_ITS_OWN = {"contrastive"}  # towers of transformers, which have no other
OF_A_SUPERNET = {"darts", "enas", "random_nas", "evolution", "reinforce", "local_search", "bayes_opt"}  # with its norms


def test_every_method_has_a_tiny_size():
    assert set(SIZES) == set(METHODS)
    assert all(SIZES.values())


def test_every_registered_method_has_a_file_and_every_file_a_method():
    names = {yaml.safe_load(path.read_text())["name"] for path in members("method", [config_root()]).values()}
    assert names == set(registry.BUILT_IN["method"])


@cache
def composed(method, variant):
    return compose([f"method={method}", *SIZES[method][variant].split(), *COMMON])[0]


def bound_to(method, variant, *overrides):
    bound = bind(with_overrides(composed(method, variant), overrides))
    check_fit(bound)
    return bound


class Driver:
    """A freshly set-up method under the runner's own loop; every checkpoint is kept as it would come from the disk."""

    def __init__(self, bound, folder, last=None, device=CPU):
        self.budget, self.checkpoints = Budget(), {}
        view = None if bound.dataset.name == "none" else load_view(bound, print)
        reseed(bound.run.seed, "setup")
        self.method: Method = bound.method.cls()
        precision = bound.run.precision
        view = None if view is None else view.to(device, DTYPES[precision])
        context = RunContext(bound.method.settings, view, bound.model, bound.run.seed, device, precision, self.budget)
        self.method.setup(context)
        self.recorder = Recorder(folder / "metrics.jsonl")
        self.loop = Loop(
            self.method, bound.run, self.recorder, self.budget, [], StopRequest(), self.keep, lambda entry: None
        )
        if last is not None:
            self.recorder.records = [{}]  # not the beginning: the evaluation before the first step is done
            self.loop.restore(last)

    def keep(self, last, best):
        buffer = io.BytesIO()
        torch.save(dict(last), buffer)
        buffer.seek(0)
        self.checkpoints[last["total"]] = torch.load(buffer, weights_only=True)

    def run(self):
        with numeric_settings(1, True):
            self.loop.run()
        self.recorder.close()
        return self


def without_place(checkpoint):
    """A checkpoint without the clock and the length of a file."""
    return {key: value for key, value in checkpoint.items() if key not in ("seconds", "metrics_bytes")}


@every_method
def test_parameters_really_change(method, variant, tmp_path):
    steps = "limits.steps=2"
    driver = Driver(bound_to(method, variant, steps), tmp_path)
    network = driver.method.result()
    before = copied({name: p for name, p in network.named_parameters() if p.requires_grad} if network else
                    driver.method.state_dict())  # fmt: skip
    driver.run()
    network = driver.method.result()
    after = ({name: p for name, p in network.named_parameters() if p.requires_grad} if network else
             driver.method.state_dict())  # fmt: skip
    pairs = list(zip(tensors(before, ""), tensors(after, ""), strict=False))
    assert pairs
    unmoved = [name for (name, old), (_, new) in pairs if old.shape == new.shape and torch.equal(old, new)]
    private = getattr(driver.method, "spending", None) is not None  # clients' own norms are then not handed out
    if network:
        assert {name.strip("/.") for name in unmoved} <= (driver.method.own if private else set())
    else:
        assert len(unmoved) < len(pairs)


@every_variant
def test_stopped_after_every_step_and_restored(method, variant, tmp_path):
    """Step k + 1 of a fresh object that was given the state of step k = step k + 1 of the object that went on."""
    live = Driver(bound_to(method, variant), tmp_path).run()
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    steps = sorted(live.checkpoints)
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 1
    for step, following in pairwise(steps):
        folder = tmp_path / str(step)
        folder.mkdir()
        bound = bound_to(method, variant, f"limits.steps={following}")
        restored = Driver(bound, folder, live.checkpoints[step])
        assert_same_state(copied(live.checkpoints[step]["method"]), copied(restored.method.state_dict()))
        restored.run()
        assert_same_state(without_place(live.checkpoints[following]), without_place(restored.checkpoints[following]))
        begin, end = (live.checkpoints[at]["metrics_bytes"] for at in (step, following))
        assert (folder / "metrics.jsonl").read_bytes() == lines[begin:end]


@every_method
def test_evaluating_changes_nothing(method, variant, tmp_path):
    results = []
    for every in ("1", "never"):
        folder = tmp_path / every
        folder.mkdir()
        driver = Driver(bound_to(method, variant, f"evaluate_every={every}"), folder).run()
        trained = [record for record in driver.recorder.records if record["split"] == "train"]
        evaluations = len(driver.recorder.records) - len(trained)
        results.append((trained, copied(driver.method.state_dict()), driver.budget.counts, evaluations))
    often, never = results
    assert often[0] == never[0]
    assert_same_state(often[1], never[1])
    assert often[2] == never[2]
    assert often[3] > never[3]


@every_method
def test_evaluating_twice_gives_the_same(method, variant, tmp_path):
    driver = Driver(bound_to(method, variant, "limits.steps=1"), tmp_path).run()
    state = copied(driver.method.state_dict())
    for split in ("train", "valid", "test"):
        reseed(0, "evaluate", split)
        first = read(driver.method.evaluate(split))
        reseed(0, "evaluate", split)
        assert read(driver.method.evaluate(split)) == first
    assert_same_state(state, copied(driver.method.state_dict()))


@every_method
def test_a_whole_run_twice_and_once_more_after_a_limit(method, variant, inside):
    first, second = (start(bound_to(method, variant), Asked("test")) for _ in range(2))
    assert first.state == second.state == "completed"
    assert_same_run(first.folder.path, second.folder.path)
    result = first.folder.result()
    assert load(first.folder / "checkpoints/last.pt")["total"] == result["budget"]["steps"]
    if result["parameters"] is not None:
        assert set(load(first.folder / "checkpoints/model.pt")) == {"recipe", "states", "prepare", "tasks"}
    steps = result["budget"]["steps"]
    limited = start(bound_to(method, variant, f"limits.steps={max(1, steps // 2)}"), Asked("test"))
    assert limited.state == "completed"
    assert resume(limited.folder, bound_to(method, variant)).state == "completed"
    assert_same_run(first.folder.path, limited.folder.path)


@every_method
def test_nothing_is_left_on_the_cpu(method, variant, tmp_path):
    with Accelerator():
        network = (
            Driver(bound_to(method, variant, "evaluate_every=never"), tmp_path, device=DEVICE).run().method.result()
        )
    assert network is None or all(type(value.data) is Far for value in network.state_dict().values())


@pytest.mark.slow
@every_variant
def test_on_another_device_all_is_the_same(method, variant, inside, monkeypatch):
    """Files and numbers of a whole run, and of one that was stopped and resumed there."""
    here = start(bound_to(method, variant), Asked("test")).folder
    monkeypatch.setattr(environment, "resolve_device", lambda wanted: DEVICE)
    with Accelerator():
        there = start(bound_to(method, variant), Asked("test")).folder
        steps = there.result()["budget"]["steps"]
        stopped = start(bound_to(method, variant, f"limits.steps={max(1, steps // 2)}"), Asked("test")).folder
        assert resume(stopped, bound_to(method, variant)).state == "completed"
    assert_same_run(there.path, stopped.path)
    files = [{path.relative_to(folder.path) for path in folder.path.rglob("*")} for folder in (here, there)]
    assert files[0] == files[1]
    drawn_otherwise = {"matching"}  # dropout: elsewhere tasks are computed all at once
    for one, other in zip(here.records(), there.records(), strict=True):
        assert one.keys() == other.keys()
        for key in () if method in drawn_otherwise else one:
            near = isinstance(one[key], float)
            assert other[key] == (pytest.approx(one[key], rel=1e-3, abs=1e-4) if near else one[key]), key


@every_method
def test_another_seed_is_another_run(method, variant, inside):
    runs = (bound_to(method, variant, f"seed={seed}", "limits.steps=1") for seed in (0, 1))
    first, second = (start(bound, Asked("test")).folder for bound in runs)
    assert first.records() != second.records()


def test_some_variant_has_batch_norm_and_dropout():
    for method in METHODS:
        if not registry.resolve("method", method).needs.model or method in OF_A_SUPERNET | WITH_NORMS_OF_ITS_OWN:
            continue
        found = [SIZES[method][variant] for variant in SIZES[method]]
        norm = "layer" if method in WITHOUT_BATCH_NORM else "batch"
        assert any(f"model.norm={norm}" in words and "model.dropout=" in words for words in found), method


def test_some_variant_has_two_phases(tmp_path):
    assert any(len(Driver(bound_to(*pair), tmp_path).loop.phases) >= 2 for pair in VARIANTS)


@pytest.mark.slow
@every_variant
def test_kills(method, variant, forks, inside, tmp_path):
    """Five kills at random moments."""
    chance = random.Random(f"{method} {variant}")
    tree = dict(bound_to(method, variant).tree)
    (tmp_path / "calm").mkdir()
    forks.run("start", tree, cwd=inside)  # the server is up
    began = time.monotonic()
    assert forks.run("start", tree, cwd=tmp_path / "calm").code == 0
    seconds = time.monotonic() - began
    (calm,) = (tmp_path / "calm").glob("outputs/*/*/*")
    kills = 0
    for _ in range(50):
        found = [path.parent for path in (inside / "outputs").glob("*/*/*/config.yaml")]
        waiting = [path for path in found if RunFolder.open(path).status()["state"] != "completed"]
        process = (forks.start("resume", str(waiting[0]), {}, cwd=inside) if waiting else
                   forks.start("start", tree, cwd=inside))  # fmt: skip
        ended = process.kill_after(chance.uniform(0, seconds)) if kills < 5 else process.wait()
        assert ended.code in (0, -signal.SIGKILL), ended.err
        kills += ended.code == -signal.SIGKILL
        if kills >= 5 and ended.code == 0 and not waiting[1:]:
            break
    assert kills >= 5
    for path in (inside / "outputs").glob("*/*/*/config.yaml"):
        assert_same_run(calm, path.parent)
