"""What the value stream saves by depth and width: language models that differ in these, too."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from operator import itemgetter
from typing import TYPE_CHECKING

import scipy

from resval_lens.analyses.comparison.lm_compared import Compared, Difference
from resval_lens.analyses.comparison.lm_emergence import (
    SCORES,
    Line,
    Measure,
    at_loss,
    check_alike,
    compared,
    first_step,
    model_names,
    score_of,
)
from resval_lens.analyses.results.result import Result
from resval_lens.analyses.results.seeds import corrected
from resval_lens.analyses.results.tables import NARROW, in_sections, optional, p_cell, table
from resval_lens.analyses.studies.induction import InductionStudy
from resval_lens.io.files import read_json
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import RecordedRun

if TYPE_CHECKING:
    from rich.table import Table

FILE = "induction.json"
"""A study of a run's model on text, beside its record."""
ENOUGH = 5
"""Of fewer sizes a rank correlation says nothing."""


@dataclass(frozen=True)
class Size:
    """Runs of one depth and width.

    Attributes:
        layers, width: of the residual stream.
        compared: the steps to a loss and to naming, loss and naming at the last step that all
            runs have, and what is recorded of
            induction in text, by architecture; tests are corrected for those of all sizes.
    """

    layers: int
    width: int
    compared: Compared


@dataclass(frozen=True)
class Scaling(Result):
    """Several sizes.

    Attributes:
        losses: that every run falls to: the highest of their lowest, rounded up to a tenth and to a
            hundredth.
        prompts: of which set naming is ("": none).
        along: Spearman's correlation of the saving of steps with depth and with width, over sizes,
            by ``architecture, measure, depth``; only of ``ENOUGH`` sizes or more, and
            where any differ.
    """

    losses: tuple[float, ...]
    prompts: str
    sizes: tuple[Size, ...]
    along: dict[str, float]

    def tables(self) -> list[Table]:
        """Each measure of each size, and what is saved."""
        rows = []
        for size in self.sizes:
            for own, tests in size.compared.lines():
                base, *others = own
                for row, test in zip(others, tests, strict=True):
                    rows.append(
                        (
                            f"{size.layers} × {size.width}",
                            f"{base.measure}, {row.architecture}" if others[1:] else base.measure,
                            base.told(len(base.spread.by_seed)).replace("\n", " "),
                            row.told(len(row.spread.by_seed)).replace("\n", " "),
                            test.saving.told() if test.saving else "",
                            optional(test.effect.g_paired if test.effect else None, ".1f"),
                            p_cell(test.tests.p_paired_holm),
                        )
                    )
        first = self.sizes[0].compared.rows
        names = list(dict.fromkeys(row.architecture for row in first))
        return [
            table(
                "By depth × width", ("", ""),
                (names[0], " / ".join(names[1:]), "saved, %", "paired g", "Holm"),
                in_sections(rows),
                "mean ± population sd; saved: of steps, with its 95% interval by t, paired by\n"
                "seed; Holm: of the paired t-test, corrected for all tests of the table;\n"
                "accuracy: share of prompts with P(IO) > P(S); repeated: a token and the next\n"
                "one stood before; misleading: only the token did; new: it did not", NARROW,
            )
        ]  # fmt: skip

    def _tests(self, size: Size, measure: str) -> list[Difference]:
        return [each for each in size.compared.tests if each.measure == measure]

    def sentences(self) -> list[str]:
        """Where savings lie, whether they go with depth or width, and what else differs."""
        said: list[str] = []
        tests = [each for size in self.sizes for each in size.compared.tests]
        for name in dict.fromkeys(each.measure for each in tests):
            if name.startswith("step: "):
                said += self._saved(name)
            else:
                said += [
                    f"{size.layers} × {size.width}, {each}."
                    for size in self.sizes
                    for each in size.compared.compares(name)
                ]
        return said

    def _saved(self, measure: str) -> Iterator[str]:
        """The least and the most that each architecture saves of the first's steps, by size."""
        shares: dict[tuple[str, str], dict[str, float]] = {}
        for size in self.sizes:
            for each in self._tests(size, measure):
                if each.saving is not None and each.saving.share is not None:
                    own = shares.setdefault((each.first, each.second), {})
                    own[f"{size.layers} × {size.width}"] = each.saving.share
        for (first, base), by_size in shares.items():
            ranks = [
                f"{along} {self.along[key]:+z.2f}".replace("-", "−")
                for along in ("depth", "width")
                if (key := f"{first}, {measure}, {along}") in self.along
            ]
            ends = dict.fromkeys(pick(by_size, key=by_size.__getitem__) for pick in (min, max))
            told = " to ".join(f"{by_size[end]:.0%} ({end})" for end in ends).replace("-", "−")
            yield (
                f"To {measure.removeprefix('step: ')}, {first} models save "
                f"{'from ' * (len(ends) > 1)}"
                f"{told} of {base}’s steps"
                + (f", {len(by_size)} sizes" if len(by_size) > 1 else "")
                + (f"; rank correlation with {', '.join(ranks)}" if ranks else "")
                + "."
            )


def lm_scaling(runs: Sequence[RecordedRun[LMRun]]) -> Scaling:
    """What other architectures save against the first, by depth and width.

    Where ``resval-lens induction`` on a text is recorded beside the runs (``induction.json``), its
    losses by kind of position and its in-context score count, too. Of several sizes, architectures
    that only one has are left out.

    Raises:
        ValueError: no run, or runs of one size that differ in more than seed, name and streams.
    """
    if not runs:
        raise ValueError("there is no finished run of a language model")
    groups = _by_size(runs)
    for own, _ in groups.values():
        check_alike(own)
    runs = [recorded for own, _ in groups.values() for recorded in own]
    # Rounded up, so that one more seed seldom moves it.
    lowest = max(min(line["valid_loss"] for line in each.evaluations) for each in runs)
    losses = [math.ceil(round(lowest * parts, 6)) / parts for parts in (10, 100)]
    losses = list(dict.fromkeys(losses))
    sets = list(runs[0].evaluations[-1].get("ioi", {}))
    end = min(each.evaluations[-1]["step"] for each in runs)  # some may have been ended before
    measures: dict[tuple[str, str], Measure] = {
        **{
            ("", f"step: loss ≤ {loss:g}"): partial(at_loss, loss=loss, of=itemgetter("step"))
            for loss in losses
        },
        **{
            (sets[-1], f"step: P(IO) > {above}"): partial(first_step, sets[-1], "p_io", above)
            for above in (0.5, 0.9)
            if sets
        },
        **{
            (sets[-1], f"{SCORES[score]} at step {end:,}"): partial(
                _at_step, end, partial(score_of, sets[-1], score)
            )
            for score in ("accuracy", "p_io")
            if sets
        },
        ("", f"loss at step {end:,}"): partial(_at_step, end, itemgetter("valid_loss")),
        **_of_induction(runs),
    }
    found = {size: compared(*own, measures) for size, own in sorted(groups.items())}
    tests = corrected(
        {
            (size, number): each.tests
            for size, one in found.items()
            for number, each in enumerate(one.tests)
        }
    )
    sizes = tuple(
        Size(*size, Compared(one.rows, tuple(
            Difference(each.prompts, each.measure, each.first, each.second, tests[size, number],
                       each.effect, each.saving)
            for number, each in enumerate(one.tests)
        )))
        for size, one in found.items()
    )  # fmt: skip
    return Scaling(tuple(losses), sets[-1] if sets else "", sizes, _along(sizes))


def _by_size(
    runs: Sequence[RecordedRun[LMRun]],
) -> dict[tuple[int, int], tuple[list[RecordedRun[LMRun]], list[str]]]:
    """Runs with their architectures by depth and width, less what only one of several sizes has."""
    groups: dict[tuple[int, int], list[RecordedRun[LMRun]]] = {}
    for recorded in runs:
        config = recorded.run.config
        groups.setdefault((config.n_layers, config.d_model), []).append(recorded)
    names = {size: model_names(own) for size, own in groups.items()}
    sizes = Counter(name for own in names.values() for name in set(own))
    kept = {size: [len(groups) == 1 or sizes[name] > 1 for name in names[size]] for size in groups}
    return {
        size: ([*compress(own, kept[size])], [*compress(names[size], kept[size])])
        for size, own in groups.items()
        if any(kept[size])
    }


def _at_step(step: int, of: Callable[[Line], float], lines: Sequence[Line]) -> float:
    return float(of(next(line for line in lines if line["step"] >= step)))


def _of_induction(runs: Sequence[RecordedRun[LMRun]]) -> dict[tuple[str, str], Measure]:
    """Losses where text repeats itself and where not, and the in-context score; empty of none."""
    paths = {recorded.folder: recorded.folder / FILE for recorded in runs}
    studies = {
        folder: InductionStudy.from_dict(read_json(path, "a study of induction"))
        for folder, path in paths.items()
        if path.is_file()
    }
    losses = {folder: study.natural.loss for folder, study in studies.items() if study.natural}
    scores = {folder: study.icl.score for folder, study in studies.items() if study.icl}
    return {
        **{
            ("", f"loss of {kind} tokens"): {
                folder: getattr(loss, kind) for folder, loss in losses.items()
            }
            for kind in ("repeated", "misleading", "new")
            if losses
        },
        **({("", "in-context score"): scores} if scores else {}),
    }


def _along(sizes: Sequence[Size]) -> dict[str, float]:
    points: dict[tuple[str, str], list[tuple[int, int, float]]] = {}
    for size in sizes:
        for each in size.compared.tests:
            if each.saving and each.saving.share is not None:
                own = points.setdefault((each.first, each.measure), [])
                own.append((size.layers, size.width, each.saving.share))
    found: dict[str, float] = {}
    for (first, measure), own in points.items():
        *lengths, shares = zip(*own, strict=True)
        for name, x in zip(("depth", "width"), lengths, strict=True):
            if len(own) >= ENOUGH and len(set(x)) > 1 and len(set(shares)) > 1:
                found[f"{first}, {measure}, {name}"] = float(
                    scipy.stats.spearmanr(x, shares).statistic
                )
    return found
