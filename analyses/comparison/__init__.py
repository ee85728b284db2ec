"""Classic beside residual-value models: recorded runs, over seeds and while they train."""
