"""How good predictions are: pure functions from tensors to 0-d float64 tensors on the same device.

Nothing waits for the device, so every metric is a tensor. Where one is undefined, which depends on the values (one
class absent, a constant target, no example), it is NaN, which the recorder writes as null. Sums are taken in float64,
so that a metric is that of the numbers given and not of their rounding. Operations without a deterministic form on
CUDA are avoided.
"""

from __future__ import annotations

import torch
from torch import Tensor

# --- classes ------------------------------------------------------------------------------------------------------


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """The fraction of rows of `logits` [N, C] that are largest at `target` int64 [N]; the first of equals counts."""
    return (logits.argmax(1) == target).double().mean()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target], nats; logits [N, C], target int64 [N].

    A class masked by a logit of -inf has probability zero: the result stays finite, unless a target itself is masked,
    where the loss is infinite.
    """
    # In double precision, and by hand: F.cross_entropy would sum in the type of the logits.
    return -logits.double().log_softmax(1).gather(1, target.unsqueeze(1)).mean()


def confusion_matrix(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """How often class r (row, the truth) was taken for class c (column): int64 [classes, classes].

    predicted, target: int64 [N], in [0, classes). Whole numbers are added, exactly and so in any order, by
    `index_put_` (on CUDA it sorts its indices); `bincount` would wait for the device to learn its length, and a
    product of one-hot matrices needs N · classes numbers.
    """
    counts = torch.zeros(classes, classes, dtype=torch.int64, device=target.device)
    return counts.index_put_((target, predicted), torch.ones_like(target), accumulate=True)


def macro_f1(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN); predicted, target: int64 [N].

    Classes found neither in `predicted` nor in `target` are left out; one found in only one of them counts 0. This is
    scikit-learn's f1_score(average="macro", zero_division=0) with its default labels.
    """
    counts = confusion_matrix(predicted, target, classes)
    occurrences = counts.sum(0) + counts.sum(1)
    scores = 2 * counts.diagonal().double() / occurrences.clamp(min=1)
    return scores.sum() / (occurrences > 0).sum()


def expected_calibration_error(probabilities: Tensor, target: Tensor, bins: int = 15) -> Tensor:
    """Σ_m |B_m| / N · |accuracy(B_m) - confidence(B_m)| (Guo et al. 2017, eq. 3); empty bins count nothing.

    probabilities [N, C], target int64 [N]. Confidence is the largest probability of a row. Bins have equal width and
    contain their upper edge: bin m of 1 … bins is ((m - 1) / bins, m / bins]; the first also contains 0.
    """
    confidence, predicted = probabilities.max(1)
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    # Edges in the type of the probabilities: 0.2 in float32 must fall on the edge 0.2.
    bin_of = torch.bucketize(confidence, edges.to(confidence.dtype))
    gap = (predicted == target).double() - confidence.double()
    member = bin_of.unsqueeze(1) == torch.arange(bins, device=gap.device)
    # |B_m| · |accuracy - confidence| = |sum of the gaps in B_m|.
    return torch.where(member, gap.unsqueeze(1), 0).sum(0).abs().sum() / len(target)


def roc_auc(scores: Tensor, target: Tensor) -> Tensor:
    """The probability that a positive scores above a negative, ties counting one half; NaN if either is absent.

    scores [N], target [N] in {0, 1}. By the rank sum of the positives (Mann and Whitney 1947), equal scores sharing
    the mean of their ranks: (Σ rank - P (P + 1) / 2) / (P · (N - P)).
    """
    scores = scores.contiguous()
    ordered = scores.sort().values
    below, upto = torch.searchsorted(ordered, scores), torch.searchsorted(ordered, scores, right=True)
    rank = (below + upto + 1).double() / 2
    positive = target == 1
    positives, negatives = positive.sum().double(), (~positive).sum().double()
    area = (torch.where(positive, rank, 0).sum() - positives * (positives + 1) / 2) / (positives * negatives)
    return torch.where(scores.isnan().any(), torch.nan, area)


def classification_metrics(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """loss (mean cross-entropy), accuracy, macro_f1, ece and, of two classes, roc_auc; logits [N, C], target [N].

    Logits of masked classes may be -inf. The area under the ROC curve ranks by the difference of the two logits,
    which grows with the probability of class 1 but does not saturate as that does.
    """
    logits = logits.detach().double()
    classes = logits.shape[1]
    metrics = {
        "loss": cross_entropy(logits, target),
        "accuracy": accuracy(logits, target),
        "macro_f1": macro_f1(logits.argmax(1), target, classes),
        "ece": expected_calibration_error(logits.softmax(1), target),
    }
    if classes == 2:
        metrics["roc_auc"] = roc_auc(logits[:, 1] - logits[:, 0], target)
    return metrics


# --- real numbers -------------------------------------------------------------------------------------------------


def mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all examples and outputs; both [N, ...], of one shape."""
    predicted, target = _rows(predicted, target)
    return (predicted - target).square().mean()


def mae(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over all examples and outputs; both [N, ...], of one shape."""
    predicted, target = _rows(predicted, target)
    return (predicted - target).abs().mean()


def r2(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - Σ (target - predicted)² / Σ (target - mean)², the uniform average over outputs; both [N, ...], of one shape.

    scikit-learn's r2_score, but outputs whose target is constant, for which the ratio is undefined, are left out; NaN
    where no other is left.
    """
    predicted, target = _rows(predicted, target)
    varies = (target != target[:1]).any(0)
    residual = (target - predicted).square().sum(0)
    total = (target - target.mean(0)).square().sum(0)
    return torch.where(varies, 1 - residual / total, 0).sum() / varies.sum()


def regression_metrics(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """mse, mae and r2; target [N, ...], output of the same shape or flattened to [N, size of the target]."""
    output = output.detach()
    if output.shape == _flat(target).shape:
        output = output.reshape(target.shape)
    return {"mse": mse(output, target), "mae": mae(output, target), "r2": r2(output, target)}


def _rows(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 [N, D]. Shapes must agree: [N] against [N, 1] would silently compare all pairs."""
    if predicted.shape != target.shape:
        raise ValueError(f"predictions {tuple(predicted.shape)} and targets {tuple(target.shape)} differ in shape")
    return _flat(predicted).double(), _flat(target).double()


def _flat(values: Tensor) -> Tensor:
    """[N, ...] → [N, D], and [N] → [N, 1]."""
    return values.unsqueeze(-1).flatten(1)
