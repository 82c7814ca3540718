"""The GPUs at hand, asked through NVML."""
