"""Several data sets as one, and a task for each group of classes."""

import re
from pathlib import Path

import pytest
import torch

from advml.compose import compose
from advml.config import bind
from advml.config import settings as settings_class
from advml.contracts import Classes, Real, Spec, Split
from advml.data.series import Series, SeriesSettings
from advml.data.source import Loaded, Source, SplitSettings, split
from advml.data.stream import Stream, StreamSettings
from advml.errors import AdvmlError, ConfigError
from advml.registry import resolve
from advml.runner.randomness import KeyedRng

HERE = Path(__file__).stem


class Made:
    """Points on a line, whose number is their value."""

    settings = SplitSettings
    classes, examples, official, first, scale, shape = 3, 60, 0, 0, None, (1,)

    def __init__(self, settings):
        self.config = settings

    def spec(self):
        return Spec({"features": self.shape}, Classes(self.classes))

    def made(self, count, start):
        return Split({"features": torch.arange(start, start + count).unsqueeze(1)}, torch.arange(count) % self.classes)

    def load(self, source):
        test = self.made(self.official, self.first + 900) if self.official else None
        return Loaded(self.made(self.examples, self.first), test, self.scale, {"file.gz": f"hash {self.first}"})


class Other(Made):
    classes, examples, first = 2, 40, 1000


class Official(Made):
    classes, official, first = 3, 30, 2000


class Third(Official):
    first = 4000


class Pixels(Made):
    scale = 255


class MorePixels(Pixels):
    first = 500


class Wide(Made):
    shape = (4,)


class Renamed(Made):
    def spec(self):
        return Spec({"image": self.shape}, Classes(self.classes))


class Alone(Made):
    classes = 1


class Numbers(Made):
    def spec(self):
        return Spec({"features": self.shape}, Real((1,)))


class Absent(Made):
    def load(self, source):
        raise AdvmlError("absent: file.gz is not in the folder; fetch with: advml data download absent")


@settings_class
class DemandingSettings(SplitSettings):
    colour: str
    taste: float


class Demanding(Made):
    settings = DemandingSettings


def named(*words):
    return tuple(f"{HERE}:{word}" if word[0].isupper() else word for word in words)


def settings_of(*parts, **changes):
    values = {"valid": 0.1, "test": 0.2, "limit": None, "split_seed": None, "normalise": "standard",
            "pca": None, "keep_classes": None}  # fmt: skip
    values |= {"examples": 200, "noise": 0.1, "size": 28}
    return SeriesSettings(**values | changes, parts=named(*parts))


def source(seed=0, data_dir="/nowhere"):
    return Source(KeyedRng(seed), Path(data_dir))


def divided(*parts, seed=0, **changes):
    config = settings_of(*parts, **changes)
    series = Series(config)
    return split(series.load(source(seed)), series.spec(), config, KeyedRng(seed))


def alone(word, config, seed=0):
    """What a part is without a series."""
    (name,) = named(word)
    cls = resolve("dataset", name)
    own = cls(cls.settings(**{key: getattr(config, key) for key in cls.settings.__annotations__ | SPLIT}))
    return split(own.load(source(seed)), own.spec(), config, KeyedRng(seed))


SPLIT = SplitSettings.__annotations__


def group(part, number):
    return part.take((part.group == number).nonzero().flatten())


# --- the data set -------------------------------------------------------------------------------------------------


def test_classes_of_the_parts_follow_one_another():
    series = Series(settings_of("moons", "circles"))
    spec = series.spec()
    assert (dict(spec.inputs), spec.target) == ({"features": (2,)}, Classes(4))
    assert list(spec.groups.items()) == [("moons", 2), ("circles", 2)]
    loaded = series.load(source())
    assert loaded.examples.target.bincount().tolist() == [80] * 4
    assert loaded.test.target.bincount().tolist() == [20] * 4
    for part in (loaded.examples, loaded.test):
        assert torch.equal(part.group, part.target // 2)


@pytest.mark.parametrize("limit", [None, 30])
@pytest.mark.parametrize("words", [("moons", "circles"), ("Made", "Other"), ("Other", "Official", "Made")])
def test_each_part_is_divided_as_it_would_be_alone(words, limit):
    """Which examples are for testing, and which are left by the limit, does not depend on the company."""
    splits = divided(*words, limit=limit, seed=3)
    first = 0
    for number, word in enumerate(words):
        own = alone(word, settings_of(*words, limit=limit), seed=3)
        test = group(splits.test, number)
        assert torch.equal(test.inputs["features"], own.test.inputs["features"])
        assert torch.equal(test.target, own.test.target + first)
        rest = [group(part, number).inputs["features"] for part in (splits.train, splits.valid)]
        expected = torch.cat([own.train.inputs["features"], own.valid.inputs["features"]])
        assert torch.equal(torch.cat(rest).sort(0).values, expected.sort(0).values)
        assert len(rest[1]) == len(own.valid)  # of every class, hence of every part
        first += own.spec.target.count
    assert len(splits.test) == int((splits.test.group >= 0).sum())


def test_official_test_examples_stay_whole_beside_a_part_without():
    splits = divided("Official", "Other")
    assert group(splits.test, 0).inputs["features"].flatten().tolist() == list(range(2900, 2930))
    assert len(group(splits.test, 1)) == 8  # a fifth of 40
    assert len(splits.train) + len(splits.valid) == 60 + 32


def test_the_limit_holds_for_each_part():
    splits = divided("Made", "Other", limit=20)
    assert [len(group(splits.train, n)) + len(group(splits.valid, n)) + len(group(splits.test, n)) for n in (0, 1)] == [
        20, 20,
    ]  # fmt: skip


def test_the_record_names_every_part_and_every_file():
    record = divided("Made", "Official").record
    assert [(part["name"], part["first_class"], part["classes"]) for part in record["parts"]] == [
        (named("Made")[0], 0, 3), (named("Official")[0], 3, 3),
    ]  # fmt: skip
    assert [part["test"]["per_class"] for part in record["parts"]] == [[4, 4, 4], [10, 10, 10]]
    assert record["files"] == {f"{HERE}:Made/file.gz": "hash 0", f"{HERE}:Official/file.gz": "hash 2000"}
    assert record["train"]["examples"] + record["valid"]["examples"] == 48 + 60


@pytest.mark.parametrize(
    ("words", "differ"), [(("Made", "Other"), 2), (("Official", "Made"), 2), (("Official", "Third"), 1)]
)
def test_the_record_tells_whether_seeds_were_tested_on_the_same(words, differ):
    """By it tables know how far the runs of several seeds share their examples."""
    found = {divided(*words, seed=seed).record["test"]["index_sha256"] for seed in (0, 1, 0)}
    assert len(found) == differ


def test_the_scale_that_all_share_is_kept():
    series = Series(settings_of("Pixels", "MorePixels"))
    assert series.load(source()).scale == 255
    with pytest.raises(ConfigError, match=r"largest stored values differ \(\S+Pixels 255 and \S+Made any\)"):
        Series(settings_of("Pixels", "Made")).load(source())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Made",), r"parts: name two data sets or more"),
        (("Made", "Other", "Made"), r"parts: \S+Made is named twice"),
    ],
)
def test_a_list_that_is_no_series_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        settings_of(*words)
    tree = compose(["dataset=series", f"dataset.parts=[{','.join(map(repr, named(*words)))}]"])[0]
    with pytest.raises(ConfigError, match=r"^dataset\." + said):
        bind(tree)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Made", "Wide"), r"dataset\.parts: .*Made has features \[1\] and \S+Wide features \[4\]"),
        (("Made", "Renamed"), r"dataset\.parts: .*Made has features \[1\] and \S+Renamed image \[1\]"),
        (("Made", "Numbers"), r"dataset\.parts: \S+Numbers has no classes"),
        (("moons", "none"), r"dataset\.parts: none has no classes"),
        (("moons", "circels"), r"dataset\.parts: .*circels: unknown dataset; did you mean circles\?"),
        (("moons", "Path"), r"dataset\.parts: \S+Path is no dataset: it lacks settings, spec, load"),
        (("moons", "series"), r"dataset\.parts: series is a series itself"),
        (("Made", "Demanding"), r"dataset\.parts: \S+Demanding needs colour, taste, which a series does not have"),
        (("mnist", "digits"), r"mnist has image \[1, 28, 28\] and digits image \[1, 8, 8\]"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_file_is_read(words, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Series(settings_of(*words)).spec()
    assert len(caught.value.mistakes) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Made", "Absent"), r"series: absent: file\.gz is not in the folder; fetch with: advml data download absent"),
        (("mnist", "kmnist"), r"series: mnist: .* are not in .*; fetch with: advml data download mnist"),
    ],
)
def test_the_part_whose_files_are_missing_is_named(words, said, tmp_path):
    with pytest.raises(AdvmlError, match=said) as caught:
        Series(settings_of(*words)).load(source(data_dir=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_part_has_the_settings_of_the_series():
    assert Series(settings_of("moons", "circles", examples=50)).load(source()).examples.target.numel() == 80
    assert Series(settings_of("mnist", "omniglot", size=28)).spec().target == Classes(1633)
    with pytest.raises(ConfigError, match=r"image \[1, 28, 28\] and omniglot image \[1, 20, 20\]"):
        Series(settings_of("mnist", "omniglot", size=20)).spec()


def test_the_shipped_configurations_bind():
    assert bind(compose(["dataset=series"])[0]).dataset.settings.parts == ("moons", "circles")
    bound = bind(compose(["experiment=ewc_mnist_fashion"])[0])
    assert bound.dataset.settings.parts == ("mnist", "fashion_mnist")
    spec = bound.dataset.cls(bound.dataset.settings).spec()
    assert bound.view.cls.view_spec(spec, bound.view.settings).outputs == 20


# --- a task for each group ----------------------------------------------------------------------------------------


def settings(**changes):
    values = {"tasks": None, "tasks_by": "groups", "scenario": "task", "shuffle_classes": False, "angle": 180.0}
    return StreamSettings(**values | {"blurry": 0.0, "permute_first": False, "pad": 0} | changes)


def outputs(task):
    return task.outputs.nonzero().flatten().tolist()


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("tasks", [None, 3])
def test_a_task_for_each_group(scenario, tasks):
    splits = divided("Other", "Made", "Official")
    stream = Stream.of(splits, settings(scenario=scenario, tasks=tasks), KeyedRng(0))
    assert [task.label for task in stream] == list(named("Other", "Made", "Official"))
    assert [task.name for task in stream] == ["task1", "task2", "task3"]
    assert [outputs(task) for task in stream] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert stream.spec == Stream.view_spec(splits.spec, settings(scenario=scenario, tasks=tasks))
    assert stream.spec.target == Classes(8)
    for number, task in enumerate(stream):
        for name in ("train", "valid", "test"):
            expected = group(getattr(splits, name), number)
            assert torch.equal(task.split(name).inputs["features"], expected.inputs["features"])
            assert torch.equal(task.split(name).target, expected.target)
        competing = outputs(task) if scenario == "task" else list(range(outputs(task)[-1] + 1))
        assert stream.mask(number, number + 1).nonzero().flatten().tolist() == competing


def test_groups_share_outputs_in_the_domain_scenario():
    splits = divided("moons", "circles")
    stream = Stream.of(splits, settings(scenario="domain"), KeyedRng(0))
    assert stream.spec.target == Classes(2)
    for number, task in enumerate(stream):
        assert outputs(task) == [0, 1]
        assert torch.equal(task.train.target, group(splits.train, number).target - 2 * number)


def spec_of(**groups):
    return Spec({"x": (4,)}, Classes(sum(groups.values()) or 6), groups)


@pytest.mark.parametrize(
    ("spec", "changes", "said"),
    [
        (spec_of(), {}, r"view\.tasks_by=groups: needs .* groups of classes, such as dataset=series"),
        (spec_of(a=2, b=2), {"tasks": 3}, r"view\.tasks=3: there are 2 groups \(a, b\).*use view\.tasks=null"),
        (spec_of(a=2, b=3), {"scenario": "domain"}, r"scenario=domain: .*a 2, b 3; use view\.scenario=task or class"),
        (spec_of(a=2, b=1), {}, r"view\.scenario=task: b has one class only; use view\.scenario=class"),
        (spec_of(**dict.fromkeys("abcdefg", 2)), {"tasks": 2}, r"7 groups \(a, b, c, d, …\)"),
        (spec_of(a=2, b=2), {"tasks_by": "classes"}, r"view\.tasks=null: only view\.tasks_by=groups knows"),
        (spec_of(a=2, b=2), {"tasks_by": "permutation"}, r"view\.tasks=null: .*by permutation, give a number"),
    ],
)
def test_what_gives_no_groups_is_refused_in_one_line(spec, changes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Stream.view_spec(spec, settings(**changes))
    assert len(caught.value.mistakes) == 1
    assert "\n" not in str(caught.value)


def test_one_class_a_group_where_all_compete():
    stream = Stream.of(divided("Alone", "Other"), settings(scenario="class"), KeyedRng(0))
    assert [outputs(task) for task in stream] == [[0], [1, 2]]


def test_groups_are_no_part_of_the_shape():
    """A network made for a series serves the same inputs and classes without groups."""
    spec = spec_of(a=2, b=4)
    assert spec == spec_of(a=3, b=3) == Spec.from_dict(spec.to_dict())
    assert Stream.view_spec(spec, settings()).groups == {}


@pytest.mark.real_data
def test_mnist_then_fashion_mnist(real_data):
    folder = real_data("mnist").parent
    real_data("fashion_mnist")
    config = settings_of("mnist", "fashion_mnist", limit=1000)
    series = Series(config)
    loaded = series.load(source(data_dir=folder))
    assert loaded.scale == 255
    assert len(loaded.files) == 8
    assert all(re.match(r"(mnist|fashion_mnist)/.*gz$", name) for name in loaded.files)
    stream = Stream.of(split(loaded, series.spec(), config, KeyedRng(0)), settings(), KeyedRng(0))
    for number, task in enumerate(stream):
        assert len(task.test) == 1000
        assert task.test.target.unique().tolist() == list(range(10 * number, 10 * number + 10))
        assert len(task.train) == 900
    # Clothes cover more of the picture than digits.
    light = [task.test.inputs["image"].double().mean() for task in stream]
    assert light[1] > 1.5 * light[0]


@pytest.mark.real_data
def test_the_alphabets_are_those_of_the_drawings(real_data):
    from itertools import groupby

    from advml.data.omniglot import ALPHABETS, list_drawings

    for folder, alphabets in ALPHABETS.items():
        drawings = list_drawings(real_data("omniglot/python") / f"{folder}.zip")
        found = [(name, len(list(part)) // 20) for name, part in groupby(drawings, key=lambda one: one.alphabet)]
        assert found == list(alphabets.items())
