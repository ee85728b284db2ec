"""The records of one run as short tables."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def summary(out: Path, how: Mapping[str, str]) -> str:
    """Markdown: where it ran, how each step went, and the numbers of each record in ``out``."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    lines = ["# On a device", ""]
    if records:
        where = next(iter(records.values()))["provenance"]
        versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
        lines += [f"{where['device']}, CUDA {where['cuda']}; {versions}; commit "
                  f"{where['git_commit']}; {where['created']}", ""]  # fmt: skip
    lines += table(("step", "how it went"), how.items())
    for name, rows in (("tests", tests), ("training", training), ("analyses", analyses)):
        if name in records:
            lines += rows(records[name]["results"])
    for variant in ("classic", "values"):
        if f"language-model-{variant}" in records:
            lines += language_model(variant, records[f"language-model-{variant}"]["results"])
    return "\n".join(lines)


def table(head: tuple[str, ...], rows: Any) -> list[str]:
    made = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(map(str, row)) + " |" for row in made] + [""]


def missing(result: dict[str, Any]) -> str | None:
    return result.get("error") or (f"skipped: {result['skipped']}" if "skipped" in result else None)


def tests(results: dict[str, Any]) -> list[str]:
    outcomes = [result["outcome"] for result in results.values()]
    counts = ", ".join(f"{outcomes.count(x)} {x}" for x in sorted(set(outcomes)))
    failed = [f"- failed: {name}" for name, x in results.items() if x["outcome"] == "failed"]
    return [f"Tests: {counts or 'none'}", *failed, ""]


def training(results: dict[str, Any]) -> list[str]:
    """Beside the plain model of the same stream, eager with eager, compiled with compiled."""
    rows = []
    for name, x in results.items():
        if missing(x):
            rows.append((name, missing(x), "", "", "", "", ""))
        elif name == "matrix_product":
            rate = f"{x['flops_per_second'] / 1e12:.0f} TFLOP/s"
            rows.append((f"bf16 product of {x['size']}² matrices", ms(x), rate, "", "", "", ""))
        else:
            peer = results.get(name.replace(", ours", ", plain"), {})
            ratio = f"{x['seconds'] / peer['seconds']:.3f}" if "seconds" in peer else ""
            used = "" if x["utilisation"] is None else f"{x['utilisation']:.1%}"
            rate = f"{x['tokens_per_second']:,.0f}"
            rows.append((name, ms(x), rate, used, ratio, gigabytes(x), f"{x['first_seconds']:.1f}"))
    head = ("training step", "ms (range)", "tokens/s", "utilisation", "time / plain's", "peak GB",
            "first call, s")  # fmt: skip
    return table(head, rows)


def analyses(results: dict[str, Any]) -> list[str]:
    """Beside a forward and backward run of the stock model on the same prompts."""
    rows = []
    for name, x in results.items():
        base = results.get(f"{name.split(',')[0]}, stock", {}).get("forward and backward", {})
        parts = {f"{name}, {k}": v for k, v in x.items() if isinstance(v, dict)} or {name: x}
        for part, y in parts.items():
            if missing(y):
                rows.append((part, missing(y), "", ""))
            if "seconds" not in y:
                continue
            ratio = f"{y['seconds'] / base['seconds']:.1f}" if base else ""
            rows.append((part, ms(y), ratio, gigabytes(y)))
    head = ("analysis", "ms (range)", "time / stock forward and backward", "peak GB")
    return table(head, rows)


def language_model(variant: str, results: dict[str, Any]) -> list[str]:
    rows = []
    for name, x in results.items():
        if "valid_loss" in x:
            ioi = [f"{scores['accuracy']:.0%}" for scores in x.get("ioi", {}).values()]
            rate = f"{x['tokens_per_second']:,.0f}" if "tokens_per_second" in x else ""
            rows.append((name, f"{x['valid_loss']:.3f}", ", ".join(ioi), rate))
        elif missing(x):
            rows.append((name, missing(x), "", ""))
    names = next((", ".join(x["ioi"]) for x in results.values() if x.get("ioi")), "")
    head = (f"language model, {variant}", "validation loss", f"IOI accuracy: {names}", "tokens/s")
    return table(head, rows)


def ms(x: dict[str, Any]) -> str:
    return f"{x['seconds'] * 1e3:.2f} ({x['fastest'] * 1e3:.2f} to {x['slowest'] * 1e3:.2f})"


def gigabytes(x: dict[str, Any]) -> str:
    return "" if x["peak_bytes"] is None else f"{x['peak_bytes'] / 1e9:.1f}"
