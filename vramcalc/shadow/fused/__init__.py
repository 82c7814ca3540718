"""Fused kernels of plugins, which replace modules of a model."""
