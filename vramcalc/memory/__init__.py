"""Bytes of a job: every row of the peak, what the allocator reserves and what the process takes, with intervals."""
