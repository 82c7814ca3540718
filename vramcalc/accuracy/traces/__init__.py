"""Predictions against traces of the real libraries."""
