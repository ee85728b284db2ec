"""A hook point's name is made full, or refused with what was probably meant."""

from typing import Any

import pytest

from resval_lens.hooks.names import known_hook_name, known_hook_names
from resval_lens.models.classifier import ICLClassifier, classifier_config
from resval_lens.streams import AttentionStream
from tests.helpers import tiny_model


@pytest.mark.parametrize(
    ("name", "layer", "expected"),
    [
        ("v_link", 2, "blocks.2.attn.hook_v_link"),
        ("v_link", -1, "blocks.2.attn.hook_v_link"),
        ("v_local", 1, "blocks.1.attn.hook_v_local"),
        ("resid_pre", 0, "blocks.0.hook_resid_pre"),
        ("resid_pre", -3, "blocks.0.hook_resid_pre"),
        ("mlp_post", 1, "blocks.1.mlp.hook_post"),
        ("attn", 1, "blocks.1.attn.hook_pattern"),
        ("k2", None, "blocks.2.attn.hook_k"),
        ("embed", None, "hook_embed"),
        ("scale", None, "ln_final.hook_scale"),
        ("blocks.1.hook_v_link", None, "blocks.1.attn.hook_v_link"),
        ("blocks.1.attn.hook_v_link", None, "blocks.1.attn.hook_v_link"),
        ("blocks.0.ln1.hook_scale", None, "blocks.0.ln1.hook_scale"),
    ],
)
def test_a_name_is_made_full(name: str, layer: int | None, expected: str) -> None:
    model = tiny_model("v")
    assert known_hook_name(model, name, layer) == expected
    assert expected in model.hook_dict


def test_every_hook_point_of_a_model_is_known_by_its_name() -> None:
    for model in (tiny_model("qkv"), ICLClassifier(classifier_config("v"))):
        assert known_hook_names(model, model.hook_dict) == list(model.hook_dict)


QUERIES = AttentionStream("q", layers=(1,))


@pytest.mark.parametrize(
    ("streams", "name", "layer", "message"),
    [
        ("v", "blocks.1.attn.hook_vlink", None,
         "no hook point 'blocks.1.attn.hook_vlink'; near: blocks.1.attn.hook_v_link, "),
        ("v", "v_lnk", 2, "no hook point 'blocks.2.hook_v_lnk'; near: "),
        ("v", "resid_per", 1,
         "no hook point 'blocks.1.hook_resid_per'; near: blocks.1.hook_resid_pre, "),
        ("v", "zzzzzzzz", None,
         "no hook point 'hook_zzzzzzzz'; model.hook_dict has all of this model's"),
        ("v", "v_link", 0,
         "no hook point 'blocks.0.attn.hook_v_link': layer 0 receives no v; layers [1, 2] do"),
        (QUERIES, "q_local", -1,
         "no hook point 'blocks.2.attn.hook_q_local': layer 2 receives no q; layers [1] do"),
        ("", "v_link", 1,
         "no hook point 'blocks.1.attn.hook_v_link': this model has no v link: its configuration "
         "has streams=''"),
        (QUERIES, "blocks.1.attn.hook_v_local", None,
         "no hook point 'blocks.1.attn.hook_v_local': this model has no v local: its configuration "
         "has streams='q(layers=(1,))'"),
        ("v", "blocks.3.hook_resid_pre", None,
         "no hook point 'blocks.3.hook_resid_pre': layer 3 is not among 0 to 2"),
        ("v", "v_link", 3, "no hook point 'v_link' in layer 3: it is not among 0 to 2"),
        ("v", "v_link", -4, "no hook point 'v_link' in layer -4: it is not among 0 to 2"),
    ],
    ids=str,
)  # fmt: skip
def test_a_name_that_is_not_there_is_refused_in_one_line(
    streams: Any, name: str, layer: int | None, message: str
) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # the whole text is compared below
        known_hook_name(tiny_model(streams), name, layer)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_list_is_refused_for_the_one_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"'blocks\.1\.hook_resid_port'; near: .*_post"):
        known_hook_names(tiny_model(""), ["embed", "blocks.1.hook_resid_port"])
