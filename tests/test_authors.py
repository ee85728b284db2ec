"""The authors' files: what loads, what is refused, and that no pickle runs."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resval_lens.models.authors import load_authors_classifier
from tests.classifiers import (
    arrays,
    in_double,
    plain,
    save_arrays,
    tokens,
)
from tests.reference.classifier_numpy import forward


def test_a_file_with_another_number_of_labels_loads(tmp_path: Path) -> None:
    params = arrays(labels=16)
    x = tokens()
    logits = in_double(load_authors_classifier(save_arrays(tmp_path, params), "v"))(x.double())
    assert abs(plain(logits) - forward(params, x.numpy(), "v")["logits"]).max() < 1e-11


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_bias_may_be_a_number_however_it_is_wrapped(tmp_path: Path, shape: Any) -> None:
    params = [x.reshape(shape) if x.size == 1 else x for x in arrays()]
    loaded = load_authors_classifier(save_arrays(tmp_path, params))
    biases = [layer.b.item() for layer in loaded.readout.layers]
    assert biases == [params[i].item() for i in (7, 9, 11)]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.npz is missing; expected the authors'"):
        load_authors_classifier(tmp_path / "nothing.npz")


def assert_refused(path: Path, message: str = "expected an .npz file with arr_0 to arr_12") -> None:
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {message}"):
        load_authors_classifier(path)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "trained.npz", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Payload(trace)))
    assert_refused(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())  # it would have run
    assert trace.exists()


@pytest.mark.parametrize("place", [0, 7, 12, 13])
def test_a_pickle_inside_an_array_is_refused_and_not_run(tmp_path: Path, place: int) -> None:
    trace = tmp_path / "trace"
    params = arrays()
    params[place : place + 1] = [np.array([Payload(trace)], dtype=object)]
    assert_refused(save_arrays(tmp_path, params))
    assert not trace.exists()


@pytest.mark.parametrize("kept", [0, 1, 12])
def test_a_file_of_fewer_arrays_is_refused(tmp_path: Path, kept: int) -> None:
    assert_refused(save_arrays(tmp_path, arrays()[:kept]))


def test_a_file_of_more_arrays_is_refused_with_their_number(tmp_path: Path) -> None:
    path = save_arrays(tmp_path, [*arrays(), np.zeros(1)])
    assert_refused(path, r"expected an \.npz file with arr_0 to arr_12; it holds 14 arrays")


def test_named_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "trained.npz", **{f"w{i}": x for i, x in enumerate(arrays())})
    assert_refused(tmp_path / "trained.npz")


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "trained.npy", arrays()[0])
    assert_refused(tmp_path / "trained.npy")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive", b"\x93NUMPY\x01\x00"])
def test_bytes_that_are_no_archive_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "trained.npz").write_bytes(content)
    assert_refused(tmp_path / "trained.npz")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a plain file; expected the authors' saved"):
        load_authors_classifier(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_damaged_archive_is_refused(tmp_path: Path, save: Any, share: float) -> None:
    path = tmp_path / "trained.npz"
    save(path, *arrays())
    content = bytearray(path.read_bytes())
    start = int(share * len(content))
    content[start : start + 50] = bytes(50)
    path.write_bytes(content)
    assert_refused(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_half_an_archive_is_refused(tmp_path: Path, share: float) -> None:
    path = save_arrays(tmp_path, arrays())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(path)


@pytest.mark.parametrize(
    ("place", "array", "message"),
    [
        (0, np.zeros((150, 149)), r"q1 \(arr_0\) must hold floats of shape \[150, 150\]; got "
         r"float64 \[150, 149\]"),
        (5, np.zeros((128, 150)), r"v2 \(arr_5\) must hold floats of shape \[150, 150\]"),
        (6, np.zeros(150), r"w1 \(arr_6\) must hold floats of shape \[150, 150\]; got "
         r"float64 \[150\]"),
        (7, np.zeros(150), r"b1 \(arr_7\) must hold floats of shape \[1\]; got float64 \[150\]"),
        (10, np.zeros((150, 150), int), r"w3 \(arr_10\) must hold floats .* got int64"),
        (2, np.full((150, 150), "x"), r"v1 \(arr_2\) must hold floats .* got <U1"),
        (12, np.zeros(32), r"readout \(arr_12\) must have .*labels ≥ 4, d > 65\]; got \[32\]"),
        (12, np.zeros((32, 65)), r"readout \(arr_12\) must have .* got \[32, 65\]"),
        (12, np.zeros((0, 150)), r"readout \(arr_12\) must have .* got \[0, 150\]"),
        (12, np.zeros((32, 128)), r"q1 \(arr_0\) must hold floats of shape \[128, 128\]"),
    ],
)  # fmt: skip
def test_an_array_of_another_shape_or_kind_is_named(
    tmp_path: Path, place: int, array: np.ndarray, message: str
) -> None:
    params = arrays()
    params[place] = array
    assert_refused(save_arrays(tmp_path, params), message)
