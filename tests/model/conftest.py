"""Programs of tests run once or twice: compile them quickly, not well."""

import jax
import pytest


@pytest.fixture
def quick_compile():
  """XLA without its costly optimisations, for one test."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
