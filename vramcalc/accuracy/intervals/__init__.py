"""The calibration of intervals: fitted, and checked on runs left out."""
