"""Check the installed packages against the known vulnerabilities, with pip-audit.

Ends with 1 if a package has one. The service may not be reachable: then nothing was checked, which
is said, and the run does not fail.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

RUN_SECONDS = 20
REQUEST_SECONDS = 5
OWN_NAME = "rqjobs"  # is installed from the checkout
SHOWN_NAMES = 10
EXCEPTIONS: dict[str, str] = {}  # the id of a vulnerability -> why it does not concern rqjobs


@dataclass(frozen=True)
class Verdict:
    """What is to be printed, and whether the run fails."""

    fails: bool = False
    lines: list[str] = field(default_factory=list)


def judge(report: dict[str, Any]) -> Verdict:
    """The verdict on a report of pip-audit as JSON."""
    found = []
    unchecked = []
    packages = [one for one in report["dependencies"] if one["name"] != OWN_NAME]
    for package in packages:
        name = f"{package['name']} {package.get('version', '')}".strip()
        if "skip_reason" in package:
            unchecked.append(package["name"])
        for vulnerability in package.get("vulns", ()):
            found.append((name, vulnerability))
    lines = [_describe(name, one) for name, one in found]
    if unchecked:
        names = ", ".join(unchecked[:SHOWN_NAMES]) + (", …" if unchecked[SHOWN_NAMES:] else "")
        lines.append(f"NOT CHECKED, the service does not know {len(unchecked)} packages: {names}")
    checked = len(packages) - len(unchecked)
    if checked and not found:
        lines.append(f"{checked} packages have no known vulnerability.")
    return Verdict(any(one["id"] not in EXCEPTIONS for _, one in found), lines)


def _describe(name: str, vulnerability: dict[str, Any]) -> str:
    fixed = ", ".join(vulnerability.get("fix_versions", ())) or "no version"
    line = f"{name}: {vulnerability['id']}, fixed in {fixed}"
    reason = EXCEPTIONS.get(vulnerability["id"])
    return f"{line}; excepted: {reason}" if reason else line


def unreachable(reason: str) -> Verdict:
    return Verdict(lines=[f"The packages were NOT CHECKED; the service does not answer: {reason}"])


def read(output: str, errors: str) -> Verdict:
    """The verdict on a run of pip-audit: it prints JSON unless its service does not answer."""
    try:
        return judge(json.loads(output))
    except (ValueError, LookupError, TypeError):
        return unreachable((errors.strip().splitlines() or ["no output"])[-1])


def main() -> int:
    """Run pip-audit on this environment."""
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--format", "json"]
    command += ["--progress-spinner", "off", "--timeout", str(REQUEST_SECONDS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS)
        verdict = read(done.stdout, done.stderr)
    except subprocess.TimeoutExpired:
        verdict = unreachable(f"no end within {RUN_SECONDS} s")
    print(*verdict.lines, sep="\n")
    return int(verdict.fails)


if __name__ == "__main__":
    sys.exit(main())
