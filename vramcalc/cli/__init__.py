"""What the ``vramcalc`` command does: each function parses, calls the library, prints."""
