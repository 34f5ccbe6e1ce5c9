"""Intervals and tests against scipy, and against numbers printed in textbooks."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from advml.report.stats import holm, paired_t, t_interval

# Student 1908, "The probable error of a mean": hours of sleep gained with two drugs, ten patients.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


class TestInterval:
    @pytest.mark.parametrize("n", [2, 3, 5, 40])
    @pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
    def test_like_scipy(self, n, confidence):
        values = np.random.default_rng(n).normal(3, 2, n)
        low, high = reference.t.interval(confidence, n - 1, np.mean(values), reference.sem(values))
        found = t_interval(list(values), confidence=confidence)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
        assert (found.n, found.mean, found.sd) == pytest.approx((n, np.mean(values), np.std(values, ddof=1)))

    def test_three_seeds_reach_two_and_a_half_standard_deviations(self):
        found = t_interval([1.0, 2.0, 3.0])
        assert found.sd == 1.0
        quantile = 0.95 / math.sqrt(2 * 0.975 * 0.025)  # of Student's t with 2 degrees of freedom, in closed form
        assert quantile == pytest.approx(4.303, abs=5e-4)  # as every table prints it
        assert found.half == pytest.approx(quantile / math.sqrt(3), rel=1e-12)

    def test_one_number_has_no_interval(self):
        found = t_interval([0.5])
        assert (found.n, found.mean, found.sd, found.half, found.low, found.high) == (1, 0.5, None, None, None, None)

    def test_no_number(self):
        with pytest.raises(ValueError, match="at least one"):
            t_interval([])

    def test_equal_numbers(self):
        assert t_interval([0.25, 0.25, 0.25]).half == 0.0


class TestPaired:
    def test_students_sleep(self):
        """The numbers that R prints for t.test(extra ~ group, data = sleep, paired = TRUE)."""
        found = paired_t(FIRST, SECOND)
        assert found.interval.mean == pytest.approx(-1.58, abs=1e-12)
        assert (found.interval.low, found.interval.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-7)
        assert found.p == pytest.approx(0.002832890, abs=1e-9)

    @pytest.mark.parametrize("n", [2, 3, 10])
    def test_like_scipy(self, n):
        generator = np.random.default_rng(n)
        left, right = generator.normal(0.3, 1, n), generator.normal(0, 1, n)
        test = reference.ttest_rel(left, right)
        found = paired_t(list(left), list(right))
        assert found.p == pytest.approx(test.pvalue, rel=1e-10)
        interval = test.confidence_interval()
        assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high), rel=1e-10)

    def test_the_p_value_says_whether_the_interval_holds_zero(self):
        generator = np.random.default_rng(0)
        inside = 0
        for _ in range(200):
            found = paired_t(list(generator.normal(0.6, 1, 6)), [0.0] * 6)
            holds = found.interval.low <= 0 <= found.interval.high
            assert holds == (found.p >= 0.05)
            inside += holds
        assert 20 < inside < 180  # both happen

    def test_equal_differences(self):
        assert paired_t([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).p == 1.0
        assert paired_t([1.0, 2.0, 3.0], [0.5, 1.5, 2.5]).p == 0.0

    def test_one_pair(self):
        found = paired_t([1.0], [0.25])
        assert (found.interval.n, found.interval.mean, found.interval.half, found.p) == (1, 0.75, None, None)

    def test_of_unequal_length(self):
        with pytest.raises(ValueError, match="zip"):
            paired_t([1.0, 2.0], [1.0])


class TestOverlappingSplits:
    """Nadeau and Bengio 2003: the variance of the mean is (1/J + n_test/n_train) s²."""

    def test_by_the_formula(self):
        differences = np.array([0.021, 0.013, -0.004, 0.018, 0.009, 0.002, 0.011, 0.015, 0.007, 0.012])
        ratio = 100 / 900
        error = math.sqrt(np.var(differences, ddof=1) * (1 / 10 + ratio))
        found = paired_t(list(differences), [0.0] * 10, overlap=ratio)
        assert found.p == pytest.approx(2 * reference.t.sf(abs(differences.mean() / error), 9), rel=1e-10)
        low, high = reference.t.interval(0.95, 9, differences.mean(), error)
        assert (found.interval.low, found.interval.high) == pytest.approx((low, high), rel=1e-12)

    def test_is_wider_and_never_vanishes_with_more_runs(self):
        values = list(np.random.default_rng(1).normal(0, 1, 1000))
        plain, corrected = t_interval(values).half, t_interval(values, overlap=0.25).half
        assert corrected == pytest.approx(plain * math.sqrt(1 + 1000 * 0.25), rel=1e-12)

    def test_covers_the_truth_where_the_plain_interval_does_not(self):
        """Repeated splits of one small table: the mean of 40 values of it is estimated from halves that overlap."""
        generator = np.random.default_rng(2)
        plain = corrected = 0
        for _ in range(200):
            table = generator.normal(0, 1, 40)
            scores = [generator.permutation(table)[:8].mean() for _ in range(15)]  # "test sets" of a fifth
            plain += abs(np.mean(scores)) <= t_interval(scores).half
            corrected += abs(np.mean(scores)) <= t_interval(scores, overlap=8 / 32).half
        assert plain < 160 < 180 < corrected


class TestHolm:
    def test_a_textbook_example(self):
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_is_the_step_down_procedure(self):
        """Compare the smallest with α/m, the next with α/(m − 1), …, and stop at the first that fails."""
        generator = np.random.default_rng(3)
        for _ in range(100):
            p_values = list(generator.uniform(0, 0.06, 6))
            rejected, alpha = set(), 0.05
            for rank, place in enumerate(np.argsort(p_values)):
                if p_values[place] > alpha / (6 - rank):
                    break
                rejected.add(int(place))
            assert {place for place, p in enumerate(holm(p_values)) if p <= alpha} == rejected

    def test_edges(self):
        assert holm([]) == []
        assert holm([0.2]) == [0.2]
        assert holm([0.9, 0.8]) == [1.0, 1.0]
