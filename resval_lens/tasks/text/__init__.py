"""Text for training language models: read it, tokenise it once, and draw rows of it in order.

tokenizer = load_tokenizer("gpt2")
files = write_token_files(read_texts("roneneldan/TinyStories"), tokenizer, "stories")
rows = StoryRows(files, n_ctx=256)
order = RowOrder(len(rows), batch=64, seed=0)
tokens, targets = rows.batch(order.rows(step=0))
"""

from resval_lens.io.tokenizers import (
    end_of_text,
    fingerprint,
    load_tokenizer,
    train_bpe,
    vocabulary_size,
)
from resval_lens.tasks.text.order import RowOrder
from resval_lens.tasks.text.rows import NO_TARGET, PackedRows, StoryRows
from resval_lens.tasks.text.sources import read_texts
from resval_lens.tasks.text.token_files import TokenFiles
from resval_lens.tasks.text.writing import write_token_files

__all__ = [
    "NO_TARGET",
    "PackedRows",
    "RowOrder",
    "StoryRows",
    "TokenFiles",
    "end_of_text",
    "fingerprint",
    "load_tokenizer",
    "read_texts",
    "train_bpe",
    "vocabulary_size",
    "write_token_files",
]
