#!/usr/bin/env bash
# Trains on Google Kubernetes Engine as a JobSet, on TPU slices or GPU nodes. Fill in what follows,
# then
#   bash gke.sh --dry_run         prints every command and the manifest, and runs none
#   bash gke.sh STEP...           image doctor train follow stop delete, or xpk in place of train
# Needs git, docker, and kubectl with the JobSet controller in the cluster. The node pools are yours:
# made with --enable-gvnic, and for GPUDirect (NETWORK) with one RDMA network for each GPU.
set -euo pipefail
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: this is bash $BASH_VERSION, and the script needs 4.4 (on a Mac: brew install bash)." >&2
  exit 64
fi

SOURCE="."                            # this repository; what is committed goes into the image
IMAGE="us-docker.pkg.dev/your-project/your-repository/vitattn-moe:latest"
NAME="st-moe"
ACCELERATOR="tpu"                     # or gpu
SLICES=1                              # TPU slices; for GPUs 1
HOSTS=128                             # pods of one slice, or GPU nodes
CHIPS=4                               # TPU chips of one pod; GPUs: 8
TPU_KIND="tpu-v4-podslice"            # tpu-v5p-slice, tpu-v5-lite-podslice, tpu-v6e-slice
TOPOLOGY="8x8x8"                      # of one slice
GPU_KIND="nvidia-h200-141gb"          # or nvidia-b200
NETWORK="rdma"                        # GPUs: rdma (GPUDirect, all 8 GPUs of a node), or plain
NODE_FOLDER=""                        # rdma: where Google's installers put nvidia and gib on a node
CLAIM="training-share"                # a ReadWriteMany volume claim (Filestore)
CONFIG="configs/st_moe_32b.py"
WORKDIR="/mnt/share/runs/st_moe_32b"  # below the volume: all hosts must see one directory
EXTRA=""                              # more arguments: --config.KEY=VALUE
RESTARTS=50                           # how often all pods start again
AGAIN="75, 76, 137, 143"              # stopped and saved, lost process, killed (9 and 15)
CLUSTER="your-cluster"                # xpk alone needs it, and the next two
XPK_TYPE="v4-1024"                    # GPUs: h200-141gb-8
XPK_STORAGE="training-share"          # what xpk calls the share, mounted at /mnt/share

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

apply() {  # name, restarts, command. A JobSet that has ended would stay so, and cannot be changed.
  shown=$1
  run kubectl delete jobset "$1" --ignore-not-found --cascade=foreground
  if [[ -n $DRY ]]; then
    echo "kubectl apply -f - <<EOF"; jobset "$@"; echo EOF
  else
    jobset "$@" | kubectl apply -f -
  fi
}

image() {
  local extra=tpu folder=/tmp/$NAME-image
  if [[ $ACCELERATOR == gpu ]]; then extra=cuda; fi
  local recipe="FROM python:3.12-slim
ADD source.tar /source
WORKDIR /source
RUN pip install --no-cache-dir -c constraints.txt -e '.[$extra,plots]'"
  run mkdir -p "$folder"
  run git -C "$SOURCE" archive "--output=$folder/source.tar" HEAD
  if [[ -n $DRY ]]; then
    printf 'docker build -t %q -f - %q <<EOF\n%s\nEOF\n' "$IMAGE" "$folder" "$recipe"
  else
    docker build -t "$IMAGE" -f - "$folder" <<<"$recipe"
  fi
  run docker push "$IMAGE"
}

rdma() { [[ $ACCELERATOR == gpu && $NETWORK == rdma ]]; }

cards() {  # the network cards of a pod: its own, and one beside each GPU
  local gpu
  if ! rdma; then return; fi
  echo "
          metadata:
            annotations:
              networking.gke.io/default-interface: eth0
              networking.gke.io/interfaces: |
                ["
  for gpu in 0 1 2 3 4 5 6 7; do
    echo "                {\"interfaceName\": \"eth$((gpu + 2))\", \"network\": \"rdma-$gpu\"},"
  done
  echo "                {\"interfaceName\": \"eth0\", \"network\": \"default\"}]"
}

pools() {  # a slice is a node pool
  if [[ $ACCELERATOR == tpu ]]; then
    echo "
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool"
  fi
}

places() {
  if [[ $ACCELERATOR == tpu ]]; then
    echo "              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $TPU_KIND
                cloud.google.com/gke-tpu-topology: $TOPOLOGY"
    if ((SLICES > 1)); then  # traffic between slices past the pods' own network
      echo "              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet"
    fi
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
  if rdma; then echo "                - {name: LD_LIBRARY_PATH, value: /usr/local/nvidia/lib64}"; fi
}

folders() {  # what the pods see besides their image: mounts or volumes
  if ! rdma; then return; fi
  if [[ $1 == mounts ]]; then
    echo "
                - {name: nvidia, mountPath: /usr/local/nvidia}
                - {name: gib, mountPath: /usr/local/gib}"
  else
    echo "
              - {name: nvidia, hostPath: {path: $NODE_FOLDER/nvidia}}
              - {name: gib, hostPath: {path: $NODE_FOLDER/gib}}"
  fi
}

jobset() {  # name, restarts, command
  local resource="google.com/tpu" before=""
  if [[ $ACCELERATOR == gpu ]]; then resource="nvidia.com/gpu"; fi
  if rdma; then before="source /usr/local/gib/scripts/set_nccl_env.sh && "; fi
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $1$(pools)
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
        template:$(cards)
          spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120  # to save after a notice
$(places)
              containers:
              - name: train
                image: $IMAGE$(variables "$1")
                command: [bash, -c, "${before}exec $3"]
                resources: {limits: {$resource: $CHIPS}}
                volumeMounts:
                - {name: share, mountPath: /mnt/share}
                - {name: shm, mountPath: /dev/shm}$(folders mounts)
              volumes:
              - {name: share, persistentVolumeClaim: {claimName: $CLAIM}}
              - {name: shm, emptyDir: {medium: Memory}}$(folders volumes)
EOF
}

arguments() { echo "--config=$CONFIG --workdir=$WORKDIR $EXTRA"; }

doctor() { apply "$NAME-doctor" 0 "python -m launch.doctor $(arguments)"; }

train() { apply "$NAME" "$RESTARTS" "python -m launch.train $(arguments)"; }

xpk() {
  local type=("--tpu-type=$XPK_TYPE" "--num-slices=$SLICES")
  if [[ $ACCELERATOR == gpu ]]; then type=("--device-type=$XPK_TYPE" "--num-nodes=$HOSTS"); fi
  run xpk workload create "--workload=$NAME" "--cluster=$CLUSTER" "${type[@]}" \
    "--docker-image=$IMAGE" "--storage=$XPK_STORAGE" "--max-restarts=$RESTARTS" \
    "--restart-on-exit-codes=${AGAIN// /}" "--command=python -m launch.train $(arguments)"
}

follow() {  # the first process, of the doctor when that was started before; again after a restart
  local first="jobset.sigs.k8s.io/jobset-name=$shown,jobset.sigs.k8s.io/job-index=0"
  first+=",batch.kubernetes.io/job-completion-index=0"
  if [[ -z $DRY ]]; then
    until [[ -n $(kubectl get pods "--selector=$first" -o name) ]]; do sleep 5; done
  fi
  run kubectl logs -f "--selector=$first" -c train --tail=50 --pod-running-timeout=30m
}

stop() {  # pods get SIGTERM, save at one step and exit with 75; `train` goes on from there
  run kubectl delete jobset "$NAME" --cascade=foreground
}

delete() { run kubectl delete jobset "$NAME" "$NAME-doctor" --ignore-not-found; }

if rdma && ((CHIPS != 8)); then
  echo "error: CHIPS=$CHIPS, and GPUDirect needs all 8 GPUs of a node: set CHIPS=8 or NETWORK=plain." >&2
  exit 64
fi
if rdma && [[ -z $NODE_FOLDER ]]; then
  echo "error: NODE_FOLDER is empty. Set it to the folder of the nodes that holds nvidia and gib, which" \
    "Google's guide to GPUDirect-RDMA names, or set NETWORK=plain." >&2
  exit 64
fi
shown=$NAME
chosen=()
for word in "$@"; do
  if [[ $word == --dry_run ]]; then DRY=1; else chosen+=("$word"); fi
done
if ((${#chosen[@]} == 0)); then
  if [[ -z $DRY ]]; then sed -n '2,7p' "$0"; exit 64; fi
  chosen=("${STEPS[@]}" xpk)
fi
for step in "${chosen[@]}"; do
  case $step in
    image | doctor | train | xpk | follow | stop | delete) "$step" ;;
    *) echo "error: there is no step '$step'. Steps: ${STEPS[*]} xpk." >&2; exit 64 ;;
  esac
done
