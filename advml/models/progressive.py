"""Progressive networks (Rusu et al. 2016): a column for each task, which sees what the columns before it compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advml.config import PositiveInt, settings
from advml.contracts import Network, Spec
from advml.errors import ConfigError
from advml.models.build import from_recipe
from advml.models.pertask import PerTask

LateralKind = Literal["adapter", "linear", "none"]
Layer = nn.Linear | nn.Conv2d
SCALE = 0.1  # α at the beginning: "a random small value" in the paper; V breaks the symmetry already


@settings
class ProgressiveSettings:
    """The recipe of each column and the outputs that it computes, the kind of laterals and the width of adapters."""

    columns: tuple[Mapping[str, Any], ...]
    places: tuple[tuple[int, ...], ...]
    lateral: LateralKind
    adapter: PositiveInt | None


class Lateral(nn.Module):
    """What one layer gets from the columns before, added to its own W h: section 2, equations 1 and 2.

    `linear`: Σ_j U_j h_j. `adapter`: U σ(V [α_1 h_1, α_2 h_2, …]), with a learned number α_j for each earlier column, σ
    the ReLU, and V to `adapter` units or channels, or, if that is less or `adapter` is None, to as many as the layer
    has inputs. U is of the layer's own kind (a convolution: same kernel, stride, padding), V affine or a 1×1
    convolution. Neither has a bias: the layer has one. Weights are drawn as torch's layers draw theirs.
    """

    def __init__(
        self, layer: Layer, earlier: int, kind: LateralKind, adapter: int | None, rng: torch.Generator
    ) -> None:
        super().__init__()
        own = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
        width = own * earlier
        self.axis = 1 if isinstance(layer, nn.Conv2d) else -1
        self.adapts = kind == "adapter"
        if self.adapts:
            narrow = own if adapter is None else min(own, adapter)
            self.alpha = nn.Parameter(torch.full((earlier,), SCALE))
            self.v = (
                nn.Conv2d(width, narrow, 1, bias=False)
                if isinstance(layer, nn.Conv2d)
                else nn.Linear(width, narrow, bias=False)
            )
            width = narrow
        self.u = _like(layer, width)
        for part in self.children():
            assert isinstance(part, nn.Linear | nn.Conv2d)
            bound = part.weight[0].numel() ** -0.5
            nn.init.uniform_(part.weight, -bound, bound, generator=rng)

    def forward(self, earlier: Sequence[Tensor]) -> Tensor:
        """`earlier`: what this layer reads in each column before."""
        added: Tensor
        if self.adapts:
            scaled = [self.alpha[number] * hidden for number, hidden in enumerate(earlier)]
            added = self.u(F.relu(self.v(torch.cat(scaled, self.axis))))
        else:
            added = self.u(torch.cat(list(earlier), self.axis))
        return added


def _like(layer: Layer, width: int) -> Layer:
    """A layer of the same kind and output, without a bias, that reads `width` values or channels."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(width, layer.out_features, bias=False)
    names = ("out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    same: dict[str, Any] = {name: getattr(layer, name) for name in names}
    return nn.Conv2d(width, **same, bias=False)


class ProgressiveNetwork(PerTask):
    """Columns with h_i = f(W_i h_{i−1} + U_i σ(V_i [α · h_{i−1} of all columns before])) from the second layer on.

    A column is any network made of affine layers and convolutions, each used once; h_{i−1} is what layer i reads, that
    is after norm, activation, pooling and flattening; f is all that follows the layer. The first layer of each column
    reads the inputs alone. Columns before the newest, and their laterals, are frozen.
    """

    settings: ClassVar[type] = ProgressiveSettings

    def __init__(self, spec: Spec, lateral: LateralKind, adapter: int | None) -> None:
        super().__init__(spec.outputs)
        self.spec, self.lateral, self.adapter = spec, lateral, adapter
        self.columns = nn.ModuleList()
        self.laterals = nn.ModuleList()  # of each column a list, one for each layer from the second
        self.layers: tuple[str, ...] = ()  # names within a column, in the order in which they are used
        self._describe([])

    @classmethod
    def make(cls, spec: Spec, settings: ProgressiveSettings) -> Network:
        """All columns, with arbitrary weights."""
        network = cls(spec, settings.lateral, settings.adapter)
        for recipe, places in zip(settings.columns, settings.places, strict=True):
            network.add(from_recipe(recipe), places, torch.Generator().manual_seed(0))
        return network

    def add(self, column: Network, places: Sequence[int], rng: torch.Generator) -> None:
        """A new column, whose outputs go to these places, with laterals drawn from `rng`; all others are frozen."""
        layers = layers_of(column)
        if self.layers and layers != self.layers:
            raise ConfigError("progressive: columns must have the same layers in the same order")
        if self.lateral != "none" and len(layers) == 1:
            raise ConfigError(
                f"model={column.recipe['name']}: has one layer only, and laterals begin at the second; use model=mlp, "
                "or method.lateral=none"
            )
        given = getattr(column.get_submodule(layers[-1]), "out_features", len(places))
        if given != len(places):
            raise ConfigError(
                f"model={column.recipe['name']}: gives {given} outputs, and a column those of its task alone, "
                f"{len(places)}; use model.head=new if the model is that of a run"
            )
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        like = next(column.parameters())
        count = len(self.columns)
        above = [column.get_submodule(name) for name in layers[1:]] if count and self.lateral != "none" else []
        with torch.random.fork_rng(devices=[]):  # what torch draws for new layers is overwritten from `rng`
            laterals = [
                Lateral(layer, count, self.lateral, self.adapter, rng)
                for layer in above
                if isinstance(layer, nn.Linear | nn.Conv2d)
            ]
        self.layers = layers
        self.columns.append(column)
        self.laterals.append(nn.ModuleList(laterals).to(like.device, like.dtype))
        self.add_outputs(places, like.device)
        self._describe([*self.recipe["settings"]["places"], list(places)])

    def _describe(self, places: list[list[int]]) -> None:
        self.recipe = {
            "name": "advml.models.progressive:ProgressiveNetwork",
            "settings": {
                "columns": [dict(column.recipe) for column in self.columns if isinstance(column, Network)],
                "places": places,
                "lateral": self.lateral,
                "adapter": self.adapter,
            },
            "spec": self.spec.to_dict(),
        }

    def frozen(self) -> list[nn.Module]:
        """What no longer learns: all columns but the newest, and their laterals."""
        return [*self.columns[:-1], *self.laterals[:-1]]

    def all_tasks(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs of every column; none is computed twice."""
        return self._columns(inputs, self.tasks)

    def task(self, inputs: Mapping[str, Tensor], number: int) -> Tensor:
        """The outputs of column `number`, for which those before it are computed, those after it are not."""
        return self._columns(inputs, number + 1)[-1]

    def _columns(self, inputs: Mapping[str, Tensor], count: int) -> list[Tensor]:
        read: list[list[Tensor]] = [[] for _ in self.layers]  # of each layer what it read in the columns so far
        outputs = []
        for column, laterals in zip(self.columns[:count], self.laterals[:count], strict=True):
            assert isinstance(laterals, nn.ModuleList)
            with self._connected(column, laterals, read):
                outputs.append(column(inputs))
        return outputs

    @contextmanager
    def _connected(self, column: nn.Module, laterals: nn.ModuleList, read: list[list[Tensor]]) -> Iterator[None]:
        """While it lasts, layers of `column` add what their laterals give, and `read` grows by what they read.

        Hooks that are gone afterwards leave the column the network that it is: its names, its copies, its state.
        """

        def joined(number: int) -> Any:
            def hook(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
                earlier, own = tuple(read[number]), arguments[0]
                read[number].append(own)
                return output + laterals[number - 1](earlier) if number and len(laterals) else output

            return hook

        with ExitStack() as stack:
            for number, name in enumerate(self.layers):
                handle = column.get_submodule(name).register_forward_hook(joined(number))
                stack.callback(handle.remove)
            yield


def layers_of(network: Network) -> tuple[str, ...]:
    """The names of the affine layers and convolutions of a network in the order in which one forward pass uses them.

    Raises ConfigError where other layers have weights, or one is used not once but never or several times.
    """
    name_of = {module: name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    model = network.recipe["name"]
    for name, module in network.named_modules():
        if module not in name_of and any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
            raise ConfigError(
                f"model={model}: progressive connects affine layers and convolutions, and {name or 'the network'} "
                f"({type(module).__name__}) is neither; use model=mlp, cnn or conv4"
            )
    used: list[str] = []
    like = next(network.parameters())
    shapes = Spec.from_dict(network.recipe["spec"]).inputs
    inputs = {name: torch.zeros((1, *shape), device=like.device, dtype=like.dtype) for name, shape in shapes.items()}
    training = network.training
    with ExitStack() as stack, torch.no_grad():
        for module, name in name_of.items():
            handle = module.register_forward_hook(lambda *_, name=name: used.append(name))
            stack.callback(handle.remove)
        stack.callback(network.train, training)
        network.eval()(inputs)
    if sorted(used) != sorted(name_of.values()):
        odd = next(name for name in name_of.values() if used.count(name) != 1)
        raise ConfigError(
            f"model={model}: progressive needs layers that are used once each, and {odd} is used {used.count(odd)} "
            "times; use model=mlp, cnn or conv4"
        )
    return tuple(used)
