"""A few layers walked and read as many."""
