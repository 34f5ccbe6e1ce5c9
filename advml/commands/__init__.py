"""One file per verb; a module docstring is the help of its verb."""
