#!/usr/bin/env bash
# Train on a Slurm cluster, on as many nodes and GPUs as sbatch is asked for:
#
#   sbatch slurm/train.sh +experiment=paper
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 slurm/train.sh +experiment=paper budget=paper
#   sbatch --gpus-per-node=0 --cpus-per-task=16 --time=1-0 slurm/train.sh model.depth=12
#
# What follows the script's name goes to src/train.py. Works from any directory; data/ and runs/ are those of the directory
# that sbatch is called in, and so is the log, vdsr-<job>.out. Options of sbatch replace those at the end.
#
# Two minutes before the time limit the ranks save, and the job is requeued and goes on. So does one that was preempted,
# lost a node or a rank. One that failed by itself or was cancelled stays so; the same command goes on from its checkpoint.
#
#   VDSR_MODULES       modules to load, such as "cuda/12.4 python/3.11"
#   VDSR_VENV          virtual environment; .venv of the repository if not set
#   VDSR_MAX_RESTARTS  20
#   SLURM_TMPDIR       node-local disk, if the site has not set it: the sets that the run reads are copied there
#
#SBATCH --job-name=vdsr
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# sbatch runs a copy of this file, in a folder of Slurm's; the job knows where it was
[[ -f $here/common.sh ]] || here=$(scontrol show job -o "$SLURM_JOB_ID" | sed -n '1s|.* Command=\(.*\)/train\.sh.*|\1|p')
# shellcheck source=slurm/common.sh
source "$here/common.sh"

[[ ${SLURM_JOB_ID:-} ]] || die "this is a job: sbatch $0 …; $0 --help says more"
train "$@"
