"""A job run on a device, its memory and speed watched."""
