"""One file per verb; a module docstring is the help of its verb."""

VERBS = {
    "run": "run one experiment from a configuration",
    "sweep": "run all combinations of several values, resumably, many at a time",
    "study": "run a published comparison; what was measured beside what was reported",
    "resume": "go on with an interrupted, crashed or limited run",
    "reproduce": "run a saved configuration again and compare every number",
    "compare": "differing settings against final metrics: intervals over seeds, the best marked, paired tests",
    "plot": "draw runs: learning curves with bands, bars, heat maps, budget against objective",
    "report": "one HTML page of everything: tables, pictures, failed runs, settings, machines; opens anywhere",
    "runs": "list, filter, show and delete runs; their disk use",
    "export": "write the trained network of a run for use without advml: safetensors and torch.export",
    "list": "what there is: methods, datasets, views, models, runs",
    "config": "show a configuration, or how two of them differ",
    "check": "check a configuration, or all that are shipped, without running",
    "data": "list, download and verify data files",
    "completion": "print the script for tab completion in bash",
}
