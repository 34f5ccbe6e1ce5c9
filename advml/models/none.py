"""No network: for methods that train none."""

from typing import Any

from advml.config import settings
from advml.contracts import Network, Spec


@settings
class NoSettings:
    """Nothing to set."""


class NoModel(Network):
    """Stands for the absence of a model; it is never built."""

    settings = NoSettings

    def __init__(self, spec: Spec, settings: Any) -> None:
        raise ValueError("model=none cannot be built")
