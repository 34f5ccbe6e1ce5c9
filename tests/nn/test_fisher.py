"""The Fisher diagonal against its definition, by hand and by plain autograd, and the engines against each other."""

import math
from itertools import pairwise

import pytest
import torch
from fisher_cases import KINDS, by_definition, close, examples, mlp, seeded
from torch import nn

from advml.contracts import Classes, Spec, Split
from advml.models.mlp import Linear, LinearSettings
from advml.nn import products
from advml.nn.fisher import contrasts, drawn, fisher_diagonal
from advml.nn.products import add_outer, product, product_back, suits_onednn

# --- against references --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loop", "closed"])
def test_softmax_regression_by_hand(engine):
    """log p(c|x) has ∂/∂W_kj = (1[k=c] − p_k) x_j, and p_k (1−p_k)² + (1−p_k) p_k² = p_k (1−p_k): so exact
    F_kj = mean p_k (1−p_k) x_j², and empirical F_kj = mean (1[k=y] − p_k)² x_j²."""
    torch.manual_seed(3)
    network = Linear(Spec({"x": (6,)}, Classes(4)), LinearSettings()).double()
    split = examples()
    x, y = split.inputs["x"], split.target
    p = torch.softmax(x @ network.head.weight.T + network.head.bias, 1).detach()

    exact = fisher_diagonal(network, split, kind="exact", engine=engine)
    close(exact, {"head.weight": (p * (1 - p)).T @ x**2 / 40, "head.bias": (p * (1 - p)).mean(0)})
    empirical = fisher_diagonal(network, split, kind="empirical", engine=engine)
    squared = (torch.eye(4, dtype=torch.float64)[y] - p) ** 2
    close(empirical, {"head.weight": squared.T @ x**2 / 40, "head.bias": squared.mean(0)})


@pytest.mark.parametrize("engine", ["loop", "closed", "auto"])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_definition(engine, kind, masked):
    network, split = mlp(hidden=(7, 5, 6), activation="tanh"), examples()
    mask = torch.tensor([True, False, True, True]) if masked else None
    if masked:
        split = split.take((split.target != 1).nonzero().flatten())
    expected = by_definition(network, split, kind, mask)
    mine = fisher_diagonal(network, split, kind=kind, engine=engine, mask=mask)
    close(mine, expected)
    assert all(float(value.max()) > 0 for value in mine.values())
    if masked:
        assert not mine["head.weight"][1].any()
        assert not mine["head.bias"][1].any()
        assert float(mine["head.weight"][0].min()) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus", "gelu"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_closed_form_equals_loop(kind, activation, dtype, rtol):
    network = mlp(hidden=(9, 8, 7), activation=activation, dropout=0.3, dtype=dtype)
    split = examples(100, dtype=dtype)
    both = [
        fisher_diagonal(network, split, kind=kind, engine=engine, generator=seeded()) for engine in ("closed", "loop")
    ]
    close(*both, rtol=rtol)
    assert both[0]["head.weight"].dtype == dtype


@pytest.mark.parametrize("engine", ["loop", "closed"])
@pytest.mark.parametrize("kind", KINDS)
def test_result_does_not_depend_on_batch_size(engine, kind):
    network, split = mlp(), examples(520)
    mask = torch.tensor([True, True, True, True])
    results = [
        fisher_diagonal(network, split, kind=kind, engine=engine, mask=mask, batch_size=size, generator=seeded())
        for size in (1, 32, 500)
    ]
    close(results[1], results[0])
    close(results[2], results[0])


@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("capability", [None, "AVX2"])
def test_wide_layers_in_float32(kind, capability, monkeypatch):
    """Wide enough for oneDNN where it is used, and with the last batch too small for it; and without it."""
    if capability:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    network, split = mlp(hidden=(160, 140), inputs=150, dtype=torch.float32), examples(300, (150,), dtype=torch.float32)
    mine = fisher_diagonal(network, split, kind=kind, engine="closed", batch_size=140)
    split = Split({"x": split.inputs["x"].double()}, split.target)
    expected = fisher_diagonal(network.double(), split, kind=kind, engine="loop")
    close({name: value.double() for name, value in mine.items()}, expected, rtol=2e-6)


@pytest.mark.parametrize("lags", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize(("rows", "out", "inner"), [(130, 140, 150), (1, 128, 200), (300, 128, 127), (10, 20, 30)])
def test_products(rows, out, inner, contiguous, lags, monkeypatch):
    """In float64 plain products; in float32, where it suits, oneDNN's."""
    if lags and not torch.backends.mkldnn.is_available():
        pytest.skip("torch is built without oneDNN")
    monkeypatch.setattr(products, "mkl_lags", lambda: lags)
    generator = seeded()
    shapes = [(rows, inner), (rows, out), (out, inner), (out,), (out, inner)]
    doubles = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    a, delta, weight, bias, total = doubles
    expected = [a @ weight.T + bias, a @ weight.T, delta @ weight, total + delta.T @ a]
    for dtype, near in ((torch.float64, 1e-12), (torch.float32, 2e-4)):
        a, delta, weight, bias, total = (values.to(dtype, copy=True) for values in doubles)
        if not contiguous:
            a, delta, weight = (values.T.contiguous().T for values in (a, delta, weight))
        add_outer(total, delta, a)
        found = [product(a, weight, bias), product(a, weight, None), product_back(delta, weight), total]
        for mine, other in zip(found, expected, strict=True):
            assert mine.layout == torch.strided
            torch.testing.assert_close(mine.double(), other, rtol=0, atol=near)
    assert suits_onednn(weight) == (lags and min(out, inner) >= 128)


@pytest.mark.parametrize(
    ("maker", "widest", "lags"),
    [("AMD EPYC", "AVX512", True), ("Intel Xeon", "AVX512", False), ("AMD EPYC", "AVX2", False)],
)
def test_where_mkl_lags(maker, widest, lags, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": maker}, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: widest)
    assert products.mkl_lags.__wrapped__() == lags


def test_index_chooses_examples():
    network, split = mlp(), examples()
    index = torch.tensor([31, 4, 4, 17])
    chosen = fisher_diagonal(network, split, index=index)
    close(chosen, fisher_diagonal(network, split.take(index)))
    with pytest.raises(ValueError, match="at least one example"):
        fisher_diagonal(network, split, index=index[:0])


# --- directions of the exact kind ----------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4, 5], [1, 2, 5], [0, 4], [3]])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 400.0])
def test_contrasts_factor_the_covariance(labels, scale):
    """Σ δδᵀ = diag(p) − ppᵀ, one δ fewer than classes; at scale 400 some probabilities underflow."""
    logits = torch.full((200, 6), -torch.inf, dtype=torch.float64)
    logits[:, labels] = scale * torch.randn(200, len(labels), generator=seeded(), dtype=torch.float64)
    p = logits.softmax(1)
    assert scale < 400 or len(labels) < 3 or bool((p[:, labels] == 0).any())
    found = list(contrasts(p, labels))
    assert len(found) == len(labels) - 1
    covariance = sum((torch.einsum("bi,bj->bij", delta, delta) for delta in found), torch.zeros(200, 6, 6).double())
    torch.testing.assert_close(covariance, torch.diag_embed(p) - torch.einsum("bi,bj->bij", p, p), rtol=0, atol=1e-15)
    small = torch.stack([*contrasts(p.float(), labels), torch.zeros(200, 6)])
    assert small.isfinite().all()


@pytest.mark.parametrize("engine", ["loop", "closed"])
def test_one_class_alone_informs_about_nothing(engine):
    mask = torch.tensor([False, False, True, False])
    fisher = fisher_diagonal(mlp(), examples(), engine=engine, mask=mask)
    assert fisher.keys() == dict(mlp().named_parameters()).keys()
    assert not any(bool(value.any()) for value in fisher.values())


# --- drawn classes -------------------------------------------------------------------------------------------------


def z_scores(network, split, exact, estimate, repeats=400):
    """(mean of `repeats` estimates − exact) / standard error, for every entry."""
    draws = []
    for _ in range(repeats):
        draws.append(torch.cat([value.flatten() for value in estimate().values()]))
    stacked = torch.stack(draws)
    expected = torch.cat([value.flatten() for value in exact.values()])
    return (stacked.mean(0) - expected) / (stacked.std(0) / math.sqrt(repeats))


def test_sample_is_exact_on_average():
    """69 entries, each the mean of 400 averages over 60 examples, so that z is nearly normal: over all seeds, |z| < 6
    would fail a right implementation with probability below 1e-6. Classes drawn evenly instead are caught."""
    network, split = mlp(hidden=(5, 4), inputs=5, classes=4, activation="tanh"), examples(60, shape=(5,))
    with torch.no_grad():
        network.head.bias += torch.tensor([1.0, 0.0, -1.0, -0.5])
    mask = torch.tensor([True, True, False, True])
    exact = fisher_diagonal(network, split, kind="exact", mask=mask)
    generator = seeded(11)

    def sample():
        return fisher_diagonal(network, split, kind="sample", mask=mask, generator=generator)

    def even():
        labels = torch.tensor([0, 1, 3])[torch.randint(3, (60,), generator=generator)]
        wrong = Split(split.inputs, labels)
        return fisher_diagonal(network, wrong, kind="empirical", mask=mask)

    live = torch.cat([value.flatten() for value in exact.values()]) > 0
    assert int(live.sum()) == 69
    assert float(z_scores(network, split, exact, sample)[live].abs().max()) < 6
    assert float(z_scores(network, split, exact, even)[live].abs().max()) > 20


def test_drawn_classes_follow_the_softmax():
    """χ² with 2 degrees of freedom over 20,000 draws; 30 is exceeded with probability 3e-7."""
    logits = torch.tensor([0.3, -torch.inf, -1.0, 1.2]).repeat(20_000, 1)
    counts = torch.bincount(drawn(logits, seeded()), minlength=4)
    expected = 20_000 * logits[0].softmax(0)
    assert counts[1] == 0
    live = torch.tensor([0, 2, 3])
    assert float(((counts - expected) ** 2 / expected)[live].sum()) < 30


def test_draws_do_not_depend_on_grouping_and_follow_the_generator():
    logits = torch.randn(100, 7, generator=seeded(1))
    whole = drawn(logits, seeded())
    generator = seeded()
    assert torch.equal(whole, torch.cat([drawn(part, generator) for part in logits.split(17)]))
    assert not torch.equal(whole, drawn(logits, seeded(6)))


# --- the mistaken kind ---------------------------------------------------------------------------------------------


def test_batched_squares_the_mean_gradient():
    network, split = mlp(), examples(96)
    expected = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    for start in range(0, 96, 32):
        batch = split.batch(slice(start, start + 32))
        nn.functional.cross_entropy(network(batch.inputs), batch.target).backward()
        for name, value in network.named_parameters():
            expected[name] += value.grad**2 / 3
        network.zero_grad()
    close(fisher_diagonal(network, split, kind="batched", batch_size=32), expected)


def test_batched_shrinks_with_the_batch_size():
    network, split = mlp(), examples(512)
    truth = sum(float(v.sum()) for v in fisher_diagonal(network, split, kind="empirical").values())
    sizes = (1, 8, 64, 512)
    found = [fisher_diagonal(network, split, kind="batched", batch_size=size) for size in sizes]
    shares = [sum(float(value.sum()) for value in result.values()) / truth for result in found]
    assert shares[0] == pytest.approx(1.0, rel=1e-12)
    assert all(small < large / 2 for large, small in pairwise(shares))
