"""torch's caching allocator: which blocks and segments requests for memory take."""
