"""Short children's stories from a grammar of their own, to train small language models on.

Somebody gives something to somebody in nearly all of them. Of two people who were named before,
who gives is a fair coin, and the recipient is the other: no position, frequency or order of names
tells who, and a model that predicts the recipient has learned to identify the indirect object.
Some pairs of names, giving frames and objects are held out for evaluation.

    texts = stories(seed=0)                       # endless; text i is always the same
    tokenizer = load_tokenizer()                  # 2,048 tokens; every name is one
    prompts = ioi_prompts(500, seed=0, names="unseen")
"""

from resval_lens.tasks.ioi import IOIPrompt
from resval_lens.tasks.stories.giving import GIVING_FRAMES, HELD_OUT_FRAMES, is_held_out_frame
from resval_lens.tasks.stories.grammar import stories, story
from resval_lens.tasks.stories.prompts import ioi_prompts
from resval_lens.tasks.stories.sentences import OTHER_FRAMES
from resval_lens.tasks.stories.tokenizer import load_tokenizer, train_tokenizer
from resval_lens.tasks.stories.words import (
    BOYS,
    GIRLS,
    HELD_OUT_OBJECTS,
    HELD_OUT_PAIRS,
    NAMES,
    OBJECTS,
    PLACES,
    is_held_out_object,
    is_held_out_pair,
)

__all__ = [
    "BOYS",
    "GIRLS",
    "GIVING_FRAMES",
    "HELD_OUT_FRAMES",
    "HELD_OUT_OBJECTS",
    "HELD_OUT_PAIRS",
    "NAMES",
    "OBJECTS",
    "OTHER_FRAMES",
    "PLACES",
    "IOIPrompt",
    "ioi_prompts",
    "is_held_out_frame",
    "is_held_out_object",
    "is_held_out_pair",
    "load_tokenizer",
    "stories",
    "story",
    "train_tokenizer",
]
