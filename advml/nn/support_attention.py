"""Labels read from a support set by attention (Vinyals et al. 2016, "Matching networks for one shot learning").

Axes: T tasks side by side, each with S support and Q query examples of F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advml.nn.losses import at_least_float32
from advml.nn.prototypes import cosines, memberships


def attended_classes(queries: Tensor, support: Tensor, labels: Tensor, ways: int, scale: float = 1.0) -> Tensor:
    """log P(y | x, S) [T, Q, ways] of equation 1, P = Σ_i a(x, x_i) 1[y_i = y], with a = softmax_i(scale · cosine_i).

    cosine_i is that of f(x) and g(x_i): queries f(x) [T, Q, F], support g(x_i) [T, S, F], labels y_i int64 [T, S]. In
    the paper (section 2.1.1) `scale` is 1, which keeps all probabilities near each other, as no cosine exceeds 1. Taken
    for logits, the results give these very probabilities.
    """
    log_attention = at_least_float32(scale * cosines(queries, support)).log_softmax(-1)
    belongs = memberships(labels, ways, torch.bool).unsqueeze(-3)  # [T, 1, ways, S]
    return log_attention.unsqueeze(-2).masked_fill(~belongs, -torch.inf).logsumexp(-1)


class FullContext(nn.Module):
    """Full context embeddings (section 2.1.2 and appendix A): each example is embedded in view of the support set.

    Support, A.2: g(x_i, S) = h⃗_i + h⃖_i + g'(x_i), of an LSTM over the support set in either direction, in the order in
    which the task gives it (the paper names none).

    Query, A.1: f(x, S) = h_K after K `reads` of the support set, for k = 1 … K
    (5, 6)  r_{k−1} = Σ_i softmax_i(h_{k−1} · g(x_i)) g(x_i)
    (3)     ĥ_k, c_k = LSTM(f'(x), [h_{k−1}, r_{k−1}], c_{k−1})
    (4)     h_k = ĥ_k + f'(x)
    from h_0 = 0 and c_0 = 0, so that the first read is the mean of the support set.
    """

    def __init__(self, width: int, reads: int) -> None:
        super().__init__()
        self.reads = reads
        self.support_lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        # Its gates are affine in (f', h, r), whichever of them is called the input: here [f', r].
        self.query_lstm = nn.LSTMCell(2 * width, width)

    def support(self, features: Tensor) -> Tensor:
        """g'(x_i) [T, S, F] → g(x_i, S) [T, S, F]."""
        both, _ = self.support_lstm(features)
        forward, backward = both.chunk(2, dim=-1)
        embedded: Tensor = forward + backward + features
        return embedded

    def query(self, features: Tensor, support: Tensor) -> Tensor:
        """f'(x) [T, Q, F] and g(x_i, S) [T, S, F] → f(x, S) [T, Q, F]."""
        tasks, queries, width = features.shape
        flat = features.flatten(0, 1)
        state = torch.zeros_like(features)
        cell = torch.zeros_like(flat)
        for _ in range(self.reads):
            read = (state @ support.mT).softmax(-1) @ support
            hidden, cell = self.query_lstm(torch.cat([flat, read.flatten(0, 1)], 1), (state.flatten(0, 1), cell))
            state = (hidden + flat).reshape(tasks, queries, width)
        return state


def make_full_context(width: int, reads: int, rng: torch.Generator) -> FullContext:
    """On the CPU, initialised as torch does by the seed of `rng`; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(rng.initial_seed())  # not CUDA's: nothing is drawn there
        return FullContext(width, reads)
