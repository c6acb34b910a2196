"""Training: pairs from label maps, losses and the loop."""
