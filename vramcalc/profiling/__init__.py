"""The real libraries run: measured on GPUs, traced on fake tensors, and the rows that come of it."""
