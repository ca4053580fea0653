"""A small W&B server for tests, on 127.0.0.1: what the true client and its Go core ask for, and nothing more.

It keeps what arrives. A run's history is kept by `_step`, as W&B does: a row that is sent again replaces what was
there, and the same figures at another `_step` are one more row, wanted or not. Points of a sweep come from W&B's own
search (`sweeps`).
"""

import base64
import contextlib
import json
import random
import re
import threading
import time
import traceback
import uuid
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import sweeps
import yaml
from sweeps.config import schema_violations_from_proposed_config

KEY = "0123456789abcdef0123456789abcdef01234567"
ENTITY = "tester"
FORBIDDEN = "forbidden"  # a project that exists and may not be written
FAULTS = ("error", "busy", "slow", "drop", "garbage")


@dataclass
class Run:
    """What W&B knows of a run."""

    id: str
    project: str
    name: str = ""
    group: str = ""
    job_type: str = ""
    sweep: str = ""
    state: str = "running"
    preempting: bool = False
    tags: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)  # by `_step`
    lines: dict[str, dict[int, str]] = field(default_factory=dict)  # other files of the stream, by offset
    files: dict[str, str] = field(default_factory=dict)  # name → where it is stored
    used: list[str] = field(default_factory=list)  # artifacts
    logged: list[str] = field(default_factory=list)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows in the order of their `_step`."""
        return [self.rows[step] for step in sorted(self.rows)]

    @property
    def config(self) -> dict[str, Any]:
        return {key: entry["value"] for key, entry in self.settings.items()}


@dataclass
class Sweep:
    """A sweep and the points that it has given out."""

    id: str
    project: str
    config: dict[str, Any]
    points: dict[str, sweeps.SweepRun] = field(default_factory=dict)  # run → point


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Endpoint:
    """The server, in threads of this process: `url`, `runs`, `artifacts`, `sweeps`, `views`, `stored`.

    faults: share of the requests that each of FAULTS hits, save the operations `spared`; `unreachable()` and
    `reachable()` take the whole server away and bring it back. A file is never answered with garbage: of an answer to
    it W&B's client reads the status alone. asked: how often each operation was asked for; unknown: operations that it
    does not know; bugs: its own.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.agents: dict[str, str] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, bytes] = {}
        self.faults: dict[str, float] = {}
        self.spared: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.bugs: list[str] = []
        self.lock = threading.RLock()
        self.chance = random.Random(1)
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.reachable()
        self.url = f"http://127.0.0.1:{self.port}"

    def reachable(self) -> None:
        handler = type("Handler", (Handler,), {"endpoint": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def serving(self) -> bool:
        return self._server is not None

    def unreachable(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def fault(self, operation: str) -> str | None:
        """What is to go wrong with this request."""
        if operation in self.spared:
            return None
        with self.lock:
            number = self.chance.random()
        for name, share in self.faults.items():
            if number < share:
                return "error" if (operation, name) == ("upload", "garbage") else name
            number -= share
        return None

    # --- what is asked for ---

    def answer(self, operation: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            self.asked[operation] += 1
            method = getattr(self, "on_" + re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", operation).lower(), None)
            if method is None:
                self.unknown[operation] += 1
                raise RefusedError(400, f"no such operation: {operation}")
            return method(variables)

    def on_viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        team = {"edges": [{"node": {"name": ENTITY}}]}
        user = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "tester@example.org", "flags": "{}"}
        more = {"name": ENTITY, "admin": False, "deletedAt": None, "apiKeys": {"edges": []}, "teams": team}
        return {"viewer": user | more, "serverInfo": None}

    on_get_viewer = on_get_default_entity = on_viewer

    def on_server_features_query(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def on_organization_core_weave_organization_id(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    # --- runs ---

    def on_upsert_bucket(self, asked: dict[str, Any]) -> dict[str, Any]:
        project = asked.get("project") or "uncategorized"
        if project == FORBIDDEN:
            raise RefusedError(403, f"permission denied: {ENTITY} may not write to {project}")
        inserted = asked["name"] not in self.runs
        run = self.runs.setdefault(asked["name"], Run(asked["name"], project))
        run.name = asked.get("displayName") or run.name
        run.group = asked.get("groupName") or run.group
        run.job_type = asked.get("jobType") or run.job_type
        run.sweep = asked.get("sweep") or run.sweep
        run.tags = asked.get("tags") or run.tags
        run.state = "running" if run.state != "finished" else run.state
        run.settings = json.loads(asked.get("config") or "{}") or run.settings
        run.summary |= json.loads(asked.get("summaryMetrics") or "{}")
        bucket = {"id": run.id, "name": run.id, "displayName": run.name, "sweepName": run.sweep or None}
        bucket |= {"project": self.project(project), "historyLineCount": len(run.rows)}
        bucket |= {"description": "", "config": json.dumps(run.settings)}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def on_run_resume_status(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(asked["name"])
        if run is None:
            return {"model": None}
        events = [line for _, line in sorted(run.lines.get("wandb-events.jsonl", {}).items())]
        tails = {"historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]])}
        tails |= {"eventsTail": json.dumps(events[-1:])}
        bucket = {"id": run.id, "name": run.id, "displayName": run.name, "config": json.dumps(run.settings)}
        bucket |= {"summaryMetrics": json.dumps(run.summary), "tags": run.tags, "notes": "", "wandbConfig": '{"t": 1}'}
        bucket |= {"historyLineCount": len(run.rows), **tails}
        bucket |= {"eventsLineCount": self.count(run, "wandb-events.jsonl")}
        bucket |= {"logLineCount": self.count(run, "output.log")}
        return {"model": self.project(run.project) | {"bucket": bucket}}

    def on_create_run_files(self, asked: dict[str, Any]) -> dict[str, Any]:
        run, files = self.runs[asked["run"]], []
        for name in asked["files"]:
            run.files[name] = place = uuid.uuid4().hex
            files.append({"name": name, "uploadUrl": f"{self.url}/storage/{place}"})
        return {"createRunFiles": {"runID": run.id, "uploadHeaders": [], "files": files}}

    def stream(self, run: Run, body: dict[str, Any]) -> dict[str, Any]:
        """`POST …/file_stream`: rows of history, summary, system metrics and console; how a run ends."""
        with self.lock:
            for file, chunk in (body.get("files") or {}).items():
                if file == "wandb-summary.json":
                    run.summary = json.loads(chunk["content"][-1])
                    continue
                if file == "wandb-history.jsonl":
                    run.rows |= {row["_step"]: row for row in map(json.loads, chunk["content"])}
                else:
                    run.lines.setdefault(file, {}).update(enumerate(chunk["content"], chunk["offset"]))
            run.preempting |= bool(body.get("preempting"))
            if body.get("complete"):
                ill = "preempted" if run.preempting else "failed"
                run.state = ill if body.get("exitcode") else "finished"
            return {}

    def project(self, name: str) -> dict[str, Any]:
        return {"id": name, "name": name, "entity": {"id": ENTITY, "name": ENTITY}}

    @staticmethod
    def count(run: Run, file: str) -> int:
        return max(run.lines.get(file, {}), default=-1) + 1

    # --- artifacts ---

    def on_artifact_type(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def on_create_artifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        asked = asked["input"]
        name = asked.get("artifactCollectionName") or asked["artifactCollectionNames"][0]
        found = [a for a in self.artifacts.values() if (a["name"], a["digest"]) == (name, asked["digest"])]
        if not found:
            aliases = [alias["alias"] for alias in asked.get("aliases") or []]
            new = {"id": f"artifact-{len(self.artifacts)}", "name": name, "digest": asked["digest"], "state": "PENDING"}
            new |= {"type": asked["artifactTypeName"], "aliases": aliases, "files": {}, "client": asked.get("clientID")}
            new |= {"metadata": json.loads(asked.get("metadata") or "{}"), "description": asked.get("description")}
            self.artifacts[new["id"]] = new
            found = [new]
        artifact = found[0]
        if asked.get("runName") in self.runs and artifact["id"] not in self.runs[asked["runName"]].logged:
            self.runs[asked["runName"]].logged.append(artifact["id"])
        sequence = {"latestArtifact": None if artifact["state"] == "PENDING" else {"id": artifact["id"]}}
        return {"createArtifact": {"artifact": {**self.public(artifact), "artifactSequence": sequence}}}

    def public(self, artifact: dict[str, Any]) -> dict[str, Any]:
        return {key: artifact[key] for key in ("id", "digest", "state")}

    def on_create_artifact_manifest(self, asked: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[asked["artifactID"]]
        artifact["manifest"] = place = uuid.uuid4().hex
        file = {"id": "1", "uploadUrl": f"{self.url}/storage/{place}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": artifact["id"], "file": file}}}

    def on_update_artifact_manifest(self, asked: dict[str, Any]) -> dict[str, Any]:
        asked = {"artifactID": asked["artifactManifestID"]}
        return {"updateArtifactManifest": self.on_create_artifact_manifest(asked)["createArtifactManifest"]}

    def on_create_artifact_files(self, asked: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for file in asked["input"]["artifactFiles"]:
            artifact, place = self.artifacts[file["artifactID"]], uuid.uuid4().hex
            artifact["files"][file["name"]] = place
            node = {"storagePath": place, "uploadUrl": f"{self.url}/storage/{place}", "uploadHeaders": []}
            nodes.append({"node": node | {"uploadMultipartUrls": None, "artifact": {"id": artifact["id"]}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def on_commit_artifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[asked["artifactID"]]
        artifact["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": self.public(artifact)}}

    def on_use_artifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        asked = asked["input"]
        used = self.runs[asked["runName"]].used
        if asked["artifactID"] not in used:
            used.append(asked["artifactID"])
        return {"useArtifact": {"artifact": {"id": asked["artifactID"]}}}

    # --- sweeps ---

    def on_upsert_sweep(self, asked: dict[str, Any]) -> dict[str, Any]:
        config = yaml.safe_load(asked["config"])
        sweep = Sweep(asked.get("id") or uuid.uuid4().hex[:8], asked["projectName"], config)
        self.sweeps[sweep.id] = sweep
        told = {"name": sweep.id, "project": self.project(sweep.project)}
        complaints = schema_violations_from_proposed_config(config)
        return {"upsertSweep": {"sweep": told, "configValidationWarnings": complaints}}

    def on_sweep_with_runs(self, asked: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps.get(asked["sweep"])
        if sweep is None:
            return {"project": {"sweep": None}}
        told = {"id": sweep.id, "name": sweep.id, "method": sweep.config["method"], "state": "RUNNING"}
        told |= {"config": yaml.safe_dump(sweep.config), "runs": {"edges": []}}
        return {"project": {"sweep": told}}

    def on_create_agent(self, asked: dict[str, Any]) -> dict[str, Any]:
        agent = uuid.uuid4().hex
        self.agents[agent] = asked["sweep"]
        return {"createAgent": {"agent": {"id": agent}}}

    def on_heartbeat(self, asked: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps[self.agents[asked["id"]]]
        commands = []
        for name, point in sweep.points.items():
            if run := self.runs.get(name):
                point.state = {"finished": "finished", "failed": "failed", "preempted": "preempted"}.get(
                    run.state, "running"
                )
                point.summary_metrics, point.history = run.summary, run.history
        running = json.loads(asked["runState"] or "{}")
        early = "early_terminate" in sweep.config
        stop = sweeps.stop_runs(sweep.config, list(sweep.points.values())) if early else []
        commands += [{"type": "stop", "run_id": point.name} for point in stop if point.name in running]
        if not running:
            commands.append(self.next_point(sweep))
        return {"agentHeartbeat": {"agent": {"id": asked["id"]}, "commands": json.dumps(commands)}}

    def next_point(self, sweep: Sweep) -> dict[str, Any]:
        left = [name for name, point in sweep.points.items() if point.state == "preempted"]
        if left:  # given out again first
            return self.command("resume", sweep, left[0])
        point = sweeps.next_run(sweep.config, list(sweep.points.values()))
        if point is None:
            return {"type": "exit"}
        point.name, point.state = uuid.uuid4().hex[:8], sweeps.RunState.running
        sweep.points[point.name] = point
        return self.command("run", sweep, point.name)

    @staticmethod
    def command(kind: str, sweep: Sweep, run: str) -> dict[str, Any]:
        point = sweep.points[run]
        point.state = sweeps.RunState.running
        config = json.loads(json.dumps(point.config, default=lambda number: number.item()))  # NumPy's
        return {"type": kind, "run_id": run, "args": config, "program": sweep.config.get("program")}

    # --- workspaces ---

    def on_view(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["name"] == "missing":
            return {"project": None}
        view = self.views.get(asked["viewName"])
        return {"project": {"allViews": {"edges": [{"node": view}] if view else []}}}

    def on_upsert_view2(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["projectName"] in ("missing", FORBIDDEN):
            raise RefusedError(403, f"permission denied: {ENTITY} may not write to {asked['projectName']}")
        inserted = asked["name"] not in self.views
        view = {"id": f"view-{asked['name']}", **{key: asked[key] for key in ("name", "displayName", "spec")}}
        self.views[asked["name"]] = view | {"entity": asked["entityName"], "project": asked["projectName"]}
        return {"upsertView": {"view": view, "inserted": inserted}}


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0: a connection a request, so that taking the server away leaves none."""

    endpoint: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            name = operation[1] if operation else ""
            self.reply(lambda: {"data": self.endpoint.answer(name, asked["query"], asked.get("variables") or {})}, name)
        elif found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self.reply(lambda: self.endpoint.stream(self.endpoint.runs[found[1]], json.loads(body)), "file_stream")
        else:
            self.send(404, b"{}")

    def do_PUT(self) -> None:
        body, place = self.rfile.read(int(self.headers.get("Content-Length", 0))), self.path.rsplit("/", 1)[1]
        self.reply(lambda: self.endpoint.stored.update({place: body}) or {}, "upload", authorised=True)

    def do_GET(self) -> None:
        place = self.path.rsplit("/", 1)[1]
        self.send(200, self.endpoint.stored[place]) if place in self.endpoint.stored else self.send(404, b"")

    def reply(self, answer: Any, operation: str, authorised: bool = False) -> None:
        fault = self.endpoint.fault(operation)
        if fault == "error":
            return self.send(500, b'{"errors": [{"message": "on demand"}]}')
        if fault == "busy":
            return self.send(429, b"{}", {"Retry-After": "1"})
        if fault == "garbage":
            return self.send(200, b"<html>\x00 welcome to the hotel's network")
        if fault == "drop":
            self.close_connection = True
            return None
        if fault == "slow":
            time.sleep(3)
        key = base64.b64decode(self.headers.get("Authorization", " ").partition(" ")[2]).decode()
        if not authorised and key != f"api:{KEY}":
            return self.send(401, b'{"errors": [{"message": "user is not logged in"}]}')
        try:
            return self.send(200, json.dumps(answer()).encode())
        except RefusedError as refused:
            return self.send(refused.status, json.dumps({"errors": [{"message": str(refused)}]}).encode())
        except Exception:  # the server's own, for its tests to see
            self.endpoint.bugs.append(traceback.format_exc())
            return self.send(400, b"{}")

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        with contextlib.suppress(OSError):  # a client that was killed
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
