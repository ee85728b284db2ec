"""Indirect object identification: prompts, tokens, scores and Table 2 of the paper."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from resval_lens.analyses.comparison.ioi_cells import cells_table, four_cells, scores_table
from resval_lens.analyses.comparison.ioi_paper import PUBLISHED_TABLE_2, MeanAndSd, paper_table
from resval_lens.analyses.results.result import plain
from resval_lens.analyses.studies.ioi import ioi_per_prompt, ioi_scores, means
from resval_lens.hooks import cut_links
from resval_lens.host import HookedTransformer
from resval_lens.tasks.ioi import (
    NAMES,
    OBJECTS,
    PAPER_SENTENCES,
    PLACES,
    SCRIPT_SENTENCES,
    TEMPLATES,
    IOIBatch,
    IOIPrompt,
    encode,
    generate_prompts,
    padding_id,
    paper_prompts,
)
from resval_lens.transformer import ResValTransformer
from tests.helpers import adding_hooks, stock_model, tiny_model

WORD = re.compile(r"\w+|[^\w\s]")


def vocabulary(*extra: str) -> dict[str, int]:
    texts = (*extra, *TEMPLATES, *SCRIPT_SENTENCES, *PAPER_SENTENCES, *NAMES, *PLACES, *OBJECTS)
    words = dict.fromkeys(word for text in texts for word in WORD.findall(text))
    return {word: number for number, word in enumerate(words)}


def words_tokenizer(*extra: str, **options: Any) -> Tokenizer:
    """One token for each word or sign of any prompt."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(*extra), **options))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


TOKENIZER = words_tokenizer()
SIZES = {"d_vocab": len(vocabulary()), "n_ctx": 24}
PEOPLE = ("John", "Mary", "Tom", "James", "Dan", "Emily", "Sam", "Amy")


def strong(model: Any) -> Any:
    """People become likely, which ones depends on the prompt."""
    model.unembed.W_U.data *= 2
    model.unembed.b_U.data[[vocabulary()[name] for name in PEOPLE]] += 8
    return model


def classic_model(seed: int = 0) -> ResValTransformer:
    return strong(tiny_model(**SIZES, seed=seed))


def stream_model(seed: int = 1, streams: str = "v") -> ResValTransformer:
    return strong(tiny_model(streams, **SIZES, seed=seed))


@pytest.fixture(scope="module")
def prompts() -> list[IOIPrompt]:
    return generate_prompts(60, seed=3, names=PEOPLE)


@pytest.fixture(scope="module")
def batch(prompts: list[IOIPrompt]) -> IOIBatch:
    return encode(prompts, TOKENIZER)


# The paper's sentences


def test_the_sentences_are_the_papers() -> None:
    assert PAPER_SENTENCES == (
        "When John and Mary went to the shops, * gave the bag to",
        "When Tom and James went to the park, * gave the ball to",
        "When Dan and Emily went to the shops, * gave an apple to",
        "After Sam and Amy went to the park, * gave a drink to",
    )


def test_the_public_script_has_another_first_sentence() -> None:
    first = "After John and Mary went to the store, * gave a bottle of milk to"
    assert (first, *PAPER_SENTENCES[1:]) == SCRIPT_SENTENCES


def test_either_person_gives_in_turn() -> None:
    baba, abba = paper_prompts()[2]
    template = "When Dan and Emily went to the shops, * gave an apple to"
    assert baba == IOIPrompt(
        text="When Dan and Emily went to the shops, Dan gave an apple to",
        io="Emily",
        subject="Dan",
        order="BABA",
        template=template,
        corrupted="When Dan and Emily went to the shops, Lucy gave an apple to",
    )
    assert abba == IOIPrompt(
        text="When Dan and Emily went to the shops, Emily gave an apple to",
        io="Dan",
        subject="Emily",
        order="ABBA",
        template=template,
        corrupted="When Dan and Emily went to the shops, Lucy gave an apple to",
    )


def test_every_sentence_gives_its_names_with_either_completion() -> None:
    names = [(pair[0].subject, pair[0].io) for pair in paper_prompts(SCRIPT_SENTENCES)]
    assert names == [("John", "Mary"), ("Tom", "James"), ("Dan", "Emily"), ("Sam", "Amy")]
    for baba, abba in paper_prompts(SCRIPT_SENTENCES):
        assert (abba.subject, abba.io) == (baba.io, baba.subject)


@pytest.mark.parametrize(
    "sentence",
    [
        "When John and Mary went to the shops, John gave the bag to",
        "When * and * went to the shops, * gave the bag to",
        "When the cat and the dog went to the shops, * gave the bag to",
        "Yesterday * gave the bag of John and Mary to",
    ],
)
def test_a_sentence_of_another_form_is_refused(sentence: str) -> None:
    with pytest.raises(ValueError, match="names two people") as refused:
        paper_prompts([sentence])
    assert repr(sentence) in str(refused.value)


def test_a_third_person_who_is_one_of_the_two_is_refused() -> None:
    with pytest.raises(ValueError, match="third='Amy' is named in 'After Sam and Amy"):
        paper_prompts(third="Amy")
    assert paper_prompts(third="Samuel")[3][0].corrupted.startswith("After Sam and Amy went")


# Prompts made from templates


def test_there_are_at_least_15_templates_and_about_100_names() -> None:
    assert len(set(TEMPLATES)) == len(TEMPLATES) >= 15
    assert 90 <= len(set(NAMES)) == len(NAMES) <= 110
    assert not set(NAMES) & {"Mark", "Grant", "Rose", "Will", "Grace", "Bill"}  # also plain words


@pytest.mark.parametrize("n", [1, 2, 7, 60, 501])
def test_orders_are_balanced(n: int) -> None:
    prompts = generate_prompts(n, seed=0)
    count = Counter(prompt.order for prompt in prompts)
    assert len(prompts) == n
    assert count["BABA"] - count["ABBA"] == n % 2


def test_prompts_are_distinct() -> None:
    prompts = generate_prompts(4000, seed=0)
    assert len({prompt.text for prompt in prompts}) == 4000


def test_a_prompt_says_what_its_order_says() -> None:
    for prompt in generate_prompts(300, seed=1):
        names = [word for word in WORD.findall(prompt.text) if word in NAMES]
        io, subject = prompt.io, prompt.subject
        assert names == ([subject, io] if prompt.order == "BABA" else [io, subject]) + [subject]
        assert not prompt.text.endswith(" ")
        assert "{" not in prompt.text


def test_a_corrupted_prompt_differs_in_the_subjects_name_alone() -> None:
    for prompt in generate_prompts(300, seed=1) + [p for pair in paper_prompts() for p in pair]:
        words, corrupted = WORD.findall(prompt.text), WORD.findall(prompt.corrupted)
        changed = [(a, b) for a, b in zip(words, corrupted, strict=True) if a != b]
        assert len(changed) == 1
        ((subject, third),) = changed
        assert subject == prompt.subject
        assert third in NAMES
        assert third not in words
        where = [i for i, word in enumerate(words) if word == prompt.subject]
        assert len(where) == 2
        assert corrupted[where[0]] == prompt.subject
        assert corrupted[where[1]] == third


def test_every_template_name_place_and_object_is_used() -> None:
    prompts = generate_prompts(4000, seed=5)
    seen = " ".join(prompt.text for prompt in prompts)
    assert {prompt.template for prompt in prompts} == set(TEMPLATES)
    assert {p.subject for p in prompts} == {p.io for p in prompts} == set(NAMES)
    assert {*PLACES, *OBJECTS} <= set(WORD.findall(seen))


def test_a_prompt_is_its_template_filled() -> None:
    slots = r" (?P<{}>\w+)"
    for prompt in generate_prompts(200, seed=6):
        pattern = re.escape(prompt.template).replace(r"\{", "{").replace(r"\}", "}")
        for slot in ("first", "second", "subject", "place", "object"):
            pattern = pattern.replace(rf"\ {{{slot}}}", slots.format(slot))
        found = re.fullmatch(pattern, prompt.text)
        assert found is not None
        assert found["subject"] == prompt.subject
        assert found["place"] in PLACES
        assert found["object"] in OBJECTS


def test_all_prompts_there_are_can_be_drawn_and_no_more() -> None:
    given = {
        "names": ["Ann", "Bob", "Cy"],
        "templates": ["So {first} and {second} met. {subject} gave a {object} to",
                      "So {first} and {second} left the {place}. {subject} waved to"],
        "places": ["park", "zoo"],
        "objects": ["hat"],
    }  # fmt: skip
    # 3 · 2 pairs, in 2 orders, of 1 + 2 frames
    prompts = generate_prompts(36, 0, **given)
    assert len({prompt.text for prompt in prompts}) == 36
    with pytest.raises(ValueError, match="n must lie between 1 and 36, all there are; got 37"):
        generate_prompts(37, 0, **given)


def test_the_same_seed_gives_the_same_prompts() -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert generate_prompts(50, seed=1) == generate_prompts(50, seed=1)
    assert generate_prompts(50, seed=1) != generate_prompts(50, seed=2)
    assert torch.get_rng_state().equal(state)
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n must lie between 1 and .* got 0"),
        ({"names": ["Ann", "Bob"]}, r"names must be three or more.*\['Ann', 'Bob'\]"),
        ({"names": ["Ann", "Bob", "Ann"]}, "each given once; got"),
        ({"names": ["Ann", "Bob", "Mary Lou"]}, "a name is one word; got 'Mary Lou'"),
        ({"names": ["Ann", "Bob", ""]}, "a name is one word; got ''"),
        ({"templates": ["So {first} and {second} gave a {object} to"]}, "a template has"),
        ({"templates": ["{first} and {second} met, {subject} gave it to"]}, "each after a space"),
        ({"templates": ["So {first} and {second} met {subject} and {third} to"]}, "a template has"),
        ({"templates": ["So {first} and {second} met. {subject} gave it to "]}, "no space at its"),
        ({"templates": []}, "n must lie between 1 and 0"),
        ({"places": []}, "places is empty"),
        ({"objects": []}, "objects is empty"),
    ],
)
def test_impossible_prompts_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_prompts(**{"n": 4, "seed": 0, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"order": "abc"}, "order must be 'ABBA' or 'BABA'; got 'abc'"),
        ({"io": "John"}, "two people; both are 'John'"),
        ({"text": "John gave the bag to "}, "text must not end with a space"),
        ({"corrupted": "Lucy gave the bag to "}, "corrupted must not end with a space"),
    ],
)
def test_a_prompt_that_cannot_be_is_refused(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(paper_prompts()[0][0], **wrong)


# Tokens


def by_word(text: str) -> list[int]:
    own = vocabulary()
    return [own[word] for word in WORD.findall(text)]


def test_tokens_are_the_prompts_with_padding_after_them(
    prompts: list[IOIPrompt], batch: IOIBatch
) -> None:
    lengths = {len(by_word(prompt.text)) for prompt in prompts}
    assert len(lengths) > 3
    assert batch.tokens.shape == batch.corrupted.shape == (60, max(lengths))
    for i, prompt in enumerate(prompts):
        end = int(batch.last[i]) + 1
        assert batch.tokens[i, :end].tolist() == by_word(prompt.text)
        assert batch.corrupted[i, :end].tolist() == by_word(prompt.corrupted)
        assert batch.tokens[i, end:].eq(0).all()
        assert batch.corrupted[i, end:].eq(0).all()
        assert int(batch.io[i]) == vocabulary()[prompt.io]
        assert int(batch.subject[i]) == vocabulary()[prompt.subject]


def test_a_token_can_stand_before_every_prompt(prompts: list[IOIPrompt], batch: IOIBatch) -> None:
    led = encode(prompts, TOKENIZER, prepend=7)
    assert led.tokens[:, 0].eq(7).all()
    assert led.corrupted[:, 0].eq(7).all()
    assert led.tokens[:, 1:].equal(batch.tokens)
    assert led.corrupted[:, 1:].equal(batch.corrupted)
    assert led.last.equal(batch.last + 1)
    assert led.io.equal(batch.io)


def byte_pairs(texts: Iterable[str]) -> Tokenizer:
    """Byte pairs learned from ``texts``, in GPT-2's manner: spaces belong to the word after."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False)
    tokenizer.train_from_iterator(list(texts), trainer)
    return tokenizer


def test_a_name_is_the_token_with_its_space_in_front() -> None:
    (pair,) = paper_prompts(PAPER_SENTENCES[:1])
    tokenizer = byte_pairs([f"{p.text} {p.io}" for p in pair] + [pair[0].corrupted])
    batch = encode(pair, tokenizer)
    assert [tokenizer.id_to_token(int(i)) for i in batch.io] == ["ĠMary", "ĠJohn"]
    assert [tokenizer.id_to_token(int(i)) for i in batch.subject] == ["ĠJohn", "ĠMary"]
    assert tokenizer.id_to_token(int(batch.tokens[0, -1])) == "Ġto"


def test_a_transformers_tokenizer_gives_the_same_tokens(
    prompts: list[IOIPrompt], batch: IOIBatch
) -> None:
    wrapped = encode(prompts, PreTrainedTokenizerFast(tokenizer_object=TOKENIZER))
    assert all(a.equal(b) for a, b in zip(wrapped, batch, strict=True))


def with_special_tokens(prompts: list[IOIPrompt]) -> Iterable[Any]:
    """Tokenizers that add, pad or end on their own, as files of published ones say."""
    tokenizer = words_tokenizer()
    tokenizer.add_special_tokens(["[CLS]"])
    start = ("[CLS]", tokenizer.token_to_id("[CLS]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[start]
    )
    assert tokenizer.encode(prompts[0].text).ids[0] == start[1]
    yield tokenizer
    yield PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    padding = words_tokenizer()
    padding.enable_padding(length=50)
    yield padding


def test_nothing_is_added_unasked(prompts: list[IOIPrompt], batch: IOIBatch) -> None:
    for tokenizer in with_special_tokens(prompts):
        assert all(a.equal(b) for a, b in zip(encode(prompts, tokenizer), batch, strict=True))


def test_a_tokenizer_that_truncates_is_refused(prompts: list[IOIPrompt]) -> None:
    tokenizer = words_tokenizer()
    tokenizer.enable_truncation(5)
    with pytest.raises(ValueError, match=r"truncates .*no_truncation\(\)"):
        encode(prompts, tokenizer)


def test_padding_is_the_tokenizers_own_then_the_end_of_text_then_0() -> None:
    plain = words_tokenizer()
    assert padding_id(plain) == 0
    ended = words_tokenizer("x")
    ended.add_special_tokens(["<|endoftext|>"])
    end = ended.token_to_id("<|endoftext|>")
    assert padding_id(ended) == end
    wrapped = PreTrainedTokenizerFast(tokenizer_object=ended, eos_token="<|endoftext|>")
    assert padding_id(wrapped) == end
    both = PreTrainedTokenizerFast(tokenizer_object=ended, eos_token="<|endoftext|>",
                                   pad_token="x")  # fmt: skip
    assert padding_id(both) == ended.token_to_id("x") != end
    assert padding_id(PreTrainedTokenizerFast(tokenizer_object=plain)) == 0
    ended.enable_padding(pad_id=0)
    assert padding_id(ended) == 0


def test_after_a_prompts_last_token_comes_padding_alone(prompts: list[IOIPrompt]) -> None:
    tokenizer = words_tokenizer()
    tokenizer.enable_padding(pad_id=5)
    padded = encode(prompts, tokenizer)
    after = torch.arange(padded.tokens.shape[1]) > padded.last[:, None]
    assert padded.tokens[after].eq(5).all()


@pytest.mark.parametrize("who", ["io", "subject"])
def test_a_name_of_two_tokens_is_refused_by_name(who: str) -> None:
    tokenizer = Tokenizer(models.WordPiece({**vocabulary(), "##y": len(vocabulary())},
                                           unk_token="a"))  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ("Johny", "Mary") if who == "subject" else ("Mary", "Johny")
    text = "When {} and {} went to the shops, {} gave the bag to"
    # The corrupted is as long as the prompt: only the name itself is in the way.
    prompt = IOIPrompt(text.format(*names, "Tom"), names[1], names[0], "BABA", text,
                       text.format(*names, "Sam"))  # fmt: skip
    message = "name 'Johny' is 2 tokens with this tokenizer: 'John' . '.*y'; expected one"
    with pytest.raises(ValueError, match=message):
        encode([prompt], tokenizer)


def test_a_name_the_tokenizer_does_not_know_is_refused() -> None:
    (pair,) = paper_prompts(["When John and Zed went to the shops, * gave the bag to"])
    for tokenizer in (
        words_tokenizer(unk_token="a"),
        PreTrainedTokenizerFast(tokenizer_object=words_tokenizer(unk_token="a"), unk_token="a"),
    ):
        with pytest.raises(ValueError, match="name 'Zed' is unknown to this tokenizer"):
            encode(pair, tokenizer)


def test_a_name_that_changes_the_tokens_before_it_is_refused() -> None:
    tokenizer = Tokenizer(
        models.BPE({"t": 0, "o": 1, " ": 2, "A": 3, "B": 4, "o ": 5}, [("o", " ")])
    )
    prompt = IOIPrompt("A to", "A", "B", "ABBA", "", "B to")
    with pytest.raises(ValueError, match="the tokens of 'A to' change when 'A' follows"):
        encode([prompt], tokenizer)


def test_a_corrupted_prompt_of_another_length_is_refused_with_its_prompt() -> None:
    prompt = replace(paper_prompts()[0][0], corrupted="When John and Mary went, Lucy gave it to")
    with pytest.raises(ValueError, match=r"'When John and Mary went .*has 10 tokens, not 14"):
        encode([prompt], TOKENIZER)


def test_a_corrupted_prompt_with_the_prompts_own_tokens_is_refused() -> None:
    prompt = paper_prompts()[0][0]
    with pytest.raises(ValueError, match="has the same tokens"):
        encode([replace(prompt, corrupted=prompt.text)], TOKENIZER)


def test_no_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        encode([], TOKENIZER)


# Scores


def loop_scores(
    model: HookedTransformer, prompts: list[IOIPrompt], fwd_hooks: Any = ()
) -> list[dict[str, float]]:
    """One prompt at a time, without padding; the softmax a loop in double precision."""
    own, found = vocabulary(), []
    for prompt in prompts:
        said = []
        for text in (prompt.text, prompt.corrupted):
            with torch.no_grad(), model.hooks(fwd_hooks=list(fwd_hooks)):
                logits = model(torch.tensor([by_word(text)]))
            said.append(logits[0, -1].double().numpy())
        logits, corrupted = said
        io, subject = own[prompt.io], own[prompt.subject]
        total = sum(math.exp(x) for x in logits)
        best = max(range(len(logits)), key=lambda v, logits=logits: logits[v])
        found.append(
            {
                "logit_difference": logits[io] - logits[subject],
                "p_io": math.exp(logits[io]) / total,
                "p_subject": math.exp(logits[subject]) / total,
                "accuracy": float(logits[io] > logits[subject]),
                "accuracy_top1": float(best == io),
                "corrupted_logit_difference": corrupted[io] - corrupted[subject],
                "log_p_io": math.log(math.exp(logits[io]) / total),
            }
        )
    return found


def averaged(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in found) / len(found) for name in found[0]}


MODELS = {
    "stock": lambda: strong(stock_model(**SIZES)),
    "classic": classic_model,
    "values": stream_model,
    "queries, rotary": lambda: strong(
        tiny_model("q", **SIZES, positional_embedding_type="rotary", normalization_type="RMS")
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [7, 64])
def test_scores_are_those_of_one_prompt_at_a_time(
    name: str, chunk: int, prompts: list[IOIPrompt], batch: IOIBatch
) -> None:
    model = MODELS[name]()
    expected = loop_scores(model, prompts)
    found = ioi_per_prompt(model, batch, chunk)
    for score in ("logit_difference", "p_io", "p_subject", "corrupted_logit_difference",
                  "log_p_io"):  # fmt: skip
        wanted = torch.tensor([float(row[score]) for row in expected])
        torch.testing.assert_close(getattr(found, score), wanted, atol=2e-5, rtol=1e-4)
    assert found.top1.tolist() == [bool(row["accuracy_top1"]) for row in expected]
    found = ioi_scores(model, batch, chunk)
    assert plain(found) == pytest.approx(averaged(expected), abs=1e-5)


def test_the_cases_tell_scores_apart(prompts: list[IOIPrompt]) -> None:
    """Else the comparisons above could not fail."""
    expected = averaged(loop_scores(classic_model(), prompts))
    assert 0.2 < expected["accuracy"] < 0.8
    assert abs(expected["logit_difference"] - expected["corrupted_logit_difference"]) > 1e-3
    assert 0.02 < expected["accuracy_top1"] < 0.5
    assert min(expected["p_io"], expected["p_subject"]) > 0.02
    assert abs(expected["p_io"] - expected["p_subject"]) > 2e-3


def aimed(model: Any, token: int, by: float = 1e4) -> Any:
    model.unembed.b_U.data[token] += by
    return model


def test_a_model_that_always_says_one_name_is_right_where_it_is_the_object() -> None:
    prompts = paper_prompts()[0]
    batch = encode(prompts, TOKENIZER)
    scores = ioi_per_prompt(aimed(classic_model(), vocabulary()["Mary"]), batch)
    assert scores.top1.tolist() == [True, False]
    assert scores.p_io.tolist() == [1.0, 0.0]
    assert scores.p_subject.tolist() == [0.0, 1.0]
    assert scores.logit_difference.sign().tolist() == [1.0, -1.0]
    assert means(scores).accuracy == means(scores).accuracy_top1 == 0.5


def test_io_above_s_is_not_yet_the_likeliest() -> None:
    batch = encode(paper_prompts()[0][:1], TOKENIZER)
    model = aimed(aimed(classic_model(), vocabulary()["Mary"], 1e3), vocabulary()["the"], 1e4)
    scores = ioi_scores(model, batch)
    assert (scores.accuracy, scores.accuracy_top1) == (1.0, 0.0)


def test_edits_of_the_links_count(batch: IOIBatch) -> None:
    model = stream_model()
    with cut_links(model):
        cut = ioi_scores(model, batch)
    without = ioi_scores(model.with_streams(""), batch)
    assert plain(cut) == pytest.approx(plain(without), abs=1e-6)
    assert plain(cut) != pytest.approx(plain(ioi_scores(model, batch)), abs=1e-4)


def test_no_gradients_are_kept(batch: IOIBatch) -> None:
    assert not any(tensor.requires_grad for tensor in ioi_per_prompt(classic_model(), batch))


def test_dropout_is_off_and_the_mode_stays_as_it_was(batch: IOIBatch) -> None:
    model, other = strong(tiny_model("v", **SIZES, dropout=0.5)), stream_model(0)
    model.train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    assert ioi_scores(model, batch) == ioi_scores(other, batch)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(RuntimeError, match="stop"), model.hooks([("hook_embed", refuse)]):
        ioi_scores(model, batch)
    assert [module.training for module in model.modules()] == modes
    classic = classic_model(2)
    assert four_cells(classic, model, batch).cells == four_cells(classic, other, batch).cells


def refuse(*_: Any, **__: Any) -> None:
    raise RuntimeError("stop")


def test_low_precision_logits_are_normalised_in_single_precision(batch: IOIBatch) -> None:
    model = classic_model().to(torch.bfloat16)
    model.cfg.dtype = torch.bfloat16
    scores = ioi_per_prompt(model, batch)
    assert scores.p_io.dtype == torch.float32


def test_a_tokenizer_that_pads_on_the_left_changes_nothing(prompts: list[IOIPrompt]) -> None:
    """TransformerLens would take a prompt's first tokens for padding."""
    led = encode(prompts, TOKENIZER, prepend=0)
    model = classic_model()
    expected = ioi_scores(model, led)
    model.tokenizer = SimpleNamespace(padding_side="left", pad_token_id=0, bos_token_id=1)
    assert ioi_scores(model, led) == expected
    assert model.tokenizer.padding_side == "left"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_ctx": 10}, r"prompts of \d+ tokens do not fit n_ctx=10"),
        ({"d_vocab": 50}, r"token \d+ is outside this model's vocabulary of 50"),
        ({"attention_dir": "bidirectional"}, "causal attention; this model's is 'bidirectional'"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, batch: IOIBatch
) -> None:
    with pytest.raises(ValueError, match=message):
        ioi_scores(tiny_model(**{**SIZES, **changes}), batch)


def test_a_chunk_below_one_is_refused(batch: IOIBatch) -> None:
    with pytest.raises(ValueError, match="chunk must be 1 or more; got 0"):
        ioi_scores(classic_model(), batch, chunk=0)


# Table 2


def test_published_numbers_are_the_papers() -> None:
    """The lines of Table 2 of arXiv 2412.15113: correct, incorrect; classic, values stream."""
    lines = """
        11.73 ± 15.62 | 11.88 ± 9.09  | 3.83 ± 6.09  | 1.54 ± 2.31
        6.93 ± 5.70   | 7.99 ± 9.52   | 0.51 ± 0.66  | 4.86 ± 8.35
        42.89 ± 10.58 | 43.44 ± 14.45 | 49.24 ± 9.89 | 28.56 ± 5.92
        5.68 ± 3.76   | 6.8 ± 10.40   | 0.03 ± 0.03  | 0.18 ± 0.15
    """
    read = [
        tuple(tuple(float(x) for x in entry.split("±")) for entry in line.split("|"))
        for line in lines.strip().splitlines()
    ]
    table = PUBLISHED_TABLE_2
    assert list(table) == ["classic", "values"]
    assert [table[m][p] for m in table for p in ("p_io", "p_subject")] == read


def test_published_deviations_can_only_be_the_samples() -> None:
    """Three numbers from 0 up with mean m: sd ≤ √2·m with ddof = 0, ≤ √3·m with ddof = 1."""
    entries = [e for part in PUBLISHED_TABLE_2.values() for row in part.values() for e in row]
    assert sum(sd > math.sqrt(2) * (mean + 0.005) for mean, sd in entries) == 4
    assert all(sd <= math.sqrt(3) * (mean + 0.005) for mean, sd in entries)


@pytest.mark.parametrize("sentences", [PAPER_SENTENCES, SCRIPT_SENTENCES], ids=["paper", "script"])
def test_the_table_is_means_and_deviations_over_seeds(sentences: tuple[str, ...]) -> None:
    models = {"classic": [classic_model(seed) for seed in range(3)], "values": [stream_model(4)]}
    data = paper_table(models, TOKENIZER, sentences)
    document = data.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["sentences"] == list(sentences)
    assert [(row.architecture, row.sentence, row.seeds) for row in data.rows] == [
        (name, number, seeds) for name, seeds in (("classic", 3), ("values", 1))
        for number in (1, 2, 3, 4)
    ]  # fmt: skip
    for row in data.rows:
        assert row.text == sentences[row.sentence - 1]
        (pair,) = paper_prompts([row.text])
        assert row.published is not None
        for name, entry, published in (
            ("p_io", row.p_io, row.published.p_io),
            ("p_subject", row.p_subject, row.published.p_subject),
        ):
            each = [100 * averaged(loop_scores(m, pair))[name] for m in models[row.architecture]]
            mean = sum(each) / len(each)
            squares = sum((x - mean) ** 2 for x in each)
            assert entry.per_seed == pytest.approx(each, rel=1e-4)
            assert entry.mean == pytest.approx(mean, rel=1e-4)
            assert entry.sd == pytest.approx(math.sqrt(squares / len(each)), rel=1e-3)
            if len(each) == 1:
                assert entry.sd_sample is None
            else:
                assert entry.sd_sample == pytest.approx(math.sqrt(squares / 2), rel=1e-3)
            paper = PUBLISHED_TABLE_2[row.architecture][name][row.sentence - 1]
            assert published == MeanAndSd(*paper)


def test_what_was_not_published_has_nothing_beside_it() -> None:
    other = "When Dan and Emily went to the shops, * sold a boat to"
    tokenizer = words_tokenizer("sold boat")
    models = [tiny_model(**{**SIZES, "d_vocab": tokenizer.get_vocab_size()})]
    data = paper_table({"classic": models, "queries": models}, tokenizer,
                       [PAPER_SENTENCES[0], PAPER_SENTENCES[2], other])  # fmt: skip
    shown = [row.published is not None for row in data.rows]
    assert shown == [True, False, False, False, False, False]


def test_the_table_can_put_a_token_before_every_prompt() -> None:
    model = classic_model()
    led = paper_table({"classic": [model]}, TOKENIZER, prepend=9).rows[0].p_io.mean
    batch = encode(paper_prompts()[0], TOKENIZER, prepend=9)
    assert led == pytest.approx(100 * ioi_scores(model, batch).p_io, rel=1e-5)
    plain = paper_table({"classic": [model]}, TOKENIZER).rows[0].p_io.mean
    assert led != pytest.approx(plain, rel=1e-3)


def test_an_architecture_without_models_is_refused() -> None:
    with pytest.raises(ValueError, match="'values' has no models"):
        paper_table({"classic": [classic_model()], "values": []}, TOKENIZER)


# The four cells


def test_the_four_cells_are_stock_models_with_and_without_hooks(
    prompts: list[IOIPrompt], batch: IOIBatch
) -> None:
    """{trained classic, trained with stream} × {run without, run with}, none run by ours."""
    result = four_cells(classic_model(0), stream_model(1), batch)
    expected = {}
    for trained, seed in (("trained classic", 0), ("trained with stream", 1)):
        stock = strong(stock_model(**SIZES, seed=seed))
        for run, hooks in (("run without", []), ("run with", adding_hooks("v"))):
            expected[f"{trained}, {run}"] = averaged(loop_scores(stock, prompts, hooks))
    cells = result.cells.to_dict()
    assert list(cells) == list(expected)
    for cell, scores in expected.items():
        assert cells[cell] == pytest.approx(scores, abs=2e-5)
    differences = [cell["logit_difference"] for cell in expected.values()]
    assert min(np.diff(sorted(differences))) > 1e-3
    assert result.prompts == 60
    assert [stream.of for stream in result.streams] == ["v"]
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


def test_the_stream_run_is_the_trained_ones(batch: IOIBatch) -> None:
    """Not any values stream: what the stream model's own configuration says."""
    classic, stream = classic_model(0), strong(tiny_model(
        [{"of": "v", "carry": "raw", "carried": 0.5}], **SIZES, seed=1))  # fmt: skip
    grafted = classic.with_streams(stream.cfg.streams)
    cells = four_cells(classic, stream, batch).cells
    assert cells.grafted == ioi_scores(grafted, batch)
    assert cells.stream == ioi_scores(stream, batch)


def test_the_models_are_left_as_they_were(batch: IOIBatch) -> None:
    models: list[ResValTransformer] = [classic_model(0), stream_model(1)]
    before: list[dict[str, Tensor]] = [
        {name: value.clone() for name, value in model.state_dict().items()} for model in models
    ]
    four_cells(*models, batch)
    for model, state in zip(models, before, strict=True):
        assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert not models[0].cfg.streams
    assert models[1].cfg.streams


def test_cells_of_the_wrong_models_are_refused(batch: IOIBatch) -> None:
    with pytest.raises(ValueError, match="classic has streams='q'; expected a model without"):
        four_cells(stream_model(streams="q"), stream_model(), batch)
    with pytest.raises(ValueError, match="stream has streams=''"):
        four_cells(classic_model(), classic_model(), batch)


# Tables in the terminal


def shown(table: Any) -> str:
    console = Console(width=80, record=True, file=StringIO())
    console.print(table)
    return console.export_text()


def test_tables_show_their_numbers_on_80_columns(batch: IOIBatch) -> None:
    scores = ioi_scores(classic_model(), batch)
    text = shown(scores_table({"classic, seed 0": scores}))
    assert "…" not in text
    assert f"{scores.logit_difference:.2f}" in text
    for share in (scores.p_io, scores.p_subject, scores.accuracy):
        assert f"{share:.3f}" in text
    result = four_cells(classic_model(0), stream_model(1), batch)
    lines = [line.split() for line in shown(cells_table([result])).splitlines()]
    for cell, row in result.cells.by_way().items():
        trained, run = (part.split() for part in cell)
        (line,) = (line for line in lines if line[: len(trained + run)] == trained + run)
        assert line[len(trained + run)] == f"{row.logit_difference:.2f}"
        assert line[-1] == f"{row.corrupted_logit_difference:.2f}"


def test_the_papers_table_shows_ours_beside_the_published() -> None:
    models = {"classic": [classic_model(seed) for seed in range(2)], "values": [stream_model()]}
    data = paper_table(models, TOKENIZER)
    rows = [  # as wide as the paper's widest
        replace(
            row,
            p_io=replace(row.p_io, mean=45.67, sd_sample=row.p_io.sd_sample and 12.34),
            p_subject=replace(
                row.p_subject, mean=56.78, sd_sample=row.p_subject.sd_sample and 23.45
            ),
        )
        for row in data.rows
    ]
    (table,) = replace(data, rows=rows).tables()
    text = shown(table)
    assert "…" not in text
    flat = [" ".join(line.split()) for line in text.splitlines()]
    assert "classic (2) 1 45.67 ± 12.34 11.73 ± 15.62 56.78 ± 23.45 6.93 ± 5.70" in flat
    assert "4 45.67 28.56 ± 5.92 56.78 0.18 ± 0.15" in flat
