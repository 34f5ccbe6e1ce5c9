"""Few-shot tasks: which classes and examples they have, how those are labelled and turned, and what is refused."""

import pytest
import torch
from few_shot_cases import SIDE, episodes, generator, numbered, settings, turned, whole, whose

from advml.contracts import Classes, Real, Spec
from advml.data.class_splits import divide_classes, split_counts
from advml.data.episodes import Episodes
from advml.data.few_shot import Pool, TaskShape
from advml.data.source import Loaded
from advml.errors import ConfigError
from advml.runner.randomness import KeyedRng

CPU = torch.device("cpu")
TARGET = torch.arange(15).repeat(8)


def classes_of(batch):
    return TARGET[whose(batch)]


def all_of(base):
    return base.batch(torch.arange(len(base)), generator())


def equal(first, second):
    return all(
        torch.equal(one.target, other.target)
        and all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)
        for one, other in zip(first, second, strict=True)
    )


# --- classes ------------------------------------------------------------------------------------------------------


def test_a_class_belongs_to_one_split_with_all_its_examples():
    view = episodes()
    record = view.describe()
    parts = [record[name]["classes"] for name in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [6, 4, 5]
    assert sorted(number for part in parts for number in part) == list(range(15))
    assert [record[name]["examples"] for name in ("train", "valid", "test")] == [48, 32, 40]
    for name, tasks in (("train", view.draw(200, generator())), ("valid", view.fixed("valid", 0, 7))):
        for batch in tasks:
            assert set(classes_of(batch).flatten().tolist()) <= set(record[name]["classes"])
    assert set(classes_of(view.draw(200, generator()).query).flatten().tolist()) == set(record["train"]["classes"])
    assert set(whose(view.draw(200, generator()).query).flatten().tolist()) == {
        number for number in range(120) if int(TARGET[number]) in record["train"]["classes"]
    }


def test_classes_are_dealt_by_the_seed_and_the_test_classes_whatever_is_validated_on():
    spec = whole().spec
    first, again, other = (divide_classes(spec, settings(), KeyedRng(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    fewer = divide_classes(spec, settings(valid_classes=1), KeyedRng(0))
    assert torch.equal(fewer["test"], first["test"])
    assert len(fewer["train"]) == 9


@pytest.mark.parametrize(
    ("valid", "test", "expected"), [(0.2, 0.4, (6, 3, 6)), (2, 0.2, (10, 2, 3)), (0.4, 1, (8, 6, 1))]
)
def test_classes_are_counted_or_a_fraction(valid, test, expected):
    counts = split_counts(whole().spec, settings(valid_classes=valid, test_classes=test))
    assert tuple(counts[name] for name in ("train", "valid", "test")) == expected


def test_the_division_of_the_source():
    official = {"train": (0, 2, 4, 6, 8, 10), "valid": (1, 3, 5), "test": (7, 9, 11, 12, 13, 14)}
    view = episodes(whole(class_splits=official), split="dataset", valid_classes=None, test_classes=None)
    assert {name: tuple(view.describe()[name]["classes"]) for name in official} == official
    assert set(classes_of(view.fixed("test", 0, 11).support).flatten().tolist()) <= set(official["test"])


def test_the_division_of_examples_by_the_data_set_is_undone():
    """Official test examples belong to their classes as all others do."""
    data = whole()
    test = numbered(torch.arange(15).repeat(2))
    test.inputs["image"][:, 0, 0, 0] += 120
    merged = data._replace(loaded=Loaded(data.loaded.examples, test))
    examples = merged.examples(KeyedRng(0))
    assert len(examples) == 150
    view = episodes(merged, shots=4, queries=6)
    assert (whose(view.draw(20, generator()).query) >= 120).any()
    assert sum(view.describe()[name]["examples"] for name in ("train", "valid", "test")) == 150


def test_the_limit_holds_for_all_classes_alike():
    view = episodes(whole(limit=90))
    assert [view.describe()[name]["examples"] for name in ("train", "valid", "test")] == [36, 24, 30]


def test_the_normalisation_knows_the_training_classes_only():
    data = whole(normalise="standard")
    view = episodes(data)
    train = torch.isin(TARGET, torch.tensor(view.describe()["train"]["classes"]))
    values = data.loaded.examples.inputs["image"][train]
    ready = all_of(view.base).inputs["image"]
    assert abs(float(ready.mean())) < 1e-12
    assert abs(float(ready.std(correction=0)) - 1) < 1e-12
    (step,) = view.prepare["image"]
    expected = (values - values.mean()) / values.std(correction=0)
    assert torch.allclose(step(values), expected, rtol=0, atol=1e-12)


# --- tasks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"train_ways": 5}, {"train_shots": 1, "train_queries": 7}, {"ways": 4}])
def test_a_task_has_its_classes_and_examples_once(changes):
    config = settings(**changes)
    view = episodes(**changes)
    for tasks, (ways, shots, queries) in (
        (view.draw(50, generator()), config.shape("train")),
        (view.fixed("test", 0, 11), config.shape("test")),
    ):
        support, query = tasks
        assert support.target.shape == (len(support.target), ways * shots)
        assert query.target.shape == (len(query.target), ways * queries)
        assert support.inputs["image"].shape == (*support.target.shape, 1, SIDE, SIDE)
        assert support.target.dtype == query.target.dtype == torch.int64
        assert support.mask is None
        assert query.mask is None
        for of_support, of_query, label, asked in zip(
            whose(support), whose(query), support.target, query.target, strict=True
        ):
            examples = torch.cat([of_support, of_query])
            assert len(examples.unique()) == len(examples)
            # The label stands for one class, and the class has one label, in the support and in the query.
            pairs = set(zip(TARGET[examples].tolist(), torch.cat([label, asked]).tolist(), strict=True))
            assert len(pairs) == ways
            assert sorted(number for _, number in pairs) == list(range(ways))
            assert label.tolist() == [number for number in range(ways) for _ in range(shots)]
            assert asked.bincount().tolist() == [queries] * ways
    assert (view.ways, view.shots, view.queries) == config.shape("test")
    assert view.spec == Spec({"image": (1, SIDE, SIDE)}, Classes(config.ways))


def test_classes_labels_examples_and_the_order_of_queries_are_even():
    """Counts of a fair draw stay within five standard deviations."""
    view, count = episodes(), 6000
    tasks = view.draw(count, generator(3))
    classes = torch.tensor(view.describe()["train"]["classes"])

    def fair(counts, total, share):
        assert (counts - total * share).abs().max() < 5 * (total * share * (1 - share)) ** 0.5, counts

    owner = classes_of(tasks.support)[:, ::2]  # [T, 3]: the class of each label
    for label in range(3):
        fair((owner[:, label].unsqueeze(1) == classes).sum(0), count, 1 / 6)
    fair(whose(tasks.support).flatten().bincount(minlength=120)[torch.isin(TARGET, classes)], count, 6 / 48)
    fair(whose(tasks.query).flatten().bincount(minlength=120)[torch.isin(TARGET, classes)], count, 12 / 48)
    for place in (0, 5, 11):
        fair(tasks.query.target[:, place].bincount(), count, 1 / 3)


def test_draws_follow_from_the_generator_alone():
    view = episodes()
    first, again, other = (view.draw(4, generator(seed)) for seed in (5, 5, 6))
    assert equal(first, again)
    assert not equal(first, other)
    view.fixed("valid", 0, 3)
    assert equal(first, view.draw(4, generator(5)))


def test_evaluation_tasks_are_known_by_their_number():
    view = episodes()
    assert (view.count("valid"), view.count("test")) == (7, 11)
    at_once = view.fixed("test", 0, 11)
    parts = [view.fixed("test", start, min(start + 4, 11)) for start in range(0, 11, 4)]
    for name in ("support", "query"):
        joined = [getattr(part, name) for part in parts]
        assert torch.equal(torch.cat([part.target for part in joined]), getattr(at_once, name).target)
        images = torch.cat([part.inputs["image"] for part in joined])
        assert torch.equal(images, getattr(at_once, name).inputs["image"])
    assert equal(at_once, episodes().fixed("test", 0, 11))
    assert equal(at_once, episodes(test_tasks=20).fixed("test", 0, 11))
    assert not equal(at_once, episodes(seed=1).fixed("test", 0, 11))
    assert len({tuple(row.tolist()) for row in whose(at_once.query)}) == 11
    assert not equal(view.fixed("valid", 0, 3), view.fixed("test", 0, 3))


def test_the_record_tells_tasks_apart():
    all_changes = ({}, {}, {"train_shots": 1}, {"test_tasks": 12}, {"shots": 1})
    records = [episodes(**changes).describe() for changes in all_changes]
    assert records[0]["valid"]["tasks"] == 7
    assert records[0] == records[1] == records[2]
    hashes = [[record[name]["tasks_sha256"] for name in ("valid", "test")] for record in (*records[::3], records[4])]
    assert hashes[0][0] == hashes[1][0] != hashes[2][0]
    assert len({test for _, test in hashes}) == 3


def test_classes_of_unequal_size():
    """Where a class has fewer examples than another, none is drawn that it does not have."""
    target = torch.cat([torch.full((6 + 3 * number,), number) for number in range(15)])
    view = episodes(whole(target=target))
    tasks = view.draw(300, generator())
    for batch in tasks:
        assert int(whose(batch).min()) >= 0
        labels = torch.stack([batch.target, target[whose(batch)]], -1).flatten(0, 1)
        assert labels.shape[-1] == 2
    owner = target[whose(tasks.support)][:, ::2]
    assert torch.equal(owner.gather(1, tasks.query.target), target[whose(tasks.query)])
    drawn = set(torch.cat([whose(batch).flatten() for batch in tasks]).tolist())
    train = view.describe()["train"]["classes"]
    assert drawn == {number for number, owner in enumerate(target.tolist()) if owner in train}


# --- rotations ----------------------------------------------------------------------------------------------------


def test_augmenting_turns_each_class_of_a_task_as_a_whole():
    view = episodes(rotations="augment")
    seen = []
    for support, query in (view.draw(60, generator()), view.fixed("test", 0, 11)):
        turn = turned(support)[:, ::2]
        assert torch.equal(turned(support), turn.repeat_interleave(2, 1))
        assert torch.equal(turned(query), turn.gather(1, query.target))
        seen.append(turn.flatten().bincount(minlength=4))
    assert (seen[0] > 25).all()  # of 180: 45 each
    assert (seen[1] > 0).all()
    assert view.base_spec.target == Classes(6)
    first, again, other = (view.base.batch(torch.arange(48), draw) for draw in (generator(), generator(), generator(1)))
    seen = [type(first)({"image": batch.inputs["image"].unsqueeze(0)}, batch.target) for batch in (first, again, other)]
    assert (turned(seen[0])[0].bincount(minlength=4) > 4).all()  # of 48: 12 each, an example at a time
    assert torch.equal(turned(seen[0]), turned(seen[1]))
    assert not torch.equal(turned(seen[0]), turned(seen[2]))
    assert torch.equal(whose(seen[0]), whose(seen[2]))
    assert len(view.base) == 48 == len(whose(seen[0]).unique())


def test_turns_are_new_classes():
    view = episodes(rotations="classes", ways=5)
    support, query = view.draw(300, generator())
    owner, turn = classes_of(support)[:, ::2], turned(support)[:, ::2]
    assert torch.equal(turned(support), turn.repeat_interleave(2, 1))
    assert torch.equal(turned(query), turn.gather(1, query.target))
    assert torch.equal(classes_of(query), owner.gather(1, query.target))
    number = owner * 4 + turn
    assert all(len(row.unique()) == 5 for row in number)  # the same character may come twice, but not turned alike
    assert any(len(row.unique()) < 5 for row in owner)
    train = view.describe()["train"]["classes"]
    assert set(number.flatten().tolist()) == {4 * character + quarters for character in train for quarters in range(4)}


def test_the_base_has_every_training_example_in_every_turn():
    view = episodes(rotations="classes")
    base, train = view.base, view.describe()["train"]["classes"]
    assert view.base_spec == Spec({"image": (1, SIDE, SIDE)}, Classes(24))
    batch = all_of(base)
    assert batch.target.bincount().tolist() == [8] * 24
    seen = type(batch)({"image": batch.inputs["image"].unsqueeze(0)}, batch.target)
    owner = torch.tensor(train)[batch.target // 4]
    assert torch.equal(classes_of(seen)[0], owner)
    assert torch.equal(turned(seen)[0], batch.target % 4)
    assert len(set(zip(whose(seen)[0].tolist(), turned(seen)[0].tolist(), strict=True))) == 192


def test_without_rotations_nothing_is_turned():
    view = episodes()
    assert int(turned(view.draw(20, generator()).query).sum()) == 0
    assert view.base.drawn.label.bincount().tolist() == [8] * 6


def test_a_quarter_turn_is_counter_clockwise():
    pool = Pool.of(torch.tensor([0, 0]), torch.tensor([0]), turned=True)
    assert pool.turn.tolist() == [0, 1, 2, 3]
    view = episodes(rotations="classes")
    image = torch.arange(SIDE * SIDE).reshape(1, 1, SIDE, SIDE).double()
    moved = view.tasks.examples
    moved.inputs["image"][0] = image[0]
    stored = view.tasks._stored(torch.zeros(4, dtype=torch.int64), torch.tensor([3, 0, 1, 2]))["image"]
    for quarters, found in zip((3, 0, 1, 2), stored, strict=True):
        expected = image[0, 0].tolist()
        for _ in range(quarters):
            expected = [list(row) for row in zip(*expected, strict=True)][::-1]  # the last column becomes the first row
        assert found[0].tolist() == expected


# --- tables, devices, types ---------------------------------------------------------------------------------------


def test_tables_of_features():
    view = episodes(whole(shape=(3,), normalise="standard"))
    support, _ = view.draw(4, generator())
    assert support.inputs["features"].shape == (4, 6, 3)
    assert view.draw(4, generator()).query.inputs["features"].shape == (4, 12, 3)


def test_tasks_come_in_the_type_of_the_run():
    view = episodes()
    moved = view.to(CPU, torch.float32)
    for tasks, expected in ((moved.draw(2, generator()), view.draw(2, generator())),
                            (moved.fixed("valid", 2, 4), view.fixed("valid", 2, 4))):  # fmt: skip
        assert tasks.query.inputs["image"].dtype == torch.float32
        assert torch.equal(tasks.query.inputs["image"], expected.query.inputs["image"].float())
        assert torch.equal(tasks.query.target, expected.query.target)
    assert moved.describe() == view.describe()
    assert moved.base.batch(torch.arange(3), generator()).inputs["image"].dtype == torch.float32
    assert view.curve("test", 0, 5) is None


def test_many_tasks_are_drawn_as_a_loop_would():
    """An independent reading of the same random numbers, task by task."""
    target = torch.arange(6).repeat(9)
    pool = Pool.of(target, torch.tensor([1, 2, 4, 5]), turned=False)
    support, query = pool.draw(TaskShape(3, 2, 4), 5, False, generator(9))
    rng = generator(9)
    keys, of_examples = torch.rand(5, 4, generator=rng), torch.rand(5, 3, 9, generator=rng)
    order = torch.rand(5, 12, generator=rng)
    for task in range(5):
        owners = [[1, 2, 4, 5][place] for place in keys[task].sort(descending=True).indices[:3].tolist()]
        shown, asked = [], []
        for label, owner in enumerate(owners):
            examples = (target == owner).nonzero().flatten()[of_examples[task, label].sort(descending=True).indices]
            shown += [(int(number), label) for number in examples[:2]]
            asked += [(int(number), label) for number in examples[2:6]]
        asked = [asked[place] for place in order[task].sort().indices.tolist()]
        assert list(zip(support.example[task].tolist(), support.label[task].tolist(), strict=True)) == shown
        assert list(zip(query.example[task].tolist(), query.label[task].tolist(), strict=True)) == asked


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "data", "words"),
    [
        ({"ways": 6}, {}, "view.ways=6: there are only 4 valid classes"),
        ({"train_ways": 7}, {}, "view.train_ways=7: there are only 6 train classes"),
        ({"ways": 17, "rotations": "classes", "valid_classes": 4}, {}, "only 16 (4 in 4 rotations) valid classes"),
        ({"ways": None}, {}, "view.ways=null: this data set has classes to be told apart; give a number"),
        ({"queries": 7}, {}, "view.shots, view.queries: a task needs 2 + 7 examples of a class, but class"),
        ({"train_queries": 9}, {}, "view.train_shots, view.train_queries: a task needs 2 + 9 examples"),
        ({"rotations": "augment"}, {"shape": (3,)}, "view.rotations=augment: needs square images"),
        ({"rotations": "classes"}, {"shape": (1, 4, 6)}, "view.rotations=classes: needs square images"),
        ({"valid_classes": 10}, {}, "10 and 5 of 15 classes leave none to train on"),
        ({"test_classes": None}, {}, "view.test_classes=null: with view.split=random, give a number or a fraction"),
        ({"split": "dataset"}, {}, "view.split=dataset: this data set has no official split of its classes"),
    ],
)
def test_refused_in_one_line(changes, data, words):
    with pytest.raises(ConfigError) as caught:
        episodes(whole(**data), **changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_class_that_has_too_few_examples_is_named():
    target = torch.cat([torch.full((6 if number != 7 else 5,), number) for number in range(15)])
    with pytest.raises(ConfigError, match="2 \\+ 4 examples of a class, but class 7 has only 5; use fewer"):
        episodes(whole(target=target))


def test_a_table_with_a_real_target_has_no_tasks():
    with pytest.raises(ConfigError, match="view=episodes: needs a data set with classes or one that draws tasks"):
        Episodes.view_spec(Spec({"features": (10,)}, Real((1,))), settings())
