"""The HTTP around a service: routes, limits, and which error becomes which status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from krl_runtime._version import __version__
from krl_runtime.errors import ImageError, KrlError, UsageError
from krl_runtime.pipelines.batching import OverloadedError
from krl_runtime.pipelines.classifier import Classifier
from krl_runtime.pipelines.image import ImagePipeline
from krl_runtime.retrieval.gallery import Index

from . import protocol
from .config import ServeConfig
from .encoding import ENCODINGS, TooLargeError, check_encoding
from .forms import FORM, is_form, sample_from
from .metrics import CONTENT_TYPE, Metrics
from .service import BusyError, Service
from .statistics import configuration

__all__ = ["make_app"]

_log = logging.getLogger("krl")

_STATUS: tuple[tuple[type[KrlError], int], ...] = (
    (TooLargeError, 413),
    (ImageError, 400),
    (UsageError, 400),
    (KrlError, 500),
)
# Of all other backends: "onnxruntime_onnx".
_PLATFORMS = {"tensorrt": "tensorrt_plan", "tensorrt-rtx": "tensorrt_rtx_plan"}
_LARGEST_DISCARD = 4  # times the largest body: so much of a refused one is read, so that its sender gets the response
_LAST_SECONDS = 0.2  # for threads to end after their last requests, which had grace_seconds
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'"
)

_Handler = Callable[[Request, bytes], Coroutine[Any, Any, Response]]


def make_app(model: ImagePipeline[Any], config: ServeConfig, index: Index | None = None) -> Starlette:
    """Return the server as an ASGI application; its lifespan ends the threads.

    Args:
        model: The loaded model.
        config: The limits; ``host`` and ``port`` are not used here.
        index: What an embedding network searches in.
    """
    return _Application(model, config, index).asgi()


class _Application:
    def __init__(self, model: ImagePipeline[Any], config: ServeConfig, index: Index | None) -> None:
        self._config, self._gallery = config, index
        self._metrics = Metrics()
        self._service = Service(model, config, self._metrics)
        self._page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    def asgi(self) -> Starlette:
        prefixes = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        per_model = [
            Route(prefix + path, endpoint, methods=[method])
            for prefix in prefixes
            for path, endpoint, method in (
                ("", self._model_metadata, "GET"),
                ("/ready", self._ready, "GET"),
                ("/config", self._configuration, "GET"),
                ("/stats", self._statistics, "GET"),
                ("/infer", self._guarded("infer", self._infer), "POST"),
            )
        ]
        application = Starlette(
            routes=[
                Route("/", self._show_page),
                *self._image_routes(),
                Route("/metrics", self._show_metrics),
                Route("/v2", self._server_metadata),
                Route("/v2/health", self._health),
                Route("/v2/health/live", self._live),
                Route("/v2/health/ready", self._ready),
                Route("/v2/models/stats", self._statistics),
                Route("/v2/repository/index", self._index, methods=["POST"]),
                *per_model,
            ],
            exception_handlers={HTTPException: _http_error, Exception: _failure},
            lifespan=self._lifespan,
        )
        application.router.redirect_slashes = False  # a redirection would be an answer that is not JSON
        application.state.service = self._service
        return application

    def _image_routes(self) -> list[Route]:
        """Return the routes that take an image as it is, by what the model gives for one."""
        if isinstance(self._service.model, Classifier):
            found = {"classify": self._classify}
        else:
            found = {"embed": self._embed, **({} if self._gallery is None else {"search": self._search})}
        return [Route(f"/{name}", self._guarded(name, each), methods=["POST"]) for name, each in found.items()]

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self._service.close(_LAST_SECONDS)

    # Requests that do not run the model

    async def _show_page(self, _: Request) -> Response:
        return HTMLResponse(self._page, headers={"Content-Security-Policy": _POLICY})

    async def _show_metrics(self, _: Request) -> Response:
        return Response(self._metrics.render(self._service), headers={"Content-Type": CONTENT_TYPE})

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, request: Request) -> Response:
        self._check_model(request)
        ready = await self._service.ready()
        return JSONResponse({"name": self._service.name, "ready": ready}, 200 if ready else 503)

    async def _health(self, _: Request) -> Response:
        ready = await self._service.ready()
        # Paths of this machine are nothing for clients.
        gallery = None if self._gallery is None else replace(self._gallery, path=None).to_dict()
        searches = {} if gallery is None else {"index": gallery}
        status = {"live": True, "ready": ready, **self._service.status(), **searches}
        return JSONResponse(status, 200 if ready else 503)

    async def _server_metadata(self, _: Request) -> Response:
        return JSONResponse({"name": "krl", "version": __version__, "extensions": list(protocol.EXTENSIONS)})

    async def _model_metadata(self, request: Request) -> Response:
        self._check_model(request)
        manifest = self._service.model.bundle.manifest
        return JSONResponse(
            {
                "name": self._service.name,
                "versions": ["1"],
                "platform": self._platform(),
                "inputs": protocol.describe(manifest.inputs),
                "outputs": protocol.describe(manifest.outputs),
            }
        )

    def _platform(self) -> str:
        return _PLATFORMS.get(self._service.model.backend.name, "onnxruntime_onnx")

    async def _configuration(self, request: Request) -> Response:
        self._check_model(request)
        bundle = self._service.model.bundle
        limit = bundle.batch_limit if self._config.max_batch == 1 else min(bundle.batch_limit, self._config.max_batch)
        manifest = bundle.manifest
        return JSONResponse(
            configuration(self._service.name, self._platform(), limit, manifest.inputs, manifest.outputs)
        )

    async def _statistics(self, request: Request) -> Response:
        self._check_model(request)
        return JSONResponse({"model_stats": [self._metrics.statistics.to_dict(self._service.name)]})

    async def _index(self, _: Request) -> Response:
        ready = await self._service.ready()
        state = {"state": "READY", "reason": ""} if ready else {"state": "UNAVAILABLE", "reason": self._service.fault}
        return JSONResponse([{"name": self._service.name, "version": "1", **state}])

    def _check_model(self, request: Request) -> None:
        name, version = request.path_params.get("model", self._service.name), request.path_params.get("version", "1")
        if (name, version) != (self._service.name, "1"):
            raise HTTPException(
                404, f"no model {name!r} of version {version!r} here; accepted: {self._service.name!r} of version '1'"
            )

    # Requests that run the model

    async def _classify(self, request: Request, body: bytes) -> Response:
        count, model = _top_k(request), self._service.model
        return JSONResponse(
            await self._service.respond(
                self._sample(request, body),
                lambda outputs: model.interpret_outputs(outputs, top_k=count)[0].to_dict(logits=False),
            )
        )

    async def _embed(self, request: Request, body: bytes) -> Response:
        model = self._service.model
        return JSONResponse(
            await self._service.respond(
                self._sample(request, body), lambda outputs: model.interpret_outputs(outputs)[0].to_dict()
            )
        )

    async def _search(self, request: Request, body: bytes) -> Response:
        count, model, index = _top_k(request), self._service.model, self._gallery
        assert index is not None  # noqa: S101  for the type checker: without it there is no such route

        def found(outputs: dict[str, Any]) -> dict[str, Any]:
            return index.search(model.interpret_outputs(outputs)[0], count)[0].to_dict()

        return JSONResponse(await self._service.respond(self._sample(request, body), found, long=True))

    def _sample(self, request: Request, body: bytes) -> bytes | dict[str, bytes | str]:
        """Return the image or the sample of a request; see ``forms.sample_from``."""
        content_type = request.headers.get("content-type", "")
        if content_type.startswith("multipart/") and not is_form(content_type):
            raise HTTPException(415, f"a body of {content_type[:80]} is not accepted; send an image, or {FORM}")
        query = [(name, value) for name, value in request.query_params.multi_items() if name != "top_k"]
        return sample_from(body, content_type, query, self._service.model.inputs)

    async def _infer(self, request: Request, body: bytes) -> Response:
        self._check_model(request)
        text = request.headers.get(protocol.HEADER)
        if text is not None and not (text.isascii() and text.isdecimal() and len(text) < 19):
            raise UsageError(f"{protocol.HEADER} is {text!r}; accepted: a number of bytes")
        content, length = await self._service.infer(body, None if text is None else int(text))
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={protocol.HEADER: str(length)})

    def _guarded(self, endpoint: str, handler: _Handler) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return a handler with limits, which turns errors into responses, and counts and times requests."""

        async def handle(request: Request) -> Response:
            begin = perf_counter()
            response = await self._respond(request, handler)
            self._metrics.request(endpoint, response.status_code, perf_counter() - begin)
            return response

        return handle

    async def _respond(self, request: Request, handler: _Handler) -> Response:
        try:
            with self._service.arrival() as hold:
                body = await self._body(request, hold)
                with self._service.slot():
                    return await _unless_gone(request, handler(request, body))
        except HTTPException as error:
            return _error(error.status_code, error.detail, error.headers)
        except (BusyError, OverloadedError) as error:
            return _error(503, str(error), {"Retry-After": "1"})
        except KrlError as error:
            return _error(next(status for kind, status in _STATUS if isinstance(error, kind)), str(error))
        except ClientDisconnect:
            return _error(400, "the client went away before the request was complete")
        except asyncio.CancelledError:  # grace_seconds are over
            return _error(503, "the server is stopped before the request was complete", {"Connection": "close"})
        except Exception as error:
            return await _failure(request, error)

    async def _body(self, request: Request, hold: Callable[[int], bool]) -> bytes:
        """Return the body, read within the limits. Slow clients hold no slot: those are for bodies that are here."""
        try:
            encoding = check_encoding(",".join(request.headers.getlist("content-encoding")))
        except UsageError as error:
            raise HTTPException(415, str(error), {"Accept-Encoding": ", ".join(ENCODINGS)}) from error
        refusal: KrlError | None = self._service.refusal()
        if int(request.headers.get("content-length", "0")) > self._config.max_body_bytes:
            refusal = self._too_large()
        # A client that asks first (Expect: 100-continue) gets its response before it sends anything.
        if refusal is not None and "expect" in request.headers:
            raise refusal
        body = await self._read(request, hold, refusal)
        if encoding == "identity":
            return body
        body = await self._service.unpack(body, encoding)
        if not hold(len(body)):
            raise _no_memory()
        return body

    async def _read(self, request: Request, hold: Callable[[int], bool], refusal: KrlError | None) -> bytes:
        """Return the body. If it is refused, read on a while before that is raised.

        A client that is still sending would lose the response when the connection is closed.
        """
        chunks: list[bytes] = []
        size = 0

        async def read() -> None:
            nonlocal size, refusal
            async for chunk in request.stream():
                size += len(chunk)
                if refusal is None and size > self._config.max_body_bytes:
                    refusal = self._too_large()
                elif refusal is None and not hold(len(chunk)):
                    refusal = _no_memory()
                if refusal is None:
                    chunks.append(chunk)
                    continue
                chunks.clear()
                if size > _LARGEST_DISCARD * self._config.max_body_bytes:
                    return

        try:
            await asyncio.wait_for(read(), self._config.read_seconds)
        except asyncio.TimeoutError as error:
            late = f"the body did not arrive within {self._config.read_seconds:g} seconds"
            raise refusal or HTTPException(408, late) from error
        if refusal is not None:
            raise refusal
        return b"".join(chunks)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the body is larger than {self._config.max_body_bytes} bytes, which is the limit")


def _top_k(request: Request) -> int:
    """Return how many classes or neighbors a request asks for.

    Raises:
        UsageError: It is no number from 1 on.
    """
    text = request.query_params.get("top_k", "5")
    if not (text.isascii() and text.isdecimal() and 1 <= len(text) <= 6 and int(text)):
        raise UsageError(f"top_k is {text!r}; accepted: 1 or more")
    return int(text)


def _no_memory() -> BusyError:
    return BusyError("the bodies of other requests take all memory that is for them; try again in a second")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Return the response; cancel the work when the client closes its connection.

    Raises:
        ClientDisconnect: It did.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _failure(_: Request, error: Exception) -> Response:
    """Return the response to an error that is a fault of krl."""
    _log.error("a request failed; this is a failure of krl, please report it", exc_info=error)
    return _error(500, "an unexpected failure; the server's log has it")


async def _http_error(_: Request, error: Exception) -> Response:
    """Return the response to errors that starlette raises itself (404, 405), as the protocol wants it."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type only
    return _error(error.status_code, error.detail, error.headers)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    if status in (408, 413):  # the rest of the body may still be on its way
        headers = {"Connection": "close"}
    return JSONResponse({"error": message}, status, headers=headers)
