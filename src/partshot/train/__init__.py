"""Training loops, fitting of heads, and their journal, checkpoints and progress display."""
