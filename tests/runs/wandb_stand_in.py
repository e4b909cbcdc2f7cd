"""A W&B on loopback, and what wandb wrote down of a run's page."""

import json
import struct
import threading
import time
from collections.abc import Iterator
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Page:
    """What the logs of a run hold, complete: `finish` does not wait for the disk."""

    def __init__(self, run: Path) -> None:
        for _ in range(300):
            files = sorted(run.glob("wandb/*run-*/*.wandb"))
            logs = [list(_records(file)) for file in files]
            if all(log and log[-1].HasField("exit") for log in logs):
                break
            time.sleep(0.1)
        self.records = [record for log in logs for record in log]

    def all_of(self, kind: str) -> list:
        return [getattr(r, kind) for r in self.records if r.HasField(kind)]

    @cached_property
    def steps(self) -> list[dict]:
        return [_named(history.item) for history in self.all_of("history")]

    @property
    def summary(self) -> dict:
        return _named(item for s in self.all_of("summary") for item in s.update)

    def artifacts(self, kind: str) -> list:
        sent = [r.request.log_artifact.artifact for r in self.records]
        sent += [r.artifact for r in self.records]
        return [artifact for artifact in sent if artifact.type == kind]


def files_of(artifact) -> dict[str, str]:
    """Path in the artifact -> file."""
    return {entry.path: entry.local_path for entry in artifact.manifest.contents}


def _records(path: Path) -> Iterator:
    """The protobufs of a log in LevelDB's format."""
    from wandb.proto import wandb_internal_pb2

    header, block, (full, last) = 7, 2**15, (1, 4)  # bytes, and kinds of chunks
    data, at, message = path.read_bytes(), header, b""
    while at + header <= len(data):
        if block - at % block < header:  # padding
            at += block - at % block
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        message += data[at + header : at + header + size]
        at += header + size
        if kind in (full, last):
            yield wandb_internal_pb2.Record.FromString(message)
            message = b""


def _named(items) -> dict:
    """Name -> value; the fields of a medium stand below its name."""
    values = {}
    for item in items:
        name, *fields = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if fields:
            values.setdefault(name, {})["/".join(fields)] = value
        else:
            values[name] = value
    return values


class _Handler(BaseHTTPRequestHandler):
    """As much of W&B's interface as a run needs, as long as the server is well."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        trouble, answer = self.server.trouble, {}
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if trouble == "hangs":
            self.server.over.wait()
        if trouble in ("hangs", "disappears"):
            return
        if trouble is None and self.path == "/graphql":
            answer = {"data": self._answer(**json.loads(body))}
        self.send_response(trouble or 200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_GET = do_PUT = do_POST  # noqa: N815 (their names)

    def _answer(self, query, variables, **_):
        if "upsertBucket" in query:
            project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
            bucket = {"id": "b", "name": variables["name"], "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        url = f"{self.server.url}/upload"
        files = [{"name": n, "uploadUrl": url} for n in variables.get("files", [])]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}


class WandbServer(ThreadingHTTPServer):
    """Well until it gets into `trouble`: a status, `hangs` or `disappears`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.trouble = None
        self.over = threading.Event()

    def handle_error(self, *_):
        pass  # whoever asked has gone
