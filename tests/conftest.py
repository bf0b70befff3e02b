"""What every test shares: eight CPU devices, strict shapes, and a few fixtures."""

import atexit
import contextlib
import gc
import os
import pathlib
import shutil
import tempfile

from tests.helpers import flags

# These are read when jax starts, so they come before its import.
_FLAGS = f"--xla_force_host_platform_device_count=8 {flags.QUICK}"
os.environ["XLA_FLAGS"] = f"{_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
# What one process compiles, the others take: pytest's workers, the commands that tests
# start. Never in the real user's folder; in one that is given, the next run finds it.
_CACHE = "JAX_COMPILATION_CACHE_DIR"
if _CACHE not in os.environ:
    os.environ[_CACHE] = tempfile.mkdtemp(prefix="bitflax-compiled-")
    atexit.register(shutil.rmtree, os.environ[_CACHE], ignore_errors=True)
_KEPT = "JAX_PERSISTENT_CACHE_MIN"  # everything, however small
os.environ[f"{_KEPT}_COMPILE_TIME_SECS"] = "0"
os.environ[f"{_KEPT}_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

from bitflax.errors import StorageError  # noqa: E402
from bitflax.inference.native import building  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

GOLDEN = pathlib.Path(__file__).parent / "golden"


def _enable_x64():
    """Return the context manager of whichever name this jax has for it."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def pytest_collection_finish():
    """Leave out of every garbage collection what stays, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _users_cache(tmp_path_factory):
    """Commands keep what they compile elsewhere than in the real user's folder.

    The native engine alone lies there, so that it is compiled once for all tests.
    """
    made = tmp_path_factory.mktemp("cache")
    with contextlib.suppress(StorageError):  # there is no such folder
        shared = building.cache_folder()
        (made / "bitflax").mkdir(mode=0o700)
        (made / "bitflax" / "native").symlink_to(shared)
    os.environ["XDG_CACHE_HOME"] = str(made)


@pytest.fixture
def x64():
    """Switch 64-bit numbers on for one test."""
    with _enable_x64():
        yield


@pytest.fixture
def types_unchecked():
    """Switch the type checker off for one test: users have none."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The folder of vectors that the peers' own code made."""
    return GOLDEN


@pytest.fixture(scope="session")
def bitflax_data() -> pathlib.Path:
    """The folder of real data that ``BITFLAX_DATA`` names; skips where it is unset."""
    folder = os.environ.get("BITFLAX_DATA", "")
    if not folder:
        pytest.skip("BITFLAX_DATA is unset: it names a folder of real data sets")
    path = pathlib.Path(folder)
    if not path.is_dir():
        pytest.fail(f"BITFLAX_DATA={folder} is no folder")
    return path
