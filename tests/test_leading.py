"""What leads a prompt, and which names prompts do without."""

from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from resval_lens.analyses.comparison.ioi_paper import paper_table
from resval_lens.analyses.comparison.lm_progress import ioi_sets
from resval_lens.analyses.studies.link_signals import link_signals
from resval_lens.analyses.studies.roles import head_roles
from resval_lens.analyses.tasks import TASKS, Asked
from resval_lens.analyses.tasks.pairs import draw_ioi, ioi_pairs
from resval_lens.load import Loaded
from resval_lens.tasks.ioi import NAMES, OBJECTS, PLACES, TEMPLATES, generate_prompts, sayable
from resval_lens.tasks.leading import NamedToken, leading_token
from resval_lens.tasks.stories import NAMES as STORY_NAMES
from resval_lens.tasks.stories import ioi_prompts, load_tokenizer, words
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_model

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def word_tokenizer(missing: set[str], special: dict[str, str] = SPECIAL) -> PreTrainedTokenizerFast:
    """Words of general prompts, one token each; names in ``missing`` are spelled by letters."""
    texts = [*TEMPLATES, *PLACES, *OBJECTS, *NAMES, "a new one to it"]
    found = {word.strip("{}.,") for text in texts for word in text.split()} - missing
    letters = {letter for name in NAMES for letter in name}
    parts = [*sorted(found), ".", ",", *sorted(letters), *sorted(f"##{x}" for x in letters)]
    vocabulary = dict.fromkeys([*special.values(), "<unk>", *parts])
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def model_with(tokenizer: Any, prepends: bool = True) -> ResValTransformer:
    model = tiny_model("v", n_ctx=64, d_vocab=len(tokenizer.get_vocab()))
    model.tokenizer, model.cfg.default_prepend_bos = tokenizer, prepends
    return model


def test_what_leads_a_prompt() -> None:
    tokenizer = word_tokenizer(set())
    led, alone = model_with(tokenizer), model_with(tokenizer, prepends=False)
    numbers = {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL.items()}
    assert leading_token(led) == numbers["bos_token"] != numbers["eos_token"]
    assert leading_token(alone) is None
    for model in (led, alone):
        assert leading_token(model, "none") is None
        assert leading_token(model, "bos") == numbers["bos_token"]
        assert leading_token(model, "eos") == numbers["eos_token"]
        assert leading_token(model, "<pad>") == numbers["pad_token"]
        with pytest.raises(ValueError, match=r"prepend='<\|x\|>': this tokenizer has no such"):
            leading_token(model, "<|x|>")
    shipped = ResValTransformer.from_pretrained("stories-small-classic")
    assert leading_token(shipped) == shipped.tokenizer.eos_token_id == 0


def test_a_tokenizer_without_a_beginning_leads_by_nothing() -> None:
    model = model_with(word_tokenizer(set(), {"eos_token": "</s>", "pad_token": "<pad>"}))
    assert leading_token(model) is None
    with pytest.raises(ValueError, match="prepend='bos': this tokenizer has no beginning of text"):
        leading_token(model, "bos")
    model.cfg.d_vocab = 0
    with pytest.raises(ValueError, match="token 0 is outside this model's vocabulary of 0"):
        leading_token(model, "eos")
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        leading_token(model)


def test_every_reader_of_prompts_is_led_alike() -> None:
    tokenizer = word_tokenizer(set())
    model = model_with(tokenizer)
    number = tokenizer.bos_token_id
    for prepend, lead in (("auto", number), ("none", None), ("eos", tokenizer.eos_token_id)):
        chosen = TASKS["ioi"].draw(Loaded("some", model), 6, Asked(general=True, prepend=prepend))
        first = chosen.pairs.clean[:, 0].tolist()
        assert chosen.lead == lead
        assert (first == [lead] * 6) is (lead is not None)
        assert chosen.facts().leading_token == (
            None if lead is None else NamedToken(lead, tokenizer.decode([lead]))
        )
        where = chosen.named_positions
        io = chosen.pairs.clean[torch.arange(6), where["IO"]]
        assert io.tolist() == chosen.pairs.labels[:, 0].tolist()
        example = chosen.example()
        assert example is not None
        assert example.clean.strip() == chosen.prompts[0].text
    prompts = generate_prompts(6, 0)
    wanted = ioi_pairs(model, prompts, "token", 0, prepend="eos").clean

    seen: list[torch.Tensor] = []
    model.embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for study in (link_signals, head_roles):
        seen.clear()
        with suppress(ValueError):  # an untrained model does not know the task
            study(model, prompts, prepend="eos")  # type: ignore[operator]
        led = [tokens for tokens in seen if tokens.shape[1:] == wanted.shape[1:]]
        assert led
        assert all((tokens[:, 0] == tokenizer.eos_token_id).all() for tokens in led)


@settings(max_examples=15, deadline=None)
@given(missing=st.sets(st.sampled_from(NAMES), max_size=len(NAMES) - 3), seed=st.integers(0, 99))
def test_names_of_several_tokens_are_left_out(missing: set[str], seed: int) -> None:
    tokenizer = word_tokenizer(missing)
    prompts, left_out = draw_ioi(tokenizer, 20, seed, "general")
    assert left_out == [name for name in NAMES if name in missing]
    names = [name for name in NAMES if name not in missing]
    assert prompts == generate_prompts(20, seed, names)
    model = model_with(tokenizer)
    kind = "random" if len(names) > 4 else "random-S2"
    chosen = TASKS["ioi"].draw(Loaded("some", model), 20, Asked(seed, kind, True))
    assert chosen.facts().words_left_out == tuple(left_out)
    said = {word for prompt in chosen.prompts for word in prompt.text.replace(".", "").split()}
    assert not said & missing
    assert not chosen.of_stories


def test_with_every_name_prompts_are_what_they_were() -> None:
    tokenizer = load_tokenizer()
    assert draw_ioi(word_tokenizer(set()), 50, 3, "general") == (generate_prompts(50, 3), [])
    for which in ("seen", "unseen"):
        drawn = draw_ioi(tokenizer, 50, 3, which)
        assert drawn == (ioi_prompts(50, 3, which, which, which), [])
    assert sayable(tokenizer, STORY_NAMES) == list(STORY_NAMES)


def test_stories_do_without_people() -> None:
    few = [name for name in STORY_NAMES if name not in STORY_NAMES[::3]]
    prompts = ioi_prompts(300, 0, "unseen", "unseen", "unseen", people=few)
    named = {name for prompt in prompts for name in (prompt.io, prompt.subject)}
    thirds = {word for p in prompts for word in p.corrupted.replace(".", "").split()}
    assert named <= set(few)
    assert not thirds & set(STORY_NAMES[::3])
    assert prompts == ioi_prompts(300, 0, "unseen", "unseen", "unseen", people=few)
    pair = words.HELD_OUT_PAIRS[0]
    for people in ((), pair, few[:1]):
        with pytest.raises(ValueError, match=f"only 0 of 4 unseen prompts .* {len(people)} p"):
            ioi_prompts(4, 0, "unseen", "unseen", "unseen", people=people)


def test_the_papers_sentences_that_a_tokenizer_cannot_say_are_named() -> None:
    sentences = tuple(
        f"When {first} and {second} went to the zoo, * gave a ball to"
        for first, second in (("Elena", "Tom"), ("Mary", "John"))
    )
    model = model_with(word_tokenizer({"Elena"}))
    found = paper_table({"classic": [model]}, model.tokenizer, sentences)
    assert [row.sentence for row in found.rows] == [2]
    assert [(each.sentence, each.text) for each in found.unsaid] == [(1, sentences[0])]
    alone = paper_table({"classic": [model]}, model.tokenizer, sentences[1:])
    assert found.rows[0].p_io == alone.rows[0].p_io
    with pytest.raises(ValueError, match="Elena"):
        paper_table({"classic": [model]}, model.tokenizer, sentences[:1])


def test_too_few_names_are_left() -> None:
    tokenizer = word_tokenizer(set(NAMES[2:]))
    with pytest.raises(ValueError, match="of 105 names 2 are one token with this tokenizer, but"):
        draw_ioi(tokenizer, 2, 0, "general")


def test_models_of_real_text_are_asked_general_prompts_of_the_names_they_can_say() -> None:
    tokenizer = word_tokenizer({"James", "Adam"})
    sets, unsaid = ioi_sets(tokenizer.backend_tokenizer, "story", generated=False, n_prompts=50)
    assert list(sets) == ["general"]
    assert "'James' is " in unsaid["paper"]
    asked = set(tokenizer.convert_ids_to_tokens(sets["general"].io))
    assert len(sets["general"].io) == 50
    assert asked <= set(NAMES) - {"James", "Adam"}
    few = word_tokenizer(set(NAMES[2:]))
    sets, unsaid = ioi_sets(few.backend_tokenizer, "story", generated=False)
    assert not sets
    assert "names 2 are one token" in unsaid["general"]
