"""Principal components, chosen classes and angles, against scikit-learn and by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from advml.compose import compose
from advml.config import bind
from advml.contracts import Classes, Real, Spec, Split
from advml.data.prepare import fit, restore
from advml.data.reduce import of_classes, outside, preparation, reduced_spec, told
from advml.data.source import Loaded, SplitSettings, split
from advml.errors import ConfigError
from advml.runner.fit import check_fit
from advml.runner.randomness import KeyedRng
from advml.runner.run import load_view


def settings(**changes):
    values = {"valid": 0.15, "test": 0.2, "limit": None, "split_seed": None, "normalise": "standard",
              "pca": None, "keep_classes": None}  # fmt: skip
    return SplitSettings(**values | changes)


def view_of(*words):
    notes = []
    bound = bind(compose([*words, "model=mlp"])[0])
    check_fit(bound)
    return load_view(bound, notes.append), notes


def prepared(view, name="train"):
    (values,) = view.split(name).batch(slice(None)).inputs.values()
    return values


def rows(count=200, size=6, seed=0):
    mixed = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64) @ mixed + 7


class TestComponents:
    @pytest.mark.parametrize(
        ("kind", "scaler"),
        [
            ("none", None),
            ("angles", MinMaxScaler((0, math.pi))),
            ("unit", MinMaxScaler()),
            ("standard", StandardScaler()),
        ],
    )
    def test_are_those_of_scikit_learn(self, kind, scaler):
        values = rows()
        (step,) = preparation(values, settings(pca=3, normalise=kind), None)
        pca = PCA(3)
        expected = pca.fit_transform(StandardScaler().fit_transform(values.numpy()))
        # a component's sign is free; ours makes the largest entry of a direction positive
        signs = np.sign(pca.components_[np.arange(3), np.abs(pca.components_).argmax(1)])
        expected = expected * signs
        expected = expected if scaler is None else scaler.fit_transform(expected)
        np.testing.assert_allclose(step(values).numpy(), expected, rtol=1e-9, atol=1e-9)

    def test_images_are_standardised_by_channel_not_by_pixel(self):
        images = torch.randint(0, 17, (50, 1, 4, 4), dtype=torch.uint8)
        (step,) = preparation(images, settings(pca=5, normalise="none"), 16.0)
        flat = images.flatten(1).double().numpy()
        expected = PCA(5).fit_transform((flat - flat.mean()) / flat.std())
        np.testing.assert_allclose(np.abs(step(images).numpy()), np.abs(expected), rtol=1e-8, atol=1e-8)

    def test_survives_being_saved(self):
        (step,) = preparation(rows(), settings(pca=2, normalise="angles"), None)
        again = restore(step.state()).to(torch.device("cpu"), torch.float32)
        torch.testing.assert_close(again(rows()).double(), step(rows()), rtol=1e-5, atol=1e-5)
        assert again(rows()).dtype == torch.float32

    def test_a_trained_network_takes_examples_as_they_are_stored(self, run_cli):
        import numpy as np
        from sklearn.datasets import load_wine

        from advml.api import load

        said = run_cli("run", "dataset=wine", "dataset.pca=4", "method.epochs=2", "baselines=off", "progress=off")
        assert said.code == 0, said.err
        outputs = load(said.last).predict(load_wine().data.astype(np.float32))
        assert outputs.shape == (178, 3)
        exported = run_cli("export", said.last)
        assert exported.code == 0, exported.err

    def test_the_network_sees_so_many_numbers(self):
        view, _ = view_of("dataset=wine", "dataset.pca=4", "dataset.normalise=angles")
        assert view.spec == Spec({"features": (4,)}, Classes(3))
        assert prepared(view).shape[1] == 4
        images, _ = view_of("dataset=digits", "dataset.pca=8", "dataset.limit=200")
        assert images.spec.inputs == {"image": (8,)}
        assert prepared(images, "test").shape[1:] == (8,)

    def test_tasks_of_few_examples_are_reduced_too(self):
        words = ("method=protonet", "dataset=digits", "view=episodes", "view.ways=2", "view.rotations=none")
        view, _ = view_of(*words, "dataset.pca=3", "dataset.normalise=angles")
        assert view.fixed("valid", 0, 2).support.inputs["image"].shape[2:] == (3,)
        assert view.spec.inputs == {"image": (3,)}

    def test_of_few_examples_there_are_fewer_directions_than_numbers(self):
        few, chosen = rows(5), settings(pca=4, normalise="unit")
        (step,) = preparation(few, chosen, None)  # five points span four directions
        assert step(few).abs().max() < 2
        with pytest.raises(ConfigError) as caught:
            preparation(few, replace(chosen, pca=5), None)
        (line,) = caught.value.mistakes
        assert line == "dataset.pca=5: the training examples span only 4 directions; use dataset.pca=4 or less"
        with pytest.raises(ConfigError, match=r"dataset\.pca=1: .* span only 0 directions; use null"):
            preparation(torch.ones(5, 3), replace(chosen, pca=1), None)

    def test_what_cannot_be_reduced_is_refused(self):
        with pytest.raises(ConfigError, match=r"dataset\.pca=9: an example has 4 numbers; use at most 4"):
            view_of("dataset=iris", "dataset.pca=9")
        with pytest.raises(ConfigError, match=r"dataset\.pca: needs one input of numbers"):
            reduced_spec(Spec({"a": (2,), "b": (2,)}, Classes(2)), settings(pca=1))


class TestAngles:
    def test_train_fills_the_range(self):
        view, _ = view_of("dataset=iris_angles")
        angles = prepared(view.to(torch.device("cpu"), torch.float64))
        torch.testing.assert_close(angles.amin(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
        torch.testing.assert_close(angles.amax(0), torch.full((4,), math.pi, dtype=torch.float64))

    def test_pixels_by_their_own_range(self):
        stored = torch.tensor([[[[3, 255]]]], dtype=torch.uint8)
        torch.testing.assert_close(fit(stored, "angles", 255.0)(stored)[0, 0, 0, 1].item(), math.pi)

    def test_outside_is_counted_told_and_recorded(self):
        train = Split({"x": torch.tensor([[0.0], [1.0]])}, torch.zeros(2).long())
        steps = {"x": (fit(train.inputs["x"], "angles", None),)}
        test = Split({"x": torch.tensor([[-0.1], [0.5], [1.2]])}, torch.zeros(3).long(), prepare=steps)
        parts = {"train": Split(train.inputs, train.target, prepare=steps), "test": test}
        assert outside(parts) == {"test": 2}
        assert told({"valid": 1, "test": 2}).startswith("advml: dataset.normalise=angles: 1 valid and 2 test examples")
        view, notes = view_of("dataset=breast_cancer", "dataset.normalise=angles")
        (note,) = notes
        assert "test examples have an angle outside [0, π]" in note
        beyond = prepared(view, "test")
        count = int(((beyond < -1e-5) | (beyond > math.pi + 1e-5)).any(1).sum())
        assert view.describe()["angles_outside"]["test"] == count > 0
        assert view_of("dataset=breast_cancer")[1] == []


class TestClasses:
    def test_are_kept_in_the_order_given(self):
        examples = Split({"x": torch.arange(6.0).unsqueeze(1)}, torch.tensor([0, 5, 3, 5, 1, 3]))
        few = of_classes(examples, (5, 3))
        assert few.target.tolist() == [0, 1, 0, 1]
        assert few.inputs["x"].flatten().tolist() == [1, 2, 3, 5]

    def test_of_a_whole_run(self):
        view, _ = view_of("dataset=digits", "dataset.keep_classes=[3,5]", "dataset.pca=4", "dataset.normalise=angles")
        assert view.spec == Spec({"image": (4,)}, Classes(2))
        everything, _ = view_of("dataset=digits")
        counts = torch.cat([everything.split(name).target for name in ("train", "valid", "test")]).bincount()
        found = torch.cat([view.split(name).target for name in ("train", "valid", "test")]).bincount()
        assert found.tolist() == [int(counts[3]), int(counts[5])]

    def test_of_official_test_examples(self):
        examples = Split({"x": torch.zeros(4, 1)}, torch.tensor([0, 1, 2, 2]))
        loaded = Loaded(examples, test=examples).of_classes((2, 0))
        divided = split(loaded, Spec({"x": (1,)}, Classes(2)), settings(valid=0.0), KeyedRng(0))
        assert divided.test.target.tolist() == [1, 0, 0]

    @pytest.mark.parametrize(
        ("spec", "classes", "reason"),
        [
            (Spec({"x": (1,)}, Classes(3)), (0, 3), r"there is no class 3; they are 0 to 2"),
            (Spec({"x": (1,)}, Classes(3)), (1, 1), r"two different classes or more"),
            (Spec({"x": (1,)}, Classes(3)), (1,), r"two different classes or more"),
            (Spec({"x": (1,)}, Real((1,))), (0, 1), r"needs a data set with one list of classes"),
        ],
    )
    def test_what_cannot_be_chosen_is_refused(self, spec, classes, reason):
        with pytest.raises(ConfigError, match=reason):
            reduced_spec(spec, settings(keep_classes=classes))
