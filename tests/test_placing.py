"""Models whose layers wait elsewhere while they do not run: as the same models in memory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from resval_lens import ResValTransformer
from resval_lens.analyses.attribution.heads import head_scores, repeated_tokens
from resval_lens.analyses.attribution.weights import composition_scores, own_token_scores
from resval_lens.analyses.cli.app import app
from resval_lens.io.placing import DISK, Placing, Waiting
from resval_lens.load import load_model
from resval_lens.streams import AttentionStream
from tests.helpers import tiny_model, tiny_tokens
from tests.other_device import worst
from tests.two_devices import ANALYSES, PAIRS, Analysis

MODELS: dict[str, dict[str, Any]] = {
    "Llama, learned values": {
        "streams": AttentionStream("v", mix="learned_pair"), "n_key_value_heads": 2,
        "gated_mlp": True, "act_fn": "silu", "normalization_type": "RMS",
        "positional_embedding_type": "rotary", "tied_embedding": True,
    },
    "all, head": {"streams": AttentionStream("v", source="all", mix="head")},
    "shortformer": {"streams": "v", "positional_embedding_type": "shortformer"},
}  # fmt: skip
LAYERS = 4
MAPS: dict[str, Any] = {"all": dict.fromkeys(range(LAYERS), DISK), "some": {1: DISK, 3: DISK}}
TOKENS = tiny_tokens()


def circuits_of_weights(model: ResValTransformer) -> Tensor:
    return composition_scores(model, "V").scores.nan_to_num(-1.0)


def copies(model: ResValTransformer) -> Tensor:
    found = own_token_scores(model, PAIRS.clean, torch.tensor([0, 1, 2]))
    return torch.tensor(list(found.values()))


def attention(model: ResValTransformer) -> Tensor:
    repeated = repeated_tokens(model, torch.Generator().manual_seed(0), 4, 5)
    return torch.stack(list(head_scores(model, repeated)))


def generated(model: ResValTransformer) -> Tensor:
    found: Tensor = model.generate(
        TOKENS, max_new_tokens=3, do_sample=False, stop_at_eos=False, verbose=False,
        return_type="tokens",
    )  # fmt: skip
    return found


ALL: dict[str, Analysis] = {
    "forward": lambda m: m(TOKENS),
    "cache": lambda m: m.run_with_cache(TOKENS)[1]["resid_post", 2],
    "loss": lambda m: m(TOKENS, targets=TOKENS),
    "generate": generated,
    "head_scores": attention,
    "composition": circuits_of_weights,
    "copying": copies,
    **ANALYSES,
}


@pytest.fixture(scope="module", params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models") / "model"
    tiny_model(**MODELS[request.param], n_layers=LAYERS).save_pretrained(folder)
    return folder


def waiting(model: ResValTransformer) -> list[bool]:
    """Of each layer, whether its weights are elsewhere, all of them."""
    found = []
    for block in model.blocks:
        away = {p.device.type == "meta" for p in block.parameters()}
        assert len(away) == 1
        found.append(away.pop())
    return found


@pytest.mark.parametrize("name", ALL)
def test_a_layer_on_disk_is_as_in_memory(saved: Path, name: str) -> None:
    plain = ResValTransformer.from_pretrained(saved)
    wanted = ALL[name](plain).detach()
    for device_map in MAPS.values():
        model = ResValTransformer.from_pretrained(saved, device_map=device_map)
        before = waiting(model)
        assert before == [layer in device_map for layer in range(LAYERS)]
        found = ALL[name](model).detach()
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
        assert waiting(model) == before


def test_a_precision_is_that_of_what_is_fetched(saved: Path) -> None:
    plain = ResValTransformer.from_pretrained(saved, dtype=torch.bfloat16)
    model = ResValTransformer.from_pretrained(saved, dtype=torch.bfloat16, device_map=MAPS["some"])
    assert model.cfg.dtype == torch.bfloat16
    with torch.no_grad():
        assert model(TOKENS).equal(plain(TOKENS))


def test_weights_are_put_away_after_an_error(saved: Path) -> None:
    model = ResValTransformer.from_pretrained(saved, device_map=MAPS["all"])

    def fails(x: Tensor, hook: Any) -> None:
        assert not waiting(model)[1]
        raise RuntimeError("of the hook")

    with pytest.raises(RuntimeError, match="of the hook"):
        model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_resid_post", fails)])
    assert all(waiting(model))
    with model.blocks[0].fetched(), model.blocks[0].fetched():
        assert waiting(model) == [False, True, True, True]
        model(TOKENS)
        assert waiting(model) == [False, True, True, True]
    assert all(waiting(model))


REFUSED: dict[str, Callable[[ResValTransformer, Path], Any]] = {
    "save_pretrained": lambda m, folder: m.save_pretrained(folder),
    "state_dict": lambda m, folder: m.state_dict(),
    "moving or casting": lambda m, folder: m.to("cpu"),
    "moving": lambda m, folder: m.half(),
    "taking over weights": lambda m, folder: m.with_streams("", share_weights=True),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_all_weights_is_refused(saved: Path, tmp_path: Path, what: str) -> None:
    model = ResValTransformer.from_pretrained(saved, device_map=MAPS["some"])
    with pytest.raises(ValueError, match=rf"{what}.* needs all weights at once"):
        REFUSED[what](model, tmp_path / "new")
    assert waiting(model) == [False, True, False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device_map": {4: "cpu"}}, "layer 4 is not among 0 to 3"),
        ({"device_map": {0: "cuda:7"}}, "the device 'cuda:7' is not available"),
        ({"device_map": "balanced"}, "must be 'auto' or name layers' places"),
        ({"device_map": {0: DISK}, "streams": ""}, "save_pretrained it, and load that folder"),
        ({"device_map": {0: DISK}, "max_memory": {"cpu": 1}}, "max_memory is for"),
        ({"device_map": "auto", "max_memory": {"cpu": 100}}, "has room for 100 bytes"),
    ],
)
def test_a_map_that_cannot_be_is_refused(
    saved: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ResValTransformer.from_pretrained(saved, **settings)


def sizes(model: ResValTransformer) -> tuple[int, int]:
    """Bytes of the largest layer, and of what is no layer."""
    layers = [sum(4 * p.numel() for p in block.parameters()) for block in model.blocks]
    return max(layers), sum(4 * p.numel() for p in model.parameters()) - sum(layers)


def test_layers_go_where_there_is_room(saved: Path) -> None:
    layer, rest = sizes(ResValTransformer.from_pretrained(saved))
    for fit in range(LAYERS + 1):
        room = {"cpu": rest + (1 + fit) * layer}
        model = ResValTransformer.from_pretrained(saved, device_map="auto", max_memory=room)
        assert waiting(model) == [number >= fit for number in range(LAYERS)]
    assert not any(waiting(load_model(saved, device_map="auto").model))


def test_several_devices_are_filled_in_turn(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would go where, on a machine of two GPUs."""
    plain = ResValTransformer.from_pretrained(saved)
    layer, rest = sizes(plain)
    room = {0: rest + 2 * layer, 1: layer, "cpu": layer}
    monkeypatch.setattr("resval_lens.io.placing.get_max_memory", lambda given: given)
    for device in ("cuda", "cuda:0"):
        places = Placing(device, "auto", room).places(plain)
        assert places == ["cuda:0", "cuda:1", "cpu", DISK]


def test_weights_in_memory_are_fetched_where_the_layer_runs() -> None:
    """As from the CPU to a GPU: here to and from the CPU."""
    plain, model = (tiny_model("v", n_layers=LAYERS).eval() for _ in range(2))
    for block in model.blocks[1:3]:
        weights = {name: p.clone() for name, p in block.named_parameters()}
        block.waiting = Waiting(block, torch.device("cpu"), weights)
    assert waiting(model) == [False, True, True, False]
    for name in ("eap-ig", "runs", "patch z"):
        torch.testing.assert_close(ALL[name](model).detach(), ALL[name](plain).detach())


def test_a_converted_model_has_no_file_to_wait_in() -> None:
    with pytest.raises(ValueError, match=r"layer 1 would be on disk: .* save_pretrained"):
        Placing("cpu", {1: DISK}).apply(tiny_model("v"))


def test_a_classifier_is_not_spread() -> None:
    with pytest.raises(ValueError, match="device_map is for language models; a classifier"):
        load_model("values", device_map="auto")


MEASURE = """
import sys
from resval_lens import ResValTransformer
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.hooks import PromptPairs, logit_difference
from tests.helpers import tiny_tokens

def kilobytes(what):
    return int(open("/proc/self/status").read().split(what + ":")[1].split()[0])

model = ResValTransformer.from_pretrained(sys.argv[1], device_map=dict.fromkeys(range(12), "disk"))
tokens, other, labels = tiny_tokens(1, 4), tiny_tokens(1, 4, seed=5), tiny_tokens(1, 2, seed=6)
pairs = PromptPairs(tokens, other, logit_difference, labels)
score_edges(model, pairs, "eap")  # what is loaded at first is no part of it
before = kilobytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak is what it is now
score_edges(model, pairs, "eap")
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks are read from Linux's /proc"
)
def test_memory_is_that_of_a_few_layers(tmp_path: Path) -> None:
    """Of 12 layers of 12 MB, forward and backward.

    Three to four were measured, of which one is what is fetched and the rest what its run and its
    way back make; ten with a graph through all layers, which holds their weights.
    """
    model = tiny_model("", n_layers=12, d_model=512, n_heads=2, d_head=256, d_mlp=2048)
    layer, _ = sizes(model)
    model.save_pretrained(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "model")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 6 * layer, f"{int(done.stdout) / layer:.1f} layers"


def test_a_command_takes_what_room_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layer, rest = sizes(ResValTransformer.from_pretrained("stories-small-values"))
    monkeypatch.setattr(
        "resval_lens.io.placing.get_max_memory", lambda given: {"cpu": (rest + 2 * layer) * 2}
    )
    fetched: list[int] = []
    fetch = Waiting.fetched
    monkeypatch.setattr(Waiting, "fetched", lambda self: fetched.append(0) or fetch(self))  # type: ignore[func-returns-value]
    reports = []
    for device in ("cpu", "auto"):
        arguments = ["patch", "stories-small-values", "--prompts", "2", "--site", "v_link"]
        arguments += ["--json", "--quiet", "--out", str(tmp_path), "--device", device]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        reports.append(json.loads(done.stdout))
        assert bool(fetched) == (device == "auto")
    assert worst(*reports) < 1e-6
