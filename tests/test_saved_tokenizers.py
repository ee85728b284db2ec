"""A model's tokenizer after saving and loading: the same tokens, of whatever kind it is."""

import tempfile
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from resval_lens.io.checkpoint import tokenizer_files
from resval_lens.transformer import ResValTransformer
from tests.helpers import reseal, tiny_config

TEXTS = ["hello world, this is a test of words"] * 5 + ["Mary gave the bag to John"] * 5
SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", "<mask>")
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token")
INPUTS = ("hello world", " Mary <pad>words", "é", "a</s>b <s><mask>", "")


def trained(kind: str) -> Tokenizer:
    if kind == "bpe":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=300, special_tokens=list(SPECIAL), show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    elif kind == "words":
        made = Tokenizer(models.WordLevel(unk_token="<unk>"))
        made.normalizer = normalizers.Lowercase()
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=list(SPECIAL), show_progress=False)
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=60, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
        )
    made.train_from_iterator(TEXTS, trainer)
    return made


TRAINED = {kind: trained(kind).to_str() for kind in ("bpe", "words", "unigram")}
PROCESSORS: dict[str, Any] = {
    "none": lambda: None,
    "BOS": lambda: processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    ),
    "both": lambda: processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 1)],
    ),
    "twice": lambda: processors.TemplateProcessing(single="$A $A", pair="$A $B"),
    "bytes": lambda: processors.ByteLevel(trim_offsets=False),
}  # fmt: skip


def behaviour(model: ResValTransformer) -> list[Any]:
    """What the model makes of texts: tokens, loss or the error; and its tokenizer's tokens."""
    tokenizer: Any = model.tokenizer
    found: list[Any] = [
        len(tokenizer), tokenizer.special_tokens_map, model.cfg.tokenizer_prepends_bos,
        tokenizer.padding_side, tokenizer.get_vocab(),
        [getattr(tokenizer, f"{name}_id") for name in NAMES],
    ]  # fmt: skip
    for text in (*INPUTS, list(INPUTS[:2])):
        for prepend in (True, False):
            try:
                tokens = model.to_tokens(text, prepend_bos=prepend)
                found += [tokens.tolist(), model.to_string(tokens)]
                found.append(model(text, prepend_bos=prepend, return_type="loss").tolist())
            except Exception as error:
                found.append(repr(error))
    found.append(tokenizer.decode([0, 1, 2, 3, 9], skip_special_tokens=True))
    return found


@given(
    kind=st.sampled_from(sorted(TRAINED)),
    given_names=st.sets(st.sampled_from(NAMES)),
    outside=st.booleans(),
    processor=st.sampled_from(sorted(PROCESSORS)),
    left=st.booleans(),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_the_same_tokenizer_comes_back(
    kind: str, given_names: set[str], outside: bool, processor: str, left: bool
) -> None:
    backend = Tokenizer.from_str(TRAINED[kind])
    backend.post_processor = PROCESSORS[processor]()
    special = {name: SPECIAL[NAMES.index(name)] for name in given_names}
    if outside and "pad_token" in special:
        special["pad_token"] = "<new>"  # added to the vocabulary when it is made
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left" if left else "right", **special
    )
    cfg = tiny_config(streams="v", d_vocab=len(tokenizer), n_layers=2, n_ctx=64)
    model = ResValTransformer(cfg, tokenizer=tokenizer)
    model.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(f"{folder}/model")
        loaded = ResValTransformer.from_pretrained(f"{folder}/model")
        expected, found = behaviour(model), behaviour(loaded)
        assert [x != x or x == y for x, y in zip(expected, found, strict=True)].count(False) == 0
        loaded.save_pretrained(f"{folder}/again")
        again = ResValTransformer.from_pretrained(f"{folder}/again")
        assert tokenizer_files(again.tokenizer) == tokenizer_files(model.tokenizer)


def test_a_tokenizer_with_a_pad_token_only_gets_no_bos_beyond_the_vocabulary() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(TRAINED["bpe"]), pad_token="<pad>"
    )
    model = ResValTransformer(tiny_config(d_vocab=len(tokenizer), n_ctx=64), tokenizer=tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/model")
        loaded = ResValTransformer.from_pretrained(f"{folder}/model")
    assert len(loaded.tokenizer) == len(tokenizer)
    assert int(loaded.to_tokens("hello world").max()) < model.cfg.d_vocab
    assert torch.equal(loaded.to_tokens("hello world"), model.to_tokens("hello world"))


@pytest.mark.parametrize(
    "content", ['[]', '{"bos_token": 3}', '{"padding_side": "up"}', '{"bos_token": {"a": 1}}'],
)  # fmt: skip
def test_special_tokens_that_are_none_are_refused_by_name(content: str, tmp_path: Any) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(TRAINED["words"]))
    model = ResValTransformer(tiny_config(d_vocab=len(tokenizer)), tokenizer=tokenizer)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is damaged: its SHA-256"):
        ResValTransformer.from_pretrained(tmp_path / "model")
    reseal(tmp_path / "model")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json") as error:
        ResValTransformer.from_pretrained(tmp_path / "model")
    assert "\n" not in str(error.value)
