#!/usr/bin/env bash
# A sweep as a job array, one point a task. Not through sbatch: it counts the points, then calls sbatch itself.
#
#   slurm/sweep.sh +experiment=depth_sweep
#   slurm/sweep.sh --time=1:00:00 --array=0-6%2 +experiment=scale_sweep data=train91 budget=paper
#   slurm/sweep.sh model.depth=5,10 seed=0,1,2
#
# Options for sbatch come first, overrides of src/train.py after them. Folders, names and table are those of the same sweep
# started without Slurm; whichever task ends last leaves the table whole. Time limit, preemption, variables and resources:
# as in train.sh. The log of each task is vdsr-sweep-<job>_<task>.out.
#
#SBATCH --job-name=vdsr-sweep
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
[[ -f $here/common.sh ]] || here=$(scontrol show job -o "$SLURM_JOB_ID" | sed -n '1s|.* Command=\(.*\)/sweep\.sh.*|\1|p')
# shellcheck source=slurm/common.sh
source "$here/common.sh"

if [[ ${SLURM_ARRAY_TASK_ID:-} ]]; then
    export VDSR_POINT=$SLURM_ARRAY_TASK_ID
    train -m "$@"
fi
[[ ! ${SLURM_JOB_ID:-} ]] || die "this calls sbatch itself: slurm/sweep.sh [sbatch's options] overrides"
options=()
while [[ ${1:-} == --* ]]; do
    options+=("$1")
    shift
done
activate
points=$(VDSR_POINT=list python "$root/src/train.py" -m "$@")
echo "$points"
exec sbatch --array="0-$(($(wc -l <<<"$points") - 1))" "${options[@]}" "$here/sweep.sh" "$@"
