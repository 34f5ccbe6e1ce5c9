"""Quantum circuits as readable PennyLane code, and two ways to run them: PennyLane itself, and a fast engine in torch."""
