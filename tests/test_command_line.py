"""The command line as a whole: what every command has, in the same words, and how each ends."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_type_hints

import matplotlib.pyplot as plt
import pytest
import torch
import typer
from rich.table import Table
from typer.models import OptionInfo
from typer.testing import CliRunner

from resval_lens.analyses.circuits.methods import METHODS
from resval_lens.analyses.cli import app as cli
from resval_lens.analyses.cli import completion
from resval_lens.analyses.cli.options import on_device, words
from resval_lens.analyses.cli.reporting import as_text, report, report_runs
from resval_lens.analyses.comparison.icl_emergence import TABLES
from resval_lens.analyses.drawing.figures import KINDS
from resval_lens.analyses.results.tables import STYLE, p_cell
from resval_lens.hooks.patching import AXES, DIRECTIONS
from resval_lens.io.checkpoint import SHIPPED_MODELS
from resval_lens.io.formats import FORMATS
from resval_lens.load import shipped_classifiers
from resval_lens.models.language_models import PRESETS
from resval_lens.models.presets import ICL_VARIANTS, MEMORY_VARIANTS
from resval_lens.training.recorded import SHIPPED

RUN = CliRunner(env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"})


def all_commands(app: typer.Typer, path: str = "") -> Iterator[tuple[str, Callable[..., None]]]:
    """Every command's name and function, groups' from within."""
    for info in app.registered_commands:
        assert info.name
        assert info.callback
        yield f"{path} {info.name}".strip(), info.callback
    for group in app.registered_groups:
        assert group.typer_instance
        yield from all_commands(group.typer_instance, f"{path} {group.name}".strip())


COMMANDS = dict(all_commands(cli.app))


def parameters(name: str) -> dict[str, tuple[tuple[type, ...], Any]]:
    """Options by their first spelling, arguments by name: types, and what typer knows."""
    found = {}
    for python, hint in get_type_hints(COMMANDS[name], include_extras=True).items():
        if python == "return":
            continue
        base, info = get_args(hint)
        several = get_args(base) if isinstance(base, types.UnionType) else (base,)
        given = [info.default, *(info.param_decls or ())]  # Option("--json"): the first argument
        spelled = [each.partition("/")[0] for each in given if str(each).startswith("--")]
        own = "--" + python.replace("_", "-") if isinstance(info, OptionInfo) else python
        kinds = tuple(kind for kind in several if kind is not type(None))
        found[(spelled or [own])[0]] = kinds, info
    return found


def invoke(*arguments: str) -> Any:
    return RUN.invoke(cli.app, list(arguments), prog_name="resval-lens")


def examples() -> list[tuple[str, str]]:
    """Commands in backquotes of every docstring."""
    return [
        (name, line)
        for name, function in COMMANDS.items()
        for line in re.findall(r"`(resval-lens [^`]*)`", " ".join((function.__doc__ or "").split()))
    ]


# What every command has


def test_there_are_commands():
    assert len(COMMANDS) == 38


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself(name):
    doc = COMMANDS[name].__doc__ or ""
    assert re.search(rf"Example: `resval-lens {name}\b", doc)
    done = invoke(*name.split(), "--help")
    assert done.exit_code == 0
    assert "Example: resval-lens" in done.output
    assert all(len(line) <= 80 for line in done.output.splitlines())
    for option, (_, info) in parameters(name).items():
        assert info.help, option
        assert info.help[0] in "IQO" or info.help.endswith("."), option


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_can_be_quiet_and_answer_in_json(name):
    assert {"--quiet", "--json"} <= set(parameters(name))


def test_every_command_says_where_models_run():
    without = [name for name in COMMANDS if "--device" not in parameters(name)]
    said = r"[Oo]n\s+the\s+CPU|a\s+CPU\s+program|run\s+on\s+any\s+device|accelerate\s+chooses"
    for name in without:
        assert re.search(said, COMMANDS[name].__doc__ or ""), name
    assert set(COMMANDS) - set(without) == {
        "compare", "generate", "patch", "ablate", "circuit", "attribute", "induction", "eval ioi",
        "eval harness", "selections", "plan circuit", "roles", "movers", "train graft",
        "attention",
    }  # fmt: skip


def test_every_command_that_draws_has_a_seed():
    unseeded = {name for name in COMMANDS if not {"--seed", "--seeds"} & set(parameters(name))}
    queue = {"runs status", "runs next", "runs all"}  # its file has the seeds
    assert unseeded == {
        "link-in-training",
        "grafts",  # bootstraps are drawn alike each time
        "plan circuit",
        "plan training",
        "eval emergence",
        *queue,
    }
    drawn_later = {name for name in COMMANDS if "--seed" not in parameters(name)} - unseeded
    training = {"train icl", "train lm", "train memory", "train graft"}
    assert drawn_later == {*training, "memory curves", "memory encodings"}  # these read training


def test_an_option_means_the_same_everywhere():
    known: dict[str, tuple[Any, str, str]] = {}
    for name in COMMANDS:
        for option, (kinds, info) in parameters(name).items():
            if not isinstance(info, OptionInfo):
                continue
            first = known.setdefault(option, (kinds, info.help, name))
            assert (kinds, info.help) == first[:2], f"{option} of {name} and of {first[2]}"


@pytest.mark.parametrize(("name", "line"), examples())
def test_examples_are_commands(name, line):
    command: Any = typer.main.get_command(cli.app)
    arguments = shlex.split(line)[1:]
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    context = command.make_context(name, arguments, resilient_parsing=False)
    assert context.params


# Results


CHEAP = {
    "plan training": ("plan training llama-1b --gpus 8", "plan"),
    "reproduce": ("reproduce table-1", "table-1"),
    "emergence": ("eval emergence", "lm-emergence"),
    "ioi": ("eval ioi stories-small-values --prompts 2", "ioi"),
    "combinations": ("amicl combinations --trials 4", "amicl-combinations"),
    "patch": ("patch --prompts 4", "patch"),
    "circuit": ("circuit values --prompts 8 --method eap --min-faithfulness 0.5", "circuit"),
    "attention": ("attention --text He.", "attention"),
    "curves": ("memory curves --variants one-layer", "memory-curves"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "name"), CHEAP.values(), ids=list(CHEAP))
def test_json_is_what_is_written(line, name, tmp_path):
    done = invoke(*line.split(), "--json", "--quiet", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert done.stdout == (tmp_path / f"{name}.json").read_text()
    assert "versions" in json.loads(done.stdout)["provenance"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("kind", "start"), [("pdf", b"%PDF-"), ("svg", b"<?xml"), (None, b"\x89PNG")]
)
def test_figures_have_the_format_that_is_asked_for(kind, start, tmp_path):
    asked = () if kind is None else ("--figures", kind)
    done = invoke(*asked, "reproduce", "figure-3", "--out", str(tmp_path))
    (path,) = (path for path in tmp_path.iterdir() if path.suffix not in (".json", ".csv"))
    assert path.name == f"figure-3.{kind or 'png'}"
    assert path.read_bytes().startswith(start)
    assert str(path) in done.stdout


def test_without_json_tables_and_paths_are_printed(tmp_path):
    done = invoke("plan", "training", "stories-small", "--out", str(tmp_path / "deep" / "er"))
    assert str(tmp_path / "deep" / "er" / "plan.json") in done.stdout
    assert "parameters" in done.stdout
    printed = invoke("plan", "training", "stories-small", "--json")
    assert json.loads(printed.stdout)["parameters"]["total"] > 1e6


def test_figure_3_is_data_too(tmp_path):
    shown = invoke("reproduce", "figure-3", "--json", "--out", str(tmp_path)).stdout
    assert shown == (tmp_path / "figure-3.json").read_text()
    data = json.loads(shown)
    assert {run["variant"] for run in data["runs"]} == {"classic", "queries", "keys", "values"}
    first = data["runs"][0]
    lines = (
        SHIPPED / "icl" / f"{first['variant']}-seed{first['seed']}" / "metrics.jsonl"
    ).read_text()
    recorded = [json.loads(line) for line in lines.splitlines()]
    assert first["step"] == [line["step"] for line in recorded]
    assert first["iw"]["loss"] == [line["iw"]["loss"] for line in recorded]


def test_texts_come_whole_as_json():
    asked = ["generate", "stories-small-values", "Once", "--max-new-tokens", "5", "--texts", "2"]
    data = json.loads(invoke(*asked, "--json").stdout)
    assert [text["seed"] for text in data["texts"]] == [0, 1]
    shown = invoke(*asked).stdout
    assert shown == "\n\n".join(text["text"] for text in data["texts"]) + "\n"
    folder = SHIPPED_MODELS["stories-small-values"].parent  # of the training run
    assert invoke("generate", str(folder), *asked[2:]).stdout == shown


def test_a_report_writes_and_prints(tmp_path, capsys):
    table = Table("a", "b", **STYLE)
    figure, _ = plt.subplots()
    data = {"mean": float("nan"), "many": (1, [float("inf"), 2.5])}
    parts: Any = {"tables": [table, "a line"], "found": ["It is."]}
    beside: Any = {"more.json": {"x": 1}}
    report(data, tmp_path / "out", "some", as_json=False, figures={"some.png": figure},
           beside=beside, **parts)  # fmt: skip
    shown = capsys.readouterr().out
    assert "a line\n• It is.\n\n" in shown
    written = ("some.csv", "more.json", "some.json")
    assert shown.endswith("some.png\n" + "".join(f"{tmp_path / 'out' / x}\n" for x in written))
    assert (tmp_path / "out" / "some.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((tmp_path / "out" / "some.json").read_text(), parse_constant=pytest.fail)
    assert list(kept) == ["found", "mean", "many", "provenance"]
    assert kept["found"] == ["It is."]
    assert kept["mean"] is None
    assert kept["many"] == [1, [None, 2.5]]
    more = json.loads((tmp_path / "out" / "more.json").read_text())
    assert more == {"x": 1, "provenance": kept["provenance"]}
    report(data, None, "some", as_json=True, **parts)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["many"] == [1, [None, 2.5]]
    assert captured.err == ""


def test_finished_runs_are_reported(tmp_path, capsys):
    shutil.copytree(SHIPPED / "icl" / "classic-seed0", tmp_path / "classic-seed0")
    report_runs([tmp_path / "classic-seed0"], as_json=False)
    assert capsys.readouterr().out == f"{tmp_path / 'classic-seed0' / 'model'}\n"
    report_runs([tmp_path / "classic-seed0"], as_json=True)
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["folder"] == str(tmp_path / "classic-seed0")
    last = (tmp_path / "classic-seed0" / "metrics.jsonl").read_text().splitlines()[-1]
    assert run["metrics"] | {"sha256": json.loads(last)["sha256"]} == json.loads(last)


def test_text_is_json_to_the_letter():
    assert as_text({"a": (1, 2), 3: None}) == '{\n  "a": [\n    1,\n    2\n  ],\n  "3": null\n}\n'
    assert words(" a, b,,c ") == ["a", "b", "c"]


# Ends


def finish(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of main() itself."""
    monkeypatch.setattr(sys, "argv", ["resval-lens", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0  # type: ignore[return-value]


@pytest.mark.parametrize(
    "line",
    [
        "patch nothing",
        "patch --device warp",
        "plan training llama-1b --gpus 0",
        "reproduce table-9 --json",
        "train memory --unit words",
        "eval ioi --prompts 0",
        "memory curves --jobs 2",
        "generate stories-small-values --texts 0 --json",
    ],
)
def test_an_expected_error_is_one_line(line, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert finish(monkeypatch, *line.split()) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("resval-lens: ")
    assert captured.err.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_error_of_several_lines_is_one(monkeypatch, capsys):
    def fail(*given: Any, **settings: Any) -> None:
        raise RuntimeError("one\n  two")

    monkeypatch.setattr("resval_lens.training.plan.plan", fail)
    assert finish(monkeypatch, "plan", "training", "llama-1b") == 1
    assert capsys.readouterr().err == "resval-lens: one two\n"
    monkeypatch.setattr(sys, "argv", ["resval-lens", "--debug", "plan", "training", "llama-1b"])
    with pytest.raises(RuntimeError, match="one"):
        cli.main()


def test_figures_have_no_other_format(monkeypatch, capsys):
    assert finish(monkeypatch, "--figures", "bmp", "plan", "training", "llama-1b") == 1
    said = "resval-lens: --figures must be one of png, svg, pdf; got 'bmp'\n"
    assert capsys.readouterr().err == said


def test_wrong_usage_is_2_and_help_is_0(monkeypatch, capsys):
    assert finish(monkeypatch, "plan", "training", "--gpus", "many") == 2
    assert finish(monkeypatch, "plann") == 2
    assert finish(monkeypatch, "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for code in ("0 done", "1 an error", "2 wrong usage", "130 stopped by Ctrl-C"):
        assert code in shown


def test_ctrl_c_is_one_line_and_130(monkeypatch, capsys):
    def interrupt(*given: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("resval_lens.training.plan.plan", interrupt)
    assert finish(monkeypatch, "plan", "training", "llama-1b") == 130
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "stopped\n")


def test_the_version_names_the_commit(monkeypatch, capsys):
    monkeypatch.setattr("resval_lens.io.provenance.git_commit", lambda: "abc+")
    assert finish(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == "resval-lens 0.1.0 (commit abc+)\n"
    monkeypatch.setattr("resval_lens.io.provenance.git_commit", lambda: None)
    assert finish(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == "resval-lens 0.1.0\n"


# Completion


def test_help_and_completion_load_no_torch():
    """Both in one process of its own, where nothing was imported before."""
    script = (
        "import os, sys\n"
        "from resval_lens.analyses.cli.app import app\n"
        "for arguments in (['--help'], ['patch', '--help'], ['plan', 'training', '--gpus', 'x']):\n"
        "    try: app(arguments)\n"
        "    except SystemExit: pass\n"
        "os.environ.update(_RESVAL_LENS_COMPLETE='complete_bash', COMP_CWORD='2',\n"
        "                  COMP_WORDS='resval-lens reproduce ta')\n"
        "try: app(prog_name='resval-lens')\n"
        "except SystemExit: pass\n"
        "print('loaded', *({'torch', 'matplotlib', 'numpy', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split()[-4:] == ["table-1", "table-5", "table-6", "loaded"]


def completed(monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    monkeypatch.setenv("COMP_WORDS", f"resval-lens {line}")
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" "))))
    done = RUN.invoke(
        cli.app, [], prog_name="resval-lens", env={"_RESVAL_LENS_COMPLETE": "complete_bash"}
    )
    return done.output.split()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("--figures ", ["png", "svg", "pdf"]),
        ("patch stories", ["stories-small-classic", "stories-small-values"]),
        ("patch resval_lens/dat", ["resval_lens/data/"]),
        ("generate stories-small-v", ["stories-small-values"]),
        ("plan training t", ["tinystories-8m"]),
        ("reproduce figure-3", ["figure-3"]),
        ("patch --direction ", ["denoise", "noise"]),
        ("patch --by layer,", ["layer,position", "layer,head"]),
        ("ablate --edits zero,m", ["zero,mean"]),
        ("circuit --corruption token", ["token", "token+position"]),
        ("circuit --method eap", ["eap", "eap-ig"]),
        ("circuit --method ", list(METHODS)),
        ("circuit --select optimum", ["optimum", "optimum-helpful"]),
        ("selections --methods eap,ex", ["eap,exact"]),
        ("circuit --metric ", ["logit-difference", "log-probability", "names", "probability",
                               "margin", "probability-difference"]),
        ("circuit --task icl --metric ", ["margin", "log-probability", "probability"]),
        ("ablate --task icl --corruption ", ["labels", "objects"]),
        ("ablate --task nil --corruption l", ["labels"]),
        ("patch --task ioi --positions IO,S1", ["IO,S1", "IO,S1+1"]),
        ("patch --task icl --positions ", ["all"]),
        ("train icl --variants keys,values-", ["keys,values-detached", "keys,values-half",
                                               "keys,values-norm-matched", "keys,values-no-own"]),
        ("memory curves --variants alibi", ["alibi", "alibi-values"]),
        ("induction cl", ["classic"]),
        ("ablate --device c", ["cpu", "cuda"]),
        ("ablate --dtype b", ["bfloat16"]),
        ("ablate --setting st", ["step="]),
        ("patch --task pro", ["pronoun"]),
        ("amicl sweep --similarity p", ["pearson"]),
    ],
)  # fmt: skip
def test_shells_complete_fixed_names(line, found, monkeypatch):
    assert completed(monkeypatch, line) == found


def test_completion_knows_what_the_commands_accept():
    assert set(SHIPPED_MODELS) == set(completion.LANGUAGE_MODELS)
    shipped = set(shipped_classifiers())
    assert set(completion.MODELS) == {*SHIPPED_MODELS, *shipped}
    assert set(completion.PRESETS) == {name for name, _ in PRESETS}
    assert set(completion.SPECS) == {spec for _, spec in PRESETS}
    assert set(TABLES) < set(completion.RESULTS)
    assert tuple(ICL_VARIANTS) == completion.CLASSIFIER_VARIANTS
    assert tuple(MEMORY_VARIANTS) == completion.SIMPLIFIED_VARIANTS
    assert (completion.AXES, completion.DIRECTIONS) == (AXES, DIRECTIONS)
    assert completion.IMAGES == KINDS
    assert set(completion.SETTINGS) == {name for each in FORMATS for name in each.settings}


# Devices


def test_the_cpu_is_the_default_to_the_bit(tmp_path):
    def asked(*more: str) -> dict[str, Any]:
        arguments = ["eval", "ioi", "stories-small-values", "--prompts", "2", "--json", *more]
        return json.loads(invoke(*arguments, "--out", str(tmp_path)).stdout)

    first, second = asked(), asked("--device", "cpu")
    assert first.pop("provenance")["versions"] == second.pop("provenance")["versions"]
    assert first == second


@pytest.mark.parametrize("name", ["warp", "meta", "cuda:x", ""])
def test_what_torch_cannot_run_on_is_refused(name):
    with pytest.raises(ValueError, match=f"device must be one of cpu, cuda.*; got '{name}'"):
        on_device(name)


def test_a_device_must_be_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"device 'cuda' is not available: torch .* has none of its"
    ):
        on_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [on_device(name) for name in ("cuda", "cuda:1", "cpu", None)] == [
        "cuda", "cuda:1", "cpu", None
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"'cuda:2' is not available: torch .* has 2 of its kind"):
        on_device("cuda:2")


LANGUAGE, CLASSIFIER = "transformer.ResValTransformer", "models.classifier.ICLClassifier"
MOVED = {
    "patch values": CLASSIFIER,
    "patch": LANGUAGE,
    "ablate": LANGUAGE,
    "circuit": LANGUAGE,
    "attribute": LANGUAGE,
    "induction stories-small-values": LANGUAGE,
    "generate stories-small-values": LANGUAGE,
    "eval ioi": LANGUAGE,
    "eval harness stories-small-values": LANGUAGE,
    "train graft stories-small-values": LANGUAGE,
}
"""Commands with --device, and the class whose models they load."""


@pytest.mark.parametrize("line", list(MOVED))
def test_models_go_where_they_are_asked_to(line, monkeypatch, tmp_path):
    """Each command with --device loads its model onto the device."""

    class Loaded(Exception):
        pass

    def load(name: Any, *, device: Any = None, **settings: Any) -> None:
        raise Loaded(device, *map(settings.get, ("streams", "dtype", "settings")))

    assert "--device" in parameters(
        " ".join(line.split()[: 2 if line.startswith(("eval", "train")) else 1])
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(f"resval_lens.{MOVED[line]}.from_pretrained", load)
    where = {"generate": [], "train": ["--runs", str(tmp_path)]}.get(
        line.split()[0], ["--out", str(tmp_path)]
    )
    for device in ("cpu", "cuda:1"):
        done = invoke(*line.split(), "--device", device, *where)
        assert isinstance(done.exception, Loaded), done.output
        assert done.exception.args == (device, None, None, {})
    if line.startswith("train"):  # its streams are put on what was loaded
        return
    more = ["--streams", "q", "--setting", "softcap=20", "--setting", "step=300"]
    done = invoke(*line.split(), *more, *where)
    assert done.exception.args == ("cpu", "q", None, {"softcap": 20.0, "step": 300.0})


def test_brackets_in_a_folders_name_are_no_markup(tmp_path):
    folder = tmp_path / "a[red]b[/]"
    done = CliRunner().invoke(cli.app, ["plan", "training", "llama-1b", "--out", str(folder)])
    assert done.exit_code == 0, done.output
    assert str(folder / "plan.json") in done.stdout
    assert "[bold]" not in done.stdout


@pytest.mark.parametrize("what", ["table-1", "further-variants"])
def test_p_values_are_whole_in_80_columns(what, tmp_path):
    done = invoke("reproduce", what, "--quiet", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    tables = done.output.split(str(tmp_path))[0]
    assert "…" not in tables
    for test in json.loads((tmp_path / f"{what}.json").read_text())["t_tests"][:7]:
        assert f"{test['t']:.2f}" in tables
        assert f" {p_cell(test['p'])} " in tables
