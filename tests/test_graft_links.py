"""What links of a graft are worth, against plain runs of changed weights; the study's sums."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from resval_lens import ResValTransformer
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.comparison.grafts import Grafts, grafts, rank, saved
from resval_lens.analyses.studies.graft_links import GraftLinks, cut_layers, task_circuit
from resval_lens.hooks import Link, cut_links
from resval_lens.hooks.answers import answer_logits
from resval_lens.hooks.prompts import PromptPairs, logit_difference
from resval_lens.training.graft import grafted, train_graft
from resval_lens.training.graft_run import GraftRun
from resval_lens.training.recorded import export_run, load_run, load_runs
from tests.lm_runs import Noise
from tests.test_grafts import LINK, base_model, graft_run

VARIANTS = {
    "link": LINK,
    "first": "v(source=first, mix=head, carried=0)",
    "next-head": "v(mix=next_head, carried=0)",
    "gain": "v(mix=head_gain)",
    "raw": "v(carry=raw, mix=head, carried=0)",
}


def both(streams: str, folder: Path, **changes: Any) -> tuple[ResValTransformer, ResValTransformer]:
    """A trained graft and the same as it began."""
    base = base_model()
    train_graft(graft_run(base, streams=streams, **changes), base, Noise(), Noise(), folder)
    recorded = load_run(folder, GraftRun)
    return grafted(recorded, base), grafted(recorded, base, trained=False)


def losses(model: ResValTransformer, rows: int) -> np.ndarray:
    tokens, targets = Noise().batch(np.arange(rows))
    with torch.no_grad():
        each = F.cross_entropy(model(tokens).transpose(1, 2), targets, reduction="none")
    return np.array((each.sum(1) / (targets >= 0).sum(1)).tolist())


@pytest.mark.parametrize("low_rank", [0, 2])
@pytest.mark.parametrize("streams", VARIANTS.values(), ids=VARIANTS)
def test_a_cut_is_the_whole_model_run_with_that_layer_as_it_began(
    streams: str, low_rank: int, tmp_path: Path
) -> None:
    model, start = both(streams, tmp_path, low_rank=low_rank)
    before = {name: x.clone() for name, x in model.named_parameters()}
    cuts = cut_layers(model, start, Noise(), 5, lambda text: None)
    assert [(cut.stream, cut.layer) for cut in cuts] == [("v", 1), ("v", 2), ("v", 3)]
    tokens, _ = Noise().batch(np.arange(5))
    for cut in cuts:
        changed = copy.deepcopy(model)
        moved = []
        for name, began in start.blocks[cut.layer].attn.mixes.named_parameters():
            parameter = changed.blocks[cut.layer].attn.mixes.get_parameter(name)
            moved += (parameter - began).flatten().tolist()
            parameter.data.copy_(began)
        expected = losses(changed, 5) - losses(model, 5)
        assert cut.costs == pytest.approx(expected.tolist(), abs=2e-6)
        assert cut.size == pytest.approx(np.abs(moved).mean())
        values = [each.run_with_cache(tokens)[1]["v", cut.layer] for each in (model, changed)]
        share = (values[0] - values[1]).norm(dim=-1) / values[0].norm(dim=-1)
        assert cut.brought == pytest.approx(float(share.mean()), rel=1e-5)
    assert max(abs(cut.cost) for cut in cuts) > 1e-3
    for name, x in model.named_parameters():
        assert torch.equal(x, before[name]), name


def test_cutting_a_layer_is_cutting_its_links(tmp_path: Path) -> None:
    model, start = both(LINK, tmp_path)
    for cut in cut_layers(model, start, Noise(), 3, lambda text: None):
        links = [Link("v", cut.layer, head) for head in range(2)]
        with cut_links(model, links):
            assert cut.costs == pytest.approx(
                (losses(model, 3) - whole(tmp_path)).tolist(), abs=2e-6
            )


def whole(folder: Path) -> np.ndarray:
    return losses(grafted(load_run(folder, GraftRun), base_model()), 3)


def pairs(seed: int, count: int = 6, length: int = 7) -> PromptPairs:
    generator = torch.Generator().manual_seed(seed)
    clean, corrupted = torch.randint(20, (2, count, length), generator=generator)
    labels = torch.randint(20, (count, 2), generator=generator)
    return PromptPairs(clean, corrupted, logit_difference, labels)


def test_a_circuit_after_stands_beside_the_one_before(tmp_path: Path) -> None:
    model, start = both(LINK, tmp_path, lr=0.3)
    scored, others = pairs(0), pairs(1)
    before = score_edges(start, scored)
    found = task_circuit(
        model, start, scored, others, task="noise", metric="difference", seed=0, sizes=(20, 60)
    )

    def mean(each: ResValTransformer) -> float:
        with torch.no_grad():
            return float(others.measure(answer_logits(each, others.clean, others.answers)).mean())

    assert found.metric_before == pytest.approx(mean(base_model()), abs=1e-5)
    assert found.metric_after == pytest.approx(mean(model), abs=1e-5)
    assert found.metric_cut == pytest.approx(found.metric_before, abs=1e-5)
    scores = score_edges(model, scored)
    sizes = {
        str(e): abs(s) for e, s in zip(scores.graph.edges, scores.values.tolist(), strict=True)
    }
    linked = [name for name in sizes if "<v>->" in name and not name.startswith("input")]
    links = {str(edge) for edge in scores.graph.edges if edge.is_link}
    assert links <= set(linked)
    assert found.links == len(links) == 3 * 2
    share = sum(sizes[name] for name in links) / sum(sizes.values())
    assert found.link_share == pytest.approx(share, rel=1e-5)
    for at in found.sizes:
        first = sorted(sizes, key=lambda name: -sizes[name])[: at.edges]
        earlier = sorted(before.graph.number, key=lambda name: -abs(before[name]))[: at.edges]
        assert at.links == sum(name in links for name in first)
        assert at.before == len(set(first) & set(earlier))
    assert found.strongest_links[0][0] == max(links, key=lambda name: sizes[name])
    assert all(before[name] == pytest.approx(0, abs=1e-6) for name in links)


# The study


def trained(folder: Path, names: dict[str, str], seeds: tuple[int, ...] = (0, 1)) -> Path:
    base = base_model()
    for name, streams in names.items():
        for seed in seeds:
            run = graft_run(base, streams=streams, seed=seed, held_out=12)
            run = GraftRun(**{**vars(run), "name": name})
            train_graft(run, base, Noise(), Noise(), folder / run.folder_name)
    return folder


def test_savings_are_paired_by_row_and_averaged_over_seeds(tmp_path: Path) -> None:
    runs = load_runs(GraftRun, trained(tmp_path, {"link": LINK, "gain": "v(mix=head_gain)"}))
    found = grafts(runs, "link")
    assert [each.name for each in found.variants] == ["link", "gain"]
    assert [each.parameters for each in found.variants] == [6, 6]
    drops = {
        (each.run.name, each.run.seed): np.array(each.metrics[0]["held_out_losses"])
        - np.array(each.metrics[-1]["held_out_losses"])
        for each in runs
    }
    link, gain = ((drops[name, 0] + drops[name, 1]) / 2 for name in ("link", "gain"))
    first, second = found.variants
    assert first.saving.value == pytest.approx(link.mean())
    assert first.ahead is None
    assert second.ahead is not None
    assert second.ahead.value == pytest.approx((gain - link).mean())
    expected = stats.bootstrap(
        (gain - link,), np.mean, n_resamples=20_000, rng=np.random.default_rng(5)
    ).confidence_interval
    spread = expected.high - expected.low
    assert second.ahead.low == pytest.approx(expected.low, abs=0.05 * spread)
    assert second.ahead.high == pytest.approx(expected.high, abs=0.05 * spread)
    assert second.by_seed == {seed: pytest.approx(drops["gain", seed].mean()) for seed in (0, 1)}
    again = Grafts.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found
    assert found.figures().keys() == {"graft-learned.png"}
    assert len(found.tables()) == 2
    assert "link saves" in found.sentences()[0]


def test_what_was_measured_is_read_beside_the_record(tmp_path: Path) -> None:
    folder = trained(tmp_path, {"link": LINK}, (0,)) / "link-seed0"
    model, start = (
        grafted(load_run(folder, GraftRun), base_model(), trained=each) for each in (True, False)
    )
    cuts = cut_layers(model, start, Noise(), 4, lambda text: None)
    measured = GraftLinks("link", 0, "", 4, 12, cuts, None)
    (folder / "links.json").write_text(json.dumps({**measured.to_dict(), "provenance": {}}))
    found = grafts(load_runs(GraftRun, tmp_path))
    (graft,) = found.grafts
    assert graft.links == measured
    costs, sizes, brought = (
        [getattr(cut, name) for cut in cuts] for name in ("cost", "size", "brought")
    )
    assert graft.size_rank is not None
    assert graft.brought_rank is not None
    assert graft.size_rank.value == pytest.approx(stats.spearmanr(sizes, costs).statistic)
    assert graft.brought_rank.value == pytest.approx(stats.spearmanr(brought, costs).statistic)
    assert found.figures().keys() == {"graft-learned.png", "graft-cuts.png"}
    assert len(found.tables()) == 4


def test_intervals_are_of_what_is_resampled() -> None:
    drawn = np.random.default_rng(0).normal(3, 1, 200)
    found = saved(drawn)
    half = 1.96 * drawn.std(ddof=1) / math.sqrt(200)
    assert found.value == pytest.approx(drawn.mean())
    assert (found.low, found.high) == pytest.approx(
        (drawn.mean() - half, drawn.mean() + half), abs=0.03
    )
    same = rank(drawn.tolist(), (drawn**3).tolist())
    assert (same.value, same.low, same.high) == (pytest.approx(1), -1, 1)  # nothing varies
    other = drawn + np.random.default_rng(1).normal(0, 1, 200)
    near = rank(drawn.tolist(), other.tolist())
    assert near.value == pytest.approx(stats.spearmanr(drawn, other).statistic)
    normal = np.tanh(np.arctanh(near.value) + np.array([-1.96, 1.96]) * 1.03 / math.sqrt(197))
    assert (near.low, near.high) == pytest.approx(tuple(normal), abs=0.03)  # Fisher's z


def test_what_cannot_be_held_against_one_another_is_refused(tmp_path: Path) -> None:
    base = base_model()
    for name, rows in (("one", 12), ("two", 10)):
        run = GraftRun(**{**vars(graft_run(base, held_out=rows)), "name": name})
        train_graft(run, base, Noise(), Noise(), tmp_path / run.folder_name)
    runs = load_runs(GraftRun, tmp_path)
    with pytest.raises(ValueError, match="differ in model, held-out text, steps or batch"):
        grafts(runs)
    with pytest.raises(ValueError, match="against must be one of one; got 'three'"):
        grafts(runs[:1], "three")
    with pytest.raises(ValueError, match="no graft has been trained to its end"):
        grafts([])


def test_runs_ship_with_what_was_measured_and_tell_the_same(tmp_path: Path) -> None:
    folder = trained(tmp_path / "runs", {"link": LINK}, (0,)) / "link-seed0"
    model, start = (
        grafted(load_run(folder, GraftRun), base_model(), trained=each) for each in (True, False)
    )
    cuts = cut_layers(model, start, Noise(), 4, lambda text: None)
    measured = GraftLinks("link", 0, "", 4, 12, cuts, None)
    (folder / "links.json").write_text(json.dumps(measured.to_dict()))
    runs = load_runs(GraftRun, tmp_path / "runs")
    shipped = export_run(runs[0], tmp_path / "shipped")
    assert {path.name for path in shipped.iterdir()} == {"run.json", "metrics.jsonl", "links.json"}
    first, again = (grafts(load_runs(GraftRun, tmp_path / each)) for each in ("runs", "shipped"))
    assert again.variants[0].saving.value == pytest.approx(first.variants[0].saving.value, abs=1e-6)
    assert again.grafts[0].links is not None
    assert again.grafts[0].links.cuts[0].costs == pytest.approx(cuts[0].costs, abs=1e-6)
