"""Mathematics that families share, importable without the runner."""
