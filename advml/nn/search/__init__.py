"""Search over finite choices: random, evolution, REINFORCE, local search, Bayesian optimisation; pure, without data."""
