"""Carries a run from configuration to folder: loop, records, checkpoints, randomness, budget, progress."""
