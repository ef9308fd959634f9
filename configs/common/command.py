"""The command line that trains a configuration again, as it may be published."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.common import load
from trainlib import commands, paths
from trainlib import config as settings
from trainlib.errors import UserError

# They change nothing of the result; of a run that was trained, `steps` says what `epochs` came to.
LEFT_OUT = ("name", "published.", "writers.", "target", "stuck_after", "epochs")


def training(config: ConfigDict, saved: str = "") -> list[str]:
    """The words of the command: the shipped file and variant that the configuration began with, and
    every key that it has another value for; paths of this machine are words in capitals.

    Args:
      config: of a run.
      saved: a file that holds the configuration, for one that began with no shipped file; "" where
        there is none.
    """
    name, _, variant = config.name.partition(":")
    file = f"configs/{name}.py"
    words = [commands.PROGRAM, "train"]  # whoever reads the card installs the package
    try:
        known = any(path.stem == name for path in load.shipped())
        # By its name, and not a file of the current directory that is called alike.
        base = load.from_flags(f"{name}:{variant}", {}).config if known else None
    except UserError:  # a variant of another version
        base = None
    if base is None:
        source, changed = saved or "YOUR_CONFIGURATION.py", {}
        if saved:  # its paths are of another machine
            values = settings.flatten(config)
            changed = {k: v for k, v in values.items() if paths.published(k, v) != v}
    else:
        source = f"{file}:{variant}" if variant else file
        changed = {
            key: new
            for key, (_, new) in settings.differences(
                settings.flatten(base), settings.flatten(config)
            ).items()
            if new is not None
        }
    flags = [
        f"--config.{key}={word(paths.published(key, value))}"
        for key, value in changed.items()
        if not key.startswith(LEFT_OUT)
    ]
    return [*words, f"--config={source}", "--workdir=WORKDIR", *flags]


def word(value: Any) -> str:
    """A value as `--config.KEY=` reads it back."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return repr(list(value)) if value else "()"
    return str(value)
