import functools
import itertools
import math

import pytest
import pytorch_lightning as pl
import torch

from vdsr import benchmark
from vdsr.checkpoints import SPEC
from vdsr.clip import Adjustable, Norm, Unclipped
from vdsr.data import Batches, Pair, SuperResolutionData
from vdsr.net import VDSR, Bicubic
from vdsr.schedule import drops
from vdsr.task import SuperResolution

THETA = 0.0005


class Spy(torch.optim.SGD):
    """Notes what reaches the optimiser: the learning rate and the largest gradient element of every step."""

    def __init__(self, parameters, lr, log):
        super().__init__(parameters, lr=lr)
        self.log = log

    def step(self, closure=None):
        def noting():
            loss = closure()
            grads = torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]])
            self.log.append((self.param_groups[0]["lr"], grads.clone()))
            return loss

        return super().step(noting)


def task(net=None, clip=None, log=None, lr=0.1, schedule=None, **changes):
    torch.manual_seed(0)
    return SuperResolution(
        net=net or VDSR(3, 4),
        optimiser=functools.partial(Spy, lr=lr, log=[] if log is None else log),
        schedule=schedule or functools.partial(drops, steps=8, number=1, factor=0.1),
        clip=clip or Adjustable(THETA),
        **{"scales": (2, 3), "patches_per_epoch": 128, "batch_size": 8, "log_every": 1, **changes},
    )


def trainer(tmp_path, **changes):
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "max_epochs": -1,
        "max_steps": 8,
        "limit_val_batches": 0,
        "default_root_dir": tmp_path,
    }
    return pl.Trainer(**{**quiet, **changes})


@pytest.fixture
def data(sets):
    return SuperResolutionData(sets.train, [sets.val], scales=[2, 3], patch=24, batch_size=8)


def fit(tmp_path, data, clip, **changes):
    """Train 8 steps, γ falling tenfold after 4: (γ, all gradients) as the optimiser had them."""
    log = []
    trainer(tmp_path, **changes).fit(task(clip=clip, log=log), datamodule=data)
    assert [gamma for gamma, _ in log] == [0.1] * 4 + [pytest.approx(0.01)] * 4
    return log


# --- the loss ---


def test_the_loss_is_half_the_squared_error_summed_over_pixels_and_averaged_over_patches():
    ilr = torch.tensor([[[[0.2, 0.4]]], [[[0.5, 0.5]]]])
    hr = torch.tensor([[[[0.3, 0.1]]], [[[0.5, 0.7]]]])
    loss = task(net=Bicubic(), log_every=10).training_step(Pair(ilr, hr), 0)
    assert float(loss) == pytest.approx((0.01 + 0.09 + 0.04) / 2 / 2, rel=1e-6)


def test_the_loss_of_a_patch_does_not_depend_on_the_batch():
    one = Pair(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    three = Pair(torch.zeros(3, 1, 4, 4), torch.ones(3, 1, 4, 4))
    model = task(net=Bicubic(), log_every=10)
    assert float(model.training_step(one, 0)) == float(model.training_step(three, 0)) == 8


# --- clipping ---


@pytest.mark.parametrize(
    "changes", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=["plain", "accumulated", "bf16"]
)
def test_no_gradient_beyond_theta_over_gamma_reaches_the_optimiser(tmp_path, data, changes):
    free = fit(tmp_path, data, Unclipped(), **changes)
    assert free[0][1].abs().max() > 10 * THETA / 0.1  # there is something to clip
    for gamma, grads in fit(tmp_path, data, Adjustable(THETA), **changes):
        assert grads.abs().max() <= THETA / gamma * (1 + 1e-6)


def test_after_gamma_fell_tenfold_gradients_are_let_through_up_to_ten_times_the_bound(tmp_path, data):
    log = fit(tmp_path, data, Adjustable(THETA))
    largest = [float(grads.abs().max()) for _, grads in log]
    assert largest[:4] == [pytest.approx(THETA / 0.1)] * 4  # each step is clipped
    assert largest[4] > 2 * THETA / 0.1  # what was clipped at the step before no longer is
    assert largest[4] <= THETA / 0.01 * (1 + 1e-6)


def test_accumulated_gradients_are_clipped_once_as_their_mean(tmp_path, data):
    model = task(log_every=10)
    batches = itertools.islice(Batches(data.plan, data.store, data.patch, 0, range(data.batch_size)), 2)
    loss = sum(model.training_step(batch, 0) for batch in batches) / 2
    loss.backward()
    mean = torch.cat([p.grad.flatten() for p in model.net.parameters()])
    log = fit(tmp_path, data, Adjustable(THETA), accumulate_grad_batches=2)
    assert torch.allclose(log[0][1], mean.clamp(-THETA / 0.1, THETA / 0.1), rtol=1e-4, atol=1e-6)


def test_norm_clipping_bounds_the_norm(tmp_path, data):
    norms = [float(grads.norm()) for _, grads in fit(tmp_path, data, Norm(0.05))]
    assert norms[:4] == [pytest.approx(0.05, rel=1e-4)] * 4
    assert max(norms) <= 0.05 * (1 + 1e-4)


def test_what_is_logged_of_the_gradients_is_their_state_before_clipping(tmp_path, data):
    log = []
    free = fit(tmp_path, data, Unclipped())[0][1]
    run = trainer(tmp_path, max_steps=1)
    model = task(log=log)
    run.fit(model, datamodule=data)
    logged = {key: float(value) for key, value in run.callback_metrics.items()}
    assert logged["train/gradient_norm"] == pytest.approx(float(free.norm()), rel=1e-5)
    assert logged["train/share_clipped"] == pytest.approx(float((free.abs() > THETA / 0.1).float().mean()), abs=1e-6)
    assert 0.05 < logged["train/share_clipped"] < 1
    assert logged["train/clip_bound"] == pytest.approx(THETA / 0.1)
    assert logged["train/lr"] == pytest.approx(0.1)
    assert float(log[0][1].norm()) < logged["train/gradient_norm"]


def test_only_every_so_many_steps_are_logged(tmp_path, data):
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append((trainer.global_step, float(trainer.callback_metrics.get("train/lr", math.nan))))

    trainer(tmp_path, max_steps=7, callbacks=[Watch()]).fit(task(log_every=3), datamodule=data)
    assert [step for step, _ in seen] == list(range(1, 8))
    assert [step for step, lr in seen if not math.isnan(lr)] == [3, 4, 5, 6, 7]
    assert [lr for _, lr in seen[2:]] == [pytest.approx(0.1)] * 3 + [pytest.approx(0.01)] * 2


@pytest.mark.parametrize("accumulate", [1, 2])
def test_epochs_count_the_patches_seen_at_every_scale(tmp_path, data, accumulate):
    model = task()
    trainer(tmp_path, accumulate_grad_batches=accumulate).fit(model, datamodule=data)
    assert model.epoch == 8 * 8 * accumulate / 128


# --- scores ---


def test_validation_and_test_score_as_the_benchmark_does(tmp_path, data):
    model = task()
    run = trainer(tmp_path, limit_val_batches=1.0)
    run.validate(model, datamodule=data, verbose=False)
    rows = benchmark.means(benchmark.run(model.net, data.pictures(data.val_shards[0]), (2, 3), torch.device("cpu")))
    for scores in (model.scores, (run.test(model, datamodule=data, verbose=False), model.scores)[1]):
        assert list(scores) == [("val", 2), ("val", 3)]
        for row in rows:
            assert scores["val", row.scale] == pytest.approx((row.psnr, row.ssim), abs=1e-9)
            assert model.bicubic["val", row.scale] == pytest.approx((row.bicubic_psnr, row.bicubic_ssim), abs=1e-9)
    assert model.mean_psnr == pytest.approx(sum(row.psnr for row in rows) / 2)
    assert model.gain == pytest.approx(sum(row.psnr - row.bicubic_psnr for row in rows) / 2)


def test_what_validation_logs(tmp_path, data):
    model = task()
    (logged,) = trainer(tmp_path, limit_val_batches=1.0).validate(model, datamodule=data, verbose=False)
    for scale in (2, 3):
        score, bicubic = model.scores["val", scale], model.bicubic["val", scale]
        assert logged[f"val/val/x{scale}/psnr"] == pytest.approx(score.psnr, rel=1e-6)
        assert logged[f"val/val/x{scale}/ssim"] == pytest.approx(score.ssim, rel=1e-5)
        assert logged[f"val/val/x{scale}/gain"] == pytest.approx(score.psnr - bicubic.psnr, rel=1e-5)
    assert logged["val/psnr"] == pytest.approx(model.mean_psnr, rel=1e-6)
    assert logged["val/gain"] == pytest.approx(model.gain, rel=1e-5)


def test_bicubic_gains_nothing(tmp_path, data):
    model = task(net=Bicubic(), scales=(2, 3, 2.5))
    trainer(tmp_path, limit_val_batches=1.0).validate(model, datamodule=data, verbose=False)
    assert model.gain == 0
    assert model.scores == model.bicubic
    assert list(model.scores) == [("val", 2), ("val", 3), ("val", 2.5)]


def test_validation_is_in_float32_under_bf16(tmp_path, data):
    scores = []
    for precision in ("32-true", "bf16-mixed"):
        model = task()
        run = trainer(tmp_path, limit_val_batches=1.0, precision=precision)
        run.validate(model, datamodule=data, verbose=False)
        scores.append(model.scores)
    assert scores[0] == scores[1]


# --- checkpoints ---


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_checkpoint_names_its_network(tmp_path, data, weights_only):
    model = task()
    run = trainer(tmp_path, max_steps=1)
    run.fit(model, datamodule=data)
    run.save_checkpoint(tmp_path / "x.ckpt", weights_only=weights_only)
    found = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert found[SPEC] == {"name": "VDSR", "depth": 3, "width": 4, "residual": True}
    assert ("optimizer_states" in found) is not weights_only
    assert torch.equal(found["state_dict"]["net.body.0.weight"], model.net.body[0].weight)
