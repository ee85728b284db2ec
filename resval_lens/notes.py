"""What long work says of itself while it goes on."""

from collections.abc import Callable

Note = Callable[[str], None]
"""Called with what is being done."""
