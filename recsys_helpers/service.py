"""The service: recommendations over HTTP, from the newest version in a folder.

    python -m recsys_helpers.service versions/ --port 8000

One process, one thread that answers; a version that appears is loaded beside and then takes over
between two requests. Needs the extra: `pip install 'recsys-helpers[serve]'`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import time

import numpy as np

try:
    import prometheus_client as prometheus
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    from recsys_helpers.messages import RecommendRequest, RecommendResponse, Refusal
except ModuleNotFoundError as error:
    needed = "the service needs more packages: `pip install 'recsys-helpers[serve]'`."
    raise ModuleNotFoundError(needed, name=error.name) from error

from recsys_helpers.serving import Answer, Query, Version
from recsys_helpers.versions import load_newest

MOST_BYTES = 1 << 18
STAGES = ("parsing", "read", "filter", "tower", "index", "answer")
SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)

log = logging.getLogger(__name__)


class _Metrics:
    """What `/metrics` shows, in a registry of its own."""

    def __init__(self):
        self.registry = registry = prometheus.CollectorRegistry()

        def counter(name, text, labels=()):
            return prometheus.Counter(name, text, labels, registry=registry)

        def gauge(name, text):
            return prometheus.Gauge(name, text, registry=registry)

        self.answers = counter("recommend_answers", "Answers.", ["source", "search"])
        self.refused = counter(
            "recommend_refused", "Requests refused, or failed (500).", ["status"]
        )
        self.unknown = counter("recommend_unknown", "Unknown ids or values.", ["kind"])
        self.asked = counter("recommend_history_items", "Ids in the histories of requests.")
        self.items = counter("recommend_items_shown", "Items shown.")
        self.popularity = counter(
            "recommend_shown_popularity", "Sum of the shown items' popularity, 0 to 1 by rank."
        )
        self.coverage = gauge("recommend_coverage", "Share of the catalogue shown by this version.")
        self.version = gauge("recommend_version", "Number of the version that answers.")
        self.loaded = gauge("recommend_version_loaded_timestamp_seconds", "When it took over.")
        self.failed = counter("recommend_reload_failures", "Versions that could not be loaded.")
        seconds = prometheus.Histogram(
            "recommend_seconds", "Time of a request.", ["stage"], registry=registry, buckets=SECONDS
        )
        self.seconds = {stage: seconds.labels(stage) for stage in (*STAGES, "total")}


class Service:
    """The version that answers now, and what is counted of its answers."""

    def __init__(self, folder, poll_seconds: float = 1.0):
        self.folder, self.poll_seconds = folder, poll_seconds
        self.metrics, self.version, self.damaged = _Metrics(), None, set()

    def load(self) -> None:
        """Take the newest version if it is another; called at the start, and then by `watch`."""
        now, damaged = self.version.number if self.version else 0, set(self.damaged)
        version = load_newest(self.folder, now, damaged)
        self.metrics.failed.inc(len(damaged - self.damaged))
        self.damaged = damaged
        if version is None:
            return
        popularity = version.popularity.argsort(kind="stable").argsort() / len(version.popularity)
        # One assignment: a request reads `current` once, so all of it is of one version.
        self.current = version, popularity, np.zeros(len(popularity), bool)
        self.version = version
        self.metrics.version.set(version.number)
        self.metrics.loaded.set_to_current_time()
        log.info("version %s answers", version.number)

    async def answer(self, version: Version, query: Query) -> Answer:
        """The version's answer to one query."""
        return version.recommend(query)

    async def watch(self) -> None:
        """Look for another version again and again, and load it in another thread."""
        while True:
            await asyncio.sleep(self.poll_seconds)
            try:
                await asyncio.to_thread(self.load)
            except Exception:  # whatever it is: the version that is there goes on answering
                log.exception("looking for another version failed")

    def count(self, answer: Answer, history: int, popularity, shown) -> None:
        """Count what an answer shows, and what its query had that is unknown."""
        metrics = self.metrics
        metrics.answers.labels(answer.source, answer.search).inc()
        metrics.asked.inc(history)
        for kind, number in answer.unknown.items():
            if number:
                metrics.unknown.labels(kind).inc(number)
        metrics.items.inc(len(answer.rows))
        metrics.popularity.inc(float(popularity[answer.rows].sum()))
        shown[answer.rows] = True


class _Limits:
    """ASGI middleware: refuses bodies that are too large, and notes when a request began."""

    def __init__(self, app, metrics: _Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, seen, begun = time.perf_counter(), 0, False
        scope.setdefault("state", {})["start"] = start

        async def counted():
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MOST_BYTES:
                raise _TooLarge
            return message

        async def sent(message):
            nonlocal begun
            begun = True
            await send(message)
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self.metrics.refused.labels(message["status"]).inc()

        try:
            await self.app(scope, counted, sent)
        except _TooLarge:
            if not begun:
                text = f"the body has more than {MOST_BYTES:,} bytes"
                await _refusal(413, [_reason(["body"], text, "too_large")])(scope, receive, sent)
        except Exception:  # Starlette answers it with 500, outside of this
            self.metrics.refused.labels(500).inc()
            raise
        finally:
            if scope["path"] == "/recommend":
                self.metrics.seconds["total"].observe(time.perf_counter() - start)


class _TooLarge(BaseException):
    """Not an Exception, which FastAPI would take for a body that can't be parsed."""


def create_app(folder: str | os.PathLike, poll_seconds: float = 1.0) -> FastAPI:
    """The application, for uvicorn or for a test.

    Args:
        folder: where versions are published.
        poll_seconds: how often to look for a newer one.

    Raises:
        FileNotFoundError: there is no complete version that can be loaded.
    """
    service = Service(folder, poll_seconds)
    if os.path.isdir(folder):
        service.load()
    if service.version is None:
        raise FileNotFoundError(
            f"{os.fspath(folder)} has no complete version that can be loaded. Publish one with "
            "`recsys_helpers.versions.publish`."
        )

    @contextlib.asynccontextmanager
    async def lifespan(app):
        watching = asyncio.create_task(service.watch())
        yield
        watching.cancel()

    app = FastAPI(
        title="Two towers",
        description="Recommendations by a user tower and an index of item vectors.",
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(_Limits, metrics=service.metrics)

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError):
        # Without the input, which may be long, or no text that can be sent back.
        reasons = [_reason(e["loc"], e["msg"], e["type"]) for e in error.errors()[:10]]
        sent = request.headers.get("content-type") or "none"
        unread = reasons[0]["loc"] == ["body"] and reasons[0]["type"] != "missing"
        if unread and "json" not in sent.lower():
            text = f"send it with the header content-type: application/json, received {sent}"
            reasons = [_reason(["header", "content-type"], text, "content_type")]
        return _refusal(422, reasons)

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException):
        unreadable = error.status_code == 400  # FastAPI's, of a body that isn't JSON
        return _refusal(
            422 if unreadable else error.status_code,
            [_reason(["body"] if unreadable else [], str(error.detail), "http")],
            error.headers,
        )

    @app.post(
        "/recommend",
        response_model=RecommendResponse,
        responses={413: {"model": Refusal}, 422: {"model": Refusal}},
        openapi_extra={
            "requestBody": {"content": {"application/json": {"examples": _examples(service)}}}
        },
    )
    async def recommend(body: RecommendRequest, request: Request):
        """The k best items for a user, without those the user knows."""
        parsed = time.perf_counter()
        version, popularity, shown = service.current
        try:
            answer = await service.answer(version, Query(**dict(body)))
        except ValueError as error:
            return _refusal(422, [_reason(["body"], str(error), "value_error")])
        begin = time.perf_counter()
        text = _rendered(version, answer)
        service.count(answer, len(body.history or ()), popularity, shown)
        seconds = {"parsing": parsed - request.scope["state"]["start"], **answer.seconds}
        seconds["answer"] = time.perf_counter() - begin
        for stage, value in seconds.items():
            service.metrics.seconds[stage].observe(value)
        timing = ", ".join(f"{stage};dur={1000 * value:.4f}" for stage, value in seconds.items())
        return Response(text, media_type="application/json", headers={"Server-Timing": timing})

    @app.get("/health")
    async def health():
        """Whether requests are answered."""
        return {"status": "ok", "version": service.version.number}

    @app.get("/version")
    async def version():
        """What answers now."""
        version = service.version
        about = {n: version.about.get(n) for n in ("dataset", "fingerprint", "created", "repeats")}
        return about | {
            "version": version.number,
            "items": len(version.items),
            "users": len(version.users),
            "index": type(version.index).__name__,
            "dimension": version.index.dimension,
            "filters": sorted(version.rows_with),
            "profile": sorted(version.about["codes"]),
        }

    @app.get("/metrics", response_class=Response)
    async def metrics():
        """The same in numbers, for Prometheus."""
        service.metrics.coverage.set(service.current[2].mean())
        text = prometheus.generate_latest(service.metrics.registry)
        return Response(text, media_type=prometheus.CONTENT_TYPE_LATEST)

    return app


def _rendered(version: Version, answer: Answer) -> str:
    """JSON in ASCII, because a title may hold anything."""
    items = [
        {"item_id": version.original_ids[row], "title": version.titles[row], "score": score}
        for row, score in zip(answer.rows.tolist(), answer.scores.tolist(), strict=True)
    ]
    return json.dumps(
        {
            "version": answer.version,
            "source": answer.source,
            "items": items,
            "unknown": {kind: number for kind, number in answer.unknown.items() if number},
        }
    )


def _reason(loc, msg: str, type: str) -> dict:
    return {"loc": [str(place)[:100] for place in loc], "msg": msg[:500], "type": type}


def _refusal(status: int, detail: list[dict], headers=None) -> Response:
    text = json.dumps({"detail": detail})
    return Response(text, status, headers=headers, media_type="application/json")


def _examples(service: Service) -> dict:
    """Requests that work with the version of the start."""
    version = service.version
    ids, user = version.original_ids, version.users[:1].tolist()[0]
    examples = {
        "known user": {"user_id": user, "k": 5},
        "history": {"history": ids[:3], "k": 5},
        "nobody": {"k": 3},
        "left out": {"user_id": user, "exclude": ids[:2], "k": 5},
        "allow-list": {"history": ids[:1], "allow": ids[:20], "k": 5},
    }
    for field, codes in version.about["codes"].items():
        if codes:
            profile = {field: next(iter(codes))}
            examples["history and profile"] = {"history": ids[:3], "profile": profile, "k": 5}
    for field, values in version.rows_with.items():
        filters = {field: [next(iter(values))]}
        examples.setdefault("filter", {"user_id": user, "filters": filters, "k": 5})
    return {name: {"value": value} for name, value in examples.items()}


def main(arguments=None) -> None:
    """Serve a folder of versions."""
    import uvicorn

    parser = argparse.ArgumentParser(description="Serve the newest version in a folder.")
    parser.add_argument("folder", help="of versions, see recsys_helpers.versions.publish")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from elsewhere")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--poll-seconds", type=float, default=1.0)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO)
    try:
        app = create_app(given.folder, given.poll_seconds)
    except FileNotFoundError as error:
        parser.exit(1, f"{error}\n")
    uvicorn.run(app, host=given.host, port=given.port, access_log=False)


if __name__ == "__main__":
    main()
