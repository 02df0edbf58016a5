"""GET /metrics: what Prometheus scrapes."""

from fastapi import APIRouter, Request, Response

from tokasaurus.observability.prometheus import CONTENT_TYPE, PrometheusExporter
from tokasaurus.server.state import state_of

router = APIRouter(tags=["operations"])


@router.get(
    "/metrics",
    summary="Metrics in Prometheus' text format",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    totals = state_of(request).totals
    await totals.refresh()
    body = PrometheusExporter(totals.measurements, totals.pids).render()
    return Response(body, headers={"content-type": CONTENT_TYPE})
