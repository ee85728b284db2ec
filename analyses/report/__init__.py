"""Pages: the report of ``compare``, and the recorded runs in Markdown."""
