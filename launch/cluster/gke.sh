#!/usr/bin/env bash
# Trains on Google Kubernetes Engine as a JobSet, on TPU slices or GPU nodes. Fill in what follows,
# then
#   bash gke.sh --dry_run         prints every command and the manifest, and runs none
#   bash gke.sh STEP...           image doctor train follow stop delete, or xpk in place of train
# Needs docker, and kubectl with the JobSet controller in the cluster. The node pools are yours.
set -euo pipefail

IMAGE="us-docker.pkg.dev/your-project/your-repository/vitattn-moe:latest"
NAME="st-moe"
ACCELERATOR="tpu"                     # or gpu
SLICES=1                              # TPU slices; for GPUs 1
HOSTS=128                             # pods of one slice, or GPU nodes
CHIPS=4                               # TPU chips or GPUs of one pod
TPU_KIND="tpu-v4-podslice"            # tpu-v5p-slice, tpu-v5-lite-podslice, tpu-v6e-slice
TOPOLOGY="8x8x8"                      # of one slice
GPU_KIND="nvidia-h200-141gb"
CLAIM="training-share"                # a ReadWriteMany volume claim (Filestore)
CONFIG="configs/st_moe_32b.py"
WORKDIR="/mnt/share/runs/st_moe_32b"  # below the volume: all hosts must see one directory
EXTRA=""                              # more arguments: --config.KEY=VALUE
RESTARTS=50                           # how often all pods start again
AGAIN="75, 76, 137, 143"              # stopped and saved, lost process, killed (9 and 15)
CLUSTER="your-cluster"                # xpk alone needs it, and the next one
XPK_TYPE="v4-1024"

STEPS=(image doctor train follow stop delete)
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

apply() {  # reads a manifest
  if [[ -n $DRY ]]; then echo "kubectl apply -f - <<EOF"; cat; echo EOF; else kubectl apply -f -; fi
}

image() {
  local extra=tpu
  if [[ $ACCELERATOR == gpu ]]; then extra=cuda; fi
  local recipe="FROM python:3.12-slim
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir -c constraints.txt -e '.[$extra,plots]'"
  if [[ -n $DRY ]]; then
    printf 'docker build -t %q -f - . <<EOF\n%s\nEOF\n' "$IMAGE" "$recipe"
  else
    docker build -t "$IMAGE" -f - . <<<"$recipe"
  fi
  run docker push "$IMAGE"
}

places() {
  if [[ $ACCELERATOR == tpu ]]; then
    echo "              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $TPU_KIND
                cloud.google.com/gke-tpu-topology: $TOPOLOGY"
  else
    echo "              nodeSelector:
                cloud.google.com/gke-accelerator: $GPU_KIND"
  fi
}

variables() {  # by which processes on GPUs find each other; on TPUs they need none
  if [[ $ACCELERATOR == gpu ]]; then
    echo "
                env:
                - {name: JAX_COORDINATOR_ADDRESS, value: \"$1-workers-0-0.$1:8476\"}
                - {name: JAX_NUM_PROCESSES, value: \"$HOSTS\"}"
  fi
}

jobset() {  # name, restarts, command
  local resource="google.com/tpu"
  if [[ $ACCELERATOR == gpu ]]; then resource="nvidia.com/gpu"; fi
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $1
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $2
    rules:  # what starting again cannot repair
    - {action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}
  replicatedJobs:
  - name: workers
    replicas: $SLICES
    template:
      spec:
        parallelism: $HOSTS
        completions: $HOSTS
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {operator: NotIn, values: [$AGAIN]}
        template:
          spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120  # to save after a notice
$(places)
              containers:
              - name: train
                image: $IMAGE$(variables "$1")
                command: [bash, -c, "exec $3"]
                resources: {limits: {$resource: $CHIPS}}
                volumeMounts:
                - {name: share, mountPath: /mnt/share}
                - {name: shm, mountPath: /dev/shm}
              volumes:
              - {name: share, persistentVolumeClaim: {claimName: $CLAIM}}
              - {name: shm, emptyDir: {medium: Memory}}
EOF
}

arguments() { echo "--config=$CONFIG --workdir=$WORKDIR $EXTRA"; }

doctor() { jobset "$NAME-doctor" 0 "python -m launch.doctor $(arguments)" | apply; }

train() { jobset "$NAME" "$RESTARTS" "python -m launch.train $(arguments)" | apply; }

xpk() {
  run xpk workload create "--workload=$NAME" "--cluster=$CLUSTER" "--tpu-type=$XPK_TYPE" \
    "--num-slices=$SLICES" "--docker-image=$IMAGE" "--max-restarts=$RESTARTS" \
    "--restart-on-exit-codes=${AGAIN// /}" \
    "--command=python -m launch.train $(arguments)"
}

follow() { run kubectl logs -f "job/$NAME-workers-0" -c train --tail=50; }

stop() {  # pods get SIGTERM, save at one step and exit with 75; `train` goes on from there
  run kubectl delete jobset "$NAME" --wait=true
}

delete() { run kubectl delete jobset "$NAME" "$NAME-doctor" --ignore-not-found; }

chosen=()
for word in "$@"; do
  if [[ $word == --dry_run ]]; then DRY=1; else chosen+=("$word"); fi
done
if ((${#chosen[@]} == 0)); then
  if [[ -z $DRY ]]; then sed -n '2,6p' "$0"; exit 64; fi
  chosen=("${STEPS[@]}" xpk)
fi
for step in "${chosen[@]}"; do
  case $step in
    image | doctor | train | xpk | follow | stop | delete) "$step" ;;
    *) echo "error: there is no step '$step'. Steps: ${STEPS[*]} xpk." >&2; exit 64 ;;
  esac
done
