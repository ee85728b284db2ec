"""Docstrings as Markdown: Sphinx roles become references; tables and doctests keep their lines.

An extension of griffe, which mkdocstrings reads the package with. Every docstring is rewritten once
the whole package is loaded, so that a role finds its target wherever it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|obj|exc):`(~?)([\w.\s]+)`")
_SPAN = re.compile(r"(``.*?``|`[^`]*`)", re.DOTALL)
_RULE = re.compile(r"=+( +=+)+")


class Docstrings(griffe.Extension):
    """Rewrites every docstring of the package."""

    def on_package(self, *, pkg: griffe.Module, loader: Any, **kwargs: Any) -> None:
        """Called when the package is loaded."""
        if pkg.path != "resval_lens":
            return
        objects = {each.path: each for each in _walk(pkg)}
        by_name: dict[str, list[str]] = {}
        for path in objects:
            by_name.setdefault(path.rsplit(".", 1)[-1], []).append(path)
        for each in objects.values():
            if each.docstring is None and each.is_attribute and each.name.isupper():
                each.docstring = _comment_of(each)
            if each.docstring is not None:
                text = _blocks(each.docstring.value)
                each.docstring.value = _roles(text, each, objects, by_name)


def _walk(of: griffe.Object) -> Iterator[griffe.Object]:
    yield of
    for member in of.members.values():
        if isinstance(member, griffe.Object):
            yield from _walk(member)


def _comment_of(constant: griffe.Object) -> griffe.Docstring | None:
    """The comment above a constant, or behind it, as its docstring; None if there is none."""
    if not isinstance(constant.parent, griffe.Module) or constant.lineno is None:
        return None
    path = constant.filepath
    if isinstance(path, list):  # a namespace package has several
        return None
    lines = path.read_text().splitlines()
    number = constant.lineno - 1
    above: list[str] = []
    while number and lines[number - 1].startswith("# "):
        number -= 1
        above.insert(0, lines[number][2:])
    behind = re.search(r"  # (?!fmt|noqa|type)(.*)", lines[constant.lineno - 1])
    text = "\n".join(above) or (behind[1] if behind else "")
    return griffe.Docstring(text, parent=constant, parser="google") if text else None


def _blocks(text: str) -> str:
    """Doctests and ruled tables fenced; ``<`` outside code is no HTML."""
    lines: list[str] = []
    fence = ""
    rules = 0
    for line in text.splitlines():
        bare = line.strip()
        indent = line[: len(line) - len(line.lstrip())]
        if not fence and (bare.startswith(">>> ") or _RULE.fullmatch(bare)):
            fence = indent + "```"
            lines += ["", fence + ("pycon" if bare.startswith(">>>") else "text")]
            rules = 0
        elif fence and not bare and rules in (0, 3):
            lines.append(fence)
            fence = ""
        lines.append(line)
        if fence and _RULE.fullmatch(bare):
            rules += 1
            if rules == 3:
                lines += [fence, ""]
                fence = ""
    if fence:
        lines.append(fence)
    return _escaped(lines)


def _escaped(lines: list[str]) -> str:
    """The text with ``<`` and ``][``, which Markdown would read, escaped wherever it is prose."""
    chunks: list[tuple[bool, list[str]]] = [(False, [])]
    deep, fenced, blank = 4, False, False
    for line in lines:
        bare, indent = line.strip(), len(line) - len(line.lstrip())
        code = fenced or bare.startswith("```")
        fenced ^= bare.startswith("```")
        if bare and not indent:
            deep = {"items": 12, "text": 8, "": 4}[_section(bare)]
        if bare and not code:
            # An indented block begins after a blank line.
            code = indent >= deep and (blank or chunks[-1][0])
        if not bare:
            code = chunks[-1][0]
        if code != chunks[-1][0]:
            chunks.append((code, []))
        chunks[-1][1].append(line)
        blank = not bare
    return "\n".join(
        "\n".join(own) if code else _escaped_prose("\n".join(own)) for code, own in chunks
    )


def _section(line: str) -> str:
    """What a line begins: a section of items, one of text, or none."""
    if line in ("Args:", "Attributes:"):
        return "items"
    return "text" if line in ("Returns:", "Raises:", "Yields:") else ""


def _escaped_prose(text: str) -> str:
    parts = _SPAN.split(text)
    parts[::2] = [
        re.sub(r"\](\s*)\[", r"]\1\\[", re.sub(r"<(?=[\w/])", "&lt;", part)) for part in parts[::2]
    ]
    return "".join(parts)


def _roles(
    text: str, of: griffe.Object, objects: dict[str, griffe.Object], by_name: dict[str, list[str]]
) -> str:
    def reference(found: re.Match[str]) -> str:
        short, target = found[1], "".join(found[2].split())  # some are broken over two lines
        path = _resolved(target, of, objects, by_name)
        shown = target.rsplit(".", 1)[-1] if short else target
        if path is None or not _is_shown(objects[path]):
            return f"`{shown}`"
        return f"[`{shown}`][{path}]"

    return _ROLE.sub(reference, text)


def _resolved(
    target: str, of: griffe.Object, objects: dict[str, griffe.Object], by_name: dict[str, list[str]]
) -> str | None:
    """The path of what a role names: in full, in the scopes around it, or by its only name."""
    if target in objects:
        return target
    scope: griffe.Object | None = of
    while scope is not None:
        if f"{scope.path}.{target}" in objects:
            return f"{scope.path}.{target}"
        head, _, rest = target.partition(".")
        member = scope.members.get(head)
        if isinstance(member, griffe.Alias):
            path = ".".join(filter(None, (member.target_path, rest)))
            if path in objects:
                return path
        scope = scope.parent  # type: ignore[assignment]
    named = by_name.get(target.rsplit(".", 1)[-1], [])
    return named[0] if len(named) == 1 else None


def _is_shown(of: griffe.Object) -> bool:
    """Whether the reference has an entry for it: public all the way up, and documented."""
    scope: griffe.Object | None = of
    while scope is not None:
        private = scope.name.startswith("_")
        if private or scope.docstring is None:
            return False
        scope = scope.parent  # type: ignore[assignment]
    return True
