"""Federated learning: clients train on examples of their own, a server sums what they send."""
