"""Tasks in files: prompts one by one (JSON lines, CSV), or templates and the words that fill them.

A line of JSON, or a row of CSV under a header:

    clean       the prompt, up to where the answer comes
    corrupted   as many tokens
    answer      the right continuation, with its space: " Mary"
    wrong       what it is held against: one, or several (in CSV with | between them); may be left
                out of all lines
    positions   named characters of clean, {"name": [start, end]}; in CSV as JSON

Templates are YAML:

    slots:                       # words; a slot that names another draws others of its words
      A: [Mary, John, Anna]
      B: A
      C: A
      place: [park, shop]
    templates:
      - clean: "When {A} and {B} went to the {place}, {B} gave a drink to"
        corrupted: "When {A} and {B} went to the {place}, {C} gave a drink to"
        answer: " {A}"
        wrong: " {B}"            # or a list; may be left out of all templates

Every slot of a template's clean prompt is a named position: ``A``, ``B``, ``place``, and ``B 2``
where B comes again.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from resval_lens.analyses.tasks.task import DRAWN, Asked
from resval_lens.analyses.tasks.text import TextPrompt, TextTask, Words

if TYPE_CHECKING:
    from resval_lens.analyses.tasks.problem import Problem
    from resval_lens.load import Loaded

FIELDS = ("clean", "corrupted", "answer", "wrong", "positions")
NEEDED = FIELDS[:3]
TEMPLATE_FIELDS = FIELDS[:4]
_SLOT = re.compile(r"\{(\w+)\}")
_END = "'end' is the prompt's last position already; another name is expected"


class FileTask(TextTask):
    """Prompts that a file holds; the first so many of them, or with a seed any."""

    corruptions = ("as given",)

    def __init__(self, path: Path, prompts: tuple[TextPrompt, ...]) -> None:
        self.name, self.title, self.prompts = str(path), path.stem, prompts
        self.positions = (*dict.fromkeys(n for each in prompts for n in each.places), "end")
        _contrast(self, any(each.wrong for each in prompts))

    def prompt(self, clean: Random, corrupt: Random, kind: str, words: Words) -> TextPrompt:
        return clean.choice(self.prompts)

    def draw(self, loaded: Loaded, count: int, asked: Asked = DRAWN) -> Problem:
        from resval_lens.analyses.tasks.posing import posed, tokenizer_of

        tokenizer_of(loaded)
        kind, seed, count = (
            self.corruption(loaded, asked),
            asked.seed or 0,
            min(count, len(self.prompts)),
        )
        chosen = Random(seed).sample(self.prompts, count) if seed else self.prompts[:count]
        return posed(self, loaded, chosen, kind, seed, asked)


class TemplateTask(TextTask):
    """Prompts made from templates and words."""

    corruptions = ("as given",)

    def __init__(
        self, path: Path, slots: Mapping[str, tuple[str, ...]], like: Mapping[str, str],
        templates: tuple[Mapping[str, Any], ...],
    ) -> None:  # fmt: skip
        self.name, self.title = str(path), path.stem
        self.slots, self.like, self.templates = slots, like, templates
        there = [set(_places(each["clean"])) for each in templates]
        self.positions = (
            *(n for n in _places(templates[0]["clean"]) if all(n in each for each in there)),
            "end",
        )
        _contrast(self, any(each.get("wrong") for each in templates))

    def prompt(self, clean: Random, corrupt: Random, kind: str, words: Words) -> TextPrompt:
        template = clean.choice(self.templates)
        filling: dict[str, str] = {}
        for slot in self.slots:  # all of them, so that corrupted ones draw no others
            used = [filling[s] for s in filling if self.like[s] == self.like[slot]]
            known = words.fitting(self.slots[slot], len(used) + 1)
            filling[slot] = clean.choice([word for word in known if word not in used])
        wrong = template.get("wrong", ())
        text = template["clean"].format_map(filling)
        return TextPrompt(
            text,
            template["corrupted"].format_map(filling),
            template["answer"].format_map(filling),
            tuple(
                each.format_map(filling) for each in ([wrong] if isinstance(wrong, str) else wrong)
            ),
            {n: at for n, at in _places(template["clean"], filling).items() if n in self.positions},
        )


def _contrast(task: FileTask | TemplateTask, contrasts: bool) -> None:
    """Leaves out the metrics that hold an answer against others, where there are none."""
    task.contrasts = contrasts
    if not contrasts:
        task.metrics = {name: x for name, x in task.metrics.items() if name != "logit-difference"}


def read_task(path: Path) -> TextTask:
    """The task of a file, by its ending: ``.jsonl``, ``.csv``, ``.yaml`` or ``.yml``.

    Raises:
        ValueError: another ending, not UTF-8, a field that is missing, unknown or of another kind,
            by its line.
    """
    from resval_lens.io.files import read_bytes

    content = read_bytes(path, "a task")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: byte {content[error.start]:#x} is not UTF-8; save the file in "
            "that encoding"
        ) from None
    if path.suffix in (".yaml", ".yml"):
        return _templates(path, text)
    rows = {".jsonl": _json_lines, ".csv": _csv_rows}.get(path.suffix)
    if rows is None:
        raise ValueError(f"{path}: a task's file ends in .jsonl, .csv, .yaml or .yml")
    prompts = tuple(_prompt(where, fields) for where, fields in rows(path, text))
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return FileTask(path, prompts)


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from resval_lens.io.files import parse_json

    for number, line in enumerate(text.split("\n"), 1):  # texts may hold other ends of lines
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            fields = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON ({error})") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: expected an object with {', '.join(NEEDED)}; got {line!r}")
        yield where, fields


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from resval_lens.io.files import parse_json

    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        if ";" in (reader.fieldnames or [""])[0]:
            raise ValueError(f"{path}: its columns are divided by ';'; expected commas")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(reader.fieldnames or ())} columns")
            fields: dict[str, Any] = {name: x for name, x in row.items() if x}
            if "wrong" in fields:
                fields["wrong"] = fields["wrong"].split("|")
            if "positions" in fields:
                try:
                    fields["positions"] = parse_json(fields["positions"])
                except ValueError as error:
                    raise ValueError(f"{where}, positions: not JSON ({error})") from None
            yield where, fields
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from None


def _prompt(where: str, fields: Mapping[str, Any]) -> TextPrompt:
    _check(where, fields, FIELDS)
    wrong, places = fields.get("wrong", ()), fields.get("positions", {})
    if not isinstance(places, dict) or not all(_is_span(span) for span in places.values()):
        raise ValueError(
            f'{where}, positions: expected {{"name": [start, end]}}, characters of clean; got '
            f"{places!r}"
        )
    if "end" in places:
        raise ValueError(f"{where}, positions: {_END}")
    return TextPrompt(
        fields["clean"],
        fields["corrupted"],
        fields["answer"],
        (wrong,) if isinstance(wrong, str) else tuple(wrong),
        {name: (span[0], span[1]) for name, span in places.items()},
        where,
    )


def _is_span(span: Any) -> bool:
    whole = isinstance(span, list) and len(span) == 2 and all(type(x) is int for x in span)
    return whole and 0 <= span[0] < span[1]


def _check(where: str, fields: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; expected {', '.join(known)}")
    for name in NEEDED:
        if name not in fields:
            raise ValueError(f"{where}: {name} is missing")
        if not isinstance(fields[name], str) or not fields[name]:
            raise ValueError(f"{where}, {name}: expected text; got {fields[name]!r}")
    for name in NEEDED[:2]:
        if fields[name].endswith(" "):
            raise ValueError(
                f"{where}, {name}: ends with a space, which belongs to the answer: {fields[name]!r}"
            )
    wrong = fields.get("wrong", "")
    several = wrong if isinstance(wrong, list) else [wrong]
    if (
        not several
        or not all(isinstance(x, str) for x in several)
        or (isinstance(wrong, list) and not all(several))
    ):
        raise ValueError(f"{where}, wrong: expected text or a list of texts; got {wrong!r}")


def _templates(path: Path, text: str) -> TemplateTask:
    content = _yaml(path, text)
    if not isinstance(content, dict) or set(content) != {"slots", "templates"}:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected slots and templates; got {found}")
    slots, like = _slots(path, content["slots"])
    templates = content["templates"]
    if not isinstance(templates, list) or not templates:
        raise ValueError(f"{path}, templates: expected a list; got {templates!r}")
    for number, template in enumerate(templates, 1):
        where = f"{path}, template {number}"
        if not isinstance(template, dict):
            raise ValueError(f"{where}: expected {', '.join(NEEDED)}; got {template!r}")
        _check(where, template, TEMPLATE_FIELDS)
        wrong = template.get("wrong", [])
        texts = [template[name] for name in NEEDED]
        texts += [wrong] if isinstance(wrong, str) else wrong
        for slot in (slot for each in texts for slot in _SLOT.findall(each)):
            if slot not in slots:
                raise ValueError(f"{where}: slot {slot!r} is not among {', '.join(slots)}")
        for each in texts:
            if set(re.sub(_SLOT, "", each)) & set("{}"):
                raise ValueError(f"{where}: a slot is {{name}}; got {each!r}")
    return TemplateTask(path, slots, like, tuple(templates))


def _yaml(path: Path, text: str) -> Any:
    """YAML, taken strictly: no key twice."""
    import yaml

    from resval_lens.io.files import first_line

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    said = f"the key {key.value!r} is given twice"
                    raise yaml.MarkedYAMLError(problem=said, problem_mark=key.start_mark)
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Strict)
    except RecursionError:
        raise ValueError(f"{path}: not YAML (nested too deeply)") from None
    except Exception as error:  # 2020-99-99 raises what a date does, an empty !!int something else
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or first_line(error)
        raise ValueError(f"{path}{line}: not YAML ({said})") from None


def _slots(path: Path, given: Any) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{path}, slots: expected names of slots with words; got {given!r}")
    slots: dict[str, tuple[str, ...]] = {}
    like: dict[str, str] = {}
    for name, words in given.items():
        if name == "end":
            raise ValueError(f"{path}, slots: {_END}")
        if isinstance(words, str):
            if words not in slots:
                raise ValueError(f"{path}, slot {name}: {words!r} is not a slot above it")
            slots[str(name)], like[str(name)] = slots[words], like[words]
            continue
        if not isinstance(words, list) or not all(isinstance(x, str) and x for x in words):
            raise ValueError(
                f"{path}, slot {name}: expected a list of words, quoted where YAML reads them "
                f'otherwise ("yes"), or another slot; got {words!r}'
            )
        slots[str(name)], like[str(name)] = tuple(words), str(name)
    return slots, like


def _places(clean: str, filling: Mapping[str, str] | None = None) -> dict[str, tuple[int, int]]:
    """Where the slots of a template are once they are filled: ``B``, ``B 2``, ..."""
    places: dict[str, tuple[int, int]] = {}
    seen: Counter[str] = Counter()
    longer = 0  # by how much what was filled in is longer than its slot
    for found in _SLOT.finditer(clean):
        slot = found[1]
        seen[slot] += 1
        word = found[0] if filling is None else filling[slot]
        start = found.start() + longer
        places[slot if seen[slot] == 1 else f"{slot} {seen[slot]}"] = (start, start + len(word))
        longer += len(word) - len(found[0])
    return places
