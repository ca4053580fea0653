import csv
import json
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from resize_right import interp_methods, resize

from vdsr import weights
from vdsr.callbacks import pictures
from vdsr.net import VDSR

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "bicubic_sample_val.py"


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory, prepare, structured, noise):
    """Prepared folders `grey` (two pictures) and `set5` (one, coloured: blue above, orange below, textured)."""
    root = tmp_path_factory.mktemp("benchmarks")
    prepare(root / "grey", {f"g{seed}": structured(seed, 50, 61) for seed in (20, 21)})
    colours = np.where(np.arange(60)[:, None, None] < 30, np.uint8([20, 60, 200]), np.uint8([230, 120, 10]))
    coloured = np.tile(colours, (1, 60, 1)) + noise(3, 60, 60)[..., None] // 13
    prepare(root / "set5", {"coloured": coloured.astype(np.uint8)})
    return root


@pytest.fixture
def evaluate(command, benchmarks, tmp_path):
    def run(*overrides):
        result = command(tmp_path, "src/evaluate.py", f"paths.data={benchmarks}", "accelerator=cpu", *overrides)
        assert result.status == 0, result.err
        assert result.err == ""
        return result.out

    return run


@pytest.fixture
def small():
    """A network of three layers whose weights are not what they start with."""
    torch.manual_seed(5)
    net = VDSR(3, 8)
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    return net


def cells(out):
    """The rows of the printed table."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]


def written(tmp_path):
    with (tmp_path / "scores" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((tmp_path / "scores" / "scores.json").read_text())


# --- an independent benchmark: NumPy and resize-right ---


def independent_psnr(hr, scale, network=lambda ilr: ilr):
    """PSNR by the benchmarks' protocol of a grey uint8 picture, at a whole scale."""
    height, width = (side - side % scale for side in hr.shape)
    hr = hr[:height, :width].astype(float)
    options = {"interp_method": interp_methods.cubic, "antialiasing": True, "by_convs": False, "pad_mode": "symmetric"}
    low = resize(hr, scale_factors=1 / scale, **options)
    ilr = resize(low, scale_factors=float(scale), **options)
    sr = np.rint(np.clip(network(ilr), 16, 235))
    error = (sr - hr)[scale:-scale, scale:-scale]
    return 10 * np.log10(255**2 / np.mean(error**2))


def independent_forward(net):
    """The network's arithmetic in NumPy, float64, on luma in [0, 255]."""
    layers = [
        (m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in net.body if hasattr(m, "bias")
    ]

    def forward(ilr):
        planes = ilr[None] / 255
        for number, (weight, bias) in enumerate(layers):
            padded = np.pad(planes, ((0, 0), (1, 1), (1, 1)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
            planes = np.einsum("ihwyx,oiyx->ohw", windows, weight) + bias[:, None, None]
            if number < len(layers) - 1:
                planes = np.maximum(planes, 0)
        return ilr + planes[0] * 255

    return forward


# --- tables ---


def test_bicubic_gains_nothing_and_is_what_others_measure(evaluate, structured, tmp_path):
    out = evaluate("model=bicubic", "sets=[grey]", "per_image=true", "out=scores")
    rows, content = written(tmp_path)
    assert [(row["set"], row["image"], row["scale"]) for row in rows] == [
        ("grey", f"grey-g{seed}", scale) for seed in (20, 21) for scale in ("2.0", "3.0", "4.0")
    ]
    for row in rows:
        picture = structured(int(row["image"].removeprefix("grey-g")), 50, 61)
        assert float(row["psnr"]) == pytest.approx(independent_psnr(picture, int(float(row["scale"]))), abs=1e-3)
        assert (row["psnr"], row["ssim"]) == (row["bicubic_psnr"], row["bicubic_ssim"])
    assert cells(out)[:2] == [
        ["grey", "grey-g20", "×2", *2 * [f"{float(rows[0]['psnr']):.2f}", f"{float(rows[0]['ssim']):.4f}"], "+0.00"],
        ["grey", "grey-g20", "×3", *2 * [f"{float(rows[1]['psnr']):.2f}", f"{float(rows[1]['ssim']):.4f}"], "+0.00"],
    ]
    assert content["network"] == {"name": "Bicubic"}
    assert content["weights"] is None


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_a_network_from_weights_or_a_checkpoint(evaluate, small, structured, tmp_path, kind):
    path = tmp_path / f"small.{kind}"
    if kind == "safetensors":
        weights.save(small, path)
    else:
        state = {f"net.{name}": tensor for name, tensor in small.state_dict().items()}
        torch.save({"vdsr_network": small.spec(), "state_dict": state, "global_step": 7}, path)
    out = evaluate(f"weights={path.name}", "sets=[grey]", "scales=[3]", "out=scores")
    rows, content = written(tmp_path)
    pictures = [structured(seed, 50, 61) for seed in (20, 21)]
    for row, picture in zip(rows, pictures, strict=True):
        psnr = independent_psnr(picture, 3, independent_forward(small))
        assert float(row["psnr"]) == pytest.approx(psnr, abs=2e-3)
        assert float(row["bicubic_psnr"]) == pytest.approx(independent_psnr(picture, 3), abs=1e-3)
        assert abs(psnr - independent_psnr(picture, 3)) > 0.05  # it is the network that was scored
    means = {
        key: np.mean([float(row[key]) for row in rows]) for key in ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim")
    }
    gain = f"{means['psnr'] - means['bicubic_psnr']:+.2f}"
    assert path.name in out
    assert cells(out) == [
        ["grey", "×3", f"{means['psnr']:.2f}", f"{means['ssim']:.4f}", f"{means['bicubic_psnr']:.2f}",
         f"{means['bicubic_ssim']:.4f}", gain]
    ]  # fmt: skip
    assert content["network"] == {"name": "VDSR", "depth": 3, "width": 8, "residual": True}
    assert content["weights"] == path.name
    assert content["means"] == [
        {"set": "grey", "image": "2", "scale": 3.0} | {k: pytest.approx(v) for k, v in means.items()}
    ]
    assert [float(row["psnr"]) for row in rows] == [image["psnr"] for image in content["images"]]
    assert content["versions"]["torch"] == torch.__version__


def test_the_files_of_a_real_run(evaluate, run_dir):
    outs = [evaluate(f"weights={path}", "sets=[grey]", "scales=[3]") for path in (
        run_dir / "weights.safetensors", run_dir / "checkpoints" / "last.ckpt"
    )]  # fmt: skip
    assert cells(outs[0]) == cells(outs[1])
    assert len(cells(outs[0])) == 1


def test_what_training_printed_can_be_typed_again(evaluate, train, tmp_path):
    out = train(tmp_path, "model.depth=2").out
    (path,) = [line.removeprefix("weights: ") for line in out.splitlines() if line.startswith("weights: ")]
    assert (tmp_path / path).is_file()
    assert len(cells(evaluate(f"weights={path}", "sets=[grey]", "scales=[3]"))) == 1


def test_what_is_prepared_is_scored_unless_sets_are_named(evaluate):
    assert [row[0] for row in cells(evaluate("model=bicubic", "scales=[2]"))] == ["set5"]
    assert [row[0] for row in cells(evaluate("model=bicubic", "scales=[2]", "sets=[grey,set5]"))] == ["grey", "set5"]


def test_a_set_that_is_not_prepared_is_named(command, benchmarks, tmp_path):
    result = command(tmp_path, "src/evaluate.py", "model=bicubic", f"paths.data={benchmarks}", "sets=[grey,urban100]")
    prepare = f"python data_prep/prepare.py dataset=urban100 paths.data={benchmarks}"
    assert result == (1, "", f"error: no shards in {benchmarks}/urban100; make them with `{prepare}`\n")


def test_scales_are_what_was_asked_for(evaluate):
    rows = cells(evaluate("model=bicubic", "sets=[set5]", "scales=[2.5,4,2]"))
    assert [row[1] for row in rows] == ["×2", "×2.5", "×4"]


def test_nothing_is_written_unless_asked_for(evaluate, tmp_path):
    evaluate("model=bicubic", "sets=[grey]", "scales=[2]", "pictures=2")
    assert os.listdir(tmp_path) == []


# --- pictures ---


def test_as_many_pictures_of_each_set_as_asked_for(evaluate, tmp_path):
    evaluate("model=bicubic", "sets=[grey,set5]", "scales=[2]", "out=scores", "pictures=1")
    assert sorted(os.listdir(tmp_path / "scores")) == ["pictures", "scores.csv", "scores.json"]
    assert sorted(os.listdir(tmp_path / "scores" / "pictures")) == ["grey-g20.png", "set5-coloured.png"]


def test_a_picture_shows_the_colours_of_the_original(evaluate, tmp_path):
    evaluate("model=bicubic", "sets=[set5]", "scales=[2,3]", "out=scores", "pictures=1")
    with Image.open(tmp_path / "scores" / "pictures" / "set5-coloured.png") as image:
        assert image.size == (round(7.2 * pictures.DPI), round(2 * 2.6 * pictures.DPI))
        shown = np.asarray(image.convert("RGB")).astype(int)
    third = shown.shape[1] // 3
    for column in range(3):  # bicubic | network | original
        part = shown[:, column * third : (column + 1) * third].reshape(-1, 3)
        for colour in ([29, 69, 209], [239, 129, 19]):
            near = (abs(part - colour) <= 14).all(axis=1).mean()
            assert near > 0.1, (column, colour, near)
        swapped = (abs(part - [209, 69, 29]) <= 14).all(axis=1).mean()
        assert swapped < 0.001


# --- figures that must not move ---


def test_bicubic_on_the_embedded_images_is_as_it_was(tmp_path):
    golden = json.loads(GOLDEN.with_suffix(".json").read_text())
    found = runpy.run_path(str(GOLDEN))["measure"](tmp_path)
    assert [(row["image"], row["scale"]) for row in golden["rows"]] == [(row["image"], row["scale"]) for row in found]
    for expected, row in zip(golden["rows"], found, strict=True):
        assert row["psnr"] == pytest.approx(expected["psnr"], abs=0.001)
        assert row["ssim"] == pytest.approx(expected["ssim"], abs=0.0001)


# Bicubic at ×2, ×3, ×4: the column in the tables of Kim et al. 2016, with one more digit.
PUBLISHED = {
    "set5": ([33.661, 30.392, 28.421], [0.92988, 0.86821, 0.81040]),
    "set14": ([30.237, 27.546, 26.004], [0.86880, 0.77418, 0.70273]),
    "b100": ([29.560, 27.209, 25.962], [0.84315, 0.73855, 0.66754]),
}


@pytest.mark.skipif(
    "VDSR_BENCHMARKS" not in os.environ, reason="VDSR_BENCHMARKS names no folder with prepared benchmarks"
)
@pytest.mark.parametrize("name", PUBLISHED)
def test_bicubic_on_the_benchmarks_is_the_published_one(command, tmp_path, name):
    folder = os.environ["VDSR_BENCHMARKS"]
    result = command(
        tmp_path, "src/evaluate.py", "model=bicubic", f"paths.data={folder}", f"sets=[{name}]", "out=scores"
    )
    assert result.status == 0, result.err
    means = written(tmp_path)[1]["means"]
    psnr, ssim = PUBLISHED[name]
    assert [row["scale"] for row in means] == [2, 3, 4]
    assert [row["psnr"] for row in means] == pytest.approx(psnr, abs=0.001)
    assert [row["ssim"] for row in means] == pytest.approx(ssim, abs=0.0001)
