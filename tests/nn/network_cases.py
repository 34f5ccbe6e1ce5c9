"""Networks for the tests of what follows from the calls of layers: those that the closed forms serve, and others."""

import torch
from fisher_cases import mlp
from torch import nn

from advml.contracts import Network


class Convolutional(Network):
    """A convolution with batch norm, then a linear head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten())
        self.head = nn.Linear(12, 4)

    def features(self, inputs):
        return self.body(inputs["x"])


class Reused(Network):
    """A layer used `times` times."""

    def __init__(self, times):
        super().__init__()
        torch.manual_seed(4)
        self.times = times
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def features(self, inputs):
        hidden = inputs["x"]
        for _ in range(self.times):
            hidden = torch.tanh(self.layer(hidden))
        return hidden


class Sequence(Network):
    """A linear layer over a sequence: three-dimensional inputs share its weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.layer, self.head = nn.Linear(2, 5), nn.Linear(5, 4)

    def features(self, inputs):
        return torch.tanh(self.layer(inputs["x"].reshape(-1, 3, 2))).sum(1)


class PlacesFirst(Sequence):
    """The same, its places in the first dimension and the examples in the second."""

    def features(self, inputs):
        return torch.tanh(self.layer(inputs["x"].reshape(-1, 3, 2).transpose(0, 1))).sum(0)


class Rows(Sequence):
    """The same, its parts brought into two dimensions: more rows than examples."""

    def features(self, inputs):
        return torch.tanh(self.layer(inputs["x"].reshape(-1, 2))).reshape(-1, 3, 5).sum(1)


class Elsewhere(Network):
    """A layer's parameters in other hands than the layer's."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(4)
        self.way = way
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def features(self, inputs):
        x, weight, bias = inputs["x"], self.layer.weight, self.layer.bias
        ways = {
            "function": lambda: nn.functional.linear(input=x, bias=bias, weight=weight),
            "without gradient": lambda: self.layer(x).detach() + x,
            "as well": lambda: self.layer(x) * weight.sum(),
            "product": lambda: x @ weight.T,
            "other bias": lambda: nn.functional.linear(x, weight, bias * 2),
            "no bias": lambda: nn.functional.linear(x, weight),
        }
        return torch.tanh(ways[self.way]())


class InPlace(Network):
    """Activations that overwrite the outputs of the layers before them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8))
        self.head = nn.Linear(8, 4)

    def features(self, inputs):
        return torch.tanh(self.body(inputs["x"]).mul_(3))


class Wrapped(Network):
    """`body` on the 6 inputs as an image [1, 2, 3], then a linear head."""

    def __init__(self, *body):
        super().__init__()
        self.body = nn.Sequential(*body, nn.Flatten())
        self.head = nn.Linear(self.body(torch.zeros(2, 1, 2, 3)).shape[1], 4)

    def features(self, inputs):
        return self.body(inputs["x"].reshape(-1, 1, 2, 3))


def wrapped(*makers):
    torch.manual_seed(4)
    return Wrapped(*(make() for make in makers))


UNSUITED = [Reused(2), Rows()]
UNSUITED += [Elsewhere(way) for way in ("as well", "product", "other bias", "no bias")]
UNSUITED += [wrapped(lambda: nn.Conv2d(1, 3, 3, padding="same"))]
UNSUITED += [wrapped(lambda: nn.BatchNorm2d(1, track_running_stats=False))]
UNSUITED += [wrapped(lambda: nn.Conv2d(1, 3, 1), lambda: nn.PReLU())]
SUITED = [InPlace(), Reused(0), Elsewhere("function"), Elsewhere("without gradient"), Sequence()]
SUITED += [mlp(norm="layer"), mlp(norm="batch")]


CONVOLUTIONS = {
    "stride and padding": [lambda: nn.Conv2d(2, 6, 3, stride=2, padding=1)],
    "groups": [lambda: nn.Conv2d(2, 6, (2, 3), groups=2, bias=False), nn.ReLU, lambda: nn.Conv2d(6, 6, 2, groups=6)],
    "dilation": [lambda: nn.Conv2d(2, 3, 2, dilation=2), lambda: nn.ReLU(inplace=True), lambda: nn.Conv2d(3, 5, 2)],
    "reflected": [lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.Tanh],
    "batch norm": [lambda: nn.Conv2d(2, 4, 3), lambda: nn.BatchNorm2d(4), nn.ReLU, lambda: nn.Conv2d(4, 3, 2)],
    "group norm": [lambda: nn.Conv2d(2, 4, 3), lambda: nn.GroupNorm(2, 4), lambda: nn.ReLU(inplace=True)],
    "layer norm": [lambda: nn.Conv2d(2, 4, 3), lambda: nn.LayerNorm((4, 3, 4)), lambda: nn.LayerNorm(4)],
    "norm first": [lambda: nn.BatchNorm2d(2), lambda: nn.Conv2d(2, 4, 3)],
}


class Images(Network):
    """Layers on images [2, 5, 6], a pool and a linear head."""

    def __init__(self, makers):
        super().__init__()
        torch.manual_seed(4)
        self.body = nn.Sequential(*(make() for make in makers), nn.AvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(self.body(torch.randn(9, 2, 5, 6)).shape[1], 4)  # moves running statistics as well

    def features(self, inputs):
        return self.body(inputs["x"])
