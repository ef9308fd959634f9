"""How a command line may go on: commands, flags and their values, configurations, keys, paths.

Only keys and their values need the libraries that a configuration needs. A shell shows nothing of
a completion that fails, so that whatever stops one gives no words.
"""

from __future__ import annotations

import argparse
import ast
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.common import load
from launch import cli, program
from launch.completion.scripts import SCRIPTS
from trainlib.commands import PROGRAM

if TYPE_CHECKING:
    from trainlib.keys import Kind

KEY = "--config."
_WITH_KEYS = ("--config", "--workdir")  # flags of commands that read a configuration
_READ = (".py", ".json")  # files that --config takes


def complete(line: str) -> list[str]:
    """Words that the last word of a line may become.

    Args:
      line: what was typed up to the cursor. A line that ends with a blank begins a new word.

    Returns:
      Whole words. Those that end with =, : or / are to be continued, the others are complete.
    """
    words = _split(line)
    start = next((i for i, word in enumerate(words) if Path(word).name == PROGRAM), None)
    words = words[1:] if start is None else words[start + 1 :]
    if not words:
        return []
    try:
        return sorted(dict.fromkeys(_words(words[:-1], words[-1])))
    except (Exception, SystemExit):
        return []


def _split(line: str) -> list[str]:
    """The words of a line; the last is the one that is being typed, "" after a blank."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    words = []
    try:
        words += iter(lexer)
    except ValueError:  # a quotation mark that is not closed yet
        words = line.split()
    return [*words, ""] if not line or line[-1].isspace() else words


def _words(before: list[str], word: str) -> Iterable[str]:
    """How `word` may go on after the words `before`, of which the first is the command."""
    if not before:
        return _of(word, (*program.COMMANDS, "--help", "--version"))
    command = before[0]
    if command == "completion":
        return _of(word, SCRIPTS)
    parser = program.parser_of(command)
    flags = {flag: action for action in parser._actions for flag in action.option_strings}
    name, equals, value = word.partition("=")
    if word.startswith(KEY):
        return _setting(before, name, equals, value)
    keys = name == "--compare" and not cli.is_path(flags[name])
    if keys and equals and "=" not in value:
        return [f"{name}={key}" for key in _of(value, _schema(before))]
    if equals and name in flags:
        return [f"{name}={rest}" for rest in _values(flags[name], value)]
    last = flags.get(before[-1])
    if last is not None and last.nargs is None:  # its value, after a blank
        return _values(last, word)
    if word.startswith("-"):
        return _of(word, [*_flags(flags), *([KEY] if set(_WITH_KEYS) & set(flags) else [])])
    places = [action for action in parser._actions if not action.option_strings]
    return _paths(word) if places and cli.is_path(places[0]) else []


def _of(word: str, options: Iterable[str]) -> list[str]:
    return [option for option in options if option.startswith(word)]


def _flags(flags: Mapping[str, argparse.Action]) -> list[str]:
    """Flags as one begins to type them, with = where a value has to follow."""
    return [
        flag + ("=" if action.nargs is None else "")
        for flag, action in flags.items()
        if flag.startswith("--")
    ]


def _values(action: argparse.Action, text: str) -> list[str]:
    """Values that a flag takes."""
    if action.dest == "config":
        return _configurations(text)
    if action.choices is not None:
        return _of(text, map(str, action.choices))
    if not cli.is_path(action):
        words = str(action.metavar).split("|")  # such as skip|fail; in capitals it is no word
        return _of(text, [word for word in words if word.islower()]) if len(words) > 1 else []
    found = _paths(text)
    return [path for path in found if path.endswith("/")] if "DIR" in str(action.metavar) else found


# ----------------------------------------------------------------------------------- configurations
def _configurations(text: str) -> list[str]:
    """Shipped configurations by name, their variants, and files."""
    name, colon, variant = text.partition(":")
    stems = {path.stem: path for path in load.shipped()}
    if colon:
        file = stems.get(Path(name).stem, Path(name))
        return [f"{name}:{found}" for found in _of(variant, variants(file))]
    found = _of(text, stems)
    if len(found) == 1:  # nothing else can be meant, so that its variants are shown as well
        found += [f"{found[0]}:{variant}" for variant in variants(stems[found[0]])]
    return [*found, *(path for path in _paths(text) if path.endswith(("/", *_READ)))]


def variants(file: Path) -> list[str]:
    """The variants of a configuration file, as far as they can be read without running it."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
            continue
        if [ast.unparse(target) for target in node.targets] == ["VARIANTS"]:
            return [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
    return []


def _setting(before: list[str], name: str, equals: str, value: str) -> list[str]:
    """Keys of the configuration that the line names, or values of one."""
    schema = _schema(before)
    if not equals:
        return _of(name, (f"{KEY}{key}=" for key in schema))
    from trainlib.keys import kind_of

    kind = kind_of(schema[name.removeprefix(KEY)])
    return [f"{name}={option}" for option in _of(value, _options(kind))]


def _schema(before: list[str]) -> Mapping[str, Any]:
    from launch import families
    from trainlib.config import flatten

    config = _value_of("--config", before)
    if config:
        loaded = load.from_flags(config, {}).config
    elif workdir := _value_of("--workdir", before):
        loaded = load.of_workdir(Path(workdir).expanduser(), {})
    else:
        return {k: v for family in families.FAMILIES for k, v in family.config.schema().items()}
    return families.of(loaded).config.schema(flatten(loaded))


def _value_of(flag: str, words: list[str]) -> str:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""


def _options(kind: Kind) -> list[str]:
    from trainlib.keys import Choice, Switch

    if isinstance(kind, Switch):
        return ["true", "false"]
    return [str(option) for option in kind.options] if isinstance(kind, Choice) else []


# -------------------------------------------------------------------------------------------- paths
def _paths(text: str) -> list[str]:
    """Files and folders whose path begins with the text; folders end with /."""
    folder, _, beginning = text.rpartition("/")
    shown = f"{folder}/" if "/" in text else ""
    found = []
    for entry in os.scandir(Path(shown or ".").expanduser()):
        hidden = entry.name.startswith(".") and not beginning.startswith(".")
        if entry.name.startswith(beginning) and not hidden:
            found.append(f"{shown}{entry.name}{'/' if entry.is_dir() else ''}")
    return found
