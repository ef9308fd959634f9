"""The sweep of ST-MoE's table 20 (arXiv 2202.08906): learning rate, batch, optimiser slots."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from trainlib.errors import ConfigError

GRID = "grid"
_MILLION, _QUARTER, _SMALL = 2**20, 2**18, 2**16  # tokens


@dataclasses.dataclass(frozen=True)
class Setting:
    """One cell of the table; scores are SuperGLUE averages of ST-MoE-L and Dense-L."""

    learning_rate: float
    tokens: int
    keep_slots: bool
    sparse: float
    dense: float


# (rate, tokens): sparse with slots kept and reset, dense with slots kept and reset.
_PRINTED = {
    (1e-3, _MILLION): (86.9, 85.9, 84.8, 84.3),
    (1e-3, _QUARTER): (86.2, 85.2, 84.9, 83.7),
    (1e-3, _SMALL): (85.8, 85.5, 83.7, 82.5),
    (5e-4, _MILLION): (86.1, 83.5, 84.8, 84.2),
    (5e-4, _QUARTER): (85.5, 84.8, 84.9, 84.0),
    (5e-4, _SMALL): (86.5, 85.1, 84.4, 84.1),
    (1e-4, _MILLION): (84.3, 84.3, 84.0, 84.8),
    (1e-4, _QUARTER): (85.1, 85.5, 85.1, 85.0),
    (1e-4, _SMALL): (85.6, 84.5, 84.9, 84.6),
}
SETTINGS = tuple(
    setting
    for (rate, tokens), (with_slots, reset, dense_with_slots, dense_reset) in _PRINTED.items()
    for setting in (
        Setting(rate, tokens, True, with_slots, dense_with_slots),
        Setting(rate, tokens, False, reset, dense_reset),
    )
)


def settle(config: ConfigDict) -> bool:
    """Applies `config.sweep` in place and prints what it sets, over whatever was asked for; returns
    False if the grid alone was asked for, which is printed.

    Raises:
      ConfigError: no such setting, or rows too long for its batch.
    """
    if not config.sweep:
        return True
    if config.sweep == GRID:
        print(table(config))
        return False
    if not config.sweep.isdecimal() or int(config.sweep) >= len(SETTINGS):
        raise ConfigError(
            f"sweep={config.sweep!r} is no setting: use 0 to {len(SETTINGS) - 1}, or '{GRID}', "
            "which prints them all."
        )
    setting = SETTINGS[int(config.sweep)]
    config.schedule.learning_rate = setting.learning_rate
    config.batch_size = batch_size(config, setting)
    config.finetune.keep_slots = setting.keep_slots
    print(f"sweep={config.sweep} sets {_described(config, setting)}", flush=True)
    return True


def batch_size(config: ConfigDict, setting: Setting) -> int:
    """Sequences of a batch of so many encoder tokens."""
    count = setting.tokens // config.data.encoder_length
    if not count:
        raise ConfigError(
            f"data.encoder_length={config.data.encoder_length} is more than the "
            f"{setting.tokens:,} tokens of a batch in this setting."
        )
    return count


def table(config: ConfigDict) -> str:
    """All settings, with what the paper measured."""
    lines = [f"  {number:>2}  {_described(config, s)}" for number, s in enumerate(SETTINGS)]
    title = f"{config.name}: settings of table 20, chosen by --config.sweep=N"
    return "\n".join(["", title, "-" * len(title), *lines])


def _described(config: ConfigDict, setting: Setting) -> str:
    slots = "kept" if setting.keep_slots else "reset"
    return (
        f"learning_rate {setting.learning_rate:g}, batch {setting.tokens:,} tokens "
        f"({batch_size(config, setting):,} rows), slots {slots}; published {setting.sparse} "
        f"(dense {setting.dense})"
    )
