"""A job as the real libraries build and train it."""
