"""A py_test that runs one file with pytest (which only defines tests)."""

def pytest_test(name, deps = [], **kwargs):
    """Runs NAME.py with pytest.

    Args:
      name: the test file's path below tests/, without .py.
      deps: the rooms it needs.
      **kwargs: whatever else py_test takes.
    """
    native.py_test(
        name = name,
        srcs = [name + ".py", "run_pytest.py"],
        main = "run_pytest.py",
        args = ["$(location %s.py)" % name],
        deps = deps + ["//tests:helpers"],
        python_version = "PY3",
        **kwargs
    )
