"""Where streams meet TransformerLens: hook names, caching, norms, weights, generation."""
