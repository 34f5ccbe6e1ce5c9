"""Mathematics of networks that read several modalities: blocks, losses, modulation, products of experts."""
