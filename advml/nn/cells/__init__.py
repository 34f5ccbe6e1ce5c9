"""Cells of searched networks: operations, genotypes, spaces, supernets and the networks that are built from them."""
