"""The double of a training step: tensors with sizes and lifetimes but no values."""
