"""How figures are drawn, and marks in them that say their numbers."""
