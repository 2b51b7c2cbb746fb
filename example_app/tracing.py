"""Spans kept in memory and printed as a tree. A real service sends them to a collector: another span processor."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence

from opentelemetry import context, trace
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind

from fastapi_http_client import get_request_id


class SpanMemory(SpanProcessor):
    """The latest spans of this process, each marked with the id of the request that it belongs to."""

    def __init__(self) -> None:
        self._spans: deque[Span] = deque(maxlen=500)

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        request_id = get_request_id()
        if request_id is not None:
            span.set_attribute("request.id", request_id)
        self._spans.append(span)

    async def tree(self, request_id: str) -> str:
        """The latest trace of a request id, indented by parent; empty when there is none."""
        marked = [span for span in tuple(self._spans) if (span.attributes or {}).get("request.id") == request_id]
        if not marked:
            return ""
        trace_id = marked[-1].context.trace_id
        family = [span for span in tuple(self._spans) if span.context.trace_id == trace_id]
        for _ in range(100):  # a service ends its span after it has answered: a moment later than the curl before
            if not any(span.is_recording() for span in family):
                break
            await asyncio.sleep(0.01)
        return "\n".join(_lines(family, parent=None)) + "\n"


def _lines(family: Sequence[Span], parent: int | None, indent: str = "") -> Iterator[str]:
    for span in family:
        if (span.parent.span_id if span.parent else None) != parent:
            continue
        if span.kind is SpanKind.INTERNAL:  # FastAPI's own steps: left out, not what is under them
            yield from _lines(family, span.context.span_id, indent)
            continue
        attributes = span.attributes or {}
        resend = attributes.get("http.request.resend_count")
        yield f"{indent}{span.kind.name.lower()} {span.name}: {attributes.get('http.response.status_code')}" + (
            f", resend {resend}" if resend else ""
        )
        yield from _lines(family, span.context.span_id, indent + "  ")


spans = SpanMemory()


def start() -> None:
    """Collect the spans of this process: FastAPI's of what comes in, the clients' of what goes out."""
    provider = TracerProvider()
    provider.add_span_processor(spans)
    trace.set_tracer_provider(provider)
