"""A server that stands in for the Hugging Face hub, and can be made to fail as networks and hubs do."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from serving import start

COMMIT = "5812e510083bb2d23fa43778a39ac065d205ed4d"


def clip_files() -> dict[str, bytes]:
    """What the repository of a tiny CLIP has, with pickles among it that nobody may ask for."""
    config = {
        "model_type": "clip",
        "projection_dim": 8,
        "text_config": {"max_position_embeddings": 16, "vocab_size": 300, "projection_dim": 8},
        "vision_config": {"image_size": 32, "projection_dim": 8},
    }
    pictures = {"size": 32, "crop_size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    return {
        "config.json": json.dumps(config).encode(),
        "preprocessor_config.json": json.dumps(pictures).encode(),
        "tokenizer.json": b'{"model": {}}',
        "README.md": b"---\nlanguage: en\nlicense: mit\n---\n# A tiny CLIP\n",
        "onnx/text_model.onnx": bytes(range(256)) * 1200,
        "onnx/vision_model.onnx": bytes(range(255, -1, -1)) * 1600,
        "onnx/text_model_quantized.onnx": b"t" * 1000,
        "onnx/vision_model_quantized.onnx": b"v" * 1000,
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"both towers",
    }


@dataclass
class Request:
    """One that the server has had."""

    path: str
    range: str | None
    authorization: str | None
    port: int


@dataclass
class HubServer:
    """Use as a context manager. Change the fields to change what the server does.

    cut: file → bytes after which the connection breaks, one number for each of the next requests. altered: files whose
    first byte comes changed. silent: most seconds of silence in the middle of a file, and again before its rest; it
    ends when `released` is set. status: file or `api` → HTTP status and X-Error-Code. ranges: whether parts of files
    can be had. elsewhere: send large files from another port.
    """

    models: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"tiny/clip": clip_files()})
    cut: dict[str, list[int]] = field(default_factory=dict)
    altered: set[str] = field(default_factory=set)
    silent: dict[str, float] = field(default_factory=dict)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    ranges: bool = True
    elsewhere: bool = False
    requests: list[Request] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._servers = [_server(self), _server(self)]
        self.port, self.other_port = (server.server_address[1] for server in self._servers)
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def asked(self) -> list[str]:
        """The files that were requested, in order."""
        return [r.path.partition(f"/resolve/{COMMIT}/")[2] for r in self.requests if "/resolve/" in r.path]

    def listing(self, name: str) -> dict[str, Any]:
        """What the hub's API says of a model."""
        siblings: list[dict[str, Any]] = []
        for path, content in self.models[name].items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": git_digest(content)}
            if path.endswith((".onnx", ".bin", ".safetensors")):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 130}
            siblings.append(entry)
        return {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}


def git_digest(content: bytes) -> str:
    """Git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _server(hub: HubServer) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            headers = self.headers
            hub.requests.append(Request(path, headers["Range"], headers["Authorization"], self.server.server_port))
            if path.startswith("/api/models/"):
                self._api(path.removeprefix("/api/models/"))
            elif "/resolve/" in path:
                name, _, rest = path[1:].partition("/resolve/")
                self._file(name, rest.partition("/")[2])
            else:
                self._answer(404, b"{}")

        def _api(self, name: str) -> None:
            if "api" in hub.status:
                status, code = hub.status["api"]
                self._answer(status, b'{"error": "no"}', {"X-Error-Code": code} if code else {})
            elif name in hub.models:
                self._answer(200, json.dumps(hub.listing(name)).encode(), {"Content-Type": "application/json"})
            else:
                self._answer(401, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})

        def _file(self, name: str, file: str) -> None:
            if file in hub.status:
                status, code = hub.status[file]
                self._answer(status, b"", {"X-Error-Code": code} if code else {})
                return
            if hub.elsewhere and self.server.server_port == hub.port:
                self._answer(302, b"", {"Location": f"http://127.0.0.1:{hub.other_port}{self.path}"})
                return
            content = hub.models[name][file]
            if file in hub.altered:
                content = bytes([content[0] ^ 1]) + content[1:]
            begin = 0
            if hub.ranges and self.headers["Range"]:
                begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            extra = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
            self._answer(206 if begin else 200, content[begin:], extra, file)

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, file: str = "") -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cuts = hub.cut.get(file)
            if cuts:
                self.wfile.write(body[: cuts.pop(0)])
                self.close_connection = True
                return
            if file in hub.silent:
                self.wfile.write(b"" if status == 206 else body[: len(body) // 2])
                self.wfile.flush()
                hub.released.wait(hub.silent[file])
                self.close_connection = True
                return
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return start(Handler)
