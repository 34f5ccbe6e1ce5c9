"""Quantum learning: supervised circuits and kernels, eigensolvers, optimisation, and why training can fail."""
