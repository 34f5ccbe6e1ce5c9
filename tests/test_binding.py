"""Binding settings and resolving names: strict types, every mistake at once, with the nearest name."""

import dataclasses
import sys
from typing import Annotated, Literal

import pytest
from annotated_types import Gt

from advml import registry
from advml.compose import compose
from advml.config import Fraction, PositiveInt, _bind_settings, bind, settings
from advml.contracts import Classes, Needs, Nothing, Objective, Real, Spec, Tokens
from advml.errors import AdvmlError, ConfigError, did_you_mean
from advml.runner.fit import check_fit


@settings
class Inner:
    kind: Literal["none", "gaussian"]
    scale: Annotated[float, Gt(0)]


@settings
class Sample:
    count: PositiveInt
    rate: Annotated[float, Gt(0)]
    share: Fraction
    on: bool
    kind: Literal["a", "b"]
    sizes: tuple[PositiveInt, ...]
    pair: tuple[float, float]
    wait: PositiveInt | Literal["auto"] | None
    noise: Inner

    def __post_init__(self):
        if self.pair[0] > self.pair[1]:
            raise ValueError("pair: must rise")


GOOD = {"count": 3, "rate": 0.5, "share": 0.0, "on": True, "kind": "a", "sizes": [1, 2], "pair": [0, 1.5], "wait": None,
        "noise": {"kind": "none", "scale": 1.0}}  # fmt: skip


def mistakes(**changes):
    found = []
    bound = _bind_settings(Sample, {**GOOD, **changes}, "method.", found)
    assert (bound is None) == bool(found)
    return found


class TestBinding:
    def test_good(self):
        found = []
        bound = _bind_settings(Sample, GOOD, "method.", found)
        assert found == []
        assert dataclasses.asdict(bound) == {**GOOD, "sizes": (1, 2), "pair": (0.0, 1.5)}
        assert type(bound.pair[0]) is float
        with pytest.raises(dataclasses.FrozenInstanceError):
            bound.count = 4

    @pytest.mark.parametrize("changes", [{"count": 1e5}, {"rate": 3}, {"wait": 4}, {"wait": "auto"}, {"sizes": []},
                                         {"share": 0.999}, {"count": 3.0}])  # fmt: skip
    def test_as_good(self, changes):
        assert mistakes(**changes) == []

    @pytest.mark.parametrize(("changes", "lines"), [
        ({"count": 0}, ["method.count: must be greater than 0, not 0"]),
        ({"count": True}, ["method.count: must be a valid integer, not true"]),
        ({"count": "3"}, ['method.count: must be a valid integer, not "3"']),
        ({"count": 2.5}, ["method.count: must be a valid integer, not 2.5"]),
        ({"count": None}, ["method.count: must be a valid integer, not null"]),
        ({"rate": float("nan")}, ["method.rate: must be a finite number, not nan"]),
        ({"rate": "fast"}, ['method.rate: must be a valid number, not "fast"']),
        ({"share": 1}, ["method.share: must be less than 1, not 1"]),
        ({"on": 1}, ["method.on: must be a valid boolean, not 1"]),
        ({"kind": "c"}, ["method.kind: must be 'a' or 'b', not \"c\""]),
        ({"sizes": [1, 0, 2.5]}, ["method.sizes.1: must be greater than 0, not 0",
                                  "method.sizes.2: must be a valid integer, not 2.5"]),
        ({"sizes": 3}, ["method.sizes: must be a list, not 3"]),
        ({"noise": {"kind": "loud", "scale": 0}}, ["method.noise.kind: must be 'none' or 'gaussian', not \"loud\"",
                                                   "method.noise.scale: must be greater than 0, not 0"]),
        ({"noise": {"kind": "none", "scale": 1, "sclae": 2}},
         ["method.noise.sclae: unknown key; did you mean method.noise.scale?"]),
        ({"noise": None}, ["method.noise: must be a block of keys, not null"]),
        ({"cuont": 2}, ["method.cuont: unknown key; did you mean method.count?"]),
        ({"pair": [2, 1]}, ["method.pair: must rise"]),
        ({"rate": "???"}, ["method.rate: must be given, like method.rate=VALUE"]),
        ({"rate": "???", "count": 0}, ["method.count: must be greater than 0, not 0",
                                       "method.rate: must be given, like method.rate=VALUE"]),
    ])  # fmt: skip
    def test_wrong(self, changes, lines):
        assert sorted(mistakes(**changes)) == sorted(lines)

    def test_alternatives_are_joined(self):
        (line,) = mistakes(wait="soon")
        assert line == "method.wait: must be a valid integer or 'auto', not \"soon\""

    def test_what_json_cannot_say(self):
        import datetime

        (line,) = mistakes(kind=datetime.date(2020, 1, 1))
        assert line == "method: Object of type date is not JSON serializable"

    def test_missing(self):
        found = []
        assert _bind_settings(Inner, {}, "method.noise.", found) is None
        assert len(found) == 2


class TestWholeTree:
    def test_every_mistake_of_every_block(self, inside):
        tree = compose([])[0]
        tree["sed"], tree["method"]["lrr"], tree["model"]["hidden"], tree["dataset"]["name"] = 1, 2, 3, "iriss"
        del tree["view"]
        with pytest.raises(ConfigError) as caught:
            bind(tree)
        assert list(caught.value.mistakes) == [
            "sed: unknown key; did you mean seed?",
            "dataset=iriss: unknown dataset; did you mean iris? (see: advml list datasets)",
            "view: must be a block with a name, not null (see: advml list views)",
            "model.hidden: must be a list, not 3",
            "method.lrr: unknown key; did you mean method.lr?",
        ]

    @pytest.mark.parametrize(("key", "hint"), [
        ("lr", "method.lr"), ("hiden", "model.hidden"), ("epoch", "method.epochs"), ("sed", "seed"),
        ("normalize", "dataset.normalise"),
    ])  # fmt: skip
    def test_a_forgotten_block(self, key, hint, inside):
        with pytest.raises(ConfigError, match=rf"^{key}: unknown key; did you mean {hint}\?$"):
            bind({**compose([])[0], key: 1})

    def test_nothing_near(self, inside):
        with pytest.raises(ConfigError, match=r"^zzz: unknown key$"):
            bind({**compose([])[0], "zzz": 1})


class TestRegistry:
    @pytest.mark.parametrize("kind", ["method", "dataset", "view", "model"])
    def test_every_name_resolves(self, kind):
        assert registry.names(kind) == sorted(registry.BUILT_IN[kind])
        for name in registry.names(kind):
            assert registry.resolve(kind, name).settings

    def test_unknown(self):
        with pytest.raises(ConfigError, match=r"^method=ewcc: unknown method; did you mean ewc\?"):
            registry.resolve("method", "ewcc")

    def test_a_class_by_its_place(self, inside, monkeypatch):
        monkeypatch.setattr(sys, "path", list(sys.path))
        (inside / "my_own_place.py").write_text("class Thing:\n    settings = int\n")
        assert registry.resolve("model", "my_own_place:Thing").settings is int
        with pytest.raises(ConfigError, match=r"cannot load my_own_place:Nothing: AttributeError"):
            registry.resolve("model", "my_own_place:Nothing")
        del sys.modules["my_own_place"]


class TestFit:
    """Pairs that do not fit name both sides and what would fit."""

    @pytest.fixture
    def said(self, inside):
        def said(*overrides, **needs):
            bound = bind(compose(overrides)[0])
            if needs:
                changed = dataclasses.replace(bound.method.cls.needs, **needs)
                cls = type("Other", (bound.method.cls,), {"needs": changed})
                object.__setattr__(bound.method, "cls", cls)
            with pytest.raises(ConfigError) as caught:
                check_fit(bound)
            return list(caught.value.mistakes)

        return said

    def test_precision(self, said):
        assert said("precision=bf16", precisions=("float32", "float64")) == [
            "precision=bf16: method=supervised does not support it; use float32 or float64"
        ]

    def test_scenario(self, said):
        assert said("method=packnet", "view=stream_class") == [
            "view.scenario=class: method=packnet serves the scenario task only; use view.scenario=task"
        ]

    @pytest.mark.parametrize("method", ["darts", "enas", "random_nas", "evolution"])
    def test_space_of_architectures(self, said, method):
        for model in ("mlp", "nasbench201", "genotype", *(["darts_cells"] if method == "enas" else [])):
            fitting = "model=enas_micro" if method == "enas" else "model=darts_cells or model=enas_micro"
            assert said(f"method={method}", f"model={model}") == [
                f"model={model}: is no space of architectures that method={method} searches; use {fitting}"
            ]

    def test_a_table_needs_no_space_of_architectures(self, said):
        words = ["method=random_nas", "view=table", "dataset=nasbench201_table"]
        check_fit(bind(compose([*words, "model=none"])[0]))
        assert said(*words, "model=mlp") == ["model=mlp: method=random_nas trains no network; use model=none"]

    def test_view(self, said):
        assert said("view=stream") == [
            "view=stream: method=supervised reads a plain or modalities view, not stream; use view=plain or modalities"
        ]
        assert said(view="episodes_of_nobody") == [
            "view=plain: method=supervised reads an episodes_of_nobody view, not plain; use view=one that gives it"
        ]

    def test_target(self, said):
        assert said("dataset=diabetes", targets=(Classes, Tokens)) == [
            "dataset=diabetes: its target is real, but method=supervised learns classes or tokens (advml list datasets)"
        ]

    def test_several_at_once(self, said):
        assert said("precision=bf16", "model=none", "dataset=none", precisions=("float32",)) == [
            "precision=bf16: method=supervised does not support it; use float32",
            "model=none: method=supervised trains a network; choose a model (see: advml list models)",
            "dataset=none: method=supervised needs data; choose a data set (see: advml list datasets)",
        ]

    def test_what_is_not_wanted(self, said):
        assert said(view="none", model=False, targets=(Nothing,)) == [
            "model=mlp: method=supervised trains no network; use model=none",
            "dataset=digits: method=supervised uses no data; use dataset=none",
        ]

    def test_everything_fits_with_the_defaults_of_needs(self):
        assert Needs().view == "plain"


class TestContracts:
    @pytest.mark.parametrize("target", [Classes(10), Real((2, 3)), Tokens(65), Nothing()])
    def test_a_spec_survives_the_file(self, target):
        import json

        spec = Spec({"image": (3, 8, 8), "text": (12,)}, target)
        assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec

    def test_outputs(self):
        specs = [Spec({}, target) for target in (Classes(10), Real((2, 3)), Real(()), Tokens(65), Nothing())]
        assert [spec.outputs for spec in specs] == [10, 6, 1, 65, 0]

    def test_better(self):
        most, least = (Objective("m", "valid", mode) for mode in ("max", "min"))
        assert most.better(1.0, None)
        assert most.better(1.0, 0.5)
        assert not most.better(0.5, 0.5)
        assert not most.better(None, None)
        assert not most.better(float("nan"), None)
        assert least.better(0.5, 1.0)
        assert not least.better(1.0, 0.5)


class TestErrors:
    def test_lines(self):
        error = ConfigError(["one", "two"])
        assert (str(error), error.mistakes, error.exit_code) == ("one\ntwo", ("one", "two"), 2)
        assert ConfigError("one").mistakes == ("one",)
        assert AdvmlError("x").exit_code == 1

    def test_did_you_mean(self):
        assert did_you_mean("lrr", ["lr", "seed"], "method.") == "; did you mean method.lr?"
        assert did_you_mean("xyz", ["lr", "seed"]) == ""
        assert did_you_mean("x", []) == ""
