"""Predictions of step times against published speeds; the factors fitted to them."""
