"""Which networks can be cut, how far, and that the result is the masked original.

    python -m experiments.bench.topologies

Shrinks every network of `architectures` by a ratio and compares it with the whole network over
variables that are zero at all positions that were cut. Takes about a minute on 2 CPU cores.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

import compressjax as cj
from experiments.bench import architectures, options, parity, timing

_RATIO = flags.DEFINE_float("cut", 0.5, "Part of each group's channels that go.", 0.0, 0.999)
_ROUND = flags.DEFINE_integer("rounded_to", 1, "Layers keep multiples of this.", lower_bound=1)


class Row(NamedTuple):
    """What was found of one network.

    Attributes:
      name: of the network.
      groups: how many groups of channels it has.
      channels: channels in all groups, before and after.
      parameters: what is left of the parameters, a part of the whole.
      macs: what is left of the multiply-accumulates.
      difference: the largest difference of the outputs to the masked original, over the largest of
        its outputs.
      change: the same for the original itself: what the cut changed.
      stays: variable axes that could not be cut, other than the outputs, with reasons.
    """

    name: str
    groups: int
    channels: tuple[int, int]
    parameters: float
    macs: float
    difference: float
    change: float
    stays: dict[str, str]


def row(architecture: architectures.Architecture, *, ratio: float, round_to: int) -> Row:
    """Shrinks one network and compares.

    Args:
      architecture: the network.
      ratio: part of each group's channels that go.
      round_to: layers keep multiples of this.

    Returns:
      What was found.
    """
    apply = architecture.module.apply
    x = jax.random.normal(jax.random.key(0), (2, architecture.size, architecture.size, 3))
    shapes = jax.eval_shape(architecture.module.init, jax.random.key(0), x)
    variables = parity.draw(shapes, seed=0)
    cut = cj.shrink(apply, variables, x, ratio=ratio, round_to=round_to)
    found = jax.jit(cut.apply)(cut.variables, x)
    run = jax.jit(apply)
    masked, whole = run(cut.masked(variables), x), run(variables, x)
    largest = jnp.abs(masked).max()
    before, after = cj.trace(apply, variables, x), cj.trace(cut.apply, cut.variables, x)
    sizes = cut.report.groups.values()
    return Row(
        name=architecture.name,
        groups=len(sizes),
        channels=(sum(old for old, _ in sizes), sum(new for _, new in sizes)),
        parameters=after.num_params / before.num_params,
        macs=after.macs / before.macs,
        difference=float(jnp.abs(found - masked).max() / largest),
        change=float(jnp.abs(whole - masked).max() / largest),
        stays={at: why for at, why in cut.report.frozen.items() if "of the function" not in why},
    )


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    rows: list[dict[str, Any]] = []
    if not options.JSON.value:
        print("| network | groups | channels | parameters | MACs | difference | stays |")
        print("|---|---|---|---|---|---|---|")
    for architecture in architectures.architectures():
        found = row(architecture, ratio=_RATIO.value, round_to=_ROUND.value)
        rows.append(found._asdict())
        if not options.JSON.value:
            old, new = found.channels
            stays = next(iter(found.stays.values()), "").split(": ")[-1]
            print(
                f"| {found.name} | {found.groups} | {old} -> {new} | {found.parameters:.2f} | "
                f"{found.macs:.2f} | {found.difference:.0e} | {stays} |",
                flush=True,
            )
    if options.JSON.value:
        print(timing.document({"rows": rows}))


if __name__ == "__main__":
    app.run(main)
