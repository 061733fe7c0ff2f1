"""Fixtures for the tests of programs that enqueue jobs: a plugin for pytest.

The module `pytest_rqjobs.py`, outside the package, defines the fixtures. So a run of pytest that
uses none of them does not import rqjobs.
"""
