"""Sequences that the simplified transformers learn: triggers, facts, analogies."""
