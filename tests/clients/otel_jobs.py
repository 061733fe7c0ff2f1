"""A jobs module with the spans of rqjobs. They are written to the file SPANS as lines of JSON."""

import json
import os

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import rqjobs
from rqjobs import telemetry


class ToFile(SpanExporter):
    def export(self, spans):
        with open(os.environ["SPANS"], "a") as file:
            for span in spans:
                words = json.loads(span.to_json())
                file.write(
                    json.dumps({**words, "links": [_id(link) for link in span.links]}) + "\n"
                )
        return SpanExportResult.SUCCESS


def _id(link):
    return trace.format_span_id(link.context.span_id)


provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ToFile()))
trace.set_tracer_provider(provider)
telemetry.instrument()
if os.environ.get("RQ_INSTRUMENTED"):
    from opentelemetry_instrumentation_rq import RQInstrumentor

    RQInstrumentor().instrument()


def fine(name=None):
    """The trace that the job sees."""
    return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)


def fail():
    raise ValueError("why")


@rqjobs.job(retry=rqjobs.backoff(1, base=1, cap=0))
def fail_once():
    if rqjobs.client().incr("runs") == 1:
        raise ValueError("why")
