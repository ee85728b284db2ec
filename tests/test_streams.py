"""Streams as settings: what is accepted, what is refused by name, what survives JSON."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resval_lens.config import ResValConfig
from resval_lens.mixes import MIXES
from resval_lens.streams import FURTHER, AttentionStream, parse_streams, shorthand
from tests.helpers import tiny_config
from tests.mixes import each_mix, sources_of, weights_of


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("of", "z"),
        ("of", ""),
        ("source", "next"),
        ("carry", "both"),
        ("mix", "average"),
        ("detach", "yes"),
        ("detach", 1),
        ("own", "1"),
        ("own", True),
        ("own", float("nan")),
        ("carried", float("inf")),
        ("carried", None.__class__),
        ("layers", (0,)),
        ("layers", (-1,)),
        ("layers", ()),
        ("layers", (1, 1)),
        ("layers", (1.0,)),
        ("layers", (True,)),
        ("layers", "12"),
        ("layers", 2),
    ],
)
def test_a_wrong_value_is_named_with_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"AttentionStream\.{field} .*{re.escape(repr(value))}"):
        AttentionStream(**{"of": "v", "mix": "scalar", field: value})


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("field", ["of", "source", "carry", "mix"])
def test_a_refused_choice_lists_the_choices(field: str) -> None:
    choices = {"of": "q, k, v", "source": "previous, first, all, tokens", "carry": "sum, raw"}
    with pytest.raises(ValueError, match="must be one of ") as error:
        AttentionStream(**{"of": "v", field: "none of these"})
    listed = str(error.value).partition("must be one of ")[2].partition(";")[0].split(", ")
    assert set(listed) == set(choices.get(field, ", ".join(MIXES)).split(", "))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix": "add", "own": 0.5}, "own=0.5 contradicts mix='add'"),
        ({"mix": "pair"}, "needs both weights; got own=None, carried=None"),
        ({"mix": "pair", "own": 0.5}, "needs both weights; got own=0.5, carried=None"),
        ({"mix": "pair", "carried": 0.5}, "needs both weights; got own=None, carried=0.5"),
        ({"mix": "convex", "source": "all"}, "source='all' contradicts mix='convex'"),
        ({"mix": "gate", "source": "all"}, "source='all' contradicts mix='gate'"),
        ({"mix": "convex", "own": 0.5, "carried": 0.6}, "own=0.5 contradicts carried=0.6"),
        ({"mix": "gate", "own": 0.2, "carried": 0.2}, "own=0.2 contradicts carried=0.2"),
        ({"mix": "gate", "carried": 0.0}, "strictly between 0 and 1 for mix='gate'; got 0.0"),
        ({"mix": "gate", "carried": 1.0}, "strictly between 0 and 1 for mix='gate'; got 1.0"),
        ({"mix": "gate", "own": 0.0}, "strictly between 0 and 1 for mix='gate'; got 1.0"),
    ],
)
def test_contradictory_weights_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        AttentionStream("v", **changes)


@pytest.mark.parametrize(
    ("mix", "own", "carried"),
    [
        ("add", 1.0, 1.0),
        ("scalar", 1.0, 1.0),
        ("learned_pair", 0.5, 0.5),
        ("convex", 0.5, 0.5),
        ("head", 1.0, 1.0),
        ("head_gain", 1.0, 0.0),
        ("head_pair", 1.0, 1.0),
        ("next_head", 1.0, 1.0),
        ("gate", 0.5, 0.5),
        ("matrix", 1.0, 1.0),
    ],
)
def test_defaults_of_each_mix(mix: Any, own: float, carried: float) -> None:
    stream = AttentionStream("v", mix=mix)
    assert (stream.own, stream.carried) == (own, carried)
    assert stream == AttentionStream("v", mix=mix, own=own, carried=carried)


@pytest.mark.parametrize("mix", ["convex", "gate"])
def test_complementary_weights_add_to_one_whichever_is_given(mix: Any) -> None:
    from_own = AttentionStream("v", mix=mix, own=0.75)
    from_carried = AttentionStream("v", mix=mix, carried=0.25)
    assert from_own == from_carried == AttentionStream("v", mix=mix, own=0.75, carried=0.25)
    assert (from_own.own, from_own.carried) == (0.75, 0.25)


@each_mix
def test_only_add_and_pair_learn_nothing(mix: str) -> None:
    stream = AttentionStream("v", mix=mix, **weights_of(mix))
    assert stream.is_learned == (mix not in ("add", "pair"))


def test_a_mix_is_found_by_the_name_it_says() -> None:
    assert [mix.name for mix in MIXES.values()] == list(MIXES)


def test_whole_numbers_become_floats_and_layers_a_sorted_tuple() -> None:
    stream = AttentionStream("v", mix="pair", own=0, carried=1, layers=[3, 1])  # type: ignore[arg-type]
    assert (stream.own, stream.carried, stream.layers) == (0.0, 1.0, (1, 3))
    assert isinstance(stream.own, float)
    assert isinstance(stream.carried, float)


def test_equal_streams_are_equal_keys() -> None:
    assert {AttentionStream("v"): 1}[AttentionStream("v", own=1, carried=1.0)] == 1


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("previous", [(), (0,), (1,), (2,)]),
        ("first", [(), (0,), (0,), (0,)]),
        ("all", [(), (0,), (0, 1), (0, 1, 2)]),
    ],
)
def test_sources_of_each_layer(source: Any, expected: list[tuple[int, ...]]) -> None:
    stream = AttentionStream("v", source=source)
    assert [stream.sources(layer) for layer in range(4)] == expected


@pytest.mark.parametrize("source", ["previous", "first", "all"])
def test_a_layer_left_out_has_no_sources(source: Any) -> None:
    stream = AttentionStream("v", source=source, layers=(2,))
    assert [stream.receives(layer) for layer in range(4)] == [False, False, True, False]
    assert [bool(stream.sources(layer)) for layer in range(4)] == [False, False, True, False]


@pytest.mark.parametrize("streams", ["", None, (), []])
def test_nothing_is_the_classic_transformer(streams: Any) -> None:
    assert parse_streams(streams) == ()


@pytest.mark.parametrize("streams", ["vqk", "kvq", "qkv"])
def test_streams_stand_in_the_order_q_k_v(streams: str) -> None:
    expected = tuple(AttentionStream(of) for of in ("q", "k", "v"))
    assert parse_streams(streams) == expected
    assert parse_streams([AttentionStream(of) for of in streams]) == expected  # type: ignore[arg-type]
    assert parse_streams([{"of": of} for of in streams]) == expected


def test_a_single_stream_needs_no_list() -> None:
    stream = AttentionStream("k", source="first")
    assert parse_streams(stream) == parse_streams([stream]) == (stream,)


def test_parsing_what_was_parsed_changes_nothing() -> None:
    streams = parse_streams([{"of": "v", "mix": "gate"}, AttentionStream("q", layers=(2,))])
    assert parse_streams(streams) == streams


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ("vx", "streams='vx' has 'x'"),
        ("V", "streams='V' has 'V'"),
        ("vv", "2 streams of 'v'"),
        ([AttentionStream("k"), {"of": "k", "source": "first"}], "2 streams of 'k'"),
        (["v"], "must hold AttentionStream objects; got 'v'"),
        ([{"source": "first"}], "needs the field 'of'; got {'source': 'first'}"),
        ([{"of": "v", "form": "q"}], "has no field 'form'; its fields are of, source"),
    ],
)
def test_streams_that_cannot_be_meant_are_refused(streams: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_streams(streams)


@pytest.mark.parametrize("layers", [(3,), (1, 7)])
def test_a_layer_that_the_model_lacks_is_refused(layers: tuple[int, ...]) -> None:
    stream = AttentionStream("v", layers=layers)
    message = f"names layer {layers[-1]}; the model has layers 0 to 2"
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_streams(stream, n_layers=3)
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_config(streams=stream)
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_config().with_streams(stream)


@pytest.mark.parametrize(
    ("streams", "name"),
    [
        ("", ""),
        ("vq", "qv"),
        (AttentionStream("v", source="first"), "v(source=first)"),
        (
            [{"of": "q"}, {"of": "v", "carry": "raw", "detach": True}],
            "q v(carry=raw, detach=True)",
        ),
        (AttentionStream("v", mix="pair", own=0.5, carried=1), "v(mix=pair, own=0.5, carried=1.0)"),
        (AttentionStream("k", mix="gate", layers=(1, 2)), "k(mix=gate, layers=(1, 2))"),
    ],
)
def test_shorthand_names_what_differs_from_the_defaults(streams: Any, name: str) -> None:
    assert shorthand(parse_streams(streams)) == name


@st.composite
def attention_streams(draw: st.DrawFn, n_layers: int = 4) -> AttentionStream:
    """Any valid stream."""
    mix = draw(st.sampled_from(list(MIXES)))
    weight = st.floats(-4, 4) | st.integers(-2, 2)
    own, carried = draw(st.none() | weight), draw(st.none() | weight)
    further = {"bias": True} if "bias" in MIXES[mix].further else {}
    try:
        AttentionStream("v", mix=mix, own=own, carried=carried, **further)
    except ValueError:  # not for this mix
        own, carried = None, draw(st.floats(0.01, 0.99))
        own = draw(weight) if MIXES[mix].default is None else None
    receivers = st.sets(st.integers(1, n_layers - 1), min_size=1)
    source = draw(st.sampled_from(sources_of(mix)))
    return AttentionStream(
        of=draw(st.sampled_from("qkv")),  # type: ignore[arg-type]
        source=source,  # type: ignore[arg-type]
        carry=draw(st.sampled_from(["sum", "raw"])),
        mix=mix,
        own=own,
        carried=carried,
        layers=draw(st.none() | receivers.map(tuple)),
        detach=source != "tokens" and draw(st.booleans()),
        **further,
    )


@given(st.lists(attention_streams(), unique_by=lambda stream: stream.of, max_size=3))
@settings(max_examples=80, deadline=None)
def test_what_shorthand_writes_is_read_as_it_was(streams: list[AttentionStream]) -> None:
    expected = parse_streams(streams)
    for text in (shorthand(expected), shorthand(expected).replace(" ", "")):
        for one, other in zip(parse_streams(text), expected, strict=True):
            # 1 − own is not always the carried that it was made of, to the last bit.
            assert (one.own, one.carried) == pytest.approx((other.own, other.carried))
            assert one.mix == other.mix
            assert [getattr(one, f) for f in FURTHER] == [getattr(other, f) for f in FURTHER]
            same = {"mix": "pair", "own": 0, "carried": 0, **dict.fromkeys(FURTHER)}
            assert replace(one, **same) == replace(other, **same)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "has 'x'; write letters of q, k, v"),
        ("v)", "has ')'"),
        ("v(mix=pair", "has '('"),
        ("v(mix pair)", "has 'mix pair'"),
        ("v(detach=True)(", "has '('"),
        ("v(mix=pair, own=x, carried=1)", "AttentionStream.own must be a finite number; got 'x'"),
        ("v(weight=2)", "AttentionStream has no field 'weight'"),
        ("v(source=last)", "source must be one of previous, first, all, tokens; got 'last'"),
        ("v(layers=(1, x))", "layers must be None or distinct layer numbers"),
        ("v(detach=yes)", "detach must be True or False; got 'yes'"),
        ("v v(carry=raw)", "2 streams of 'v'"),
    ],
)
def test_what_shorthand_does_not_write_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_streams(text)


def test_a_carry_is_of_streams_that_do_not_say_it() -> None:
    q, v = parse_streams("q(carry=sum)v", carry="raw")
    assert (q.carry, v.carry) == ("sum", "raw")


@given(attention_streams())
@settings(max_examples=60, deadline=None)
def test_any_stream_survives_to_dict_and_back(stream: AttentionStream) -> None:
    assert AttentionStream.from_dict(stream.to_dict()) == stream


@given(st.lists(attention_streams(), unique_by=lambda stream: stream.of, max_size=3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_streams_survive_a_config_in_json(streams: list[AttentionStream]) -> None:
    config = tiny_config(n_layers=4, streams=streams)
    assert ResValConfig.from_json(config.to_json()) == config
    assert ResValConfig.from_json(config.to_json()).streams == parse_streams(streams)


def test_to_dict_writes_every_field_in_plain_types() -> None:
    assert AttentionStream("v", layers=(2, 1)).to_dict() == {
        "of": "v",
        "source": "previous",
        "carry": "sum",
        "mix": "add",
        "own": 1.0,
        "carried": 1.0,
        "layers": [1, 2],
        "detach": False,
    }
