"""`lm doctor`: is this machine, or every host of a pod, fit to train?

Each check is a function that returns a `Finding`, and takes what it looks at
(folders, environment, versions, a time source) as arguments. JAX itself is
started in a child process, which may hang or die. Nothing is imported here that
may be what is broken: `python -m lm.launch.doctor` runs without jax and flax.
"""

from lm.launch.doctor.command import add
from lm.launch.doctor.finding import Finding
from lm.launch.doctor.finding import Status

__all__ = ["Finding", "Status", "add"]
