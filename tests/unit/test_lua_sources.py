"""Which shared functions a script contains."""

import re

import pytest

from rqjobs.broker import scripts
from rqjobs.broker.scripts import Script

SCRIPTS = {name: one for name, one in vars(scripts).items() if isinstance(one, Script)}


def defined(source: str) -> list[str]:
    return re.findall(r"^(?:local )?function (\w+)", source, re.MULTILINE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_has_a_shared_function_that_it_does_not_use(name):
    source = SCRIPTS[name].source
    shared = {
        one
        for file in ("common", "policies")
        for definition in scripts._definitions(file)
        for one in definition.names
    }
    for function in shared & set(defined(source)):
        assert len(re.findall(rf"\b{function}\b", source)) > 1, function


def test_a_function_stands_behind_those_that_it_uses():
    functions = defined(scripts.REQUEUE.source)
    assert functions.index("read_job") < functions.index("placement") < functions.index("retire")


def test_the_success_of_a_plain_job_has_no_policies():
    plain = defined(scripts.SETTLE_SUCCESS.source)
    of_policies = defined(scripts.SETTLE_POLICY_SUCCESS.source)
    assert not {"free_slot", "end_policies", "wake"} & set(plain)
    assert {"free_slot", "end_policies", "wake"} < set(of_policies)


def test_rare_functions_are_defined_when_the_script_asks_for_them():
    source = scripts.CLAIM.source
    assert source.index("function define_rare") < source.index("function park(")
    usual, rare = source.split("local function define_rare()", 1)
    assert "park" not in defined(usual) and "put_back" in defined(usual)
    assert "define_rare()" in rare
