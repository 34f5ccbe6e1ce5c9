"""The loop and the end of a run, driven by a method that only writes down what is asked of it."""

import json
import math

import pytest
import torch

from advml.artifacts import Json, Table
from advml.compose import compose
from advml.config import Part, bind
from advml.contracts import Method, Needs, Nothing, Objective, Phase, Step
from advml.data.none import NoSettings
from advml.runner.budget import Budget
from advml.runner.finish import FlopCounter, finite, flops_estimate, newest_step
from advml.runner.loop import Loop
from advml.runner.recorder import Recorder
from advml.runner.run import Asked, resume, start
from advml.runner.signals import StopRequest


class Scribe(Method):
    """Notes every call. `scores` are the validation scores by step; `ends` the steps that end their phase early."""

    settings = NoSettings
    needs = Needs(view="none", targets=(Nothing,), model=False)
    objective = Objective("score", "valid", "max")
    plan = (Phase("one", "step", 3), Phase("none", "step", 0), Phase("two", "step", 2))
    scores = (0.0, 3.0, 1.0, 3.0, 2.0, 2.5)
    ends = ()

    def setup(self, context):
        self.context, self.calls, self.done = context, [], 0

    def phases(self):
        return self.plan

    def step(self, at):
        self.calls.append((at.phase, at.index, at.total, at.last))
        self.context.count(samples=10)
        self.done = at.total + 1
        return Step({"loss": torch.rand(())}, end_phase=at.total in self.ends)

    def evaluate(self, split):
        self.calls.append((split, self.done))
        self.context.count(samples=1000)
        return {"score": self.scores[self.done]} if split == "valid" else {"score": 10 + self.done}

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


def changed(**changes):
    return type("Changed", (Scribe,), changes)


@pytest.fixture
def bound(inside):
    def make(cls=Scribe, *overrides):
        tree = compose(["dataset=none", "model=none", "threads=1", "device=cpu", "progress=off", *overrides])[0]
        config = bind(tree)
        object.__setattr__(config, "method", Part("scribe", cls, NoSettings()))
        return config

    return make


@pytest.fixture
def driven(bound, tmp_path):
    """A loop of its own over a scribe; what it saves is kept."""

    def make(cls=Scribe, *overrides):
        config, budget, saved = bound(cls, *overrides), Budget(), []

        class Context:
            count = budget.add

        method = cls()
        method.setup(Context())
        recorder = Recorder(tmp_path / "metrics.jsonl")

        def save(last, best):
            saved.append((dict(last), best))

        loop = Loop(method, config.run, recorder, budget, [], StopRequest(), save, lambda entry: None)
        loop.run()
        recorder.close()
        return method, loop, saved

    return make


class TestOrder:
    def test_steps_know_where_they_are_and_evaluations_come_when_they_should(self, driven):
        method, _, _ = driven(Scribe, "evaluate_every=2")
        assert method.calls == [
            ("valid", 0),
            (0, 0, 0, False), (0, 1, 1, False), ("valid", 2), (0, 2, 2, True), ("valid", 3),
            (2, 0, 3, False), ("valid", 4), (2, 1, 4, True), ("valid", 5),
        ]  # fmt: skip

    def test_never_means_phase_ends_only(self, driven):
        method, _, _ = driven(Scribe, "evaluate_every=never")
        assert [call for call in method.calls if call[0] == "valid"] == [("valid", 0), ("valid", 3), ("valid", 5)]

    def test_auto_means_about_twenty(self, driven):
        cls = changed(plan=(Phase("one", "step", 100),), scores=[0.5] * 101)
        method, _, _ = driven(cls)
        assert [call[1] for call in method.calls if call[0] == "valid"] == list(range(0, 101, 5))

    def test_a_phase_may_end_early(self, driven):
        method, loop, _ = driven(changed(ends=(0,)), "evaluate_every=never")
        steps = [call for call in method.calls if call[0] != "valid"]
        assert steps == [(0, 0, 0, False), (2, 0, 1, False), (2, 1, 2, True)]
        assert loop.progress.total == 3

    def test_the_test_split_at_phase_ends_for_those_that_want_it(self, driven):
        method, loop, _ = driven(changed(tests_each_phase=True), "evaluate_every=1")
        assert [call[1] for call in method.calls if call[0] == "test"] == [0, 3, 5]
        phases = [(record["step"], record["phase"]) for record in loop.recorder.records if record["split"] == "test"]
        assert phases == [(0, "start"), (3, "one"), (5, "two")]

    def test_records_carry_the_phase_that_made_them(self, driven):
        _, loop, _ = driven(Scribe, "evaluate_every=never")
        found = [(record["step"], record["phase"], record["split"]) for record in loop.recorder.records]
        assert found == [
            (0, "start", "valid"), (1, "one", "train"), (2, "one", "train"), (3, "one", "train"), (3, "one", "valid"),
            (4, "two", "train"), (5, "two", "train"), (5, "two", "valid"),
        ]  # fmt: skip

    def test_evaluations_are_not_training(self, driven):
        _, loop, _ = driven(Scribe, "evaluate_every=1")
        assert loop.budget.counts == {"samples": 50}

    def test_checkpoints(self, driven):
        _, _, saved = driven(Scribe, "checkpoint_seconds=0")
        assert [last["total"] for last, _ in saved] == [1, 2, 3, 4, 5]
        _, _, saved = driven(Scribe, "checkpoint_seconds=1000")
        assert [(last["total"], last["phase"], last["index"]) for last, _ in saved] == [(3, 2, 0), (5, 3, 0)]


class TestBest:
    def test_the_first_of_equals_is_kept(self, driven):
        _, loop, saved = driven(Scribe, "evaluate_every=1", "checkpoint_seconds=0")
        assert (loop.progress.best_total, loop.progress.best_value) == (1, 3.0)
        assert [best["method"] for _, best in saved if best] == [{"done": 1}]

    def test_less_may_be_better(self, driven):
        cls = changed(objective=Objective("score", "valid", "min"), scores=(9.0, 3.0, 1.0, math.nan, 0.5, None))
        _, loop, saved = driven(cls, "evaluate_every=1", "checkpoint_seconds=1000")
        assert (loop.progress.best_total, loop.progress.best_value) == (4, 0.5)
        assert [best and best["method"] for _, best in saved] == [{"done": 2}, {"done": 4}]

    def test_some_keep_none(self, driven):
        _, loop, saved = driven(changed(objective=Objective("score", "valid", "max", keep_best=False)))
        assert loop.progress.best_total is None
        assert all(best is None for _, best in saved)

    def test_another_splits_numbers_select_nothing(self, driven):
        _, loop, _ = driven(changed(tests_each_phase=True))
        assert loop.progress.best_value == 3.0


class TestWholeRuns:
    def test_a_plan_without_a_step(self, bound):
        outcome = start(bound(changed(plan=())), Asked("test"))
        assert outcome.state == "completed", outcome.message
        result = outcome.folder.result()
        assert result["objective"]["value"] == 0.0
        assert result["best"] == {"step": 0, "score": 0.0, "test": {"score": 10}}
        assert result["stopped_by"] is None

    def test_the_result_has_last_and_best(self, bound):
        result = start(bound(Scribe, "evaluate_every=1"), Asked("test")).folder.result()
        assert result["objective"] == {"metric": "score", "split": "valid", "mode": "max", "value": 2.5}
        assert result["metrics"]["test"] == {"score": 15}
        assert result["best"] == {"step": 1, "score": 3.0, "test": {"score": 11}}
        assert result["budget"] == {"steps": 5, "samples": 50, "flops_estimate": None}

    def test_a_limit_between_evaluations_may_end_in_the_best_state(self, bound):
        """The state that a limit left is measured and ranks like any other; whoever goes on from it never stopped."""
        limited = start(bound(Scribe, "evaluate_every=never", "limits.steps=1"), Asked("test")).folder
        result = limited.result()
        assert result["objective"]["value"] == 3.0
        assert result["best"] == {"step": 1, "score": 3.0, "test": {"score": 11}}
        kept = torch.load(limited / "checkpoints/last.pt", weights_only=True)
        assert (kept["total"], kept["best_total"]) == (1, 0)

    def test_the_best_state_is_not_tested_twice_where_it_is_the_last(self, bound):
        asked = []

        def evaluate(self, split):
            asked.append(split)
            return Scribe.evaluate(self, split)

        cls = changed(scores=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0), evaluate=evaluate)
        folder = start(bound(cls, "evaluate_every=1"), Asked("test")).folder
        assert asked.count("test") == 1
        assert folder.result()["best"] == {"step": 5, "score": 5.0, "test": {"score": 15}}
        tests = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-2:]
        assert [(one["split"], one["state"]) for one in tests] == [("test", "last"), ("test", "best")]
        assert [one["score"] for one in tests] == [15, 15]

    def test_the_last_state_is_the_one_that_stays(self, bound):
        """Testing the best state does not leave it behind for what comes after."""
        seen = []
        cls = changed(artifacts=lambda self, records: seen.append(self.done) or {})
        start(bound(cls), Asked("test"))
        assert seen == [5]

    def test_the_network_of_the_best_state_may_be_another_object(self, bound):
        """An average or an ensemble is made anew by each call of result()."""
        from advml.models.build import build

        def result(self):
            config = bind(compose(["model=linear"])[0])
            from advml.contracts import Classes, Spec

            network = build("linear", config.model.settings, Spec({"x": (1,)}, Classes(1)), 0)
            with torch.no_grad():
                network.head.bias.fill_(self.done)
            return network

        folder = start(bound(changed(result=result), "evaluate_every=1"), Asked("test")).folder
        states = torch.load(folder / "checkpoints/model.pt", weights_only=True)["states"]
        assert states["last"]["head.bias"].item() == 5
        assert states["best"]["head.bias"].item() == 1

    def test_undefined_summaries(self, bound):
        cls = changed(summary=lambda self, records: {"a": math.nan, "b": torch.tensor(math.inf), "c": 0.5, "d": None})
        outcome = start(bound(cls), Asked("test"))
        assert outcome.state == "completed", outcome.message
        assert outcome.folder.result()["summary"] == {"a": None, "b": None, "c": 0.5, "d": None}

    def test_a_fault_of_ours(self, bound):
        def step(self, at):
            raise ZeroDivisionError("what a pity\nmore")

        outcome = start(bound(changed(step=step)), Asked("test"))
        assert outcome.exit_code == 1
        assert outcome.message == f"ZeroDivisionError: what a pity (traceback: {outcome.folder / 'error.txt'})"
        assert "raise ZeroDivisionError" in (outcome.folder / "error.txt").read_text()
        assert outcome.folder.status()["error"] == outcome.message
        assert "failed at step 0" in (outcome.folder / "log.txt").read_text()

    def test_an_operation_without_a_deterministic_form(self, bound):
        def step(self, at):
            raise RuntimeError("cumsum_cuda does not have a deterministic implementation, but you set ...")

        message = start(bound(changed(step=step)), Asked("test")).message
        assert message.startswith("cumsum_cuda has no deterministic form on this device; use deterministic=warn")

    def test_a_batch_norm_that_sees_one_example(self, bound):
        words = ("model=mlp", "model.norm=batch", "method.batch_size=1", "method.epochs=1", "baselines=off")
        outcome = start(bind(compose(["dataset=iris", "progress=off", *words])[0]), Asked("test"))
        assert outcome.exit_code == 1
        assert "a batch norm cannot learn from one example; choose a batch size that" in outcome.message

    def test_warnings_go_to_the_log(self, bound, capsys):
        def step(self, at):
            import warnings

            warnings.warn("careful now", stacklevel=1)
            return Step({"loss": 0.0})

        folder = start(bound(changed(step=step)), Asked("test")).folder
        assert "careful now" in (folder / "log.txt").read_text()
        assert "careful" not in capsys.readouterr().err

    def test_equal_draws_from_the_global_generators_after_resuming(self, bound):
        whole = start(bound(), Asked("test")).folder
        part = start(bound(Scribe, "limits.steps=2"), Asked("test")).folder
        assert resume(part, bound()).state == "completed"
        assert (whole / "metrics.jsonl").read_bytes() == (part / "metrics.jsonl").read_bytes()

    def test_artifacts_are_written(self, bound):
        made = {"table": Table(["a", "b"], [[1, None], ["x, y", 0.5]]), "facts": Json({"a": [1, 2]})}
        folder = start(bound(changed(artifacts=lambda self, records: made)), Asked("test")).folder
        assert (folder / "artifacts/table.csv").read_text() == 'a,b\n1,\n"x, y",0.5\n'
        assert (folder / "artifacts/facts.json").read_text() == '{\n  "a": [\n    1,\n    2\n  ]\n}\n'

    def test_timing_is_kept_apart(self, bound):
        import json

        part = start(bound(Scribe, "limits.steps=2"), Asked("test")).folder
        resume(part, bound())
        lines = [json.loads(line) for line in (part / "timing.jsonl").read_text().splitlines()]
        assert [(line["attempt"], line["step"]) for line in lines] == [(1, 1), (1, 2), (2, 3), (2, 4), (2, 5)]
        totals = [line["total"] for line in lines]
        assert totals == sorted(totals)
        assert part.status()["attempt"] == 2


class TestFlops:
    @pytest.mark.parametrize("model", ["linear", "mlp", "cnn", "conv4"])
    def test_as_torchs_own_counter(self, model):
        from torch.utils.flop_counter import FlopCounterMode

        from advml.contracts import Classes, Spec
        from advml.models.build import build

        spec = Spec({"image": (3, 12, 12)}, Classes(5))
        network = build(model, bind(compose([f"model={model}"])[0]).model.settings, spec, 0)
        with FlopCounterMode(display=False) as theirs, torch.no_grad():
            network.eval()({"image": torch.zeros(1, 3, 12, 12)})
        network.train()
        assert flops_estimate(network, 7, 7) == 3 * theirs.get_total_flops() * 7
        assert flops_estimate(network, 7, 2) == (7 + 2 * 2) * theirs.get_total_flops()  # five only looked at
        assert network.training

    def test_by_hand(self):
        counter = FlopCounter()
        with counter:
            torch.ones(3, 4) @ torch.ones(4, 5)
            torch.ones(3) + 1
        assert counter.total == 2 * 3 * 4 * 5

    def test_fused_attention_counts_as_written_out(self):
        query, key = torch.ones(2, 3, 50, 8), torch.ones(2, 3, 40, 8)
        with FlopCounter() as fused, torch.no_grad():
            torch.nn.functional.scaled_dot_product_attention(query, key, key)
        with FlopCounter() as plain:
            (query @ key.mT).softmax(-1) @ key
        assert fused.total == plain.total == 2 * 2 * (2 * 3 * 50 * 40 * 8)

    def test_unknown(self):
        assert flops_estimate(None, 3) is None
        recurrent = torch.nn.Sequential(torch.nn.LSTM(2, 3))
        recurrent.recipe = {"spec": {"inputs": {"x": (4, 2)}}}
        assert flops_estimate(recurrent, 3) is None  # torch counts nothing of what an LSTM computes
        assert flops_estimate(torch.nn.Linear(1, 1), None) is None


def test_helpers():
    assert [finite(value) for value in (1.5, math.nan, math.inf, None)] == [1.5, None, None, None]
    records = [{"step": 1, "split": "valid"}, {"step": 2, "split": "train"}]
    assert newest_step(records, "valid") == 1
    assert newest_step(records, "test") is None
