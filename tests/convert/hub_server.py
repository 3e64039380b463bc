"""A server on this machine that speaks as much of the hub's HTTP as its client needs, and misbehaves on request."""

import functools
import hashlib
import json
import re
import shutil
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from safetensors.torch import load_file, save_file

MODEL = "tiny/moe"
LIST = "the list of files"


@dataclass
class Request:
    """What was asked for, and how many bytes of an answer's body were sent."""

    name: str
    first: int
    token: str | None
    sent: int = 0
    # None is the rest of the file.
    last: int | None = None


class HubServer:
    """Serves the files of `folder` as MODEL, at the commits that `commit` makes of them; large ones from another host.

    What goes wrong, by name of a file or LIST:
    `cuts`      bytes after which each of the next answers is cut
    `statuses`  (status, X-Error-Code) of each of the next answers; one that stays where it is no list
    `content`   bytes that are sent instead of what was promised
    `listing`   called with the list of files, which it may change
    """

    def __init__(self, folder):
        self.folder = folder
        self.cuts, self.statuses, self.content = {}, {}, {}
        self.listing = lambda tree: None
        self.ignore_range, self.delay_s = False, 0.0
        self.requests = []
        self.commits = {}
        self.main = self.commit()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another origin to clients, as the hub's storage is.
        self.storage = f"http://localhost:{self._server.server_port}/storage"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def commit(self):
        """Make what the folder holds now the newest commit; its 40 digits."""
        files = {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}
        self.main = hashlib.sha1(b"".join(name.encode() + content for name, content in files.items())).hexdigest()
        self.commits[self.main] = files
        return self.main

    def asked(self, name):
        """The requests for the content of a file, in order."""
        return [request for request in self.requests if request.name == name]

    def fetched(self):
        """The shards that were asked for from some byte to the end, in order."""
        return [r.name for r in self.requests if r.name.endswith(".safetensors") and r.last is None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(rf"/api/models/{MODEL}(?:/revision/(.+))?", path):
            self._list(found[1] or "main")
        elif found := re.fullmatch(rf"/{MODEL}/resolve/(\w+)/(.+)", path):
            self._resolve(found[1], found[2])
        elif found := re.fullmatch(r"/storage/(\w+)/(.+)", path):
            self._content(found[1], found[2])
        else:
            self._fail(404, "RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def _list(self, revision):
        hub = self.server.hub
        commit = hub.main if revision == "main" else revision
        request = self._note(LIST)
        if self._scripted(LIST):
            return
        if commit not in hub.commits:
            self._fail(404, "RevisionNotFound")
            return
        tree = {"id": MODEL, "sha": commit, "siblings": [sibling(*file) for file in hub.commits[commit].items()]}
        hub.listing(tree)
        body = json.dumps(tree).encode()
        self._send(request, 200, {"Content-Length": len(body)}, body)

    def _resolve(self, commit, name):
        hub = self.server.hub
        content = hub.commits.get(commit, {}).get(name)
        if content is None:
            self._fail(404, "EntryNotFound")
        elif is_large(name):
            headers = {"X-Linked-Etag": f'"{etag(name, content)}"', "X-Linked-Size": len(content)}
            location = {"Location": f"{hub.storage}/{commit}/{name}", "X-Repo-Commit": commit}
            self._send(None, 302, {**headers, **location, "Content-Length": 0}, b"")
        else:
            self._content(commit, name)

    def _content(self, commit, name):
        hub = self.server.hub
        content = hub.content.get(name, hub.commits[commit][name])
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(found[1]), int(found[2]) if found[2] else None) if found else (0, None)
        request = self._note(name, first, last)
        if self._scripted(name):
            return
        headers = {"ETag": f'"{etag(name, hub.commits[commit][name])}"', "X-Repo-Commit": commit}
        if found and not hub.ignore_range:
            body = content[first : None if last is None else last + 1]
            headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{len(content)}"
        else:
            body = content
        status = 206 if "Content-Range" in headers else 200
        self._send(request, status, {**headers, "Content-Length": len(body)}, body)

    def _note(self, name, first=0, last=None):
        request = Request(name, first, self.headers.get("Authorization"), last=last)
        if self.command == "GET":
            self.server.hub.requests.append(request)
        return request

    def _scripted(self, name):
        """Whether the answer is a failure that a test wants."""
        waiting = self.server.hub.statuses.get(name)
        found = (waiting.pop(0) if isinstance(waiting, list) else waiting) if waiting else None
        if found:
            self._fail(*found)
        return bool(found)

    def _fail(self, status, code):
        self._send(None, status, {"X-Error-Code": code, "Content-Length": 0}, b"")

    def _send(self, request, status, headers, body):
        hub = self.server.hub
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = hub.cuts.get(request.name) if request else None
        self.close_connection = bool(cuts)
        body = body[: cuts.pop(0)] if cuts else body
        for start in range(0, len(body), 1 << 16):
            time.sleep(hub.delay_s)
            try:
                self.wfile.write(body[start : start + (1 << 16)])
            except OSError:
                self.close_connection = True
                return
            request.sent += len(body[start : start + (1 << 16)])


def is_large(name):
    return name.endswith(".safetensors")


@functools.cache
def etag(name, content):
    """SHA-256 of a large file, git's hash of a small one."""
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sibling(name, content):
    """A file as the hub lists it."""
    found = {"rfilename": name, "size": len(content), "blobId": etag("", content)}
    if is_large(name):
        found["lfs"] = {"sha256": etag(name, content), "size": len(content), "pointerSize": 130}
    return found


def reshard(source, folder, count):
    """A copy of a checkpoint whose tensors lie in `count` shards of about the same size, in order of layers."""
    tensors = {name: tensor for shard in source.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, folder)
    total, before, shards, where = sum(t.nbytes for t in tensors.values()), 0, {}, {}
    for name in sorted(tensors, key=_place):
        where[name] = f"model-{before * count // total + 1:05}-of-{count:05}.safetensors"
        shards.setdefault(where[name], {})[name] = tensors[name]
        before += tensors[name].nbytes
    for shard, held in shards.items():
        save_file(held, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def _place(name):
    """Embeddings first, then layers, then the rest: the order of real checkpoints."""
    layer = re.search(r"layers\.(\d+)\.", name)
    return (int(layer[1]) if layer else -1 if "embed" in name else 1 << 30), name
