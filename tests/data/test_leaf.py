"""LEAF's files: a small made tree, read into examples by user, and every fault in one line."""

import hashlib
import json

import pytest
import torch

from advml.compose import compose
from advml.config import bind
from advml.contracts import Classes, Spec
from advml.data.leaf import Leaf, LeafSettings
from advml.errors import AdvmlError, ConfigError
from advml.runner.run import load_view

TRAIN = {
    "a.json": {"ann": ([[0, 1, 2, 3, 4, 5], [0.5] * 6], [0, 2]), "bob": ([[9] * 6], [1])},
    "b.json": {"cyd": ([[1] * 6, [2] * 6, [3] * 6], [2, 2, 1])},
}
TEST = {"a.json": {"bob": ([[7] * 6], [0]), "dee": ([[8] * 6], [1])}}


def content(users):
    return {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {name: {"x": x, "y": y} for name, (x, y) in users.items()},
    }


@pytest.fixture
def tree(tmp_path):
    """tree(train, test): a folder as LEAF's scripts leave it."""

    def write(train=TRAIN, test=TEST):
        for part, files in (("train", train), ("test", test)):
            (tmp_path / part).mkdir(exist_ok=True)
            for name, users in files.items():
                (tmp_path / part / name).write_text(json.dumps(content(users)))
        return tmp_path

    return write


@pytest.fixture
def made(split_values, tmp_path):
    def make(**changes):
        values = {"path": str(tmp_path), "shape": (1, 2, 3), "classes": 3, "alphabet": None}
        return Leaf(LeafSettings(**{**split_values, **values, **changes}))

    return make


def test_examples_are_read_by_user(tree, made, make_source):
    root = tree()
    loaded = made().load(make_source(root)[0])
    train, test = loaded.examples, loaded.test
    assert train.inputs["image"].dtype == torch.float32
    assert train.inputs["image"].shape == (6, 1, 2, 3)
    assert train.inputs["image"][0].tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert train.target.tolist() == [0, 2, 1, 2, 2, 1]
    assert train.group.tolist() == [0, 0, 1, 2, 2, 2]
    assert test.group.tolist() == [1, 3]
    assert test.target.tolist() == [0, 1]
    assert test.inputs["image"].flatten(1)[:, 0].tolist() == [7, 8]
    assert loaded.record == {"users": ["ann", "bob", "cyd", "dee"]}
    assert loaded.files == {
        f"{part}/{name}": hashlib.sha256((root / part / name).read_bytes()).hexdigest()
        for part, name in (("train", "a.json"), ("train", "b.json"), ("test", "a.json"))
    }


def test_numbers_that_are_no_image(tree, made, make_source):
    dataset = made(shape=(6,))
    assert dataset.spec() == Spec({"features": (6,)}, Classes(3))
    assert dataset.load(make_source(tree())[0]).examples.inputs["features"].shape == (6, 6)


def test_text(tree, made, make_source):
    train = {"t.json": {"HAMLET": (["to be", "o be "], [" ", "o"]), "OPHELIA": (["be to"], ["b"])}}
    dataset = made(shape=(5,), classes=None, alphabet=" beot")
    assert dataset.spec() == Spec({"text": (5,)}, Classes(5), tokens={"text": 5})
    loaded = dataset.load(make_source(tree(train, train))[0])
    assert loaded.examples.inputs["text"].dtype == torch.uint8
    assert loaded.examples.inputs["text"].tolist() == [[4, 3, 0, 1, 2], [3, 0, 1, 2, 0], [1, 2, 0, 4, 3]]
    assert loaded.examples.target.tolist() == [0, 3, 1]
    assert loaded.examples.group.tolist() == [0, 0, 1]


def test_a_user_in_two_files_is_one_group(tree, made, make_source):
    train = {"a.json": {"ann": ([[0] * 6], [0])}, "b.json": {"bob": ([[1] * 6], [1]), "ann": ([[2] * 6], [2])}}
    assert made().load(make_source(tree(train))[0]).examples.group.tolist() == [0, 1, 0]


def test_a_user_without_examples_is_no_fault(tree, made, make_source):
    train = {"a.json": {"ann": ([], []), "bob": ([[1] * 6], [1])}}
    assert made().load(make_source(tree(train))[0]).examples.group.tolist() == [1]


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({"ann": ([[1] * 5], [0])}, r"a.json, user ann: inputs of 5 numbers do not make \[1, 2, 3\] \(dataset.shape\)"),
        ({"ann": ([[1] * 6, [1] * 5], [0, 0])}, "user ann: inputs are no numbers, or not equally many"),
        ({"ann": (["abcdef"], [0])}, "user ann: inputs are no numbers"),
        ({"ann": ([[float("nan")] * 6], [0])}, "user ann: an input is not finite"),
        ({"ann": ([[1] * 6], [3])}, r"user ann: the target 3 is none of 0 to 2 \(dataset.classes\)"),
        ({"ann": ([[1] * 6], ["b"])}, "user ann: the target 'b' is none of 0 to 2"),
        ({"ann": ([[1] * 6], [True])}, "the target True is none of 0 to 2"),
        ({"ann": ([[1] * 6], [1, 1])}, "user ann: 1 inputs and 2 targets, and num_samples says 2"),
        ({"ann": ([], [])}, "train hold no example"),
    ],
)
def test_wrong_contents_are_one_line(tree, made, make_source, users, message):
    with pytest.raises(AdvmlError, match=message) as caught:
        made().load(make_source(tree({"a.json": users}))[0])
    assert str(caught.value).startswith("leaf: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({"ann": (["to b"], ["o"])}, r"an input is no text of 5 characters \(dataset.shape\)"),
        ({"ann": ([[1] * 5], ["o"])}, "an input is no text of 5 characters"),
        ({"ann": (["to be"], ["to"])}, "a target is not one character"),
        ({"ann": (["to be"], [4])}, "a target is not one character"),
        ({"ann": (["to hi"], ["o"])}, "'h' is not in dataset.alphabet"),
    ],
)
def test_wrong_texts_are_one_line(tree, made, make_source, users, message):
    with pytest.raises(AdvmlError, match=message):
        made(shape=(5,), classes=None, alphabet=" beot").load(make_source(tree({"a.json": users}))[0])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{", r"a.json is no JSON \("),
        ("[]", "a.json is not in LEAF's format"),
        ('{"users": ["ann"], "num_samples": [1], "user_data": {}}', "is not in LEAF's format .KeyError: 'ann'"),
        ('{"users": ["ann"], "num_samples": [1], "user_data": {"ann": {"x": 3, "y": []}}}', "is not in LEAF's format"),
        ('{"users": [], "num_samples": [1], "user_data": {}}', "names 0 users and has 1 num_samples"),
    ],
)
def test_what_is_not_leaf_s_format(tree, made, make_source, raw, message):
    root = tree()
    (root / "train" / "a.json").write_text(raw)
    with pytest.raises(AdvmlError, match=message) as caught:
        made().load(make_source(root)[0])
    assert "\n" not in str(caught.value)


def test_a_folder_without_files_is_named(made, make_source, tmp_path):
    with pytest.raises(AdvmlError, match=r"no JSON file in .*train; dataset.path must name the folder"):
        made().load(make_source(tmp_path)[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "dataset.path: must be given"),
        (["dataset.path=x", "dataset.alphabet=abc"], "dataset.classes: give either classes"),
        (["dataset.path=x", "dataset.classes=null"], "dataset.classes: give either classes"),
        (["dataset.path=x", "dataset.classes=null", "dataset.alphabet=abc"], "dataset.shape: of texts"),
        (["dataset.path=x", "dataset.classes=null", "dataset.alphabet=aba", "dataset.shape=[4]"], "a character twice"),
        (["dataset.path=x", "dataset.shape=[]"], "dataset.shape"),
    ],
)
def test_settings_without_meaning(words, message):
    with pytest.raises(ConfigError, match=message):
        bind(compose(["dataset=leaf", *words])[0])


def test_users_are_clients(tree):
    tree({"a.json": {f"user{k}": ([[k] * 6] * 20, [k % 3] * 20) for k in range(5)}})
    words = ["dataset=leaf", "dataset.path=.", "dataset.shape=[6]", "dataset.classes=3", "view=clients_groups"]
    bound = bind(compose([*words, f"dataset.path={tree()}"])[0])
    view = load_view(bound, pytest.fail)
    assert len(view) == 3
    assert view.train.group.unique().tolist() == [0, 1, 2]
    assert [len(index) for index in view.owned_test] == [0, 1, 0]  # dee is in no training file


def test_the_preset_of_shakespeare_has_leaf_s_alphabet():
    bound = bind(compose(["dataset=leaf_shakespeare", "dataset.path=x"])[0])
    assert bound.dataset.cls(bound.dataset.settings).spec() == Spec({"text": (80,)}, Classes(80), tokens={"text": 80})
