"""advml: one command for the advanced families of machine learning.

    import advml
    run = advml.run("method=supervised", "dataset=iris", "seed=3")
    run.result["metrics"]["test"]["accuracy"]
    advml.load(run.folder).model

From the shell: `advml --help`.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["load", "run"]

if TYPE_CHECKING:
    from advml.api import load, run


def __getattr__(name: str) -> Any:
    """Import the interface on first use only: `advml --help` needs no torch."""
    if name in __all__:
        from advml import api

        return getattr(api, name)
    raise AttributeError(f"module 'advml' has no attribute '{name}'")
