"""Circuits over seeds: their measures, and what was found, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from resval_lens.tasks.ioi_twins import Kind

SIGNALS: tuple[Kind, ...] = ("token", "position", "random")
"""Twins that links are frozen to, to see what they carry."""

# What is compared over seeds: its heading, and where it lies in a study.
MEASURES: dict[str, tuple[str, ...]] = {
    "edges": ("circuit", "n_edges"),
    "of": ("circuit", "n_edges_of_model"),
    "links in it": ("links", "in_circuit"),
    "faithfulness": ("circuit", "faithfulness"),
    "share through links": ("links", "share_of_circuit"),
    "model, links corrupted": ("links", "faithfulness_of_model_with_links_corrupted"),
    "path length": ("circuit", "path_length"),
    "CPR": ("curve", "cpr"),
    "CMD": ("curve", "cmd"),
}

ENOUGH_EDGES = 100
"""In smaller graphs one edge is a large share, and areas over shares say little."""


def over_seeds(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each measure of ``MEASURES`` by task and architecture: by seed, mean, population sd."""
    rows = []
    for task, kind in dict.fromkeys((e["task"], e["architecture"]) for e in entries):
        own = [e for e in entries if (e["task"], e["architecture"]) == (task, kind)]
        measures = {}
        few = own[0]["study"]["circuit"]["n_edges_of_model"] < ENOUGH_EDGES
        for name, path in MEASURES.items():
            if few and name in ("CPR", "CMD"):
                continue
            values = [_at(e["study"], path) for e in own]
            if all(value is not None for value in values):
                measures[name] = _over(values)
        rows.append(
            {
                "task": task,
                "metric": own[0]["metric"],
                "architecture": kind,
                "seeds": [e["seed"] for e in own],
                "measures": measures,
            }
        )
    return rows


def _at(study: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = study
    for step in path:
        value = None if value is None else value[step]
    return value


def sentences(
    circuits: Sequence[dict[str, Any]],
    heads: Sequence[dict[str, Any]],
    matrices: Sequence[dict[str, Any]] = (),
) -> list[str]:
    """What the value link does, in words, from what corrupting and cutting it does."""
    said = []
    found = over_seeds(circuits)
    rows = {(row["task"], row["architecture"]): row for row in found}
    for task, kind in rows:
        if "share through links" not in rows[task, kind]["measures"]:
            continue
        row = rows[task, kind]
        own, classic = row["measures"], rows.get((task, "classic"))
        beside = ""
        if classic:
            beside = f" ({classic['measures']['edges']['mean']:.3g} without the stream)"
        links, kept = own["links in it"]["mean"], own["model, links corrupted"]
        inside = "none of them a link"
        if links:
            count = "1 of them a link" if links == 1 else f"{links:.3g} of them links"
            inside = f"{count}; {_percent(own['share through links'])} of its effect runs there"
        several = row["seeds"]
        whose = "model's circuit has" if len(several) == 1 else "models' circuits have"
        said.append(
            f"{task}, {_of(several)}, by {row['metric']}: the {kind} {whose} "
            f"{own['edges']['mean']:.3g} edges{beside}, {inside}; with every link corrupted the "
            f"whole model keeps {_percent(kept)} of the clean − corrupted gap."
        )
    said += [_matrix_sentence(matrix) for matrix in matrices]
    kinds = dict.fromkeys(each["architecture"] for each in heads if each["signals"])
    for kind in kinds:
        own = [each["signals"]["effects"] for each in heads if each["architecture"] == kind]
        seeds_of = [each["seed"] for each in heads if each["architecture"] == kind]
        token, position = (_over([effect["all"][of] for effect in own]) for of in SIGNALS[:2])
        carried = "a token" if token["mean"] < position["mean"] else "a position"
        said.append(
            f"What the links of the {kind} model ({_of(seeds_of)}) carry of who gave is {carried}: "
            "frozen to prompts in which the other person's token gives they change IO − S by "
            f"{_percent(token)}, frozen to prompts in which the giver stood elsewhere by "
            f"{_percent(position)} (−200%: inverted). IO − S does not say whether either is named."
        )
    return said


def _matrix_sentence(matrix: dict[str, Any]) -> str:
    """What a circuit that keeps one metric keeps of P(IO)."""
    each = []
    for circuit in matrix["circuits"]:
        own = circuit["measured"]
        links = f", {_links(len(circuit['links']))}" if circuit["links"] else ""
        each.append(
            f"by {circuit['by']} {circuit['n_edges']} edges{links}, "
            f"f {own[circuit['by']]['resample']['faithfulness']:.2f}, "
            f"P(IO) {own['P(IO)']['resample']['circuit']:.3f}"
        )
    clean = matrix["circuits"][0]["measured"]["P(IO)"]["clean"]
    return (
        f"{matrix['name']} ({matrix['twins']} twins, {_of([matrix['seed']])}): the whole model's "
        f"P(IO) is {clean:.3f}; circuits chosen {'; '.join(each)}."
    )


def _links(count: int) -> str:
    return "1 link" if count == 1 else f"{count} links"


def _of(seeds: Sequence[int | None]) -> str:
    """``seed 0``, ``seeds 0, 1``; how many, where seeds are unknown."""
    if None in seeds:
        return "1 model" if len(seeds) == 1 else f"{len(seeds)} models"
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _over(values: list[float]) -> dict[str, Any]:
    return {"by_seed": values, "mean": float(np.mean(values)), "sd": float(np.std(values))}


def _percent(measure: dict[str, Any]) -> str:
    """The mean; of several seeds each, too."""
    several = measure["by_seed"]
    each = f" (by seed {', '.join(f'{value:z.0%}' for value in several)})" if several[1:] else ""
    return f"{measure['mean']:z.0%}{each}".replace("-", "−")
