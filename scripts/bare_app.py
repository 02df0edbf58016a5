"""A bare FastAPI app that streams given pieces, one per turn of its event loop: what the framework
and the connection cost without an engine. `bench_server.py` starts it: bare_app.py FOLDER."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse


def run_bare_app(pieces_file: Path, port_file: Path) -> None:
    """What FastAPI costs by itself."""
    app = FastAPI()
    pieces: list[bytes] = []

    @app.post("/load")
    def load() -> Response:
        pieces[:] = [piece.encode() for piece in json.loads(pieces_file.read_text())]
        return Response(b"{}")

    @app.post("/stream")
    async def stream(request: Request) -> StreamingResponse:
        await request.json()

        async def events() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece
                await asyncio.sleep(0)

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.post("/whole")
    async def whole(request: Request) -> Response:
        await request.json()
        return Response(pieces[0], media_type="application/json")

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            unfinished = port_file.with_suffix(".new")
            unfinished.write_text(str(self.servers[0].sockets[0].getsockname()[1]))
            unfinished.rename(port_file)

    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off")
    Server(config).run()


if __name__ == "__main__":
    run_bare_app(Path(sys.argv[1]) / "pieces", Path(sys.argv[1]) / "port")
