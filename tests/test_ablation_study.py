"""Editing links on a task: every number against plain hooks and loops."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.studies.ablation import AblationStudy, ablation_study, groups
from resval_lens.analyses.studies.ablations import ABLATIONS, LinkAblation
from resval_lens.analyses.studies.story_loss import story_loss, story_rows
from resval_lens.hooks import Link, links, mean_link_activations, scale
from resval_lens.hooks.ablate import Edit
from resval_lens.hooks.prompts import PromptPairs, logit_difference, margin, probability
from resval_lens.tasks import stories
from resval_lens.transformer import ResValTransformer
from tests.classifiers import model_of
from tests.classifiers import tokens as icl_tokens
from tests.helpers import tiny_model, tiny_tokens

MEASURES = {"logit difference": logit_difference, "P": probability}
LABELS = torch.tensor([[3, 5], [1, 2], [7, 4], [0, 6], [2, 9]])
PAIRS = PromptPairs(
    tiny_tokens(5, seed=1), tiny_tokens(5, seed=2), logit_difference, LABELS,
    torch.tensor([6, 4, 5, 6, 3]), groups=torch.tensor([60, 40, 50, 60, 30]),
)  # fmt: skip
OTHERS = PromptPairs(
    tiny_tokens(4, seed=3), tiny_tokens(4, seed=4), logit_difference, LABELS[:4],
    torch.tensor([4, 3, 5, 5]), groups=torch.tensor([40, 30, 50, 50]),
)  # fmt: skip
ALIKE = {1: [0], 2: [2, 3], 4: [1]}
"""The others of each prompt's group; prompts 0 and 3 have none."""


def by_hand(
    model: ResValTransformer,
    edits: dict[str, Callable[[Tensor], None]],
    pairs: PromptPairs = PAIRS,
    rows: Collection[int] = range(5),
) -> dict[str, float]:
    """Mean measures with functions that write into each named hook point's activation."""

    def edited(activation: Tensor, hook: HookPoint) -> Tensor:
        copy = activation.clone()
        edits[str(hook.name)](copy)
        return copy

    logits = model.run_with_hooks(pairs.clean, fwd_hooks=[(name, edited) for name in edits])
    logits = logits.detach().double()
    differences, shares = [], []
    for row, (last, (first, second)) in enumerate(
        zip(pairs.answers.tolist(), pairs.labels.tolist(), strict=True)
    ):
        if row not in rows:
            continue
        answer = logits[row, last].numpy()
        differences.append(answer[first] - answer[second])
        shares.append(np.exp(answer[first]) / np.exp(answer).sum())
    return {"logit difference": float(np.mean(differences)), "P": float(np.mean(shares))}


def hook_of(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_v_link"


def means_by_hand(model: ResValTransformer, layer: int) -> Tensor:
    """A link's mean at each position, over the others of each prompt's group."""
    link = model.run_with_cache(OTHERS.clean)[1][hook_of(layer)].detach()
    means = torch.zeros(5, *link.shape[1:])
    for row, others in ALIKE.items():
        means[row] = torch.stack([link[other] for other in others]).mean(0)
    return means


@pytest.fixture(scope="module")
def model() -> ResValTransformer:
    return tiny_model("v")


@pytest.fixture(scope="module")
def study(model: ResValTransformer) -> AblationStudy:
    return ablation_study(model, PAIRS, OTHERS, MEASURES, scales=(-1.5, 1), max_tokens=14)


def row_of(study: AblationStudy, name: str, edit: str) -> Mapping[str, float]:
    (row,) = [row for row in study.rows if (row.links, row.edit) == (name, edit)]
    return row.measures


WHERE = {"all": {1: range(4), 2: range(4)}, "v2": {2: range(4)}, "v1.h3": {1: [3]}}


def test_measures_see_no_narrower_logits_than_float32() -> None:
    model = tiny_model("v", dtype=torch.bfloat16)
    found = ablation_study(model, PAIRS, OTHERS, {"P": probability}, edits=["zero"])
    with torch.no_grad():
        last = model.ln_final(model(PAIRS.clean, stop_at_layer=model.cfg.n_layers))
        answers = last[torch.arange(5), PAIRS.answers].double()
        logits = answers @ model.W_U.double() + model.b_U.double()
    wanted = logits.softmax(1)[torch.arange(5), LABELS[:, 0]].mean().item()
    assert found.clean["P"] == pytest.approx(wanted, rel=1e-5)  # bfloat16 has 4e-3


def test_a_mask_says_that_what_looks_like_padding_is_none() -> None:
    model = tiny_model("v")
    tokens, labels = tiny_tokens(3, seed=1), LABELS[:3]
    tokens[0, :2] = 0
    mask, groups = torch.ones_like(tokens), torch.zeros(3, dtype=torch.long)
    pairs = PromptPairs(tokens, tokens, logit_difference, labels, mask=mask, groups=groups)
    expected = ablation_study(model, pairs, pairs, MEASURES)
    model.tokenizer = SimpleNamespace(padding_side="left", pad_token_id=0)
    assert ablation_study(model, pairs, pairs, MEASURES) == expected


@pytest.mark.parametrize("edit", [*ABLATIONS, "scale -1.5"])
@pytest.mark.parametrize("name", list(WHERE))
def test_each_edit_is_plain_hooks_by_hand(
    model: ResValTransformer, study: AblationStudy, name: str, edit: str
) -> None:
    _, corrupted = model.run_with_cache(PAIRS.corrupted)
    edits = {}
    for layer, heads in WHERE[name].items():
        link, average = corrupted[hook_of(layer)], means_by_hand(model, layer)
        new = {
            "zero": torch.zeros_like,
            "mean": average.expand_as,
            "resample": lambda x, link=link: link,
            "scale -1.5": lambda x: -1.5 * x,
        }[edit]

        def write(x: Tensor, new: Any = new, heads: Any = tuple(heads)) -> None:
            replacement = new(x)
            for head in heads:
                x[:, :, head] = replacement[:, :, head]

        edits[hook_of(layer)] = write
    rows = ALIKE if edit == "mean" else range(5)
    expected = by_hand(model, edits, rows=rows)
    assert row_of(study, name, edit) == pytest.approx(expected, abs=1e-5)
    assert study.mean_prompts == 3


class Opposite(LinkAblation):
    name = "opposite"
    meaning = "carries −1.5 times what it would"

    def __init__(self, of_others: bool) -> None:
        self.of_others = of_others  # type: ignore[misc]
        self.given: list[Tensor] = []

    def edit(self, model: Any, chosen: Any, pairs: PromptPairs, max_tokens: int) -> Edit:
        self.given.append(pairs.clean)
        return scale(-1.5)


@pytest.mark.parametrize("of_others", [False, True])
def test_an_ablation_of_ones_own_is_one_entry(
    model: ResValTransformer, of_others: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Opposite(of_others)
    monkeypatch.setitem(ABLATIONS, "opposite", own)
    found = ablation_study(model, PAIRS, OTHERS, MEASURES, layers=1)
    assert found.edited == ["zero", "mean", "resample", "opposite"]
    rows = list(ALIKE) if of_others else list(range(5))
    expected = by_hand(model, {hook_of(1): lambda x: x.mul_(-1.5)}, rows=rows)
    assert row_of(found, "v1", "opposite") == pytest.approx(expected, abs=1e-5)
    assert sum(map(len, own.given)) == (4 if of_others else 5)


@pytest.mark.parametrize("what", ["clean", "all", "v1", "v2.h1", "own v1", "own v2"])
def test_loss_on_stories_is_that_of_plain_hooks(what: str) -> None:
    model = ResValTransformer.from_pretrained("stories-small-values")
    text = story_rows(model, 2)
    named = groups(model, links(model))
    found = story_loss(model, text, named)
    kind, _, name = what.rpartition(" ")
    hooks: list[Any] = []
    for layer in (1, 2, 3):
        if kind and name == f"v{layer}":
            hooks.append((f"blocks.{layer}.attn.hook_v_local", lambda x, hook: x * 0))
        elif name == "all" or (not kind and name.startswith(f"v{layer}")):
            heads = [int(name.split(".h")[1])] if ".h" in name else [0, 1, 2, 3]

            def cut(x: Tensor, hook: HookPoint, heads: list[int] = heads) -> Tensor:
                return x * torch.tensor([0.0 if i in heads else 1.0 for i in range(4)])[:, None]

            hooks.append((f"blocks.{layer}.attn.hook_v_link", cut))
    with torch.no_grad():
        logits = model.run_with_hooks(text, fwd_hooks=hooks, padding_side="right")
    p = logits[:, :-1].log_softmax(-1)
    expected = -p.gather(2, text[:, 1:, None]).mean().item()
    loss = found.clean if what == "clean" else (found.own_cut if kind else found.cut)[name]
    assert loss == pytest.approx(expected, abs=1e-4)


def test_stories_are_those_that_training_is_validated_on() -> None:
    model = ResValTransformer.from_pretrained("stories-small-values")
    tokenizer: Any = model.tokenizer
    rows = story_rows(model, 3)
    assert rows.shape == (3, 128)
    first = next(stories.stories(seed=1))
    assert tokenizer.decode(rows[0].tolist()[1:]).startswith(first[:60])
    assert rows[0, 0] == tokenizer.eos_token_id
    with pytest.raises(ValueError, match="rows must be 1 or more; got 0"):
        story_rows(model, 0)
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        story_rows(tiny_model("v"))


def test_hooks_on_the_model_stay_and_count_once(model: ResValTransformer) -> None:
    """Also where a layer's input is what they change, from which an edited run could go on."""
    name = "blocks.1.hook_resid_pre"

    def triple(x: Tensor, hook: HookPoint) -> Tensor:
        return 3 * x

    edits = ["zero", "scale 0.5"]
    with model.hooks(fwd_hooks=[(name, triple)]):
        found = ablation_study(model, PAIRS, OTHERS, MEASURES, edits=["zero"], scales=[0.5])
        expected = {
            edit: by_hand(model, {hook_of(1): lambda x, c=c: x.mul_(c)})
            for edit, c in zip(edits, (0.0, 0.5), strict=True)
        }
    for edit in edits:
        assert row_of(found, "v1", edit) == pytest.approx(expected[edit], abs=1e-5)
    assert model.run_with_cache(PAIRS.clean)[1][name].shape[0] == 5


def test_no_edit_is_run_twice(model: ResValTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor of 0 is a cut and one of 1 no edit; layers before the edited one are run once."""
    runs: list[int] = []
    run_blocks = ResValTransformer.run_blocks

    def counted(self: ResValTransformer, x: Tensor, start: int | None, *rest: Any, **more: Any):
        runs.append(start or 0)
        return run_blocks(self, x, start, *rest, **more)

    monkeypatch.setattr(ResValTransformer, "run_blocks", counted)
    found = ablation_study(model, PAIRS, OTHERS, MEASURES, edits=["zero"], scales=(0, 1, 2))
    kept = [0, 0, 1, 2]  # clean: embedded, then layer by layer
    assert sorted(runs) == sorted([*kept, 0, *[1] * 2 * 6, *[2] * 2 * 5])  # corrupted; zero and 2
    for name in groups(model, links(model)):
        assert row_of(found, name, "scale 0") == row_of(found, name, "zero")
        assert row_of(found, name, "scale 1") == found.clean


def test_clean_and_corrupted_are_the_unedited_runs(
    model: ResValTransformer, study: AblationStudy
) -> None:
    assert study.clean == pytest.approx(by_hand(model, {}), abs=1e-5)
    assert study.corrupted == pytest.approx(by_hand(model, {}, PAIRS.flipped()), abs=1e-5)
    assert row_of(study, "all", "scale 1") == pytest.approx(study.clean, abs=1e-6)


def test_every_group_has_every_edit_and_the_study_is_json(study: AblationStudy) -> None:
    assert json.loads(json.dumps(study.to_dict())) == study.to_dict()
    names = ["all", "v1", "v2", *(f"v{layer}.h{head}" for layer in (1, 2) for head in range(4))]
    edits = [*ABLATIONS, "scale -1.5", "scale 1"]
    assert [(r.links, r.edit) for r in study.rows] == [(n, e) for n in names for e in edits]
    assert [row.n_links for row in study.rows[::5]] == [8, 4, 4, *[1] * 8]
    assert (study.prompts, study.others, study.links) == (5, 4, 8)
    assert study.edits == {name: each.meaning for name, each in ABLATIONS.items()}


def test_parts_of_prompts_make_no_difference(
    model: ResValTransformer, study: AblationStudy
) -> None:
    at_once = ablation_study(model, PAIRS, OTHERS, MEASURES, scales=(-1.5, 1))
    for one, other in zip(at_once.rows, study.rows, strict=True):
        assert one.measures == pytest.approx(other.measures, abs=1e-5)


def test_only_the_edits_and_links_that_are_asked_for(model: ResValTransformer) -> None:
    notes: list[str] = []
    found = ablation_study(
        model, PAIRS, OTHERS, MEASURES, edits=["resample"], layers=-1, heads=[0, 2],
        note=notes.append,
    )  # fmt: skip
    assert [row.links for row in found.rows] == ["chosen", "v2.h0", "v2.h2"]
    assert {row.edit for row in found.rows} == {"resample"}
    assert notes == ["links: resample"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, ["all", "q1", "q2", "v1", "v2"]),
        ({"of": "v"}, ["chosen", "v1", "v2"]),
        ({"of": "v", "layers": 1}, ["v1"]),
        ({"heads": 1, "of": "q", "layers": 2}, []),
    ],
    ids=["all", "v", "v1", "one"],
)
def test_groups_are_all_layers_and_each(selection: Any, expected: list[str]) -> None:
    model = tiny_model("qv")
    chosen = links(model, **selection)
    found = groups(model, chosen)
    assert list(found) == [*expected, *map(str, chosen)]
    for name in expected[1:]:
        assert found[name] == [Link(name[0], int(name[1]), head) for head in range(4)]


def test_a_single_link_is_one_group_in_a_classifier() -> None:
    model = model_of("v")
    x, others = icl_tokens(4), icl_tokens(4, seed=1)
    labels = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    pairs = PromptPairs(x, others, margin, labels)
    found = ablation_study(model, pairs, pairs.flipped(), {"margin": margin}, edits=["mean"])
    means = mean_link_activations(model, pairs.corrupted, links(model), pairs.answers)
    expected = model.run_with_cache(others)[1][hook_of(1)].mean(0, keepdim=True)
    torch.testing.assert_close(means[hook_of(1)], expected)
    logits = model.run_with_hooks(
        x, fwd_hooks=[(hook_of(1), lambda v, hook: expected.expand_as(v))]
    )
    by_loop = [logits[i, a] - logits[i, b] for i, (a, b) in enumerate(labels.tolist())]
    (row,) = found.rows
    assert row.links == "v1.h0"
    assert row.measures["margin"] == pytest.approx(torch.stack(by_loop).mean().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edits": ["zeros"]}, "edits must be among zero, mean, resample; got 'zeros'"),
        ({"edits": []}, "there is no edit; name one of"),
        ({"scales": [float("inf")]}, "factor must be a finite number; got inf"),
        ({"layers": 0}, "layer 0 receives no v"),
    ],
    ids=["unknown", "none", "infinite", "layer"],
)
def test_bad_input_is_refused(model: ResValTransformer, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ablation_study(model, PAIRS, OTHERS, MEASURES, **options)


def test_other_prompts_must_be_as_long_and_links_there(model: ResValTransformer) -> None:
    shorter = PromptPairs(tiny_tokens(3, 6), tiny_tokens(3, 6), logit_difference, LABELS[:3])
    with pytest.raises(ValueError, match="a mean over prompts needs to know"):
        ablation_study(model, PAIRS, shorter, MEASURES)
    with pytest.raises(ValueError, match="this model has no links"):
        ablation_study(tiny_model(), PAIRS, OTHERS, MEASURES)


def test_means_of_prompts_that_are_not_alike_are_refused(model: ResValTransformer) -> None:
    """Of no common group; of unequal length where no groups are known; the other edits go on."""
    others = replace(OTHERS, groups=OTHERS.groups + 1)
    with pytest.raises(ValueError, match="mean: none of the 4 other prompts is of a group"):
        ablation_study(model, PAIRS, others, MEASURES)
    pairs = replace(PAIRS, groups=None)
    with pytest.raises(ValueError, match="prompts 0 and 1 are of one group, and answer at"):
        ablation_study(model, pairs, replace(OTHERS, groups=None), MEASURES)
    shorter = replace(OTHERS.rows([0, 0]), groups=torch.tensor([60, 60]))
    with pytest.raises(ValueError, match=r"prompts of one group have 5 tokens .* and 7 here"):
        ablation_study(model, PAIRS, shorter, MEASURES)
    assert ablation_study(model, pairs, OTHERS, MEASURES, edits=["zero"]).mean_prompts == 0
