"""Data sets that need no download: tables that ship inside scikit-learn, and two made on the spot."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from advml.config import CountFloat, settings
from advml.contracts import Classes, Real, Spec, Split
from advml.data.source import Loaded, Source, SplitSettings


class Digits:
    """1,797 handwritten digits, 8×8 grey, values 0 to 16 (UCI; Alpaydin and Kaynak 1998)."""

    settings = SplitSettings

    def __init__(self, settings: SplitSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """One 8×8 image → one of ten digits."""
        return Spec({"image": (1, 8, 8)}, Classes(10))

    def load(self, source: Source) -> Loaded:
        """Read scikit-learn's copy; uint8 [1797, 1, 8, 8]."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
        return Loaded(Split({"image": images}, torch.from_numpy(bunch.target).long()), scale=16)


class _Classification:
    """A table of measurements, a class for each row."""

    settings = SplitSettings
    loader: str
    features: int
    classes: int

    def __init__(self, settings: SplitSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """`features` numbers → one of `classes`."""
        return Spec({"features": (self.features,)}, Classes(self.classes))

    def load(self, source: Source) -> Loaded:
        """Read scikit-learn's copy; float64 [rows, features]."""
        import sklearn.datasets

        bunch = getattr(sklearn.datasets, self.loader)()
        return Loaded(Split({"features": torch.from_numpy(bunch.data)}, torch.from_numpy(bunch.target).long()))


class Iris(_Classification):
    """150 iris flowers of 3 kinds by 4 lengths (Fisher 1936)."""

    loader, features, classes = "load_iris", 4, 3


class Wine(_Classification):
    """178 wines from 3 cultivars by 13 chemical measurements (UCI)."""

    loader, features, classes = "load_wine", 13, 3


class BreastCancer(_Classification):
    """569 tumours, malignant (0) or benign (1), by 30 measurements of cell nuclei (UCI, Wisconsin diagnostic)."""

    loader, features, classes = "load_breast_cancer", 30, 2


class Diabetes:
    """442 patients, progression of diabetes after a year from 10 measurements (Efron et al. 2004): regression.

    The target is standardised by its mean and deviation over all rows (152.13 and 77.01), constants that are part of
    the data set, so that losses are of order one; an R² is unaffected.
    """

    settings = SplitSettings
    mean, deviation = 152.13348416289594, 77.00574586945044

    def __init__(self, settings: SplitSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """10 numbers → one number."""
        return Spec({"features": (10,)}, Real((1,)))

    def load(self, source: Source) -> Loaded:
        """Read scikit-learn's copy; float64 [442, 10] and target float64 [442, 1]."""
        from sklearn.datasets import load_diabetes

        bunch = load_diabetes(scaled=False)
        target = (torch.from_numpy(bunch.target) - self.mean) / self.deviation
        return Loaded(Split({"features": torch.from_numpy(bunch.data)}, target.unsqueeze(1)))


@settings
class MadeSettings(SplitSettings):
    """How many points to make, and how blurred."""

    examples: Annotated[int, Ge(2)]
    noise: CountFloat


class _Made:
    settings = MadeSettings

    def __init__(self, settings: MadeSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """A point in the plane → one of two classes."""
        return Spec({"features": (2,)}, Classes(2))

    def load(self, source: Source) -> Loaded:
        """Make the points, half of each class, with Gaussian noise of standard deviation `noise`."""
        generator = source.rng("data", type(self).__name__.lower())
        half = self.config.examples // 2
        counts = (self.config.examples - half, half)
        points = torch.cat([self.curve(label, count) for label, count in enumerate(counts)])
        blur = torch.randn(points.shape, generator=generator, dtype=torch.float64)
        target = torch.repeat_interleave(torch.arange(2), torch.tensor(counts))
        return Loaded(Split({"features": points + self.config.noise * blur}, target))

    def curve(self, label: int, count: int) -> Tensor:
        """`count` points of a class without noise, float64 [count, 2]."""
        raise NotImplementedError


class Moons(_Made):
    """Two interleaving half circles in the plane."""

    def curve(self, label: int, count: int) -> Tensor:
        """The upper half circle around (0, 0), or the lower one around (1, ½)."""
        angle = torch.linspace(0, torch.pi, count, dtype=torch.float64)
        upper = torch.stack([angle.cos(), angle.sin()], 1)
        return upper if label == 0 else torch.tensor([1.0, 0.5], dtype=torch.float64) - upper


class Circles(_Made):
    """A small circle inside a large one."""

    def curve(self, label: int, count: int) -> Tensor:
        """Radius 1 for class 0, ½ for class 1."""
        angle = torch.arange(count, dtype=torch.float64) * (2 * torch.pi / count)
        return torch.stack([angle.cos(), angle.sin()], 1) * (1.0, 0.5)[label]
