"""The shipped few-shot studies: what they ask of runs is there."""

import pytest
from meta_words import few_shot
from runs import QUIET

from advml.report.gather import read_run
from advml.runner.folder import RunFolder
from advml.runner.studies import read


@pytest.mark.parametrize("name", ["omniglot", "omniglot_5shot"])
def test_runs_have_the_numbers_that_are_asked_for(run_cli, name):
    """They are looked up once all runs of the study have ended, which takes hours."""
    asked = read(name)
    said = run_cli("run", *few_shot("nearest_neighbour"), *QUIET)
    assert said.code == 0, said.err
    assert {asked.metric, *asked.also} <= set(read_run(RunFolder.open(said.last)).numbers)
