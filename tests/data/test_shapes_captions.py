"""Shapes and captions: the grammar, the drawing, and that neither half of a pair tells whether the pair matches."""

from pathlib import Path

import pytest
import torch

from advml.contracts import Classes, Stream
from advml.data.episodes import Episodes, EpisodesSettings
from advml.data.shapes_captions import (
    LENGTH,
    MEANINGS,
    ShapesCaptions,
    ShapesCaptionsSettings,
    attributes,
    balanced_pairs,
    draw_pictures,
    meaning_of,
    prompts,
    say,
    vocabulary,
)
from advml.data.source import Source, Whole, split
from advml.runner.randomness import KeyedRng

WORDS = vocabulary()
KINDS = (
    {"circle": 0, "disc": 0, "square": 1, "box": 1, "triangle": 2, "wedge": 2, "cross": 3, "plus": 3},
    {"red": 0, "crimson": 0, "green": 1, "emerald": 1, "blue": 2, "navy": 2, "yellow": 3, "golden": 3},
    {"upper left": 0, "top left": 0, "upper right": 1, "top right": 1, "lower left": 2, "bottom left": 2,
     "lower right": 3, "bottom right": 3},
    {"small": 0, "tiny": 0, "little": 0, "large": 1, "big": 1, "huge": 1},
)  # fmt: skip


def made(seed=0, **changes):
    values = {"valid": 0.15, "test": 0.2, "limit": None, "split_seed": None, "normalise": "standard", "pca": None,
              "keep_classes": None, "task": "matches", "examples": 800, "pixel_noise": 0.1,
              "lost_words": 0.0}  # fmt: skip
    dataset = ShapesCaptions(ShapesCaptionsSettings(**values | changes))
    return dataset, dataset.load(Source(KeyedRng(seed), Path()))


def read(tokens):
    """What a caption says, by another way than it was made: the names in it, looked up."""
    text = " ".join(WORDS[token] for token in tokens.tolist() if token)
    return [{number for name, number in kind.items() if f" {name} " in f" {text} "} for kind in KINDS]


def test_numbers_of_meanings_are_those_of_their_parts():
    parts = attributes(torch.arange(MEANINGS))
    assert torch.equal(meaning_of(parts), torch.arange(MEANINGS))
    assert parts.amax(0).tolist() == [3, 3, 3, 1]
    assert len(parts.unique(dim=0)) == MEANINGS


def test_captions_say_what_is_meant_in_many_ways():
    meaning = torch.randint(MEANINGS, (400,), generator=torch.Generator().manual_seed(0))
    text = say(meaning, 0.0, torch.Generator().manual_seed(1))
    for tokens, parts in zip(text, attributes(meaning).tolist(), strict=True):
        assert read(tokens) == [{part} for part in parts]
    lengths = (text != 0).sum(1)
    assert set(lengths.tolist()) == {5, 8, 10, 11}
    assert LENGTH == 11
    padded = torch.arange(LENGTH) >= lengths.unsqueeze(1)
    assert torch.equal(text == 0, padded)
    same = say(torch.full((300,), 77), 0.0, torch.Generator().manual_seed(2))
    assert len(same.unique(dim=0)) > 50


def test_lost_words_hide_whole_parts():
    meaning = torch.arange(MEANINGS).repeat(10)
    text = say(meaning, 0.3, torch.Generator().manual_seed(1))
    hidden = [sum(not said for said in read(tokens)) for tokens in text]
    assert abs(sum(hidden) / (4 * len(meaning)) - 0.3) < 0.03
    for tokens, parts in zip(text, attributes(meaning).tolist(), strict=True):
        assert all(said <= {part} for said, part in zip(read(tokens), parts, strict=True))
    assert not (say(meaning, 0.0, torch.Generator()) == 1).any()


def test_prompts_name_every_meaning():
    described = prompts()
    for number, tokens in enumerate(described["text"]):
        assert read(tokens) == [{part} for part in attributes(torch.tensor([number]))[0].tolist()]
    assert torch.equal(described["text_mask"], described["text"] != 0)


def test_pictures_show_colour_place_and_size():
    meaning = torch.arange(MEANINGS).repeat(4)
    pictures = draw_pictures(meaning, 0.0, torch.Generator().manual_seed(0)).float() / 255
    parts = attributes(meaning)
    coloured = (pictures.amax(1) - pictures.amin(1)) > 0.05  # the ground is grey
    area = coloured.flatten(1).sum(1)
    for shape in range(4):
        small, large = (area[(parts[:, 0] == shape) & (parts[:, 3] == size)] for size in (0, 1))
        assert small.min() >= 4
        assert small.max() < large.min()
    rows, columns = (
        (coloured.float() * torch.arange(16.0).reshape(shape)).flatten(1).sum(1) / area for shape in ((16, 1), (1, 16))
    )
    assert torch.equal((rows > 7.5).long() * 2 + (columns > 7.5).long(), parts[:, 2])
    inside = coloured.unsqueeze(1)
    mean = (pictures * inside).flatten(2).sum(2) / area.unsqueeze(1)
    for colour, (strong, weak) in enumerate((([0], [1, 2]), ([1], [0, 2]), ([2], [0, 1]), ([0, 1], [2]))):
        chosen = mean[parts[:, 1] == colour]
        assert (chosen[:, strong].amin(1) > chosen[:, weak].amax(1) + 0.2).all()


def test_shapes_differ():
    """Drawn with the same jitter, any two of the four shapes differ in some pixels, the large ones in more."""
    for size, least in ((0, 2), (1, 5)):
        inside = []
        for shape in range(4):
            meaning = meaning_of(torch.tensor([[shape, 0, 0, size]])).repeat(100)
            pictures = draw_pictures(meaning, 0.0, torch.Generator().manual_seed(3)).float()
            inside.append(((pictures.amax(1) - pictures.amin(1)) > 10).flatten(1))
        for a in range(4):
            for b in range(a):
                assert (inside[a] != inside[b]).sum(1).float().mean() > least


def test_pixel_noise_has_its_deviation():
    meaning = torch.zeros(200, dtype=torch.int64)
    clean, loud = (draw_pictures(meaning, noise, torch.Generator().manual_seed(0)).float() / 255 for noise in (0, 0.1))
    assert abs(float((loud - clean).std()) - 0.1) < 0.01


def test_neither_half_tells_whether_they_match():
    """Counted, not learned: among all pairs of a shown meaning half match, and so among all of a said one."""
    shown, said, target = balanced_pairs(4000, torch.Generator().manual_seed(0))
    assert torch.equal(target, (shown == said).long())
    for half in (shown, said):
        total, matching = half.bincount(minlength=MEANINGS), half.bincount(target, minlength=MEANINGS)
        assert torch.equal(2 * matching, total.double())
    differing = (attributes(shown) != attributes(said)).sum(1)[target == 0]
    assert differing.min() == 1
    share = differing.bincount(minlength=5)[1:] / len(differing)
    assert (share - 0.25).abs().max() < 0.05
    other = (attributes(shown) != attributes(said))[target == 0].float().mean(0)
    assert (other - 0.625).abs().max() < 0.05  # (1 + 2 + 3 + 4) / 4 of 4


def test_every_part_is_balanced_and_recorded():
    dataset, loaded = made()
    spec = dataset.spec()
    assert spec.target == Classes(2)
    assert spec.streams == {"image": Stream("image"), "text": Stream("tokens", "text_mask")}
    splits = split(loaded, spec, dataset.config, KeyedRng(0))
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [544, 96, 160]
    for name in ("train", "valid", "test"):
        part = getattr(splits, name)
        assert part.target.bincount().tolist() == [len(part) // 2] * 2
        assert {key: tuple(values.shape[1:]) for key, values in part.inputs.items()} == dict(spec.inputs)
        shown = part.group
        assert torch.equal(2 * shown.bincount(part.target), shown.bincount().double())
        assert splits.record["pairs"][name]["count"] == len(part)
    assert len({splits.record["pairs"][name]["sha256"] for name in ("train", "valid", "test")}) == 3


def test_matching_pairs_mean_the_same_and_others_do_not():
    _, loaded = made(pixel_noise=0.0)
    for tokens, shown, target in zip(
        loaded.examples.inputs["text"], loaded.examples.group, loaded.examples.target, strict=True
    ):
        agrees = read(tokens) == [{part} for part in attributes(shown.reshape(1))[0].tolist()]
        assert agrees == bool(target)


def test_retrieve_has_meanings_for_targets():
    dataset, loaded = made(task="retrieve")
    assert dataset.spec().target == Classes(MEANINGS)
    assert len(loaded.prompts["text"]) == MEANINGS
    for tokens, target in zip(loaded.test.inputs["text"], loaded.test.target, strict=True):
        assert read(tokens) == [{part} for part in attributes(target.reshape(1))[0].tolist()]
    assert made()[1].prompts == {}


@pytest.mark.parametrize("task", ["matches", "retrieve"])
def test_keyed(task):
    first, again, other = (made(seed, task=task)[1] for seed in (0, 0, 1))
    for name, values in first.examples.inputs.items():
        assert torch.equal(values, again.examples.inputs[name])
    assert not torch.equal(first.examples.inputs["image"], other.examples.inputs["image"])
    assert first.record == again.record != other.record


def test_few_shot_tasks_leave_words_and_masks_as_they_are():
    dataset, loaded = made(task="retrieve", examples=3000)
    keys = {"ways": 2, "shots": 1, "queries": 2, "train_ways": None, "train_shots": None, "train_queries": None,
            "valid_tasks": 2, "test_tasks": 2, "split": "random", "valid_classes": 0.2, "test_classes": 0.3,
            "rotations": "none"}  # fmt: skip
    view = Episodes.of(Whole(loaded, dataset.spec(), dataset.config), EpisodesSettings(**keys), KeyedRng(0))
    inputs = view.draw(2, torch.Generator()).query.inputs
    assert inputs["text_mask"].dtype == torch.bool
    assert torch.equal(inputs["text"] != 0, inputs["text_mask"])
    assert view.spec.streams == dataset.spec().streams
