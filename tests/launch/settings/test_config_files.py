"""Configuration files of others, in JSON and Python: what they may hold, and what is said of the
rest in a short paragraph with exit 64, before anything is made.
"""

import json
import os

import pytest

import configs
from configs.common import load
from launch import describe
from tests.launch.commands import ROOT, run
from trainlib import patterns
from trainlib.config import flatten, to_json
from trainlib.errors import ConfigError, run_command
from trainlib.step.optimizers import matching

DIGITS = ROOT / "configs" / "aa_resnet50.py"
PAIRS = {"family": "vitattn", "steps": 7, "optimizer.momentum": 0.5}


def loaded(tmp_path, content: str | bytes, name="x.json", **overrides):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load.from_flags(str(path), overrides).config


def refused(tmp_path, content, *words, name="x.json", **overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, content, name, **overrides)
    text = str(caught.value)
    assert len(text) < 1000
    assert text.isprintable()
    for word in words:
        assert word in text, text
    return text


# ------------------------------------------------------------------------------------- JSON
def test_flat_and_nested_json_are_the_same(tmp_path):
    nested = {"family": "vitattn", "steps": 7, "optimizer": {"momentum": 0.5}, "schedule": {}}
    both = [flatten(loaded(tmp_path, json.dumps(values))) for values in (PAIRS, nested)]
    assert both[0] == both[1]
    assert (both[0]["steps"], both[0]["optimizer.momentum"]) == (7, 0.5)
    marked = b"\xef\xbb\xbf" + json.dumps(PAIRS).encode()  # as Windows writes it
    assert flatten(loaded(tmp_path, marked)) == both[0]


@pytest.mark.parametrize("text", [f"{DIGITS}:small", f"{ROOT}/configs/st_moe_tiny.py"])
def test_what_a_run_writes_is_read_again(tmp_path, text):
    config = load.from_flags(text.replace("small", "digits"), {}).config
    assert flatten(loaded(tmp_path, to_json(config))) == flatten(config)


DOCUMENTS = [
    ('{"family": "vitattn", "steps": {}}', ["steps={}", "a whole number from 1"]),
    ('{"family": "vitattn", "steps": {"a": 1}}', ["'steps' is a key", "'steps.a'"]),
    ('{"family": "vitattn", "steps": null}', ["steps=None", "a whole number from 1"]),
    ('{"family": "vitattn", "steps": "7"}', ["steps='7'"]),
    ('{"family": "vitattn", "steps": true}', ["steps=True"]),
    ('{"family": "vitattn", "steps": 1' + "0" * 30 + "}", ["it is too large"]),
    ('{"family": "vitattn", "steps": ' + "9" * 5000 + "}", ["not JSON that can be read"]),
    ('{"family": "vitattn", "nothing": {}}', ["'nothing'"]),
    ('{"family": "vitattn", "model": 3}', ["'model' is a section"]),
    ('{"family": "vitattn", "model": [1]}', ["'model' is a section"]),
    ('{"family": "vitattn", "model.name": ["resnet"]}', ["model.name=['resnet']", "mnasnet"]),
    ('{"family": "vitattn", "model.name": {}}', ["model.name={}"]),
    ('{"family": "vitattn", "model.attention.kind": 3}', ["attention.kind=3", "augmented"]),
    ('{"family": "vitattn", "model.attention": "augmented"}', ["'model.attention' is a section"]),
    ('{"family": "vitattn", "model.depth": 100000}', ["model.depth=100000", "152"]),
    ('{"family": "vitattn", "model.width": NaN}', ["model.width=nan", "it is not finite"]),
    ('{"family": "vitattn", "stuck_after": NaN}', ["stuck_after=nan", "0 for never"]),
    ('{"family": "vitattn", "data.std": [NaN, 1, 1]}', ["data.std", "entry 1 is nan"]),
    ('{"family": "vitattn", "data.mean": [0.1, 0.2]}', ["it has 2 entries", "0 or 3"]),
    ('{"family": "vitattn", "task": "segmentation"}', ["task='segmentation'", "classification"]),
    ('{"family": "moe", "data.encoder_length": 0}', ["data.encoder_length=0", "from 2"]),
    ('{"family": "moe", "task": "pretain"}', ["Did you mean 'pretrain'"]),
    ('{"family": "moe", "model.encoder_blocks": 100000}', ["encoder_blocks=100000", "1,000"]),
    ('{"family": "resnet"}', ["family='resnet'", "vitattn, moe"]),
    ('{"family": ["moe"]}', ["family=['moe']", "vitattn, moe"]),
    ('{"family": null}', ["family=None"]),
    ('{"steps": 3}', ["has no key 'family'"]),
    ('{"family": "moe", "steps": 1, "steps": 2}', ["names 'steps' twice"]),
    ('{"family": "moe", "mesh": {"data": 1}, "mesh.data": 1}', ["gives 'mesh.data' twice"]),
    ('{"family": "moe", "\\u001b[31mred": 1}', ["\\x1b[31mred"]),
    ('{"family": "moe", "name": "a\\u001b]0;b"}', ["\\x1b]0;b", "control characters"]),
    ('{"family": "moe", "name": "\\ud83d"}', ["half of a surrogate pair"]),
    ('{"family": "moe", "' + "k" * 100_000 + '": 1}', ["(100,000 characters)"]),
    ('{"family": "moe", "name": "' + "v" * 100_000 + '"}', ["it has 100,000 characters"]),
    ('{"a":' * 100_000, ["not JSON that can be read"]),
    ('{"a":' * 500 + "1" + "}" * 500, ["lies too deep"]),
    ("[" * 100_000, ["not JSON that can be read"]),
    ('["family", "moe"]', ["one JSON object"]),
    ("", ["not JSON that can be read"]),
    (b'{"family": "\xff"}', ["not UTF-8"]),
]


@pytest.mark.parametrize(("document", "words"), DOCUMENTS, ids=lambda v: str(v)[:50])
def test_json_that_is_no_configuration(tmp_path, document, words):
    refused(tmp_path, document, *words)


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    for name, make in {
        "pipe.json": os.mkfifo,
        "device.json": lambda path: os.symlink("/dev/zero", path),
        "nowhere.json": lambda path: os.symlink(tmp_path / "nothing", path),
        "folder.json": os.mkdir,
    }.items():
        make(tmp_path / name)
        with pytest.raises(ConfigError, match=name):
            load.from_flags(str(tmp_path / name), {})
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(6 << 30)
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        load.from_flags(str(tmp_path / "large.json"), {})
    (tmp_path / "config.json").symlink_to("large.json")
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        load.from_flags(str(tmp_path / "config.json"), {})
    with pytest.raises(ConfigError, match="is a symbolic link"):
        load.of_workdir(tmp_path, {})


# ------------------------------------------------------------------------------------ Python
MADE = "from vitattn.config import default_config\ndef get_config(variant):\n"
START = MADE + "    config = default_config()\n"


def test_python_of_several_forms_is_taken(tmp_path):
    config = loaded(tmp_path, START + "    config.steps = 7\n    return config\n", "x.py")
    as_dict = "def get_config(variant):\n    return {'family': 'vitattn', 'steps': 7}\n"
    assert flatten(loaded(tmp_path, as_dict, "y.py"))["steps"] == config.steps == 7
    numpy = START + "    import numpy as np\n    config.model.bn_eps = float(np.float32(0.5))\n"
    assert loaded(tmp_path, numpy + "    return config\n", "z.py").model.bn_eps == 0.5
    only = "def get_config(variant):\n    return {'a': {'family': 'moe'}}[variant]\n"
    (tmp_path / "only.py").write_text(only)
    assert load.from_flags(f"{tmp_path}/only.py:a", {}).config.family == "moe"


PROGRAMS = [
    ("def get_config(variant:\n", ["in line 1 with SyntaxError"]),
    ("import no_such_package\n", ["in line 1 with ModuleNotFoundError"]),
    ("x = 3\n", ["no function get_config"]),
    ("get_config = 3\n", ["no function get_config"]),
    ("raise SystemExit(0)\n", ["SystemExit"]),
    (MADE + "    pass\n", ["returns NoneType", "`return config`"]),
    (MADE + "    return [1]\n", ["returns list"]),
    (MADE + "    return {}\n", ["has no key 'family'"]),
    (MADE + "    return {3: 4}\n", ["the key 3 is no text"]),
    (MADE + "    return {'family': 'vitattn', 'steps': None}\n", ["steps=None"]),
    (MADE + "    return 1 / 0\n", ["in line 3 with ZeroDivisionError: division by zero"]),
    (MADE + "    return get_config(variant)\n", ["RecursionError"]),
    ("def get_config():\n    return 3\n", ["TypeError", "takes 0 positional arguments"]),
    (START + "    config.stepz = 1\n", ["in line 4 with AttributeError", "stepz"]),
    (START + "    config.steps = 'many'\n", ["in line 4 with TypeError"]),
    (START + "    config.steps = None\n    return config\n", ["steps=None"]),
    (START + "    config.steps = -1\n    return config\n", ["steps=-1"]),
    (START + "    config.steps = 10**5000\n    return config\n", ["a very large int"]),
    (START + "    config.stuck_after = float('nan')\n    return config\n", ["stuck_after=nan"]),
    (START + "    config.model.name = 'vit'\n    return config\n", ["model.name='vit'", "resnet"]),
    (START + "    config.data.std = (1, 2, 'x')\n    return config\n", ["entry 3 is 'x'"]),
    (START + "    config.optimizer.frozen = ('(a',)\n    return config\n", ["regular expression"]),
    (
        START + "    config.unlock().model.attention.kind = 'local'\n    return config.model\n",
        ["has no key 'family'"],
    ),
]


@pytest.mark.parametrize(("program", "words"), PROGRAMS, ids=lambda v: str(v)[-50:])
def test_python_that_makes_no_configuration(tmp_path, program, words):
    refused(tmp_path, program, *words, name="x.py")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("x.yaml", ["'.yaml'", "configs/aa_resnet50.py", "config.json"]),
        ("configs/aa_resnet50.toml", ["'.toml'"]),
        ("configs", ["it is a folder"]),
        ("no\x1bwhere.py", ["no\\x1bwhere.py", "no such file"]),
        ("y" * 100_000, ["100,000 characters", "is too long"]),
        ("nul\0.json", ["nul\\x00.json"]),
    ],
)
def test_a_config_that_is_no_file_of_ours(argument, words, capsys):
    assert run_command(lambda: describe.main([f"--config={argument}"])) == 64
    text = " ".join(capsys.readouterr().err.split())
    assert len(text) < 1200
    for word in words:
        assert word in text, text


# ----------------------------------------------------------------------------------- patterns
@pytest.mark.parametrize("key", ["optimizer.frozen", "init_new", "optimizer.lr_multipliers"])
def test_a_pattern_of_a_stranger_takes_no_time(tmp_path, key):
    pattern = "(c+)+(o|on|con)+v$z"  # 2^n ways through "ccc..." for Python's own search
    value = [[pattern, 2.0]] if key.endswith("multipliers") else [pattern]
    config = loaded(tmp_path, json.dumps({"family": "vitattn", key: value}))
    names = [f"conv2_x.{'c' * 100}.{n}.kernel" for n in range(20)]
    budget = [patterns.BUDGET]
    with pytest.raises(ConfigError, match="matches none of the 20 weights"):
        matching(key, pattern, names, budget)
    assert budget[0] > 0.99 * patterns.BUDGET
    assert len(flatten(config)[key]) == 1


def test_settings_switch_models_whose_keys_take_other_values(tmp_path):
    """What is set as well need not fit the model that is left."""
    wide = {"family": "vitattn", "model.name": "wide_resnet", "model.depth": 28}
    content = json.dumps(wide)
    switch = {"model.name": "resnet"}
    assert loaded(tmp_path, content, **switch, **{"model.depth": "50"}).model.depth == 50
    refused(tmp_path, content, "model.depth=28", "152", **switch)


def test_explain_names_type_and_range(capsys):
    argv = [f"--config={DIGITS}:digits", "--explain=stuck_after"]
    assert run_command(lambda: describe.main(argv)) == 0
    assert "takes    a number above 0 and up to 1e+09, or 0 for never" in capsys.readouterr().out


def test_a_platform_that_is_not_there(tmp_path):
    done = run(
        "train",
        *("--config=configs/st_moe_tiny.py", f"--workdir={tmp_path}/w"),
        cache=tmp_path / "cache",
        JAX_PLATFORMS="cuda",
    )
    assert done.returncode == 64, done.stderr
    assert "JAX cannot start on JAX_PLATFORMS=cuda" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


# ------------------------------------------------------------------------------ Python callers
def test_a_caller_in_python_gets_what_the_command_line_gets(tmp_path):
    for name in ("aa_resnet50:digits", "configs/aa_resnet50.py:digits", f"{DIGITS}:digits"):
        config = configs.load(name, steps=400, optimizer={"momentum": 0.5})
        words = {"steps": "400", "optimizer.momentum": "0.5"}
        assert flatten(config) == flatten(load.from_flags(name, words).config)
        assert config.is_locked
    (tmp_path / "config.json").write_text(to_json(config))
    again = configs.load(tmp_path / "config.json", **{"data.workers": 0})
    assert (again.steps, again.data.workers) == (400, 0)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("aa_resnet5:digits", {}, ["no such file", "Did you mean 'aa_resnet50'"]),
        ("aa_resnet50:digit", {}, ["Did you mean 'digits'"]),
        ("aa_resnet50", {"step": 1}, ["configs.load", "Did you mean 'steps'"]),
        ("aa_resnet50", {"steps": "400"}, ["steps='400'", "whole number"]),
        ("aa_resnet50", {"optimizer": {"momentom": 1}}, ["Did you mean 'optimizer.momentum'"]),
        ("LICENSE", {}, ["LICENSE", "aa_resnet50"]),
    ],
)
def test_a_caller_in_python_makes_the_same_mistakes(name, values, words):
    with pytest.raises(ConfigError) as caught:
        configs.load(name, **values)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_a_caller_in_python_switches_the_model():
    config = configs.load("aa_resnet50", **{"model.attention.kind": "none", "steps": 7})
    assert (config.model.attention.kind, config.steps) == ("none", 7)
    assert "kappa" not in config.model.attention
