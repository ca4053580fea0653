"""The report as a person uses it: sort, filter, look into, slide; from disk, with 200 runs, on a telephone."""

import itertools
import math
import threading

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from vdsr import weights
from vdsr.net import VDSR
from vdsr.results import comparisons, runs
from vdsr.results import page as report
from vdsr.results.live import Server

NAMES = ("depth_sweep", "theta_sweep", "<img src=x onerror=document.title='run'>", "a & <b>b</b>")
PATIENCE = 120_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recorded):
    """Records of 200 runs, and one that is cut in half."""
    folder = tmp_path_factory.mktemp("records")
    points = itertools.product((5, 10, 15, 20), (1e-5, 3e-5, 1e-4, 3e-4, 1e-3), (0.1, 0.01), range(5))
    for number, (depth, theta, lr, seed) in enumerate(points):
        gain = 0.03 * depth - 0.3 * (math.log10(theta) + 4) ** 2 - (0.1 if lr < 0.1 else 0) + 0.001 * number
        settings = {"model.depth": depth, "clip.theta": theta, "optim.lr": lr, "seed": seed}
        recorded(folder / f"{number:03}" / "record.json", NAMES[seed % 4], gain, settings, points=100)
    whole = (folder / "000" / "record.json").read_bytes()
    (folder / "half").mkdir()
    (folder / "half" / "record.json").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, prepare, structured):
    """Two sets through a small network: (pictures, their folder)."""
    root = tmp_path_factory.mktemp("page")
    prepare(root / "data" / "grey", {f"disc {seed}": structured(seed, 120, 131) for seed in range(2)})
    prepare(root / "data" / "other", {"bar": structured(7, 96, 96)})
    torch.manual_seed(0)
    file = weights.save(VDSR(3, 4), root / "small.safetensors")
    return comparisons.draw_all(file, root / "data", ["grey", "other"], root / report.PICTURES), root


@pytest.fixture(scope="module")
def built(folder, pictures):
    """The page of all this, on disk."""
    report.write(pictures[1] / "index.html", *runs.read_each(folder), pictures[0])
    return pictures[1] / "index.html"


@pytest.fixture
def opened(page):
    """Open a page and note what it complains of: `opened(path, width=1280)`; nothing may be left at the end."""
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.set_default_timeout(PATIENCE)

    def load(address, width=1280, height=800):
        page.set_viewport_size({"width": width, "height": height})
        page.goto(str(address) if "://" in str(address) else address.as_uri())
        return page

    yield load
    assert complaints == []
    assert page.elsewhere == []


def column(page, title):
    """The texts of a column of the runs that are shown."""
    return page.evaluate(
        """title => {
            const table = document.querySelector("#table");
            const at = [...table.tHead.rows[0].cells].findIndex(head => head.innerText.trim() === title);
            return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[at].innerText);
        }""",
        title,
    )


def all_charts(page):
    """Scroll past every chart; how many plotly drew."""
    count = page.locator(".chart").count()
    for number in range(count):
        page.locator(".chart").nth(number).scroll_into_view_if_needed()
        page.locator(".chart").nth(number).locator(".main-svg").first.wait_for()
    return count


def test_sorts_by_figures_and_by_words(opened, built):
    page = opened(built)
    before = column(page, "gain (dB)")
    assert len(before) == 200
    for title, key in (("gain (dB)", float), ("θ", float), ("experiment", str.casefold)):
        for direction, reverse in (("ascending", False), ("descending", True)):
            head = page.locator("#table").get_by_role("columnheader", name=title, exact=True)
            head.get_by_role("button").press("Enter")
            assert head.get_attribute("aria-sort") == direction
            assert page.locator("th[aria-sort]").count() == 1
            found = column(page, title)
            if key is float:
                assert [*map(float, found)] == sorted(map(float, found), reverse=reverse)
            else:
                assert sorted(found, key=found.index) == found
                groups = [name for name, _ in itertools.groupby(found)]
                assert len(groups) == 4  # alike ones together
    assert sorted(column(page, "gain (dB)")) == sorted(before)


def test_filters_by_every_word(opened, built):
    page = opened(built)
    page.get_by_label("Filter").fill("theta_SWEEP 3e-5")
    assert page.locator("#count").inner_text() == "8 of 200"  # four depths at two learning rates
    assert set(column(page, "experiment")) == {"theta_sweep"}
    page.get_by_label("Filter").fill("nothing like it")
    assert page.locator("#count").inner_text() == "0 of 200"
    page.get_by_label("Filter").fill("")
    assert page.locator("#count").inner_text() == "200 of 200"


def test_names_with_html_show_as_they_are(opened, built):
    page = opened(built)
    assert set(column(page, "experiment")) == set(NAMES)
    assert page.locator("#experiment option").all_inner_texts() == ["all runs", *sorted(NAMES, key=NAMES.index)]
    assert all_charts(page) == 8
    legend = page.locator(".chart").first.locator(".legendtext").all_text_contents()
    assert set(legend) == set(NAMES)
    page.get_by_label("Experiment").select_option(NAMES[2])
    assert all_charts(page) == 8
    assert page.title() == "vdsr: report"
    assert page.locator("img[src=x]").count() == 0


def test_a_damaged_record_is_named_and_hides_no_other(opened, built):
    page = opened(built)
    shown = page.locator(".damaged li").all_inner_texts()
    assert len(shown) == 1
    assert "half/record.json: no run record, or a damaged one" in shown[0]
    assert page.locator(".lead").inner_text() == "200 runs of 4 experiments: 200 finished."


def test_charts_of_one_experiment(opened, built):
    page = opened(built)
    page.get_by_label("Experiment").select_option("depth_sweep")
    assert all_charts(page) == 8
    titles = page.locator("#drawn h3").all_inner_texts()
    assert (
        titles[3:]
        == ["Parallel coordinates", "Gain by depth and γ₀", "Gain by depth", "Gain by γ₀", "Gain by θ"][
            : len(titles) - 3
        ]
    )
    parallel = page.locator(".chart").nth(3)
    assert parallel.locator(".axis-title").all_text_contents()[-1] == "gain (dB)"
    assert "WebGL is not supported" not in parallel.inner_text()
    heat = page.locator(".chart").nth(4)
    assert heat.locator(".heatmap-label").count() == 4 * 2  # depths by learning rates


def test_every_picture_is_drawn(opened, built):
    page = opened(built)
    options = page.locator("#picture option").all_inner_texts()
    assert options == ["grey: disc-0", "grey: disc-1", "other: bar"]
    for picture, scale in itertools.product(range(3), range(3)):
        page.get_by_label("Picture", exact=True).select_option(str(picture))
        page.get_by_label("Scale").select_option(str(scale))
        for name in ("original", "network", "bicubic"):
            page.wait_for_function(
                "id => { const i = document.getElementById(id); return i.complete && i.naturalWidth > 0 }", arg=name
            )
            assert f"×{scale + 2}" in page.locator(f"#{name}").get_attribute("alt")
    broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth || !i.hasAttribute('alt')).length")
    assert broken == 0
    assert page.locator("img").count() > 3  # the paper's figures too


def test_the_figures_beside_a_picture(opened, built, pictures):
    page = opened(built)
    page.get_by_label("Scale").select_option("1")
    at_3 = pictures[0].comparisons[0].scales[1]
    gain = f"{at_3.psnr - at_3.bicubic_psnr:+.2f}".replace("-", "−")
    assert page.locator("#caption span").all_inner_texts() == [
        f"bicubic {at_3.bicubic_psnr:.2f} dB",
        f"network {at_3.psnr:.2f} dB ({gain})",
        "original",
    ]
    assert f"bicubic {at_3.bicubic_psnr:.2f} dB" in page.locator("#bicubic").get_attribute("alt")


def test_the_slider_by_mouse_and_keyboard(opened, built):
    page = opened(built)
    first, second = page.locator("#first"), page.locator("#second")
    first.scroll_into_view_if_needed()
    box = page.locator("#layers").bounding_box()
    middle = box["y"] + box["height"] / 2

    def x(share):
        return box["x"] + 14 + (box["width"] - 28) * share

    page.mouse.move(x(0.33), middle)
    page.mouse.down()
    page.mouse.move(x(0.5), middle, steps=5)
    page.mouse.up()
    assert float(first.input_value()) == pytest.approx(50, abs=1.5)
    assert float(second.input_value()) == 67
    first.press("ArrowRight")
    assert float(first.input_value()) == pytest.approx(50.5, abs=1.5)
    first.press("End")  # takes the other along
    assert (first.input_value(), second.input_value()) == ("100", "100")
    second.press("Home")
    assert (first.input_value(), second.input_value()) == ("0", "0")
    assert second.get_attribute("aria-valuetext") == "0 % from the left"
    second.press("End")
    first.press("PageUp")
    assert 0 < float(first.input_value()) < 50


def test_what_the_bars_uncover(opened, built, tmp_path):
    """Bicubic to the left of the first bar, the network between, the original to the right: by their pixels."""
    page = opened(built)
    page.evaluate(
        """() => ["bicubic", "network", "original"].forEach((id, number) => {
            document.getElementById(id).style.filter = `opacity(1) brightness(0) invert(${number / 2})`;
        })"""
    )
    page.locator("#second").fill("80")
    page.locator("#layers").scroll_into_view_if_needed()
    page.locator("#layers").screenshot(path=tmp_path / "layers.png")
    with Image.open(tmp_path / "layers.png") as shot:
        grey = shot.convert("L")
    row = [grey.getpixel((round(share * grey.width), grey.height // 2)) for share in (0.15, 0.55, 0.95)]
    assert row[0] < 40
    assert 90 < row[1] < 170
    assert row[2] > 215


@pytest.mark.parametrize("width", [1280, 360])
def test_contrast_and_names_by_axe(opened, built, width):
    page = opened(built, width)
    all_charts(page)
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}).response
    assert [(v["id"], [node["target"] for node in v["nodes"]]) for v in found["violations"]] == []
    assert "color-contrast" in {rule["id"] for rule in found["passes"]}


def test_a_telephone_scrolls_one_way(opened, built):
    page = opened(built, 360, 740)
    all_charts(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    box = page.locator("#layers").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360


def test_opens_in_under_two_seconds_with_200_runs(opened, built, page):
    """By the processor's time, for this machine may be busy with something else."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    opened(built)
    page.locator(".chart").first.scroll_into_view_if_needed()
    page.locator(".chart .main-svg").first.wait_for()
    spent = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    wall = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert spent["ThreadTime"] < 4, f"{wall:.0f} ms to load, {spent['ThreadTime']:.2f} s of CPU with the first charts"


def test_live_the_page_follows_the_records_and_stays_as_it_was_left(opened, recorded, tmp_path, pictures):
    recorded(tmp_path / "0" / "record.json", gain=0.1, settings={"model.depth": 5})
    with Server(tmp_path, 0, pictures[0], pictures[1] / report.PICTURES) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = opened(server.url)
        page.get_by_label("Filter").fill("depth_sweep")
        page.locator("#second").fill("90")
        page.locator("#table").get_by_role("columnheader", name="gain (dB)").get_by_role("button").click()
        recorded(tmp_path / "1" / "record.json", gain=-0.2, settings={"model.depth": 10})
        page.get_by_text("2 of 2").wait_for()
        assert column(page, "gain (dB)") == ["-0.20", "+0.10"]
        assert page.get_by_label("Filter").input_value() == "depth_sweep"
        assert page.locator("#second").input_value() == "90"
        assert page.locator("#original").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        assert page.locator("#live").inner_text().startswith("live, ")
        page.close()  # before its server ends
        server.shutdown()
