"""Tensors without values: sizes, storages, autograd, operators, modules and the kernels behind them."""
