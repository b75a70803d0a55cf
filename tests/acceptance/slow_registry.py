"""A registry of one image that hands out half of a layer and then waits until it is told to go on."""

import contextlib
import hashlib
import http.server
import json
import threading

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
WAIT_SECONDS = 120


class Registry:
    """Serves `name` at `address`, over plain HTTP, as a registry on this machine does."""

    def __init__(self, layer, config, name="slow"):
        self.asked, self.may_end = threading.Event(), threading.Event()
        self._blobs = {_digest(layer): layer, _digest(config): config}
        self._layer = _digest(layer)
        self._manifest = json.dumps({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _said("application/vnd.oci.image.config.v1+json", config),
            "layers": [_said("application/vnd.oci.image.layer.v1.tar", layer)],
        }).encode()  # fmt: skip
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                registry.answer(self)

            def do_HEAD(self):
                registry.answer(self)

            def log_message(self, *_):
                """Says nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.image = f"{self.address}/{name}:1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.may_end.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_SECONDS)

    def answer(self, request):
        kind, what = request.path.rstrip("/").split("/")[-2:]
        if kind == "manifests":
            self._send(request, self._manifest, MANIFEST)
        elif kind == "blobs" and what in self._blobs:
            self._send(request, self._blobs[what], "application/octet-stream", is_slow=what == self._layer)
        elif what == "v2":
            self._send(request, b"{}", "application/json")
        else:
            request.send_error(404)

    def _send(self, request, content, kind, is_slow=False):
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("Docker-Content-Digest", _digest(content))
        request.end_headers()
        if request.command == "HEAD":
            return
        half = len(content) // 2 if is_slow else len(content)
        with contextlib.suppress(ConnectionError):
            request.wfile.write(content[:half])
            if is_slow:
                self.asked.set()
                self.may_end.wait(WAIT_SECONDS)
                request.wfile.write(content[half:])


def _digest(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _said(kind, content):
    return {"mediaType": kind, "size": len(content), "digest": _digest(content)}
