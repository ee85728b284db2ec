"""What parts of a model write to its logits: values by source, heads, weights."""
