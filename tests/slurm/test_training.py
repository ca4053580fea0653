"""Whatever becomes of the job that trains, the same network comes out."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
ONE_NODE = "--gpus-per-node=0"
TWO_NODES = "--nodes=2"


@pytest.fixture(scope="module", autouse=True)
def meanwhile(training, cluster):
    """What consists of waiting for Slurm, on nodes of its own beside the other tests: futures of the trainings."""
    with ThreadPoolExecutor() as pool:
        yield {
            "limit": pool.submit(at_the_time_limit, training()),
            "power": pool.submit(without_power, training(), cluster),
        }


def at_the_time_limit(run):
    """It meets Slurm's own time limit, halted after the first checkpoint so that it does not end before."""
    run.submit(ONE_NODE, "--nodelist=node3", "--time=1", "--signal=B:USR1@1")
    run.under_way()
    process = run.process(rank=0)
    os.kill(process, signal.SIGSTOP)
    run.job.said("USR1 passed on")
    os.kill(process, signal.SIGCONT)
    return restarted(run)


def without_power(run, cluster):
    """One of its nodes loses power, and gets it back."""
    run.submit(TWO_NODES, "--nodelist=node[3-4]")
    run.under_way()
    cluster.power("off", "node4")
    try:
        run.job.until("PENDING")
    finally:
        cluster.power("on", "node4")
    return restarted(run)


@pytest.fixture(scope="module")
def undisturbed(training):
    """Two ranks on two nodes, left alone."""
    run = training()
    run.submit(TWO_NODES)
    run.job.completes()
    return run


@pytest.fixture(scope="module")
def alone(training, cluster):
    """One process, without Slurm."""
    run = training()
    cluster.run("python", ROOT / "src/train.py", *run.overrides, cwd=run.cwd)
    return run


def restarted(run):
    """It completes after a restart."""
    assert run.job.completes()["Restarts"] != "0", run.job.log()
    return run


def check(run, like):
    """It went on where it was, logged each step once, and ended with the weights of `like`."""
    assert "continuing at step" in run.job.log(), run.job.log()
    assert [point["step"] for point in run.record()["curve"]] == list(range(1, 601))
    expected = like.weights()
    found = run.weights()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_two_nodes_lose_what_one_process_loses(undisturbed, alone):
    ours, theirs = (run.record() for run in (undisturbed, alone))
    assert [point["step"] for point in ours["curve"]] == [point["step"] for point in theirs["curve"]]
    losses = [[point["loss"] for point in record["curve"]] for record in (ours, theirs)]
    assert losses[0][:50] == pytest.approx(losses[1][:50], rel=1e-5)  # rounding grows from step to step
    assert ours["psnr"] == pytest.approx(theirs["psnr"], abs=0.3)
    assert undisturbed.run_dir.name == alone.run_dir.name  # whoever trains it, it is the same run


def test_the_log_says_what_runs_where(undisturbed):
    log = undisturbed.job.log()
    number = undisturbed.job.number
    assert (
        f"vdsr: job {number} (restart 0 of 20), 2 × 1 ranks on node[1-2], rendezvous node1:{20000 + int(number)}" in log
    )
    assert "staged to " in log
    assert undisturbed.record()["config"]["paths"]["data"].endswith(f"/local/{number}/data")


def test_more_gpus_than_ranks_are_refused(training):
    run = training()
    run.submit("--gpus-per-node=2").until("FAILED")
    assert "error: 2 GPUs a node but 1 ranks: give sbatch the same" in run.job.log()


def test_a_warned_job_saves_and_is_requeued(training, cluster, undisturbed):
    run = training()
    run.submit(TWO_NODES)
    run.under_way()
    cluster.run("scancel", "--batch", "--signal=USR1", run.job.number)
    check(restarted(run), undisturbed)
    assert "SIGUSR1: saved at step" in run.job.log()


@pytest.mark.parametrize("partition", ["normal", "grace"])
def test_a_job_is_preempted_by_a_higher_partition(training, cluster, undisturbed, partition):
    run = training()
    run.submit(TWO_NODES, "--nodelist=node[1-2]", f"--partition={partition}")
    run.under_way()
    wanted = ["--partition=urgent", "--nodelist=node1", "--cpus-per-task=4", "--output=urgent-%j.out"]
    urgent = cluster.submit(run.cwd, *wanted, "--wrap=hostname")
    assert urgent.completes()["NodeList"] == "node1"
    check(restarted(run), undisturbed)
    assert partition == "normal" or "SIGTERM: saved at step" in run.job.log()


def test_a_rank_is_killed(training, undisturbed):
    run = training()
    run.submit(TWO_NODES)
    run.under_way()
    os.kill(run.process(rank=1), signal.SIGKILL)
    check(restarted(run), undisturbed)
    assert "ended with status 137: requeued" in run.job.log()


def test_restarts_have_a_bound(training):
    run = training()
    run.submit(ONE_NODE, "--export=ALL,VDSR_MAX_RESTARTS=0")
    os.kill(run.process(rank=0), signal.SIGKILL)
    run.job.until("FAILED")
    assert "ended with status 137 after 0 restarts: not requeued" in run.job.log()


def test_a_cancelled_job_stays_cancelled_and_can_go_on(training, cluster, undisturbed):
    run = training()
    job = run.submit(TWO_NODES)
    run.under_way()
    cluster.run("scancel", job.number)
    job.until("CANCELLED")
    assert "requeued" not in job.log()
    assert not (run.run_dir / "weights.safetensors").exists()
    run.submit(TWO_NODES).completes()
    check(run, undisturbed)


def test_the_time_limit(meanwhile, alone):
    run = meanwhile["limit"].result()
    check(run, alone)
    assert "SIGUSR1: saved at step" in run.job.log()


def test_a_node_loses_power(meanwhile, undisturbed):
    check(meanwhile["power"].result(), undisturbed)
