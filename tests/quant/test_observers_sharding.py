"""Observers on many devices: sharded arrays and merged states give the range of one device."""

from tests.support.devices import run_on_eight_devices

PROGRAM = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from compressjax import quant

jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.device_count() == 8
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
spread = NamedSharding(mesh, PartitionSpec("data"))
tail = np.random.default_rng(0).standard_t(3, (2, 64, 5, 3)).astype(np.float32)
batches = [tail[0], np.abs(tail[1]) * 9]
observers = {
    "min_max": quant.min_max(),
    "moving_average": quant.moving_average(),
    # The searches share its state.
    "percentile": quant.percentile(99.0),
    "per_channel": quant.per_channel(quant.percentile(99.0), 3),
}


def run(observer, batches):
    update, state = jax.jit(observer.update), observer.init()
    for batch in batches:
        state = update(state, batch)
    return state


for name, observer in observers.items():
    alone = run(observer, batches)
    sharded = run(observer, [jax.device_put(batch, spread) for batch in batches])
    jax.tree.map(np.testing.assert_array_equal, alone, sharded)

for name in ("min_max", "percentile", "per_channel"):
    observer = observers[name]

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data")
    )
    def on_each(batch, observer=observer):
        return jax.tree.map(lambda leaf: leaf[None], observer.update(observer.init(), batch))

    states = [on_each(batch) for batch in batches]
    merge = jax.jit(observer.merge)
    each = [jax.tree.map(lambda leaf: leaf[i], state) for state in states for i in range(8)]
    merged = functools.reduce(merge, jax.device_get(each), observer.init())
    jax.tree.map(np.testing.assert_array_equal, run(observer, batches), merged)

# Averages of extremes do not merge into extremes of averages, but into their own average.
observer = observers["moving_average"]
halves = [run(observer, [batch]) for batch in (np.float32([1, 3]), np.float32([-1, 7]))]
np.testing.assert_allclose(observer.find(observer.merge(*halves)), (0, 5), rtol=1e-6, atol=1e-6)
print("same")
"""


def test_eight_devices_find_the_range_of_one():
    assert run_on_eight_devices(PROGRAM).split()[-1:] == ["same"]
