"""Language models in tables of Markdown: parts of the results page."""

from __future__ import annotations

from functools import cache

from resval_lens.analyses.comparison import ioi_cells
from resval_lens.analyses.comparison.ioi_paper import PUBLISHED_TABLE_2
from resval_lens.analyses.comparison.lm_compared import Compared, Difference
from resval_lens.analyses.comparison.lm_emergence import LMEmergence, lm_emergence
from resval_lens.analyses.comparison.lm_scaling import Scaling, lm_scaling
from resval_lens.analyses.report.markdown import in_full, markdown_table
from resval_lens.analyses.results.seeds import SURE, present
from resval_lens.analyses.results.tables import p_cell
from resval_lens.io.checkpoint import SHIPPED_MODELS
from resval_lens.tasks.ioi import PAPER_SENTENCES, encode
from resval_lens.tasks.leading import leading_token
from resval_lens.tasks.stories import ioi_prompts
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import SHIPPED, load_runs
from resval_lens.transformer import ResValTransformer


@cache
def recorded_language_models() -> LMEmergence:
    """The study of the language models on generated stories that ship."""
    return lm_emergence(load_runs(LMRun))


@cache
def recorded_sizes() -> Scaling:
    """The study of those of several depths and widths."""
    return lm_scaling([*load_runs(LMRun, SHIPPED / "lm-scaling"), *load_runs(LMRun)])


@cache
def recorded_real_text() -> Scaling:
    """The study of those on real stories."""
    return lm_scaling(load_runs(LMRun, SHIPPED / "lm-real-text"))


def language_models() -> str:
    """Loss, indirect objects and the steps at which they emerge, classic beside values."""
    study = recorded_language_models()
    seeds = ", ".join(f"{count} of {name}" for name, count in study.seeds.items())
    return (
        f"Seeds: {seeds}; {study.steps:,} steps, evaluated every {study.evaluate_every}. "
        f"{_lm_table(study.compared)}"
    )


def loss_matched() -> str:
    """The same models where their validation losses are equal."""
    return _lm_table(recorded_language_models().matched.compared)


def sizes() -> str:
    """What the stream saves by depth and width."""
    return in_full(recorded_sizes())


def real_text() -> str:
    """What the stream saves on real stories, and where text repeats itself."""
    return in_full(recorded_real_text())


def published_table_2() -> str:
    """Table 2 of arXiv 2412.15113 as it is published: P(IO) and P(S) in %, mean ± sample sd."""
    rows = [
        [text, architecture]
        + [f"{numbers[name][i][0]:.2f} ± {numbers[name][i][1]:.2f}" for name in numbers]
        for i, text in enumerate(PAPER_SENTENCES)
        for architecture, numbers in PUBLISHED_TABLE_2.items()
    ]
    rows = [[text.replace("*", "\\*"), *rest] for text, *rest in rows]
    return markdown_table(["sentence", "", "P(IO) %", "P(S) %"], rows, 2)


def four_cells(prompts: int = 200, seed: int = 0) -> str:
    """The shipped pair of language models, each run as either architecture; run now.

    Unseen prompts of :func:`~resval_lens.tasks.stories.prompts.ioi_prompts`, as in
    ``resval-lens eval ioi --prompts 200``.
    """
    classic, values = (ResValTransformer.from_pretrained(name) for name in SHIPPED_MODELS)
    drawn = ioi_prompts(prompts, seed, "unseen", "unseen", "unseen")
    found = ioi_cells.four_cells(
        classic, values, encode(drawn, classic.tokenizer, leading_token(classic))
    )
    rows = [
        [f"trained {trained}", f"run {run}", f"{scores.logit_difference:.2f}",
         f"{scores.p_io:.3f}", f"{scores.accuracy:.3f}"]
        for (trained, run), scores in found.cells.by_way().items()
    ]  # fmt: skip
    return markdown_table(["", "", "logit difference", "P(IO)", "accuracy"], rows, 2)


def _survivors(found: Compared) -> str:
    """Which differences stand once the tests of their table are counted."""
    kinds = {
        "independent": [(test.tests.p, test.tests.p_holm, test) for test in found.tests],
        "paired": [(test.tests.p_paired, test.tests.p_paired_holm, test) for test in found.tests],
    }
    several = len({test.first for test in found.tests}) > 1
    said = []
    for kind, tests in kinds.items():
        made = present(p for p, _, _ in tests)
        kept = [test for _, corrected, test in tests if corrected is not None and corrected < SURE]
        which = ", ".join(
            f"{f'{test.first}, ' * several}{test.measure} ({test.prompts or 'text'})"
            for test in kept
        )
        said.append(
            f"Of {len(made)} {kind} t-tests {sum(p < SURE for p in made)} have p < .05, "
            f"and {len(kept) or 'none'} after Holm's correction{f': {which}' * bool(kept)}."
        )
    return " ".join(said).replace(">", "&gt;")


def _lm_table(found: Compared) -> str:
    """What survives Holm's correction, and the table: two models side by side, more in lines."""
    rows = []
    for own, tests in found.lines():
        measure = own[0].measure
        form = ",.0f" if measure.startswith("step") else ".4f"
        told = [row.spread.told(form) if row.spread.by_seed else "" for row in own]
        cells = [_lm_cells(each) for each in tests]
        if len(own) > 2:
            names = [row.architecture for row in own]
            for name, number, more in zip(names, told, [[""] * 5, *cells], strict=True):
                rows.append([own[0].prompts, measure, name, number, *more])
        else:
            rows.append(
                [own[0].prompts, measure, *told, *(cell for each in cells for cell in each)]
            )
    models = [row.architecture for row in own]
    heads = ["p", "p, paired", "Holm, paired", "saved, %", "g, paired"] if len(models) > 1 else []
    columns = ["model", "mean"] if len(models) > 2 else models
    table = markdown_table(["prompts", "measure", *columns, *heads], rows, 2)
    return f"{_survivors(found)}\n\n{table}"


def _lm_cells(each: Difference) -> list[str]:
    """p of one difference, the share of steps that is saved, and its effect size."""
    p = (each.tests.p, each.tests.p_paired, each.tests.p_paired_holm)
    saved = each.saving.told() if each.saving else ""
    size = ""
    if each.effect and each.effect.g_paired is not None and each.effect.interval_paired:
        size = f"{each.effect.g_paired:.1f} {each.effect.interval_paired.told('.1f')}"
    return [*map(p_cell, p), *(x.replace("-", "−") for x in (saved, size))]
