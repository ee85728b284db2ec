"""Hand-written plain PyTorch baselines that the benchmarks compare the product with."""
