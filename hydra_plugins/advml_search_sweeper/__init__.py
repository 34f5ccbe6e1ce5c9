"""The sweeper `advml_search` for Hydra: trials of an advml search, as its sampler invents them."""
