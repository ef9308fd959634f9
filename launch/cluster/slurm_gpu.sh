#!/usr/bin/env bash
# Trains on GPU nodes under Slurm, one process a GPU. Fill in what follows, then, from the
# repository,
#   bash launch/cluster/slurm_gpu.sh --dry_run     prints every command and runs none
#   bash launch/cluster/slurm_gpu.sh [doctor]      submits the training, or a look at the nodes
# Two minutes before its time is over, or when Slurm preempts it, the job saves (exit 75) and is
# queued again; so it is when a process was lost or is stuck (76), at most RESTARTS times in all.
#SBATCH --job-name=st-moe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x.%j.log
set -euo pipefail
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: this is bash $BASH_VERSION, and the script needs 4.4." >&2
  exit 64
fi

PYTHON=".venv/bin/python"             # with the extra [cuda], seen by all nodes
CONFIG="configs/st_moe_l.py"
WORKDIR="/shared/runs/st_moe_l"       # all nodes must see one directory
EXTRA=""                              # more arguments: --config.KEY=VALUE
RESTARTS=50                           # how often one job is queued again
AGAIN="75 76 137 143"                 # stopped and saved, lost process, killed (9 and 15)

DRY=""
COMMAND=train
for word in "$@"; do
  case $word in
    --dry_run) DRY=1 ;;
    train | doctor) COMMAND=$word ;;
    *) echo "error: '$word' is neither train, doctor nor --dry_run." >&2; exit 64 ;;
  esac
done

# In a dry run, what would be typed: words that a shell would change are quoted.
run() {
  local word
  if [[ -z $DRY ]]; then "$@"; return; fi
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then word=${word@Q}; fi
    printf '%s ' "$word"
  done
  echo
}

if [[ -n $DRY || -z ${SLURM_JOB_ID:-} ]]; then
  run sbatch "$0" "$COMMAND"
  if [[ -z $DRY ]]; then exit 0; fi
fi

code=0
# srun does not take --cpus-per-task over from the job by itself, since Slurm 22.05.
# shellcheck disable=SC2086  # EXTRA is a list of words
run srun --label "--cpus-per-task=${SLURM_CPUS_PER_TASK:-12}" "$PYTHON" -m "launch.$COMMAND" \
  "--config=$CONFIG" "--workdir=$WORKDIR" $EXTRA || code=$?

# Bad data or configuration, a full disk and bugs would only fail again.
if [[ $COMMAND == train && (-n $DRY || " $AGAIN " == *" $code "*) ]]; then
  if ((${SLURM_RESTART_COUNT:-0} < RESTARTS)); then
    run scontrol requeue "${SLURM_JOB_ID:-JOB}"
  else
    echo "error: exit code $code, and this job was queued again $RESTARTS times already. Look at" \
      "its log; \`sbatch\` goes on from the last checkpoint." >&2
  fi
fi
exit "$code"
