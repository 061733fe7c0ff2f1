"""Flows: chains and groups of jobs that pass their results on.

    chain(fetch.s(url), parse.s(), store.s()).enqueue()
    chord(group(count.s(page) for page in pages), total.s()).enqueue()

Each job of a flow is an ordinary job of RQ that depends on others.
"""

from rqjobs.broker.flows import FlowDropped
from rqjobs.flows.flow import Flow, FlowProgress, FlowStatus, NoSuchFlow, fetch
from rqjobs.flows.steps import Chain, Group, chain, chord, enqueue, group
from rqjobs.flows.steps import map_jobs as map
from rqjobs.passed_results import Failed, ResultGone
from rqjobs.signatures import Signature, s

__all__ = [
    "Chain",
    "Failed",
    "Flow",
    "FlowDropped",
    "FlowProgress",
    "FlowStatus",
    "Group",
    "NoSuchFlow",
    "ResultGone",
    "Signature",
    "chain",
    "chord",
    "enqueue",
    "fetch",
    "group",
    "map",
    "s",
]
