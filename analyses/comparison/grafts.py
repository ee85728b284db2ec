"""Grafts on one model, from their records: what they save for as many numbers, and what links do.

Every variant learns on the same text; losses are of the same held-out rows before and after, so
savings are paired by row. What cutting layers costs, and tasks' circuits, stand in a run's
``links.json`` where they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
from jaxtyping import Float

from resval_lens.analyses.results.intervals import RESAMPLES, Interval, bootstrap, mean_interval
from resval_lens.analyses.results.result import OPTIONAL, Result
from resval_lens.analyses.results.seeds import TTests, corrected, spread, t_tests
from resval_lens.analyses.results.tables import NARROW, in_sections, optional, table
from resval_lens.analyses.studies.graft_links import GraftLinks, TaskCircuit
from resval_lens.io.files import read_json
from resval_lens.streams import shorthand
from resval_lens.training.graft_run import LEARNED, LINKS, LOSSES, PARAMETERS, GraftRun
from resval_lens.training.recorded import RecordedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

MEASURED = "what was measured of a graft's links"


def saved(values: Sequence[float] | Float[np.ndarray, " row"]) -> Interval:
    """The mean over rows, which are resampled."""
    return mean_interval(np.asarray(values), resamples=RESAMPLES)


def rank(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Spearman's rank correlation, with pairs resampled; without an interval from −1 to 1."""
    x, y = np.asarray(first), np.asarray(second)
    ends = bootstrap(_spearman, x, y, paired=True) if min(np.ptp(x), np.ptp(y)) else None
    low, high = (ends.low, ends.high) if ends else (None, None)
    value = float(_spearman(x, y))
    return Interval(value, -1.0 if low is None else low, 1.0 if high is None else high)


def _spearman(
    x: Float[np.ndarray, "*batch pair"], y: Float[np.ndarray, "*batch pair"], axis: int = -1
) -> Float[np.ndarray, "*batch"]:
    ranks = [scipy.stats.rankdata(each, axis=axis) for each in (x, y)]
    u, v = (each - each.mean(axis, keepdims=True) for each in ranks)
    return np.asarray((u * v).sum(axis) / np.sqrt((u**2).sum(axis) * (v**2).sum(axis)))


@dataclass(frozen=True)
class Graft:
    """One run.

    Attributes:
        parameters: how many numbers it learned.
        before, after: mean losses on held-out text (nats a token).
        saving: their difference, over rows.
        learned: what streams learned, by parameter.
        size_rank, brought_rank: over layers, rank correlation of what cutting one costs with the
            size of its numbers, and with that of what they bring; None where none was cut.
        links: what else was measured of its links.
    """

    name: str
    streams: str
    low_rank: int
    seed: int
    parameters: int
    before: float
    after: float
    saving: Interval
    learned: Mapping[str, Any]
    size_rank: Interval | None
    brought_rank: Interval | None
    links: GraftLinks | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Variant:
    """One variant over seeds.

    Attributes:
        saving: of rows, each averaged over seeds.
        by_seed: mean saving of each seed.
        ahead: how much more it saves than the first variant, of rows averaged over shared seeds;
            None of itself.
        tests: of the savings by seed against the first variant's, corrected for all variants.
    """

    name: str
    streams: str
    parameters: int
    saving: Interval
    by_seed: Mapping[int, float]
    ahead: Interval | None
    tests: TTests


@dataclass(frozen=True)
class Grafts(Result):
    """Grafts on ``model``; ``rows`` of ``length`` tokens were held out."""

    model: str
    rows: int
    length: int
    steps: int
    step_tokens: int
    variants: tuple[Variant, ...]
    grafts: tuple[Graft, ...]

    def tables(self) -> list[Table]:
        """Savings; what was learned by layer; cuts; the task's circuit."""
        first = self.variants[0].name
        losses = table(
            f"Grafts on {self.model}: loss on {self.rows} × {self.length} held-out tokens",
            ("graft",),
            ("numbers", "seeds", "before", "after", "saving", f"more than {first}", "p"),
            (
                (
                    each.name, f"{each.parameters:,}", str(len(own)),
                    f"{np.mean([g.before for g in own]):.4f}",
                    spread({g.seed: g.after for g in own}).told(".4f"),
                    each.saving.told(".4f"),
                    "" if each.ahead is None else each.ahead.told("z.4f"),
                    optional(each.tests.p_paired_holm, ".3f"),
                )
                for each in self.variants
                for own in [self.of(each.name)]
            ),
            f"nats a token; {self.steps} steps of {self.step_tokens:,} tokens; 95 % bootstrap over "
            "rows; p: t-test paired by seed, corrected by Holm",
            NARROW,
        )  # fmt: skip
        found = [losses, self._learned_table()]
        if any(graft.links and graft.links.cuts for graft in self.grafts):
            found += [self._rank_table(), self._cut_table()]
        if any(graft.links and graft.links.circuit for graft in self.grafts):
            found.append(self._circuit_table())
        return found

    def of(self, name: str) -> list[Graft]:
        """The runs of a variant."""
        return [graft for graft in self.grafts if graft.name == name]

    def _learned_table(self) -> Table:
        """Means over seeds, a row a layer, head after head."""
        columns = [each for each in self.variants if any(g.learned for g in self.of(each.name))]
        by = {each.name: by_layer(self.of(each.name)) for each in columns}
        layers = sorted({layer for found in by.values() for layer in found})
        rows = [
            (str(layer), *(_numbers(by[each.name].get(layer)) for each in columns))
            for layer in layers
        ]
        return table(
            "What streams learned", ("layer",), [each.name for each in columns], rows,
            "means over seeds; of each head in turn, links before gains", NARROW,
        )  # fmt: skip

    def _rank_table(self) -> Table:
        rows = [
            (
                graft.name, str(graft.seed), f"{sum(cut.cost for cut in graft.links.cuts):.4f}",
                graft.size_rank.told(".2f"), graft.brought_rank.told(".2f"),
            )
            for graft in self.grafts
            if graft.links and graft.links.cuts and graft.size_rank and graft.brought_rank
        ]  # fmt: skip
        return table(
            "What cutting a layer costs, against its size",
            ("graft", "seed"), ("Σ of costs", "rank with |w|", "rank with what it brings"),
            in_sections(rows), "Spearman over layers; 95 % bootstrap over layers", NARROW,
        )  # fmt: skip

    def _cut_table(self, most: int = 5) -> Table:
        rows = []
        for graft in self.grafts:
            cuts = graft.links.cuts if graft.links else ()
            for cut in sorted(cuts, key=lambda cut: -cut.cost)[:most]:
                by_size = sorted(cuts, key=lambda cut: -cut.size).index(cut) + 1
                name = f"{graft.name}, seed {graft.seed}"
                rows.append((name, f"{cut.stream}{cut.layer}", f"{cut.cost:.4f}",
                             f"{cut.size:.3f}", f"{cut.brought:.3f}", str(by_size)))  # fmt: skip
        return table(
            "The costliest layers", ("graft", "link"),
            ("cost", "mean |w|", "change of v", "place by |w|"), in_sections(rows),
            "nats a token; change of v: ‖change‖ / ‖v‖ over tokens and heads", NARROW,
        )  # fmt: skip

    def _circuit_table(self) -> Table:
        rows = []
        for graft in self.grafts:
            circuit = graft.links.circuit if graft.links else None
            for at in circuit.sizes if circuit else ():
                rows.append((
                    f"{graft.name}, seed {graft.seed}", f"{at.edges:,}", str(at.links),
                    str(at.before), optional(at.faithfulness, ".3f"),
                    optional(at.without_links, ".3f"),
                ))  # fmt: skip
        circuits = [graft.links.circuit for graft in self.grafts if graft.links]
        known = next(circuit for circuit in circuits if circuit)
        return table(
            f"The circuit of {known.task} by {known.metric}, {known.prompts} prompts",
            ("graft",), ("edges", "links", "as before", "faithful", "without links"),
            in_sections(rows), "as before: edges among as many before the graft", NARROW,
        )  # fmt: skip

    def sentences(self) -> list[str]:
        """What variants save, how well size tells cost, how much of a circuit is links."""
        first, *others = self.variants
        said = [
            f"{first.name} saves {first.saving.told('.4f')} nats a token with "
            f"{first.parameters:,} numbers."
        ]
        for each in others:
            assert each.ahead is not None
            clear = each.ahead.low > 0 or each.ahead.high < 0
            said.append(
                f"{each.name} ({each.parameters:,} numbers) saves {each.saving.told('.4f')}, "
                f"{each.ahead.told('z.4f')} more than {first.name}"
                + ("." if clear else ": no clear difference.")
            )
        for each in self.variants:
            own = self.of(each.name)
            ranks = [(graft.size_rank, graft.brought_rank) for graft in own]
            both = [(size, brought) for size, brought in ranks if size and brought]
            if both:
                size, brought = (
                    ", ".join(x.told(".2f") for x in of) for of in zip(*both, strict=True)
                )
                said.append(
                    f"{each.name}: what cutting a layer costs has a rank correlation of {size} "
                    f"with the size of its numbers, and of {brought} with that of what they bring "
                    f"({_count(len(both), 'seed')})."
                )
            circuits = [g.links.circuit for g in own if g.links and g.links.circuit]
            if circuits:
                said.append(_of_circuits(each.name, circuits))
        return said

    def figures(self) -> Mapping[str, Figure]:
        """What streams learned by layer; what cuts cost beside what links bring."""
        from resval_lens.analyses.comparison.graft_figures import cut_figure, learned_figure

        found = {"graft-learned.png": learned_figure(self)}
        if any(graft.links and graft.links.cuts for graft in self.grafts):
            found["graft-cuts.png"] = cut_figure(self)
        return found


def _of_circuits(name: str, circuits: Sequence[TaskCircuit]) -> str:
    """Whether a task's circuits are on the links, in a sentence."""
    first, largest = circuits[0], [each.sizes[-1] for each in circuits if each.sizes]
    shown = {
        kind: " and ".join(dict.fromkeys(f"{getattr(each, kind):.3f}" for each in circuits))
        for kind in ("metric_before", "metric_after", "metric_cut")
    }
    shares = ", ".join(f"{circuit.link_share:.2%}" for circuit in circuits)
    return (
        f"{name}: {first.metric} of {first.task} is {shown['metric_before']} before, "
        f"{shown['metric_after']} after and {shown['metric_cut']} with the graft undone. "
        f"{first.links:,} of {first.edges:,} edges are links; they have {shares} of all |score|"
        + "".join(f", {at.links} of the {at.edges:,} strongest" for at in largest)
        + "."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def by_layer(grafts: Sequence[Graft], kind: str = "") -> dict[int, Float[np.ndarray, " number"]]:
    """What streams learned, means over runs, by layer.

    Args:
        kind: ``"carried"`` for links' weights alone, ``"own"`` for gains; by default all.
    """
    every: dict[int, list[np.ndarray]] = {}
    for graft in grafts:
        own: dict[int, list[np.ndarray]] = {}
        for name, numbers in sorted(graft.learned.items()):
            if not name.endswith(kind):
                continue
            own.setdefault(int(name.split(".")[1]), []).append(np.ravel(numbers))
        for layer, parts in own.items():
            every.setdefault(layer, []).append(np.concatenate(parts))
    return {layer: np.mean(found, axis=0) for layer, found in every.items()}


def _numbers(values: Float[np.ndarray, " number"] | None) -> str:
    if values is None:
        return ""
    if len(values) > 16:
        return f"rms {np.sqrt(np.mean(values**2)):.3f}"
    return " ".join(f"{value:z.3f}" for value in values)


def grafts(runs: Sequence[RecordedRun[GraftRun]], against: str | None = None) -> Grafts:
    """The study of finished runs, from their records.

    Args:
        against: the variant that others are held against; by default the first.

    Raises:
        ValueError: no finished run; runs on different models, texts or held-out rows; no variant
            of that name.
    """
    done = [each for each in runs if each.done]
    if not done:
        raise ValueError("no graft has been trained to its end")
    alike = {
        (r.run.weights, r.run.held_out_data, r.run.held_out, r.run.length, r.run.steps, r.run.batch)
        for r in done
    }
    if len(alike) > 1:
        raise ValueError(
            "these grafts differ in model, held-out text, steps or batch: their losses cannot be "
            "compared"
        )
    names = list(dict.fromkeys(each.run.name for each in done))
    if against is not None:
        if against not in names:
            raise ValueError(f"against must be one of {', '.join(names)}; got {against!r}")
        names.sort(key=lambda name: name != against)
    rows = {
        (each.run.name, each.run.seed): np.subtract(
            each.evaluations[0][LOSSES], each.evaluations[-1][LOSSES]
        )
        for each in done
    }
    by_seed = {
        name: {seed: float(each.mean()) for (own, seed), each in rows.items() if own == name}
        for name in names
    }
    first = names[0]
    tests = corrected({name: t_tests(by_seed[name], by_seed[first]) for name in names[1:]})
    run = done[0].run
    return Grafts(
        run.model, run.held_out, run.length, run.steps, run.batch * run.length,
        tuple(
            _variant(name, done, rows, by_seed, first, tests.get(name, TTests())) for name in names
        ),
        tuple(_graft(each) for name in names for each in done if each.run.name == name),
    )  # fmt: skip


def _variant(
    name: str,
    done: Sequence[RecordedRun[GraftRun]],
    rows: Mapping[tuple[str, int], np.ndarray],
    by_seed: Mapping[str, Mapping[int, float]],
    first: str,
    tests: TTests,
) -> Variant:
    own = next(each for each in done if each.run.name == name)
    mean = np.mean([rows[name, seed] for seed in by_seed[name]], axis=0)
    ahead = None
    shared = [seed for seed in by_seed[name] if seed in by_seed[first]]
    if name != first and shared:
        pairs = [rows[name, seed] - rows[first, seed] for seed in shared]
        ahead = saved(np.mean(pairs, axis=0))
    elif name != first:
        raise ValueError(f"{name} and {first} have no seed in common")
    parameters = own.evaluations[-1][PARAMETERS]
    return Variant(
        name, shorthand(own.run.streams), parameters, saved(mean), by_seed[name], ahead,
        tests,
    )  # fmt: skip


def _graft(recorded: RecordedRun[GraftRun]) -> Graft:
    run, (began, *_, ended) = recorded.run, recorded.evaluations
    path, links = recorded.folder / LINKS, None
    if path.is_file():
        links = GraftLinks.from_dict(read_json(path, MEASURED))
    cuts = links.cuts if links else ()
    costs = [cut.cost for cut in cuts]
    before, after = began[LOSSES], ended[LOSSES]
    return Graft(
        name=run.name,
        streams=shorthand(run.streams),
        low_rank=run.low_rank,
        seed=run.seed,
        parameters=ended[PARAMETERS],
        before=float(np.mean(before)),
        after=float(np.mean(after)),
        saving=saved(np.subtract(before, after)),
        learned=ended[LEARNED],
        size_rank=rank([cut.size for cut in cuts], costs) if cuts else None,
        brought_rank=rank([cut.brought for cut in cuts], costs) if cuts else None,
        links=links,
    )
