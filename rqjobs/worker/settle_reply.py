"""The answers of the scripts that settle a job."""

from __future__ import annotations

from enum import Enum
from typing import Any

from rqjobs.broker.keys import decode


class SettleReply(str, Enum):
    """The answer of `settle.lua` and `settle_success.lua`."""

    SETTLED = "settled"
    DEPENDENTS_LEFT = "dependents left"  # settled; many dependents are left to be enqueued
    ALREADY = "already"  # by this claim
    CANCELED = "canceled"  # while the job ran
    GONE = "gone"  # the job was deleted while it ran
    REFUSED = "refused"  # the claim is no longer the job's

    @classmethod
    def read(cls, reply: Any) -> SettleReply:
        """The member for a reply of Redis."""
        return MEMBERS.get(reply) or cls(decode(reply))

    @property
    def is_recorded(self) -> bool:
        """Whether the outcome of this claim is in Redis."""
        return self in RECORDED


RECORDED = (SettleReply.SETTLED, SettleReply.DEPENDENTS_LEFT, SettleReply.ALREADY)
MEMBERS = {member.value.encode(): member for member in SettleReply}  # Enum takes ten times as long
# The change of a job while it ran.
LOST_JOBS = {SettleReply.CANCELED: "canceled", SettleReply.GONE: "deleted"}
