"""A job run on fake tensors, its storages recorded."""
