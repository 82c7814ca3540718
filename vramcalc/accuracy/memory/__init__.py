"""Predictions of memory against published measurements."""
