"""``resval-lens circuit`` and ``resval-lens attribute``."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resval_lens.analyses.completion import METHODS, METRICS, one_of
from resval_lens.analyses.options import (
    Device,
    General,
    Json,
    LanguageModel,
    MaybeSeed,
    Model,
    Out,
    Prepend,
    Prompts,
    Quiet,
    Twins,
    notes,
    numbers,
    only_for,
    tell_left_out,
    writable,
)
from resval_lens.analyses.reporting import report
from resval_lens.analyses.result import plain

if TYPE_CHECKING:
    from resval_lens.analyses.subjects import ModelOnTask

Note = Callable[[str], None]


def circuit_command(
    model: Model = "stories-small-values",
    method: Annotated[
        str,
        typer.Option(
            help="Scores of edges: eap, eap-ig or exact.", autocompletion=one_of(*METHODS)
        ),
    ] = "eap-ig",
    ig_steps: Annotated[int, typer.Option(help="Runs that eap-ig averages over.")] = 5,
    least: Annotated[float, typer.Option(help="Faithfulness that the circuit must have.")] = 0.85,
    edges: Annotated[
        int | None,
        typer.Option(
            help="Take so many strongest edges instead.", show_default="the fewest that are enough"
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Numbers of edges, like 10,100,1000, for faithfulness by size.",
            show_default="shares of all edges",
        ),
    ] = None,
    minimality: Annotated[
        int, typer.Option(help="Edges of the circuit tried without, drawn where there are more.")
    ] = 256,
    completeness: Annotated[
        int, typer.Option(help="Heads and MLPs knocked out alone, drawn where there are more.")
    ] = 64,
    exact: Annotated[
        bool, typer.Option("--exact", help="Also score exactly, and say how far scores agree.")
    ] = False,
    acdc: Annotated[
        float | None,
        typer.Option(
            help="ACDC instead: drop edges worth less than this (unit of the metric).",
            show_default="no ACDC",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="That edges are scored and the circuit is chosen by: logit-difference (IO − S), "
            "log-probability, names (IO − mean of all other names), probability; of a classifier "
            "margin, log-probability, probability.",
            show_default="logit-difference; of a classifier margin",
            autocompletion=one_of(*METRICS),
        ),
    ] = None,
    prompts: Prompts = 64,
    seed: MaybeSeed = None,
    twins: Twins = None,
    general: General = False,
    prepend: Prepend = "auto",
    device: Device = "cpu",
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The circuit of a task: the fewest edges, links among them, that stand for the model.

    Edges are scored on the prompts; the circuit is chosen by size and evaluated on as many others,
    with every other edge resampled from the corrupted twins. In a model of more than 512 edges not
    every size is tried: sizes grow by half, and then close in; the JSON has those that were.

    What the circuit keeps of the other metrics is measured, too, with other edges resampled or at
    means over twins that are aligned with theirs: a difference like IO − S is the same whether a
    model would name the two or anything else.

    Prompts name indirect objects; a classifier's are sequences of its test set.

    Example: `resval-lens circuit values --method exact`
    """
    from resval_lens.analyses import circuit_tables
    from resval_lens.analyses.circuit_figures import circuits
    from resval_lens.analyses.circuit_study import circuit_study
    from resval_lens.analyses.subjects import on_two_sets
    from resval_lens.runtime import one_thread

    if not 0 < least <= 1:
        raise ValueError(f"least must be above 0 and at most 1; got {least}")
    for name, count in (("minimality", minimality), ("completeness", completeness)):
        if count < 0:
            raise ValueError(f"{name} must be 0 or more; got {count}")
    if acdc is not None:
        only_for("circuits by size; ACDC drops edges one by one", edges=edges, sizes=sizes)
    wanted = None if sizes is None else numbers(sizes, "sizes")
    with notes(quiet) as note, one_thread():
        note("prompts")
        scored, held_out = on_two_sets(model, prompts, seed, twins, general, device, prepend)
        tell_left_out(scored.left_out, quiet)
        if metric is not None:
            scored, held_out = scored.by(metric), held_out.by(metric)
        writable(to)
        if acdc is not None:
            most = {"most_edges": minimality, "most_nodes": completeness}
            study = _by_acdc(scored, held_out, acdc, seed or 0, most, note)
        else:
            study = circuit_study(
                scored.model,
                scored.pairs,
                held_out.pairs,
                method=method,  # type: ignore[arg-type]
                steps=ig_steps,
                least=least,
                edges=edges,
                sizes=wanted,
                exact=exact,
                most_edges=minimality,
                most_nodes=completeness,
                seed=seed or 0,
                metrics=held_out.metrics,
                note=note,
            )
    facts = {**plain(scored.facts()), "general": general, "example": plain(scored.example())}
    shown = [circuit_tables.circuit_table(study), circuit_tables.measured_table(study)]
    if "strongest" in study:
        shown.append(circuit_tables.scores_table(study))
    title = f"{model}: {scored.task}, {scored.kind} twins"
    figure = circuits([{"title": title, "circuit": study["circuit"]}])
    report(
        {**facts, **study}, to, "circuit", as_json=as_json, tables=shown,
        found=_sentences(scored, study), figures={"circuit.png": figure},
    )  # fmt: skip


def _by_acdc(
    scored: ModelOnTask,
    held_out: ModelOnTask,
    tau: float,
    seed: int,
    most: dict[str, int],
    note: Note,
) -> dict[str, Any]:
    """ACDC's circuit on some prompts, pruned, evaluated on others, as JSON."""
    import torch

    from resval_lens.analyses.circuit_study import by_each_metric
    from resval_lens.analyses.circuits.acdc import acdc
    from resval_lens.analyses.circuits.evaluation import check_gap, evaluate
    from resval_lens.analyses.circuits.running import EdgeRuns

    runs = EdgeRuns(scored.model, scored.pairs)
    circuit = acdc(
        runs, tau, lambda done, total: note(f"ACDC: {done:,} of {total:,} edges")
    ).pruned()
    if not len(circuit):
        raise ValueError(
            f"acdc={tau:g} leaves no edge from the input to the logits; the metric falls from "
            f"{runs.clean:.3g} to {runs.corrupted:.3g} over all of them: take a smaller one"
        )
    generator = torch.Generator().manual_seed(seed)
    others = EdgeRuns(held_out.model, held_out.pairs, runs.graph)
    check_gap(others)
    (measured,) = by_each_metric(held_out.model, held_out.pairs, [circuit], held_out.metrics)
    return {
        "measured": measured,
        "method": "acdc",
        "tau": tau,
        "prompts": {"scored": len(scored.pairs), "evaluated": len(held_out.pairs)},
        "metric": {"name": scored.metric, "clean": others.clean, "corrupted": others.corrupted},
        "circuit": evaluate(others, circuit, generator, note=note, **most),
        "runs": runs.circuits_run + others.circuits_run,
    }


def _sentences(chosen: ModelOnTask, study: dict[str, Any]) -> list[str]:
    circuit, metric = study["circuit"], study["metric"]
    evaluated = study["prompts"]["evaluated"]
    said = [
        f"{chosen.metric[:1].upper()}{chosen.metric[1:]} on {evaluated} prompts that edges were "
        f"not scored on: {metric['clean']:.3f}, of their twins ({chosen.kind}) "
        f"{metric['corrupted']:.3f}, of the circuit {circuit['metric']['circuit']:.3f}."
    ]
    name, own = list(study["measured"].items())[-1]  # a probability
    said.append(
        f"{name} is {own['clean']:.3f} on these prompts; the circuit alone gives "
        f"{own['resample']['circuit']:.3f}, with other edges at their means "
        f"{own['mean']['circuit']:.3f}."
    )
    search = study.get("search", {})
    if "sizes" not in search and search.get("size", circuit["n_edges"]) != circuit["n_edges"]:
        said.append(
            f"Of the {search['size']:,} strongest edges {circuit['n_edges']:,} lie on a way from "
            "the input to the logits; the others change nothing."
        )
    if not search.get("every_smaller_size_tried", True):
        said.append(
            f"The circuit is the smallest of the {len(search['sizes'])} sizes tried (up to "
            f"{search['sizes'][-1]:,} edges), not of all."
        )
    measured = circuit["measured"]["minimality"]
    if measured["edges"] < measured["of"]:
        said.append(
            f"Minimality is that of {measured['edges']:,} of its {measured['of']:,} edges, drawn "
            f"by the seed."
        )
    if circuit["links"]:
        said.append(
            f"Without its {_count(len(circuit['links']), 'link')} the circuit's faithfulness is "
            f"{circuit['faithfulness_without_links']:.3f}."
        )
    links = study.get("links")
    if links is not None:
        said.append(
            "The whole model with every link corrupted keeps "
            f"{links['faithfulness_of_model_with_links_corrupted']:.3f}; with every link cut its "
            f"{chosen.metric} is {links['clean_metric_with_links_cut']:.3f}."
        )
    if "agreement" in study:
        said.append(
            f"Scores by {study['method']} and exact ones agree with a rank correlation of "
            f"{study['agreement']['rank']:.2f} (of their sizes "
            f"{study['agreement']['rank_of_size']:.2f})."
        )
    return said


def _count(n: int, what: str) -> str:
    return what if n == 1 else f"{n} {what}s"


def attribute_command(
    model: LanguageModel = Path("stories-small-values"),
    prompts: Prompts = 64,
    seed: MaybeSeed = None,
    general: General = False,
    prepend: Prepend = "auto",
    device: Device = "cpu",
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Who writes the answer: exact shares of the logit difference, links told apart.

    A head's share is split by the layer that its values come from. Beside it: how far that part's
    weights copy tokens. And the logit lens.

    Example: `resval-lens attribute stories-small-classic`
    """
    from resval_lens.analyses import intervention_tables
    from resval_lens.analyses.attribution import attribute, logit_lens
    from resval_lens.analyses.circuit_figures import attribution
    from resval_lens.analyses.subjects import model_on_task
    from resval_lens.runtime import one_thread

    with notes(quiet) as note, one_thread():
        note("prompts")
        chosen = model_on_task(str(model), prompts, seed, None, general, device, prepend)
        tell_left_out(chosen.left_out, quiet)
        writable(to)
        asked = chosen.pairs.clean, chosen.pairs.labels, chosen.pairs.last
        note("direct logit attribution")
        shares = attribute(chosen.model, *asked)
        note("logit lens")
        lens = logit_lens(chosen.model, *asked)
        note("copying scores")
        copying = _copying(chosen, list(shares.means()))
    heads = shares.heads.mean(0)  # [layer, source, head]
    total, means = shares.total.mean().item(), shares.means()
    own = heads.diagonal().sum().item()
    found = {
        **plain(chosen.facts()),
        "general": general,
        "total": total,
        "components": means,
        "shares": {name: value / total for name, value in means.items()} if total else {},
        "heads": {"own": own, "along_links": heads.sum().item() - own},
        "copying": copying,
        "lens": [
            {
                "after": point,
                "logit_difference": lens.logit_difference[i].mean().item(),
                "probability": lens.probability[i].mean().item(),
                "median_rank": lens.rank[i].double().quantile(0.5).item(),
            }
            for i, point in enumerate(lens.points)
        ],
        "example": plain(chosen.example()),
    }
    figure = attribution([{"title": str(model), "components": found["components"]}])
    report(
        found, to, "attribute", as_json=as_json,
        tables=[
            intervention_tables.attribution_table(found),
            intervention_tables.lens_table(found["lens"]),
        ],
        figures={"attribute.png": figure},
    )  # fmt: skip


MOST_COPYING = 200
"""Heads' parts whose copying scores are told: the largest; each takes a readout of every prompt."""


def _copying(chosen: ModelOnTask, components: list[str]) -> dict[str, dict[str, float | None]]:
    """Copying scores of heads' parts by name; none where weights do not tell (gates, matrices)."""
    from copy import deepcopy

    from resval_lens.analyses.weight_circuits import copying_scores, ov_paths, own_token_scores

    model = chosen.model
    if any(s.of == "v" and s.mix in ("gate", "matrix") for s in model.cfg.streams):
        return {}
    by_name = {str(path): path for path in ov_paths(model)}
    paths = [by_name[name] for name in components if name in by_name][:MOST_COPYING]
    names_io = own_token_scores(
        model, chosen.pairs.clean, chosen.named_positions()["IO"], which=paths
    )
    # Weights alone say what a head copies once those of the norms are folded in. Not every device
    # has eigenvalues.
    folded = deepcopy(model).to("cpu", print_details=False)
    folded.process_weights_(
        center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return {
        str(path): {
            "eigenvalues": None if math.isnan(score) else score,
            "names_io": names_io[path],
        }
        for path, score in copying_scores(folded, paths).items()
    }
