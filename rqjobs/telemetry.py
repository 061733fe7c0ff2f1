"""OpenTelemetry: a span *send* for each enqueue and a span *process* for each run, in one trace.

They follow the conventions for messaging. A module of RQJOBS_MODULES turns them on, so that the
workers have them too:

    from rqjobs import telemetry

    telemetry.instrument()

It needs opentelemetry-api. The application sets up the SDK and its exporter.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from rqjobs import hooks, texts
from rqjobs.broker.keys import decode

try:
    from opentelemetry import propagate, trace
except ImportError:
    trace = None

log = logging.getLogger("rqjobs")
HEADERS = "rqjobs_trace"  # in the meta of a job: the context of its enqueue, as HTTP headers
MAX_HEADERS = 10
MAX_HEADER_CHARACTERS = 8192
SYSTEM = "rq"
# Modules of instrumentations of RQ itself. While one is active, ours is silent.
RQ_INSTRUMENTATIONS = ("opentelemetry_instrumentation_rq", "opentelemetry.instrumentation.rq")

FLUSH_MILLISECONDS = 3000  # at the end of a process that runs jobs

_tracer: Any = None
_provider: Any = None  # None: the global one
_flushes_in = 0  # the process that sends its last spans at its end


def instrument(tracer_provider: Any = None) -> None:
    """Make spans from now on, with this provider or the global one. A second call replaces it.

    While opentelemetry-instrumentation-rq is active there are only its spans.

    Raises:
        RuntimeError: opentelemetry-api is not installed.
    """
    global _tracer, _provider
    if trace is None:
        raise RuntimeError("telemetry needs OpenTelemetry: pip install opentelemetry-api")
    _tracer = trace.get_tracer("rqjobs", tracer_provider=tracer_provider)
    _provider = tracer_provider
    hooks.before_enqueue(_send)
    hooks.around_run(_process)


def uninstrument() -> None:
    """Make no more spans."""
    hooks.before_enqueue.remove(_send)
    hooks.around_run.remove(_process)


def _send(job: Any) -> None:
    """The span of an enqueue, whose context travels in the job's meta.

    It ends before the job is stored, because a pipeline or an outbox stores the job at a later time.
    An error of a propagator or of a span processor is logged: another hook may refuse a job, not this.
    """
    if _is_instrumented_otherwise():
        return
    try:
        _make_send_span(job)
    except Exception as error:
        log.error("Job %s: its span of the enqueue failed: %s", job.id, texts.describe_error(error))


def _make_send_span(job: Any) -> None:
    attributes = _attributes(job, "send")
    with _tracer.start_as_current_span(
        f"send {job.origin}", kind=trace.SpanKind.PRODUCER, attributes=attributes
    ):
        headers: dict[str, str] = {}
        propagate.inject(headers)
        if headers := _within_limits(headers):
            job.meta[HEADERS] = headers


def _process(job: Any) -> Iterator[None]:
    """The span of a run: a child of the span of its enqueue, and linked to it."""
    if _is_instrumented_otherwise():
        yield
        return
    _flush_at_exit()
    context = propagate.extract(_headers(job))
    sent = trace.get_current_span(context).get_span_context()
    links = [trace.Link(sent)] if sent.is_valid else []
    with _tracer.start_as_current_span(
        f"process {job.origin}",
        context=context,
        kind=trace.SpanKind.CONSUMER,
        attributes=_attributes(job, "process"),
        links=links,
    ):
        yield


def _flush_at_exit() -> None:
    """Send the last spans of this process at its end. A horse has to register that itself."""
    global _flushes_in
    if _flushes_in != os.getpid():
        _flushes_in = os.getpid()
        atexit.register(_flush)


def _flush() -> None:
    provider = _provider or trace.get_tracer_provider()
    if hasattr(provider, "force_flush"):  # the API alone has none
        provider.force_flush(FLUSH_MILLISECONDS)


def _attributes(job: Any, operation: str) -> dict[str, str]:
    attributes = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": job.origin,
        "messaging.message.id": job.id,
        "code.function.name": str(job.func_name),
    }
    schedule = (job.hash_as_read or {}).get(b"rqjobs_schedule")
    if schedule:
        attributes["rqjobs.schedule"] = decode(schedule)
    return attributes


def _headers(job: Any) -> dict[str, str]:
    """The headers in the job's meta, which any client of Redis may have written."""
    stored = job.meta.get(HEADERS) if isinstance(job.meta, dict) else None
    return _within_limits(stored)


def _within_limits(stored: Any) -> dict[str, str]:
    """The headers that a run reads. A longer one would only make the job larger."""
    if not isinstance(stored, dict) or len(stored) > MAX_HEADERS:
        return {}
    return {
        name: value
        for name, value in stored.items()
        if isinstance(name, str) and isinstance(value, str) and len(value) < MAX_HEADER_CHARACTERS
    }


def _is_instrumented_otherwise() -> bool:
    for name in RQ_INSTRUMENTATIONS:
        instrumentor = getattr(sys.modules.get(name), "RQInstrumentor", None)
        if instrumentor and instrumentor().is_instrumented_by_opentelemetry:
            return True
    return False
