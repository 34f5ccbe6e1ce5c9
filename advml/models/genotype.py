"""A found or published genotype as a model: what a search leaves, any other method can train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Interval

from advml.config import Fraction, PositiveInt, settings
from advml.contracts import Network, Spec
from advml.errors import ConfigError
from advml.models.build import build
from advml.nn.cells.genotype import Genotype, published, read_genotype
from advml.nn.cells.nasbench201 import from_number, from_string
from advml.nn.cells.network import CellNetwork, NasBench201Network
from advml.nn.cells.spaces import NasBench201
from advml.nn.cells.stack import misfit


@settings
class GenotypeSettings:
    """The keys of configs/model/genotype.yaml: the genotype itself, else in the file `path`, else `published`."""

    path: str | None
    published: str | None
    genotype: Mapping[str, Any] | None
    channels: PositiveInt
    cells: PositiveInt
    reductions: Annotated[int, Interval(ge=0, le=4)]
    auxiliary: bool
    drop_path: Fraction

    def __post_init__(self) -> None:
        """Each reduction is a cell of its own."""
        if self.reductions > self.cells:
            raise ValueError(
                f"reductions: {self.cells} cells cannot halve the image {self.reductions} times; use fewer"
            )


def chosen(settings: GenotypeSettings) -> Genotype:
    """The genotype that the settings name. Raises ConfigError, one line."""
    if settings.genotype is not None:
        return Genotype.from_dict(settings.genotype, "model.genotype")
    if settings.path is not None:
        path = Path(settings.path)
        return read_genotype(path / "artifacts" / "genotype.json" if path.is_dir() else path)
    if settings.published is None:
        raise ConfigError("model=genotype: name one with model.path=FILE (or a run folder) or model.published=DARTS_V2")
    try:
        return published(settings.published)
    except ConfigError as error:
        raise ConfigError(f"model.published={error}") from None


class GenotypeNet(Network):
    """Not a network of its own: `make` gives that of the genotype.

    The recipe holds the genotype itself, so that what was trained does not depend on a file afterwards.
    """

    settings: ClassVar[type] = GenotypeSettings

    @classmethod
    def check(cls, spec: Spec, settings: GenotypeSettings) -> str | None:
        """Serves one image that is large enough to be halved, and any target but none."""
        chosen(settings)
        return misfit(spec, settings.reductions)

    @classmethod
    def make(cls, spec: Spec, settings: GenotypeSettings) -> Network:
        """The network of the genotype, freshly initialised."""
        if reason := misfit(spec, settings.reductions):
            raise ConfigError(f"model=genotype: needs {reason}")
        genotype = chosen(settings)
        network = cell_network(spec, genotype, settings)
        own = replace(settings, path=None, published=None, genotype=genotype.to_dict())
        network.recipe = {"name": "genotype", "settings": asdict(own), "spec": spec.to_dict()}
        return network


def cell_network(spec: Spec, genotype: Genotype, settings: GenotypeSettings) -> Network:
    """The network of a genotype of any space. Cells of NAS-Bench-201 are spread evenly over the stages."""
    channels, cells, reductions = settings.channels, settings.cells, settings.reductions
    if genotype.space == "nasbench201":
        return NasBench201Network(spec, genotype, channels, max(1, cells // (reductions + 1)), reductions)
    auxiliary, drop_path = settings.auxiliary, settings.drop_path
    return CellNetwork(spec, genotype, channels, cells, reductions, auxiliary, drop_path)


def build_genotype(genotype: Genotype, spec: Spec, settings: GenotypeSettings, seed: int) -> Network:
    """The network of a genotype that a search has found: a pure function of its arguments, with a recipe."""
    given = replace(settings, path=None, published=None, genotype=genotype.to_dict())
    return build("genotype", given, spec, seed)


@settings
class NasBench201Settings:
    """The keys of configs/model/nasbench201.yaml."""

    cell: str | Annotated[int, Interval(ge=0, lt=15625)]
    channels: PositiveInt
    cells: PositiveInt
    reductions: Annotated[int, Interval(ge=0, le=4)]


class NasBench201Net(Network):
    """A cell of NAS-Bench-201 in the benchmark's macro structure, to be trained."""

    settings: ClassVar[type] = NasBench201Settings

    @classmethod
    def check(cls, spec: Spec, settings: NasBench201Settings) -> str | None:
        """Serves one image that is large enough to be halved, and any target but none."""
        if isinstance(settings.cell, str):
            from_string(settings.cell)
        return misfit(spec, settings.reductions)

    @classmethod
    def make(cls, spec: Spec, settings: NasBench201Settings) -> Network:
        """The network of the cell, freshly initialised."""
        if reason := misfit(spec, settings.reductions):
            raise ConfigError(f"model=nasbench201: needs {reason}")
        code = from_string(settings.cell) if isinstance(settings.cell, str) else from_number(settings.cell)
        genotype = NasBench201().genotype(code)
        return NasBench201Network(spec, genotype, settings.channels, settings.cells, settings.reductions)
