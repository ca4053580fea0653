#!/usr/bin/env bash
# Send what offline nodes logged to W&B, from a machine that reaches it:
#
#   slurm/sync.sh [FOLDER…]      # runs/ if none is given
#
# Every offline run below the folders, one after the other, oldest first: what a preempted run left in pieces has one id
# and becomes one run. Runs already sent and runs still being written are left for later, and a piece that was killed in its
# first second holds nothing and is named. Exit status 1 if one could not be sent; call it again.
#
#   VDSR_VENV  virtual environment; .venv of the repository if not set

set -euo pipefail
shopt -s extglob
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/common.sh
source "$here/common.sh"

[[ $# -gt 0 ]] || set -- runs
for folder; do
    [[ -d $folder ]] || die "there is no folder $folder"
done
activate
export WANDB_X_GRAPHQL_RETRY_MAX=${WANDB_X_GRAPHQL_RETRY_MAX:-4} # half a minute, in place of a quarter of an hour
sent=0 failed=0 stuck=' '
while IFS= read -r run; do
    log=$(find "$run" -maxdepth 1 -name 'run-*.wandb')
    id=${run##*/offline-run-*([0-9_])-}
    if [[ -e $log.synced ]]; then
        continue
    elif [[ ! $log || $(stat -c %s "$log") -le 7 ]]; then # a header and nothing more
        say "empty, left out: $run"
    elif [[ $(find "$log" -mmin -2) ]]; then # a run flushes every second; W&B would take it for complete
        say "written to a moment ago, left for later: $run"
    elif [[ $stuck == *" $id "* ]]; then
        say "left for later, for what comes before it is not sent: $run"
        failed=$((failed + 1))
    elif python -m vdsr.upload "$run" && [[ -e $log.synced ]]; then
        sent=$((sent + 1))
    else
        say "not sent: $run"
        failed=$((failed + 1))
        stuck+="$id "
    fi
done < <(find "$@" -type d -name 'offline-run-*' -printf '%f\t%p\n' | sort | cut -f 2-)
say "$sent sent, $failed not"
((failed == 0))
