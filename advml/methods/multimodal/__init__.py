"""Multimodal learning: fusion, products of experts, contrastive learning."""
