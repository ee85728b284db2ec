"""Induction heads as associative memories (arXiv 2412.11459): experiments and their pictures."""
