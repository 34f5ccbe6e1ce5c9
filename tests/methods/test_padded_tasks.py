"""Few-shot tasks over recordings of unequal length, of which the rest is padding."""

import pytest
import torch

from advml.compose import compose
from advml.config import bind
from advml.contracts import Classes, Spec, Split, Stream
from advml.data.episodes import Episodes
from advml.data.source import Loaded, Whole
from advml.runner.randomness import KeyedRng

SPEC = Spec({"audio": (6, 3), "audio_mask": (6,)}, Classes(10), streams={"audio": Stream("frames", "audio_mask")})
WORDS = ("dataset=fsdd", "dataset.normalise=standard", "view=episodes", "view.ways=2", "view.shots=2",
         "view.queries=3", "view.rotations=none", "view.valid_tasks=3", "view.test_tasks=3", "model=late_fusion",
         "method.iterations=3", "method.block=3")  # fmt: skip


@pytest.fixture
def recorded(play):
    """recorded("maml"): a method on tasks over ten classes of made recordings."""

    def begin(method):
        target, draw = torch.arange(80) % 10, torch.Generator().manual_seed(2)
        mask = torch.arange(6) < torch.randint(1, 6, (80, 1), generator=draw)
        frames = 7 + target[:, None, None] + torch.randn(80, 6, 3, generator=draw)
        examples = Split({"audio": frames * mask.unsqueeze(2), "audio_mask": mask}, target)
        words = (f"method={method}", *WORDS)
        bound = bind(compose(list(words))[0])
        whole = Whole(Loaded(examples), SPEC, bound.dataset.settings)
        return play(*words, view=Episodes.of(whole, bound.view.settings, KeyedRng(0)))

    return begin


def test_padding_is_zero_in_tasks_and_in_the_base(recorded):
    view = recorded("protonet").view
    drawn, fixed = view.draw(4, torch.Generator().manual_seed(0)), view.fixed("test", 0, 3)
    base = view.base.batch(torch.arange(len(view.base)), torch.Generator())
    for batch in (drawn.support, drawn.query, fixed.support, fixed.query, base):
        frames, mask = batch.inputs["audio"], batch.inputs["audio_mask"]
        assert bool((frames[~mask] == 0).all())
        assert bool((frames[mask] != 0).all())
        assert not bool(mask.all())


@pytest.mark.parametrize("method", ["pretrain_finetune", "protonet"])
def test_methods_learn_from_them(recorded, method):
    """Classes differ in height: one shows it."""
    played = recorded(method).go()
    assert 0.3 < played.evaluate()["accuracy"] <= 1
    assert played.method.network.recipe["spec"]["streams"] == {"audio": ["frames", "audio_mask", None]}
