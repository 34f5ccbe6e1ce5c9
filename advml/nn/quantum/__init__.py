"""Quantum circuits as readable PennyLane code, run by PennyLane itself or by a fast engine in torch."""
