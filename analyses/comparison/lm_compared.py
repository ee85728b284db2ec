"""Measures of language models' training by architecture over seeds, tests, and their tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resval_lens.analyses.results.emergence import Share
from resval_lens.analyses.results.result import FLAT
from resval_lens.analyses.results.seeds import SURE, Effect, Spread, TTests, present
from resval_lens.analyses.results.tables import NARROW, in_groups, optional, p_cell, p_told, table

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Measured:
    """One measure of one architecture; ``prompts``: of which set ("": of text)."""

    prompts: str
    measure: str
    architecture: str
    spread: Spread = field(metadata=FLAT)

    def told(self, seeds: int) -> str:
        """Mean ± sd, and how many of ``seeds`` have a number if some have not."""
        form = ",.0f" if self.measure.startswith("step:") else ".3f"
        told = self.spread.told(form, seeds) if self.spread.by_seed else ""
        return told.replace(" (", "\n(")


@dataclass(frozen=True)
class Difference:
    """Tests of one measure of two architectures; of steps also the share that the first saves."""

    prompts: str
    measure: str
    first: str
    second: str
    tests: TTests = field(metadata=FLAT)
    effect: Effect | None = None
    saving: Share | None = None


@dataclass(frozen=True)
class Compared:
    """Measures over seeds and, of every architecture with the first, tests; corrected together."""

    rows: tuple[Measured, ...]
    tests: tuple[Difference, ...]

    def lines(self) -> list[tuple[list[Measured], list[Difference]]]:
        """Of each set of prompts and measure, all architectures and the tests of all but one."""
        by: dict[tuple[str, str], tuple[list[Measured], list[Difference]]] = {}
        for row in self.rows:
            by.setdefault((row.prompts, row.measure), ([], []))[0].append(row)
        for test in self.tests:
            by[test.prompts, test.measure][1].append(test)
        return list(by.values())

    def table(self, seeds: Mapping[str, int], title: str, caption: str) -> Table:
        """Mean ± sd of each architecture, and p of their tests; ``seeds``: how many of each.

        Two architectures stand side by side, more below one another.
        """
        first, *others = seeds
        if others[1:]:
            longer = [
                (
                    own[0].prompts or "text",
                    own[0].measure if row.architecture == first else "",
                    row.architecture,
                    row.told(seeds[row.architecture]),
                    *_told_tests(tests[number - 1].tests if number else TTests()),
                )
                for own, tests in self.lines()
                for number, row in enumerate(own)
                if row.spread.by_seed or not number
            ]
            names, numbers = ("", "model"), ("", "p", "pairs", "Holm")
            return table(title, names, numbers, in_groups(longer), caption, NARROW)
        rows = [
            (
                own[0].prompts or "text",
                own[0].measure,
                *(row.told(seeds[row.architecture]) for row in own),
                *(cell for each in tests for cell in _told_tests(each.tests)),
            )
            for own, tests in self.lines()
        ]
        columns = (*seeds, *(("p", "pairs", "Holm") if others else ()))
        return table(title, ("",), columns, in_groups(rows), caption, NARROW)

    def said(self, when: str) -> list[str]:
        """How many differences stand after Holm's correction within this table, and which."""
        tested = [each for each in self.tests if each.tests.p_holm is not None]
        stand = [each for each in tested if min(present(_corrected(each.tests))) < SURE]
        return [
            f"{when}, {len(stand) or 'none'} of {len(tested)} differences stand after correction, "
            "tested as independent runs or as pairs by seed.",
            *(f"{when}, {self._compared(each)}." for each in stand),
        ]

    def compares(self, measure: str) -> list[str]:
        """Both architectures and the tests of a measure, whether its difference stands or not.

        Of those only that have the measure: runs that were ended early have none of the end.
        """
        known = {row.architecture for row in self.rows if row.measure == measure and
                 row.spread.by_seed}  # fmt: skip
        return [
            self._compared(each)
            for each in self.tests
            if each.measure == measure and {each.first, each.second} <= known
        ]

    def savings(self, measure: str, prompts: str = "") -> list[str]:
        """What each saves of the first's steps to a level, where it has more than one beside it."""
        told = [
            f"{each.first} {each.saving.percent()}"
            for each in self.tests
            if (each.measure, each.prompts) == (measure, prompts) and each.saving
        ]
        if len(told) < 2:
            return []
        level = measure.removeprefix("step: ") + f" on {prompts} prompts" * bool(prompts)
        return [f"Steps saved to {level}, against {self.tests[0].second}: {', '.join(told)}."]

    def _compared(self, of: Difference) -> str:
        saved = f", {of.saving.percent()} saved" if of.saving else ""
        measure = of.measure.replace("step: ", "steps to ").replace("loss: ", "loss at ")
        return (
            f"{measure}{f' ({of.prompts} prompts)' * bool(of.prompts)}: {of.first} "
            f"{self._mean(of, of.first)}, {of.second} {self._mean(of, of.second)}{saved} "
            f"({both_p(*_corrected(of.tests))})"
        )

    def _mean(self, of: Difference, architecture: str) -> str:
        """What a test's measure is of one architecture."""
        key = of.prompts, of.measure, architecture
        row = next(x for x in self.rows if (x.prompts, x.measure, x.architecture) == key)
        return row.told(len(row.spread.by_seed)).replace("-", "−")

    def effects(self) -> Table:
        """How much sooner or better: savings of steps and effect sizes, where there are tests."""
        rows = [
            (
                each.prompts or "text",
                each.measure,
                each.first,
                each.saving.told() if each.saving else "",
                optional(each.effect.g if each.effect else None, ".1f"),
                optional(each.effect.g_paired if each.effect else None, ".1f"),
                p_cell(each.tests.p_paired_holm),
            )
            for each in self.tests
            if each.effect not in (None, Effect()) or each.saving is not None
        ]
        second = self.tests[0].second if self.tests else ""
        return table(
            f"Against {second}" if second else "", ("", "model"),
            ("saved, %", "g", "paired g", "Holm"), in_groups(rows),
            "saved: of steps, on the seeds of both, with its 95% interval by t\n"
            "g: Hedges', negative where the model has less; Holm: of the pairs", NARROW,
        )  # fmt: skip


def _corrected(tests: TTests) -> tuple[float | None, float | None]:
    return tests.p_holm, tests.p_paired_holm


def _told_tests(tests: TTests) -> tuple[str, str, str]:
    return p_cell(tests.p), p_cell(tests.p_paired), p_cell(tests.p_paired_holm)


def both_p(independent: float | None, paired: float | None) -> str:
    """p of independent runs and of pairs by seed, in words."""
    named = (("independent", independent), ("paired", paired))
    return ", ".join(f"{name} {p_told(p)}" for name, p in named if p is not None) or "no test"
