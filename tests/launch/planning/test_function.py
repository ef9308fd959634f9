"""Functions of one's own, compiled for a chip that is not here: text, page, JSON, mistakes."""

from __future__ import annotations

import json

import pytest

from launch import compile as command
from tests.tpu_compiler import needs_libtpu
from trainlib.errors import run_command
from trainlib.planning.profile.page import FILE, MARK

CODE = """
import jax, jax.numpy as jnp

@jax.jit
def product(a, b):
    with jax.named_scope("tower/product"):
        return a @ b

def wrong(a):
    return a @ jnp.ones(3)

def leaving(a):
    raise SystemExit(0)

def talking(a):
    print("\\x1b[31mhere")
    return a + 1

LIMIT = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.thorough
@needs_libtpu
def test_a_function_is_profiled(module, capsys):
    arguments = ["--function=of_mine:product", "--shapes=bf16[1024,2048],bf16[2048,512]"]
    assert command.main([*arguments, "--out=pages"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("of_mine:product on v5e-1: ")
    assert "tower/product" in text
    page = module / "pages" / FILE
    assert text.endswith(f"The page: pages/{FILE}\n")
    assert page.read_text().startswith(MARK)

    # Over a page of ours it writes again, over one of others it does not.
    assert command.main([*arguments, "--out=pages", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["profile"]
    assert found["ledger"]["flops"] == 2 * 1024 * 2048 * 512
    assert found["seconds"] == pytest.approx(sum(found["made_of"].values()))
    page.write_text("somebody else's")
    assert run_command(lambda: command.main([*arguments, "--out=pages"])) == 64
    assert "no page that this command wrote" in " ".join(capsys.readouterr().err.split())
    assert page.read_text() == "somebody else's"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--function=of_mine:prodct"], "Did you mean 'product'"),
        (["--function=of_mine:LIMIT"], "must be a function, and it is 3"),
        (["--function=nowhere:x"], "there is no module 'nowhere'"),
        (["--function=of_mine"], "is not MODULE:NAME"),
        (["--function=of_mine:product", "--shapes=bf17[8]"], "Did you mean 'bf16'"),
        (["--function=of_mine:wrong", "--shapes=f32[4,4]"], "cannot be traced"),
        (["--function=of_mine:leaving", "--shapes=f32[4,4]"], "cannot be traced"),
        (["--function=of_mine:product", "--shapes=f32[4,4]"], "missing 1 required"),
        (["--function=of_mine:product", "--target=gpu:h200x8"], "Give a TPU target"),
        (["--function=of_mine:product", "--config=aa_resnet50"], "leave --config out"),
        (["--function=of_mine:product", "--mfu=0.3"], "leave --mfu out"),
        (["--function=of_mine:product", "--out=of_mine.py"], "is a file"),
        (["--function=of_mine:product", "--search"], "conflicts with"),
    ],
)
def test_mistakes(module, arguments, said, capsys):
    assert run_command(lambda: command.main(arguments)) == 64
    assert said in " ".join(capsys.readouterr().err.split())


@needs_libtpu
def test_what_a_function_prints_stays_out_of_the_report(module, capsys):
    assert command.main(["--function=of_mine:talking", "--shapes=f32[8,128]", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["function"] == "of_mine:talking"
    assert printed.err == "\\x1b[31mhere\n"


@needs_libtpu
def test_sizes_past_64_bits_are_refused_in_words(module, capsys):
    huge = "--shapes=f32[2147483647,2147483647]"
    assert run_command(lambda: command.main(["--function=of_mine:talking", huge])) == 64
    said = " ".join(capsys.readouterr().err.split())
    assert "the compiler for v5e-1 refuses it" in said
    assert "overflow" in said
