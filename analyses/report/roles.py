"""Roles of heads, and the tests of them, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resval_lens.analyses.report.markdown import as_markdown, made
from resval_lens.analyses.studies.role_study import RoleStudy


def roles(document: Mapping[str, Any]) -> str:
    """Sentences, and every table of :class:`RoleStudy`."""
    study = RoleStudy.from_dict(document)
    said = "\n".join(f"- {each}" for each in study.sentences())
    return "\n\n".join([said, *as_markdown(study.tables()), made(document["provenance"])])
