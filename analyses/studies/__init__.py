"""Studies of one model on one task; a file each, with its typed result."""
