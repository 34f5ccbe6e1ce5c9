"""No data: for methods that make their own problem (a Hamiltonian, a benchmark table)."""

from advml.config import settings
from advml.contracts import Nothing, Spec
from advml.data.source import Loaded, Source
from advml.errors import ConfigError


@settings
class NoSettings:
    """Nothing to set."""


class NoData:
    """An empty data set with no inputs and no target."""

    settings = NoSettings

    def __init__(self, settings: NoSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """No input and no target."""
        return Spec({}, Nothing())

    def load(self, source: Source) -> Loaded:
        """Never called: a run without data has no view."""
        raise ConfigError("dataset=none holds no examples")
