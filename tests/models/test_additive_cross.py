"""Logits of each modality plus what cross-attention adds: both reductions, and what the sum is."""

import pytest
import torch

from advml.contracts import Classes, Spec, Stream

SPEC = Spec(
    {"image": (1, 8, 8), "sound": (6, 5), "sound_mask": (6,), "image_present": (), "sound_present": ()},
    Classes(3),
    streams={
        "image": Stream("image", present="image_present"),
        "sound": Stream("frames", "sound_mask", "sound_present"),
    },
)
SMALL = {"width": 8, "heads": 2, "hidden": 12}


@pytest.fixture
def inputs():
    torch.manual_seed(3)
    return {
        "image": torch.randn(4, 1, 8, 8),
        "sound": torch.randn(4, 6, 5),
        "sound_mask": torch.arange(6) < torch.tensor([[6], [4], [2], [1]]),
        "image_present": torch.tensor([True, True, False, True]),
        "sound_present": torch.tensor([True, True, True, False]),
    }


@pytest.mark.parametrize(
    ("other", "changes", "silent"),
    [("late_fusion", {"fusion": "logit_sum"}, ["together"]), ("cross_attention", {}, ["image", "sound"])],
)
def test_without_one_part_it_is_the_other_network(shipped, inputs, other, changes, silent):
    """No interaction: the sum of logits. No logits of single modalities: cross-attention."""
    both, reduced = shipped("additive_cross", SPEC, **SMALL), shipped(other, SPEC, **SMALL, **changes)
    own = dict(both.named_parameters())
    with torch.no_grad():
        for name in silent:
            both.head.heads[name].weight.zero_()
            both.head.heads[name].bias.zero_()
        for name, parameter in reduced.named_parameters():
            source = name.replace("head.", "head.heads.together.") if other == "cross_attention" else name
            parameter.copy_(own[source if name.startswith("head.") else name])
    torch.testing.assert_close(both(inputs), reduced(inputs))


def test_it_is_the_sum_of_its_heads_and_the_rest(shipped, inputs):
    network = shipped("additive_cross", SPEC, **SMALL)
    encoded = network.encode(inputs)
    alone = network.unimodal(encoded)
    together = network.head.heads["together"](network.fuse(encoded, inputs)[:, :8])
    assert set(alone) == {"image", "sound"}
    torch.testing.assert_close(network(inputs), alone["image"] + alone["sound"] + together)
