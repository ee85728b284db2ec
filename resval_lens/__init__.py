"""resval-lens: mechanistic interpretability for transformers with a residual value stream."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resval_lens.config import ResValConfig
    from resval_lens.models.classifier import ICLClassifier, classifier_config
    from resval_lens.streams import AttentionStream
    from resval_lens.transformer import ResValTransformer

__version__ = "0.1.0"
__all__ = [
    "AttentionStream",
    "ICLClassifier",
    "ResValConfig",
    "ResValTransformer",
    "classifier_config",
]

# Loaded when first asked for: TransformerLens takes seconds to import, `resval-lens --help` none.
_HOMES = {
    "AttentionStream": "resval_lens.streams",
    "ICLClassifier": "resval_lens.models.classifier",
    "ResValConfig": "resval_lens.config",
    "ResValTransformer": "resval_lens.transformer",
    "classifier_config": "resval_lens.models.classifier",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'resval_lens' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
