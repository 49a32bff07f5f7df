"""As much of a W&B server as its client needs to begin a run and send its history."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """Listens on loopback until it is closed.

    Attributes:
        port: a free one.
        text: all that was asked of it.
    """

    def __init__(self) -> None:
        outer = self
        self.text = ""

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0))).decode(
                    errors="replace"
                )
                outer.text += body
                answer = outer._answer(json.loads(body)) if self.path == "/graphql" else {}
                content = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_PUT = do_POST

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        if "upsertBucket" in request["query"]:
            name = request["variables"]["name"]
            project = {"id": "p", "name": "infnet", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": name, "displayName": name, "project": project}
            data = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        elif "createRunFiles" in request["query"]:
            url = f"http://127.0.0.1:{self.port}/file"
            files = [{"name": name, "uploadUrl": url} for name in request["variables"]["files"]]
            data = {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {"data": data}
