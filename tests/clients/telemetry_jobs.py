"""A jobs module with OpenTelemetry. Spans are written to the file SPANS as lines of JSON."""

import json
import os

from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry_instrumentation_rq import RQInstrumentor

import rqjobs


class ToFile(SpanExporter):
    def export(self, spans):
        with open(os.environ["SPANS"], "a") as file:
            for span in spans:
                file.write(
                    json.dumps(
                        {
                            "name": span.name,
                            "status": span.status.status_code.name,
                            "job": span.attributes.get("rq.job.id"),
                            "trace": trace.format_trace_id(span.context.trace_id),
                            "events": [
                                event.attributes["exception.message"] for event in span.events
                            ],
                        }
                    )
                    + "\n"
                )
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ToFile()))
trace.set_tracer_provider(provider)
RQInstrumentor().instrument()


def fine(name):
    return name


def fail(name):
    raise ValueError(name)


def leave_baggage(name):
    """Attach `name` to the context without detaching it; returns the name attached before."""
    earlier = baggage.get_baggage("name")
    context.attach(baggage.set_baggage("name", name))
    return earlier


@rqjobs.job(retry=rqjobs.backoff(1, base=1, cap=0))
def fail_once():
    if rqjobs.client().incr("runs") == 1:
        raise ValueError("why")


def discard():
    raise rqjobs.Discard("why")


@rqjobs.hooks.around_run
def span(job):
    if job.func_name == "telemetry_jobs.fail_once":
        with trace.get_tracer("hook").start_as_current_span("hook"):
            yield
    else:
        yield
