"""The recipes: shell syntax, what a dry run prints, and manifests that are YAML."""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.hosts import find
from trainlib.errors import PeerLost, Preempted

ROOT = Path(__file__).resolve().parents[2]
AGAIN = [Preempted.exit_code, PeerLost.exit_code, 128 + signal.SIGKILL, 128 + signal.SIGTERM]
FOLDER = ROOT / "launch" / "cluster"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.sh"))


def dry(name, *steps, tmp_path, **changed):
    """Output of a dry run with some placeholders changed; PATH holds nothing that costs money."""
    text = (FOLDER / name).read_text()
    for key, value in changed.items():
        text, count = re.subn(rf"^{key}=\S+", f"{key}={shlex.quote(value)}", text, flags=re.M)
        assert count == 1, key
    script = tmp_path / name
    script.write_text(text)
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for tool in ("cat", "seq", "head", "sed"):
        if not (tools / tool).exists():
            (tools / tool).symlink_to(shutil.which(tool))
    bash = shutil.which("bash")
    done = subprocess.run(
        [bash, str(script), *steps, "--dry_run"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_the_recipes_are_there():
    assert SCRIPTS == ["gke.sh", "slurm_gpu.sh", "tpu_vm.sh"]
    page = (FOLDER / "README.md").read_text()
    assert all(f"`{name}`" in page for name in SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_shell_understands_them(name):
    subprocess.run(["bash", "-n", str(FOLDER / name)], check=True, timeout=1200)


SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.defpath}")


@pytest.mark.skipif(not SHELLCHECK, reason="no shellcheck, whose package has no wheel here")
def test_shellcheck_finds_nothing():
    scripts = [str(FOLDER / name) for name in SCRIPTS]
    done = subprocess.run([SHELLCHECK, *scripts], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout


def test_tpu_vm_prints_every_step(tmp_path):
    lines = dry("tpu_vm.sh", tmp_path=tmp_path, WORKERS="3").splitlines()
    commands = [shlex.split(line) for line in lines]
    assert commands[0][:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert "--node-id=st-moe" in commands[0]
    assert commands[-1][:5] == ["gcloud", "compute", "tpus", "queued-resources", "delete"]
    # create, wait, git, scp, install, mount, doctor, train, follow, stop, mkdir, 3 x scp, delete.
    assert len(commands) == 15
    train = next(word for c in commands for word in c if "launch.train --config=c" in word)
    assert "--config=configs/st_moe_32b.py" in train
    assert "--workdir=/mnt/share/runs/st_moe_32b" in train


def test_tpu_vm_serves_several_slices(tmp_path):
    output = dry("tpu_vm.sh", "create", "train", tmp_path=tmp_path, SLICES="2", SPOT="--spot")
    create, first, second = output.splitlines()
    assert "--node-count=2 --node-prefix=st-moe" in create
    assert "--spot" in create
    assert " ssh st-moe-0 " in first
    assert " ssh st-moe-1 " in second


def shell(command, home, **extra):
    """What the machine's shell does with a command that arrives by ssh; returns when nothing of it
    holds the connection any more."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=home,
        env=os.environ | {"HOME": str(home)} | extra,
        capture_output=True,
        text=True,
        timeout=1200,
        start_new_session=True,
    )


def test_tpu_vm_starts_what_outlives_the_connection_and_stops_nothing_else(tmp_path):
    """The commands for the hosts, run here, with a training that waits for its signal."""
    lines = dry("tpu_vm.sh", "train", "stop", tmp_path=tmp_path).splitlines()
    train, stop = (shlex.split(line)[-1].removeprefix("--command=") for line in lines)
    source = tmp_path / "source"
    (source / ".venv" / "bin").mkdir(parents=True)
    (source / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (source / "launch").mkdir()
    (source / "launch" / "train.py").write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "signal.alarm(600)\n"
        "print(os.getpid(), os.getsid(0), *sys.argv[1:], flush=True)\n"
        "signal.pause()\n"
    )
    log, note = tmp_path / "train.log", tmp_path / "train.pid"

    def until(words):
        deadline = time.monotonic() + 1200
        while not log.exists() or words not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    done = shell(train, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    until("--config=configs/st_moe_32b.py --workdir=/mnt/share/runs/st_moe_32b\n")
    pid, session = map(int, log.read_text().split()[:2])
    assert pid == int(note.read_text())
    # Nobody of the connection's session is left whose end would take it along.
    assert session == os.getsid(pid) != os.getsid(0)
    other = subprocess.Popen(["sleep", "60"])
    note.write_text(f"{other.pid}\n")  # an old note, whose number is another program's by now
    assert "no training to stop" in shell(stop, tmp_path).stdout
    assert other.poll() is None
    other.kill()
    other.wait()
    note.write_text(f"{pid}\n")
    assert shell(stop, tmp_path).stdout == ""
    until("exit 75\n")
    assert "no training to stop" in shell(stop, tmp_path).stdout


@pytest.mark.parametrize("state", ["ACTIVE", "FAILED", "SUSPENDED", ""])
def test_tpu_vm_waits_until_it_is_decided(tmp_path, state):
    answers = tmp_path / "answers"
    answers.write_text(f"WAITING_FOR_RESOURCES\nPROVISIONING\n{state}\n")
    (tmp_path / "gcloud").write_text(
        '#!/bin/sh\ncase "$*" in *yaml*) echo "no capacity"; exit;; esac\n'
        f'word=$(head -n 1 {answers}); sed -i 1d {answers}; echo $word; test -n "$word"\n'
    )
    (tmp_path / "sleep").write_text("#!/bin/sh\n")
    for tool in ("gcloud", "sleep"):
        (tmp_path / tool).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = shell(f"bash {FOLDER / 'tpu_vm.sh'} wait", tmp_path, PATH=path)
    assert [line.split()[-1] for line in done.stdout.splitlines()] == [
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
    ]
    assert done.returncode == (0 if state == "ACTIVE" else 1)
    if state in ("FAILED", "SUSPENDED"):  # "": gcloud itself failed, and said why
        assert f"st-moe is {state}" in done.stderr
        assert "no capacity" in done.stderr


def manifest(tmp_path, **changed):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    output = dry("gke.sh", "train", tmp_path=tmp_path, HOSTS="16", **changed)
    return yaml.safe_load(output.split("<<EOF\n")[1].split("\nEOF")[0])


@pytest.mark.parametrize("kind", ["tpu", "rdma", "plain"])
def test_gke_writes_a_jobset(tmp_path, kind):
    changed = {} if kind == "tpu" else {"ACCELERATOR": "gpu", "CHIPS": "8", "NETWORK": kind}
    if kind == "rdma":
        changed["NODE_FOLDER"] = "/opt/bin"
    made = manifest(tmp_path, **changed)
    assert made["kind"] == "JobSet"
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (16, 16, 0)
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"] == {
        "operator": "NotIn",
        "values": AGAIN,
    }
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    command = container["command"][-1]
    assert "launch.train --config=configs/st_moe_32b.py" in command
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    own = {"share", "shm"} | ({"nvidia", "gib"} if kind == "rdma" else set())
    assert mounts == {volume["name"] for volume in pod["volumes"]} == own
    cards = job["template"].get("metadata", {}).get("annotations", {})
    assert ("source /usr/local/gib" in command) == bool(cards) == (kind == "rdma")
    if kind == "rdma":
        on_node = {v["name"]: v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v}
        assert on_node == {"nvidia": "/opt/bin/nvidia", "gib": "/opt/bin/gib"}
        # Google's names: eth0 for all else, eth2 to eth9 beside the eight GPUs.
        found = json.loads(cards["networking.gke.io/interfaces"])
        names = {one["interfaceName"]: one["network"] for one in found}
        assert names == {"eth0": "default"} | {f"eth{i + 2}": f"rdma-{i}" for i in range(8)}
    if kind == "tpu":
        assert container["resources"]["limits"] == {"google.com/tpu": 4}
        assert "env" not in container
        assert "hostNetwork" not in pod
    else:
        assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
        # What `launch.hosts.find` reads; Kubernetes itself sets JOB_COMPLETION_INDEX.
        env = {one["name"]: one["value"] for one in container["env"]}
        parser = argparse.ArgumentParser()
        find.add_flags(parser)
        process = find.find(parser.parse_args([]), env | {"JOB_COMPLETION_INDEX": "3"})
        address = "st-moe-workers-0-0.st-moe:8476"
        assert process == find.Process("environment", address, 16, 3)


def test_gke_slices_talk_past_the_network_of_pods(tmp_path):
    job = manifest(tmp_path, SLICES="2")["spec"]["replicatedJobs"][0]
    assert job["replicas"] == 2
    pod = job["template"]["spec"]["template"]["spec"]
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")


def test_gke_prints_every_step(tmp_path):
    output = dry("gke.sh", tmp_path=tmp_path)
    for words in ("docker build", "docker push", "launch.doctor", "launch.train"):
        assert words in output
    # Only what is committed: no .git, no runs, no .venv.
    assert "archive --output=/tmp/st-moe-image/source.tar HEAD" in output
    assert "-f - /tmp/st-moe-image <<EOF" in output
    xpk = next(line for line in output.splitlines() if line.startswith("xpk workload create"))
    for words in (
        "--workload=st-moe",
        "--storage=training-share",
        f"--restart-on-exit-codes={','.join(map(str, AGAIN))}",
    ):
        assert words in xpk


def test_gke_refuses_half_a_node_for_gpudirect(tmp_path):
    script = tmp_path / "gke.sh"
    text = (FOLDER / "gke.sh").read_text()
    script.write_text(text.replace('ACCELERATOR="tpu"', 'ACCELERATOR="gpu"'))
    done = subprocess.run(["bash", str(script), "--dry_run"], capture_output=True, text=True)
    assert done.returncode == 64
    assert "CHIPS=4, and GPUDirect needs all 8 GPUs" in done.stderr


def test_gke_asks_for_the_folder_of_the_nodes(tmp_path):
    script = tmp_path / "gke.sh"
    text = (FOLDER / "gke.sh").read_text().replace('ACCELERATOR="tpu"', 'ACCELERATOR="gpu"')
    script.write_text(text.replace("CHIPS=4 ", "CHIPS=8 "))
    done = subprocess.run(["bash", str(script), "--dry_run"], capture_output=True, text=True)
    assert done.returncode == 64
    assert "NODE_FOLDER is empty" in done.stderr
    assert "NETWORK=plain" in done.stderr


def test_gke_replaces_an_earlier_jobset_and_follows_its_first_process(tmp_path):
    for step, name in (("doctor", "st-moe-doctor"), ("train", "st-moe")):
        lines = dry("gke.sh", step, "follow", tmp_path=tmp_path).splitlines()
        assert lines[0].startswith(f"kubectl delete jobset {name} --ignore-not-found ")
        assert lines[1].startswith("kubectl apply ")
        assert f"jobset.sigs.k8s.io/jobset-name={name}," in lines[-1]
        assert "batch.kubernetes.io/job-completion-index=0" in lines[-1]


def test_slurm_prints_every_step(tmp_path):
    output = dry("slurm_gpu.sh", tmp_path=tmp_path).splitlines()
    assert [line.split()[0] for line in output] == ["sbatch", "srun", "scontrol"]
    assert "-m launch.train --config=configs/st_moe_l.py" in output[1]
    assert " --cpus-per-task=12 " in output[1]
    doctor = dry("slurm_gpu.sh", "doctor", tmp_path=tmp_path)
    assert "-m launch.doctor" in doctor
    assert "scontrol" not in doctor


def test_slurm_queues_again_what_can_go_on(tmp_path):
    """Inside an allocation, with tools that only say what they were asked."""
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "scontrol $*"\n')
    (tmp_path / "srun").write_text('#!/bin/sh\necho "srun $*"\nexit $CODE\n')
    for tool in ("scontrol", "srun"):
        (tmp_path / tool).chmod(0o755)

    def job(code, *arguments, **extra):
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "CODE": str(code)}
        env["SLURM_CPUS_PER_TASK"] = "9"
        done = subprocess.run(
            ["bash", str(FOLDER / "slurm_gpu.sh"), *arguments],
            env=env | extra,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == code
        assert done.stdout.startswith("srun --label --cpus-per-task=9 ")
        return "scontrol requeue 77" in done.stdout, done.stderr

    for code in (0, 1, 64, 65, 66, 70, 74, 134, *AGAIN):
        assert job(code) == (code in AGAIN, ""), code
    assert job(76, SLURM_RESTART_COUNT="49")[0]
    queued, words = job(76, SLURM_RESTART_COUNT="50")
    assert not queued
    assert "queued again 50 times already" in words
    assert not job(75, "doctor")[0]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_step_that_does_not_exist_is_refused(name):
    done = subprocess.run(
        ["bash", str(FOLDER / name), "--dry_run", "trian"], capture_output=True, text=True
    )
    assert done.returncode == 64
    assert "trian" in done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_old_bash_is_told(name, tmp_path):
    script = tmp_path / name
    text = (FOLDER / name).read_text().replace("BASH_VERSINFO", "AGE")
    script.write_text("AGE=(3 2)\n" + text)
    done = subprocess.run(["bash", str(script), "--dry_run"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (64, "")
    assert "needs 4.4" in done.stderr
