"""Which keys tell configurations apart."""

import pytest

from advml.report.keys import ABSENT, differing, of_problem, ordered, shown


def flat(method="a", **more):
    return {"dataset.name": "digits", "method.name": method, **{key.replace("__", "."): v for key, v in more.items()}}


class TestDiffering:
    def test_one_row(self):
        assert differing([flat(method__lr=1)]) == ([], [])

    def test_values(self):
        assert differing([flat(method__lr=1, method__epochs=3), flat(method__lr=2, method__epochs=3)]) == (
            ["method.lr"], [],
        )  # fmt: skip

    def test_keys_that_only_one_method_knows_are_no_difference(self):
        assert differing([flat("ewc", method__strength=3), flat("finetune")]) == (["method.name"], [])

    def test_but_what_varies_among_those_who_know_it_is(self):
        rows = [flat("ewc", method__strength=3), flat("ewc", method__strength=4), flat("finetune")]
        assert differing(rows) == (["method.name", "method.strength"], [])

    def test_what_follows_from_a_choice_is_named_apart(self):
        """Each method has its own default of lr; the epochs of one of them vary."""
        rows = [flat("a", method__lr=1, method__epochs=5), flat("b", method__lr=2, method__epochs=5),
                flat("b", method__lr=2, method__epochs=6)]  # fmt: skip
        assert differing(rows) == (["method.name", "method.epochs"], ["method.lr"])

    def test_a_choice_never_follows_from_another(self):
        rows = [{"method.name": "a", "view.name": "plain"}, {"method.name": "b", "view.name": "stream"}]
        assert differing(rows) == (["view.name", "method.name"], [])

    def test_names_come_first(self):
        rows = [{"evaluate_every": 1, "model.name": "m", "dataset.name": "d"},
                {"evaluate_every": 2, "model.name": "n", "dataset.name": "e"}]  # fmt: skip
        assert differing(rows)[0] == ["dataset.name", "model.name", "evaluate_every"]

    def test_a_key_born_since_still_tells_two_rows_apart(self):
        assert differing([flat(), flat(method__new=0)]) == (["method.new"], [])

    def test_a_choice_that_some_configurations_know_another_key_of(self):
        """`b` once with and once without the key: it does not follow from the name."""
        rows = [flat("a", method__k=1), flat("b", method__k=2), flat("b")]
        assert differing(rows) == (["method.name", "method.k"], [])

    def test_numbers_and_texts(self):
        assert differing([flat(method__k=1), flat(method__k=1.0)])[0] == []
        assert differing([flat(method__k=1), flat(method__k="1")])[0] == ["method.k"]
        assert differing([flat(method__k=1), flat(method__k=True)])[0] == ["method.k"]
        assert differing([flat(method__k=[1, 2]), flat(method__k=[1, 3])])[0] == ["method.k"]


@pytest.mark.parametrize(("key", "expected"), [
    ("dataset.name", True), ("dataset.noise", True), ("dataset.keep_classes", True), ("dataset.test", True),
    ("dataset.limit", True), ("dataset.split_seed", True), ("view.tasks", True),
    ("dataset.normalise", False), ("dataset.pca", False), ("dataset.valid", False), ("method.lr", False),
    ("model.name", False),
])  # fmt: skip
def test_what_is_learnt_and_how(key, expected):
    assert of_problem(key) is expected


@pytest.mark.parametrize(("value", "text"), [
    (0.001, "0.001"), (1e-5, "1e-05"), (0.1234567891, "0.1234567891"), (3, "3"), (True, "true"), (None, "null"),
    ("ewc", "ewc"), ([64, 64], "[64,64]"), (ABSENT, "–"), ([], "[]"), (100.0, "100"), (["a", "b"], "[a,b]"),
])  # fmt: skip
def test_shown_as_typed(value, text):
    assert shown(value) == text


def test_order():
    assert sorted([0.1, None, "b", 10, ABSENT, 0.02, "a", True], key=ordered) == [
        None, ABSENT, 0.02, 0.1, 10, "a", "b", True,
    ]  # fmt: skip
    assert sorted([[128, 2], "task10", [16], "task9", [128]], key=ordered) == [[16], [128, 2], [128], "task9", "task10"]
