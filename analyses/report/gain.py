"""Gain or stream? The results page's section, from the classifiers that ship."""

from __future__ import annotations

from functools import cache

from resval_lens.analyses.comparison.gain import CLASSIC, AtRate, GainOrStream, gain_or_stream
from resval_lens.analyses.comparison.gain_tables import told_saving
from resval_lens.analyses.report.markdown import bullets, markdown_table, number_cell
from resval_lens.analyses.results.intervals import Ends
from resval_lens.analyses.results.tables import p_cell
from resval_lens.tasks.icl import TASKS
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import SHIPPED, load_runs

RATES = "icl-lr-*"
"""Folders of records of other learning rates."""


@cache
def recorded_gain() -> GainOrStream:
    """The study of all records that ship, of every learning rate."""
    folders = [path for path in SHIPPED.glob(RATES) if path.is_dir()]
    further = [run for folder in folders for run in load_runs(ICLRun, folder)]
    return gain_or_stream([*load_runs(ICLRun), *further])


def gain_section() -> str:
    """What was found, in words, then savings and tests of every learning rate."""
    study = recorded_gain()
    said = bullets(study.sentences()).replace("[", "\\[")
    tables = "\n".join(_tables(rate, study.tests) for rate in study.rates)
    return f"{said}\n\n{tables}"


def _tables(rate: AtRate, tests: int) -> str:
    rows = []
    for row in rate.reached:
        share = rate.share(row.task, row.level, row.variant)
        of_published = share.published.told() if share and share.published else ""
        told = [*told_saving(rate.compared(row.task, row.level, row.variant, CLASSIC)),
                share.ours.told() if share else "", of_published]  # fmt: skip
        cells = [TASKS[row.task], f"{row.level:g}", row.variant, str(len(row.first.by_seed))]
        rows.append([*cells, row.first.told(".2f"), *(each.replace("-", "−") for each in told)])
    heads = ["task", "above", "variant", "seeds", "snapshot", "saved, %", "bootstrap",
             "of the stream’s, %", "of the published, %"]  # fmt: skip
    savings = markdown_table(heads, rows, 3)
    compared = [
        [
            TASKS[each.task], f"{each.level:g}", f"{each.first} − {each.second}",
            number_cell(each.tests.t, ".2f"), p_cell(each.tests.p_holm),
            _size(each.effect.g, each.effect.interval),
            number_cell(each.tests.t_paired, ".2f"), p_cell(each.tests.p_paired_holm),
            _size(each.effect.g_paired, each.effect.interval_paired),
        ]
        for each in rate.against
        if each.tests.p is not None
    ]  # fmt: skip
    heads = ["task", "above", "pair", "t", "p", "g", "t, paired by seed", "p, paired", "g, paired"]
    return (
        f"Learning rate {rate.lr:g}. *Snapshot*: the first above the level (one in 500 steps). "
        "*Saved*: share of classic’s steps, on the seeds that both have, with the 95% interval by "
        "t, paired by seed, then by bootstrap, which is too narrow for few seeds. *Of the "
        "stream’s*: as a share of the saving of values here, and of the one in the paper’s "
        "tables, which is taken as exact. ≤: some runs never pass the level; this is the saving "
        f"if they passed it at their last step.\n\n{savings}\n"
        f"*p*: of t-tests, by Holm for the {tests} of each kind. *g*: Hedges’ g with its 95% "
        "interval, in standard deviations; negative where the first is sooner.\n\n"
        f"{markdown_table(heads, compared, 3)}"
    )


def _size(g: float | None, ends: Ends | None) -> str:
    return "" if g is None or ends is None else f"{g:.2f} {ends.told('.1f')}".replace("-", "−")
