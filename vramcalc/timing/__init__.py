"""Seconds of a job's step: its work, what hardware makes of it, and factors fitted to published speeds."""
