"""What moves the answer of a task, against plain hooks on what heads and MLPs write and read."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch

from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.results.intervals import Interval
from resval_lens.analyses.studies import movers
from resval_lens.analyses.studies.knockouts import (
    Effect,
    Others,
    edges_between,
    is_head,
    layer_of,
)
from resval_lens.analyses.studies.movers import LEVELS, ROLES, MoverStudy, mover_study
from resval_lens.analyses.tasks.problem import Problem, pose_two
from resval_lens.analyses.tasks.task import Asked
from resval_lens.streams import AttentionStream
from tests.helpers import tiny_config

PROMPTS = 6


@pytest.fixture(scope="module")
def posed() -> tuple[Problem, Problem]:
    return pose_two("stories-small-classic", PROMPTS, Asked(corruption="ABC"), "ioi")


@pytest.fixture(scope="module")
def study(posed: tuple[Problem, Problem]) -> MoverStudy:
    return mover_study(*posed, share=0.05, draws=2)


class Hooked:
    """A problem's metrics with edges corrupted, or nodes knocked out, by plain hooks."""

    def __init__(self, problem: Problem, mean: bool = False) -> None:
        self.problem, self.model, pairs = problem, problem.model, problem.pairs
        _, cache = self.model.run_with_cache(pairs.corrupted)
        same = (pairs.groups[:, None] == pairs.groups[None]).float()
        weights = same / same.sum(1, keepdim=True) if mean else torch.eye(len(pairs))
        self.corrupted = {
            node: torch.einsum("ab,bpd->apd", weights, self.wrote(node, cache))
            for node in Graph.of(self.model).writers[1:]
        }

    def wrote(self, node: str, activations: dict[str, torch.Tensor]) -> torch.Tensor:
        layer = layer_of(node)
        if not is_head(node):
            return activations[f"blocks.{layer}.hook_mlp_out"]
        head = int(node.split(".h")[1])
        z = activations[f"blocks.{layer}.attn.hook_z"][:, :, head]
        return z @ self.model.blocks[layer].attn.W_O[head]

    @torch.no_grad()
    def metrics(
        self, senders: Iterable[str], receivers: Iterable[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """With what ``senders`` write corrupted for the receivers; for all, if there are none."""
        model, pairs, seen = self.model, self.problem.pairs, {}
        n_layers, senders = model.cfg.n_layers, list(senders)

        def difference(before: float) -> torch.Tensor:
            """Of what senders wrote so far: corrupted less now. MLPs write at layer + ½."""
            found = torch.zeros(*pairs.clean.shape, model.cfg.d_model)
            for node in senders:
                if layer_of(node) + 0.5 * (not is_head(node)) < before:
                    found += self.corrupted[node] - self.wrote(node, seen)
            return found

        def see(value: torch.Tensor, hook: object) -> None:
            seen[hook.name] = value  # type: ignore[attr-defined]

        def read(value: torch.Tensor, hook: object) -> torch.Tensor:
            name = hook.name  # type: ignore[attr-defined]
            layer = int(re.findall(r"\d+", name)[0])
            if name.endswith("hook_mlp_in"):
                inside = receivers is None or f"m{layer}" in receivers
                return value + inside * difference(layer + 0.5)
            if name.endswith("resid_post"):
                inside = receivers is None or "logits" in receivers
                return value + inside * difference(n_layers)
            edited = value.clone()
            for head in range(model.cfg.n_heads):
                if receivers is None or f"a{layer}.h{head}" in receivers:
                    edited[:, :, head] += difference(layer)
            return edited

        hooks = [(f"blocks.{n_layers - 1}.hook_resid_post", read)]
        for layer in range(n_layers):
            hooks += [(f"blocks.{layer}.hook_{port}_input", read) for port in "qkv"]
            hooks += [(f"blocks.{layer}.hook_mlp_in", read)]
            hooks += [(f"blocks.{layer}.{end}", see) for end in ("attn.hook_z", "hook_mlp_out")]
        model.set_use_split_qkv_input(True)
        model.set_use_hook_mlp_in(True)
        try:
            logits = model.run_with_hooks(pairs.clean, fwd_hooks=hooks)
        finally:
            model.set_use_split_qkv_input(False)
            model.set_use_hook_mlp_in(False)
        answered = logits[torch.arange(len(pairs)), pairs.answers]
        return {
            name: replace(pairs, metric=metric).measure(answered)
            for name, metric in self.problem.metrics.items()
        }


def test_a_level_is_what_corrupting_its_edges_by_plain_hooks_finds(
    posed: tuple[Problem, Problem], study: MoverStudy
) -> None:
    scored, _ = posed
    hooked, metric = Hooked(scored), scored.metric
    nodes = Graph.of(scored.model).writers[1:]
    clean = hooked.metrics([])[metric].mean()
    gap = clean - hooked.metrics(nodes)[metric].mean()
    receivers: set[str] = {"logits"}
    for level in LEVELS:
        changes = {
            node: float((hooked.metrics([node], receivers)[metric].mean() - clean) / gap)
            for node in nodes
        }
        found = {
            each.node: each.effect
            for kind in ("head", "MLP")
            for each in study.movers[f"{kind} {level}"]
        }
        assert found.keys() == {node for node, share in changes.items() if share <= -0.05}
        assert found == pytest.approx({node: changes[node] for node in found}, abs=1e-3)
        if level == LEVELS[0]:
            against = [each for kind in ("head", "MLP") for each in study.movers[f"{kind} against"]]
            assert {each.node for each in against} == {n for n, x in changes.items() if x >= 0.05}
        receivers = set(found)
    for role in ROLES:
        strengths = [abs(each.effect) for each in study.movers[role]]
        assert strengths == sorted(strengths, reverse=True)
        assert all(is_head(each.node) == role.startswith("head") for each in study.movers[role])


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_roles_and_edges_are_worth_what_plain_hooks_say(
    posed: tuple[Problem, Problem], study: MoverStudy, ablation: str
) -> None:
    _, others = posed
    hooked, found = Hooked(others, ablation == "mean"), study.knockouts[ablation]
    nodes = set(Graph.of(others.model).writers[1:])
    clean = hooked.metrics([])
    inside = {node for role in found.roles for node in role.heads}
    for role in found.roles:
        out = hooked.metrics(role.heads)
        both = hooked.metrics(nodes - inside | set(role.heads))
        for name, effect in role.effects.items():
            change = float((out[name] - clean[name]).mean())
            assert effect.change.value == pytest.approx(change, abs=5e-4)
            assert role.incomplete[name] == pytest.approx(
                abs(float(both[name].mean() - out[name].mean())), abs=5e-4
            )
            assert len(effect.drawn) == 2
    circuit = hooked.metrics(nodes - inside)
    for name, kept in found.circuit.items():
        assert kept.circuit == pytest.approx(float(circuit[name].mean()), abs=5e-4)
    assert found.edges is not None
    assert found.edges[0].receivers == ("logits",)
    for path, after in zip(found.edges[1:], found.edges, strict=False):
        assert path.receivers == after.senders
    for path in found.edges:
        sent = hooked.metrics(path.senders, path.receivers)
        for name, effect in path.effects.items():
            change = float((sent[name] - clean[name]).mean())
            assert effect.change.value == pytest.approx(change, abs=5e-4)


def test_attention_is_to_what_corrupted_prompts_change(
    posed: tuple[Problem, Problem], study: MoverStudy
) -> None:
    scored, _ = posed
    pairs, even = scored.pairs, []
    _, cache = scored.model.run_with_cache(pairs.clean)
    heads = {each.node: each.attends for role in ROLES for each in study.movers[role]}
    assert any(is_head(node) for node in heads)
    for node, attends in heads.items():
        if not is_head(node):
            assert attends is None
            continue
        layer, head = map(int, node[1:].split(".h"))
        weights = []
        for row in range(len(pairs)):
            end = int(pairs.answers[row])
            changed = (pairs.clean[row] != pairs.corrupted[row]).nonzero()[:, 0].tolist()
            weights.append(sum(float(cache["pattern", layer][row, head, end, k]) for k in changed))
            even.append(len(changed) / (end + 1))
        assert attends == pytest.approx(sum(weights) / len(weights), abs=1e-5)
    assert study.levels.even == pytest.approx(sum(even) / len(even))


def test_few_senders_are_those_of_the_largest_scores(
    posed: tuple[Problem, Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    effects = movers._effects

    def counted(runs: object, several: list[list[int]]) -> torch.Tensor:
        tried.append(len(several))
        return effects(runs, several)  # type: ignore[arg-type]

    monkeypatch.setattr(movers, "_effects", counted)
    levels, found = movers._movers(posed[0], 0.05, 3, lambda text: None)
    assert tried == [3, 3, 3]
    assert levels.tried["into logits"] == (3, len(Graph.of(posed[0].model).writers) - 1)
    assert found["MLP into logits"]


def test_edges_between_nodes_are_those_of_their_names() -> None:
    stream = AttentionStream("v")
    graph = Graph(tiny_config(streams=(stream,), n_heads=4, n_key_value_heads=2))
    found = {str(graph.edges[n]) for n in edges_between(graph, ["a0.h1", "m0"], ["a1.h0", "m1"])}
    assert found == {
        *(f"{sender}->a1.h0<{port}>" for sender in ("a0.h1", "m0") for port in "qkv"),
        "a0.h1->m1", "m0->m1",
    }  # fmt: skip
    group = edges_between(graph, ["a0.h0", "a0.h1"], ["a1.h1"])
    assert "a0.h0<v>->a1.h0<v>" in {str(graph.edges[n]) for n in group}


def test_others_are_of_the_same_kind_and_near() -> None:
    among = [f"a{i}.h{h}" for i in range(3) for h in range(2)] + ["m0", "m1", "m2"]
    others = Others(among, ["a1.h0", "m1"], torch.Generator().manual_seed(0))
    for _ in range(20):
        first, second, third = others.draw(["a1.h0", "a1.h0", "m1"])
        assert first == "a1.h1"
        assert second in {"a0.h0", "a0.h1", "a2.h0", "a2.h1"}
        assert third in {"m0", "m2"}
    assert len(others.draw(["m1"] * 5)) == 2


def test_an_effect_lowers_below_zero_and_below_every_draw() -> None:
    assert Effect(Interval(-1, -2, -0.5), (0.0, -0.9)).lowers
    assert not Effect(Interval(-1, -2, 0.5), (0.0, -0.9)).lowers
    assert not Effect(Interval(-1, -2, -0.5), (0.0, -1.1)).lowers


def test_the_document_says_all_of_it(study: MoverStudy) -> None:
    again = MoverStudy.from_dict(json.loads(json.dumps(study.to_dict())))
    assert again == study
    ability, there, *needed = study.sentences()
    assert "accuracy 1.000" in ability
    for role in ROLES:
        count = len(study.movers[role])
        assert (f"{role} ({count})" in there) == bool(count)
    assert len(needed) == len(study.knockouts["mean"].circuit)
    assert len(study.csv()) == 5


def test_what_cannot_be_studied_is_refused(posed: tuple[Problem, Problem]) -> None:
    scored, held_out = posed
    for name, value in (("share", 1.0), ("tried", 0), ("draws", 0)):
        with pytest.raises(ValueError, match=f"{name} must .* got {value}"):
            mover_study(scored, held_out, **{name: value})
    pairs = scored.pairs
    turned = replace(pairs, clean=pairs.corrupted, corrupted=pairs.clean)
    with pytest.raises(ValueError, match="this model does not do the task"):
        mover_study(replace(scored, pairs=turned), held_out)
    with pytest.raises(ValueError, match=r"no node changes the .* by 0.999 of its gap"):
        mover_study(scored, held_out, share=0.999, tried=1)
