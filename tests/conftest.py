"""The strict runtime that every test runs in: one CPU thread, float32, no silent rank promotion.

The environment is set before JAX is imported, so that it also reaches the processes tests start.
"""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "0"
# The suite compiles far more than it computes: let LLVM be quick.
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0"
    " intra_op_parallelism_threads=1"
)
# One cache of compiled programs for all workers of a run, and for the processes that tests start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="compressjax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
os.environ["TF_NUM_INTEROP_THREADS"] = "1"

import hypothesis  # noqa: E402
import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# A test's first example compiles, so times say nothing; the same examples are drawn every time.
hypothesis.settings.register_profile("compressjax", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("compressjax")
