"""Lists of training runs, worked through one at a time."""
