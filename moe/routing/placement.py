"""Where experts and groups of tokens lie on a mesh.

Letters: E experts, G groups, S tokens of a group, C capacity, D model width, F hidden width.
"""

from __future__ import annotations

import dataclasses
import math

import jax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moe.routing.config import RoutingConfig, tokens_per_group
from trainlib.errors import ConfigError
from trainlib.sharding.mesh import AnyMesh
from trainlib.sharding.rules import Rules


@dataclasses.dataclass(frozen=True)
class Placement:
    """The mesh axes of the layer; on one device there is no mesh and all are empty.

    Attributes:
      mesh: the mesh.
      batch: axes that the batch is split over.
      expert_axis: mesh axis of the experts; "" when every device holds all of them.
      mlp_axis: mesh axis of the experts' hidden width; "" when it is whole.
      automatic: leave the partition to the compiler, by constraints, with no shard_map.
    """

    mesh: AnyMesh | None = None
    batch: tuple[str, ...] = ()
    expert_axis: str = ""
    mlp_axis: str = ""
    automatic: bool = False

    def size(self, *axes: str) -> int:
        """Number of parts over some axes."""
        return math.prod(self.mesh.shape[axis] for axis in axes if axis) if self.mesh else 1

    @property
    def devices(self) -> int:
        """Number of parts of the batch."""
        return self.size(*self.batch)

    @property
    def replicas(self) -> tuple[str, ...]:
        """Batch axes over which whole sets of experts are repeated."""
        return tuple(axis for axis in self.batch if axis not in (self.expert_axis, self.mlp_axis))

    @property
    def by_group(self) -> P:
        """[E, G, C, D] as tokens lie."""
        return P(None, self.batch)

    @property
    def by_expert(self) -> P:
        """[E, G, C, D] as experts lie."""
        return P(self.expert_axis or None, self.replicas)

    @property
    def by_hidden(self) -> P:
        """[E, G, C, F] as experts lie."""
        return P(self.expert_axis or None, self.replicas, None, self.mlp_axis or None)

    def constrain(self, x: jax.Array, spec: P) -> jax.Array:
        """Constrains an array to a partition of the mesh."""
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec)) if self.mesh else x

    def weight_spec(self, name: str) -> P:
        """The partition of "gate", "up" [E, D, F], "down" [E, F, D], "bias" [E, F], and of the
        scales of the first three [E, F], [E, F], [E, D].
        """
        experts, mlp = self.expert_axis or None, self.mlp_axis or None
        if name == "down_scale":
            return P(experts)
        return P(experts, None, mlp) if name in ("gate", "up") else P(experts, mlp)


def resolve_placement(mesh: AnyMesh | None, rules: Rules, routing: RoutingConfig) -> Placement:
    """Resolves where experts and tokens lie.

    Raises:
      ConfigError: the experts do not divide over their mesh axis, or the batch is not split over an
        axis that the experts use, so that devices would send the same tokens twice.
    """
    if mesh is None or mesh.size == 1:
        return Placement()
    split = rules["batch"]
    batch = (split,) if isinstance(split, str) else tuple(split or ())
    axes: dict[str, str] = {}
    for name in ("expert", "expert_mlp"):
        axis = rules[name] or ""
        if not isinstance(axis, str):
            raise ConfigError(f"The sharding rule '{name}' -> {axis} has to be one mesh axis.")
        axes[name] = axis
        if axis and mesh.shape[axis] > 1 and axis not in batch:
            raise ConfigError(
                f"The sharding rule '{name}' -> '{axis}' needs the batch to be split over that "
                f"mesh axis too, and 'batch' -> {batch}. Use 'batch' -> {(*batch, axis)}."
            )
    parts = mesh.shape[axes["expert"]] if axes["expert"] else 1
    if routing.num_experts % parts:
        fits = max(n for n in range(1, parts + 1) if not (routing.num_experts % n or parts % n))
        raise ConfigError(
            f"routing.num_experts={routing.num_experts} does not divide over the {parts} rows of "
            f"mesh axis '{axes['expert']}'. Use a multiple of {parts} experts, or mesh.data={fits} "
            f"and mesh.replica={parts // fits} times what it is: the experts are then repeated in "
            "each replica."
        )
    used = {name: axis if axis and mesh.shape[axis] > 1 else "" for name, axis in axes.items()}
    automatic = routing.partitioner == "automatic"
    if automatic and parts != mesh.size:
        raise ConfigError(
            f"routing.partitioner='automatic' lays experts over rows alone, and the mesh is "
            f"{dict(mesh.shape)}. Use mesh.replica=1 and mesh.model=1, or 'shard_map'."
        )
    return Placement(mesh, batch, used["expert"], used["expert_mlp"], automatic)


def group_tokens(routing: RoutingConfig, sequences: int, length: int, placement: Placement) -> int:
    """S for a global batch of `sequences` sequences of `length` tokens.

    Raises:
      ConfigError: the batch cannot be cut so.
    """
    devices = placement.devices
    if sequences % devices:
        raise ConfigError(
            f"A batch of {sequences} sequences does not divide over {devices} devices (mesh "
            f"axes {', '.join(placement.batch)}). Use a multiple of {devices} sequences."
        )
    return tokens_per_group(routing, sequences // devices, length)
