"""The convolutional network of the federated learning paper, for images of any size from 4×4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from advml.config import Fraction, PositiveInt, settings
from advml.contracts import Network, Nothing, Spec
from advml.models.norm import Norm2d, norm2d
from advml.nn.affine import Affine


@settings
class CnnSettings:
    """Widths of the two convolutions and of the hidden layer, and what follows each."""

    channels: tuple[PositiveInt, PositiveInt]
    hidden: PositiveInt
    kernel: Literal[1, 3, 5, 7]
    norm: Norm2d
    groups: PositiveInt
    dropout: Fraction


class Cnn(Network):
    """Two convolutions, each with 2×2 max pooling, and a hidden layer (McMahan et al. 2017, section 3).

    Convolutions keep height and width; pooling halves them, rounding down. With the shipped settings, one 28×28 grey
    input and 10 classes it has the paper's 1,663,370 parameters. Dropout acts on the hidden layer.
    """

    settings: ClassVar[type] = CnnSettings

    @classmethod
    def check(cls, spec: Spec, settings: Any) -> str | None:
        """Serves one image that survives being halved twice, and any target but none."""
        shape = spec.image
        if shape is None or min(shape[1:]) < 4:
            return "one image input [channels, height, width] of at least 4×4"
        return "a data set with a target" if isinstance(spec.target, Nothing) else None

    def __init__(self, spec: Spec, settings: CnnSettings) -> None:
        super().__init__()
        ((width, rows, columns),) = spec.inputs.values()
        layers: list[nn.Module] = []
        for channels in settings.channels:
            layers += [
                nn.Conv2d(width, channels, settings.kernel, padding=settings.kernel // 2),
                norm2d(settings.norm, channels, settings.groups),
                nn.MaxPool2d(2),  # before the ReLU, which gives the same and has a quarter to do
                nn.ReLU(),
            ]
            width = channels
        layers += [nn.Flatten(), Affine(width * (rows // 4) * (columns // 4), settings.hidden), nn.ReLU()]
        if settings.dropout:
            layers.append(nn.Dropout(settings.dropout))
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(settings.hidden, spec.outputs)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """One image [B, channels, height, width] → the hidden layer [B, hidden]."""
        (image,) = inputs.values()
        hidden: Tensor = self.body(image)
        return hidden
