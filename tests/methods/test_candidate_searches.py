"""ENAS and searches by training or weight sharing: what is scored how, what is retrained, what refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F

import advml
from advml.compose import compose
from advml.errors import ConfigError
from advml.methods.nas.shared import batch_statistics
from advml.nn.cells.spaces import DartsCells, EnasMicro
from advml.runner.baselines import plan

SMALL = (
    "dataset=digits", "dataset.limit=150", "method.batch_size=24", "method.retrain.epochs=1",
    "method.retrain.channels=2", "method.retrain.cells=2",
    "method.retrain.reductions=1", "method.retrain.auxiliary=0", "model.channels=2",
    "model.cells=2", "model.nodes=2", "model.reductions=1", "precision=float64",
)  # fmt: skip
CODE = (0, 3, 2, 1, 2, 3, 0, 2, 2, 2, 4, 5)


def search(play, name, *words):
    return play(f"method={name}", "model=darts_cells", *SMALL, *words)


def enas(play, *words):
    small = ("method.epochs=2", "method.controller_steps=2", "method.aggregate=3", "method.candidates=4")
    return play("method=enas", "model=enas_micro", *SMALL, *small, *words)


class TestSharing:
    def test_the_best_of_the_scored_is_retrained(self, play):
        played = search(play, "random_nas", "method.evaluations=6", "method.estimate.epochs=1").go(7)
        inner = played.method.inner
        scores = [row[1] for row in inner.scored]
        assert len(scores) == 6
        best = inner.scored[scores.index(max(scores))][0]
        again = [float(inner.shared.score(inner.space.genotype(row[0]), inner.valid_half)) for row in inner.scored]
        assert again == scores
        played.steps.pop()  # the phase ended by itself, before all questions that it might have taken
        from advml.contracts import At

        inner.step(At(2, 0, 8, True))
        assert inner.genotype == DartsCells(2).genotype(best)
        assert inner.result().genotype == inner.genotype

    def test_a_score_is_the_accuracy_of_the_selected_network_by_batch_statistics(self, play):
        inner = search(play, "random_nas").method.inner
        genotype = inner.space.genotype(CODE)
        network = copy.deepcopy(inner.shared.network)
        network.train()
        state = copy.deepcopy(inner.shared.network.state_dict())
        batch = inner.valid_half.batch(slice(None))
        expected = (network(batch.inputs, *network.selection(genotype)).argmax(1) == batch.target).double().mean()
        assert float(inner.shared.score(genotype, inner.valid_half)) == pytest.approx(float(expected))
        assert all(torch.equal(value, state[name]) for name, value in inner.shared.network.state_dict().items())

    def test_many_scores_make_the_network_ready_once(self, play, monkeypatch):
        inner = search(play, "random_nas").method.inner
        shared, genotype = inner.shared, inner.space.genotype(CODE)
        alone, entered = shared.score(genotype, inner.valid_half), []

        def watched(network):
            entered.append(network)
            return batch_statistics(network)

        monkeypatch.setattr("advml.methods.nas.shared.batch_statistics", watched)
        with shared.scoring():
            assert [shared.score(genotype, inner.valid_half) for _ in range(3)] == [alone] * 3
        assert entered == [shared.network]
        assert all(norm.track_running_stats for norm in shared.network.modules() if hasattr(norm, "running_mean"))
        assert shared.score(genotype, inner.valid_half) == alone

    def test_an_update_trains_the_selected_weights_only(self, play):
        inner = search(play, "random_nas").method.inner
        genotype = inner.space.genotype(CODE)
        before = copy.deepcopy(inner.shared.network)
        inner.shared.per_epoch = 1
        inner.shared.epoch(0, lambda update: genotype)
        index = torch.randperm(len(inner.train_half), generator=inner.context.rng("shared order", 0))[:24]
        batch = inner.train_half.batch(index)
        loss = F.cross_entropy(before.train()(batch.inputs, *before.selection(genotype)), batch.target)
        gradients = torch.autograd.grad(loss, before.weights(), allow_unused=True)
        norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
        for old, new, gradient in zip(before.weights(), inner.shared.network.weights(), gradients, strict=True):
            if gradient is None:
                assert torch.equal(old, new)
            else:
                step = gradient * min(1.0, 5.0 / float(norm + 1e-6)) + 3e-4 * old
                torch.testing.assert_close(new, old - 0.05 * step, rtol=1e-9, atol=1e-12)


class TestTraining:
    def test_a_candidate_met_again_keeps_its_score_and_is_charged_by_raw_counting(self, play):
        words = ("method.estimate.kind=training", "method.estimate.epochs=1", "model.nodes=1", "method.evaluations=4")
        played = search(play, "local_search", *words, "method.count=raw", "model.operations=[skip_connect, none]")
        played.go(4)
        inner = played.method.inner
        assert len(inner.scored) == 4  # one node of one operation: a single architecture
        assert len({row[:3] for row in inner.scored}) == 1
        assert played.budget.counts["evaluations"] == 4
        assert played.budget.counts["samples"] == len(inner.train_half) + len(inner.valid_half)  # once

    def test_what_was_met_is_looked_up_and_comes_back_with_the_state(self, play, monkeypatch):
        words = ("method.estimate.epochs=1", "model.nodes=1", "method.evaluations=5", "method.count=unique")
        whole, resumed = (search(play, "local_search", *words).go(5) for _ in range(2))
        again, asked = search(play, "local_search", *words), []
        again.method.load_state_dict(copy.deepcopy(resumed.method.state_dict()))
        again.steps = resumed.steps
        space = again.method.inner.space
        monkeypatch.setattr(space, "canonical", lambda code: asked.append(code) or type(space).canonical(space, code))
        rest = again.go()
        whole.go()
        assert again.method.inner.scored == whole.method.inner.scored
        assert again.method.inner.met == whole.method.inner.met
        assert len(asked) == len(rest.steps) - 5  # once for each question

    def test_candidates_are_trained_on_the_images_of_the_search(self, play):
        words = ("method.estimate.kind=training", "method.estimate.epochs=1", "method.evaluations=2", "method.pool=2")
        played = search(play, "evolution", *words, "method.count=raw", "method.retrain.auxiliary=0.4").go(2)
        inner = played.method.inner
        assert inner.train_half.batch(slice(2)).inputs["image"].shape == (2, 1, 4, 4)
        assert all(0 <= row[1] <= 1 for row in inner.scored)
        played.go()
        assert "accuracy" in played.evaluate("test")  # of a network of whole images

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (
                ["method.pool=4", "method.retrain.reductions=3", "method.retrain.cells=4"],
                "method.retrain: needs one image of at least 5×5",
            ),
            (["method.examples=82", "method.retrain.batch_size=40"], "method.retrain.batch_size: leaves a batch"),
        ],
    )
    def test_what_candidates_cannot_be_trained_on_is_refused_before(self, play, words, line):
        training = ("method.estimate.kind=training", "method.evaluations=2")
        search(play, "evolution", *training[1:], *words)  # by shared weights it can
        with pytest.raises(ConfigError, match=line):
            search(play, "evolution", *training, *words)

    def test_one_evaluation_is_a_random_architecture(self, play):
        words = ("method.evaluations=1",)
        first, second, other = (search(play, "random_nas", *words, f"method.draw={n}") for n in (0, 0, 1))
        for played in (first, second, other):
            played.go().go()  # the search ends its phase
        genotypes = [played.method.inner.genotype for played in (first, second, other)]
        assert genotypes[0] == genotypes[1] != genotypes[2]
        assert first.steps[0]["score"] == 0
        assert "samples" in first.budget.counts
        updates = -(-len(first.method.inner.data.train) // 64)
        assert first.budget.counts["updates"] == updates  # nothing but retraining

    def test_tables_are_repeated_not_trainings(self, play):
        with pytest.raises(ConfigError, match=r"method\.repeats: only searches of a table"):
            search(play, "evolution", "method.repeats=2")


def test_flops_are_known_where_all_samples_went_through_the_network_found(tmp_path):
    quiet = ("threads=1", "progress=off", "figures=false", "baselines=off", f"outputs={tmp_path}")
    words = ("method=random_nas", "model=darts_cells", *SMALL, "method.estimate.epochs=1", *quiet)
    one, two = (advml.run(*words, f"method.evaluations={count}").result["budget"] for count in (1, 2))
    assert one["flops_estimate"] > 0
    assert two["samples"] > one["samples"]
    assert two["flops_estimate"] is None


class TestEnas:
    def test_the_best_of_the_last_draw_is_retrained(self, play):
        played = enas(play).go(2)
        method = played.method
        assert len(method.ranked) == 4
        assert [score for _, score in method.ranked] == sorted((score for _, score in method.ranked), reverse=True)
        assert method.derive() == EnasMicro(2).genotype(tuple(method.ranked[0][0]))
        assert played.budget.counts["evaluations"] == 2 * 2 * 3 + 4
        per_epoch = -(-len(method.valid_half) // 24)  # rewards: batches of the validation half, epoch after epoch
        sizes = [24] * (per_epoch - 1) + [len(method.valid_half) - 24 * (per_epoch - 1)]
        rewarded = sum(sizes[number % per_epoch] for number in range(2 * 2 * 3))
        assert played.budget.counts["samples"] == 2 * len(method.train_half) + rewarded + 4 * 24
        assert played.budget.counts["updates"] == 2 * -(-len(method.train_half) // 24) + 2 * 2
        played.go()
        assert method.result().genotype == method.derive()
        assert "accuracy" in played.evaluate("test")

    @pytest.mark.parametrize(
        ("words", "floor"),
        [("preset=code", 0.0005), ("preset=paper", 0.001), ("preset=paper method.lr_min=0.01", 0.01)],
    )
    def test_where_the_rate_of_shared_weights_ends(self, play, words, floor):
        played = enas(play, *f"method.{words}".split(), "method.restart=10000", "method.epochs=2")
        assert played.method.shared.rate(0) == 0.05
        assert played.method.shared.rate(9999) == pytest.approx(floor, rel=1e-3)

    def test_a_controller_step_is_reinforce_on_mini_batch_accuracies(self, play):
        method = enas(play).method
        controller = copy.deepcopy(method.learner.controller)
        drawn = controller.draw(3, method.context.rng("controller", 0))
        order = torch.randperm(len(method.valid_half), generator=method.context.rng("reward order", 0)).split(24)[:3]
        rewards = []
        for cells, index in zip(drawn.cells, order, strict=True):
            network, batch = method.network, method.valid_half.batch(index)
            genotype = method.space.genotype(tuple(cells.flatten().tolist()))
            with batch_statistics(network), torch.no_grad():
                outputs = network(batch.inputs, *network.selection(genotype))
            rewards.append(float((outputs.argmax(1) == batch.target).double().mean()))
        baseline, advantages = 0.0, []
        for reward, entropy in zip(rewards, drawn.entropy.tolist(), strict=True):
            baseline = 0.99 * baseline + 0.01 * (reward + 1e-4 * entropy)
            advantages.append(reward + 1e-4 * entropy - baseline)
        loss = -(torch.tensor(advantages, dtype=torch.float64) * drawn.log_probability).mean()
        epsilon = 1e-3 / 0.001**0.5  # TensorFlow's, which stands beside √v before it is corrected
        adam = torch.optim.Adam(controller.parameters(), 0.0035, (0.0, 0.999), epsilon)
        loss.backward()
        adam.step()
        method._controller_step(0)
        assert float(method.learner.baseline) == pytest.approx(baseline, abs=1e-7)
        for ours, theirs in zip(method.learner.controller.parameters(), controller.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)

    def test_a_search_is_measured_to_its_end_on_validation_examples(self, play, monkeypatch):
        played = enas(play, "method.retrain.epochs=0", "method.pool=2").go(2)
        method, seen = played.method, []
        score = method.shared.score

        def watched(genotype, data):
            seen.append(data)
            return score(genotype, data)

        monkeypatch.setattr(method.shared, "score", watched)
        found = played.evaluate("valid")
        assert method.ranked
        assert 0 <= found[method.objective.metric] <= 1
        assert len(seen) == 10
        assert all(data.target.equal(method.data.valid.target) for data in seen)
        assert seen[0].batch(slice(2)).inputs["image"].shape == (2, 1, 4, 4)
        assert played.evaluate("test") == {}
        assert enas(play, "dataset.valid=0").evaluate("valid") == {}

    def test_its_codes_are_the_controllers_decisions(self, play):
        method = enas(play).method
        cells = method.learner.controller.draw(20, method.context.rng("x")).cells
        for code, genotype in zip(cells, method._genotypes(cells), strict=True):
            for kind, cell in enumerate(genotype.cells.values()):
                for node, (one, two) in enumerate(cell.nodes):
                    names = method.space.operations
                    decided = [one.source, two.source, names.index(one.operation), names.index(two.operation)]
                    assert code[kind, node].tolist() == decided


class TestRefusedBeforeAnyWork:
    @pytest.mark.parametrize("name", ["random_nas", "evolution", "darts"])
    def test_nothing_to_choose_from(self, play, name):
        with pytest.raises(ConfigError, match=r"^model\.operations: nothing but none"):
            search(play, name, "model.operations=[none]")

    @pytest.mark.parametrize("name", ["random_nas", "darts", "enas"])
    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (["model.cells=1"], r"^model\.cells=1: with model\.reductions=1 no normal cell is searched"),
            (["model.reductions=0"], r"^model\.reductions=0: no reduce cell is searched"),
        ],
    )
    def test_a_kind_of_cell_that_nothing_learns(self, play, name, words, line):
        begin = enas if name == "enas" else lambda play, *words: search(play, name, *words)
        with pytest.raises(ConfigError, match=line):
            begin(play, *words)
        begin(play, *words, "method.retrain.epochs=0")
        search(play, "random_nas", *words, "method.evaluations=1")  # drawn, not learned

    def test_the_size_in_which_candidates_are_counted(self, play):
        with pytest.raises(ConfigError, match=r"^method\.retrain: needs one image of at least 9×9"):
            search(
                play, "evolution", "method.retrain.epochs=0", "method.retrain.reductions=4", "method.retrain.cells=4"
            )

    def test_what_would_have_no_effect(self, play):
        for name, words, line in (
            ("random_nas", ["method.marks=[3]"], r"^method\.marks: only searches of a table have them"),
            ("random_nas", ["method.pool=20"], r"^method\.pool=20: leaves nothing of images 8×8; use a smaller one"),
            ("random_nas", ["model.reductions=3"], r"^model\.reductions: 2 cells cannot halve the image 3 times"),
            ("random_nas", ["method.retrain.reductions=3"], r"^method\.retrain\.reductions: 2 cells cannot halve"),
        ):
            with pytest.raises(ConfigError, match=line):
                play(f"method={name}", "model=darts_cells", *SMALL, *words)

    def test_more_reductions_than_a_genotype_can_have(self, play):
        with pytest.raises(ConfigError, match=r"method\.retrain\.reductions: must be less than or equal to 4, not 5"):
            search(play, "evolution", "method.retrain.reductions=5")


@pytest.mark.parametrize("name", ["evolution", "reinforce", "local_search", "bayes_opt"])
def test_the_baseline_has_as_many_evaluations_as_the_search(name):
    """On the command line an equal number carries over; of the defaults they are the same."""
    (tree, _), (drawn, _) = compose([f"method={name}"]), compose(["method=random_nas"])
    assert tree["baselines"]["random"] == ["method=random_nas"]
    for key in ("evaluations", "count", "estimate"):
        assert tree["method"][key] == drawn["method"][key]


@pytest.mark.parametrize(
    ("words", "epochs"),
    [(["method=darts"], 8), (["method=darts", "method.epochs=50"], 50), (["method=enas", "method.epochs=3"], 3),
     (["experiment=darts_cifar10"], 50)],
)  # fmt: skip
def test_random_search_beside_a_search_trains_shared_weights_for_as_many_epochs(words, epochs):
    tree, _ = compose(words)
    found = plan(tree)["random"]["method"]
    assert (found["name"], found["estimate"]["epochs"], found["evaluations"]) == ("random_nas", epochs, 30)


def test_without_retraining_a_search_is_judged_by_its_best_score(play):
    played = search(play, "random_nas", "method.evaluations=3", "method.estimate.epochs=1", "method.retrain.epochs=0")
    assert played.method.objective.metric == "best_score"
    inner = played.go(4).method.inner
    assert played.evaluate("valid") == {"best_score": max(row[1] for row in inner.scored)}
    assert played.evaluate("test") == {}
