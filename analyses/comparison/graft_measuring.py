"""Measures what the links of one finished graft are worth, and keeps it beside its record."""

from __future__ import annotations

from pathlib import Path

from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.comparison.grafts import MEASURED
from resval_lens.analyses.studies.graft_links import (
    Cut,
    GraftLinks,
    TaskCircuit,
    cut_layers,
    task_circuit,
)
from resval_lens.analyses.tasks import find_task
from resval_lens.analyses.tasks.task import Asked
from resval_lens.io.files import read_json, write_json
from resval_lens.io.provenance import provenance
from resval_lens.load import Loaded
from resval_lens.notes import Note
from resval_lens.training.graft import grafted
from resval_lens.training.graft_run import LINKS, GraftRun
from resval_lens.training.lm import Rows
from resval_lens.training.recorded import load_run
from resval_lens.transformer import ResValTransformer

SIZES = (100, 300, 1_000, 3_000)
"""Numbers of edges at which links are counted, where a model has so many."""


def measure_links(
    folder: Path,
    name: str,
    base: ResValTransformer,
    held_out: Rows,
    rows: int,
    prompts: int,
    task: str,
    note: Note = lambda text: None,
) -> GraftLinks:
    """Cuts layers on held-out ``rows``; finds the circuit of ``task`` before and after.

    Written to ``links.json`` in ``folder``. What is there already, of these rows or prompts, is not
    measured again.

    Args:
        rows: how many; 0: no layer is cut.
        prompts: on which edges are scored; as many others run circuits. 0: no circuits.

    Raises:
        ValueError: the run has not ended; fewer rows than are asked for; ``base`` cannot read the
            task.
    """
    recorded = load_run(folder, GraftRun)
    run, path = recorded.run, folder / LINKS
    if rows > len(held_out):
        raise ValueError(f"the held-out text has {len(held_out)} rows; {rows} are needed")
    known = None
    if path.is_file():
        known = GraftLinks.from_dict(read_json(path, MEASURED))
    cuts: tuple[Cut, ...] = known.cuts if known else ()
    circuit: TaskCircuit | None = known.circuit if known else None
    model, start = (grafted(recorded, base, trained=each) for each in (True, False))

    def keep() -> GraftLinks:
        found = GraftLinks(
            run.name, run.seed, run.weights, rows if cuts else 0, run.length, cuts, circuit
        )
        write_json(path, {**found.to_dict(), "provenance": provenance()})
        return found

    if rows and not (known and known.rows == rows and cuts):
        cuts = cut_layers(model, start, held_out, rows, note)
        keep()
    if prompts and not (circuit and circuit.prompts == prompts):
        posed = find_task(task).draw(Loaded(name, base), 2 * prompts, Asked(seed=0))
        scored, others = (
            posed.rows(part).pairs for part in (slice(0, prompts), slice(prompts, None))
        )
        sizes = [size for size in SIZES if size < len(Graph.of(model))]
        note(f"circuits of {task}")
        circuit = task_circuit(
            model, start, scored, others, task=posed.task.name, metric=posed.metric, seed=0,
            sizes=sizes, note=note,
        )  # fmt: skip
    return keep()
