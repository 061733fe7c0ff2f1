"""RQ's results as they are stored: read within limits, and with the exception of a failure."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from rq.results import Result

from rqjobs.job_fields import read_traceback

_rq_restore_result = Result.restore.__func__  # type: ignore[attr-defined]


class BoundedResult(Result):
    """RQ's result with a traceback that is read within limits.

    `rq_patches` puts its `restore` in the place of RQ's; a user's program uses it without patches.
    """

    @classmethod
    def restore(
        cls, job_id: str, result_id: str, payload: Any, *args: Any, **options: Any
    ) -> Result:
        """Make a result of an entry of a job's results."""
        fields = dict(payload)
        trace = fields.pop(b"exc_string", None)
        result: Result = _rq_restore_result(cls, job_id, result_id, fields, *args, **options)
        if trace:
            result.exc_string = read_traceback(b64decode(trace))
        return result


class FailureResult(Result):
    """RQ's result of a failure, with the exception as `raised.pack` writes it."""

    raised = ""

    def serialize(self) -> dict[str, Any]:
        """The fields of its entry."""
        fields: dict[str, Any] = super().serialize()
        if self.raised:
            fields["rqjobs_error"] = self.raised
        return fields
