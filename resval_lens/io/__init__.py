"""Files: models, other formats, provenance."""
