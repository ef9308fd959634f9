#!/usr/bin/env bash
# Trains on TPU VMs, one slice or several, through queued resources. Fill in what follows, then
#   bash tpu_vm.sh --dry_run      prints every command and runs none
#   bash tpu_vm.sh STEP...        create wait copy install mount doctor train follow stop collect
#                                 delete
# Needs gcloud, logged in. `create` is what costs money, `delete` ends it.
set -euo pipefail
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: this is bash $BASH_VERSION, and the script needs 4.4 (on a Mac: brew install bash)." >&2
  exit 64
fi

PROJECT="your-project"
ZONE="us-central2-b"
NAME="st-moe"                         # of the queued resource and, with a number, of each slice
TYPE="v4-1024"                        # cores for v4 and v5p, chips for v5e and v6e
RUNTIME="tpu-ubuntu2204-base"         # v5p: v2-alpha-tpuv5, v6e: v2-alpha-tpuv6e
SLICES=1
WORKERS=128                           # hosts of one slice: 4 chips each on v4 and v5p
SPOT=""                               # "--spot" for preemptible machines
SHARE="10.0.0.2:/share"               # a Filestore (NFS) share that all hosts mount
SOURCE="."                            # this repository
CONFIG="configs/st_moe_32b.py"
WORKDIR="/mnt/share/runs/st_moe_32b"  # below the mount: all hosts must see one directory
EXTRA=""                              # more arguments: --config.KEY=VALUE

STEPS=(create wait copy install mount doctor train follow stop collect delete)
GCLOUD=(gcloud compute tpus)
WHERE=("--project=$PROJECT" "--zone=$ZONE")
DRY=""

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

slices() {
  if ((SLICES == 1)); then echo "$NAME"; else seq -f "$NAME-%.0f" 0 $((SLICES - 1)); fi
}

everywhere() {  # runs one shell command on all hosts of all slices at once
  local slice pid pids=() failed=0
  for slice in $(slices); do
    local ssh=("${GCLOUD[@]}" tpu-vm ssh "$slice" "${WHERE[@]}" --worker=all "--command=$1")
    if [[ -n $DRY ]]; then run "${ssh[@]}"; else "${ssh[@]}" & pids+=($!); fi
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return $failed
}

create() {
  local nodes=("--node-id=$NAME")
  if ((SLICES > 1)); then nodes=("--node-count=$SLICES" "--node-prefix=$NAME"); fi
  # shellcheck disable=SC2086  # SPOT is one flag or nothing
  run "${GCLOUD[@]}" queued-resources create "$NAME" "${WHERE[@]}" "${nodes[@]}" \
    "--accelerator-type=$TYPE" "--runtime-version=$RUNTIME" $SPOT
}

wait_until_active() {
  local state describe=("${GCLOUD[@]}" queued-resources describe "$NAME" "${WHERE[@]}")
  if [[ -n $DRY ]]; then run "${describe[@]}" "--format=value(state.state)"; return; fi
  while true; do
    state=$("${describe[@]}" "--format=value(state.state)")
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        echo "error: the queued resource $NAME is $state and will not become active:" >&2
        "${describe[@]}" "--format=yaml(state)" >&2
        echo "\`delete create wait\` asks for it again." >&2
        exit 1
        ;;
    esac
    echo "$(date +%T) $state"
    sleep 60
  done
}

copy() {
  local slice archive=/tmp/$NAME.tar.gz
  run git -C "$SOURCE" archive --format=tar.gz "--output=$archive" HEAD
  for slice in $(slices); do
    run "${GCLOUD[@]}" tpu-vm scp "$archive" "$slice:source.tar.gz" "${WHERE[@]}" --worker=all
  done
}

install() {
  # The machines' own Python is older than 3.11; uv brings one.
  everywhere "rm -rf source && mkdir source && tar -xzf source.tar.gz -C source && cd source && \
curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv -q --python 3.12 .venv && \
~/.local/bin/uv pip install -q --python .venv/bin/python -c constraints.txt -e '.[tpu,plots]'"
}

mount_share() {
  everywhere "sudo apt-get -qq install -y nfs-common && sudo mkdir -p /mnt/share && \
(mountpoint -q /mnt/share || sudo mount $SHARE /mnt/share) && sudo chmod 777 /mnt/share"
}

doctor() {
  everywhere "cd source && .venv/bin/python -m launch.doctor --config=$CONFIG \
--workdir=$WORKDIR $EXTRA"
}

train() {  # the processes find each other and outlive this connection; their output stays there
  local script=".venv/bin/python -m launch.train --config=$CONFIG --workdir=$WORKDIR $EXTRA & "
  script+="echo \$! > ~/train.pid; wait \$!; echo exit \$?"
  everywhere "cd source && { setsid nohup bash -c ${script@Q} >> ~/train.log 2>&1 < /dev/null & } && \
sleep 1"
}

follow() {
  run "${GCLOUD[@]}" tpu-vm ssh "$(slices | head -n 1)" "${WHERE[@]}" --worker=0 \
    --command="tail -n 50 -F train.log"
}

stop() {  # saves at one step on all hosts and exits with 75; `train` goes on from there
  everywhere "pid=\$(cat ~/train.pid) && grep -qs 'launch[.]train' /proc/\$pid/cmdline && \
kill -TERM \$pid || echo 'no training to stop'"
}

collect() {
  local slice worker
  run mkdir -p "logs/$NAME"
  for slice in $(slices); do
    for ((worker = 0; worker < WORKERS; worker++)); do
      run "${GCLOUD[@]}" tpu-vm scp "$slice:train.log" "logs/$NAME/$slice.$worker.log" \
        "${WHERE[@]}" "--worker=$worker"
    done
  done
}

delete() {
  run "${GCLOUD[@]}" queued-resources delete "$NAME" "${WHERE[@]}" --force
}

chosen=()
for word in "$@"; do
  if [[ $word == --dry_run ]]; then DRY=1; else chosen+=("$word"); fi
done
if ((${#chosen[@]} == 0)); then
  if [[ -z $DRY ]]; then sed -n '2,6p' "$0"; exit 64; fi
  chosen=("${STEPS[@]}")
fi
for step in "${chosen[@]}"; do
  case $step in
    wait) wait_until_active ;;
    mount) mount_share ;;
    create | copy | install | doctor | train | follow | stop | collect | delete) "$step" ;;
    *) echo "error: there is no step '$step'. Steps: ${STEPS[*]}." >&2; exit 64 ;;
  esac
done
