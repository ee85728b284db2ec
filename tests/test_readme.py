"""The README's code runs, and what it links to is there."""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent


def test_the_example_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("tensor([[")
    assert (tmp_path / "attention.html").is_file()


def test_every_relative_link_in_the_documents_leads_somewhere():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
