"""Losses, modulation and products of experts against plain loops in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from advml.nn.multimodal.experts import log_prior, product_of_experts
from advml.nn.multimodal.losses import info_nce, median_rank, recall_at, same_meaning, sigmoid_loss
from advml.nn.multimodal.modulation import coefficients, confidence, modulate


def pairs(seed=0, rows=6, width=4):
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return F.normalize(one, dim=1), F.normalize(other, dim=1)


MEANINGS = torch.tensor([0, 1, 0, 2, 3, 0])


class TestInfoNce:
    @pytest.mark.parametrize("meanings", [MEANINGS, torch.arange(6)])
    def test_it_is_the_loop(self, meanings):
        one, other = pairs()
        scale = torch.tensor(1.3, dtype=torch.float64)
        total = 0.0
        for first, second in ((one, other), (other, one)):
            for i in range(6):
                scores = [math.exp(1.3) * float(first[i] @ second[j]) for j in range(6)]
                normal = math.log(sum(math.exp(score) for score in scores))
                alike = [j for j in range(6) if meanings[j] == meanings[i]]
                total += sum(normal - scores[j] for j in alike) / len(alike) / 6 / 2
        assert float(info_nce(one, other, scale, same_meaning(meanings, meanings))) == pytest.approx(total, rel=1e-12)

    def test_of_single_positives_it_is_clips(self):
        one, other = pairs(1)
        logits = one @ other.T * math.e
        expected = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
        scale = torch.ones((), dtype=torch.float64)
        torch.testing.assert_close(info_nce(one, other, scale, torch.eye(6, dtype=torch.bool)), expected)

    def test_no_loss_is_lower_than_that_of_one_place_a_meaning(self):
        """Then what remains is the entropy of the targets: log 3 for each of three that mean the same."""
        places = torch.eye(4, dtype=torch.float64)[MEANINGS]
        positives = same_meaning(MEANINGS, MEANINGS)
        scale = torch.tensor(5.0, dtype=torch.float64)
        assert float(info_nce(places, places, scale, positives)) == pytest.approx(3 / 6 * math.log(3), rel=1e-9)
        single = info_nce(places, places, scale, torch.eye(6, dtype=torch.bool))
        away = places.clone()
        away[2] = F.normalize(places[2] + 0.3 * places[1], dim=0)
        assert info_nce(away, places, scale, positives) > 3 / 6 * math.log(3) + 0.01
        assert float(single) == pytest.approx(3 / 6 * math.log(3), rel=1e-9)


class TestSigmoid:
    def test_it_is_the_loop(self):
        one, other = pairs(3)
        scale, bias = (torch.tensor(value, dtype=torch.float64) for value in (0.7, -2.0))
        total = 0.0
        for i in range(6):
            for j in range(6):
                sign = 1 if MEANINGS[i] == MEANINGS[j] else -1
                total += math.log(1 + math.exp(-sign * (math.exp(0.7) * float(one[i] @ other[j]) - 2.0))) / 6
        found = sigmoid_loss(one, other, scale, bias, same_meaning(MEANINGS, MEANINGS))
        assert float(found) == pytest.approx(total, rel=1e-12)

    def test_gradients(self):
        one, other = (value.requires_grad_() for value in pairs(4))
        scale, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, -1.0))
        positives = same_meaning(MEANINGS, MEANINGS)
        assert torch.autograd.gradcheck(lambda *a: sigmoid_loss(*a, positives), (one, other, scale, bias))
        assert torch.autograd.gradcheck(lambda *a: info_nce(*a, positives), (one, other, scale))


class TestRetrieval:
    def test_recall_is_the_loop(self):
        generator = torch.Generator().manual_seed(5)
        scores = torch.randint(0, 6, (30, 12), generator=generator).double()  # ties abound
        positives = torch.rand(30, 12, generator=generator) < 0.15
        places = []
        for row, good in zip(scores.tolist(), positives.tolist(), strict=True):
            if not any(good):
                continue
            best = max(score for score, yes in zip(row, good, strict=True) if yes)
            places.append(1 + sum(score >= best and not yes for score, yes in zip(row, good, strict=True)))
        assert len(places) < 30
        found = recall_at(scores, positives, (1, 3, 12))
        for k in (1, 3, 12):
            assert float(found[k]) == pytest.approx(sum(place <= k for place in places) / len(places), rel=1e-12)
        middle = sorted(places)[(len(places) - 1) // 2]
        assert float(median_rank(scores, positives)) == middle

    def test_one_score_for_all_finds_nothing(self):
        assert float(recall_at(torch.zeros(5, 5), torch.eye(5, dtype=torch.bool), (1,))[1]) == 0

    @pytest.mark.parametrize("places", [(slice(None), slice(None)), (2, 3)])
    def test_of_scores_that_are_no_numbers_it_is_undefined(self, places):
        scores, positives = torch.rand(5, 5), torch.eye(5, dtype=torch.bool)
        scores[places] = torch.nan
        assert all(value.isnan() for value in recall_at(scores, positives, (1, 5)).values())
        assert median_rank(scores, positives).isnan()

    def test_without_positives_it_is_undefined(self):
        assert recall_at(torch.rand(3, 3), torch.zeros(3, 3, dtype=torch.bool), (1,))[1].isnan()


class TestExperts:
    def joint(self):
        """A naive Bayes world of 3 classes: p(y), p(x1 | y) with 4 values, p(x2 | y) with 5."""
        generator = torch.Generator().manual_seed(6)
        make = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.1  # noqa: E731
        prior, one, two = make(3), make(3, 4), make(3, 5)
        return prior / prior.sum(), one / one.sum(1, keepdim=True), two / two.sum(1, keepdim=True)

    def test_it_is_the_rule_of_bayes(self):
        prior, one, two = self.joint()
        posteriors = [torch.stack([prior * table[:, v] / (prior @ table[:, v]) for v in range(table.shape[1])])
                      for table in (one, two)]  # fmt: skip
        for v in range(4):
            for w in range(5):
                exact = prior * one[:, v] * two[:, w]
                logits = [posteriors[0][v : v + 1].log() + 3.0, posteriors[1][w : w + 1].log() - 1.0]  # unnormalised
                found = product_of_experts(logits, prior.log(), [None, None]).exp()[0]
                torch.testing.assert_close(found, exact / exact.sum(), rtol=1e-12, atol=1e-14)

    def test_one_expert_is_itself(self):
        logits, prior = torch.randn(7, 3, dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5]).log().double()
        torch.testing.assert_close(product_of_experts([logits], prior, [None]), logits.log_softmax(1))

    def test_what_is_missing_drops_its_factor(self):
        one, two, prior = torch.randn(6, 3).double(), torch.randn(6, 3).double(), torch.tensor([0.2, 0.3, 0.5]).double()
        there = [torch.tensor([1, 1, 0, 0, 1, 0]).bool(), torch.tensor([1, 0, 1, 0, 1, 1]).bool()]
        found = product_of_experts([one, two], prior.log(), there)
        both = product_of_experts([one, two], prior.log(), [None, None])
        expected = [both[0], one.log_softmax(1)[1], two.log_softmax(1)[2], prior.log(), both[4], two.log_softmax(1)[5]]
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=1e-12)
        two[1] = torch.tensor([1e30, -1e30, torch.nan])
        assert torch.equal(found, product_of_experts([one, two], prior.log(), there))

    def test_an_even_prior_changes_only_the_scale(self):
        one, two = torch.randn(5, 4).double(), torch.randn(5, 4).double()
        even = torch.full((4,), 0.25, dtype=torch.float64).log()
        expected = (one.log_softmax(1) + two.log_softmax(1)).log_softmax(1)
        torch.testing.assert_close(product_of_experts([one, two], even, [None, None]), expected)

    def test_the_prior_is_the_share_of_each_class(self):
        target = torch.tensor([0, 0, 0, 2])
        assert log_prior(target, 4, 0).exp().tolist() == [0.75, 0, 0.25, 0]
        assert log_prior(target, 4).exp().tolist() == pytest.approx([4 / 8, 1 / 8, 2 / 8, 1 / 8])


class TestModulation:
    def test_the_confidence_of_true_classes(self):
        logits, target = torch.randn(5, 3).double(), torch.tensor([0, 2, 1, 1, 0])
        by_hand = sum(math.exp(logits[i, target[i]]) / sum(math.exp(v) for v in logits[i]) for i in range(5))
        assert float(confidence(logits, target)) == pytest.approx(by_hand)

    def test_only_who_is_ahead_slows_down(self):
        scores = {"image": torch.tensor(3.0), "audio": torch.tensor(1.5)}
        found = coefficients(scores, 0.4)
        assert float(found["image"]) == pytest.approx(1 - math.tanh(0.4 * 2.0))
        assert float(found["audio"]) == 1
        level = {"image": torch.tensor(2.0), "audio": torch.tensor(2.0)}
        assert [float(value) for value in coefficients(level, 0.4).values()] == [1, 1]
        assert float(coefficients({"image": torch.tensor(3.0)}, 0.4)["image"]) == 1
        three = coefficients({"a": torch.tensor(4.0), "b": torch.tensor(1.0), "c": torch.tensor(3.0)}, 1.0)
        expected = [1 - math.tanh(2.0), 1, 1 - math.tanh(1.2)]
        assert [float(value) for value in three.values()] == pytest.approx(expected)

    def test_gradients_of_towers_are_scaled_and_no_others(self):
        layers = {name: torch.nn.Linear(2, 3) for name in ("image", "audio", "head")}
        for layer in layers.values():
            layer(torch.ones(1, 2)).square().sum().backward()
        before = {name: [p.grad.clone() for p in layer.parameters()] for name, layer in layers.items()}
        factors = {"image": torch.tensor(0.25), "audio": torch.tensor(1.0)}
        modulate({name: layers[name].parameters() for name in ("image", "audio")}, factors)
        for name, factor in (("image", 0.25), ("audio", 1.0), ("head", 1.0)):
            for old, parameter in zip(before[name], layers[name].parameters(), strict=True):
                torch.testing.assert_close(parameter.grad, old * factor)

    def test_the_noise_has_the_spread_of_the_gradient(self):
        parameter, frozen = torch.nn.Parameter(torch.zeros(200, 300)), torch.nn.Parameter(torch.zeros(1))
        gradient = torch.randn(200, 300, generator=torch.Generator().manual_seed(1)) * 3 + 1
        parameter.grad = gradient.clone()
        draw = lambda name, number, like: torch.randn(like.shape, generator=torch.Generator().manual_seed(2))  # noqa: E731
        modulate({"image": [parameter, frozen]}, {"image": torch.tensor(0.5)}, draw)
        noise = parameter.grad - gradient / 2
        assert float(noise.std()) == pytest.approx(float(gradient.std()), rel=0.01)
        assert abs(float(noise.mean())) < 0.05
        assert frozen.grad is None
