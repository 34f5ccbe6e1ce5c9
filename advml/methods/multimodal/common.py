"""What the multimodal methods share: batches, measuring under conditions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from advml.artifacts import Artifact
from advml.contracts import Batch, Classes, Context, Network, Real, Record, Split, SplitName
from advml.data.modalities import AS_IS
from advml.methods.multimodal.pictures import bars
from advml.nn.evaluation import measure
from advml.nn.training import batches_of, minibatches


def shuffled(context: Context, split: Split, start: int, stop: int) -> Iterator[Batch]:
    """The training batches of updates `start` to `stop`."""
    size = context.settings.batch_size
    return batches_of(split, minibatches(len(split), size, start, stop, lambda epoch: context.rng("shuffle", epoch)))


def main_metric(context: Context) -> str:
    """What ranks: accuracy of classes, the squared error of real targets."""
    return "mse" if isinstance(context.data.spec.target, Real) else "accuracy"


def measured(context: Context, network: Network, split: SplitName) -> dict[str, Any]:
    """All metrics of a split as it is; of the main one also what it is under each condition: accuracy/without_image.

    Training examples are measured as they are only.
    """
    found = dict(measure(network, context.data.split(split), autocast=context.autocast))
    if not found or split == "train":
        return found
    main = main_metric(context)
    for name, changed in context.data.conditions(split).items():
        if name != AS_IS:
            found[f"{main}/{name}"] = measure(network, changed, autocast=context.autocast)[main]
    return found


def robustness(context: Context, records: Sequence[Record]) -> dict[str, Artifact]:
    """Bars of the main metric under each condition, from the test split's record of the last state, which the other
    pictures show too; nothing if there is none.
    """
    main = main_metric(context)
    of_last = (record for record in reversed(records) if record["split"] == "test" and record.get("state") != "best")
    tested = next(of_last, None)
    if tested is None or tested.get(main) is None:
        return {}
    conditions = {name: tested.get(f"{main}/{name}") for name in context.data.conditions("test") if name != AS_IS}
    heights: dict[str, float | None] = {AS_IS: tested[main], **conditions}
    chance = None
    target = context.data.spec.target
    if isinstance(target, Classes):
        chance = 1 / target.count
    return {"robustness": bars(heights, f"test {main}", "What is missing or noisy", chance)}
