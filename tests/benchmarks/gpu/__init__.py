"""What is to be run on a machine with a GPU: ``python -m tests.benchmarks.gpu --out DIR``."""
