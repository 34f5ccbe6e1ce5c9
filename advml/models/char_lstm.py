"""The recurrent network of the federated learning paper, for sequences of characters or other tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advml.config import Fraction, PositiveInt, settings
from advml.contracts import Classes, Network, Spec


@settings
class CharLstmSettings:
    """Widths of the embedding and of the recurrent layers, and how many these are."""

    embedding: PositiveInt
    hidden: PositiveInt
    layers: PositiveInt
    dropout: Fraction

    def __post_init__(self) -> None:
        """Dropout lies between layers."""
        if self.dropout and self.layers == 1:
            raise ValueError("dropout: acts between recurrent layers, and there is one only; use 0 or more layers")


class CharLstm(Network):
    """An embedding, stacked LSTM layers (Hochreiter and Schmidhuber 1997), an affine head on the last state.

    McMahan et al. 2017, section 3: embedding 8, two layers of 256. Theirs predicts a character at each place of the
    sequence; this one the character after the last place, as the LEAF benchmark does (Caldas et al. 2018).
    """

    settings: ClassVar[type] = CharLstmSettings
    reads_tokens: ClassVar[bool] = True

    @classmethod
    def check(cls, spec: Spec, settings: Any) -> str | None:
        """Serves one sequence of tokens, and classes."""
        if len(spec.inputs) != 1 or set(spec.tokens) != set(spec.inputs):
            return "one input of tokens, such as dataset=shakespeare has"
        if any(len(shape) != 1 for shape in spec.inputs.values()):
            return "a sequence of tokens [length]"
        return None if isinstance(spec.target, Classes) else "a data set with classes"

    def __init__(self, spec: Spec, settings: CharLstmSettings) -> None:
        super().__init__()
        (count,) = spec.tokens.values()
        self.embedding = nn.Embedding(count, settings.embedding)
        self.body = nn.LSTM(
            settings.embedding, settings.hidden, settings.layers, batch_first=True, dropout=settings.dropout
        )
        self.head = nn.Linear(settings.hidden, spec.outputs)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Tokens [B, length] of any type of numbers → the state of the last layer at the last place, [B, hidden]."""
        (text,) = inputs.values()
        letters = self.embedding(text.long())
        asked_by_cudnn = letters.is_cuda and torch.is_grad_enabled() and not self.training
        states: Tensor = without_dropout(self.body, letters) if asked_by_cudnn else self.body(letters)[0]
        return states[:, -1]


def without_dropout(body: nn.LSTM, inputs: Tensor) -> Tensor:
    """All states that a batch-first LSTM in evaluation mode gives, [B, length, hidden], by way of its training mode.

    cuDNN differentiates an LSTM in training mode only. The modes differ by dropout alone.
    """
    dropout, body.dropout = body.dropout, 0.0
    body.train()
    try:
        states: Tensor = body(inputs)[0]
    finally:
        body.dropout = dropout
        body.eval()
    return states
