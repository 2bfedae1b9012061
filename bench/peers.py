"""The load generator and the byte proxy that a router is compared with.

Both come from outside of the repository: the folder that DOPD_PEERBENCH names holds `load.c` (an
epoll load generator) and `worker.c` (a mock engine behind nginx); nginx is the machine's own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common import REPO

BUILD = REPO / ".cache" / "bench"
ROUTER_CPU, LOAD_CPU = "0", "1"

NGINX = """\
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.err warn;
events {{ worker_connections 16000; }}
http {{
  access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000;
  upstream w {{ server 127.0.0.1:{worker}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=8192;
    location / {{
      proxy_pass http://w; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 1800s;
    }}
  }}
}}
"""


def tools() -> Path | None:
    """The folder with load.c and worker.c, compiled into BUILD; None if there is none."""
    source = Path(os.environ.get("DOPD_PEERBENCH") or REPO.parent / "shared/tools/peerbench")
    if not (source / "load.c").is_file() or not (compiler := shutil.which("cc")):
        return None
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("load", "worker"):
        command = [compiler, "-O2", "-w", "-o", str(BUILD / name), str(source / f"{name}.c"), "-lm"]
        subprocess.run(command, check=True)
    return BUILD


def pinned(cpu: str, command: Sequence[str | Path]) -> list[str]:
    """The command on one core."""
    return ["taskset", "-c", cpu, *map(str, command)]


def body(folder: Path, model: str, tokens: int, *, is_stream: bool) -> Path:
    """A file with the body of a short chat."""
    path = folder / f"body-{model}-{tokens}-{is_stream}.json"
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "@@@@@@@@ Say hello to the world in one short sentence."},
    ]
    fields = {"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": True}
    path.write_text(json.dumps(fields | ({"stream": True} if is_stream else {})))
    return path


def load(port: int, content: Path, **options: float) -> dict[str, Any]:
    """One run of the load generator; its own report."""
    words = [f"{name}={value:g}" for name, value in options.items()]
    command = pinned(LOAD_CPU, [BUILD / "load", str(port), *words, f"b={content}"])
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def nginx_command(folder: Path, port: int, worker: int) -> list[str] | None:
    """nginx as a byte proxy in front of the mock engine; None if it is not installed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        return None
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, worker=worker))
    return pinned(ROUTER_CPU, [program, "-c", config])
