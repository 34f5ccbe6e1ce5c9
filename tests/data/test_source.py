"""Dividing examples: disjoint, covering, by class, by key; constants fitted on train alone; hashes of who is where."""

import hashlib
from dataclasses import replace

import pytest
import torch

from advml.contracts import Classes, Real, Spec, Split, Stream
from advml.data.source import Loaded, SplitSettings, divide, limited, split
from advml.errors import ConfigError
from advml.runner.randomness import KeyedRng

COUNTS = (40, 23, 7, 30)  # examples of each class
N = sum(COUNTS)
SPEC = Spec({"x": (2,)}, Classes(len(COUNTS)))
RNG = KeyedRng(0)


def settings(**changes):
    values = {"valid": 0.15, "test": 0.2, "limit": None, "split_seed": None, "normalise": "standard",
            "pca": None, "keep_classes": None}  # fmt: skip
    return SplitSettings(**values | changes)


def examples(count=N, seed=0):
    """x[:, 0] is the example's own number, so that a split tells which examples it holds."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    target = target[torch.randperm(N, generator=generator)][:count]
    x = torch.stack([torch.arange(count).double(), torch.randn(count, generator=generator, dtype=torch.float64)], 1)
    return Split({"x": x}, target)


def whose(part):
    return part.inputs["x"][:, 0].long()


def per_class(target):
    return torch.bincount(target, minlength=len(COUNTS)).tolist()


# --- divide -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_divide_takes_its_fraction_of_every_class(fraction):
    target = examples().target
    index = torch.arange(0, N)
    kept, taken = divide(target, index, fraction, RNG("t"))
    assert torch.equal(torch.cat([kept, taken]).sort().values, index)
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(taken, taken.sort().values)
    assert per_class(target[taken]) == [round(fraction * count) for count in COUNTS]


def test_divide_within_a_part_leaves_the_rest_alone():
    target = examples().target
    index = torch.arange(5, N, 2)
    kept, taken = divide(target, index, 0.3, RNG("t"))
    assert torch.equal(torch.cat([kept, taken]).sort().values, index)
    assert per_class(target[taken]) == [round(0.3 * count) for count in per_class(target[index])]


def test_divide_real_targets_as_a_whole():
    kept, taken = divide(torch.randn(50, 1), torch.arange(50), 0.3, RNG("t"))
    assert (len(kept), len(taken)) == (35, 15)
    assert torch.equal(torch.cat([kept, taken]).sort().values, torch.arange(50))


def test_divide_is_keyed():
    target, index = examples().target, torch.arange(N)
    once, again, other = (divide(target, index, 0.3, RNG("t", key))[1] for key in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_divide_shuffles_within_a_class():
    """Not the first of each class: data sets are often stored in some order."""
    _, taken = divide(torch.zeros(100, dtype=torch.int64), torch.arange(100), 0.5, RNG("t"))
    assert not torch.equal(taken, torch.arange(50))
    assert int((taken < 50).sum()) in range(15, 36)


# --- limited ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 10, 17, 50, 99])
def test_limit_is_exact_and_every_class_keeps_its_share(limit):
    target = examples().target
    index = limited(target, limit, RNG("t"))
    assert len(index) == limit == len(index.unique())
    assert torch.equal(index, index.sort().values)
    for chosen, count in zip(per_class(target[index]), COUNTS, strict=True):
        assert abs(chosen - limit * count / N) < 1


def test_smaller_limits_choose_among_the_chosen():
    target = examples().target
    before = set()
    for limit in (1, 4, 20, 60):
        now = set(limited(target, limit, RNG("t")).tolist())
        assert before <= now
        before = now


@pytest.mark.parametrize("limit", [None, N, N + 1])
def test_no_limit_keeps_all_in_order(limit):
    assert torch.equal(limited(examples().target, limit, RNG("t")), torch.arange(N))


def test_a_limit_below_the_number_of_classes():
    """1,000 classes of 3 examples: no class may be rounded away from all of them."""
    target = torch.arange(1000).repeat(3)
    index = limited(target, 100, RNG("t"))
    assert len(index) == 100 == len(target[index].unique())


def test_limit_of_real_targets():
    index = limited(torch.randn(40, 1), 7, RNG("t"))
    assert len(index) == 7 == len(index.unique())
    assert not torch.equal(index, torch.arange(7))


# --- split --------------------------------------------------------------------------------------------------------


def test_split_is_disjoint_and_covers():
    divided = split(Loaded(examples()), SPEC, settings(), RNG)
    parts = [divided.train, divided.valid, divided.test]
    assert torch.equal(torch.cat([whose(part) for part in parts]).sort().values, torch.arange(N))
    test = [round(0.2 * count) for count in COUNTS]
    valid = [round(0.15 * (count - held)) for count, held in zip(COUNTS, test, strict=True)]
    assert per_class(divided.test.target) == test
    assert per_class(divided.valid.target) == valid
    assert divided.spec == SPEC


def test_targets_and_groups_go_with_their_examples():
    whole = replace(examples(), group=torch.arange(N) * 10)
    divided = split(Loaded(whole), SPEC, settings(), RNG)
    for part in (divided.train, divided.valid, divided.test):
        assert torch.equal(part.target, whole.target[whose(part)])
        assert torch.equal(part.group, whose(part) * 10)


def test_split_is_keyed():
    def parts(seed):
        divided = split(Loaded(examples()), SPEC, settings(), KeyedRng(seed))
        return [whose(part).tolist() for part in (divided.train, divided.valid, divided.test)]

    assert parts(3) == parts(3)
    assert all(one != other for one, other in zip(parts(3), parts(4), strict=True))


def test_validation_examples_are_keyed_where_the_test_is_official():
    once, again, other = (
        whose(split(Loaded(examples(), examples(30, seed=9)), SPEC, settings(), KeyedRng(seed)).valid).tolist()
        for seed in (3, 3, 4)
    )
    assert once == again != other


def test_an_official_test_stays_whole():
    official = examples(30, seed=9)
    divided = split(Loaded(examples(), official), SPEC, settings(), RNG)
    assert torch.equal(divided.test.inputs["x"], official.inputs["x"])
    assert torch.equal(divided.test.target, official.target)
    both = torch.cat([whose(divided.train), whose(divided.valid)])
    assert torch.equal(both.sort().values, torch.arange(N))


def test_fractions_of_zero_give_empty_parts():
    divided = split(Loaded(examples()), SPEC, settings(valid=0.0, test=0.0), RNG)
    assert (len(divided.train), len(divided.valid), len(divided.test)) == (N, 0, 0)


def test_limit_counts_all_parts_together_and_an_official_test_apart():
    divided = split(Loaded(examples()), SPEC, settings(limit=50), RNG)
    assert len(divided.train) + len(divided.valid) + len(divided.test) == 50
    official = split(Loaded(examples(), examples(30, seed=9)), SPEC, settings(limit=20), RNG)
    assert len(official.train) + len(official.valid) == 20 == len(official.test)
    divided = Loaded(examples(), examples(30, seed=9), valid=examples(40, seed=8))
    official = split(divided, SPEC, settings(limit=20), RNG)
    assert len(official.train) == len(official.valid) == len(official.test) == 20


def test_no_training_example_left_is_refused():
    with pytest.raises(ConfigError, match=r"no training example is left.*dataset\.limit"):
        split(Loaded(examples()), SPEC, settings(limit=1, test=0.6), RNG)


def test_real_targets():
    whole = Split({"x": examples().inputs["x"]}, torch.randn(N, 1, dtype=torch.float64))
    divided = split(Loaded(whole), Spec({"x": (2,)}, Real((1,))), settings(), RNG)
    assert [len(part) for part in (divided.train, divided.valid, divided.test)] == [68, 12, 20]
    assert "per_class" not in divided.record["train"]


# --- constants ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", ["standard", "unit"])
def test_constants_are_fitted_on_train_only(normalise):
    """Whatever happens to validation and test examples, the constants stay; a change of train is seen."""

    def constants(whole):
        divided = split(Loaded(whole), SPEC, settings(normalise=normalise), RNG)
        (affine,) = divided.train.prepare["x"]
        for part in (divided.valid, divided.test):
            assert part.prepare == divided.train.prepare
        return affine.state(), divided

    def perturbed(whole, part):
        x = whole.inputs["x"].clone()
        x[whose(part), 1] += 1000.0
        return replace(whole, inputs={"x": x})

    whole = examples()
    before, divided = constants(whole)
    for part in (divided.valid, divided.test):
        after, _ = constants(perturbed(whole, part))
        assert torch.equal(after["factor"], before["factor"])
        assert torch.equal(after["offset"], before["offset"])
    moved, _ = constants(perturbed(whole, divided.train.take(torch.tensor([0]))))
    assert not torch.equal(moved["offset"], before["offset"])


def test_train_is_standardised_and_stored_values_stay():
    divided = split(Loaded(examples()), SPEC, settings(), RNG)
    x = divided.train.batch(slice(None)).inputs["x"]
    torch.testing.assert_close(x.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(2, dtype=torch.float64))
    assert torch.equal(whose(divided.train), divided.train.inputs["x"][:, 0].round().long())


# --- the record ---------------------------------------------------------------------------------------------------


def sha(index):
    return hashlib.sha256(b"".join(int(i).to_bytes(8, "little") for i in index)).hexdigest()


@pytest.mark.parametrize("limit", [None, 60])
def test_record_says_who_is_where(limit):
    divided = split(Loaded(examples(), files={"f": "hash"}), SPEC, settings(limit=limit), RNG)
    assert divided.record["files"] == {"f": "hash"}
    for name in ("train", "valid", "test"):
        part = getattr(divided, name)
        assert divided.record[name] == {
            "examples": len(part),
            "per_class": per_class(part.target),
            "index_sha256": sha(whose(part).tolist()),
        }


def test_record_of_a_limited_official_test():
    divided = split(Loaded(examples(), examples(30, seed=9)), SPEC, settings(limit=20), RNG)
    assert divided.record["test"]["index_sha256"] == sha(whose(divided.test).tolist())


def test_examples_that_the_source_chose_are_recorded_by_their_numbers_there():
    numbers = {"examples": 1000 - torch.arange(len(examples())), "test": torch.arange(30) * 7}
    loaded = Loaded(examples(), examples(30, seed=9), places=numbers)
    divided = split(loaded, SPEC, settings(), RNG)
    for name in ("train", "valid"):
        assert divided.record[name]["index_sha256"] == sha((1000 - whose(getattr(divided, name))).tolist())
    assert divided.record["test"]["index_sha256"] == sha(range(0, 210, 7))
    kept = loaded.of_classes((2, 0))
    for part, was in (("examples", loaded.examples), ("test", loaded.test)):
        assert kept.places[part].tolist() == numbers[part][torch.isin(was.target, torch.tensor([0, 2]))].tolist()
    held_out = split(Loaded(examples(), places=numbers), SPEC, settings(), RNG)  # no official test: of the examples
    assert held_out.record["test"]["index_sha256"] == sha((1000 - whose(held_out.test)).tolist())


# --- examples that the data set has divided itself, and padding ---------------------------------------------------


def test_own_validation_examples_stay_whole():
    own = Split({"x": torch.full((9, 2), -1.0, dtype=torch.float64)}, torch.arange(9) % 4)
    found = split(Loaded(examples(), examples(20, seed=1), valid=own), SPEC, settings(valid=0.5), RNG)
    assert [len(part) for part in (found.train, found.valid, found.test)] == [N, 9, 20]
    assert torch.equal(found.valid.inputs["x"], own.inputs["x"])
    assert found.record["valid"]["examples"] == 9
    few = split(Loaded(examples(), examples(20, seed=1), valid=own), SPEC, settings(limit=6), RNG)
    assert [len(part) for part in (few.train, few.valid, few.test)] == [6, 6, 6]


def test_chosen_classes_reach_all_parts():
    whole = Loaded(examples(), examples(20, seed=1), valid=examples(30, seed=2), prompts={"text": torch.arange(4)})
    kept = whole.of_classes((3, 1))
    assert kept.prompts["text"].tolist() == [3, 1]
    for before, after in ((whole.examples, kept.examples), (whole.valid, kept.valid), (whole.test, kept.test)):
        assert torch.equal(whose(after), whose(before)[(before.target == 3) | (before.target == 1)])
        assert set(after.target.tolist()) == {0, 1}


def test_padding_is_not_fitted():
    spec = Spec({"s": (4, 2), "s_mask": (4,)}, Classes(4), streams={"s": Stream("frames", "s_mask")})
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(4) < torch.randint(1, 5, (N, 1), generator=generator)
    sounds = torch.where(mask.unsqueeze(2), 5 + torch.randn(N, 4, 2, generator=generator), 1e9)
    found = split(Loaded(Split({"s": sounds, "s_mask": mask}, examples().target)), spec, settings(), RNG)
    assert found.train.prepare["s_mask"] == ()
    ready, there = found.train.batch(slice(None)).inputs.values()
    assert there.dtype == torch.bool
    torch.testing.assert_close(ready[there].mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(ready[there].std(0, correction=0), torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)
