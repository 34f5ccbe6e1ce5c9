"""Search spaces as models: the supernets of DARTS' cells and of ENAS' micro space."""

from __future__ import annotations

from typing import ClassVar

from advml.nn.cells.supernet import Supernet


class DartsCellsNet(Supernet):
    """The supernet of Liu et al. 2019: every node reads every earlier state."""

    space: ClassVar[str] = "darts_cells"


class EnasMicroNet(Supernet):
    """The shared network of Pham et al. 2018: each half of a block has its own operations on every earlier state."""

    space: ClassVar[str] = "enas_micro"
