"""What a run says of itself while it trains."""

from types import SimpleNamespace

import pytest

from vdsr.callbacks.recorder import gain_where_trained, validation_line
from vdsr.metrics import Score

BICUBIC = {2: 33.66, 3: 30.39, 4: 28.42}


def scored(gains):
    """A task with these gains in dB over bicubic on Set5, by scale."""
    bicubic = {("set5", scale): Score(BICUBIC[scale], 0.9) for scale in gains}
    scores = {("set5", scale): Score(BICUBIC[scale] + gain, 0.9) for scale, gain in gains.items()}
    return SimpleNamespace(scores=scores, bicubic=bicubic)


@pytest.mark.parametrize(
    ("gains", "scales", "mean"),
    [
        ({2: 3, 3: 2, 4: 1}, (2, 3, 4), 2),
        ({2: -6, 3: -1, 4: 2}, (4,), 2),
        ({2: 3, 3: 2, 4: 0}, (4,), 0),
        ({2: 3, 3: 2, 4: 1}, (2.0, 3.0), 2.5),
        ({2: 3, 3: 1}, (2.5,), 2),  # not scored where it is trained: all that there is
    ],
)
def test_the_gain_is_that_of_the_scales_trained_on(gains, scales, mean):
    assert gain_where_trained(scored(gains), scales) == pytest.approx(mean)


@pytest.mark.parametrize(("gains", "stuck"), [({2: -6, 4: 2}, False), ({2: 3, 4: 0}, True), ({2: 3, 4: -2}, True)])
def test_a_network_is_stuck_where_it_is_trained_or_not_at_all(gains, stuck):
    trainer = SimpleNamespace(global_step=5, max_steps=9, datamodule=SimpleNamespace(scales=(4,)))
    line = validation_line(trainer, scored(gains))
    assert line.startswith(f"step 5/9  set5 ×2 {BICUBIC[2] + gains[2]:.2f} ({gains[2]:+.2f})")
    assert ("not beyond bicubic yet" in line) == stuck
