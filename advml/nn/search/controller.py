"""The controller of ENAS (Pham, Guan, Zoph, Le, Dean 2018): an LSTM that draws both cells as one sequence.

For each block: two inputs by attention over the states before it, then an operation for each. What it draws is
rewarded; REINFORCE moves its weights. Details beyond the paper follow the authors' code (micro_controller.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advml.nn.optimisers import Adam

DECISIONS = 4  # of a block: input, input, operation, operation
CELLS = 2  # normal, then reduction


@dataclass(frozen=True)
class Preset:
    """Numbers in which the paper and the code differ.

    Logits of inputs are c · tanh(l / temperature), those of operations (c / shrink) · tanh(l / temperature) + bias.
    `favoured` begins the learned bias of the first two operations (separable convolutions); `nudge` is added to
    theirs and taken from the others' for good, in the first cell. `betas`, `eps` are Adam's; eps as TensorFlow has it,
    beside √v before the correction of v. `floor`: where the rate of the weights that architectures share ends.
    """

    hidden: int
    lr: float
    constant: float
    shrink: float
    temperature: float
    entropy: float
    favoured: float
    nudge: float
    betas: tuple[float, float]
    eps: float
    floor: float


PRESETS: Mapping[str, Preset] = {
    "paper": Preset(100, 0.00035, 2.5, 1.0, 5.0, 0.1, 0.0, 0.0, (0.9, 0.999), 1e-8, 0.001),
    "code": Preset(64, 0.0035, 1.10, 2.5, 1.0, 1e-4, 10.0, 0.25, (0.0, 0.999), 1e-3, 0.0005),
}


class Drawn(NamedTuple):
    """`cells` int64 [N, 2, blocks, 4]: inputs and operations; log p of each sequence [N], and its entropy [N]."""

    cells: Tensor
    log_probability: Tensor
    entropy: Tensor


class Controller(nn.Module):
    """See the file. States 0 and 1 are the outputs of the two cells before; block b makes state b + 2."""

    nudge: Tensor

    def __init__(self, blocks: int, operations: int, preset: Preset, rng: torch.Generator | None = None) -> None:
        super().__init__()
        self.blocks, self.preset = blocks, preset
        size = preset.hidden
        self.lstm = nn.LSTMCell(size, size, bias=False)
        self.begin = nn.Parameter(torch.empty(1, size))
        self.embedding = nn.Parameter(torch.empty(operations, size))
        self.of_anchor = nn.Linear(size, size, bias=False)
        self.of_state = nn.Linear(size, size, bias=False)
        self.attention = nn.Linear(size, 1, bias=False)
        self.operation = nn.Linear(size, operations)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1, generator=rng)
        first = (torch.arange(operations) < 2).float()
        with torch.no_grad():
            self.operation.bias.copy_(preset.favoured * first)
        self.register_buffer("nudge", preset.nudge * (2 * first - 1))

    def draw(self, count: int, rng: torch.Generator) -> Drawn:
        """`count` independent sequences; the numbers are drawn on the CPU."""
        options = max(self.blocks + 1, len(self.nudge))
        noise = torch.rand((count, CELLS, self.blocks, DECISIONS, options), generator=rng, dtype=torch.float64)
        gumbel = -(-noise.clamp_min(1e-300).log()).log()  # argmax of logits + gumbel ~ softmax(logits)
        return self._unroll(count, gumbel.to(self.begin), None)

    def score(self, cells: Tensor) -> Drawn:
        """The same, of given sequences [N, 2, blocks, 4]."""
        return self._unroll(len(cells), None, cells)

    def _unroll(self, count: int, gumbel: Tensor | None, given: Tensor | None) -> Drawn:
        zeros = self.begin.new_zeros((count, self.preset.hidden))
        state = (zeros, zeros)
        total, entropy = zeros[:, 0], zeros[:, 0]
        cells = torch.zeros((count, CELLS, self.blocks, DECISIONS), dtype=torch.int64, device=zeros.device)
        for cell in range(CELLS):
            inputs = self.begin.expand(count, -1)
            anchors, keys = [], []
            for _ in range(2):
                state = self.lstm(inputs, state)
                anchors.append(zeros)
                keys.append(self.of_anchor(state[0]))
            for block in range(self.blocks):
                for decision in range(DECISIONS):
                    state = self.lstm(inputs, state)
                    logits = self._inputs(keys, state[0]) if decision < 2 else self._operations(state[0], cell)
                    log_p = logits.log_softmax(1)
                    if given is not None:
                        action = given[:, cell, block, decision]
                    else:
                        assert gumbel is not None
                        action = (logits + gumbel[:, cell, block, decision, : logits.shape[1]]).argmax(1).detach()
                    cells[:, cell, block, decision] = action
                    total = total + log_p.gather(1, action.unsqueeze(1)).squeeze(1)
                    entropy = entropy - (log_p.exp() * log_p).sum(1).detach()
                    if decision < 2:
                        inputs = torch.stack(anchors, 1)[torch.arange(count, device=action.device), action]
                    else:
                        inputs = self.embedding[action]
                state = self.lstm(inputs, state)
                anchors.append(state[0])
                keys.append(self.of_anchor(state[0]))
                inputs = self.begin.expand(count, -1)
        return Drawn(cells, total, entropy)

    def _inputs(self, keys: list[Tensor], hidden: Tensor) -> Tensor:
        """One logit for each state so far, [N, states]."""
        query = torch.tanh(torch.stack(keys, 1) + self.of_state(hidden).unsqueeze(1))
        logits: Tensor = self.attention(query).squeeze(2)
        return self.preset.constant * torch.tanh(logits / self.preset.temperature)

    def _operations(self, hidden: Tensor, cell: int) -> Tensor:
        """One logit for each operation, [N, K]."""
        preset = self.preset
        logits = preset.constant / preset.shrink * torch.tanh(self.operation(hidden) / preset.temperature)
        return logits + self.nudge if cell == 0 else logits


class Reinforced:
    """A controller, what trains it, and the moving average of rewards that they are compared with."""

    def __init__(self, controller: Controller, decay: float = 0.99) -> None:
        self.controller, self.decay = controller, decay
        preset = controller.preset
        self.optimiser = Adam(controller.parameters(), preset.lr, preset.betas, preset.eps)
        self.baseline: Tensor = torch.zeros((), device=controller.begin.device, dtype=controller.begin.dtype)

    def learn(self, drawn: Drawn, rewards: Tensor) -> None:
        """One update: along the mean over N of (R − b) ∇ log p, where R = reward + weight · entropy.

        b moves first, one reward after another: b ← decay · b + (1 − decay) · R.
        """
        full = (rewards + self.controller.preset.entropy * drawn.entropy).detach()
        averages = []
        for reward in full:
            self.baseline = self.decay * self.baseline + (1 - self.decay) * reward
            averages.append(self.baseline)
        self.optimiser.zero_grad()
        policy_loss(drawn.log_probability, full - torch.stack(averages)).backward()
        done, preset = max(self.optimiser.updates), self.controller.preset
        # lr m / (√v / c + ε / c) = lr c m / (√v + ε), TensorFlow's step, with c = √(1 − β₂ᵗ)
        self.optimiser.eps = preset.eps / math.sqrt(1 - preset.betas[1] ** (done + 1))
        self.optimiser.step()
        self.optimiser.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Weights, Adam's moments, the average."""
        return {
            "controller": self.controller.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "baseline": self.baseline,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.controller.load_state_dict(state["controller"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.baseline = state["baseline"].to(self.baseline).clone()


def policy_loss(log_probability: Tensor, advantage: Tensor) -> Tensor:
    """−mean(advantage · log p): its gradient is REINFORCE's estimate of −∇ E[reward] (Williams 1992)."""
    return -(advantage.detach() * log_probability).mean()
