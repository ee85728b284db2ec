"""Studies of AMICL: the paper's figures 6 to 8, all combinations, and the best a by task."""
