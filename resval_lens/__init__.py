"""resval-lens: mechanistic interpretability for transformers with a residual value stream."""

from resval_lens.config import ResValConfig
from resval_lens.streams import AttentionStream
from resval_lens.transformer import ResValTransformer

__all__ = ["AttentionStream", "ResValConfig", "ResValTransformer"]
__version__ = "0.1.0"
