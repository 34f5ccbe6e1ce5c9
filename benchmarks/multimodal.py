"""The cross-modal block beside itself with nn.MultiheadAttention and with softmax written out.

    python benchmarks/multimodal.py [--repeats 60] [--device cuda]

One bidirectional block (two streams, each attends to the other, then feed-forward) with the same weights, four times:
`ours` is advml.nn.multimodal.blocks.CrossBlock; `MultiheadAttention` has torch's layer in it as it comes (with weights,
the default), `no weights` the same with need_weights=False; `written out` is softmax(Q Kᵀ / √d) V as one would write
it. Ours is torch's fused kernel after a joint projection of keys and values, but written out, with an additive mask,
where gradients are asked for and sequences are short. Outputs and gradients are compared first: they may differ by
1e-5, or nothing is timed. Then forward without gradients, and forward and backward; whole, and with padding (half of
the examples half as long). One thread; times are CPU times of this process (on CUDA: wall clock after synchronising),
all take turns; what is printed are medians and ratios of medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial

import torch
from common import machine, medians
from torch import Tensor, nn

from advml.nn.multimodal.attention import Attention
from advml.nn.multimodal.blocks import CrossBlock

TOLERANCE = 1e-5
# (batch, tokens of one stream, of the other, width, heads): training batches of small data, evaluation, a larger block
SIZES = [(64, 17, 20, 32, 4), (64, 50, 40, 32, 4), (512, 50, 40, 32, 4), (32, 197, 128, 128, 8)]
Run = Callable[[], list[Tensor]]


class Written(nn.Module):
    """The layer of the fast block, with the weights of attention as a matrix."""

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = self.layer.projected(x, context)
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        return self.layer.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class Theirs(nn.Module):
    """nn.MultiheadAttention with the same weights."""

    def __init__(self, layer: Attention, need_weights: bool) -> None:
        super().__init__()
        width, self.need_weights = layer.query.in_features, need_weights
        self.layer = nn.MultiheadAttention(width, layer.heads, batch_first=True)
        with torch.no_grad():
            self.layer.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key_value.weight]))
            self.layer.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key_value.bias]))
        self.layer.out_proj.load_state_dict(layer.out.state_dict())

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        padding = None if mask is None else ~mask
        return self.layer(x, context, context, key_padding_mask=padding, need_weights=self.need_weights)[0]


def blocks(width: int, heads: int) -> dict[str, CrossBlock]:
    """The same block with each kind of attention."""
    kinds: Mapping[str, Callable[[Attention], nn.Module]] = {
        "ours": lambda layer: layer,
        "MultiheadAttention": partial(Theirs, need_weights=True),
        "no weights": partial(Theirs, need_weights=False),
        "written out": Written,
    }
    made = {}
    for name, replace in kinds.items():
        torch.manual_seed(0)
        made[name] = CrossBlock(("a", "b"), width, heads, 2 * width)
        for half in made[name].halves.values():
            half.attention = replace(half.attention)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    for size in SIZES:
        compare(*size, options.repeats, options.device)


def compare(batch: int, first: int, second: int, width: int, heads: int, repeats: int, device: str) -> None:
    """Check that all agree, time them and print the ratios."""
    made = {name: block.to(device) for name, block in blocks(width, heads).items()}
    streams = {name: torch.randn(batch, count, width).to(device) for name, count in (("a", first), ("b", second))}
    lengths = torch.full((batch, 1), second)
    lengths[::2] = second // 2
    short = (torch.arange(second) < lengths).to(device)
    print(f"B = {batch}, {first} and {second} tokens of width {width}, {heads} heads")
    cases = {"whole": None, "padded": short, "mask": torch.ones_like(short)}
    times = {}
    for backward in (False, True):
        runs = {}
        for case, mask in cases.items():
            chosen = made if case != "mask" else {"ours": made["ours"]}
            work = {name: partial(step, block, streams, mask, backward) for name, block in chosen.items()}
            reference = work["ours"]()
            for name, run in work.items():
                error = max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(run(), reference, strict=True))
                if error > TOLERANCE:
                    raise SystemExit(f"{name}: off by {error:.1e}, so there is nothing to time")
            runs |= {(case, name): run for name, run in work.items()}
        times = medians(runs, dict.fromkeys(runs, repeats), device=device)
        print("  forward and backward" if backward else "  forward")
        for (case, name), taken in times.items():
            if name == "ours" and case != "mask":
                ratios = {other: times[case, other] / taken for other in made if other != "ours"}
                told = ", ".join(f"{ratio:.2f} {other}" for other, ratio in ratios.items())
                print(f"    {case:<7} {taken * 1e3:8.3f} ms; times as fast as: {told}")
        extra = times["mask", "ours"] / times["whole", "ours"] - 1
        print(f"    a mask that hides nothing costs {extra:+.0%}", flush=True)


def step(block: CrossBlock, streams: Mapping[str, Tensor], mask: Tensor | None, backward: bool) -> list[Tensor]:
    """Both outputs; with `backward` their gradients in the two streams instead."""
    masks = {"a": None, "b": mask}
    if not backward:
        with torch.no_grad():
            return list(block(streams, masks).values())
    leaves = {name: values.detach().requires_grad_() for name, values in streams.items()}
    loss = sum(values.square().mean() for values in block(leaves, masks).values())
    loss.backward()
    for parameter in block.parameters():
        parameter.grad = None
    return [values.grad for values in leaves.values() if values.grad is not None]


if __name__ == "__main__":
    main()
