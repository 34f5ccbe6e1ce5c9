"""Networks of several modalities: what must hold for each of them, and what makes each of them what it is."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from advml.contracts import Classes, Nothing, Real, Spec, Stream
from advml.models.build import build, from_recipe, rebuild
from advml.models.fusion import FusionNetwork

MODELS = ["early_fusion", "late_fusion", "cross_attention", "bottleneck", "vision_language", "clip"]
SMALL = {"width": 8, "heads": 2, "hidden": 12, "depth": 1, "patch": 4}
VARIANTS = [
    *[(model, {}) for model in MODELS],
    ("late_fusion", {"fusion": "logit_sum"}),
    ("late_fusion", {"fusion": "gated"}),
    ("early_fusion", {"depth": 2, "image": "convolution"}),
    ("cross_attention", {"cross_depth": 2}),
    ("additive_cross", {}),
]
every_model = pytest.mark.parametrize(("model", "changes"), VARIANTS, ids=[f"{m} {c}" for m, c in VARIANTS])

INPUTS = {"image": (1, 8, 8), "text": (6,), "text_mask": (6,), "image_present": (), "text_present": ()}
STREAMS = {"image": Stream("image", present="image_present"), "text": Stream("tokens", "text_mask", "text_present")}
SPEC = Spec(INPUTS, Classes(3), tokens={"text": 9}, streams=STREAMS)
SOUND = Spec(
    {"image": (1, 8, 8), "audio": (7, 5), "audio_mask": (7,)},
    Classes(3),
    streams={"image": Stream("image"), "audio": Stream("frames", "audio_mask")},
)


def some(batch=5):
    """Inputs with padding of every length, all modalities there."""
    there = torch.ones(batch, dtype=torch.bool)
    return {
        "image": torch.randn(batch, 1, 8, 8),
        "text": torch.randint(9, (batch, 6)),
        "text_mask": torch.arange(6) < torch.tensor([[6], [4], [3], [1], [0]])[:batch],
        "image_present": there,
        "text_present": there,
    }


@pytest.fixture
def small(shipped):
    """small("clip"): a little network; with parameters moved away from where they start, so that all take part."""

    def make(model, spec=SPEC, **changes):
        network = shipped(model, spec, **(SMALL | changes))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return network

    return make


@every_model
class TestEvery:
    def test_gives_outputs_and_moves_all_that_it_has(self, model, changes, small):
        network, inputs = small(model, **changes), some()
        assert isinstance(network, FusionNetwork)
        assert network.streams == ("image", "text")
        inputs["image_present"] = torch.tensor([True, False, True, True, True])
        inputs["text_present"] = torch.tensor([True, True, False, True, True])
        outputs = network(inputs)
        assert outputs.shape == (5, 3)
        assert torch.equal(outputs, network.head(network.fuse(network.encode(inputs), inputs)))
        (outputs * torch.randn(5, 3)).sum().backward()
        assert [name for name, parameter in network.named_parameters() if not parameter.grad.any()] == []

    def test_padding_is_not_seen(self, model, changes, small):
        network, inputs = small(model, **changes).eval(), some()
        changed = inputs | {"text": torch.where(inputs["text_mask"], inputs["text"], 123456)}
        assert not torch.equal(changed["text"], inputs["text"])
        assert torch.equal(network(inputs), network(changed))

    @pytest.mark.parametrize("gone", ["image", "text"])
    def test_what_is_missing_is_not_seen(self, model, changes, gone, small):
        network, inputs = small(model, **changes), some()
        inputs[f"{gone}_present"] = torch.tensor([False, True, False, True, False])
        there = inputs[f"{gone}_present"]
        changed = {name: values.clone() for name, values in inputs.items()}
        if gone == "image":
            changed["image"][~there] = float("nan")
        else:
            changed["text"][~there] = torch.randint(9, (3, 6))
            changed["text_mask"][~there] ^= True
        before, after = network(inputs), network(changed)
        assert torch.equal(before, after)
        other = changed | {f"{gone}_present": torch.ones(5, dtype=torch.bool)}
        assert not torch.equal(network(other)[~there], before[~there])
        gradients = []
        for outputs in (before, after):
            network.zero_grad()
            outputs.square().sum().backward()
            gradients.append([parameter.grad for parameter in network.parameters()])
        assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))

    def test_nothing_at_all_gives_numbers(self, model, changes, shipped):
        network, inputs = shipped(model, SPEC, **(SMALL | changes)), some()
        nothing = torch.zeros(5, dtype=torch.bool)
        inputs |= {"image_present": nothing, "text_present": nothing, "text_mask": torch.zeros(5, 6, dtype=torch.bool)}
        outputs = network(inputs)
        outputs.sum().backward()
        assert outputs.isfinite().all()
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
        torch.testing.assert_close(outputs, outputs[:1].expand(5, -1))

    def test_unimodal_heads_read_their_own_modality(self, model, changes, small):
        network, inputs = small(model, unimodal_heads=True, **changes), some()
        anyway = model == "additive_cross" or "logit_sum" in changes.values()  # as terms of a sum
        if anyway:
            assert len(network.heads) == 0
        outputs = network.unimodal(network.encode(inputs))
        assert {name: tuple(values.shape) for name, values in outputs.items()} == {"image": (5, 3), "text": (5, 3)}
        other = network.unimodal(network.encode(inputs | {"image": torch.randn(5, 1, 8, 8)}))
        assert torch.equal(outputs["text"], other["text"])
        assert not torch.equal(outputs["image"], other["image"])
        bare = small(model, **changes)
        assert bool(bare.unimodal(bare.encode(inputs))) == anyway

    def test_is_rebuilt_from_its_recipe(self, model, changes, chosen):
        cls, settings = chosen(model, **(SMALL | changes))
        network, inputs = build(model, settings, SPEC, seed=3).eval(), some()
        assert type(network) is cls
        assert Spec.from_dict(from_recipe(network.recipe).recipe["spec"]) == SPEC
        assert torch.equal(rebuild(network.recipe, network.state_dict())(inputs), network(inputs))

    def test_dropout_acts_in_training_only(self, model, changes, small):
        network, inputs = small(model, dropout=0.5, **changes), some()
        assert not torch.equal(network(inputs), network(inputs))
        network.eval()
        assert torch.equal(network(inputs), network(inputs))


@every_model
def test_many_copies_at_once_and_examples_apart(model, changes, small):
    """torch.func goes through them, as meta-learning and clients side by side need it."""
    network, inputs = small(model, **changes).double(), some()
    inputs["image"] = inputs["image"].double()
    inputs["image_present"] = torch.tensor([True, False, True, True, False])
    parameters = dict(network.named_parameters())

    def loss(values, example):
        return functional_call(network, values, (example,)).square().sum()

    apart = vmap(grad(loss), in_dims=(None, 0))(parameters, {name: v.unsqueeze(1) for name, v in inputs.items()})
    together = torch.autograd.grad(loss(parameters, inputs), list(parameters.values()))
    for name, expected in zip(parameters, together, strict=True):
        torch.testing.assert_close(apart[name].sum(0), expected)


@pytest.mark.parametrize("model", ["early_fusion", "late_fusion", "cross_attention", "bottleneck", "clip"])
def test_sound_and_double_precision(model, small):
    network = small(model, SOUND, frames=3).double()
    inputs = {
        "image": torch.randn(4, 1, 8, 8).double(),
        "audio": torch.randn(4, 7, 5).double(),
        "audio_mask": torch.arange(7) < torch.tensor([[7], [5], [2], [0]]),
    }
    assert len(network.missing) == 0
    outputs = network(inputs)
    assert outputs.dtype == torch.float64
    hidden = inputs | {"audio": torch.where(inputs["audio_mask"].unsqueeze(-1), inputs["audio"], float("nan"))}
    assert torch.equal(outputs, network(hidden))


@pytest.mark.parametrize("model", ["early_fusion", "late_fusion"])
@pytest.mark.parametrize(
    ("spec", "inputs"),
    [
        (Spec({"image": (1, 8, 8)}, Classes(3)), {"image": torch.randn(4, 1, 8, 8)}),
        (Spec({"text": (6,)}, Classes(3), tokens={"text": 9}), {"text": torch.randint(9, (4, 6))}),
        (Spec({"series": (6, 2)}, Real((3,))), {"series": torch.randn(4, 6, 2)}),
    ],
    ids=["image", "text", "series"],
)
def test_one_modality_is_enough(model, spec, inputs, small):
    assert small(model, spec)(inputs).shape == (4, 3)


@pytest.mark.parametrize("model", ["early_fusion", "late_fusion", "bottleneck"])
def test_three_modalities(model, small):
    spec = Spec({"a": (1, 8, 8), "b": (6, 2), "c": (4,)}, Classes(3), tokens={"c": 9})
    inputs = {"a": torch.randn(4, 1, 8, 8), "b": torch.randn(4, 6, 2), "c": torch.randint(9, (4, 4))}
    assert small(model, spec)(inputs).shape == (4, 3)


ONE = Spec({"image": (1, 8, 8)}, Classes(3))
THREE = Spec({"a": (1, 8, 8), "b": (6, 2), "c": (6, 2)}, Classes(3))


@pytest.mark.parametrize(
    ("model", "spec", "need"),
    [
        *[(model, Spec({"features": (13,)}, Classes(3)), "images [channels") for model in MODELS if "vis" not in model],
        *[(model, ONE, "2 modalities") for model in ("cross_attention", "clip")],
        *[(model, THREE, "2 modalities") for model in ("cross_attention", "clip")],
        ("bottleneck", ONE, "at least 2 modalities"),
        ("vision_language", SOUND, "an image and a text"),
        *[(model, Spec(INPUTS, Nothing(), tokens={"text": 9}, streams=STREAMS), "a target") for model in MODELS[:5]],
    ],
)
def test_what_cannot_be_served_is_refused_in_words(model, spec, need, chosen):
    cls, settings = chosen(model)
    assert need in cls.check(spec, settings)


class TestCrossAttention:
    def test_with_zero_outputs_is_a_late_concatenation_with_one_more_feed_forward(self, small):
        """The late network's encoders are a block deeper, with an attention in it that adds nothing either."""
        cross, late = small("cross_attention", depth=1).double(), small("late_fusion", depth=2).double()
        inputs = {name: v.double() if v.is_floating_point() else v for name, v in some().items()}
        state = {name: value for name, value in cross.state_dict().items() if not name.startswith("cross.")}
        for name in cross.streams:
            for key, value in cross.cross[0].halves[name].state_dict().items():
                state[f"towers.{name}.blocks.1.part.{key}"] = value
        late.load_state_dict(state)
        # A missing modality takes its place after the late network's whole encoder: so all are there.
        assert not torch.allclose(cross(inputs), late(inputs), atol=1e-3)
        for network in (cross.cross[0].halves["image"], cross.cross[0].halves["text"],
                        late.towers["image"].blocks[1].part, late.towers["text"].blocks[1].part):  # fmt: skip
            nn.init.zeros_(network.attention.out.weight)
            nn.init.zeros_(network.attention.out.bias)
        torch.testing.assert_close(cross(inputs), late(inputs), rtol=1e-12, atol=1e-12)

    def test_zero_queries_and_keys_would_not_do(self, small):
        """They make attention uniform: what the other says still gets in."""
        cross, inputs = small("cross_attention"), some()
        other = inputs | {"image": torch.randn(5, 1, 8, 8)}
        half = cross.cross[0].halves["text"]
        for layer in (half.attention.query, half.attention.key_value):
            nn.init.zeros_(layer.weight[: SMALL["width"]])
        blocks = [
            cross.cross[0]({n: e.tokens for n, e in encoded.items()}, {n: e.mask for n, e in encoded.items()})["text"]
            for encoded in (cross.encode(inputs), cross.encode(other))
        ]
        assert not torch.allclose(*blocks, atol=1e-3)

    @pytest.mark.parametrize("depth", [1, 2])
    def test_attention_is_the_last_blocks(self, small, depth):
        network, inputs = small("cross_attention", cross_depth=depth), some()
        found = network.attention(inputs)
        assert {name: tuple(v.shape) for name, v in found.items()} == {
            "image→text": (5, 2, 5, 7),
            "text→image": (5, 2, 7, 5),
        }
        hidden = torch.cat([torch.ones(5, 1, dtype=torch.bool), inputs["text_mask"]], 1)
        assert torch.equal(found["image→text"].movedim(-1, 1) > 0, hidden[:, :, None, None].expand(5, 7, 2, 5))
        assert network.tower("image").grid == (2, 2)
        seen = {}
        half = network.cross[-1].halves["image"]
        half.attention.register_forward_hook(lambda module, given, _: seen.update(weights=module.weights(*given)))
        network(inputs)
        assert torch.equal(seen["weights"], found["image→text"])

    def test_others_have_none(self, small):
        assert small("early_fusion").attention(some()) == {}


def interaction(network, inputs):
    """f(x, y) − f(x, y') − f(x', y) + f(x', y'): zero for whatever only adds what either says."""
    other = some()
    image, text = {"image": other["image"]}, {"text": other["text"]}
    corners = [network(inputs | change) for change in ({}, image | text, image, text)]
    return (corners[0] + corners[1] - corners[2] - corners[3]).abs().max()


def test_a_sum_of_logits_cannot_tell_same_from_different(small):
    inputs = some()
    assert interaction(small("late_fusion", fusion="logit_sum"), inputs) < 1e-4
    for model, changes in VARIANTS:
        if changes.get("fusion") != "logit_sum":
            assert interaction(small(model, **changes), inputs) > 1e-3, model


def test_a_sum_of_logits_is_the_sum_of_its_unimodal_outputs(small):
    network, inputs = small("late_fusion", fusion="logit_sum"), some()
    terms = network.unimodal(network.encode(inputs))
    torch.testing.assert_close(network(inputs), terms["image"] + terms["text"])


def test_a_gate_of_two_is_the_gated_unit_of_the_paper(small):
    """Arevalo et al. 2017, equations 1 to 4: z = σ(W [x, y]), h = z tanh(V x) + (1 − z) tanh(U y)."""
    gate = small("late_fusion", fusion="gated").join
    x, y = torch.randn(5, 8), torch.randn(5, 8)
    first, second = gate.gates.weight.chunk(2)
    bias = gate.gates.bias[:8] - gate.gates.bias[8:]
    z = (torch.cat([x, y], 1) @ (first - second).T + bias).sigmoid()
    h = z * gate.values[0](x).tanh() + (1 - z) * gate.values[1](y).tanh()
    torch.testing.assert_close(gate(torch.stack([x, y], 1)), h)


def test_image_and_text_meet_in_their_product(small):
    network, inputs = small("vision_language"), some()
    encoded = network.encode(inputs)
    u, v = (network.project[name](encoded[name].pooled).tanh() for name in ("image", "text"))
    affine = network.join[0]
    features = nn.functional.gelu(torch.cat([u, v, u * v], 1) @ affine.weight.T + affine.bias)
    torch.testing.assert_close(network.features(inputs), features)


class TestClip:
    def test_embeds_on_the_sphere_each_from_its_own_input(self, small):
        network, inputs = small("clip", embedding=6), some()
        image = network.embed("image", {name: inputs[name] for name in ("image", "image_present")})
        text = network.embed("text", {name: inputs[name] for name in ("text", "text_mask", "text_present")})
        assert image.shape == text.shape == (5, 6)
        torch.testing.assert_close(torch.stack([image, text]).norm(dim=-1), torch.ones(2, 5))
        scale = network.log_scale.exp()
        torch.testing.assert_close(network.features(inputs), torch.cat([image, text, scale * image * text], 1))

    def test_the_scale_begins_at_one_over_the_temperature(self, shipped):
        network = shipped("clip", SPEC)
        assert network.log_scale.shape == ()
        torch.testing.assert_close(network.log_scale.exp(), torch.tensor(1 / 0.07))

    def test_needs_no_target(self, shipped):
        network = shipped("clip", Spec(INPUTS, Nothing(), tokens={"text": 9}, streams=STREAMS))
        assert network(some()).shape == (5, 96)
