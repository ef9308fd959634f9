"""Which process of a run this one is: from flags, variables of the environment, and a TPU slice."""

import argparse

import pytest

from launch.hosts import find
from launch.hosts.find import Process
from trainlib.errors import ConfigError


def flags(**given):
    parser = argparse.ArgumentParser()
    find.add_flags(parser)
    return parser.parse_args([f"--{name}={value}" for name, value in given.items()])


SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "1234567",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
}
OPENMPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
JOBSET = {
    "JAX_COORDINATOR_ADDRESS": "train-workers-0-0.train:8476",
    "JAX_NUM_PROCESSES": "8",
    "JOB_COMPLETION_INDEX": "5",
}


def test_a_process_finds_the_run_that_it_is_part_of():
    assert find.find(flags(), {}) is None
    explicit = flags(coordinator="10.0.0.1:8476", processes=4, process=2)
    assert find.find(explicit, SLURM) == Process("flags", "10.0.0.1:8476", 4, 2)
    # 20000 + 1234567 % 10000; eight tasks a node: each takes the device of its own number.
    assert find.find(flags(), SLURM) == Process("slurm", "gpu007:24567", 16, 9, (1,))
    one_a_node = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x16)"}
    process = find.find(flags(multihost="slurm"), one_a_node)
    assert process is not None
    assert process.local_devices is None
    # 1531576320 / 4096 = 373920; its last four digits.
    assert find.find(flags(), OPENMPI) == Process("openmpi", "10.96.0.1:23920", 4, 3, (1,))
    for uri, host in (
        ("tcp://10.96.0.1:34911", "10.96.0.1"),
        ("tcp6://[fe80::b,26::2]:4", "[fe80::b]"),
    ):
        there = OPENMPI | {"OMPI_MCA_orte_hnp_uri": f"1531576320.0;{uri}"}
        assert find.find(flags(), there) == Process("openmpi", f"{host}:23920", 4, 3, (1,))
    named = OPENMPI | {"JAX_COORDINATOR_ADDRESS": "node1:8000"}
    assert find.find(flags(), named) == Process("openmpi", "node1:8000", 4, 3, (1,))
    expected = Process("environment", "train-workers-0-0.train:8476", 8, 5)
    assert find.find(flags(), JOBSET) == expected
    assert find.find(flags(), JOBSET | {"JAX_PROCESS_ID": "6"}) == Process(
        "environment", expected.address, 8, 6
    )
    assert find.find(flags(multihost="off"), SLURM) is None
    # One task, or a shell inside an allocation: nobody else is there.
    assert find.find(flags(), SLURM | {"SLURM_NTASKS": "1"}) is None
    assert find.find(flags(), {k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"}) is None


def test_a_slice_is_read_as_jax_reads_it(monkeypatch):
    """GKE's variables; on a TPU VM the metadata server says the same."""
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(find, "has_tpu", lambda: True)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: ("", 404))
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,b,c,d")
    monkeypatch.setenv("TPU_WORKER_ID", "2")
    assert find.find(flags(), {}) == Process("tpu", "localhost:8482", 4, 2)
    assert find.find(flags(), {"JAX_PLATFORMS": "cpu"}) is None
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert find.find(flags(), {}) is None
    monkeypatch.setenv("TPU_WORKER_ID", "zero")
    with pytest.raises(ConfigError, match="not which hosts its slice has"):
        find.find(flags(), {})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("a-b[7,9-12]-ib", "a-b7-ib"),
        ("", ""),
    ],
)
def test_the_first_node_of_a_slurm_list(nodes, first):
    assert find.first_host(nodes) == first


@pytest.mark.parametrize(
    ("given", "env", "words"),
    [
        ({"processes": 2}, {}, "--coordinator, --process missing"),
        ({"coordinator": "here", "processes": 2, "process": 0}, {}, "is not HOST:PORT"),
        ({"coordinator": "a:99999", "processes": 2, "process": 0}, {}, "is not HOST:PORT"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, {}, "outside 0..1"),
        ({"multihost": "slurmm"}, {}, "Did you mean 'slurm'"),
        ({"multihost": "slurm"}, {}, "nothing of the kind is there"),
        ({"multihost": "off", "process": 1}, {}, "off conflicts with"),
        ({"heartbeat": 0}, {}, "--heartbeat=0 must be"),
        ({}, {"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS=HOST:PORT is not"),
        ({}, SLURM | {"SLURM_PROCID": "x"}, "SLURM_PROCID='x' is not a number"),
        ({}, OPENMPI | {"OMPI_MCA_orte_hnp_uri": ""}, "not where its first rank runs"),
    ],
)
def test_half_of_what_is_needed_is_an_error(given, env, words):
    with pytest.raises(ConfigError, match=words.replace("..", r"\.\.")):
        find.find(flags(**given), env)
