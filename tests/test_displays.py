"""Displays: ``show_...`` of every input, pages and images that need nothing else."""

import json
import re
import socket
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from rich.table import Table

from resval_lens.analyses.attribution.sources import SourceNorms, strength
from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.scores import EdgeScores
from resval_lens.analyses.display import (
    Display,
    show_attention,
    show_circuit,
    show_figure,
    show_link_ablation,
    show_patching,
)
from resval_lens.analyses.display.tables import html_table
from resval_lens.analyses.drawing import figures
from resval_lens.analyses.studies import intervention_figures
from resval_lens.hooks.patching import PatchResult
from tests.drawn import (
    NASTY,
    SVG,
    ablation,
    evaluated_circuit,
    found,
    graph,
    heads_shown,
    kind_of_edge,
    link_study,
    marks_of,
    named_ablation,
    patch_result,
    patterns,
    scored_circuit,
    signed,
)

# --- show_... -----------------------------------------------------------------------------------


def displays() -> dict[str, Display]:
    circuit, scores = scored_circuit()
    return {
        "patching": show_patching(patch_result({"layer": 2, "head": 4})),
        "circuit": show_circuit(circuit, scores),
        "ablation": show_link_ablation(ablation()),
        "attention": show_attention(patterns(), list("abcde")),
        "circuitsvis": show_attention(patterns(), list("abcde"), view="circuitsvis"),
    }


def test_every_input_that_is_offered_is_shown():
    circuit, scores = scored_circuit()
    numbered = patch_result({"layer": 2, "position": 3})
    named = patch_result({"layer": 2, "position": 2}, names=("S2", "end"), direction="noise")
    shown = [
        show_patching(numbered, tokens=[" a", "b", "c", "left over"], model="mine"),
        show_patching(named, tokens=["ignored"]),
        show_patching(found({"layer": 2, "head": 3})),
        show_circuit(circuit, scores),
        show_circuit(evaluated_circuit(), title="alone"),
        show_circuit({"one": evaluated_circuit(), "two": evaluated_circuit()}),
        show_link_ablation(ablation()),
        show_link_ablation(ablation([0.5])),
        show_link_ablation(ablation([0.0, 1.0])),
        show_link_ablation({"values": link_study(), "keys": link_study(1)}),
        show_link_ablation(named_ablation("a model")),
        show_attention(patterns(), list("abcde")),
        show_attention(patterns()[0], list("abcde")),
        show_attention({"a": patterns(2), "b": patterns(3)[None][0].double()}, list("abcde")),
        show_attention(patterns(2), list("abcde"), ["left", "right"]),
        show_attention(patterns(2), list("abcde"), view="circuitsvis"),
        show_figure(intervention_figures.ablated(ablation()), 'any "figure"'),
    ]
    assert [display.name for display in shown] == [
        "Activation patching of v_link by layer, position (denoise)",
        "Activation patching of v_link by layer, position (noise)",
        "Activation patching of v_link by layer, head (denoise)",
        "Circuit", "Circuit: alone", "Circuit: one, two",
        "Links edited", "Links edited", "Links scaled by c",
        "Links scaled by c: values, keys", "Links edited",
        "Attention patterns", "Attention patterns", "Attention patterns, a, b",
        "Attention patterns", "Attention patterns", 'any "figure"',
    ]  # fmt: skip
    assert "layer 1, position 0 a: " in shown[0].body
    assert "mine: v_link of the corrupted run taken from the clean run" in shown[0].body
    assert "position S2" in shown[1].body
    assert "a model: what links carry, edited" in shown[10].body
    for of_a_report in (shown[2], shown[10]):
        assert "indirect objects, random-S2 corrupted" in of_a_report.body
    assert "v_link of the clean run taken from the corrupted run" in shown[1].body
    for display in shown:
        image = display._repr_png_()
        assert image.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(image) < 60_000
        assert f'aria-label="{escape(display.name.split(",")[0])}' in display.body
        assert repr(display) == f"Display({display.name!r})"
    ids = [i for display in shown for i in re.findall(r' id="([^"]+)"', display.body)]
    assert len(set(ids)) == len(ids)
    assert plt.get_fignums() == []


def weights(n: int, top: float = 1.0) -> torch.Tensor:
    return torch.full((1, n, n), top / n)


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "no pattern": (
        lambda: show_attention({}, ["a"]),
        "patterns is empty; expected one pattern or more",
    ),
    "tokens": (
        lambda: show_attention(weights(3), ["a", "b"]),
        "the pattern has shape [1, 3, 3]; expected [head, 2, 2] for 2 tokens",
    ),
    "batch": (
        lambda: show_attention({"v": weights(3)[None]}, list("abc")),
        "pattern 'v' has shape [1, 1, 3, 3]; expected [head, 3, 3] for 3 tokens",
    ),
    "no head": (
        lambda: show_attention(weights(3)[:0], list("abc")),
        "the pattern has shape [0, 3, 3]; expected [head, 3, 3] for 3 tokens",
    ),
    "heads": (
        lambda: show_attention(weights(2), ["a", "b"], ["x", "y"]),
        "the pattern has 1 heads; got 2 names",
    ),
    "numbers for names": (
        lambda: show_attention(weights(2), ["a", "b"], [0]),
        "heads must be names of the 1 heads; got [0]",
    ),
    "a choice in one layer": (
        lambda: show_attention(weights(2), ["a", "b"], most=2),
        "most is for a whole model, a list of its layers' patterns",
    ),
    "none of a whole model": (
        lambda: show_attention([weights(2)], ["a", "b"], most=0),
        "most must be 1 or more; got 0",
    ),
    "no layer": (
        lambda: show_attention({"v": []}, ["a", "b"]),
        "pattern 'v' is an empty list; expected one pattern a layer",
    ),
    "layers unlike": (
        lambda: show_attention([weights(2), patterns(2, 2)], ["a", "b"]),
        "the pattern has 1 heads in layer 0 and 2 in layer 1",
    ),
    "another head": (
        lambda: show_attention([patterns(2, 2)] * 3, ["a", "b"], ["a1.h0", "a2.h2"]),
        "heads: 'a2.h2' is not among a0.h0 to a2.h1",
    ),
    "a head of another layer": (
        lambda: show_attention([patterns(2, 2)] * 3, ["a", "b"], "a0.h0", layers=[1, 2]),
        "heads: 'a0.h0' is not among a1.h0 to a2.h1",
    ),
    "another layer": (
        lambda: show_attention([patterns(2, 2)] * 3, ["a", "b"], layers=3),
        "layers: 3 is not among 0 to 2",
    ),
    "strength of others": (
        lambda: show_attention([patterns(2, 2)] * 3, ["a", "b"], strength=torch.zeros(2, 3)),
        "strength must be finite numbers [3, 2], one a head; got [2, 3]",
    ),
    "scores": (
        lambda: show_attention({"v": weights(2, -2.0)}, ["a", "b"]),
        "pattern 'v' is not attention: weights must lie between 0 and 1",
    ),
    "above one": (
        lambda: show_attention(weights(2, 2.1), ["a", "b"]),
        "the pattern is not attention: weights must lie between 0 and 1",
    ),
    "nan": (
        lambda: show_attention(weights(2, float("nan")), ["a", "b"]),
        "the pattern is not attention: weights must lie between 0 and 1",
    ),
    "another view": (
        lambda: show_attention(weights(2), ["a", "b"], view="table"),
        "view must be one of heads, circuitsvis; got 'table'",
    ),
    "norms of others": (
        lambda: show_attention([patterns(2, 2)] * 3, ["a", "b"],
                               norms=SourceNorms(torch.ones(3, 2, 2), torch.ones(3, 2, 1))),
        "norms.link of the pattern has shape [3, 2, 1]; expected [3, 2, 2]",
    ),
    "too few tokens": (
        lambda: show_patching(patch_result({"layer": 2, "position": 5}), tokens=["a"] * 4),
        "4 tokens for positions up to 4",
    ),
    "no gap": (
        lambda: show_patching(PatchResult(torch.ones(2), torch.ones(2, 1), 0.5, 0.5,
                                          {"layer": [0, 1]}, "z", "noise")),
        "there is no gap to recover: the metric is 0.5 in the run that is patched and 0.5 in the "
        "other; corrupted prompts must change what the model answers",
    ),
    "no scores": (
        lambda: show_circuit(scored_circuit()[0]),
        "a plain Circuit has no weights to show; give its scores",
    ),
    "other graph": (
        lambda: show_circuit(scored_circuit()[0], scored_circuit(graph(2))[1]),
        "these scores are of another graph than the circuit",
    ),
    "no circuit": (
        lambda: show_circuit({}),
        "circuits must be a Circuit, an evaluated one, or {title: evaluated one}",
    ),
    "not evaluated": (
        lambda: show_circuit(scored_circuit()[0].named()),  # type: ignore[arg-type]
        "circuits must be a Circuit, an evaluated one, or {title: evaluated one}",
    ),
    "no edges": (
        lambda: show_circuit(Circuit.of(graph(), []), scored_circuit()[1]),
        "circuits: one has no edges; there is nothing to draw",
    ),
    "no study": (
        lambda: show_link_ablation({}),
        "study must be an ablation_study or {name: link_study}",
    ),
    "another study": (
        lambda: show_link_ablation({"values": {"links": []}}),
        "study must be an ablation_study or {name: link_study}",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(("show", "words"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_shown_is_refused_in_one_line(show, words):
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        show()
    assert plt.get_fignums() == []


MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml version", "pdf": b"%PDF-"}


def test_a_figure_is_saved_as_what_its_suffix_names(tmp_path):
    for kind, starts in MAGIC.items():
        path = figures.save(intervention_figures.ablated(ablation()), tmp_path / f"x.{kind}")
        assert path.read_bytes().startswith(starts)
    said = "a picture is saved as .png, .svg or .pdf; got "
    for name in ("x.jpg", "x", "x.html"):
        with pytest.raises(ValueError, match=re.escape(f"{said}'{tmp_path / name}'")):
            figures.save(intervention_figures.ablated(ablation()), tmp_path / name)
        assert not (tmp_path / name).exists()
    assert plt.get_fignums() == []


def test_a_display_saves_itself_as_a_page_and_as_an_image(tmp_path):
    for name, display in displays().items():
        page = display.save(tmp_path / f"{name}.html")
        for kind, starts in MAGIC.items():
            image = display.save(f"{tmp_path}/{name}.{kind}")
            assert image.read_bytes().startswith(starts)
            again = display.save(tmp_path / f"again.{kind.upper()}")
            assert again.read_bytes() == image.read_bytes()
            again.unlink()
        text = page.read_text(encoding="utf-8")
        assert display.body in text
        assert f"<title>{display.name}</title>" in text
        own = re.sub(r"<script>window\.CircuitsVis .*?</script>", "", text, flags=re.DOTALL)
        assert (own != text) == (name == "circuitsvis")
        assert not re.search(
            r"\bsrc=(?!\"data:image/png;base64,)|@import|url\((?!#)|<iframe|<object|<base", own
        )
        assert re.findall(r"<link [^>]*>", own) == ['<link rel="icon" href="data:,">']
        assert set(re.findall(r"\w+://[^\s\"'<]+", own)) <= {
            "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
        }  # fmt: skip
        assert "default-src 'none'" in own
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.{kind}" for name in displays() for kind in ("html", *MAGIC)
    )


def test_a_display_refuses_other_files_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    display = Display("a <name>", "<p>body</p>", str.encode, bytes)
    wrong = tmp_path / "x.jpg"
    said = f"a picture is saved as .html, .png, .svg or .pdf; got '{wrong}'"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        display.save(wrong)
    missing = tmp_path / "nowhere" / "x.png"
    with pytest.raises(ValueError, match=re.escape(f"{missing}: there is no folder")):
        display.save(missing)
    page = display.save(tmp_path / "x.html")
    assert "<title>a &lt;name&gt;</title>" in page.read_text()
    before = page.read_bytes()

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("resval_lens.io.files.os.fsync", full)
    for path in (page, tmp_path / "y.png"):
        with pytest.raises(OSError, match="no space left"):
            Display("b", "<p>other</p>", str.encode, bytes).save(path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]
    assert page.read_bytes() == before


def test_a_notebook_gets_style_body_and_script_and_nothing_is_fetched(monkeypatch, tmp_path):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a display reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    for name, display in displays().items():
        html = display._repr_html_()
        display.save(tmp_path / f"{name}.html")
        assert html.startswith("<style>")
        image = f"data:image/png;base64,{b64encode(display._repr_png_()).decode()}"
        if name == "circuitsvis":
            assert f'<div class="rv">{display.body}</div><script>' in html
        else:
            held = Seen(html)
            assert json.loads(held.scripts[0]) == display.body
            assert f'src="{image}"' in html
            assert "<svg" not in html
        assert html.count("window.CircuitsVis ??=") == (name == "circuitsvis")
        assert "<html" not in html.replace("<html>", "")


def test_patching_says_the_share_of_the_gap_that_was_recovered():
    result = patch_result({"layer": 2, "head": 3})
    texts = re.findall(r'class="rv-mark"[^>]*aria-label="([^"]*)"', show_patching(result).body)
    assert texts == [
        f"layer {i}, head {j}: {signed((result.values[i, j].item() + 1.5) / (2.5 + 1.5))}"
        for i in range(2) for j in range(3)
    ]  # fmt: skip


def test_what_tokens_hold_is_said_as_it_is():
    shown = show_patching(patch_result({"layer": 2, "position": len(NASTY)}), tokens=NASTY)
    (picture,) = re.findall(r"<svg.*</svg>", shown.body, re.DOTALL)
    root = ElementTree.fromstring(picture)
    for i, token in enumerate(NASTY):
        mine = [text for text in marks_of(root) if f"position {i} {token}:" in text]
        assert len(mine) == 2
        assert any(word.text == f"{i} {token}" for word in root.iter(f"{SVG}text"))
    assert "</script" not in shown.body
    assert "<!--" not in shown.body
    assert "<b>" not in shown.body


def test_a_plain_circuit_shows_its_scores_once_for_each_head_of_a_group():
    of = graph(n_key_value_heads=2)
    circuit, scores = scored_circuit(of)
    shown = show_circuit(circuit, scores, title="<t>")
    assert shown.name == "Circuit: <t>"
    assert "<h4>&lt;t&gt;</h4>" in shown.body
    expected = []
    for number in circuit.numbers:
        edge = of.edges[number]
        heads = 2 if edge.target.endswith(("<k>", "<v>")) else 1
        score = signed(scores.values[number].item())
        expected += [f"{edge} ({kind_of_edge(str(edge))}): eap-ig score {score}"] * heads
    (held,) = map(json.loads, Seen(shown.body).scripts)
    assert sorted(line["text"] for line in held["lines"]) == sorted(expected)
    names = {node["name"] for node in held["nodes"]}
    assert {end for line in held["lines"] for end in (line["source"], line["target"])} <= names
    drawn = root_of_figure(shown)
    assert sorted(drawn) == sorted(expected)


def root_of_figure(display: Display) -> list[str]:
    """What the still picture's marks say."""
    text = display.draw("svg").decode()
    return [unescape(each).removeprefix("tip:") for each in re.findall(r'id="(tip:[^"]*)"', text)]


def test_a_circuit_says_the_spread_over_prompts_and_roles():
    circuit, scores = scored_circuit()
    each = torch.stack([scores.values, 3 * scores.values])
    by_prompt = replace(scores, values=each.mean(0), by_prompt=each, prompts=2)
    shown = show_circuit(circuit, by_prompt, roles={"a1.h0": "mover", "a0.h0": ["a <b>", "c"]})
    (held,) = map(json.loads, Seen(shown.body).scripts)
    for line in held["lines"]:
        own = each[:, circuit.graph.number[line["edge"]]]
        sd = signed(own.std().item())
        assert line["text"].endswith(f"score {signed(own.mean().item())}, sd {sd} over 2 prompts")
    assert {node["name"]: node["roles"] for node in held["nodes"] if node["roles"]} == {
        "a1.h0": ["mover"], "a0.h0": ["a <b>", "c"]
    }  # fmt: skip
    assert list(held["roles"]) == ["a <b>", "mover"]
    assert "a &lt;b&gt;" in shown.body
    with pytest.raises(ValueError, match=r"^roles: '1.2' is no head or MLP; expected names like"):
        show_circuit(circuit, scores, roles={"1.2": "mover"})


def test_of_a_large_circuit_some_edges_are_shown_at_first():
    of = graph()
    values = torch.randn(len(of), generator=torch.Generator().manual_seed(0))
    scores = EdgeScores(of, values, "eap", None, 1)
    for circuit in (Circuit.of(of, range(40)), Circuit.whole(of)):
        (held,) = map(json.loads, Seen(show_circuit(circuit, scores).body).scripts)
        assert held["total"] == len(circuit)
        shown = {line["edge"] for line in held["lines"] if line["least"] <= held["start"]}
        if len(circuit) == 40:
            assert len(shown) == 40
        else:
            assert 60 <= len(shown) < len(circuit)


# --- attention ----------------------------------------------------------------------------------


def drawn_by_circuitsvis(body: str) -> list[dict[str, Any]]:
    """What CircuitsVis is given, in the order of the page."""
    held = [json.loads(script) for script in Seen(body).scripts]
    assert all(each["element"] == "AttentionPatterns" for each in held)
    return [each["props"] for each in held]


def test_weights_are_there_to_four_digits():
    given = {"classic": patterns(2), "values": patterns(3, seed=1)}
    shown = heads_shown(show_attention(given, list("abcde")).body)
    for weights_of, each in zip(given.values(), shown, strict=True):
        assert each["tokens"] == list("abcde")
        assert each["names"] == [str(i) for i in range(len(weights_of))]
        assert each["causal"]
        assert np.abs(each["weights"] - weights_of.numpy()).max() <= 0.00005001
    (named,) = heads_shown(show_attention(patterns(2), list("abcde"), ["x", "y"]).body)
    assert named["names"] == ["x", "y"]
    both_ways = torch.rand(2, 5, 5)
    (each,) = heads_shown(show_attention(both_ways, list("abcde")).body)
    assert not each["causal"]
    assert np.abs(each["weights"] - both_ways.numpy()).max() <= 0.00005001


def test_circuitsvis_gets_tokens_heads_and_weights_to_four_digits():
    given = {"classic": patterns(2), "values": patterns(3, seed=1)}
    body = show_attention(given, list("abcde"), None, view="circuitsvis").body
    for weights_of, props in zip(given.values(), drawn_by_circuitsvis(body), strict=True):
        assert props["tokens"] == list("abcde")
        assert props["headLabels"] == [str(i) for i in range(len(weights_of))]
        for index, weight in np.ndenumerate(weights_of.numpy()):
            head, query, key = index
            assert props["attention"][head][query][key] == round(10_000 * weight)
    many = show_attention([patterns(9, 5, i) for i in range(30)], list("abcde"), view="circuitsvis")
    (props,) = drawn_by_circuitsvis(many.body)
    assert len(props["headLabels"]) == 24
    assert "24 of 270 heads" in many.body


def test_of_a_whole_model_the_strongest_heads_come_first():
    whole = [patterns(3, 6, seed) for seed in range(4)]
    tokens = list("abcdef")
    given = torch.tensor([[0.0, 3.0, -1.0], [5.0, 0.5, 0.2], [-6.0, 0.1, 0.3], [2.0, -4.0, 0.4]])
    display = show_attention(whole, tokens, strength=given, most=4)
    (each,) = heads_shown(display.body)
    assert each["names"] == ["a2.h0", "a1.h0", "a3.h1", "a0.h1"]
    assert each["strength"] == [-6, 5, -4, 3]
    assert not each["given"]
    for shown, (layer, head) in zip(each["weights"], [(2, 0), (1, 0), (3, 1), (0, 1)], strict=True):
        assert np.abs(shown - whole[layer][head].numpy()).max() <= 0.00005001
    assert "4 of 12 heads, strongest first: the largest |strength|" in display.body

    def names(*args: Any, **chosen: Any) -> list[str]:
        bodies = [show_attention(whole, tokens, *args, view=view, **chosen).body
                  for view in ("heads", "circuitsvis")]  # fmt: skip
        (each,), (props,) = heads_shown(bodies[0]), drawn_by_circuitsvis(bodies[1])
        assert each["names"] == props["headLabels"]
        return each["names"]

    assert names(layers=[3, 0], strength=given, most=2) == ["a3.h1", "a0.h1"]
    assert names([0], layers=range(1, 4), strength=given) == ["a2.h0", "a1.h0", "a3.h0"]
    assert names(["a3.h2", "a0.h0"]) == ["a3.h2", "a0.h0"]
    assert names(["a0.h0", "a3.h2"], strength=given) == ["a3.h2", "a0.h0"]
    both = {"one": whole, "other": whole[:2], "layer": whole[0]}
    shown = show_attention({k: both[k] for k in ("one", "other")}, tokens,
                           strength={"one": given, "other": given[:2]}, most=1)  # fmt: skip
    assert [each["names"] for each in heads_shown(shown.body)] == [["a2.h0"], ["a1.h0"]]
    mixed = heads_shown(show_attention({k: both[k] for k in ("one", "layer")}, tokens).body)
    assert [len(each["names"]) for each in mixed] == [12, 3]
    assert mixed[1]["strength"] is None


def test_norms_go_with_their_heads():
    norms = SourceNorms(torch.rand(4, 3, 6), torch.rand(4, 3, 6))
    whole = [patterns(3, 6, seed) for seed in range(4)]
    (each,) = heads_shown(show_attention(whole, list("abcdef"), norms=norms).body)
    for of in ("own", "link"):
        for name, row in zip(each["names"], each["written"][of], strict=True):
            layer, head = int(name[1]), int(name[4])
            wanted = getattr(norms, of)[layer, head].tolist()
            assert row == pytest.approx(wanted, rel=1e-3)
    (without,) = heads_shown(show_attention(whole, list("abcdef")).body)
    assert without["written"] is None


def test_without_a_strength_heads_that_look_at_single_tokens_come_first():
    found = strength(torch.stack([patterns(3, 6, seed) for seed in range(4)]))
    for layer in range(4):
        for head, weights in enumerate(patterns(3, 6, layer).tolist()):
            largest = [max(weights[query][1:query]) for query in range(2, 6)]
            assert found[layer, head].item() == pytest.approx(sum(largest) / 4, rel=1e-5)
    before, first, own = torch.eye(5).roll(-1, 1), torch.zeros(5, 5), torch.eye(5)
    before[0], first[:, 0] = own[0], 1.0
    assert strength(torch.stack([before, first, own])).tolist() == [1, 0, 0]
    whole = [torch.stack([first, own]), torch.stack([before, first])]
    (each,) = heads_shown(show_attention(whole, list("abcde")).body)
    assert each["names"] == ["a1.h0", "a0.h0", "a0.h1", "a1.h1"]
    shown = show_attention([patterns(9, 5, seed) for seed in range(30)], list("abcde"))
    assert len(heads_shown(shown.body)[0]["names"]) == 270
    assert "270 of 270 heads" in shown.body


class Seen(HTMLParser):
    """Tags and scripts of a page, as a browser would split them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.comments: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def test_tokens_titles_and_names_cannot_break_out_of_a_page(tmp_path):
    given = {
        "<script>alert(1)</script>": patterns(2, len(NASTY)),
        "a&b<!--": patterns(2, len(NASTY)),
    }
    names = ["</script><b>", "<!--<script>"]
    for each in heads_shown(show_attention(given, NASTY, names).body):
        assert each["tokens"] == NASTY
        assert each["names"] == names
    display = show_attention(given, NASTY, names, view="circuitsvis")
    for props in drawn_by_circuitsvis(display.body):  # as HTML, which CircuitsVis takes them for
        assert [unescape(token) for token in props["tokens"]] == NASTY
        assert not any("<" in token for token in props["tokens"])
        assert props["headLabels"] == names
    assert "<!--" not in display.body
    assert display.body.count("</script") == 2
    text = display.save(tmp_path / "x.html").read_text()
    seen = Seen(text)
    assert "b" not in seen.tags
    assert seen.comments == []
    assert len(seen.scripts) == 5  # CircuitsVis, what two views hold, the marks, files
    assert text.count("window.CircuitsVis ??=") == 1
    assert "alert(1)" in " ".join(re.findall(r"<h4>.*?</h4>", text))
    assert "<h4>&lt;script&gt;" in text


def test_what_a_result_has_already_is_not_given_again() -> None:
    with pytest.raises(ValueError, match="tokens and model are for a PatchResult"):
        show_patching(found({"layer": 1}), model="other")
    _, scores = scored_circuit()
    with pytest.raises(ValueError, match="scores are for a plain Circuit"):
        show_circuit(evaluated_circuit(), scores)


def test_a_terminal_table_says_the_same_as_html() -> None:
    table = Table(title="A < b\n(two lines)", caption="what & why")
    table.add_column("name")
    table.add_column("token\ntoken kept,\nrest not", justify="right")
    table.add_column("[bold]words[/bold]")
    table.add_row("[bold]group[/bold]", "", "")
    table.add_row("  a <i>", "1.5", "[dim]x & y[/dim]", end_section=True)
    html, _ = html_table(table).split("<script")  # its CSV
    root = ElementTree.fromstring(f"{html}</div>")
    assert [cell.text for cell in root.iter("th")] == [
        "name", "token: token kept, rest not", "words", "group", "a <i>",
    ]  # fmt: skip
    assert [(cell.text, cell.get("class")) for cell in root.iter("td")] == [
        ("1.5", None), ("x & y", "rv-words"),
    ]  # fmt: skip
    assert ["".join(p.itertext()) for p in root.findall("p")] == [
        "A < b (two lines)", "what & why",
    ]  # fmt: skip
    scrolled, table_ = root.find("div[@class='rv-scroll']"), root.find(".//table")
    assert scrolled is not None
    assert table_ is not None
    assert scrolled.get("aria-label") == table_.get("aria-label") == "A < b (two lines)"
    assert [row.get("class") for row in root.iter("tr")] == [None, "rv-group", "rv-section"]
