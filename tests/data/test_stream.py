"""Streams: which examples, labels, outputs and preparations each task has, in every scenario."""

from dataclasses import replace

import pytest
import torch

from advml.contracts import Classes, Real, Spec, Split
from advml.data.prepare import Rotate
from advml.data.source import Loaded, SplitSettings, split
from advml.data.stream import Stream, StreamSettings
from advml.errors import ConfigError
from advml.runner.randomness import KeyedRng
from advml.spec import Stream as Modality

CPU = torch.device("cpu")
SHAPE = (1, 5, 6)
SCENARIOS = ["task", "domain", "class"]
PARTS = ["train", "valid", "test"]


def divided(classes=10, each=20, shape=SHAPE, seed=0):
    """Images whose first pixel is the number of the example, split 64 : 16 : 20."""
    generator = torch.Generator().manual_seed(1)
    count = classes * each
    stored = torch.randint(256, (count, *shape), generator=generator).double()
    stored.flatten(1)[:, 0] = torch.arange(count).double()
    target = torch.arange(classes).repeat(each)
    settings = SplitSettings(
        valid=0.2, test=0.2, limit=None, split_seed=None, normalise="standard", pca=None, keep_classes=None
    )
    spec = Spec({"image": shape}, Classes(classes))
    return split(Loaded(Split({"image": stored}, target)), spec, settings, KeyedRng(seed))


def settings(**changes):
    values = {
        "tasks": 5,
        "tasks_by": "classes",
        "scenario": "task",
        "shuffle_classes": False,
        "angle": 180.0,
        "permute_first": False,
        "pad": 0,
        "blurry": 0.0,
    }
    return StreamSettings(**values | changes)


def stream(splits=None, seed=0, **changes):
    return Stream.of(divided() if splits is None else splits, settings(**changes), KeyedRng(seed))


def whose(part):
    return part.inputs["image"].flatten(1)[:, 0].long()


def outputs(task):
    return task.outputs.nonzero().flatten().tolist()


def ready(part):
    return part.batch(slice(None)).inputs["image"]


# --- by classes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_split_by_classes_is_disjoint_and_covers(scenario, shuffle):
    splits = divided()
    made = stream(splits, scenario=scenario, shuffle_classes=shuffle)
    assert len(made) == 5
    for name in PARTS:
        whole = getattr(splits, name)
        found = torch.cat([whose(task.split(name)) for task in made])
        assert torch.equal(found.sort().values, whose(whole).sort().values)
        for task in made:
            assert len(task.split(name)) == len(whole) // 5
    held = [int(part) for task in made for part in task.label.split("/")]
    assert sorted(held) == list(range(10))
    assert (held == list(range(10))) != shuffle


def true_class(numbers, classes=10):
    return numbers % classes  # targets run 0, 1, …, 9, 0, 1, …


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_classes_keep_their_own_outputs(scenario, shuffle):
    for task in stream(scenario=scenario, shuffle_classes=shuffle):
        members = [int(part) for part in task.label.split("/")]
        assert outputs(task) == sorted(members)
        for name in PARTS:
            part = task.split(name)
            assert torch.equal(part.target, true_class(whose(part)))
            assert set(part.target.tolist()) == set(members)


@pytest.mark.parametrize("shuffle", [False, True])
def test_domain_tasks_share_outputs_by_their_place(shuffle):
    made = stream(scenario="domain", shuffle_classes=shuffle)
    assert made.spec.target == Classes(2)
    for task in made:
        members = [int(part) for part in task.label.split("/")]
        assert outputs(task) == [0, 1]
        for name in PARTS:
            part = task.split(name)
            assert [members[place] for place in part.target.tolist()] == true_class(whose(part)).tolist()


def test_the_order_of_classes_is_keyed():
    once, again, other = (
        [task.label for task in stream(seed=seed, shuffle_classes=True)] for seed in (1, 1, 2)
    )  # fmt: skip
    assert once == again != other


@pytest.mark.parametrize(("tasks", "sizes"), [(3, [4, 3, 3]), (4, [3, 3, 2, 2])])
def test_uneven_tasks(tasks, sizes):
    made = stream(tasks=tasks)
    assert [len(outputs(task)) for task in made] == sizes
    assert made.spec.target == Classes(10)
    assert torch.equal(sum(task.outputs.long() for task in made), torch.ones(10, dtype=torch.int64))


def test_one_class_a_task_where_all_compete():
    made = stream(tasks=10, scenario="class")
    assert [outputs(task) for task in made] == [[label] for label in range(10)]


def test_a_class_without_examples_leaves_its_task_the_others():
    splits = divided()
    test = splits.test.take((splits.test.target != 3).nonzero().flatten())
    made = stream(replace(splits, test=test))
    assert set(made[1].test.target.tolist()) == {2}
    assert outputs(made[1]) == [2, 3]


# --- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_a_tasks_own_outputs_compete(scenario):
    made = stream(scenario=scenario)
    for index, task in enumerate(made):
        for seen in range(6):
            assert torch.equal(made.mask(index, seen), task.outputs)


@pytest.mark.parametrize(("tasks", "starts"), [(5, [2, 4, 6, 8, 10]), (3, [4, 7, 10])])
def test_all_classes_seen_compete(tasks, starts):
    """Those of the task itself too, where it is still to come."""
    made = stream(scenario="class", tasks=tasks)
    for index in range(tasks):
        for seen in range(tasks + 1):
            competing = starts[max(index, seen - 1)]
            assert made.mask(index, seen).nonzero().flatten().tolist() == list(range(competing))


# --- permutations -------------------------------------------------------------------------------------------------


def orders(made):
    """The order of each task, read off an image whose prepared values all differ; the first must be natural."""
    found = []
    values = torch.arange(30).double().reshape(1, *SHAPE)
    for task in made:
        of_parts = [part.prepare["image"][1:] for part in (task.train, task.valid, task.test)]
        assert of_parts[0] == of_parts[1] == of_parts[2]
        moved = values
        for step in of_parts[0]:
            moved = step(moved)
        found.append(moved.flatten().long().tolist())
    return found


def test_permuted_tasks_hold_all_examples_in_their_own_order():
    splits = divided()
    made = stream(splits, tasks_by="permutation", scenario="domain")
    found = orders(made)
    assert found[0] == list(range(30))
    assert all(sorted(order) == list(range(30)) for order in found)
    assert len({tuple(order) for order in found}) == 5
    for task, order in zip(made, found, strict=True):
        for name in PARTS:
            natural = getattr(splits, name)
            assert torch.equal(task.split(name).target, natural.target)
            # The normalisation acts in the natural order, and is followed by the permutation.
            assert torch.equal(ready(task.split(name)).flatten(1), ready(natural).flatten(1)[:, order])


def test_permutations_are_keyed():
    once, again, other = (orders(stream(seed=seed, tasks_by="permutation")) for seed in (1, 1, 2))
    assert once == again
    assert once[0] == other[0]
    assert all(one != two for one, two in zip(once[1:], other[1:], strict=True))


def test_more_tasks_leave_the_first_ones_alone():
    few, many = (orders(stream(tasks_by="permutation", tasks=tasks)) for tasks in (2, 4))
    assert many[:2] == few


@pytest.mark.parametrize("tasks_by", ["permutation", "rotation"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_outputs_of_transformed_tasks(tasks_by, scenario):
    made = stream(tasks_by=tasks_by, scenario=scenario, tasks=3)
    assert made.spec.target == Classes(10 if scenario == "domain" else 30)
    for number, task in enumerate(made):
        first = 0 if scenario == "domain" else 10 * number
        assert outputs(task) == list(range(first, first + 10))
        for name in PARTS:
            part = task.split(name)
            assert torch.equal(part.target, true_class(whose(part)) + first)


# --- rotations ----------------------------------------------------------------------------------------------------


def test_rotated_tasks_are_turned_before_they_are_normalised():
    splits = divided(shape=(1, 9, 9))
    made = stream(splits, tasks_by="rotation", scenario="domain", tasks=4)
    assert [task.label for task in made] == ["natural", "45°", "90°", "135°"]
    assert torch.equal(ready(made[0].train), ready(splits.train))
    (normalise,) = splits.train.prepare["image"]
    for task, degrees in zip(list(made)[1:], (45.0, 90.0, 135.0), strict=True):
        for name in PARTS:
            natural = getattr(splits, name)
            expected = normalise(Rotate(degrees)(natural.inputs["image"]))
            assert torch.equal(ready(task.split(name)), expected)
    black = normalise(torch.zeros(1, 1, 1, 1))
    corner = ready(made[1].train)[:, 0, 0, -1]  # turned in from outside
    torch.testing.assert_close(corner, black.flatten().expand(len(corner)))


# --- borders, and an order for the first task too ------------------------------------------------------------------


@pytest.mark.parametrize("tasks_by", ["classes", "permutation", "rotation"])
def test_a_border_is_black_and_comes_before_all_else(tasks_by):
    plain, bordered = (stream(tasks=2, tasks_by=tasks_by, scenario="domain", pad=pad) for pad in (0, 2))
    assert bordered.spec.inputs == {"image": (1, 9, 10)}
    first, wide = (ready(made[0].train) for made in (plain, bordered))
    assert torch.equal(wide[..., 2:-2, 2:-2], first)
    black = plain[0].train.prepare["image"][-1].to(CPU, torch.float64)(torch.zeros(1, 1, 1, 1))
    edge = wide.clone()
    edge[..., 2:-2, 2:-2] = black
    torch.testing.assert_close(edge, black.expand_as(edge))
    if tasks_by == "permutation":
        ordered, unordered = (ready(bordered[place].train).flatten(1) for place in (1, 0))
        assert torch.equal(ordered.sort(1).values, unordered.sort(1).values)
        assert not torch.equal(ordered, unordered)
    if tasks_by == "rotation":
        turned = Rotate(90.0)(torch.nn.functional.pad(bordered[1].train.inputs["image"], [2] * 4).double())
        normalise = plain[0].train.prepare["image"][-1].to(CPU, torch.float64)
        torch.testing.assert_close(ready(bordered[1].train), normalise(turned))


def test_the_first_task_may_have_an_order_too():
    natural = stream(tasks=3, tasks_by="permutation", scenario="domain")
    ordered = stream(tasks=3, tasks_by="permutation", scenario="domain", permute_first=True)
    assert [task.label for task in natural] == ["natural", "order 1", "order 2"]
    assert [task.label for task in ordered] == ["order 1", "order 2", "order 3"]
    assert set(natural.each()) == set(ordered.each()) == {"task1", "task2", "task3"}
    examples = [ready(task.train).flatten(1) for task in (natural[0], *ordered)]
    assert all(torch.equal(one.sort(1).values, examples[0].sort(1).values) for one in examples)
    assert not any(torch.equal(a, b) for n, a in enumerate(examples) for b in examples[:n])
    assert torch.equal(examples[2], ready(natural[1].train).flatten(1))  # the others keep theirs


# --- what a stream needs ------------------------------------------------------------------------------------------


def spec_of(classes=10, shape=SHAPE):
    return Spec({"image": shape}, Classes(classes))


PADDED = Spec({"frames": (5, 3), "there": (5,), "seen": ()}, Classes(10),
              streams={"frames": Modality("frames", "there", "seen")})  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "changes", "said"),
    [
        (Spec({"x": (4,)}, Real((1,))), {}, r"view=stream: needs a data set with classes"),
        (spec_of(shape=(4,)), {"tasks_by": "rotation"}, r"view\.tasks_by=rotation: needs a data set of images"),
        (spec_of(), {"tasks": 6}, r"view\.tasks=6: .*task scenario.* 2 or more classes.* 10; use view\.tasks=2 to 5"),
        (spec_of(), {"tasks": 11, "scenario": "class"}, r"class scenario.* 1 or more.*use view\.tasks=2 to 10"),
        (spec_of(), {"tasks": 3, "scenario": "domain"}, r"all equally many.*use view\.tasks=2 or 5"),
        (spec_of(), {"tasks": 10, "scenario": "domain"}, r"2 or more classes.*use view\.tasks=2 or 5"),
        (spec_of(3), {"tasks": 2}, r"there are 3; use view\.tasks_by=permutation"),
        (spec_of(7), {"tasks": 3, "scenario": "domain"}, r"there are 7; use view\.tasks_by=permutation"),
        (spec_of(shape=(4,)), {"pad": 1}, r"view\.pad=1: needs a data set of images.* use view\.pad=0"),
        (PADDED, {"tasks_by": "permutation"}, r"there, seen says which places .* use view\.tasks_by=classes"),
    ],
)
def test_what_cannot_be_a_stream_is_refused_in_one_line(spec, changes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Stream.view_spec(spec, settings(**changes))
    assert len(caught.value.mistakes) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tasks_by", ["classes", "permutation", "rotation"])
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("tasks", [2, 5])
def test_view_spec_is_the_spec_that_is_built(tasks_by, scenario, tasks):
    chosen = {"tasks_by": tasks_by, "scenario": scenario, "tasks": tasks}
    made = stream(**chosen)
    assert made.spec == Stream.view_spec(spec_of(), settings(**chosen))
    for task in made:
        assert task.outputs.shape == (made.spec.outputs,)
        assert bool(task.outputs[task.train.target].all())


# --- the rest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks_by", ["classes", "permutation", "rotation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_moves_everything_and_changes_nothing(tasks_by, dtype):
    made = stream(tasks_by=tasks_by, tasks=2)
    moved = made.to(CPU, dtype)
    assert (moved.scenario, moved.spec, moved.record) == (made.scenario, made.spec, made.record)
    for before, after in zip(made, moved, strict=True):
        assert (before.name, before.label) == (after.name, after.label)
        assert torch.equal(before.outputs, after.outputs)
        for name in PARTS:
            assert ready(after.split(name)).dtype == dtype
            torch.testing.assert_close(
                ready(after.split(name)), ready(before.split(name)).to(dtype), rtol=1e-4, atol=1e-4
            )
            assert torch.equal(after.split(name).target, before.split(name).target)


@pytest.mark.parametrize("tasks_by", ["permutation", "rotation"])
def test_tasks_with_the_same_examples_hold_them_once_on_a_device(tasks_by):
    moved = stream(tasks_by=tasks_by, scenario="domain").to(torch.device("meta"), torch.float32)
    for name in PARTS:
        held = {id(task.split(name).inputs["image"]) for task in moved}
        assert len(held) == 1
        assert all(task.split(name).device.type == "meta" for task in moved)


def test_describe_names_tasks_sizes_and_outputs():
    splits = divided()
    record = stream(splits, scenario="class", tasks=3).describe()
    assert record["scenario"] == "class"
    assert record["train"] == splits.record["train"]
    assert [task["label"] for task in record["tasks"]] == ["0/1/2/3", "4/5/6", "7/8/9"]
    assert [task["outputs"] for task in record["tasks"]] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    for name in PARTS:
        assert sum(task[name] for task in record["tasks"]) == len(getattr(splits, name))


def test_raw_inputs_are_prepared_as_in_the_first_task():
    splits = divided()
    assert stream(splits, tasks_by="permutation").prepare == splits.train.prepare
