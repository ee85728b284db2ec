"""``resval-lens compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.console import out
from resval_lens.analyses.icl_commands import (
    Runs,
    Train,
    load_recorded,
    only_with_train,
    train_icl_runs,
)
from resval_lens.analyses.options import Quiet, notes, writable


def compare_command(
    runs: Runs = None,
    lm_runs: Annotated[
        Path | None,
        typer.Option(help="Folder of language-model runs on stories; the shipped pair if not."),
    ] = None,
    train: Train = False,
    seed: Annotated[int | None, typer.Option(help="Of the models; with --train 0.")] = None,
    steps: Annotated[int | None, typer.Option(help="With --train; 45000.")] = None,
    sequences: Annotated[int, typer.Option(help="Of each test set, for accuracies.")] = 10_000,
    link_sequences: Annotated[
        int, typer.Option(help="Of each test set, for every edit of the links.")
    ] = 2_000,
    circuit_sequences: Annotated[
        int, typer.Option(help="IC sequences by which edges are scored, and as many to evaluate.")
    ] = 256,
    prompts: Annotated[
        int, typer.Option(help="IOI prompts by which edges are scored, and as many to evaluate.")
    ] = 64,
    to: Annotated[Path, typer.Option("--out", help="Folder for compare.json and figures.")] = Path(
        "out"
    ),
    quiet: Quiet = False,
) -> None:
    """Compare classic with residual-stream models: what does the value link do?

    Two-layer classifiers: accuracies; links cut, scaled and mean-ablated; the classic weights with
    a link grafted on and the values weights without theirs; attention. Then, of every classic and
    values model there is, classifiers and language models on indirect objects: circuits, heads by
    role, what the links carry. Under two minutes on 2 cores. Writes compare.json and figures.

    Example: `resval-lens compare --out out`
    """
    from resval_lens.analyses import circuit_figures, circuit_tables, figures, tables
    from resval_lens.analyses.circuit_compare import check_sizes, compare_circuits, studied_models
    from resval_lens.analyses.emergence import paper_runs, table_data
    from resval_lens.analyses.icl import compare as run_comparison
    from resval_lens.files import write_json
    from resval_lens.provenance import provenance
    from resval_lens.runtime import one_thread

    if train:
        runs, seed = runs or Path("runs/icl"), seed or 0
        names = ["classic", "queries", "keys", "values"]
        length = 45_000 if steps is None else steps
        train_icl_runs(names, [seed], length, "reference", 0, runs, False, quiet)
    else:
        only_with_train(steps=steps)
    wanted = None if seed is None else [seed]
    found = paper_runs(load_recorded(runs, wanted, length if train else None))
    check_sizes(found, circuit_sequences, prompts)
    models = studied_models(lm_runs)
    writable(to)
    with notes(quiet) as note, one_thread():
        result = run_comparison(found, sequences, link_sequences, note)
        circuits = compare_circuits(found, models, circuit_sequences, prompts, note=note)
    emergence = table_data(found, 0.95)
    said = [*tables.sentences(result, emergence), *circuits["found"]]
    entries = circuits["circuits"]
    drawn = {
        "accuracy.png": figures.bars(result["models"]),
        "link_edits.png": figures.link_edits(result["links"]) if result["links"] else None,
        "attention.png": figures.attention(result["attention"]),
        "emergence.png": figures.emergence(found),
        "circuits.png": circuit_figures.circuits(circuits["drawn"]),
        "faithfulness.png": circuit_figures.faithfulness(entries),
    }
    paths = [figures.save(figure, to / name) for name, figure in drawn.items() if figure]
    paths.append(to / "compare.json")
    report = {"found": said, **result, "emergence": emergence, "circuits": circuits}
    write_json(paths[-1], report | {"provenance": provenance()})
    shown = [
        tables.compare_table(result),
        tables.attention_table(result),
        tables.emergence_table(emergence),
        circuit_tables.compared_table(circuits["over_seeds"], circuits["least"]),
        circuit_tables.roles_table(circuits["heads"]),
        circuit_tables.signals_table(circuits["heads"]),
    ]
    for table in shown:
        out.print(table)
    for sentence in said:
        out.print(f"• {sentence}", highlight=False)
    out.print("\n" + "\n".join(str(path) for path in paths), highlight=False)
