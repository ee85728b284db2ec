"""Tasks of one's own: files of prompts and of templates, and what is refused in them, by line."""

import copy
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from resval_lens.analyses.circuits.study import circuit_study
from resval_lens.analyses.tasks import TASKS, Asked, find_task
from resval_lens.analyses.tasks.files import FileTask
from resval_lens.analyses.tasks.problem import Problem, pose, pose_two
from resval_lens.analyses.tasks.sentences import years
from resval_lens.analyses.tasks.task import PromptWarning
from resval_lens.analyses.tasks.text import TextTask
from resval_lens.load import Loaded, load_model
from tests.helpers import tiny_model
from tests.worded import tokenizer, worded

LINES: list[dict[str, Any]] = [
    {
        "clean": "The capital of France is the city of",
        "corrupted": "The capital of Italy is the city of",
        "answer": " Paris",
        "wrong": " Rome",
        "positions": {"country": [15, 21]},
    },
    {
        "clean": "In Poland the capital is the city of",
        "corrupted": "In Greece the capital is the city of",
        "answer": " Warsaw",
        "wrong": [" Athens", " Rome"],
        "positions": {"country": [3, 9]},
    },
    {
        "clean": "The capital of Spain is the city of",
        "corrupted": "The capital of Cuba is the city of",
        "answer": " Madrid",
        "wrong": " Havana",
        "positions": {"country": [15, 20]},
    },
]
YAML = """
slots:
  A: [Mary, Anna, Tom, Paul]
  B: A
  C: A
  thing: [song, stone, Philadelphia]
templates:
  - clean: "When {A} and {B} went to the {thing}, {B} gave to"
    corrupted: "When {A} and {B} went to the {thing}, {C} gave to"
    answer: " {A}"
    wrong: " {B}"
  - clean: "The {thing} and {B}: {A} and {B} to"
    corrupted: "The {thing} and {B}: {A} and {C} to"
    answer: " {A}"
    wrong: [" {B}", " {C}"]
"""


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def ids(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def drawn(path: Path, count: int = 10, **asked: Any) -> Problem:
    return find_task(path).draw(worded(), count, Asked(**asked))


# Prompts one by one


def assert_is_lines(problem: Problem, lines: list[dict[str, Any]]) -> None:
    pairs = problem.pairs
    assert len(pairs) == len(lines)
    for i, line in enumerate(lines):
        own = ids(line["clean"])
        end = int(pairs.answers[i])
        assert pairs.clean[i, : end + 1].tolist() == own
        assert pairs.corrupted[i, : end + 1].tolist() == ids(line["corrupted"])
        wrong = [line["wrong"]] if isinstance(line["wrong"], str) else line["wrong"]
        labels = [ids(word) for word in (line["answer"], *wrong)]
        assert pairs.labels[i, : len(labels)].tolist() == [one for (one,) in labels]
        assert set(pairs.labels[i, len(labels) :].tolist()) <= set(labels[-1])
        start, stop = line["positions"]["country"]
        at = int(problem.named_positions["country"][i])
        assert tokenizer().decode(own[at]).strip() == line["clean"][start:stop]
        assert int(problem.named_positions["end"][i]) == end


def test_json_lines_are_put_into_tokens_with_their_positions(tmp_path: Path) -> None:
    problem = drawn(write(tmp_path / "mine.jsonl", LINES))
    assert_is_lines(problem, LINES)
    assert problem.task.positions == ("country", "end")
    assert problem.facts().task == "mine"
    assert problem.facts().prompts == 3
    groups = problem.pairs.groups
    assert groups is not None
    assert groups[0] == groups[2] != groups[1]


def test_csv_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    rows = ["clean,corrupted,answer,wrong,positions"]
    for line in LINES:
        wrong = line["wrong"] if isinstance(line["wrong"], str) else "|".join(line["wrong"])
        places = json.dumps(line["positions"]).replace('"', '""')
        fields = (line["clean"], line["corrupted"], line["answer"], wrong)
        rows.append(",".join([*fields, f'"{places}"']))
    path.write_text("\n".join(rows), encoding="utf-8-sig")  # as spreadsheets write it
    assert_is_lines(drawn(path), LINES)


def test_the_metric_is_the_answers_margin_or_the_answer_alone(tmp_path: Path) -> None:
    problem = drawn(write(tmp_path / "mine.jsonl", LINES))
    logits = torch.randn(3, worded().model.cfg.d_vocab)
    found = problem.pairs.metric(logits, problem.pairs.labels)
    for row, line in enumerate(LINES):
        wrong = [line["wrong"]] if isinstance(line["wrong"], str) else line["wrong"]
        one = logits[row].numpy()
        expected = one[ids(line["answer"])[0]] - max(one[ids(word)[0]] for word in wrong)
        assert found[row].item() == pytest.approx(expected, abs=1e-5)
    bare = [{name: line[name] for name in ("clean", "corrupted", "answer")} for line in LINES]
    alone = drawn(write(tmp_path / "bare.jsonl", bare))
    assert alone.pairs.labels.shape == (3, 1)
    found = alone.pairs.metric(logits, alone.pairs.labels)
    expected = np.log([
        np.exp(logits[i].double().numpy())[ids(line["answer"])[0]]
        / np.exp(logits[i].double().numpy()).sum()
        for i, line in enumerate(LINES)
    ])  # fmt: skip
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert "log" in alone.metric


def test_a_prompt_may_end_with_a_line(tmp_path: Path) -> None:
    line = {"clean": "Tom saw Mary.\n", "corrupted": "Tom saw Anna.\n", "answer": " Mary"}
    path = write(tmp_path / "lines.jsonl", [line])
    model = load_model("stories-small-values")
    pairs = find_task(path).draw(model, 1, Asked()).pairs
    assert model.model.to_string(pairs.clean[0]).endswith("Mary.\n")


def test_fewer_prompts_than_asked_for_are_all_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", LINES)
    assert len(drawn(path, 2).pairs) == 2
    some = drawn(path, 2, seed=5)
    assert len({tuple(row) for row in some.pairs.clean.tolist()}) == 2


def test_a_circuit_is_found_on_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", LINES)
    first, others = drawn(path), drawn(path)
    study = circuit_study(
        first.model, first.pairs, others.pairs, method="eap", edges=3, metrics=first.metrics
    )
    assert study.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": None}, "line 2: clean is missing"),
        ({"answer": ""}, "line 2, answer: expected text; got ''"),
        ({"clean": 3}, "line 2, clean: expected text; got 3"),
        ({"clean": "The city of "}, "line 2, clean: ends with a space"),
        ({"answers": " x"}, "line 2: unknown field 'answers'; expected clean, corrupted, answer"),
        ({"wrong": []}, "line 2, wrong: expected text or a list of texts; got []"),
        ({"positions": {"country": [3]}}, "line 2, positions: expected"),
        ({"positions": {"country": [3, 90]}}, "line 2: position 'country' is (3, 90); expected"),
        ({"positions": {}}, "line 2: position 'country' is missing; others have it"),
        ({"wrong": None}, "line 2: wrong is missing; other prompts have it"),
        (
            {"positions": {"country": [3, 9], "end": [3, 9]}},
            "line 2, positions: 'end' is the prompt",
        ),
        (
            {"corrupted": "In Philadelphia the capital is the city of"},
            r"line 2: clean has 9 tokens, corrupted \d+; they must be as long; 'Philadelphia' is "
            r"\d+ tokens \(' P' \+ ",
        ),
        ({"answer": " Philadelphia"}, r"line 2: answer ' Philadelphia' is \d+ tokens \(' P' \+ "),
        ({"answer": " Rome"}, "line 2: answer ' Rome' and a wrong one go on with the same token"),
    ],
)
def test_errors_name_the_line_and_the_field(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    line = {name: x for name, x in {**LINES[1], **change}.items() if x is not None}
    path = write(tmp_path / "mine.jsonl", [LINES[0], line])
    pattern = message if "\\" in message else re.escape(message)
    with pytest.raises(ValueError, match=rf"mine\.jsonl, {pattern}") as raised:
        drawn(path)
    assert "\n" not in str(raised.value)


def test_an_answer_without_its_space_is_pointed_out(tmp_path: Path) -> None:
    bare = {**LINES[1], "answer": "Warsaw", "wrong": "Paris"}
    path = write(tmp_path / "mine.jsonl", [LINES[0], bare])
    with pytest.warns(PromptWarning) as raised:
        drawn(path, several_tokens=True)
    (note,) = (str(each.message) for each in raised)
    assert note.endswith(
        "mine.jsonl, line 2: answer 'Warsaw' follows 'of' without a space (1 of 2 prompts); if it "
        "is a word of its own, write ' Warsaw'"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.jsonl", b"{\n", "line 1: not JSON"),
        ("mine.jsonl", b"[1]\n", "line 1: expected an object with clean, corrupted, answer"),
        ("mine.jsonl", b"\n", "holds no prompts"),
        ("mine.jsonl", "\n\nä".encode("latin-1"), "line 3: byte 0xe4 is not UTF-8"),
        ("mine.csv", b"clean,corrupted,answer\na,b\n", "line 2: expected 3 columns"),
        ("mine.csv", b"clean;corrupted;answer\na;b; c\n", "divided by ';'; expected commas"),
        ("mine.csv", b'clean,corrupted,answer\na,"b\n', "not CSV"),
        ("mine.csv", b"text,answer\na,b\n", "line 2: unknown field 'text'"),
        ("mine.txt", b"", "a task's file ends in .jsonl, .csv, .yaml or .yml"),
        ("mine.yaml", b"a: [", "line 1: not YAML"),
        ("mine.yaml", b"slots: {}", "expected slots and templates; got ['slots']"),
        ("mine.yaml", b"slots: {A: 3}\ntemplates: []", "slot A: expected a list of words"),
        ("mine.yaml", b"slots: {A: [yes]}\ntemplates: []", "slot A: expected a list of words"),
        ("mine.yaml", b"slots: {A: B}\ntemplates: []", "slot A: 'B' is not a slot above it"),
        ("mine.yaml", b"slots: {A: [a, b]}\ntemplates: []", "templates: expected a list; got []"),
        ("mine.yaml", b"slots: {end: [a, b]}\ntemplates: []", "slots: 'end' is the prompt's last"),
        ("mine.yaml", b"[" * 5_000, "not YAML (nested too deeply)"),
        ("mine.yaml", b"slots: {A: [2020-99-99]}", "not YAML (month must be in 1..12"),
        ("mine.yaml", b"slots: {A: [!!int '']}", "not YAML (string index out of range)"),
        ("mine.yaml", b"slots: {A: ['\x00']}", "not YAML (unacceptable character"),
        (
            "mine.yaml",
            b"slots:\n  A: [a]\n  A: [b]\n",
            "line 3: not YAML (the key 'A' is given twice)",
        ),
        (
            "mine.yaml",
            b"slots: {A: [a, b]}\ntemplates: [{clean: '{B}', corrupted: '{A}', answer: ' c'}]",
            "template 1: slot 'B' is not among A",
        ),
        (
            "mine.yaml",
            b"slots: {A: [a, b]}\ntemplates: [{clean: '{A.x}', corrupted: 'a', answer: ' c'}]",
            "template 1: a slot is {name}; got '{A.x}'",
        ),
        (
            "mine.yaml",
            b"slots: !!python/object/apply:os.getcwd []\ntemplates: []",
            "line 1: not YAML",
        ),
    ],
)
def test_what_is_no_task_is_one_line(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*{re.escape(message)}") as raised:
        find_task(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_only_a_new_line_ends_a_prompt(tmp_path: Path) -> None:
    texts = [f"The city{end}of" for end in ("\u2028", "\x85", "\x0b")]
    lines = [{"clean": text, "corrupted": "The road", "answer": " Rome"} for text in texts]
    path = tmp_path / "mine.jsonl"
    content = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_bytes(f"{content}\n\n{{".encode())
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 5: not JSON"):
        find_task(path)
    path.write_bytes(content.encode())
    task = find_task(path)
    assert isinstance(task, FileTask)
    assert [each.text for each in task.prompts] == texts


def splitting(how: str) -> Loaded:
    """A model whose tokenizer says in one of three ways where its tokens are."""
    own = copy.deepcopy(tokenizer())
    if how == "trimmed":
        own.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if how == "slow":
        own.__class__ = type("Slow", (PreTrainedTokenizerFast,), {"is_fast": False})
    model = tiny_model(n_ctx=96, d_vocab=worded().model.cfg.d_vocab, default_prepend_bos=False)
    model._use_tokenizer(own)
    return Loaded(how, model)


@pytest.mark.parametrize("how", ["with spaces", "trimmed", "slow"])
def test_a_position_begins_and_ends_with_tokens(how: str, tmp_path: Path) -> None:
    """Of every two characters, by the lengths of the tokens' texts."""
    loaded = splitting(how)
    assert loaded.model.tokenizer.is_fast is (how != "slow")
    clean = "The Philadelphia roadé of"
    lengths = [len(token) for token in tokenizer().tokenize(clean)]  # in bytes
    counted = [len(clean[:i].encode()) for i in range(len(clean) + 1)]
    ends = {counted.index(n): i for i, n in enumerate(np.cumsum(lengths)) if n in counted}
    spaces = {i for i, character in enumerate(clean) if character == " "}
    begins = {0, *ends} | {end + 1 for end in ends if end in spaces}
    line = {"clean": clean, "corrupted": clean, "answer": " Paris"}
    path = tmp_path / "mine.jsonl"
    for start, end in itertools.combinations(range(len(clean) + 1), 2):
        write(path, [{**line, "positions": {"here": [start, end]}}])
        if end in ends and (start in begins or how == "slow"):
            problem = find_task(path).draw(loaded, 1)
            assert int(problem.named_positions["here"]) == ends[end]
        elif clean[start:end] != " ":
            message = rf"line 1: position 'here', {clean[start:end]!r}, begins or ends within a tok"
            with pytest.raises(ValueError, match=message):
                find_task(path).draw(loaded, 1)


def test_a_task_that_is_neither_name_nor_file_is_told() -> None:
    with pytest.raises(ValueError, match=r"task must be one of ioi, icl, .*, or a file .*'nobody'"):
        pose("stories-small-values", 2, task="nobody")
    with pytest.raises(ValueError, match=r"nobody\.jsonl is missing; expected a task"):
        pose("stories-small-values", 2, task="nobody.jsonl")


def test_prompts_longer_than_the_context_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", LINES)
    short = tiny_model(n_ctx=6, d_vocab=worded().model.cfg.d_vocab, default_prepend_bos=False)
    short._use_tokenizer(tokenizer())
    with pytest.raises(ValueError, match=r"line 1: short has a context of 6 tokens; this prompt"):
        find_task(path).draw(Loaded("short", short), 3)


def test_answers_of_several_tokens_count_by_the_first_that_differs(tmp_path: Path) -> None:
    line = {
        "clean": "The city of",
        "corrupted": "The road of",
        "answer": " Paris Rome",
        "wrong": " Paris Madrid",
    }
    path = write(tmp_path / "mine.jsonl", [line])
    with pytest.raises(ValueError, match="an answer is one, unless --several-tokens"):
        drawn(path)
    problem = drawn(path, several_tokens=True)
    assert problem.pairs.clean[0].tolist() == ids("The city of Paris")
    assert problem.pairs.corrupted[0].tolist() == ids("The road of Paris")
    assert problem.pairs.labels.tolist() == [[*ids(" Rome"), *ids(" Madrid")]]
    write(path, [{**line, "wrong": " Paris"}])
    with pytest.raises(ValueError, match="no answer may be the beginning of another: ' "):
        drawn(path, several_tokens=True)


# Templates


def test_templates_are_filled_with_words_that_are_one_token(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(YAML)
    problem = drawn(path, 20)
    assert problem.left_out == ("Philadelphia",)
    assert problem.task.positions == ("A", "B", "thing", "B 2", "end")
    names = {"Mary", "Anna", "Tom", "Paul"}
    for i, prompt in enumerate(problem.prompts):
        words = {
            name: tokenizer().decode(problem.pairs.clean[i, at[i]]).strip()
            for name, at in problem.named_positions.items()
        }
        assert words["B"] == words["B 2"]
        assert {words["A"], words["B"]} < names
        assert words["A"] != words["B"]
        assert words["thing"] in ("song", "stone")
        answer, wrong = (tokenizer().decode(x) for x in problem.pairs.labels[i, :2])
        assert (answer, wrong) == (f" {words['A']}", f" {words['B']}")
        differing = problem.pairs.clean[i] != problem.pairs.corrupted[i]
        assert differing.nonzero().flatten().tolist() == [int(problem.named_positions["B 2"][i])]
        assert words["B"] in prompt.text
    again = drawn(path, 20)
    assert again.pairs.clean.equal(problem.pairs.clean)
    assert not drawn(path, 20, seed=1).pairs.clean.equal(problem.pairs.clean)


def test_more_prompts_than_templates_give_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(YAML)
    with pytest.raises(ValueError, match=r"1000 prompts are asked for; .* there are about 48"):
        drawn(path, 1000)


# Built in


def test_later_years_are_held_against_earlier_ones() -> None:
    problem = TASKS["greater-than"].draw(worded(), 8)
    tokens = years(tokenizer())
    assert len(tokens) == 100
    logits = torch.randn(8, worded().model.cfg.d_vocab)
    found = problem.pairs.metric(logits, problem.pairs.labels)
    for i, prompt in enumerate(problem.prompts):
        start = int(re.findall(r"1\d(\d\d)", prompt.text)[0])
        chances = np.exp(logits[i].double().numpy())
        chances /= chances.sum()
        after = sum(chances[ids(f" 17{year:02}")[-1]] for year in range(start + 1, 100))
        until = sum(chances[ids(f" 17{year:02}")[-1]] for year in range(start + 1))
        assert found[i].item() == pytest.approx(after - until, abs=1e-6)


def test_random_tokens_need_no_tokenizer() -> None:
    model = tiny_model(n_ctx=64, d_vocab=60)
    problem = TASKS["repeated-tokens"].draw(Loaded("bare", model), 5)
    clean, labels = problem.pairs.clean, problem.pairs.labels
    for row, (answer, wrong) in zip(clean.tolist(), labels.tolist(), strict=True):
        again = row[24:]
        assert row[: len(again)] == again
        assert row[len(again)] == answer
        assert wrong not in row
        assert len(set(row[:24])) == 24
    assert problem.example() is None
    assert problem.tokens() == [str(token) for token in clean[0].tolist()]


SENTENCES = [task.name for task in TASKS.values() if isinstance(task, TextTask)]


@given(seed=st.integers(1, 10_000), name=st.sampled_from(SENTENCES))
def test_what_is_drawn_is_what_the_task_says(seed: int, name: str) -> None:
    problem = TASKS[name].draw(worded(), 3, Asked(seed=seed))
    for i, prompt in enumerate(problem.prompts):
        end = int(problem.pairs.answers[i]) + 1
        assert tokenizer().decode(problem.pairs.clean[i, :end]) == prompt.text
        assert len(set(problem.pairs.labels[i].tolist())) == len({prompt.answer, *prompt.wrong})
        for place, (start, stop) in prompt.places.items():
            at = int(problem.named_positions[place][i])
            told = tokenizer().decode(problem.pairs.clean[i, at])
            assert prompt.text[start:stop].endswith(told.strip())


def test_two_sets_of_a_file_share_no_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", LINES)
    worded().model.save_pretrained(tmp_path / "model")
    first, others = pose_two(str(tmp_path / "model"), 10, task=path)
    assert (len(first.pairs), len(others.pairs)) == (1, 2)
    write(path, LINES[:1])
    with pytest.raises(ValueError, match="holds one prompt; two sets of prompts are needed"):
        pose_two(str(tmp_path / "model"), 10, task=path)


# Chat


CHATTY = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chatting(tmp_path: Path, template: str | None = CHATTY) -> Loaded:
    own = copy.deepcopy(tokenizer())
    own.chat_template = template
    model = tiny_model(n_ctx=96, d_vocab=worded().model.cfg.d_vocab, default_prepend_bos=False)
    model._use_tokenizer(own)
    model.save_pretrained(tmp_path / "chatty")
    return load_model(tmp_path / "chatty")


def test_prompts_are_messages_of_a_chat_where_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", LINES[:1])
    problem = find_task(path).draw(chatting(tmp_path), 1, Asked(chat=True, several_tokens=True))
    text = f"<user>{LINES[0]['clean']}</><assistant>"
    assert problem.pairs.clean[0].tolist() == ids(text)
    assert problem.lead is None
    at = int(problem.named_positions["country"][0])
    assert tokenizer().decode(problem.pairs.clean[0, at]) == " France"
    assert problem.pairs.labels[0].tolist() == [ids("Paris")[0], ids("Rome")[0]]


def test_what_no_chat_can_say_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", LINES[:1])
    with pytest.raises(ValueError, match="worded: its tokenizer has no chat template"):
        drawn(path, chat=True)
    with pytest.raises(ValueError, match="--chat: worded, on induction on random tokens, has no"):
        TASKS["repeated-tokens"].draw(worded(), 1, Asked(chat=True))
    shouting = chatting(tmp_path, "{{ messages[0].content | upper }}")
    with pytest.raises(ValueError, match=r"line 1: the chat template changes 'The capital of"):
        find_task(path).draw(shouting, 1, Asked(chat=True))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no\\nuser') }}", r"its chat template fails \(no\)$"),
        ("{% if", r"its chat template fails \(.*\)$"),
        ("{{ 1 + messages }}", r"its chat template fails \(unsupported operand.*\)$"),
        (
            f"{CHATTY} ",
            r"line 1: the last tokens of '.*<assistant> ' change when answer 'Paris' follows; the "
            r"chat template must end where a token does, and not with a space$",
        ),
    ],
)
def test_a_chat_template_that_fails_is_one_line(
    template: str, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "mine.jsonl", LINES[:1])
    loaded = chatting(tmp_path, template)
    with pytest.raises(ValueError, match=message) as raised:
        find_task(path).draw(loaded, 1, Asked(chat=True, several_tokens=True))
    assert "\n" not in str(raised.value)
