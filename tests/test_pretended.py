"""The pretended accelerator computes what the CPU does and refuses what a GPU refuses."""

import pytest
import torch
from pretended import DEVICE, Accelerator, Far
from torch import nn


@pytest.fixture(autouse=True)
def accelerator():
    with Accelerator():
        yield


@pytest.fixture
def there():
    return torch.randn(3, 4).to(DEVICE)


def test_the_same_numbers():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2))
    inputs = torch.randn(5, 1, 3, 3)
    here = network(inputs).square().sum()
    gradients = torch.autograd.grad(here, list(network.parameters()))
    network.to(DEVICE)
    assert all(type(value.data) is Far for value in (*network.parameters(), *network.buffers()))
    found = network(inputs.to(DEVICE)).square().sum()
    assert (type(found), found.device.type) == (Far, DEVICE.type)
    torch.testing.assert_close(found.cpu(), here)
    for one, other in zip(torch.autograd.grad(found, list(network.parameters())), gradients, strict=True):
        torch.testing.assert_close(one.cpu(), other)


def test_views_and_changes_in_place(there):
    kept = there.cpu()
    there[1:, 2] = 7
    there.view(2, 6)[0] += 1
    kept[1:, 2] = 7
    kept.view(2, 6)[0] += 1
    assert torch.equal(there.cpu(), kept)
    kept.copy_(there * 2)
    assert torch.equal(kept, (there * 2).cpu())


def test_what_is_made_there(there):
    assert torch.tensor([1.0, 2.0], device=there.device).tolist() == [1, 2]
    assert there.new_tensor([3]).tolist() == [3]
    assert torch.arange(3, device=DEVICE).sum().item() == 3
    assert torch.equal(there[[0, 2]].cpu(), there.cpu()[[0, 2]])
    assert torch.equal(there[torch.tensor([True, False, True])].cpu(), there.cpu()[[0, 2]])
    turned = torch.polar(there.abs(), there)
    assert torch.allclose((turned.conj() * 1j).cpu(), turned.cpu().conj() * 1j)


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (lambda x: x + torch.ones(4), "same device"),
        (lambda x: x @ torch.ones(4, 2), "same device"),
        (lambda x: nn.Linear(4, 2)(x), "same device"),
        (lambda x: torch.where(torch.ones(3, 4, dtype=torch.bool), x, 0.0), "same device"),
        (lambda x: torch.cat([x, torch.ones(1, 4)]), "same device"),
        (lambda x: torch.ones(3, 4).add_(x), "same device"),
        (lambda x: torch.randn(3, device=DEVICE, generator=torch.Generator()), "generator"),
        (lambda x: x.normal_(generator=torch.Generator()), "generator"),
        (lambda x: x.cumsum(0), "deterministic"),
        (lambda x: x.median(0), "deterministic"),
        (lambda x: torch.bincount(x.long().abs().flatten(), x.flatten()), "deterministic"),
    ],
)
def test_refused(there, operation, said):
    with pytest.raises(RuntimeError, match=said):
        operation(there)


def test_numbers_alone_go_together(there):
    assert torch.equal((there * torch.tensor(2.0)).cpu(), there.cpu() * 2)
    assert torch.equal((there + 1.5).cpu(), there.cpu() + 1.5)


def test_not_numpys(there):
    with pytest.raises((TypeError, RuntimeError)):
        there.numpy()
