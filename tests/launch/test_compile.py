"""Plans for pods, compiled by the TPU compiler on this machine: bytes and collectives of a small
model by hand, verdicts, mistakes.
"""

from __future__ import annotations

import json
import re

import jax
import pytest

from launch import compile as command
from launch.planning import plans
from tests.tpu_compiler import needs_libtpu
from trainlib.errors import run_command

# One decoder block with 4 experts on 2 rows x 2 columns; gathers over rows and columns, the
# exchange with the experts and the split table all happen.
SMALL = (
    "--config=configs/st_moe_tiny.py",
    "--target=v5e:2x2",
    "--config.mesh.data=2",
    "--config.mesh.model=2",
    "--config.model.kind=decoder",
    "--config.data.objective=language_model",
    "--config.model.decoder_blocks=1",
    "--config.model.sparse_period=1",
    "--config.model.dtype=bfloat16",
    "--config.model.remat=full",
)
DIGITS = (
    "--config=configs/resnet50.py:digits",
    "--config.model.width=0.25",
    "--config.model.blocks=1,1,1,1",
)
V, D, F, HEADS, E = 512, 128, 256, 4, 4


def run(capsys, *arguments):
    """(exit code, report) of `launch.compile ... --json`."""
    code = run_command(lambda: command.main([*arguments, "--json"]))
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def small():
    """The report of SMALL as data and as text."""
    from configs.common import load
    from launch import cli
    from trainlib.planning.report import to_text

    made = cli.parser("test", "")
    made.add_argument("--config")
    args, overrides = cli.parse(made, [a for a in SMALL if not a.startswith("--target")])
    config = load.from_flags(args.config, overrides).config
    report = plans.compiled_report(*plans.planned(config, "v5e:2x2"))
    return report, to_text(report)


def dense_elements():
    """Elements of the matrices that FSDP splits: attention, feed-forward layer, output matrix."""
    return 4 * D * D + 3 * D * F + D * V


@pytest.mark.slow
@needs_libtpu
def test_bytes_of_a_device_by_hand(small):
    report, _ = small
    experts = E * 3 * D * F
    halves = V * D + 32 * HEADS  # input table and relative bias, over columns
    whole = D * E + 4 * D  # router, norms
    assert report["params"]["total"] == dense_elements() + experts + halves + whole
    assert report["params"]["active"] == report["params"]["total"] - experts // 2
    elements = (dense_elements() + experts) // 4 + halves // 2 + whole
    sizes = report["bytes_per_device"]
    assert sizes["params"] == 4 * elements
    rows, length = 32 // 4, 48
    assert sizes["batch"] == 4 * rows * length * 4  # inputs, segments, targets, weights
    least = sizes["params"] + sizes["optimizer"] + sizes["batch"]
    assert least <= sizes["arguments"] <= 1.3 * least  # small arrays are padded to tiles
    assert sizes["total"] == max(sizes["arguments"] + sizes["temporaries"], sizes["peak"])
    assert sizes["margin"] == 16 * 2**30 - sizes["total"]


@pytest.mark.slow
@needs_libtpu
def test_collectives_of_the_sparse_step(small):
    """The exchange over rows alone, twice each forward, recomputed and backward; experts stay."""
    report, _ = small
    found = {(one["kind"], *one["axes"]): one for one in report["collectives"]}
    assert found["all-to-all", "data"]["times"] == 6
    gathered = found["all-gather", "data"]["bytes"]
    assert gathered <= 2 * 2 * dense_elements() / 2  # forward and recomputed, bf16, 2 columns
    assert not any(axes[1:] == ("data", "model") for axes in found if axes[0] == "all-gather")
    # No activation is summed whole over columns: the largest would be [16, 48, 128] in bf16.
    reduced = found["all-reduce", "model"]
    assert reduced["bytes"] < 16 * 48 * 128 * 2 * reduced["times"] / 2
    assert report["rematerialization_warnings"] == []


@pytest.mark.slow
@needs_libtpu
def test_frozen_experts_in_int8_are_a_byte_a_number_and_have_no_gradient(capsys):
    """The same step with experts that do not learn: scales of gate and up lie over rows and
    columns, those of down, of D channels, over rows. Nothing of the experts' size is left over.
    """
    frozen = (*SMALL, "--config.finetune.train=non_moe")
    reports = [
        run(capsys, *frozen, f"--config.finetune.frozen_dtype={kind}")
        for kind in ("float32", "int8")
    ]
    assert [code for code, _ in reports] == [0, 0]
    floats, whole = (report["bytes_per_device"] for _, report in reports)
    experts = E * 3 * D * F // 4
    scales = 4 * (2 * E * F // 4 + E * D // 2)
    assert floats["params"] - whole["params"] == 3 * experts
    assert (floats["model_state"], whole["model_state"]) == (0, scales)
    assert floats["optimizer"] == whole["optimizer"]
    saved = floats["arguments"] - whole["arguments"]
    assert saved == pytest.approx(3 * experts - scales, rel=0.1)
    assert whole["temporaries"] <= floats["temporaries"]
    first, second = (report["flops"]["executed_per_step"] for _, report in reports)
    assert second == pytest.approx(first, rel=0.01)


@pytest.mark.thorough
@needs_libtpu
def test_arithmetic_time_and_throughput_follow_from_each_other(small):
    report, text = small
    flops, times = report["flops"], report["step_time"]
    bounds = times["bounds"]
    # Full recomputation is a fourth forward pass; the loss recomputes its logits too.
    assert 1.2 < flops["executed_per_step"] / flops["model_per_step"] < 4 / 3
    assert bounds["arithmetic_at_peak"] == pytest.approx(flops["executed_per_device"] / 197e12)
    assert times["predicted"]
    assert max(bounds.values()) < times["seconds"] <= 1.01 * times["sum"]
    assert sum(times["made_of"].values()) == pytest.approx(times["seconds"])
    assert sum(times["waits"].values()) == pytest.approx(times["seconds"] - times["core"])
    assert report["mfu"] == pytest.approx(flops["model_per_step"] / 4 / 197e12 / times["seconds"])
    assert report["examples_per_second"] == pytest.approx(32 / times["seconds"])
    assert report["tokens_per_second"] == pytest.approx(48 * 32 / times["seconds"])
    assert text.startswith("st_moe_tiny on v5e:2x2: fits")
    assert "all-to-all over data" in text
    assert all(sentence in text for sentence in times["assumptions"])
    assert f"expected by the compiler (libtpu {times['compiler']}), not measured" in text


@pytest.mark.thorough
@needs_libtpu
def test_a_comparison_has_a_line_for_each_value_by_time(small, monkeypatch, capsys, tmp_path):
    asked = []

    def report(plan, target, mfu):
        asked.append(plan.config.microbatches)
        missing = {"fits": False, "shortfall": {"missing": 2**31}}
        faster = {"step_time": {**small[0]["step_time"], "seconds": 1e-3 / asked[-1]}}
        return small[0] | faster if plan.config.microbatches < 4 else missing

    monkeypatch.setattr(plans, "compiled_report", report)
    arguments = [*SMALL, "--compare=microbatches", f"--cache={tmp_path}"]
    assert command.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["microbatches", "2", "1", "4"]
    assert lines[2].split()[1:3] == ["500", "us"]
    assert lines[4].endswith("does not fit: 2.00 GiB too much")
    assert command.main([*arguments, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["2", "1", "4"]
    assert asked == [1, 2, 4]  # what was kept is not compiled again
    # The flags of the compiler are part of the question.
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_some_flag=true")
    assert command.main([*arguments[:-2], "--compare=microbatches=4", arguments[-1]]) == 70
    assert asked == [1, 2, 4, 4]


@pytest.mark.thorough
@needs_libtpu
def test_a_key_that_lists_its_values_needs_none(small, monkeypatch, capsys, tmp_path):
    """Those that do not go with the rest of the configuration are named and left out."""
    monkeypatch.setattr(plans, "compiled_report", lambda plan, target, mfu: small[0])
    arguments = [*SMALL, "--compare=model.kind", f"--cache={tmp_path}"]
    assert command.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("decoder ")
    left_out = [line.split()[0] for line in lines if "left out: " in line]
    assert "encoder_decoder" in left_out


@pytest.mark.thorough
@needs_libtpu
def test_what_does_not_fit_is_a_verdict(capsys):
    """Activations fill the memory, so what is missing grows with the batch as arithmetic says."""
    required = []
    for size in (4_000_000, 8_000_000):
        arguments = (*DIGITS, f"--config.batch_size={size}", "--target=v5e-4")
        code, report = run(capsys, *arguments)
        short = report["shortfall"]
        assert (code, report["fits"]) == (70, False)
        assert short["available"] == pytest.approx(15.75 * 2**30)
        assert short["missing"] == short["required"] - short["available"]
        assert any(f"batch_size={size // 2}" in line for line in report["try"])
        largest = report["largest_arrays_whole"][0]["bytes"]
        assert largest == size * 8 * 8 * 64 * 4  # stem: 8 x 8 pixels, 64 channels
        assert short["required"] > largest / 4
        required.append(short["required"])
    assert required[1] == pytest.approx(2 * required[0], rel=0.1)  # layouts differ a little


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--config is missing"),
        ([DIGITS[0], "--config.target="], "--target is missing"),
        ([DIGITS[0], "--target=v5p-1025"], "Did you mean 'v5p-1024'"),
        ([DIGITS[0], "--target=v5e-4", "--mfu=0"], "--mfu=0.0"),
        ([DIGITS[0], "--target=v5e-4", "--search=batches"], "Did you mean 'batch'"),
        ([DIGITS[0], "--target=v5e-4", "--serch"], "Did you mean '--search'"),
        ([DIGITS[0], "--target=v5e-4", "--compare=seed=0,"], "names no values"),
        ([DIGITS[0], "--target=v5e-4", "--compare=remat="], "names no values. Write"),
        ([DIGITS[0], "--target=v5e-4", "--compare=microbatch"], "Did you mean 'microbatches'"),
        ([DIGITS[0], "--target=v5e-4", "--compare=batch_size"], "takes a whole number from 1"),
        ([DIGITS[0], "--target=v5e-4", "--by=op"], "pass --profile"),
        ([DIGITS[0], "--target=v5e-4", "--profile", "--top=0"], "no number of rows"),
        ([DIGITS[0], "--target=v5e-4", "--shapes=f32[]"], "pass it as well"),
        ([DIGITS[0], "--profile", "--compare=remat"], "conflicts with"),
        ([DIGITS[0], "--compare=remat", "--search"], "conflicts with"),
        ([DIGITS[0], "--target=v5e-4", "--search=remat"], "Search for: slice, batch."),
    ],
)
def test_mistakes(arguments, said, capsys):
    assert run_command(lambda: command.main(arguments)) == 64
    assert said in " ".join(capsys.readouterr().err.split())


@needs_libtpu
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([DIGITS[0], "--target=v5e-4", "--config.mesh.data=3"], "needs 3 devices, and 4"),
        ([DIGITS[0], "--target=2xv5e-4", "--config.mesh.replica=3"], "has 8 devices"),
        ([DIGITS[0], "--target=v5e-16", "--config.batch_size=24"], "16 devices"),
        (
            [
                *SMALL,
                "--config.mesh.data=4",
                "--config.mesh.model=1",
                "--config.routing.num_experts=2",
            ],
            "4 rows",
        ),
        ([DIGITS[0], "--target=v5e:3x5x7"], "v5e:4x4"),
        ([DIGITS[0], "--target=v5e-4", "--mfu=0.4"], "leave --mfu out"),
        ([*SMALL, "--compare=remat=full,fulll"], "Did you mean 'full'"),
    ],
)
def test_meshes_that_do_not_fit_the_target(arguments, said, capsys):
    assert run_command(lambda: command.main(arguments)) == 64
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@needs_libtpu
def test_the_program_is_the_one_that_the_target_would_trace(monkeypatch):
    """On a machine of the target every default says "tpu"; nothing may depend on which it says."""
    from configs.common import load
    from trainlib.step import step
    from vitattn.classification import objective
    from vitattn.plan import abstract_batch

    arguments = {"batch_size": "16", "model.width": "0.25", "model.blocks": "1,1,1,1"}
    config = load.from_flags("configs/sasa_resnet26.py:digits", arguments).config

    def program() -> str:
        plan, _ = plans.planned(config, "v5e:1x1")
        train_step = step.compile_train(objective.make_loss(plan), plan)
        traced = train_step.trace(plan.abstract_state(), abstract_batch(plan))
        return re.sub(r"0x[0-9a-f]+|TpuDevice.*", "", str(traced.jaxpr))

    here = program()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert here == program()


@pytest.mark.slow
def test_fitting_is_monotone_in_everything_that_is_searched(capsys, tmp_path):
    """More chips, fewer examples and more recomputation never need more on a device."""

    def total(*arguments):
        report = run(capsys, *arguments)[1]
        size = report["bytes_per_device"].get("total")
        return size or report["shortfall"]["required"]

    slices = [total(*DIGITS, "--config.batch_size=32768", f"--target=v5e-{n}") for n in (4, 8, 16)]
    assert slices == sorted(slices, reverse=True)
    batches = [
        total(*DIGITS, f"--config.batch_size={2**n}", "--target=v5e-4") for n in (14, 16, 18)
    ]
    assert batches == sorted(batches)
    wide = [*SMALL, "--config.batch_size=2048", f"--cache={tmp_path}"]
    wide += ["--config.model.decoder_blocks=2", "--config.model.sparse_period=2"]
    found = run(capsys, *wide, "--compare=remat=none,minimal,full")[1].values()
    order = [report["bytes_per_device"]["total"] for report in found]
    assert order == sorted(order, reverse=True)
    work = [report["flops"]["executed_per_step"] for report in found]
    assert work[0] < work[1] < work[2]


@needs_libtpu
@pytest.mark.slow
def test_search_finds_the_largest_batch_and_remembers(capsys, tmp_path):
    arguments = [*DIGITS, "--target=v5e-4", "--search=batch", f"--cache={tmp_path}"]
    code, found = run(capsys, *arguments, "--config.batch_size=200000")
    assert code == 0
    best = found["batch"]["batch_size"]
    assert 100_000 < best < 1_000_000
    asked = len(list(tmp_path.iterdir()))
    code, again = run(capsys, *arguments, "--config.batch_size=200000")
    assert again == found
    assert len(list(tmp_path.iterdir())) == asked
    assert run(capsys, *DIGITS, "--target=v5e-4", f"--config.batch_size={best * 5 // 4}")[0] == 70
