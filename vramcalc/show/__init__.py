"""Results as words, tables, HTML and pictures."""
