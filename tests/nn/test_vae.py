"""The VAE's mathematics against independent computations."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from advml.nn.vae import Vae, bernoulli_surprise, divergence, gaussian_surprise, make_vae


def drawn(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_divergence_against_a_monte_carlo_mean():
    """KL = E_q[log q(z) − log p(z)], within five standard errors of the mean over 200,000 draws."""
    mean, log_variance = drawn(3, 4), 0.5 * drawn(3, 4, seed=1)
    q, p = Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)
    z = mean + q.stddev * drawn(200_000, 3, 4, seed=2)
    values = (q.log_prob(z) - p.log_prob(z)).sum(2)
    error = values.std(0) / len(values) ** 0.5
    found = divergence(mean, log_variance)
    assert bool(((found - values.mean(0)).abs() < 5 * error).all())
    assert bool((5 * error < 0.05 * found).all())  # so that the comparison says something
    torch.testing.assert_close(found, kl_divergence(q, Normal(torch.zeros(3, 4), torch.ones(3, 4))).sum(1))


def test_the_divergence_from_itself_is_zero():
    assert torch.equal(divergence(torch.zeros(2, 5), torch.zeros(2, 5)), torch.zeros(2))


def test_likelihoods_are_those_of_torch():
    found, x = drawn(6, 5), drawn(6, 5, seed=1)
    expected = -Normal(found, 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(gaussian_surprise(found, x), expected)
    pixels = x.sigmoid()
    log_p, log_not = torch.log(found.sigmoid()), torch.log(1 - found.sigmoid())
    torch.testing.assert_close(bernoulli_surprise(found, pixels), -(pixels * log_p + (1 - pixels) * log_not).sum(1))
    bits = (x > 0).double()
    torch.testing.assert_close(bernoulli_surprise(found, bits), -Bernoulli(logits=found).log_prob(bits).sum(1))


def test_surprise_stays_finite_where_the_model_is_sure_and_wrong():
    found = bernoulli_surprise(torch.tensor([[500.0, -500.0]]), torch.tensor([[0.0, 1.0]]))
    assert found.tolist() == [1000.0]


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("hidden", [(7, 5), ()])
def test_the_bound_against_one_written_out(likelihood, hidden):
    """Affine maps and rectifiers by hand from the parameters, in float64."""
    vae = Vae(6, hidden, 3, likelihood).double()
    x, noise = drawn(4, 6).sigmoid(), drawn(4, 3, seed=1)

    def through(layers, values):
        matrices = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
        for number, layer in enumerate(matrices):
            values = torch.einsum("bi,oi->bo", values, layer.weight) + layer.bias
            if number < len(matrices) - 1:
                values = values * (values > 0)
        return values, [tuple(layer.weight.shape) for layer in matrices]

    code, shapes = through(vae.encoder, x)
    assert shapes == ([(7, 6), (5, 7), (6, 5)] if hidden else [(6, 6)])
    mean, deviation = code[:, :3], code[:, 3:].div(2).exp()
    z = mean + deviation * noise
    found, shapes = through(vae.decoder, z)
    assert shapes == ([(5, 3), (7, 5), (6, 7)] if hidden else [(6, 3)])
    q, p = Normal(mean, deviation), Normal(torch.zeros_like(mean), torch.ones_like(mean))
    if likelihood == "gaussian":
        log_p = Normal(found, 1.0).log_prob(x).sum(1)
        expected_x = found
    else:
        chance = 1 / (1 + (-found).exp())
        log_p = (x * chance.log() + (1 - x) * (1 - chance).log()).sum(1)
        expected_x = chance
    bound = vae(x, noise)
    torch.testing.assert_close(bound, kl_divergence(q, p).sum(1) - log_p)
    torch.testing.assert_close(vae.expected(z), expected_x)
    assert torch.autograd.gradcheck(lambda values: vae(values, noise), x.clone().requires_grad_())


def test_the_bound_is_a_bound():
    """Of a linear Gaussian model log p(x) is known: x ~ N(b, W Wᵀ + I). On average no less than the bound, equal for
    the posterior N(M⁻¹ Wᵀ (x − b), M⁻¹) with M = I + Wᵀ W, here diagonal.
    """
    vae = Vae(3, (), 2, "gaussian").double()
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    offset = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    x = drawn(5, 3)
    truth = torch.distributions.MultivariateNormal(offset, weight @ weight.T + torch.eye(3, dtype=torch.float64))
    precision = 1 + weight.square().sum(0)
    noise = drawn(40_000, 2, seed=1)
    noise = torch.cat([noise, -noise])  # so that their mean is zero
    noise = noise / noise.square().mean(0).sqrt()  # and their variance one: the bound is quadratic in them, so exact

    def gap():
        return truth.log_prob(x) + torch.stack([vae(row.expand(len(noise), 3), noise).mean() for row in x])

    with torch.no_grad():
        vae.decoder[0].weight.copy_(weight)
        vae.decoder[0].bias.copy_(offset)
        vae.encoder[0].weight.copy_(torch.cat([weight.T / precision[:, None], torch.zeros(2, 3)]))
        vae.encoder[0].bias.copy_(torch.cat([-(weight.T @ offset) / precision, -precision.log()]))
        torch.testing.assert_close(gap(), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-9)
        vae.encoder[0].bias += 0.3
        assert bool((gap() > 0.05).all())


def test_a_few_hundred_updates_bring_the_bound_down():
    torch.manual_seed(0)
    vae = Vae(8, (16,), 2, "bernoulli")
    x = (drawn(64, 1) > 0).float() * torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])
    x = torch.where(x.sum(1, keepdim=True) > 0, x, 1 - torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]))
    optimiser = torch.optim.Adam(vae.parameters(), 0.01)
    for step in range(300):
        optimiser.zero_grad()
        vae(x, drawn(64, 2, seed=step).float()).mean().backward()
        optimiser.step()
    with torch.no_grad():
        bound = float(vae(x, drawn(64, 2, seed=999).float()).mean())
        assert math.log(2) < bound < 2.5  # two patterns: their entropy is the least; 5.5 unlearnt
        made_up = vae.expected(drawn(200, 2, seed=7).float())
    kinds = (made_up[:, 0] > 0.5).float().mean()
    assert 0.25 < float(kinds) < 0.75
    sharp = (made_up - 0.5).abs().mean(1) > 0.4
    assert float(sharp.float().mean()) > 0.8


def test_a_keyed_generator_alone_decides_the_initial_weights():
    def made(seed):
        return make_vae(5, (4,), 2, "gaussian", torch.Generator().manual_seed(seed)).state_dict()

    before = torch.get_rng_state()
    first = made(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = made(1), made(2)
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in first)
