from vdsr.results import published


def test_table_3_is_whole():
    assert published.SETS == ("set5", "set14", "b100", "urban100")
    assert set(published.BENCHMARK) == {(name, scale) for name in published.SETS for scale in (2, 3, 4)}
    for figures in published.BENCHMARK.values():
        assert set(figures) == set(published.METHODS)
        assert all(20 < psnr < 40 and 0.6 < ssim < 1 for psnr, ssim, _ in figures.values())


def test_the_figures_are_the_papers():
    set5 = published.BENCHMARK["set5", 2]
    assert set5["VDSR"] == (37.53, 0.9587, 0.13)
    assert set5["SelfEx"] == (36.49, 0.9537, 45.78)
    assert published.BENCHMARK["urban100", 4]["VDSR"] == (25.18, 0.7524, 1.06)
    assert published.BENCHMARK["b100", 3]["SRCNN"] == (28.41, 0.7863, None)
    assert published.SCALE_SETS[3,] == {2: 30.05, 3: 32.89, 4: 28.73}
    assert published.RESIDUAL[False][20] == 19.59
    assert published.PATCHES == 637_440


def test_what_the_paper_says_of_its_figures_holds():
    for key, figures in published.BENCHMARK.items():
        assert max(figures, key=lambda method: figures[method].psnr) == "VDSR", key
        assert min(figures, key=lambda method: figures[method].psnr) == "bicubic", key
    for scales in zip(*(published.BENCHMARK[name, 2].values() for name in published.SETS), strict=True):
        assert scales[0].psnr > scales[3].psnr  # Set5 is the easiest
    for scale in (2, 3, 4):
        best = max(figures[scale] for figures in published.SCALE_SETS.values())
        assert best - published.SCALE_SETS[2, 3, 4][scale] < 0.05


def test_what_the_paper_has_not():
    assert published.psnr("set5", 2, "VDSR") == 37.53
    assert published.psnr("set5", 2.5, "VDSR") is None
    assert published.psnr("sample_val", 2, "VDSR") is None
