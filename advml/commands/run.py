"""advml run [GROUP=CHOICE ...] [KEY=VALUE ...]

Runs one experiment and leaves a run folder: outputs/<method>/<dataset>/<time>-<id>. Its path is the last line printed.

  advml run                                          an MLP on 8x8 digits, with every default
  advml run method=ewc view.scenario=class           a method with one of its own or its view's keys changed
  advml run dataset=iris model=linear method.lr=0.1  any method x any data set x any model
  advml run experiment=ewc_split_mnist seed=1        a published setting
  advml run -m seed=0,1,2 method.lr=0.1,0.01         all combinations: the same as advml sweep
  advml run method=ewc baselines=off                 without the runs that a method lists to be compared with
  advml run --cfg job                                show the configuration only (also: advml config)
  advml run limits.seconds=60                        stop after a minute of training
  advml run --config-dir my_configs method=mine      with configuration files of your own

Groups: method, dataset, view, model, experiment (see: advml list). Every key: advml config method=NAME.
Ctrl-C finishes the step, saves and says how to resume; a second Ctrl-C stops at once.
Exit code: 0 done, 1 failed, 2 wrong configuration, 130 interrupted.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(arguments: Sequence[str]) -> int:
    """Compose with Hydra, bind, run, show the result."""
    from advml.compose import as_tree, through_hydra
    from advml.errors import ConfigError
    from advml.overrides import config_dirs, separate

    options, overrides = separate(arguments)
    if "-m" in options or "--multirun" in options:
        from advml.commands import sweep

        return sweep.main([word for word in arguments if word not in ("-m", "--multirun")])
    if any(word.lstrip("+").startswith("hydra.mode=") for word in overrides):
        raise ConfigError("hydra.mode: for several runs write advml sweep")
    if "-sc" in options or "--shell-completion" in options:
        os.environ["COMP_LINE"] = os.environ.get("COMP_LINE", "").replace("advml run ", "advml ", 1)
    dirs = [word for folder in config_dirs(options) for word in ("--config-dir", str(folder))]  # not: --cfg job
    command = shlex.join(["advml", "run", *arguments])

    def job(config: DictConfig) -> int:
        from hydra.core.hydra_config import HydraConfig

        from advml.commands.baselines import with_baselines
        from advml.config import bind
        from advml.runner.baselines import plan
        from advml.runner.follower import followed
        from advml.runner.run import Asked, start

        choices = {str(group): str(choice) for group, choice in HydraConfig.get().runtime.choices.items()}
        tree, asked = as_tree(config), Asked(command, overrides, choices)
        bound = bind(tree)
        if followed(bound):
            return 0
        planned = plan(tree, dirs)
        return with_baselines(start(bound, asked), planned, asked)

    return through_hydra(job, arguments)
