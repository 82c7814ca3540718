"""The training step around a model: reading the checkpoint, losses, optimizers, the loop."""
