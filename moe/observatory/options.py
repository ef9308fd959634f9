"""The keys `router.`: what is watched of the routers while a model trains, and what is too much."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from trainlib.keys import check_fields, number, whole

# Key that turns something off -> the keys that then do nothing.
_BOUNDS = ("dead_after", "min_spread", "max_dropped", "max_logit", "max_spike")
UNWATCHED = {"log_every": (*_BOUNDS, "probe_rows"), "alerts": _BOUNDS}
PROBE_TOKENS = 4096  # most tokens whose routing is compared, whatever `probe_rows` says


@dataclasses.dataclass(frozen=True)
class RouterOptions:
    """What is watched of the routers of a run.

    Attributes:
      log_every: steps between records of kind "router" in metrics.jsonl, which are also what alerts
        look at; 0: routers are not measured in training at all, neither there nor in the records of
        kind "train".
      alerts: raise alerts: in the run's output, its summary and metrics.jsonl.
      dead_after: alert when an expert has been sent less than 1 % of an even share in all records
        of this many steps; 0: never.
      min_spread: alert when the load of a layer is spread over less than this share of its experts:
        exp of the entropy of the load, over their number; 0: never.
      max_dropped: alert when more than this share of the tokens of a layer finds no expert; 0:
        never.
      max_logit: alert when the largest router logit passes it, or will at the pace of the last 20
        records; from 64 on bfloat16 has nothing between whole and half numbers; 0: never.
      max_spike: alert when the loss is so many times its usual spread above its median in the last
        20 records; 0: never.
      probe_rows: rows of the first held-out batch whose routing is compared at each checkpoint with
        that at the one before, 4,096 tokens at most: of long rows the first tokens; 0: none.
    """

    log_every: Annotated[int, whole(1, also={0: "never"})] = 10
    alerts: bool = True
    dead_after: Annotated[int, whole(1, also={0: "never"})] = 100
    min_spread: Annotated[float, number(above=0, high=1, also={0: "never"})] = 0.25
    max_dropped: Annotated[float, number(above=0, below=1, also={0: "never"})] = 0.2
    max_logit: Annotated[float, number(above=0, also={0: "never"})] = 64.0
    max_spike: Annotated[float, number(above=0, also={0: "never"})] = 6.0
    probe_rows: Annotated[int, whole(1, also={0: "none"})] = 8

    def __post_init__(self):
        check_fields(self, "router")
