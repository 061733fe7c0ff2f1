"""`make audit-code` fails for a vulnerability, and says if nothing could be checked."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / ".ci" / "audit_packages.py"
VULNERABLE = {
    "name": "flask",
    "version": "0.1",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["0.2"], "aliases": [], "description": "bad"}],
}
SOUND = {"name": "click", "version": "8.1", "vulns": []}


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("audit_packages", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_vulnerability_fails_unless_it_is_excepted(script):
    output = json.dumps({"dependencies": [SOUND, VULNERABLE], "fixes": []})
    verdict = script.read(output, "")
    assert verdict.fails and verdict.lines == ["flask 0.1: PYSEC-1, fixed in 0.2"]
    script.EXCEPTIONS["PYSEC-1"] = "we do not call it"
    verdict = script.read(output, "")
    assert not verdict.fails and "excepted: we do not call it" in verdict.lines[0]


def test_what_was_not_checked_is_said(script):
    skipped = {"name": "click", "skip_reason": "Dependency not found on PyPI"}
    own = {"name": "rqjobs", "skip_reason": "distribution marked as editable"}
    verdict = script.read(json.dumps({"dependencies": [skipped, own, SOUND]}), "")
    assert not verdict.fails and "NOT CHECKED" in verdict.lines[0] and "click" in verdict.lines[0]
    verdict = script.read(json.dumps({"dependencies": [skipped, own]}), "")
    assert len(verdict.lines) == 1, "none is said to be sound"
    for output in ("", "{}", "null", "[]"):
        verdict = script.read(output, "INFO\nERROR: Connection refused\n")
        assert not verdict.fails and "NOT CHECKED" in verdict.lines[0]
        assert "Connection refused" in verdict.lines[0]
