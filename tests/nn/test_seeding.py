import numpy as np
import torch

from advml.nn.seeding import draw_from, seed_torch


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


def test_what_is_drawn_follows_from_the_seed_of_a_generator():
    rng = torch.Generator().manual_seed(5)
    torch.rand(3, generator=rng)
    draw_from(rng)
    found = torch.rand(4)
    seed_torch(5)
    assert torch.equal(found, torch.rand(4))
