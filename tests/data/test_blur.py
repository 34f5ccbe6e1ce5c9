"""Blurry tasks: who gives which examples to whom, and what a stream makes of it."""

import random

import pytest
import torch
from test_stream import PARTS, SCENARIOS, divided, outputs, settings, stream, true_class, whose

from advml.data.blur import blurred, exchanged
from advml.data.stream import Stream
from advml.errors import ConfigError
from advml.runner.randomness import KeyedRng

# --- amounts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(200))
def test_each_gives_its_quota_and_receives_as_many(seed):
    draw = random.Random(seed)
    quotas = [draw.choice([draw.randint(0, 6), draw.randint(0, 60)]) for _ in range(draw.randint(2, 8))]
    amounts = exchanged(quotas)
    top = quotas.index(max(quotas))
    # The largest cannot get more than the others give.
    possible = [min(k, sum(quotas) - k) if task == top else k for task, k in enumerate(quotas)]
    assert amounts.sum(1).tolist() == amounts.sum(0).tolist() == possible
    assert amounts.diagonal().tolist() == [0] * len(quotas)
    assert int(amounts.min()) >= 0


@pytest.mark.parametrize("quota", [0, 1, 2, 7, 9, 100])
@pytest.mark.parametrize("tasks", [2, 3, 5, 10])
def test_equal_quotas_are_exchanged_evenly(quota, tasks):
    amounts = exchanged([quota] * tasks)
    others = amounts[~torch.eye(tasks, dtype=torch.bool)]
    assert int(others.max() - others.min()) <= 1
    assert amounts.sum(0).tolist() == [quota] * tasks


def test_examples_change_hands_class_by_class():
    target = torch.arange(6).repeat_interleave(100)
    tasks = [torch.arange(200 * number, 200 * number + 200) for number in range(3)]
    held = blurred(target, tasks, 0.3, lambda task: torch.Generator().manual_seed(task))
    for number, part in enumerate(held):
        counts = target[part].bincount(minlength=6)
        assert counts[2 * number : 2 * number + 2].tolist() == [70, 70]
        assert counts.tolist().count(15) == 4
        assert torch.equal(part, part.sort().values)


# --- streams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_example_is_in_one_task_and_sizes_stay(tasks, share, shuffle):
    splits = divided()
    chosen = {"scenario": "class", "tasks": tasks, "shuffle_classes": shuffle}
    sharp, made = stream(splits, **chosen), stream(splits, **chosen, blurry=share)
    for name in PARTS:
        assert [len(task.split(name)) for task in made] == [len(task.split(name)) for task in sharp]
        found = torch.cat([whose(task.split(name)) for task in made])
        assert torch.equal(found.sort().values, whose(getattr(splits, name)).sort().values)
    for task, before in zip(made, sharp, strict=True):
        assert task.label == before.label
        own = {int(label) for label in task.label.split("/")}
        for name in ("train", "valid"):
            part = task.split(name)
            assert torch.equal(part.target, true_class(whose(part)))
            strangers = sum(int(label) not in own for label in part.target)
            if tasks != 2 or share != 0.1:
                assert strangers > 0
            if tasks in (2, 5):  # tasks of equal size
                assert strangers == round(share * len(part))
        assert torch.equal(whose(task.test), whose(before.test))
        assert torch.equal(task.test.target, before.test.target)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_without_blur_tasks_hold_their_own_classes_in_the_order_of_the_data(scenario, shuffle):
    """An independent account of what a sharp stream is; a share too small to move an example changes nothing either."""
    splits = divided()
    shares = [0.0] if scenario == "task" else [0.0, 1e-6]
    for made in [stream(splits, scenario=scenario, shuffle_classes=shuffle, blurry=share) for share in shares]:
        for task in made:
            members = [int(label) for label in task.label.split("/")]
            expected = range(len(members)) if scenario == "domain" else members
            assert outputs(task) == sorted(expected)
            for name in PARTS:
                whole, part = getattr(splits, name), task.split(name)
                chosen = [place for place, label in enumerate(whole.target.tolist()) if label in members]
                assert torch.equal(part.inputs["image"], whole.inputs["image"][chosen])
                told = dict(zip(members, expected, strict=True))
                assert part.target.tolist() == [told[label] for label in whole.target[chosen].tolist()]
                assert part.prepare == whole.prepare


def test_the_exchange_is_keyed():
    splits = divided()
    once, again, other = (
        [whose(task.train).tolist() for task in stream(splits, seed=seed, scenario="class", blurry=0.2)]
        for seed in (1, 1, 2)
    )
    assert once == again != other


def test_classes_of_the_examples_at_hand_compete_from_then_on():
    splits = divided(each=40)
    made = stream(splits, scenario="class", blurry=0.4)
    present = [set(torch.cat([task.train.target, task.valid.target]).tolist()) for task in made]
    for index, task in enumerate(made):
        assert outputs(task) == sorted(present[index])
        assert len(present[index]) > 2
        for seen in range(6):
            competing = set().union(*present[: max(index + 1, seen)])
            assert made.mask(index, seen).nonzero().flatten().tolist() == sorted(competing)


def test_a_class_that_nobody_gave_does_not_compete():
    splits = divided(each=40)
    made = stream(splits, scenario="class", blurry=0.04)  # one of 51 examples goes to each of one or two others
    assert any(len(outputs(task)) < 10 for task in made)
    for task in made:
        assert {int(label) for label in task.label.split("/")} <= set(outputs(task))


@pytest.mark.parametrize("shuffle", [False, True])
def test_in_the_domain_scenario_examples_keep_the_label_they_had(shuffle):
    splits = divided()
    made = stream(splits, scenario="domain", blurry=0.3, shuffle_classes=shuffle)
    place = {int(label): number for task in made for number, label in enumerate(task.label.split("/"))}
    for task in made:
        assert outputs(task) == [0, 1]
        for name in PARTS:
            part = task.split(name)
            assert part.target.tolist() == [place[label] for label in true_class(whose(part)).tolist()]
        own = [int(label) for label in task.label.split("/")]
        assert set(true_class(whose(task.train)).tolist()) > set(own)


def test_groups_can_be_blurry_too():
    from test_series import divided as series
    from test_series import settings as by_groups

    splits = series("moons", "circles")
    made = Stream.of(splits, by_groups(scenario="class", blurry=0.25), KeyedRng(0))
    for number, task in enumerate(made):
        assert task.train.group.bincount().tolist() == ([108, 36] if number == 0 else [36, 108])
        assert task.test.group.unique().tolist() == [number]
        assert outputs(task) == [0, 1, 2, 3]


def test_the_record_tells_the_share():
    assert stream(scenario="class", blurry=0.1).describe()["blurry"] == 0.1
    assert "blurry" not in stream(scenario="class").describe()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scenario": "task"}, r"view\.blurry=0\.1: in the task scenario .*use view\.scenario=class or domain"),
        ({"tasks_by": "permutation", "scenario": "domain"}, r"view\.blurry=0\.1: every task by permutation has all"),
        ({"tasks_by": "rotation", "scenario": "class"}, r"view\.blurry=0\.1: .* rotation .*use view\.tasks_by=classes"),
    ],
)
def test_what_cannot_be_blurry_is_refused_in_one_line(changes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Stream.view_spec(divided().spec, settings(**changes, blurry=0.1))
    assert len(caught.value.mistakes) == 1
    assert "\n" not in str(caught.value)
