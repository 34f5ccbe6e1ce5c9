"""The launcher `process` for Hydra: each job of an advml sweep in a child process of its own."""
