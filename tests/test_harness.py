"""lm-evaluation-harness through the adapter, against its own Hugging Face model and by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from resval_lens import ResValTransformer
from resval_lens.analyses.studies.harness import HarnessLM, evaluate
from resval_lens.hooks import cut_links
from resval_lens.host import HookedTransformer, HookedTransformerConfig
from resval_lens.models.language_models import language_model_config
from resval_lens.tasks import stories
from tests.test_cli import run

N_CTX = 24
TEXTS = [
    "When Tom and Amy went to the shops, Tom gave a ball to Amy.",
    "Once upon a time",
    "Sara was sad. " * 12,
    "Ben",
    "Max had a drum, and Joe liked it.",
]


def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=stories.load_tokenizer(), eos_token="<|endoftext|>"
    )


def model(streams: str = "v", **changes: Any) -> ResValTransformer:
    """Random weights, large enough that tokens differ in probability."""
    config = language_model_config(
        "stories-small", streams, n_layers=2, d_model=32, n_heads=2, d_head=16, d_mlp=64,
        n_ctx=N_CTX, seed=0, initializer_range=0.5, **changes,
    )  # fmt: skip
    return ResValTransformer(config, tokenizer=tokenizer()).eval()


def twins() -> tuple[HookedTransformer, GPT2LMHeadModel]:
    """One GPT-2 of random weights, here and there."""
    conversions = pytest.importorskip(
        "transformer_lens.pretrained.weight_conversions", reason="TransformerLens 4 has none"
    )
    torch.manual_seed(0)
    other = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=2048, n_positions=N_CTX, n_embd=32, n_layer=2, n_head=2,
            initializer_range=0.5, bos_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_heads=2, d_head=16, d_mlp=128, n_ctx=N_CTX, d_vocab=2048,
        act_fn="gelu_new", normalization_type="LN", device="cpu",
    )  # fmt: skip
    own = HookedTransformer(config, tokenizer=tokenizer())
    own.load_state_dict(conversions.convert_gpt2_weights(other, config), strict=False)
    return own.eval(), other


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, arguments=given, idx=0) for given in arguments]


PAIRS = [(a, " " + b) for a in [*TEXTS, ""] for b in ("Tom", "there was a dog.", "Amy and Ben")]
GENERATION: list[dict[str, Any]] = [
    {"until": [".", "\n"], "max_gen_toks": 8},
    {"until": [], "max_gen_toks": 5, "do_sample": False},
]


@pytest.mark.filterwarnings("ignore")  # of the reference
def test_all_three_kinds_equal_the_harness_on_hugging_face() -> None:
    own, other = twins()
    ours = HarnessLM(own, batch_size=4, quiet=True)
    theirs = HFLM(pretrained=other, tokenizer=tokenizer(), batch_size=1, max_length=N_CTX)

    asked = requests("loglikelihood", *PAIRS)
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [p for p, _ in found] == pytest.approx([p for p, _ in expected], rel=1e-5)

    asked = requests("loglikelihood_rolling", *[(text,) for text in TEXTS])
    rolling = ours.loglikelihood_rolling(asked)
    assert rolling == pytest.approx(theirs.loglikelihood_rolling(asked, True), rel=1e-5)

    asked = requests("generate_until", *[(text, how) for text in TEXTS for how in GENERATION])
    assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


def by_hand(lm: ResValTransformer, context: list[int], continuation: list[int]) -> float:
    """One token at a time, alone, without padding."""
    total = 0.0
    for i, token in enumerate(continuation):
        before = (context + continuation[:i])[-N_CTX:]
        logits = lm(torch.tensor([before]), padding_side="right")[0, -1].double()
        total += float(logits[token] - logits.logsumexp(0))
    return total


@torch.no_grad()
def test_log_likelihoods_equal_a_loop_over_tokens() -> None:
    lm = model()
    words = lm.tokenizer
    short = [(context, text) for context, text in PAIRS if context != TEXTS[2]]
    found = HarnessLM(lm, quiet=True).loglikelihood(requests("loglikelihood", *short))
    for (context, text), (total, _) in zip(short, found, strict=True):
        expected = by_hand(lm, words.encode(context) or [0], words.encode(text))
        assert total == pytest.approx(expected, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    order=st.permutations(range(len(PAIRS))),
    batch=st.integers(1, 20),
    prepend=st.sampled_from(["none", "bos"]),
)
def test_neither_order_nor_batch_changes_an_answer(
    order: list[int], batch: int, prepend: str
) -> None:
    lm = model()
    alone = HarnessLM(lm, 1, prepend=prepend, quiet=True).loglikelihood(requests("x", *PAIRS))
    mixed = HarnessLM(lm, batch, prepend=prepend, quiet=True).loglikelihood(
        requests("x", *[PAIRS[i] for i in order])
    )
    for i, (total, greedy) in zip(order, mixed, strict=True):
        assert total == pytest.approx(alone[i][0], rel=1e-5)
        assert greedy == alone[i][1]


def test_a_prompt_that_is_only_the_end_of_text_counts() -> None:
    """TransformerLens's generation takes it for padding."""
    lm = model()
    (written,) = HarnessLM(lm, quiet=True).generate_until(
        requests("generate_until", ("", {"until": [], "max_gen_toks": 6}))
    )
    tokens = torch.tensor([[0]])
    for _ in range(6):
        tokens = torch.cat((tokens, lm(tokens, padding_side="right")[:, -1:].argmax(-1)), 1)
    assert written == lm.tokenizer.decode(tokens[0, 1:])


def test_links_that_are_cut_count_and_training_mode_stays() -> None:
    lm = model(dropout=0.5).train()
    ours = HarnessLM(lm, quiet=True)
    asked = requests("loglikelihood", *PAIRS[:3])
    whole = ours.loglikelihood(asked)
    assert whole == ours.loglikelihood(asked)  # no dropout
    with cut_links(lm):
        assert ours.loglikelihood(asked) != whole
    assert lm.training


@torch.no_grad()
def test_a_context_of_white_space_is_that_of_an_empty_one() -> None:
    lm = model()
    ((found, _),) = HarnessLM(lm, quiet=True).loglikelihood(requests("loglikelihood", (" ", "Tom")))
    assert found == pytest.approx(by_hand(lm, [0], lm.tokenizer.encode(" Tom")), rel=1e-5)


def test_a_task_of_too_few_examples_and_a_damaged_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task '.*giving.yaml', 9 examples"):
        evaluate(HarnessLM(model(), quiet=True), [multiple_choice(tmp_path)], shots=[9])
    (tmp_path / "bad.yaml").write_text("task: [")
    with pytest.raises(ValueError, match=r"task '.*bad.yaml' is not a task"):
        evaluate(HarnessLM(model(), quiet=True), [str(tmp_path / "bad.yaml")])


def test_evaluating_leaves_the_generator_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3)
    evaluate(HarnessLM(model(), quiet=True), [multiple_choice(tmp_path)], shots=[0])
    found = torch.rand(1)
    torch.manual_seed(3)
    model()
    assert torch.equal(found, torch.rand(1))


def test_longer_texts_are_counted() -> None:
    ours = HarnessLM(model(), quiet=True)
    ours.generate_until(requests("generate_until", (TEXTS[2], {"until": [], "max_gen_toks": 2})))
    assert ours.cut == 1
    ours.cut = 0
    ours.loglikelihood(requests("loglikelihood", *PAIRS))
    words = tokenizer()
    long = sum(len(words.encode(a + b)) > N_CTX + 1 for a, b in PAIRS)
    assert ours.cut == long > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HarnessLM(model(), 0), "batch_size must be 1 or more; got 0"),
        (lambda: HarnessLM(ResValTransformer(model().cfg)), "this model has no tokenizer"),
        (lambda: HarnessLM(model(attention_dir="bidirectional")), "needs causal attention"),
        (
            lambda: HarnessLM(model(), quiet=True).loglikelihood(
                requests("loglikelihood", ("Tom", " dog" * 30))
            ),
            "a continuation must have 1 to n_ctx=24 tokens",
        ),
        (
            lambda: HarnessLM(model(), quiet=True).generate_until(
                requests("generate_until", ("Tom", {"until": [], "max_gen_toks": 24}))
            ),
            "max_gen_toks must be from 1 to below n_ctx=24.* got 24",
        ),
        (
            lambda: HarnessLM(model(), quiet=True).loglikelihood(
                requests("loglikelihood", ("", ""))
            ),
            "nothing to continue '' with",
        ),
        (lambda: evaluate(HarnessLM(model()), shots=[-1]), "shots must be 0 or more; got -1"),
        (lambda: evaluate(HarnessLM(model()), limit=0), "limit must be 1 or more; got 0"),
        (lambda: evaluate(HarnessLM(model()), []), "tasks must name one or more"),
        (lambda: evaluate(HarnessLM(model()), ["no.yaml"]), "task 'no.yaml': Spec 'no.yaml'"),
    ],
)
def test_bad_input_gets_one_clear_line(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_model_with_other_streams_keeps_tokenizer_and_mode() -> None:
    first = model()
    assert not first.training
    for other in (first.with_streams(""), first.with_streams("").with_streams("qv")):
        assert not other.training
        assert other.tokenizer is first.tokenizer
    assert first.train().with_streams("").training
    stock, _ = twins()
    assert ResValTransformer.from_hooked(stock, "v").tokenizer is stock.tokenizer


# Whole tasks, offline.

QUESTIONS = [
    {"q": "Tom and Amy met. Tom gave a ball to", "choices": ["Amy", "Tom", "a dog"], "answer": 0},
    {"q": "Sara saw Ben. Ben gave a cup to", "choices": ["Ben", "Sara"], "answer": 1},
    {"q": "Max and Joe", "choices": ["went to the lake", "were"], "answer": 0},
    {"q": "Nora", "choices": ["was sad", "was very happy."], "answer": 1},
]


def task(folder: Path, name: str, said: str = "", **settings: Any) -> str:
    """A task's file; ``said`` is a field of the first question, the others have "other"."""
    data = folder / "questions.jsonl"
    rows = [{**question, "said": "other"} for question in QUESTIONS]
    rows[0]["said"] = said
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "metadata": {"version": 1},
        **settings,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return str(path)


def multiple_choice(folder: Path) -> str:
    return task(
        folder, "giving",
        fewshot_config={"split": "test", "sampler": "first_n"},
        output_type="multiple_choice", doc_to_choice="{{choices}}", doc_to_target="answer",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of the harness
def test_a_task_of_choices_equals_the_same_by_hand(tmp_path: Path) -> None:
    lm = model()
    found = evaluate(HarnessLM(lm, 3, quiet=True), [multiple_choice(tmp_path)], shots=[0])
    right = {"acc": 0, "acc_norm": 0}
    for question in QUESTIONS:
        words = lm.tokenizer
        scores = [
            by_hand(lm, words.encode(question["q"]), words.encode(" " + choice))
            for choice in question["choices"]
        ]
        shares = [s / len(c) for s, c in zip(scores, question["choices"], strict=True)]
        right["acc"] += scores.index(max(scores)) == question["answer"]
        right["acc_norm"] += shares.index(max(shares)) == question["answer"]
    values = {row.metric: row.value for row in found}
    assert values == {name: count / len(QUESTIONS) for name, count in right.items()}
    assert {(row.task, row.shots, row.n, row.cut) for row in found} == {("giving", 0, 4, 0)}


@pytest.mark.filterwarnings("ignore")
def test_examples_are_put_before_the_questions(tmp_path: Path) -> None:
    class Listening(HarnessLM):
        heard: list[str]

        def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list:
            self.heard = [request.args[0] for request in requests]
            return super().loglikelihood(requests, disable_tqdm)

    lm = Listening(model(), quiet=True)
    rows = evaluate(lm, [multiple_choice(tmp_path)], shots=[0, 1])
    assert [row.shots for row in rows] == [0, 0, 1, 1]
    first = QUESTIONS[0]
    assert f"{first['q']} Amy\n\n{QUESTIONS[1]['q']}" in lm.heard


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_perplexity_equals_the_same_by_hand(tmp_path: Path) -> None:
    lm = model()
    path = task(
        tmp_path, "saying", output_type="loglikelihood_rolling", doc_to_text="",
        doc_to_target="{{q}}", metric_list=[{"metric": "byte_perplexity"}],
    )  # fmt: skip
    (row,) = evaluate(HarnessLM(lm, quiet=True), [path], shots=[0])
    texts = [question["q"] for question in QUESTIONS]
    total = sum(by_hand(lm, [0], lm.tokenizer.encode(text)) for text in texts)
    expected = math.exp(-total / sum(len(text.encode()) for text in texts))
    assert row.value == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_written_answers_are_compared(tmp_path: Path) -> None:
    lm = model()
    ours = HarnessLM(lm, quiet=True)
    how = {"until": ["."], "max_gen_toks": 4}
    written = ours.generate_until(
        requests("generate_until", *[(question["q"], how) for question in QUESTIONS])
    )
    path = task(
        tmp_path, "writing", written[0], output_type="generate_until", doc_to_target="{{said}}",
        generation_kwargs=how, metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip
    (row,) = evaluate(ours, [path], shots=[0])
    assert row.value == 0.25


def test_from_the_command_line(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "a")
    model("").save_pretrained(tmp_path / "b")
    done = run(
        "eval", "harness", "a", "b", "--tasks", multiple_choice(tmp_path), "--shots", "0,1",
        "--quiet", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "acc_norm" in done.stdout
    report = json.loads((tmp_path / "out" / "harness.json").read_text())
    assert set(report["models"]) == {"a", "b"}
    assert len(report["models"]["a"]) == 4
    assert report["provenance"]["command"].startswith("resval-lens eval harness a b")


@pytest.mark.network
def test_the_papers_tasks_are_found(tmp_path: Path) -> None:
    rows = evaluate(HarnessLM(model(), quiet=True), shots=[0], limit=2)
    assert {row.task for row in rows} == {
        "arc_easy", "arc_challenge", "piqa", "openbookqa", "hellaswag"
    }  # fmt: skip
