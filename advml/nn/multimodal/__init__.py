"""Mathematics of learning from several modalities: blocks, encoders, losses, modulation."""
