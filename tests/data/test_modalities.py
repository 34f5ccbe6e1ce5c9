"""The modalities view: what is seen, what is missing or noisy, and that nothing of what is missing is left."""

import json
from dataclasses import replace

import pytest
import torch

from advml.contracts import Classes, Spec, Split, Stream
from advml.data.modalities import Modalities, ModalitiesSettings, lacking, seen_spec, streams_of
from advml.data.prepare import Affine
from advml.data.source import Loaded, SplitSettings, split
from advml.errors import ConfigError
from advml.runner.randomness import KeyedRng

SPEC = Spec(
    {"image": (1, 4, 4), "audio": (6, 3), "audio_mask": (6,), "text": (5,), "text_mask": (5,)},
    Classes(2),
    tokens={"text": 9},
    streams={
        "image": Stream("image"),
        "audio": Stream("frames", "audio_mask"),
        "text": Stream("tokens", "text_mask"),
    },
)
RNG = KeyedRng(3)


def made(count=60):
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 7, (count, 1), generator=draw)
    words = torch.randint(1, 6, (count, 1), generator=draw)
    mask, text_mask = torch.arange(6) < lengths, torch.arange(5) < words
    text = torch.where(text_mask, torch.randint(1, 9, (count, 5), generator=draw), 0).to(torch.uint8)
    audio = torch.where(mask.unsqueeze(2), 7 + 2 * torch.randn(count, 6, 3, generator=draw), 0.0)
    image = torch.randint(0, 256, (count, 1, 4, 4), generator=draw).to(torch.uint8)
    inputs = {"image": image, "audio": audio, "audio_mask": mask, "text": text, "text_mask": text_mask}
    return Split(inputs, torch.arange(count) % 2)


def divided(spec=SPEC, **changes):
    values = {"valid": 0.2, "test": 0.2, "limit": None, "split_seed": None, "normalise": "standard",
              "pca": None, "keep_classes": None}  # fmt: skip
    return split(Loaded(made(), scale=255, **changes), spec, SplitSettings(**values), RNG)


def view_of(splits=None, rng=RNG, **changes):
    values = {"use": None, "drop": {}, "noise": {}, "noisy": 1.0, "noisy_tokens": 0.5}
    view = Modalities.of(splits or divided(), ModalitiesSettings(**values | changes), rng)
    return view.to(torch.device("cpu"), torch.float32)


def everything(part):
    return part.batch(slice(None)).inputs


def test_streams_survive_a_file():
    assert Spec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC
    assert replace(SPEC, streams={}) != SPEC


def test_all_streams_have_a_presence():
    spec = view_of().spec
    assert list(spec.inputs) == [
        "image", "audio", "audio_mask", "text", "text_mask", "image_present", "audio_present", "text_present",
    ]  # fmt: skip
    assert spec.streams["audio"] == Stream("frames", "audio_mask", "audio_present")
    assert spec.inputs["image_present"] == ()
    assert set(everything(view_of().train)) == set(spec.inputs)


@pytest.mark.parametrize(
    ("use", "inputs"),
    [(("image",), ["image"]), (("text",), ["text", "text_mask"]), (("audio",), ["audio", "audio_mask"])],
)
def test_one_modality_has_its_mask_and_no_presence(use, inputs):
    view = view_of(use=use)
    assert list(view.spec.inputs) == inputs == list(everything(view.test))
    assert [stream.present for stream in view.spec.streams.values()] == [None]
    assert set(view.spec.tokens) <= set(inputs)
    assert list(view.conditions("test")) == ["as_is", f"noisy_{use[0]}"]


def test_a_data_set_of_one_input_is_one_modality():
    for inputs, tokens, kind in (
        ({"image": (1, 8, 8)}, {}, "image"), ({"x": (8, 3)}, {}, "frames"), ({"text": (8,)}, {"text": 4}, "tokens"),
    ):  # fmt: skip
        spec = Spec(inputs, Classes(2), tokens=tokens)
        assert streams_of(spec) == {next(iter(inputs)): Stream(kind)}
        assert seen_spec(spec, None).inputs == inputs
    table = Spec({"features": (4,)}, Classes(2))
    assert seen_spec(table, None) == table


def test_padding_is_zero_and_does_not_move_the_normalisation():
    train = view_of().train
    ready = everything(train)
    assert (ready["audio"][~ready["audio_mask"]] == 0).all()
    real = ready["audio"][ready["audio_mask"]]
    torch.testing.assert_close(real.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(real.std(0, correction=0), torch.ones(3), atol=1e-5, rtol=0)
    stored = dict(train.inputs)
    stored["audio"] = torch.where(train.inputs["audio_mask"].unsqueeze(2), stored["audio"], 1e6)
    stored["text"] = torch.where(train.inputs["text_mask"], stored["text"], 8)
    for name, values in everything(replace(train, inputs=stored)).items():
        assert torch.equal(values, ready[name])


def test_missing_is_absent_masked_and_zero():
    view = view_of(drop={"audio": 0.5, "text": 0.25})
    ready = everything(view.train)
    count = len(view.train)
    for name, share in (("audio", 0.5), ("text", 0.25)):
        absent = ~ready[f"{name}_present"]
        assert int(absent.sum()) == round(share * count)
        assert not ready[f"{name}_mask"][absent].any()
        assert (ready[name][absent] == 0).all()
        assert (view.train.inputs[name][absent] == 0).all()
        assert view.describe()["modalities"]["lacking"][name]["examples"] == int(absent.sum())
    assert ready["image_present"].all()
    for part in (view.valid, view.test):
        assert all(values.all() for name, values in everything(part).items() if name.endswith("_present"))


def test_every_example_keeps_a_modality():
    streams = {"a": Stream("image"), "b": Stream("image")}
    found = lacking(101, {"a": 0.6, "b": 0.4}, streams, RNG)
    assert not (found["a"] & found["b"]).any()
    assert [int(each.sum()) for each in found.values()] == [61, 40]
    with pytest.raises(ConfigError, match=r"view\.drop\.b=0\.5: every example must keep a modality"):
        lacking(101, {"a": 0.6, "b": 0.5}, streams, RNG)


def test_draws_are_keyed():
    lost = [view_of(rng=KeyedRng(seed), drop={"image": 0.4}).train.inputs["image_present"] for seed in (0, 0, 1)]
    assert torch.equal(lost[0], lost[1])
    assert not torch.equal(lost[0], lost[2])


def test_noise_is_in_prepared_units():
    splits = divided()
    clean, loud = view_of(splits), view_of(splits, noise={"image": 0.5, "audio": 2.0, "text": 1.0})
    before, after = everything(clean.train), everything(loud.train)
    difference = (after["image"] - before["image"]).flatten()
    assert abs(float(difference.std()) - 0.5) < 0.05
    assert abs(float(difference.mean())) < 0.05
    real = before["audio_mask"]
    assert 1.7 < float((after["audio"] - before["audio"])[real].std()) < 2.3
    assert (after["audio"][~real] == 0).all()
    changed = (after["text"] != before["text"])[before["text_mask"]].float().mean()
    assert 0.7 < float(changed) <= 1  # a random word is the old one in an eighth of all cases
    assert (after["text"][before["text_mask"]] > 0).all()
    for name in ("valid", "test"):
        for key, values in everything(clean.split(name)).items():
            assert torch.equal(values, everything(loud.split(name))[key])


def test_conditions_change_one_modality_only():
    view = view_of(drop={"image": 0.3})
    names = ["image", "audio", "text"]
    for split_name in ("valid", "test"):
        found = view.conditions(split_name)
        assert list(found) == ["as_is", *(f"without_{name}" for name in names), *(f"noisy_{name}" for name in names)]
        clean = everything(view.split(split_name))
        for condition, part in found.items():
            ready = everything(part)
            differing = {name for name, values in ready.items() if not torch.equal(values, clean[name])}
            kind, _, name = condition.partition("_")
            if condition == "as_is":
                assert not differing
            elif kind == "without":
                assert differing <= {name, f"{name}_mask", f"{name}_present"}
                assert all((ready[key] == 0).all() for key in differing)
                assert not ready[f"{name}_present"].any()
            else:
                assert differing == {name}
            assert torch.equal(part.target, view.split(split_name).target)


def test_conditions_are_the_same_for_all_and_left_out_at_zero():
    first, second = (view_of(rng=KeyedRng(7)).conditions("test") for _ in range(2))
    for name, part in first.items():
        for key, values in everything(part).items():
            assert torch.equal(values, everything(second[name])[key])
    noise = {part: everything(view_of().conditions(part)["noisy_image"])["image"] for part in ("valid", "test")}
    assert not torch.equal(noise["valid"], noise["test"])
    assert not any("noisy" in name for name in view_of(noisy=0.0, noisy_tokens=0.0).conditions("test"))


def test_prompts_are_those_of_the_view():
    prompts = {"text": torch.ones(2, 5, dtype=torch.uint8), "text_mask": torch.ones(2, 5, dtype=torch.bool)}
    view = view_of(divided(prompts=prompts))
    assert set(view.prompts) == {"text", "text_mask", "text_present"}
    assert view.prompts["text_present"].tolist() == [True, True]
    assert view_of(divided(prompts=prompts), use=("image",)).prompts == {}


def test_float64_and_indexing():
    view = view_of(noise={"image": 0.1})
    wide = view.to(torch.device("cpu"), torch.float64)
    assert everything(wide.conditions("valid")["noisy_image"])["image"].dtype == torch.float64
    taken = view.train.take(torch.tensor([3, 1]))
    assert torch.equal(everything(taken)["audio"], everything(view.train)["audio"][[3, 1]])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use": ("sound",)}, "view.use: the data set has no modality sound to be seen (there is: image, audio, text)"),
        ({"use": ()}, "view.use=[]: name each modality once"),
        ({"use": ("image", "image")}, "name each modality once"),
        ({"drop": {"sound": 0.1}}, "view.drop: the data set has no modality sound"),
        ({"use": ("image",), "drop": {"image": 0.99}}, "view.drop: no training example has image; use a smaller share"),
        ({"use": ("image",), "noise": {"sound": 0.1}}, "view.noise: the data set has no modality sound to be seen"),
        ({"noise": {"audio_mask": 0.1}}, "view.noise: the data set has no modality audio_mask"),
        ({"noise": {"text": 1.5}}, "view.noise.text: of tokens it is the share that is replaced; use at most 1"),
    ],
)
def test_mistakes_are_one_line(changes, words):
    with pytest.raises(ConfigError) as caught:
        view_of(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_one_modality_none_can_be_missing():
    spec = Spec({"image": (1, 4, 4)}, Classes(2))
    chosen = ModalitiesSettings(use=None, drop={"image": 0.1}, noise={}, noisy=1.0, noisy_tokens=0.5)
    with pytest.raises(ConfigError, match=r"view\.drop: with one modality none can be missing; use \{\}"):
        Modalities.view_spec(spec, chosen)


def test_one_modality_alone_is_what_of_it_all_together_have():
    chosen = {"drop": {"image": 0.4, "audio": 0.3}, "noise": {"image": 0.5, "text": 0.3}}
    together = view_of(**chosen).train
    for name in ("image", "audio", "text"):
        alone = view_of(use=(name,), **chosen)
        kept = together.take(together.inputs[f"{name}_present"].nonzero().flatten())
        assert torch.equal(alone.train.target, kept.target)
        for key, values in everything(alone.train).items():
            assert torch.equal(values, everything(kept)[key])
        left_out = len(together) - len(kept)
        assert (left_out > 0) == (name != "text")
        assert alone.describe()["modalities"].get("left_out", 0) == left_out
    both = view_of(use=("image", "audio"), **chosen).train
    assert (both.inputs["image_present"] | both.inputs["audio_present"]).all()


def test_noise_needs_a_plain_normalisation():
    splits = divided()
    step = Affine(torch.ones(1), torch.ones(1))
    twice = replace(splits.train, prepare={**splits.train.prepare, "image": (step, step)})
    with pytest.raises(ConfigError, match=r"view\.noise\.image"):
        view_of(replace(splits, train=twice), noise={"image": 1.0})


def test_plain_methods_and_networks_read_one_modality(run_cli):
    words = ["dataset=shapes_captions", "dataset.examples=200", "view=modalities", "method.epochs=1"]
    assert run_cli("run", *words, "view.use=[image]", "baselines=off", "progress=off").code == 0
    refused = run_cli("check", *words)
    assert refused.code == 2
    assert "reads numbers" in refused.err


def test_a_trained_network_reads_what_is_stored(run_cli):
    from advml import load
    from advml.compose import compose
    from advml.config import bind
    from advml.nn.evaluation import predict
    from advml.runner.run import load_view

    words = ["method=fusion", "dataset.examples=80", "view.drop.text=0.2", "method.epochs=1", "model.width=8",
             "model.heads=2", "model.hidden=8", "baselines=off"]  # fmt: skip
    said = run_cli("run", *words, "progress=off", "figures=false")
    assert said.code == 0
    run = load(said.last)
    view = load_view(bind(compose(words)[0]), print).to(torch.device("cpu"), torch.float32)
    part = view.conditions("test")["without_image"]
    found = run.predict(part.inputs)
    torch.testing.assert_close(found, predict(run.model, part))
    other = {**part.inputs, "image": torch.randint(0, 256, part.inputs["image"].shape)}
    assert torch.equal(run.predict(other), found)
