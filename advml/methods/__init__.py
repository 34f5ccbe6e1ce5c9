"""The algorithms: one file per method, one package per family."""
