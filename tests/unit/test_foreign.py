import itertools
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.io import savemat
from scipy.signal import correlate2d

from vdsr import foreign, weights
from vdsr.errors import InputError
from vdsr.net import VDSR

DEPTH, WIDTH = 4, 5


@pytest.fixture
def layers():
    """(kernels HWIO, biases) of every layer, as MatConvNet keeps them; no two kernels, and no axis, alike."""
    rng = np.random.default_rng(0)
    channels = [1, *[WIDTH] * (DEPTH - 1), 1]
    return [
        (rng.normal(0, 0.3, (3, 3, inputs, outputs)).astype(np.float32), rng.normal(0, 0.1, outputs).astype(np.float32))
        for inputs, outputs in itertools.pairwise(channels)
    ]


@pytest.fixture
def ilr():
    return np.random.default_rng(1).uniform(0, 1, (11, 14)).astype(np.float32)


def by_hand(layers, image, peak=1, residual=True):
    """What the network gives, by SciPy: correlation with zeros around, ReLU between."""
    features = [image.astype(np.float64) * peak]
    for number, (kernels, biases) in enumerate(layers):
        features = [
            sum(correlate2d(f, kernels[:, :, i, o], mode="same") for i, f in enumerate(features)) + biases[o]
            for o in range(kernels.shape[3])
        ]
        if number < len(layers) - 1:
            features = [np.maximum(f, 0) for f in features]
    return features[0] / peak + (image if residual else 0)


def assert_same(net, expected, image):
    with torch.no_grad():
        got = net(torch.from_numpy(image)[None, None])[0, 0].numpy()
    assert np.abs(expected).max() > 0.1
    assert got == pytest.approx(expected, abs=1e-5)


def without(biases):
    return np.zeros_like(biases)


def cells(arrays):
    made = np.empty((1, len(arrays)), dtype=object)
    for n, array in enumerate(arrays):
        made[0, n] = array
    return made


def matlab(layers):
    """`weight` and `bias` as cells; MATLAB drops the last layer's trailing dimension, and keeps biases as columns."""
    kernels = [k[..., 0] if k.shape[3] == 1 else k for k, _ in layers]
    return {"weight": cells(kernels), "bias": cells([b[:, None] for _, b in layers])}


def oihw(kernels):
    return torch.from_numpy(np.ascontiguousarray(kernels.transpose(3, 2, 0, 1)))


def state(layers, biased=True, names=("input.", *(f"residual_layer.{n}.conv." for n in (9, 10)), "output.")):
    """A state dict in the order that common code registers its layers in: the trunk before its ends."""
    found = {}
    for number in [*range(1, len(layers) - 1), 0, len(layers) - 1]:
        found[f"{names[number]}weight"] = oihw(layers[number][0])
        if biased:
            found[f"{names[number]}bias"] = torch.from_numpy(layers[number][1])
    return found


# --- the same output as an independent computation ---


@pytest.mark.parametrize("nested", [True, False])
def test_matlab_cells(tmp_path, layers, ilr, nested):
    savemat(tmp_path / "w.mat", {"model": matlab(layers)} if nested else matlab(layers))
    net = foreign.load(tmp_path / "w.mat")
    assert net.spec() == {"name": "VDSR", "depth": DEPTH, "width": WIDTH, "residual": True}
    assert_same(net, by_hand(layers, ilr), ilr)


@pytest.mark.parametrize("left_out", [True, False])
def test_matlab_cells_without_biases(tmp_path, layers, ilr, left_out):
    content = matlab(layers)
    if left_out:
        del content["bias"]
    else:
        content["bias"] = cells([np.zeros((0, 0))] * DEPTH)
    savemat(tmp_path / "w.mat", {"model": content})
    assert_same(foreign.load(tmp_path / "w.mat"), by_hand([(k, without(b)) for k, b in layers], ilr), ilr)


def test_a_mirrored_or_transposed_kernel_would_show(layers, ilr):
    expected = by_hand(layers, ilr)
    for wrong in (lambda k: k[::-1, ::-1], lambda k: k.transpose(1, 0, 2, 3)):
        assert np.abs(by_hand([(wrong(k), b) for k, b in layers], ilr) - expected).max() > 1e-2


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("biased", [True, False])
def test_state_dicts(tmp_path, layers, ilr, suffix, biased):
    path = tmp_path / f"w{suffix}"
    content = state(layers, biased)
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    expected = by_hand([(k, b if biased else without(b)) for k, b in layers], ilr)
    assert_same(foreign.load(path), expected, ilr)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {f"module.net.{name}": tensor for name, tensor in s.items()},
    ],
)
def test_checkpoints_and_prefixes(tmp_path, layers, ilr, wrap):
    torch.save(wrap(state(layers)), tmp_path / "w.pth")
    assert_same(foreign.load(tmp_path / "w.pth"), by_hand(layers, ilr), ilr)


def test_layers_are_in_the_order_of_their_numbers(tmp_path, layers, ilr):
    names = ("conv1.", "conv2.", "conv10.", "conv11.")  # safetensors sorts by text, and so does some code
    save_file(dict(sorted(state(layers, names=names).items())), tmp_path / "w.safetensors")
    assert_same(foreign.load(tmp_path / "w.safetensors"), by_hand(layers, ilr), ilr)


def test_old_files_of_tensors_are_read(tmp_path, layers, ilr):
    torch.save(state(layers), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert_same(foreign.load(tmp_path / "w.pth"), by_hand(layers, ilr), ilr)


def test_weights_of_another_range(tmp_path, layers, ilr):
    savemat(tmp_path / "w.mat", matlab(layers))
    assert_same(foreign.load(tmp_path / "w.mat", peak=255), by_hand(layers, ilr, peak=255), ilr)


def test_a_plain_network(tmp_path, layers, ilr):
    torch.save(state(layers), tmp_path / "w.pth")
    assert_same(foreign.load(tmp_path / "w.pth", residual=False), by_hand(layers, ilr, residual=False), ilr)


def test_the_papers_size(tmp_path):
    torch.manual_seed(0)
    net = VDSR(20, 64)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    again = foreign.load(tmp_path / "w.pth")
    assert (again.depth, again.width) == (20, 64)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


# --- files that are refused ---


def refused(path, *words, **settings):
    with pytest.raises(InputError) as caught:
        foreign.load(path, **settings)
    assert str(caught.value).count("\n") == 0
    for word in words:
        assert word in str(caught.value)


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle", "nested"])
def test_nothing_is_executed(tmp_path, layers, how):
    path, marker = tmp_path / "w.pth", tmp_path / "executed"
    evil = Malicious(marker)
    if how == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        content = {"state_dict": state(layers), "more": evil} if how == "nested" else evil
        torch.save(content, path, _use_new_zipfile_serialization=how != "old torch")
    refused(path, "holds more than tensors and plain values, so it was not loaded")
    assert not marker.exists()
    with path.open("rb") as file:  # the file would have done it
        if how == "pickle":
            pickle.load(file)
        else:
            torch.load(file, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_is_refused(tmp_path, zipped):
    torch.save({"model": VDSR(3, 4)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "w.pth", "holds more than tensors and plain values, so it was not loaded")


def test_a_version_7_3_file_is_refused_with_the_remedy(tmp_path):
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + struct.pack("<H", 0x0200) + b"IM"
    (tmp_path / "w.mat").write_bytes(header.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(64))
    refused(tmp_path / "w.mat", "version 7.3", "-v7")


@pytest.mark.parametrize("name", ["w.mat", "w.pth", "w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", bytes(2000)])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, str(tmp_path / name))


@pytest.mark.parametrize("suffix", [".mat", ".pth", ".safetensors"])
def test_truncated_files(tmp_path, layers, suffix):
    path = tmp_path / f"w{suffix}"
    savers = {".mat": savemat, ".pth": lambda p, c: torch.save(c, p), ".safetensors": lambda p, c: save_file(c, p)}
    savers[suffix](path, matlab(layers) if suffix == ".mat" else state(layers))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, str(path))


def test_missing_and_unknown_files(tmp_path):
    refused(tmp_path / "none.mat", "no such weights file")
    (tmp_path / "w.h5").write_bytes(b"x")
    refused(tmp_path / "w.h5", "give a .mat, .pth, .pt or .safetensors file")


@pytest.mark.parametrize("peak", [0, -1, "high"])
def test_an_impossible_peak(tmp_path, layers, peak):
    torch.save(state(layers), tmp_path / "w.pth")
    refused(tmp_path / "w.pth", f"peak={peak}", peak=peak)


def change(content, name, tensor):
    return {**content, name: tensor}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {}, "no state dict"),
        (lambda s: {"epoch": 3}, "no state dict"),
        (lambda s: change(s, "input.weight", torch.zeros(WIDTH, 3, 3, 3)), "3 → 5"),
        (lambda s: change(s, "input.weight", torch.zeros(WIDTH, 1, 5, 5)), "layer 1 is (5, 1, 5, 5)"),
        (lambda s: change(s, "input.bias", torch.zeros(WIDTH - 1)), "layer 1 has 4 biases for 5 filters"),
        (lambda s: change(s, "output.bias", torch.tensor([float("nan")])), "layer 4 holds values that are not finite"),
        (lambda s: change(s, "norm.running_mean", torch.zeros(WIDTH)), "norm.running_mean"),
        (lambda s: change(s, "norm.weight", torch.zeros(WIDTH)), "norm.weight"),
        (lambda s: change(s, "lost.bias", torch.zeros(WIDTH)), "lost.bias"),
        (lambda s: change(s, "other.weight", torch.zeros(WIDTH, WIDTH, 3, 3)), "the order of its layers"),
        (lambda s: change(s, "second_input.weight", torch.zeros(WIDTH, 1, 3, 3)), "convolutions of 1 → 5"),
    ],
)
def test_other_networks(tmp_path, layers, change, words):
    torch.save(change(state(layers)), tmp_path / "w.pth")
    refused(tmp_path / "w.pth", words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda m: {"net": {"layers": cells([np.zeros(3)])}}, "has no cells 'weight' and 'bias'"),
        (lambda m: {"x": np.zeros(3)}, "it has x"),
        (lambda m: {**m, "bias": m["bias"][:, :-1]}, "4 cells of weights, but 3 of biases"),
        (lambda m: {"weight": np.zeros((3, 3))}, "no cell arrays"),
        (lambda m: {"weight": cells(["abc", "def"])}, "not floating-point"),
        (lambda m: {"weight": cells([np.zeros((3, 3, 1, 2, 2))] * 2)}, "5 dimensions"),
        (lambda m: {"weight": m["weight"][:, :1]}, "1 convolutions"),
        (lambda m: {"weight": m["weight"][:, ::-1].copy()}, "layer 1 is (1, 5, 3, 3)"),
    ],
)
def test_other_matlab_files(tmp_path, layers, content, words):
    savemat(tmp_path / "w.mat", content(matlab(layers)))
    refused(tmp_path / "w.mat", words)


# --- the command ---


def test_what_was_converted_is_loaded(tmp_path, layers, ilr):
    torch.save(state(layers), tmp_path / "w.pth")
    weights.save(foreign.load(tmp_path / "w.pth"), tmp_path / "out.safetensors")
    assert_same(weights.load(tmp_path / "out.safetensors"), by_hand(layers, ilr), ilr)
