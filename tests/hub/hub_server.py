"""A small Hugging Face Hub on 127.0.0.1: the routes of a push and a pull, for the real client."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


TOKENS = {"hf_testtoken": "me", "hf_readonlytoken": "reader"}


class HubServer(ThreadingHTTPServer):
    """
    Start it with `with HubServer() as server`.

    Attributes:
        repos: By id, which of a data set starts with `datasets/`:
            `{"private": bool, "commits": [(sha, {path: bytes})], "refs": {name: sha}}`, oldest commit first.
        licences: The licence on the page of each data set, by its id.
        requests: What was asked for: `"METHOD /path"`, oldest first.
        large: How the names of files end that are uploaded as large ones.
        drop: Patterns of `"METHOD /path"`. The first request that matches one is cut off when half of it was read.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.licences, self.objects = {}, {}, {}
        self.requests, self.drop = [], []
        self.large = (".safetensors", ".png", ".parquet")
        self.lock = threading.Lock()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that goes away is no news."""

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo_id, sha=None):
        """The files of a commit, by default the newest."""
        commits = self.repos[repo_id]["commits"]
        return dict(commits)[sha] if sha else commits[-1][1]

    def commit(self, repo_id, files):
        """Adds a commit to `main`, as another client would."""
        repo = self.repos[repo_id]
        sha = hashlib.sha1(f"{repo_id}/{len(repo['commits'])}".encode()).hexdigest()
        repo["commits"].append((sha, files))
        repo["refs"]["main"] = sha
        return sha


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length", 0))
        with self.server.lock:
            matching = [pattern for pattern in self.server.drop if re.search(pattern, f"{self.command} {path}")]
            self.server.drop = [pattern for pattern in self.server.drop if pattern not in matching]
        if matching:
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        self.body = self.rfile.read(length)
        for pattern, route in ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return route(self, **found.groupdict())
        self.answer(404, {"error": "no such route"})

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self, status, content, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(data)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def user(self, writing=False):
        """Whose token it is; answers and returns `None` where that is not enough."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            self.answer(401, {}, X_Error_Message="Invalid credentials in Authorization header")
        elif writing and TOKENS.get(token) != "me":
            self.answer(403 if token else 401, {"error": "not allowed"})
        else:
            return TOKENS.get(token, "anonymous")
        return None

    def repo(self, repo_id, writing=False):
        user = self.user(writing)
        if user is None:
            return None
        repo = self.server.repos.get(repo_id)
        if repo is None or (repo["private"] and user != "me"):
            self.answer(404 if user == "me" else 401, {}, X_Error_Code="RepoNotFound")
            return None
        return repo

    def revision(self, repo_id, revision):
        """A commit and its files; answers and returns `None` where there is none."""
        if (repo := self.repo(repo_id)) is None:
            return None
        sha = repo["refs"].get(revision, revision)
        if sha not in dict(repo["commits"]):
            self.answer(404, {}, X_Error_Code="RevisionNotFound")
            return None
        return sha, self.server.files(repo_id, sha)

    # Writing

    def create(self):
        if (user := self.user(writing=True)) is None:
            return
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or user}/{asked['name']}"
        if asked.get("type") == "dataset":
            repo_id = f"datasets/{repo_id}"
        url = f"{self.server.endpoint}/{repo_id}"
        if repo_id in self.server.repos:
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        self.server.repos[repo_id] = {"private": asked.get("visibility") == "private", "commits": [], "refs": {}}
        self.server.commit(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer(200, {"url": url, "name": repo_id, "id": "0"})

    def may_write(self, repo_id):
        if self.repo(repo_id, writing=True) is not None:
            self.answer(200, {})

    def validate_yaml(self):
        found = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        valid = found and isinstance(yaml.safe_load(found[1]), dict)
        self.answer(200 if valid else 400, {"errors": [] if valid else [{"message": "no metadata"}], "warnings": []})

    def preupload(self, repo_id, revision):
        if self.repo(repo_id, writing=True) is None:
            return
        current = self.server.files(repo_id)
        answers = []
        for file in json.loads(self.body)["files"]:
            path, old = file["path"], current.get(file["path"])
            oid = None if old is None else (sha256(old) if path.endswith(self.server.large) else git_hash(old))
            mode = "lfs" if path.endswith(self.server.large) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": answers})

    def lfs_batch(self, repo_id):
        if self.repo(repo_id, writing=True) is None:
            return
        objects = json.loads(self.body)["objects"]
        for each in objects:
            if each["oid"] not in self.server.objects:
                each["actions"] = {"upload": {"href": f"{self.server.endpoint}/objects/{each['oid']}"}}
        self.answer(200, {"transfer": "basic", "objects": objects})

    def put_object(self, oid):
        if sha256(self.body) != oid:
            return self.answer(400, {"error": "other bytes than announced"})
        self.server.objects[oid] = self.body
        self.answer(200, {})

    def commit(self, repo_id, revision):
        if self.repo(repo_id, writing=True) is None:
            return
        files = dict(self.server.files(repo_id))
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.server.commit(repo_id, files)
        url = f"{self.server.endpoint}/{repo_id}/commit/{sha}"
        self.answer(200, {"commitUrl": url, "commitOid": sha, "pullRequestUrl": None})

    # Reading

    def info(self, repo_id, revision="main"):
        if found := self.revision(repo_id, revision):
            sha, files = found
            siblings = [{"rfilename": path} for path in files]
            private = self.server.repos[repo_id]["private"]
            name = repo_id.removeprefix("datasets/")
            self.answer(200, {"id": name, "sha": sha, "private": private, "siblings": siblings, "tags": []})

    def tree(self, repo_id, revision):
        if found := self.revision(repo_id, revision):
            self.answer(
                200,
                [{"type": "file", "path": p, "size": len(d), "oid": git_hash(d)} for p, d in found[1].items()],
            )

    def resolve(self, repo_id, revision, path):
        if found := self.revision(repo_id, revision):
            sha, files = found
            if path not in files:
                return self.answer(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            etag = sha256(files[path]) if path.endswith(self.server.large) else git_hash(files[path])
            self.answer(200, files[path], ETag=f'"{etag}"', X_Repo_Commit=sha)

    def dataset(self, repo_id):
        if (name := repo_id.removeprefix("datasets/")) not in self.server.licences:
            return self.info(repo_id)
        card = {"license": self.server.licences[name]}
        self.answer(200, {"id": name, "sha": "0" * 40, "cardData": card, "tags": [], "siblings": []})


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


REPO = r"(?P<repo_id>(?:datasets/)?[^/]+/[^/]+)"
API = rf"/api/(?:models/|(?=datasets/)){REPO}"
ROUTES = {
    "POST /api/repos/create": Handler.create,
    "POST /api/validate-yaml": Handler.validate_yaml,
    f"GET {API}/auth-check/write": Handler.may_write,
    f"POST {API}/preupload/(?P<revision>.+)": Handler.preupload,
    rf"POST /{REPO}\.git/info/lfs/objects/batch": Handler.lfs_batch,
    "PUT /objects/(?P<oid>.+)": Handler.put_object,
    f"POST {API}/commit/(?P<revision>.+)": Handler.commit,
    rf"GET /api/(?=datasets/){REPO}": Handler.dataset,
    f"GET {API}": Handler.info,
    f"GET {API}/revision/(?P<revision>.+)": Handler.info,
    f"GET {API}/tree/(?P<revision>[^/]+)": Handler.tree,
    f"(GET|HEAD) /{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": Handler.resolve,
}
