"""Fixtures for the tests of programs that enqueue jobs: a plugin for pytest.

`pytest_rqjobs.py`, beside the package, has the fixtures, so that a run of pytest that uses none
does not import rqjobs.
"""
