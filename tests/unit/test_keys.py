"""The keys in Redis are spelled in broker/keys.py and in the Lua scripts alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import rqjobs
from rqjobs.broker import keys, scripts

PACKAGE = Path(rqjobs.__file__).parent


def test_no_other_module_spells_a_key():
    spelled = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.value}"
        for path in PACKAGE.rglob("*.py")
        if path != Path(keys.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.match(r"(rq|rqjobs):[a-z]", node.value)
    ]
    assert not spelled


def test_the_table_of_keys_has_each_key_of_the_scripts():
    in_scripts = {
        name
        for path in scripts.LUA_FOLDER.glob("*.lua")
        for name in re.findall(r"rqjobs:([a-z-]+)", path.read_text(encoding="utf-8"))
    }
    assert in_scripts
    in_table = set(re.findall(r"rqjobs:([a-z-]+)", keys.__doc__))
    assert in_scripts <= in_table
