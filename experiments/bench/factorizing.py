"""What it costs to factorize a large network: seconds of each method and rank rule.

    python -m experiments.bench.factorizing

ResNet-18 at 224x224 and ViT-B/16 with drawn weights, whose energy is spread as thin as it can be:
the most work that a rule can have. Decompositions are NumPy on all processors, so seconds of all of
them together stand beside elapsed ones, which is what other programs on the machine lengthen.
Memory is what NumPy allocates on top of the variables, at its highest, over their bytes. CP is
measured at a rank of 32: it stops after 50 rounds at any rank. Goal: ResNet-18 in 10 s on 2 CPU
cores.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import compressjax as cj
from compressjax import lowrank, models, tree
from experiments.bench import options, parity, timing
from experiments.bench.shrinking import ViTB16, memory

_RULES = flags.DEFINE_list("factorings", [], "Which rows are measured; all if none are named.")


def rows(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The measured calls.

    Args:
      model: the network.

    Returns:
      Options of `factorize` by name; those for windows only where the network has them.
    """
    svd = lowrank.svd()
    found: dict[str, dict[str, Any]] = {
        "svd at half the ranks": {"method": svd},
        "svd at energy 0.9": {"method": svd, "rank": lowrank.energy(0.9)},
        "svd at half the MACs": {"method": svd, "rank": lowrank.macs(0.5)},
    }
    if not isinstance(model, ViTB16):  # it has no windows that slide
        found |= {
            "tucker2 at half the ranks": {},
            "tucker2 at energy 0.9": {"rank": lowrank.energy(0.9)},
            "tucker2 at half the MACs": {"rank": lowrank.macs(0.5)},
            "tucker2 by vbmf": {"rank": lowrank.vbmf()},
            "spatial at half the ranks": {"method": lowrank.spatial()},
            "spatial at energy 0.9": {"method": lowrank.spatial(), "rank": lowrank.energy(0.9)},
            "cp at 32 products": {"method": lowrank.cp(), "rank": 32},
        }
    return found


def measure(model: nn.Module, size: int, named: Sequence[str]) -> dict[str, Any]:
    """Factorizes one network in each way.

    Args:
      model: the network.
      size: height and width of its images.
      named: which rows; all if empty.

    Returns:
      The bytes of the variables, the memory over them at half the ranks, and by row the seconds by
      clock and the part of the MACs that is left.
    """
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    drawn = parity.draw(jax.eval_shape(model.init, jax.random.key(0), x), seed=0)
    variables = jax.tree.map(np.asarray, drawn)  # NumPy says what it allocates, JAX does not
    total = tree.num_bytes(variables)
    found: dict[str, Any] = {}
    for name, how in rows(model).items():
        if named and name not in named:
            continue
        jax.clear_caches()
        starts = {clock: clock.now() for clock in timing.Clock}
        factored = cj.factorize(model.apply, variables, x, **how)
        seconds = {clock.value: clock.now() - start for clock, start in starts.items()}
        left = factored.report.macs[1] / factored.report.macs[0]
        found[name] = {"seconds": seconds, "macs": left}
    used = memory(lambda: cj.factorize(model.apply, variables, x))
    return {"bytes": total, "memory": used / total, "rows": found}


def line(name: str, row: Mapping[str, Any]) -> str:
    """Formats a row for a terminal."""
    wall, processor = (row["seconds"][clock.value] for clock in timing.Clock)
    return f"{name:<26} {wall:>8.1f} {processor:>10.1f} {row['macs']:>6.3f}"


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    networks = {"ResNet-18": models.ResNet18(num_classes=1000), "ViT-B/16": ViTB16()}
    found = {name: measure(model, 224, _RULES.value) for name, model in networks.items()}
    if options.JSON.value:
        print(timing.document(found))
        return
    for name, result in found.items():
        print(f"{name}, {result['bytes'] / 1e6:.0f} MB of variables")
        print(f"{'':<26} {'seconds':>8} {'processor':>10} {'MACs':>6}")
        print("\n".join(line(row, values) for row, values in result["rows"].items()))
        print(f"memory beside the variables: {result['memory']:.2f} of their bytes\n")


if __name__ == "__main__":
    app.run(main)
