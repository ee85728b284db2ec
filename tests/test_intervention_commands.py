"""``resval-lens patch``, ``ablate``, ``circuit``, ``attribute`` and ``induction``."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from resval_lens.analyses.circuits.methods import METHODS
from resval_lens.analyses.cli.circuit import (
    attribute_command,
    circuit_command,
)
from resval_lens.analyses.cli.induction import induction_command
from resval_lens.analyses.cli.interventions import ablate_command, indices, patch_command
from resval_lens.analyses.cli.selections import selections_command
from resval_lens.analyses.tasks.pairs import ioi_pairs
from resval_lens.analyses.tasks.problem import pose, pose_two
from resval_lens.io.checkpoint import SHIPPED_MODELS
from resval_lens.load import load_model
from resval_lens.tasks.stories import ioi_prompts
from resval_lens.training.recorded import SHIPPED
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_config

app = typer.Typer()
app.command("patch")(patch_command)
app.command("ablate")(ablate_command)
app.command("circuit")(circuit_command)
app.command("attribute")(attribute_command)
app.command("induction")(induction_command)
app.command("selections")(selections_command)

COMMANDS = {
    "patch": "patch --prompts 8",
    "patch numbers": "patch --site resid_pre --by position,layer --positions 0,-1 --prompts 12",
    "patch three": "patch --by layer,position,head --positions S2,end --layers 1,2 --prompts 4",
    "patch one": "patch --site v_link --by head --layers 1 --direction noise --prompts 4",
    "patch classifier": "patch values --prompts 6 --corruption objects",
    "ablate": "ablate --prompts 6 --layers 1 --edits zero,mean",
    "ablate classifier": "ablate values --prompts 20 --scale 1,0",
    "circuit": "circuit --prompts 4 --method eap --min-faithfulness 0.5",
    "circuit by name": "circuit --prompts 4 --metric log-probability --min-faithfulness 0.5",
    "circuit classifier": "circuit values --prompts 16 --exact --min-faithfulness 0.95",
    "circuit acdc": "circuit values --prompts 8 --method acdc --threshold 0.5 --exact",
    "attribute": "attribute --prompts 6",
    "induction": "induction stories-small-classic --rows 2 --length 6",
    "induction classifier": "induction values",
}


class Done(NamedTuple):
    output: str
    report: Any
    folder: Path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Each command once; filled as tests ask."""

    class Runs(dict[str, Done]):
        def __missing__(self, name: str) -> Done:
            folder = tmp_path_factory.mktemp("out")
            self[name] = invoke(*COMMANDS[name].split(), "--out", str(folder))
            return self[name]

    return Runs()


def invoke(*arguments: str) -> Done:
    result = CliRunner().invoke(app, [*arguments, "--quiet"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    folder = Path(arguments[arguments.index("--out") + 1])
    return Done(result.stdout, json.loads((folder / f"{arguments[0]}.json").read_text()), folder)


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers_in(each)
    elif isinstance(value, int | float):
        yield float(value)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_prints_what_its_json_holds_and_draws(name: str, done: dict[str, Done]) -> None:
    output, report, folder = done[name]
    kind = name.split()[0]
    assert (folder / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    written = {path.name for path in folder.iterdir()}
    tables = sorted(name for name in written if name.endswith(".csv"))
    pages = {"circuit.html"} if kind == "circuit" else set()
    assert written - set(tables) == {f"{kind}.png", f"{kind}.json", *pages}
    assert all(str(folder / page) in output.replace("\n", "") for page in pages)
    numbered = [f"{kind}-{number + 1}.csv" for number in range(len(tables))]
    assert tables == ([f"{kind}.csv"] if len(tables) == 1 else numbered)
    assert report["provenance"]["versions"]["torch"]
    lines = output.replace(str(folder), "").splitlines()
    if kind in ("patch", "ablate"):
        assert f"{report['task']}, {report['corruption']} corrupted" in output
    assert max(map(len, lines)) <= 80
    known = list(numbers_in(report))
    tables = "\n".join(line for line in lines if ".json" not in line)
    printed = re.findall(r"(?<![\w.])[+-]?\d+\.\d+(?![\w.])", tables)
    assert printed or "classifier" in name
    for number in printed:
        digits = len(number.partition(".")[2])
        assert any(abs(float(number) - x) <= 0.501 * 10**-digits for x in known), number


# patch


def test_patched_heads_are_plain_hooks_by_hand(done: dict[str, Done]) -> None:
    report = done["patch"].report
    model = ResValTransformer.from_pretrained("stories-small-values")
    pairs = ioi_pairs(model, ioi_prompts(8, 0, "unseen", "unseen", "unseen"), "random-S2", 0)
    rows = torch.arange(8)

    def difference(logits: torch.Tensor) -> float:
        answers = logits[rows, pairs.answers].detach()
        io, s = pairs.labels.T
        return float((answers[rows, io] - answers[rows, s]).mean())

    clean, cache = model.run_with_cache(pairs.clean)
    corrupted = model(pairs.corrupted)

    def place(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z[:, :, 2] = cache["z", 1][:, :, 2]
        return z

    patched = model.run_with_hooks(pairs.corrupted, fwd_hooks=[("blocks.1.attn.hook_z", place)])
    assert report["axes"] == {"layer": [0, 1, 2, 3], "head": [0, 1, 2, 3]}
    assert report["values"][1][2] == pytest.approx(difference(patched), rel=1e-4)
    assert report["base"] == pytest.approx(difference(corrupted), rel=1e-4, abs=1e-4)
    assert report["source"] == pytest.approx(difference(clean), rel=1e-4)
    share = (difference(patched) - difference(corrupted)) / (
        difference(clean) - difference(corrupted)
    )
    assert report["recovered"][1][2] == pytest.approx(share, rel=1e-3)
    assert report["example"]["clean"] == ioi_prompts(8, 0, "unseen", "unseen", "unseen")[0].text


def test_positions_by_number_take_prompts_of_one_length(done: dict[str, Done]) -> None:
    output, report, _ = done["patch numbers"]
    chosen = pose("stories-small-values", 12)
    lengths = (chosen.pairs.answers + 1).tolist()
    commonest = max(set(lengths), key=lengths.count)
    assert report["prompts"] == lengths.count(commonest) < 12 == report["drawn"]
    assert f"{report['prompts']} of 12 prompts have {commonest} tokens" in output
    assert report["axes"]["position"] == [0, commonest - 1]
    assert len(report["tokens"]) == commonest
    assert report["tokens"][0] == "<|endoftext|>"
    assert "".join(report["tokens"][1:]) == report["example"]["clean"]
    last, first = report["recovered"][1], report["recovered"][0]  # [position][layer]
    assert first == pytest.approx([0, 0, 0, 0], abs=1e-5)  # before the names nothing differs
    assert last[0] == pytest.approx(0, abs=1e-4)
    assert last[3] > 0.5


def test_positions_by_name_keep_every_prompt(done: dict[str, Done]) -> None:
    report = done["patch three"].report
    assert report["prompts"] == 4
    assert report["axes"] == {"layer": [1, 2], "position": ["S2", "end"], "head": [0, 1, 2, 3]}
    assert report["tokens"] is None


def test_links_are_sites_and_noise_starts_from_clean(done: dict[str, Done]) -> None:
    report = done["patch one"].report
    assert report["axes"] == {"head": [0, 1, 2, 3]}
    assert report["base"] > report["source"]
    assert max(range(4), key=lambda head: report["recovered"][head]) == 2


def test_a_classifier_is_patched_by_position(done: dict[str, Done]) -> None:
    report = done["patch classifier"].report
    assert (report["task"], report["metric"]) == ("classifying in context", "margin")
    assert report["corruption"] == "objects"
    assert list(report["axes"]) == ["layer", "position"]
    assert report["tokens"] == [*"olololololololol", "q"]
    assert report["recovered"][1][16] == pytest.approx(1, abs=0.5)


# ablate


def test_ablations_of_a_classifier(done: dict[str, Done]) -> None:
    report = done["ablate classifier"].report
    values = {row["edit"]: row["measures"] for row in report["rows"]}
    assert list(values) == ["zero", "mean", "resample", "scale 1", "scale 0"]
    assert report["story_loss"] is None
    assert values["scale 1"] == pytest.approx(report["clean"])
    assert values["scale 0"] == pytest.approx(values["zero"])
    chosen, others = pose_two("values", 20)
    assert (len(chosen.pairs), len(others.pairs)) == (20, 20)
    assert not torch.equal(chosen.pairs.clean, others.pairs.clean)
    right = chosen.model(chosen.pairs.clean).argmax(-1) == chosen.pairs.labels[:, 0]
    assert report["clean"]["accuracy"] == pytest.approx(right.float().mean().item())


def test_ablations_of_a_language_model(done: dict[str, Done]) -> None:
    report = done["ablate"].report
    assert report["measures"] == ["logit difference", "P(IO)", "accuracy"]
    assert {row["links"] for row in report["rows"]} == {"v1", *(f"v1.h{h}" for h in range(4))}
    whole = {row["edit"]: row["measures"] for row in report["rows"] if row["links"] == "v1"}
    assert set(whole) == {"zero", "mean"}
    assert whole["zero"]["P(IO)"] < report["clean"]["P(IO)"] / 2
    loss = report["story_loss"]
    assert loss["cut"]["v1"] > loss["clean"]


# circuit


def test_circuits_are_evaluated_on_other_prompts(done: dict[str, Done]) -> None:
    report = done["circuit"].report
    assert report["method"] == "eap"
    assert report["prompts"] == {"scored": 4, "evaluated": 4}
    assert report["circuit"]["faithfulness"] >= 0.5
    assert "a0.h2<v>->a1.h2<v>" in report["circuit"]["links"]
    chosen, others = pose_two("stories-small-values", 4)
    assert not {p.text for p in chosen.prompts} & {p.text for p in others.prompts}


def test_a_circuit_is_chosen_by_the_metric_that_is_asked_for(done: dict[str, Done]) -> None:
    output, report, _ = done["circuit by name"]
    assert report["by"] == "log P(IO)"
    assert report["metric"]["clean"] == report["measured"]["log P(IO)"]["clean"] < 0
    own = report["measured"]["log P(IO)"]["resample"]
    assert own["faithfulness"] == pytest.approx(report["circuit"]["faithfulness"])
    assert "Log P(IO) on 4 prompts" in output
    assert f"P(IO) is {report['measured']['P(IO)']['clean']:.3f} on these prompts" in output
    with pytest.raises(
        ValueError, match=r"metric: indirect objects is measured by .*; got 'margin'"
    ):
        pose_two("stories-small-values", 4)[0].by("margin")


def test_scores_are_compared_with_exact_ones(done: dict[str, Done]) -> None:
    output, report, _ = done["circuit classifier"]
    assert f"a rank correlation of {report['agreement']['rank']:.2f}" in output
    assert report["circuit"]["faithfulness"] >= 0.95


def test_acdc_keeps_what_matters(done: dict[str, Done]) -> None:
    report = done["circuit acdc"].report
    assert (report["method"], report["threshold"]) == ("acdc", 0.5)
    assert {"input->a1.h0<v>", "a1.h0->logits"} <= set(report["circuit"]["edges"])
    assert report["circuit"]["n_edges"] < report["circuit"]["n_edges_of_model"]


def test_edges_above_a_threshold_are_told_apart_from_those_of_the_circuit(tmp_path: Path) -> None:
    asked = ("circuit", "values", "--prompts", "8", "--method", "eap", "--threshold", "1")
    output, report, _ = invoke(*asked, "--out", str(tmp_path))
    above = [each for each in report["strongest"] if abs(each["score"]) >= 1]
    assert len(report["strongest"]) > len(above) > report["circuit"]["n_edges"] > 0
    said = (
        f"{report['circuit']['n_edges']} of the {len(above)} edges with |score| ≥ 1 lie on a path"
    )
    assert said in " ".join(output.split())
    assert "strongest edges lie" not in output


def test_a_circuit_goes_out_and_comes_back(tmp_path: Path) -> None:
    file, out = tmp_path / "new" / "graph.json", ("--out", str(tmp_path / "out"))
    asked = ("circuit", "values", "--prompts", "8", "--minimality", "9")
    _, found, _ = invoke(*asked, "--method", "eap", "--edges", "9", "--export", str(file), *out)
    output, again, _ = invoke(*asked, "--import", str(file), *out)
    assert again.pop("imported") == str(file)
    assert found["circuit"]["edges"] == again["circuit"]["edges"]
    assert found["circuit"]["faithfulness"] == again["circuit"]["faithfulness"]
    assert (again["method"], again["curve"]) == ("eap", found["curve"])
    assert f"8 prompts: {again['metric']['clean']:.3f}" in " ".join(output.split())
    fewer = ("--import", str(file), "--edges", "5")  # by its scores
    _, chosen, _ = invoke(*asked, *fewer, *out)
    assert (chosen["search"]["size"], chosen["strongest"]) == (5, found["strongest"])
    with pytest.raises(ValueError, match=r"graph.json has scores: leave out --method and --ig-"):
        invoke(*asked, "--import", str(file), "--method", "eap", *out)


def test_a_circuit_that_leads_nowhere_is_told_and_not_drawn(tmp_path: Path) -> None:
    asked = ("circuit", "classic", "--prompts", "4", "--edges", "1", "--out", str(tmp_path))
    output, report, _ = invoke(*asked)
    assert (report["circuit"]["edges"], report["circuit"]["faithfulness"]) == ([], 0)
    assert "0 of the 1 strongest edges lie on a path from" in " ".join(output.split())
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".csv"] == ["circuit.json"]


# attribute


def test_shares_add_up_and_carry_copying_scores(done: dict[str, Done]) -> None:
    report = done["attribute"].report
    assert sum(report["components"].values()) == pytest.approx(report["total"], rel=1e-4)
    assert sum(report["shares"].values()) == pytest.approx(1, rel=1e-4)
    heads = {n: v for n, v in report["components"].items() if re.match(r"a\d", n)}
    assert set(report["copying"]) == set(heads)
    along = sum(value for name, value in heads.items() if " from " in name)
    assert report["heads"]["along_links"] == pytest.approx(along, abs=1e-3)
    assert report["heads"]["own"] == pytest.approx(sum(heads.values()) - along, abs=1e-3)
    assert [row["after"] for row in report["lens"]] == ["embed", "0", "1", "2", "3"]
    assert report["lens"][-1]["logit_difference"] == pytest.approx(report["total"], rel=1e-4)


# induction


def test_a_model_without_links_has_head_scores_and_no_edits(done: dict[str, Done]) -> None:
    report = done["induction"].report
    assert (report["rows"], report["length"], report["edits"]) == (2, 6, [])
    assert len(report["scores"]["prefix_matching"]) == 4


def test_a_variant_is_compared_with_classic(done: dict[str, Done]) -> None:
    output, report, _ = done["induction classifier"]
    assert list(report["variants"]) == ["classic", "values"]
    values = report["variants"]["values"]
    halfway = [
        next(step for step, y in zip(values["steps"], curve, strict=True)
             if y > (curve[0] + curve[-1]) / 2)
        for curve in values["measures"]["ila1_labels"]["by_seed"].values()
    ]  # fmt: skip
    assert f"{np.mean(halfway):,.0f} ± {np.std(halfway):,.0f}" in output


def test_runs_of_a_folder_are_all_compared(tmp_path: Path) -> None:
    for name in ("classic-seed0", "queries-values-seed0"):
        shutil.copytree(SHIPPED / "icl" / name, tmp_path / "runs" / name)
    found = invoke("induction", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path))
    assert list(found.report["variants"]) == ["classic", "queries-values"]
    folder = str(tmp_path / "runs" / "classic-seed0")
    assert list(invoke("induction", folder, "--out", str(tmp_path)).report["variants"]) == [
        "classic"
    ]


# Models by name


def test_models_are_found_by_name_and_folder(tmp_path: Path) -> None:
    shipped = SHIPPED_MODELS["stories-small-values"]
    for name in (str(shipped), str(shipped.parent)):  # a model, and its training run
        loaded = load_model(name)
        assert loaded.model.cfg.streams[0].of == "v"
        assert loaded.run is None
    for name in (
        "queries",
        str(SHIPPED / "icl" / "queries-seed0"),
        str(SHIPPED / "icl" / "queries-seed0/model"),
    ):
        recorded = load_model(name).run
        assert recorded is not None
        assert recorded.run.folder_name == "queries-seed0"
    shutil.copytree(SHIPPED / "icl" / "queries-seed0" / "model", tmp_path / "alone")
    with pytest.raises(ValueError, match="alone is a classifier without its training run"):
        load_model(str(tmp_path / "alone"))
    ResValTransformer(tiny_config()).save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        pose(str(tmp_path / "tiny"), 2)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("patch stories-smal-values", "no model 'stories-smal-values'; did you mean "
         "'stories-small-values'? There are stories-small-classic, stories-small-values, classic"),
        ("patch analyses", "analyses holds no model that can be loaded; expected a folder that"),
        ("patch values --corruption random-S2", "has labels, objects; got 'random-S2'"),
        ("patch --corruption labels", "indirect objects, has random-S2, ABC, position, token, "
         "token+position, random, random+position; got 'labels'"),
        ("patch values --seed 1", "--seed is for prompts of text; values is a classifier"),
        ("patch values --general", "--general: values, on classifying in context, has no general"),
        ("patch --task pronoun --stories", "on gendered pronouns, has no stories' prompts"),
        ("patch --dtype int8", "dtype must be one of float32, float64, bfloat16, float16; got"),
        ("patch --streams x", "'x'"),
        ("patch values --several-tokens", "--several-tokens is for prompts of text; values is a"),
        ("induction values --fold", "--fold is for language models"),
        ("induction values --streams v", "--streams is for language models"),
        ("patch values --prompts 20000", "values has 10,000 sequences; 20,000 are needed"),
        ("patch --task nim", "task must be one of ioi, icl, "),
        ("patch values --task ioi", "task ioi: its prompts are tokens; values reads vectors"),
        ("ablate --task icl", "prompts are vectors; stories-small-values reads tokens"),
        ("patch --prompts 0", "prompts must be a whole number from 1 up; got 0"),
        ("patch --by layer,heads", "by must name some of layer, position, head; got 'heads'"),
        ("patch --layers a", "layers must be numbers like 0,2,-1 or 0-3; got 'a'"),
        ("patch --heads 4 --prompts 2", "heads: 4 is not among 0 to 3"),
        ("patch --positions end,S3", "positions must be among IO, S1, S1+1, S2, end, or numbers "
         "alone; got 'S3'"),
        ("patch values --positions end", "positions must be numbers 0 to 16 for a classifier"),
        ("patch --site vlink --prompts 2", "site='vlink'"),
        ("patch --direction up --prompts 2", "direction must be 'denoise' or 'noise'; got 'up'"),
        ("ablate classic", "this model has no links"),
        ("ablate --scale x", "scale must be numbers like 0.5,2,-1; got 'x'"),
        ("ablate --scale inf", "scale must be finite numbers; got inf"),
        ("ablate --edits zeros --prompts 2", "edits must be among zero, mean, resample"),
        ("circuit --min-faithfulness 2", "min_faithfulness must be above 0 and at most 1; got 2.0"),
        ("circuit values --method acdc --threshold 100 --prompts 4", "threshold=100 leaves no"),
        ("circuit values --method acdc --threshold 0 --prompts 4", "threshold must be above 0 for "
         "acdc; got 0.0"),
        ("circuit values --method acdc --prompts 4", "threshold must be above 0 for acdc; got "
         "None"),
        ("circuit values --method eap --ig-steps 3 --prompts 4", "steps=3: the method eap does not "
         "average over runs"),
        ("circuit values --method foo --prompts 4", "method must be one of "
         f"{', '.join(METHODS)}; got 'foo'"),
        ("circuit --prompts 0", "prompts must be a whole number from 1 up; got 0"),
        ("selections --held-out 0", "held-out must be a whole number from 1 up; got 0"),
        ("selections --prompts 4 --held-out 5", "held-out must be at most 4, as many as edges are "
         "scored on; got 5"),
        ("attribute values --prompts 2", "a classifier's logits are not a sum"),
        ("induction values --length 5", "--length is for language models"),
        ("induction valuess", "did you mean 'values'?"),
        ("induction nothing --runs resval_lens/data/icl", "holds no runs of 'nothing'; there are "
         "classic, queries"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked_annotations")
def test_bad_input_is_one_clear_line(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    arguments = [*command.split(), "--out", str(tmp_path), "--quiet"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), ("0,2,-1", [0, 2, -1]), ("1-3", [1, 2, 3]), ("-2", [-2]), (" 4 ", [4])],
)
def test_indices_are_numbers_from_either_end(text: str | None, expected: list[int] | None) -> None:
    assert indices(text, "layers") == expected


@pytest.mark.parametrize("text", ["", "1.5", "a-b", ","])
def test_other_indices_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="heads must"):
        indices(text, "heads")
