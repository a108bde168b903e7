"""One verb per file, the same word as on the command line."""
