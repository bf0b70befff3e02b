import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from bitflax.training import compile_cache


@pytest.fixture
def no_cache():
    """Switch off a cache that the environment has set."""
    name = "jax_compilation_cache_dir"
    before = getattr(jax.config, name)
    jax.config.update(name, None)
    compilation_cache.reset_cache()
    yield
    jax.config.update(name, before)
    compilation_cache.reset_cache()


def compile_something(constant: float) -> None:
    jax.jit(lambda x: jnp.sin(x) * constant)(jnp.ones(3)).block_until_ready()


def test_programs_are_kept_and_jax_is_left_as_it_was(no_cache, tmp_path):
    compile_something(0.123)
    with compile_cache.compiled_in(tmp_path / "mine", least=0.0):
        compile_something(0.456)
    kept = sorted((tmp_path / "mine").iterdir())
    assert kept
    assert jax.config.jax_compilation_cache_dir is None
    compile_something(0.789)
    assert sorted((tmp_path / "mine").iterdir()) == kept


def test_a_second_run_has_a_folder_of_its_own(no_cache, tmp_path):
    for name in ("one", "two"):
        with compile_cache.compiled_in(tmp_path / name, least=0.0):
            compile_something(0.321)
        assert list((tmp_path / name).iterdir())


def test_a_cache_that_is_set_is_used(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    with compile_cache.compiled_in(tmp_path / "mine", least=0.0):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
    assert not (tmp_path / "mine").exists()


@pytest.fixture
def home(no_cache, tmp_path, monkeypatch):
    """An empty cache folder of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("platform.node", lambda: "a machine/of mine")
    return tmp_path / "cache/bitflax/a_machine_of_mine"


def test_a_command_keeps_programs_for_its_user_and_machine(home):
    with compile_cache.compiled_for_user():
        assert jax.config.jax_compilation_cache_dir == str(home)
    assert home.stat().st_mode & 0o777 == 0o700
    assert jax.config.jax_compilation_cache_dir is None


def test_what_others_can_write_to_is_not_used(home):
    home.mkdir(parents=True)
    home.chmod(0o777)
    with compile_cache.compiled_for_user():
        assert jax.config.jax_compilation_cache_dir is None


def test_without_a_place_nothing_is_kept(home):
    home.parent.parent.write_text("a file where a folder should be")
    with compile_cache.compiled_for_user():
        compile_something(0.654)
        assert jax.config.jax_compilation_cache_dir is None


def test_many_processes_share_a_folder(home, tmp_path, monkeypatch):
    shared = tmp_path / "run"
    with compile_cache.compiled_for_user(shared):
        assert jax.config.jax_compilation_cache_dir == str(home)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with compile_cache.compiled_for_user(shared):
        assert jax.config.jax_compilation_cache_dir == str(shared)


def test_without_a_place_a_run_keeps_its_own(home, tmp_path):
    home.parent.parent.write_text("a file where a folder should be")
    with compile_cache.compiled_for_user(tmp_path / "run"):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "run")


def test_errors_pass_through(home):
    with pytest.raises(OSError, match="mine"), compile_cache.compiled_for_user():
        raise OSError("mine")
