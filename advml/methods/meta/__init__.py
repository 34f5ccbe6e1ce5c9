"""Meta-learning: methods that learn, over many small tasks, how to learn a new one from a few examples."""
