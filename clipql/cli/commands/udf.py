"""`clipql udf install | run`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from clipql.cli.commands.common import command


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(commands, None, "udf", "give encode_text and encode_image to a ClickHouse server", _no_action)
    under = made.add_subparsers(metavar="ACTION", title="actions", required=True)
    install = command(under, None, "install", "write the definition and commands for a ClickHouse server", run_install)
    install.add_argument("folder", type=Path, metavar="DIR", help="where to write them; made if it is not there")
    _model_options(install)
    install.add_argument(
        "--pool-size", type=_positive, default=1, metavar="N", help="processes for each function (default: 1)"
    )
    install.add_argument(
        "--timeout", type=_positive, default=600, metavar="SECONDS", help="most for a block of rows (default: 600)"
    )
    served = command(under, None, "run", "answer a ClickHouse server on standard input and output", run_serve)
    served.add_argument("kind", choices=("text", "image"), help="what comes in: texts, or paths of pictures")
    _model_options(served)
    served.add_argument("--threads", type=_positive, metavar="N", help="of the model (default: one a core)")


def _model_options(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--model",
        metavar="MODEL",
        help="a name or a folder (default: $CLIPQL_MODEL, then openai/clip-vit-base-patch32)",
    )
    made.add_argument("--precision", metavar="WHICH", help="fp32, fp16 or int8 (default: the best there is)")


def _positive(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return value


def _no_action(arguments: argparse.Namespace) -> int:
    raise AssertionError("argparse asks for an action")


def run_install(arguments: argparse.Namespace) -> int:
    """`clipql udf install`."""
    from clipql.encode.models import find
    from clipql.encode.udf_install import install

    model = find(arguments.model, precision=arguments.precision)
    made = install(
        arguments.folder,
        model,
        precision=arguments.precision,
        pool_size=arguments.pool_size,
        timeout_seconds=arguments.timeout,
    )
    print(f"wrote {made.definition}")
    for path in made.commands:
        print(f"wrote {path}")
    print(
        f"\nThe functions use {model.model}. Put this into a file in the server's config.d, such as\n"
        f"/etc/clickhouse-server/config.d/clipql.xml, and restart the server:\n\n{made.server_config()}\n\n"
        "or, if it has such functions already, copy the definition to where its own are (by default\n"
        "/etc/clickhouse-server/) and the commands to its user_scripts folder (/var/lib/clickhouse/user_scripts/).\n"
        "The server's user must be able to read:"
    )
    for path in made.readers:
        print(f"    {path}")
    return 0


def run_serve(arguments: argparse.Namespace) -> int:
    """`clipql udf run`."""
    from clipql.encode.clip import open_encoder
    from clipql.encode.udf import serve_pictures, serve_texts

    def log(message: str) -> None:
        print(f"clipql: {message}", file=sys.stderr, flush=True)

    encoder = open_encoder(arguments.model, threads=arguments.threads, precision=arguments.precision)
    serve = serve_texts if arguments.kind == "text" else serve_pictures
    serve(encoder, sys.stdin.fileno(), sys.stdout.fileno(), log)
    return 0
