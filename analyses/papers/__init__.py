"""Papers of their own models and tasks; nothing but commands imports them."""
