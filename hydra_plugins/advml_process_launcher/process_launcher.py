"""hydra/launcher=process: glue between Hydra's sweepers and advml's pool of child processes (advml/runner/pool.py).

Hydra imports this file in every application of the environment it is installed in, so it imports nothing of advml.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

TARGET = {"_target_": "hydra_plugins.advml_process_launcher.process_launcher.ProcessLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="process", node=TARGET, provider="advml")


class ProcessLauncher(Launcher):
    """Composes the jobs of a batch and hands them to the task's `in_processes`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra says what is to be run."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """One JobReturn a job: its value is the objective, None for a job that did not complete."""
        in_processes = getattr(self.task_function, "in_processes", None)
        if in_processes is None:
            raise HydraException("hydra/launcher=process runs the jobs of advml sweep only")
        setup_globals()
        configs = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = str(number)
                config.hydra.job.num = number
            configs.append(config)
        returns = []
        for config, value in zip(configs, in_processes(configs), strict=True):
            ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            returned = JobReturn(
                overrides=list(config.hydra.overrides.task), cfg=ours, hydra_cfg=config,
                working_dir=str(Path.cwd()), task_name=config.hydra.job.name, status=JobStatus.COMPLETED,
            )  # fmt: skip
            returned.return_value = value
            returns.append(returned)
        return returns
