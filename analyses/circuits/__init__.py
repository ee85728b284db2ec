"""Circuits: the graph of a model's edges, links among them, scored, selected and run."""
