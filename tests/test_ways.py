"""Ways for values to skip layers: numbers over seeds, and the command on models in miniature."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from resval_lens.analyses.circuits.study import ScoredEdge
from resval_lens.analyses.cli.app import app
from resval_lens.analyses.comparison.ways import Circuit, Cut, Studied, Ways, gathered

MINIATURE = (
    *("--n-layers", "2", "--d-model", "32", "--steps", "2", "--batch", "2"),
    *("--evaluate-every", "1", "--stories", "400", "--quiet"),
)


def studied(way: str, seed: int, loss: float, **fields: Any) -> Studied:
    clean = {"logit difference": 2.0, "P(IO)": 0.5}
    own: dict[str, Any] = {
        "parameters": 100, "validation_loss": loss, "emerged": {"P(IO) > 0.5, seen": 50.0 * seed},
        "clean": clean, "story_loss": 1.0, "cuts": (), "circuit": None, "reason": "not yet",
    }  # fmt: skip
    return Studied(way, seed, **own | fields)


def some_runs() -> list[Studied]:
    cut = Cut("all", {"logit difference": 0.5, "P(IO)": 0.1}, 1.25)
    circuit = Circuit(10, 2, 0.9, 0.45, 0.4, (ScoredEdge("a0.h0<v>->a1.h0<v>", -0.3),))
    linked = {"cuts": (cut,), "circuit": circuit, "reason": None}
    plain = [studied("classic", seed, loss) for seed, loss in enumerate((1.0, 1.2, 1.1))]
    return plain + [
        studied("values", seed, loss, **linked) for seed, loss in enumerate((0.9, 1.15, 0.98))
    ]


def test_measures_are_gathered_over_seeds_and_tested_against_the_first_way() -> None:
    found = gathered(some_runs(), prompts=8)
    rows = {row.measure: row for row in found.rows}
    loss = rows["training: validation loss"]
    assert loss.ways["classic"].mean == pytest.approx(1.1)
    assert loss.ways["values"].sd == pytest.approx(np.std((0.9, 1.15, 0.98)))
    wanted = stats.ttest_rel((0.9, 1.15, 0.98), (1.0, 1.2, 1.1))
    assert loss.tests["values"].p_paired == pytest.approx(wanted.pvalue)
    assert loss.tests["values"].p_paired_holm == pytest.approx(min(1, wanted.pvalue))
    assert rows["links cut: story loss, more by"].ways["values"].mean == pytest.approx(0.25)
    assert not rows["links cut: P(IO)"].ways["classic"].by_seed
    assert rows["circuit: share of its effect through links"].ways["values"].mean == (
        pytest.approx(0.4)
    )
    assert rows["circuit: edges"].ways["classic"].mean is None
    assert Ways.from_dict(json.loads(json.dumps(found.to_dict()))).runs == found.runs


def test_tables_say_what_is_left_without_links() -> None:
    whole, tests, cut = gathered(some_runs(), prompts=8).csv()
    assert "values,all,-1.500 ± 0.000,-0.400 ± 0.000,+0.250 ± 0.000" in cut
    assert "validation loss,1.100 ± 0.082,1.010 ± 0.104" in whole
    assert "circuit: edges,never,10 ± 0" in whole
    assert "training: validation loss,.782 / .050" in tests  # 2 × .391, and the only paired one
    soonest, independent, paired, cut_away = gathered(some_runs(), prompts=8).sentences()
    assert soonest.endswith("at step (each seed): classic 0, 50, 100; values 0, 50, 100.")
    assert independent.startswith("Of 2 differences from classic, tested as independent runs, none")
    assert paired.endswith("(values, p = .050).")
    assert cut_away.startswith("values: with links cut, P(IO) is 0.10 ± 0.00 instead of 0.50")


def test_the_command_studies_runs_of_several_ways(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name, streams in (("mini-tables", "v(source=tokens, mix=added_gate)"), ("mini-none", "")):
        trained = CliRunner().invoke(
            app,
            ["train", "lm", "stories-nanochat", "--name", name, "--streams", streams,
             "--runs", str(runs), "--token-files", str(tmp_path / "text"), *MINIATURE],
        )  # fmt: skip
        assert trained.exit_code == 0, trained.output
    given = ["ways", str(runs), "--against", "mini-none", "--prompts", "4", "--json", "--quiet"]
    found = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["ways"] == ["none", "tables"]
    by = {run["way"]: run for run in document["runs"]}
    assert [cut["links"] for cut in by["tables"]["cuts"]] == ["all", "v0", "v1"]
    # A table has 2,048 rows of 32; its gate reads 32 channels.
    assert by["tables"]["parameters"] - by["none"]["parameters"] == 2 * (2048 * 32 + 32)
    wrong = CliRunner().invoke(app, ["ways", str(runs), "--against", "other"])
    assert isinstance(wrong.exception, ValueError)
    assert str(wrong.exception) == "against must be one of mini-none, mini-tables; got 'other'"
