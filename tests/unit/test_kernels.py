"""Our own kernels against PyTorch's in float32, and what is said where they cannot be had."""

import copy
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from vdsr import kernels
from vdsr.errors import InputError
from vdsr.net import SRCNN, VDSR, channels_last


def network(depth, residual=True):
    torch.manual_seed(depth)
    net = channels_last(VDSR(depth, residual=residual))
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 1:
                p.normal_(0, 0.05)
    return net


def patches(batch, height, width):
    torch.manual_seed(batch)
    ilr = torch.rand(batch, 1, height, width)
    return ilr, ilr + 0.1 * torch.randn_like(ilr)


def plainly(net, ilr, hr, autocast=False):
    """The loss as the task has it, and its gradients."""
    net = copy.deepcopy(net)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        sr = net(ilr)
    loss = (sr - hr).square().sum() / (2 * len(hr))
    loss.backward()
    return loss.detach(), [p.grad for p in net.parameters()]


def by_kernels(net, ilr, hr):
    net.zero_grad()
    loss = kernels.HalfSquaredError(net)(ilr, hr)
    loss.backward()
    return loss.detach(), [p.grad for p in net.parameters()]


def error(found, exact):
    return float((found - exact).norm() / exact.norm())


@pytest.fixture
def _fresh():
    """Nothing is known yet of CPU, compiler and system; and nothing of what the test made them, afterwards."""
    for cached in (kernels.unsupported, kernels._features, kernels._uncompiled, kernels._library):
        cached.cache_clear()
    yield
    for cached in (kernels.unsupported, kernels._features, kernels._uncompiled, kernels._library):
        cached.cache_clear()


@pytest.fixture(params=["AMX", "AVX512-BF16"])
def _made_of(_fresh, monkeypatch, request, tmp_path_factory):
    """The kernels by each kind of instructions; AMX on tiles in plain memory, which any CPU with bf16 can pretend."""
    monkeypatch.setattr(kernels, "_possible", lambda: [request.param])
    if request.param == "AMX":
        header = Path(__file__).with_name("tiles.h")
        monkeypatch.setenv("CXX", f"c++ -include {shlex.quote(str(header))}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "pretended"))  # compiled once
    assert kernels.instructions() == request.param


SHAPES = [
    (3, 1, 1, 1, True),
    (4, 2, 7, 7, False),
    (5, 5, 16, 9, True),
    (5, 3, 9, 32, False),
    (5, 2, 31, 30, True),  # rows of an even and an odd number of pixels
    (3, 1, 1, 100, True),
    (3, 2, 50, 1, False),
    (3, 2, 5, 62, True),
    (3, 2, 5, 61, True),  # the margins' tightest fit: none is left over
    (20, 16, 41, 41, True),
    (20, 3, 48, 65, True),
]


@pytest.mark.usefixtures("kernels", "_made_of")
@pytest.mark.parametrize(("depth", "batch", "height", "width", "residual"), SHAPES)
def test_as_exact_as_autocast(depth, batch, height, width, residual):
    net, pair = network(depth, residual), patches(batch, height, width)
    loss, grads = by_kernels(net, *pair)
    exact_loss, exact = plainly(net, *pair)
    cast_loss, cast = plainly(net, *pair, autocast=True)
    assert error(loss, exact_loss) < max(2 * error(cast_loss, exact_loss), 1e-3)
    for p, found, other, true in zip(net.parameters(), grads, cast, exact, strict=True):
        assert found.shape == p.shape
        assert error(found, true) < max(1.5 * error(other, true), 5e-3)


@pytest.mark.usefixtures("kernels")
def test_nothing_is_left_over_from_an_earlier_call():
    net = network(4)
    alone = by_kernels(net, *patches(2, 20, 20))
    bad = [torch.full_like(plane, torch.nan) for plane in patches(2, 20, 20)]
    for other in (bad, patches(2, 20, 21), patches(3, 21, 20), patches(1, 40, 33)):
        by_kernels(net, *other)
    again = by_kernels(net, *patches(2, 20, 20))
    assert torch.equal(alone[0], again[0])
    assert all(map(torch.equal, alone[1], again[1]))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_the_patches(threads):
    net, pair = network(4), patches(5, 15, 15)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        loss, grads = by_kernels(net, *pair)
    finally:
        torch.set_num_threads(before)
    one_by_one = [by_kernels(net, ilr[None], hr[None]) for ilr, hr in zip(*pair, strict=True)]
    assert loss == pytest.approx(float(sum(each for each, _ in one_by_one)) / 5, rel=1e-5)
    for i, grad in enumerate(grads):
        assert error(sum(each[i] for _, each in one_by_one) / 5, grad) < 1e-2


@pytest.mark.usefixtures("kernels")
def test_a_factor_of_the_loss_reaches_the_gradients():
    net, pair = network(3), patches(2, 9, 9)
    _, grads = by_kernels(net, *pair)
    net.zero_grad()
    (3 * kernels.HalfSquaredError(net)(*pair)).backward()
    for p, grad in zip(net.parameters(), grads, strict=True):
        assert torch.allclose(p.grad, 3 * grad)


@pytest.mark.usefixtures("kernels")
def test_what_is_not_a_number_is_not_hidden():
    net, (ilr, hr) = network(3), patches(2, 9, 9)
    ilr[1, 0, 4, 4] = torch.nan
    loss, grads = by_kernels(net, ilr, hr)
    assert loss.isnan()
    assert all(grad.isnan().any() for grad in grads)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("ilr", "hr"),
    [
        (torch.zeros(2, 1, 9, 9), torch.zeros(1, 1, 9, 9)),
        (torch.zeros(2, 1, 9, 9), torch.zeros(2, 1, 9, 8)),
        (torch.zeros(2, 3, 9, 9), torch.zeros(2, 3, 9, 9)),
        (torch.zeros(0, 1, 9, 9), torch.zeros(0, 1, 9, 9)),
        (torch.zeros(2, 1, 9, 9).double(), torch.zeros(2, 1, 9, 9)),
        (torch.zeros(2, 1, 9, 9), torch.zeros(2, 1, 9, 9).bfloat16()),
    ],
)
def test_planes_of_other_shapes_or_types_are_refused(ilr, hr):
    with pytest.raises(ValueError, match=r"are not both \(B, 1, H, W\)|float32 tensors on the CPU"):
        kernels.HalfSquaredError(network(3))(ilr, hr)


@pytest.mark.usefixtures("kernels")
def test_gradients_may_be_asked_for_twice():
    net, pair = network(3), patches(2, 9, 9)
    loss = kernels.HalfSquaredError(net)(*pair)
    first, second = (torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("net", [SRCNN(), VDSR(5, 32), VDSR(2)])
def test_other_networks_are_not_for_them(net):
    assert kernels.missing(net) == "they are for VDSR with 64 filters and at least 3 layers"
    with pytest.raises(InputError, match="no kernels of our own here"):
        kernels.HalfSquaredError(net)


BF16, TILES = frozenset({"avx512_bf16"}), frozenset({"avx512_bf16", "amx_tile", "amx_bf16"})


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(
    ("features", "refused", "made_of"),
    [
        (BF16, (), "AVX512-BF16"),
        (TILES - {"amx_bf16"}, (), "AVX512-BF16"),
        (TILES, (), "AMX"),
        (TILES, ("AMX",), "AVX512-BF16"),  # by the system, or the compiler
    ],
)
def test_the_fastest_instructions_that_can_be_had(monkeypatch, features, refused, made_of):
    def built(name):
        if name in refused:
            raise OSError("the system does not grant AMX's tiles")
        return f"library of {name}"

    monkeypatch.setattr(kernels, "_features", lambda: features)
    monkeypatch.setattr(kernels, "_built", built)
    assert kernels._library() == (made_of, f"library of {made_of}")
    assert kernels.instructions() == made_of
    assert kernels._uncompiled() is None


@pytest.mark.usefixtures("_fresh")
def test_a_processor_without_bf16_has_none(monkeypatch):
    monkeypatch.setattr(kernels.platform, "system", lambda: "Linux")
    monkeypatch.setattr(kernels.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(kernels, "_features", lambda: TILES - BF16)
    assert kernels.missing(VDSR()) == "this CPU has no avx512_bf16"


@pytest.mark.usefixtures("_fresh")
def test_another_processor_has_none(monkeypatch):
    monkeypatch.setattr(kernels.platform, "machine", lambda: "arm64")
    assert kernels.missing(VDSR()) == "they are for x86-64 and Linux"


@pytest.mark.usefixtures("_fresh")
def test_without_a_compiler_there_are_none(monkeypatch):
    monkeypatch.setattr(kernels, "_features", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(kernels, "unsupported", lambda: None)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    assert kernels.missing(VDSR()) == "there is no C++ compiler: install g++, or set CXX"


@pytest.mark.usefixtures("_fresh")
def test_a_compiler_that_refuses_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "_features", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(kernels, "unsupported", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(command, **_):
        raise subprocess.CalledProcessError(1, command, stderr="unknown option:\n -mavx512bf16")

    monkeypatch.setattr(kernels.subprocess, "run", refuse)
    assert kernels.missing(VDSR()) == "unknown option: -mavx512bf16"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("kernels", "_fresh")
def test_they_are_compiled_once_and_without_a_home_for_this_process(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels.missing(VDSR()) is None
    (kept,) = (tmp_path / "vdsr").iterdir()
    compiled = kept.stat().st_mtime_ns
    kernels._library.cache_clear()
    kernels._uncompiled.cache_clear()
    assert kernels.missing(VDSR()) is None
    assert kept.stat().st_mtime_ns == compiled

    kept.unlink()  # loaded above: must not change
    kept.write_bytes(b"")  # cut short: made anew for this process
    kernels._library.cache_clear()
    kernels._uncompiled.cache_clear()
    assert kernels.missing(VDSR()) is None

    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    kernels._library.cache_clear()
    kernels._uncompiled.cache_clear()
    assert kernels.missing(VDSR()) is None


@pytest.mark.usefixtures("kernels", "_fresh")
def test_a_compiler_may_have_arguments_and_a_user_no_home(monkeypatch):
    monkeypatch.setenv("CXX", "c++ -pipe")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(kernels.Path, "home", homeless)
    assert kernels.missing(VDSR()) is None
