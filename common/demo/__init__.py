"""The demo: a small world in which the right answer is known, what judges say about it, and a tiny model to train."""
