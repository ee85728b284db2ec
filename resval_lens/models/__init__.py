"""The paper's models by name: two-layer classifiers and language models."""
