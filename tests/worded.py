"""A small random model whose tokenizer has every word of the tasks as one token."""

from functools import cache

from transformers import PreTrainedTokenizerFast

from resval_lens.analyses.tasks import words
from resval_lens.io.tokenizers import train_bpe, vocabulary_size
from resval_lens.load import Loaded
from tests.helpers import tiny_model

SENTENCES = (
    "So is such a isn't she he The near behind beside by the is are was were has have",
    "The capital of is the city of In the capital is the city of The government of sits in the",
    'lasted from the year to the year def (self, ):\n    """\n\n    :param : param Words:',
    "When and went to the park shop a drink gave to",
)


@cache
def tokenizer(*merged: str) -> PreTrainedTokenizerFast:
    """Byte-level, as GPT-2's; without a beginning of text. ``merged`` years are one token each."""
    known = [
        word
        for name, value in vars(words).items()
        if name.isupper()
        for word in (value if isinstance(value, tuple) else [*value, *value.values()])
    ]
    common = " ".join(SENTENCES).split()
    centuries = [f"a {century}" for century in range(11, 18)]
    digits = [*centuries * 50, *(f"{year:02}" for year in range(100))]
    texts = [
        *digits,
        *[f"a {year}" for year in merged] * 20,
        " ".join(SENTENCES),
        *(f"a {word} {word} {word}" for word in sorted({*known, *common})),
    ]
    backend = train_bpe(texts * 3, 1_474 + len(merged), min_frequency=2)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


@cache
def worded(*merged: str) -> Loaded:
    """The model of such a tokenizer; changed by nobody."""
    own = tokenizer(*merged)
    size = vocabulary_size(own.backend_tokenizer)
    model = tiny_model("v", n_ctx=96, d_vocab=size, default_prepend_bos=False)
    model._use_tokenizer(own)
    return Loaded("worded", model)
