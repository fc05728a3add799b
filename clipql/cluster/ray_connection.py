"""The connection to Ray: on loopback where its address is one, with its token, and refused where none listens."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from clipql.errors import ClusterError

LOG = logging.getLogger("clipql.cluster")
NAMESPACE = "clipql"
CONNECT_SECONDS = 3.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def library() -> Any:
    """Ray itself. Raises ClusterError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise ClusterError("clusters need Ray: pip install 'clipql[ray]'") from error
    return ray


def connect(address: str) -> None:
    """Connect to the Ray cluster at host:port, or start one on this machine for `local`. Raises ClusterError."""
    host, _, port = address.rpartition(":")
    local = address == "local"
    if not local and (not host or not port.isdigit()):
        raise ClusterError(f"{address}: expected host:port, where `ray start --head` said that it listens, or local")
    if local or host in _LOOPBACK:
        # read by Ray as it is imported: it would otherwise take this machine's address in the network
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # of an error that came back and was raised, Ray would print a traceback for each shard
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    _check_token(local)
    if not local:
        _check_listening(host, int(port))
    ray = library()
    if ray.is_initialized():
        return
    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "configure_logging": False}
    if local:
        options.update(include_dashboard=False, _node_ip_address="127.0.0.1")
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(f"the Ray at {address} cannot be joined: {error}") from error
    with contextlib.suppress(ImportError):
        from ray._private import worker

        # Ray tells of nodes that die on standard output, which is for results
        worker.print_to_stdstream = _logged


def _logged(told: Any, ignore_prefix: bool) -> None:
    for line in told.get("lines", ()):
        LOG.info("%s", str(line).strip().partition("\n")[0])


def _check_token(local: bool) -> None:
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
    if mode != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if path.exists():
        return
    if local:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        return
    raise ClusterError(
        "there is no token for Ray: give the one that it was started with in $RAY_AUTH_TOKEN or ~/.ray/auth_token "
        "(`ray get-auth-token --generate` makes one), or set RAY_AUTH_MODE=disabled for a Ray without"
    )


def _check_listening(host: str, port: int) -> None:
    """Ray itself would wait for long, and then end the process."""
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"nothing listens at {host}:{port} ({error}): start Ray there with `ray start --head --port={port}`"
        ) from error


def disconnect() -> None:
    """Disconnect from the Ray cluster; its actors continue."""
    library().shutdown()
