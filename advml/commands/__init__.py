"""One file per verb; a module docstring is the help of its verb."""

VERBS = {
    "run": "run one experiment (or several, with -m) from a configuration",
    "resume": "go on with an interrupted, crashed or limited run",
    "reproduce": "run a saved configuration again and compare every number",
    "list": "what there is: methods, datasets, views, models, runs",
    "config": "show a configuration, or how two of them differ",
    "check": "check a configuration, or all that are shipped, without running",
    "data": "list, download and verify data files",
    "completion": "print the script for tab completion in bash",
}
