"""Predicted against measured, and what is fitted from it."""
