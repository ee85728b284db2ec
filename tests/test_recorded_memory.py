"""The runs of simplified transformers that ship, and what the documentation says of them."""

import re
from pathlib import Path

import numpy as np
import pytest

from resval_lens.analyses.papers.memory.curves import PUBLISHED, curve_study
from resval_lens.analyses.papers.memory.orders import memory_orders
from resval_lens.analyses.papers.memory.training import (
    MemoryRun,
    draw_tests,
    evaluate,
    initial_memory,
    measure,
)
from resval_lens.models.presets import ENCODINGS, MEMORY_VARIANTS
from resval_lens.training.recorded import load_runs

RUNS = load_runs(MemoryRun)
DOCUMENT = (Path(__file__).parent.parent / "docs" / "associative-memory.md").read_text()


def test_every_variant_ships_with_its_seeds_and_a_model() -> None:
    seeds: dict[str, list[int]] = {}
    for recorded in RUNS:
        seeds.setdefault(recorded.run.name, []).append(recorded.run.seed)
        assert recorded.done
        assert recorded.has_model == (recorded.run.seed == 0)
        assert [line["step"] for line in recorded.metrics] == list(range(0, 1001, 20))
        for start in recorded.starts:
            assert {"command", "git_commit", "versions", "created"} <= set(start)
    assert set(seeds) == set(MEMORY_VARIANTS)
    for name, own in seeds.items():
        four = name.removesuffix("-values") in ("absolute", "relative")
        two = name.removesuffix("-values") in (*ENCODINGS, "one-layer")
        drawn = name.endswith("-drawn")
        three = four or name == "relative-values-drawn"
        assert own == list(range(3 if three else 4 if drawn else 2 if two else 1)), name


@pytest.mark.parametrize("name", ["absolute-seed2", "rotary-values-seed1", "relative-drawn-seed0"])
def test_a_recorded_run_begins_as_it_would_today(name: str) -> None:
    (recorded,) = (r for r in RUNS if r.run.folder_name == name)
    now = measure(initial_memory(recorded.run), recorded.run.task, draw_tests(recorded.run))
    then = recorded.metrics[0]
    for group in ("trained", "longer", "recall", "attention"):
        assert now[group] == pytest.approx(then[group], abs=2e-5)


@pytest.mark.parametrize("name", ["relative", "relative-values", "sinusoidal"])
def test_a_shipped_model_is_what_was_recorded(name: str) -> None:
    """Its weights are rounded to 16 bits."""
    (recorded,) = (r for r in RUNS if r.run.folder_name == f"{name}-seed0")
    found = evaluate(recorded.model(), recorded.run.task, draw_tests(recorded.run)["trained"])
    last = recorded.metrics[-1]["trained"]
    assert found["loss"] == pytest.approx(last["loss"], abs=1e-3)
    assert found["accuracy"] == pytest.approx(last["accuracy"], abs=2e-3)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("absolute", "absolute"),
        ("relative", "relative"),
        ("absolute, values", "absolute-values"),
        ("relative, values", "relative-values"),
    ],
)
def test_the_document_has_the_numbers_of_the_runs(row: str, name: str) -> None:
    line = re.findall(rf"^\| {row} \| (\d+ ± \d+.*) \|$", DOCUMENT, re.MULTILINE)[0]
    told = [float(x) for x in re.findall(r"[\d.]+", line.split("|")[-2])]  # accuracy > .9
    study = curve_study([r for r in RUNS if r.run.name == name]).variants[name]
    steps = list(study.first["accuracy"].by_seed.values())
    assert told == [round(float(np.mean(steps))), round(float(np.std(steps)))]
    ends = [r.metrics[-1]["trained"]["accuracy"] for r in RUNS if r.run.name == name]
    told = [float(x) for x in re.findall(r"[\d.]+", line.split("|")[-1])]
    assert told == pytest.approx([np.mean(ends), np.std(ends)], abs=6e-4)


def firsts(name: str, measure: str, above: float = 0.9) -> list[int | None]:
    """The step of each seed's first snapshot above, read from the records alone."""
    return [
        next((x["step"] for x in r.metrics if (x["recall"].get(measure) or 0) > above), None)
        for r in RUNS
        if r.run.name == name
    ]


KINDS = {
    "drawn triggers": ["absolute-drawn", "relative-drawn", "relative-values-drawn"],
    "fixed triggers, some outputs held out": [
        "absolute-held-out", "relative-held-out", "relative-values-held-out",
    ],
    "fixed triggers": [f"{name}{way}" for name in ENCODINGS for way in ("", "-values")],
}  # fmt: skip
READ = {"W_O2_alone": "W_O2", "W_O2": "W_O2_read", "W_K2": "W_K2", "W_K1": "W_K1"}


@pytest.mark.parametrize("kind", KINDS)
def test_which_memory_is_first_is_counted_as_recorded(kind: str) -> None:
    """Beside a loop over the records themselves; rotary and ALiBi have no W_K¹ to probe."""
    rows = [row for row in memory_orders(RUNS).rows if (row.triggers, row.variant) == (kind, "all")]
    assert [(row.first, row.second) for row in rows] == list(PUBLISHED)
    for row in rows:
        assert row.runs == sum(r.run.name in KINDS[kind] for r in RUNS)
        for level, count in row.counts.items():
            earlier = together = runs = 0
            for name in KINDS[kind]:
                if "W_K1" in (row.first, row.second) and name.startswith(("rotary", "alibi")):
                    continue
                one, other = (firsts(name, READ[m], level) for m in (row.first, row.second))
                for a, b in zip(one, other, strict=True):
                    runs += a is not None or b is not None
                    together += a is not None and a == b
                    earlier += (a or 1e9) < (b or 1e9)
            assert count == (earlier, together, runs)


@pytest.mark.parametrize("page", ["associative-memory", "limits", "paper-and-code"])
def test_pages_say_in_how_many_runs_the_output_memory_is_first(page: str) -> None:
    text = " ".join((Path(__file__).parent.parent / "docs" / f"{page}.md").read_text().split())
    found = {
        (row.triggers.split()[0], row.first): row.counts
        for row in memory_orders(RUNS).rows
        if row.variant == "all" and row.second == "W_K2" and "held out" not in row.triggers
    }
    probed, heard = found["drawn", "W_O2_alone"], found["drawn", "W_O2"]
    assert all(count.earlier == 0 for count in found["fixed", "W_O2_alone"].values())
    assert f"in 0 of {found['fixed', 'W_O2_alone'][0.5].runs} runs with fixed triggers" in text
    told = ", ".join(
        f"{count.earlier} of {count.runs} above {level:g}".replace("0.", ".")
        for level, count in probed.items()
        if count.runs
    )
    assert f"in {told}; above .9 neither is recalled" in text
    assert all(count.earlier == count.runs for count in heard.values())
    assert "in {0} of {0} with drawn triggers".format(heard[0.9].runs) in text
    for level in (0.6, 0.9):
        count = found["fixed", "W_O2"][level]
        told = f"in {count.earlier} of {count.runs} above {level:g}"
        assert told.replace("0.", ".") in text
