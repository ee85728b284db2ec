"""Slow, obvious NumPy references that the tests compare the product with."""
