import numpy as np
import pytest
import torch

from advml.compose import compose
from advml.config import bind
from advml.contracts import Real, Spec
from advml.models.build import build
from advml.nn.seeding import draw_from, seed_torch
from advml.nn.support_attention import make_full_context
from advml.nn.vae import make_vae


def drawn():
    layer = torch.nn.Linear(3, 2)
    dropped = torch.nn.functional.dropout(torch.ones(100))
    return [torch.rand(5), torch.randn(40), torch.randperm(9), layer.weight.detach(), dropped]


def test_the_same_numbers_as_torchs_own():
    for seed in (0, 7, 2**62 + 5):
        torch.manual_seed(seed)
        expected = drawn()
        seed_torch(seed)
        assert all(map(torch.equal, expected, drawn()))


def test_other_generators_are_left_alone():
    own = torch.Generator().manual_seed(3)
    np.random.seed(3)
    before = own.get_state(), np.random.get_state()[1].copy()
    seed_torch(4)
    assert torch.equal(own.get_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_where_there_is_cuda_its_generators_are_seeded(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    seed_torch(9)
    assert seeds == [9]


@pytest.mark.parametrize(
    "make",
    [
        lambda: build("mlp", bind(compose(["model=mlp"])[0]).model.settings, Spec({"x": (3,)}, Real((1,))), 4),
        lambda: make_vae(3, [4], 2, "gaussian", torch.Generator()),
        lambda: make_full_context(3, 2, torch.Generator()),
    ],
)
def test_networks_are_made_without_a_trace(make, monkeypatch):
    """On a GPU too: dropout goes on after a new column as it would have without it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("CUDA's generator was seeded"))
    before = torch.get_rng_state()
    make()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_drawn_follows_from_the_seed_of_a_generator():
    rng = torch.Generator().manual_seed(5)
    torch.rand(3, generator=rng)
    draw_from(rng)
    found = torch.rand(4)
    seed_torch(5)
    assert torch.equal(found, torch.rand(4))
