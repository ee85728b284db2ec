"""Parts of pages that are made when the site is built, so that they cannot be stale.

<!-- results: NAME -->      a section of resval_lens.analyses.report.results_page
<!-- commands -->           every command's help
<!-- architectures -->      architectures of transformers that are converted
<!-- mixes -->              every mix: its weights and what it starts with
<!-- ablations -->          every ablation: what a link carries
<!-- tasks -->              every task: what it is, its corruptions and positions
<!-- methods -->            every scoring method of edges: what it is and what it costs
<!-- selections -->         every rule by which scores choose a circuit's edges
:::* PATTERN ...            every public module whose name fits, in the order of names; each is
                            on one page only, the first that asks for it
"""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
FOLDERS = {
    "resval_lens": ROOT / "resval_lens",
    "resval_lens.hooks": ROOT / "hooks",
    "resval_lens.analyses": ROOT / "analyses",
}
_MODULES = re.compile(r"^:::\* (.+)$", re.MULTILINE)
_RESULTS = re.compile(r"^<!-- results: ([\w-]+) -->$", re.MULTILINE)


def public_modules() -> dict[str, Path]:
    """Every public module of the package by name, packages before what is in them."""
    found = {}
    for name, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = [*name.split("."), *path.relative_to(folder).with_suffix("").parts]
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if not any(part.startswith("_") for part in parts):
                found[".".join(parts)] = path
    return dict(sorted(found.items()))


@cache
def claims() -> dict[tuple[str, str], list[str]]:
    """What each pattern line of each reference page, in the order of mkdocs.yml, is to show."""
    order = re.findall(r"reference/[\w-]+\.md", (ROOT / "mkdocs.yml").read_text())
    left = list(public_modules())
    shown: dict[tuple[str, str], list[str]] = {}
    for page in order:
        for patterns in _MODULES.findall((DOCS / page).read_text()):
            own = [n for n in left if any(fnmatchcase(n, p) for p in patterns.split())]
            left = [name for name in left if name not in own]
            shown[page, patterns] = own
    return shown


def module_entry(name: str) -> str:
    """The directive for one module: a package by its docstring and the names that it exports."""
    path = public_modules()[name]
    if path.name != "__init__.py" and path.parent.name != "cli":
        return f"::: {name}\n"
    entry = f"::: {name}\n    options:\n      members: false\n"
    tree = ast.parse(path.read_text())
    homes = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    exported = next(
        (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and any(isinstance(x, ast.Name) and x.id == "__all__" for x in node.targets)
        ),
        [],
    )
    names = [
        f'<autoref optional identifier="{homes[each]}"><code>{each}</code></autoref>'
        for each in exported
        if each in homes
    ]
    return entry + (f"\nFrom `{name}`: {', '.join(names)}.\n" if names else "")


def commands() -> str:
    """Every command of the command line: what it does, its arguments and options."""
    import typer.main

    from resval_lens.analyses.cli.app import app

    return "\n".join(_command(typer.main.get_command(app), ["resval-lens"]))


def mixes() -> str:
    """A table of every mix: what the weights of local and passed are, and their defaults."""
    from resval_lens.mixes import MIXES

    rows = ["| `mix` | own | carried | | default |", "|---|---|---|---|---|"]
    for name, mix in MIXES.items():
        default = "to be given" if mix.default is None else "{:g}, {:g}".format(*mix.default)
        rows.append(f"| `{name}` | {mix.a} | {mix.b} | {mix.where} | {default} |")
    return "\n".join(rows)


def ablations() -> str:
    """A table of every ablation that ``resval-lens ablate`` has."""
    from resval_lens.analyses.studies.ablations import ABLATIONS

    rows = [f"| `{name}` | {each.meaning} |" for name, each in ABLATIONS.items()]
    return "\n".join(["| `--edits` | a link |", "|---|---|", *rows])


def architectures() -> str:
    """Architectures of transformers that are converted, in the order of their names."""
    from resval_lens.io.formats.settings import ARCHITECTURES

    return ", ".join(f"`{name}`" for name in ARCHITECTURES)


def tasks() -> str:
    """A table of every task: its docstring's first paragraph, corruptions and named positions."""
    from inspect import getdoc

    from resval_lens.analyses.tasks import TASKS

    rows = ["| `--task` | what it is | `--corruption` | `--positions` |", "|---|---|---|---|"]
    for name, task in TASKS.items():
        what = " ".join((getdoc(type(task)) or "").split("\n\n")[0].split())
        corruptions, positions = (
            ", ".join(f"`{each}`" for each in own) for own in (task.corruptions, task.positions)
        )
        rows.append(f"| `{name}` | **{task.title}.** {what} | {corruptions} | {positions} |")
    return "\n".join(rows)


def methods() -> str:
    """A table of every scoring method: what a score is, and how many runs it takes."""
    from resval_lens.analyses.circuits.methods import METHODS

    rows = ["| method | what it is | cost |", "|---|---|---|"]
    rows += [f"| `{name}` | {method.what} | {method.cost} |" for name, method in METHODS.items()]
    return "\n".join(rows)


def selections() -> str:
    """A table of every rule by which scores choose a circuit's edges."""
    from resval_lens.analyses.circuits.selection import SELECTIONS

    rows = ["| selection | which edges it takes |", "|---|---|"]
    rows += [
        f"| `{name}` | {each.what} |".replace("|score|", r"\|score\|")
        for name, each in SELECTIONS.items()
    ]
    return "\n".join(rows)


PARTS = {
    "commands": commands,
    "architectures": architectures,
    "mixes": mixes,
    "ablations": ablations,
    "tasks": tasks,
    "methods": methods,
    "selections": selections,
}
"""What is made of something in the package, by its mark."""


def _command(command: Any, path: list[str]) -> list[str]:
    parts = []
    help_text = _plain(command.help or "")
    if hasattr(command, "commands"):
        if len(path) > 1:
            parts.append(f"\n## {' '.join(path)}\n\n{help_text}\n")
        for name in sorted(
            command.commands, key=lambda n: (hasattr(command.commands[n], "commands"), n)
        ):
            parts += _command(command.commands[name], [*path, name])
        return parts
    level = "##" if len(path) == 2 else "###"
    parts.append(f"\n{level} {' '.join(path)}\n\n{help_text}\n")
    rows = []
    for parameter in command.params:
        record = parameter.name, getattr(parameter, "hidden", False)
        if record[0] == "help" or record[1]:
            continue
        option = any(each.startswith("-") for each in parameter.opts)
        name = ", ".join([*parameter.opts, *parameter.secondary_opts])
        name = name if option else str(parameter.name).upper()
        default = parameter.default
        default = "" if default is None or callable(default) or default is False else f"`{default}`"
        told = getattr(parameter, "show_default", None)
        default = told if isinstance(told, str) else default
        if getattr(parameter, "required", False):
            default = "required"
        rows.append(f"| `{name}` | {_cell(getattr(parameter, 'help', '') or '')} | {default} |")
    if rows:
        table = "\n".join(["| | | default |", "|---|---|---|", *rows])
        parts.append(f'<div class="options" markdown>\n\n{table}\n\n</div>\n')
    return parts


def _plain(text: str) -> str:
    return "\n".join(line.strip() for line in text.replace("\b", "").strip().splitlines())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with each page's Markdown."""
    source = page.file.src_uri
    if "<!-- results: " in markdown:
        from resval_lens.analyses.report import results_page

        markdown = _RESULTS.sub(lambda found: results_page.section(found[1], DOCS), markdown)
    for name, made in PARTS.items():
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", made())
    return _MODULES.sub(
        lambda found: "\n".join(map(module_entry, claims()[source, found[1]])), markdown
    )


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with each page's HTML: notes to the formatter are not for readers."""
    return re.sub(
        r'(\s|<span class="w">\s*</span>)*<span class="c1"># fmt: skip</span>', "", content
    )


def on_config(config: Any) -> None:
    """A build sees the files as they are now, also the second of `mkdocs serve`."""
    claims.cache_clear()
