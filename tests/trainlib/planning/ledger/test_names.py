"""What operations are called: from stacks of names and frames as JAX writes them."""

from __future__ import annotations

import pytest

from trainlib.planning.hlo.frames import Frame, Frames
from trainlib.planning.ledger import names


@pytest.mark.parametrize(
    ("op", "layer"),
    [
        ("jit(step)/transpose(jvp(stage1))/conv1/conv_general_dilated", "stage1/conv1"),
        ("jit(f)/while/body/closed_call/block/dot_general", "block"),
        ("jit(f)/jvp(block)/rematted_computation/mlp/mul", "block/mlp"),
        ("jit(f)/transpose(jvp(a))/checkpoint/transpose(jvp(b))/shard_map/c/mul", "a/b/c"),
        ("jit(f)/attention/bqd,bkd->bqk/dot_general", "attention"),
        ("jit(f)/jvp(jit(take_along_axis))/select_n", ""),
        ("jit(f)/cond/branch_1_fun/head/add", "head"),
        ("jit(f)/jit(_take)/gather", ""),
        ("jit(f)/vmap(jvp(outer/inner))/mul", "outer/inner"),
        ("jit(f)/jvp(conv2_x/0)/jit(relu)/max", "conv2_x/0"),
        ("jit(f)/transpose(jvp(conv2_x/0))/conv1/add_any", "conv2_x/0/conv1"),
        (
            "jit(f)/transpose(jvp(encoder))/sparse/jvp(encoder)/sparse/checkpoint/"
            "rematted_computation/experts/shard_map/route/mul",
            "encoder/sparse/experts/route",
        ),
        ("jit(f)/transpose(jvp(encoder))/while/body/closed_call/checkpoint/ffn/mul", "encoder/ffn"),
        ("jit(f)/norm/make.<locals>.forward/mul", "norm"),
        ("jit(f)/block/block/mul", "block/block"),
        ("x", ""),
    ],
)
def test_layers_are_named_scopes(op, layer):
    assert names.layer(op, []) == layer


def test_without_scopes_a_layer_is_the_classes_that_call_each_other():
    frames = [
        Frame("/code/net.py", 5, "matmul"),
        Frame("/code/net.py", 9, "Dense.__call__"),
        Frame("/code/net.py", 20, "Net.features"),
        Frame("/code/net.py", 30, "Net.__call__"),
        Frame("/lib/site-packages/optax/base.py", 3, "Chain.update"),
    ]
    assert names.layer("jit(f)/jvp()/dot_general", frames) == "Net/Dense"
    called_back = [
        Frame("/code/net.py", 9, "Dense.__call__"),
        Frame("/code/net.py", 40, "Net._block.<locals>.body"),
        Frame("/code/net.py", 7, "Stack.fold"),
        Frame("/code/net.py", 30, "Net.__call__"),
    ]
    assert names.layer("jit(f)/jvp()/dot_general", called_back) == "Net/Dense"


def test_a_weight_names_its_layer():
    assert names.layer_of_argument("state.params['conv2_x.0.conv1.kernel']") == "conv2_x/0/conv1"
    assert names.layer_of_argument("batch['image']") == names.layer_of_argument("x") == ""


def test_phases():
    assert names.phase("jit(f)/jvp(a)/mul") == "forward"
    assert names.phase("jit(f)/transpose(jvp(a))/mul") == "backward"
    assert names.phase("jit(f)/transpose(jvp())/rematted_computation/mul") == "recomputed"
    assert names.phase("jit(f)/mul") == ""


HEAD = """FileNames
1 "/users/me/net.py"
2 "/lib/python3/site-packages/optax/_src/update.py"

FunctionNames
1 "<module>"
2 "Net.__call__"
3 "apply_updates"

FileLocations
1 {file_name_id=1 function_name_id=1 line=17 end_line=17 column=4 end_column=72}
2 {file_name_id=1 function_name_id=2 line=15 end_line=15 column=11 end_column=57}
3 {file_name_id=2 function_name_id=3 line=43 end_line=43 column=4 end_column=7}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
"""


def test_frames_are_read_from_the_head_of_a_program():
    frames = Frames(HEAD.splitlines())
    assert [(f.line, f.function) for f in frames.stack(3)] == [
        (43, "apply_updates"),
        (15, "Net.__call__"),
        (17, "<module>"),
    ]
    assert frames.stack(0) == frames.stack(9) == []


def test_the_source_is_the_innermost_line_of_the_users_code():
    frames = Frames(HEAD.splitlines())
    assert names.source(frames.stack(3)) == "/users/me/net.py:15"
    assert names.source(frames.stack(2)) == "/users/me/net.py:15"
    # Nothing but a library: its own line is better than that of the script.
    assert names.source([frames.stack(3)[0], frames.stack(3)[2]]) == "optax/_src/update.py:43"
    assert names.source([]) == ""


def test_the_source_is_never_the_command_that_compiles():
    """What plumbing alone calls, an optimiser's update, is of its own line there as well."""
    frames = [
        Frame("/lib/site-packages/optax/tree.py", 5, "update"),
        Frame("/project/trainlib/step/step.py", 80, "train_step"),
        Frame("/project/launch/planning/plans.py", 66, "compiled"),
        Frame("/project/launch/compile.py", 54, "main"),
        Frame("/project/launch/cli.py", 194, "run.<locals>.<lambda>"),
        Frame("/project/trainlib/errors.py", 60, "run_command"),
        Frame("/project/launch/cli.py", 194, "run"),
        Frame("/project/launch/compile.py", 171, "<module>"),
        Frame("<frozen runpy>", 88, "_run_code"),
    ]
    assert names.source(frames) == "optax/tree.py:5"
    mine = Frame("/users/me/launch/net.py", 7, "block")
    assert names.source([frames[0], mine, *frames[2:]]).endswith("launch/net.py:7")
