#!/usr/bin/env bash
# W&B agents as a job array: each task asks the sweep for one point, trains it and ends.
#
#   sbatch --array=1-20%4 slurm/agent.sh ENTITY/PROJECT/SWEEP
#
# The nodes need a way to W&B; the key is that of `wandb login` or WANDB_API_KEY. Before the time limit the point is saved
# and its run marked as preempting; the requeued task asks again, and W&B gives such runs out first.
# Variables and resources: as in train.sh. The log of each task is vdsr-agent-<job>_<task>.out.
#
#SBATCH --job-name=vdsr-agent
#SBATCH --array=1-4
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# sbatch runs a copy of this file, in a folder of Slurm's; the job knows where it was
[[ -f $here/common.sh ]] || here=$(scontrol show job -o "$SLURM_JOB_ID" | sed -n '1s|.* Command=\(.*\)/agent\.sh.*|\1|p')
# shellcheck source=slurm/common.sh
source "$here/common.sh"

[[ ${SLURM_JOB_ID:-} && $# == 1 ]] || die "give the sweep: sbatch $0 ENTITY/PROJECT/SWEEP; $0 --help says more"
environment
agent=
trap 'warned=yes; [[ ! $agent ]] || pkill -USR1 --parent "$agent"' USR1 # the training is the agent's child
wandb agent --count 1 "$1" &
agent=$!
await "$agent"
[[ ! ${warned:-} ]] || status=85 # the agent ends well whatever became of its run
requeue "$status"
exit "$status"
