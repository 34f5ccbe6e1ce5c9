"""hydra/sweeper=advml_search: glue between Hydra's launchers and advml's search (advml/runner/search.py).

Hydra imports this file in every application of the environment it is installed in, so it imports nothing of advml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

TARGET = {"_target_": "hydra_plugins.advml_search_sweeper.search_sweeper.SearchSweeper"}
ConfigStore.instance().store(group="hydra/sweeper", name="advml_search", node=TARGET, provider="advml")


class SearchSweeper(Sweeper):
    """Asks the task for a batch of trials, launches it, tells the task, until there are no more."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra says what is to be run, and by which launcher."""
        self.task: Any = task_function
        self.folder = Path(config.hydra.sweep.dir)
        self.config = config
        if not hasattr(task_function, "ask"):
            raise HydraException("hydra/sweeper=advml_search: write advml sweep sweep.sampler=... instead")
        self.launched_by: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run all trials; each gets the overrides that all have, and its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        launched = 0
        while batch := self.task.ask():
            returns = self.launched_by.launch([[*arguments, *words] for words in batch], initial_job_idx=launched)
            for one in returns:
                _ = one.return_value  # raises what a job has raised
            self.task.tell()
            launched += len(batch)
