"""The files with which a ClickHouse server gets encode_text and encode_image: their definition and two commands.

What must stay true: the commands need nothing of the server's environment, which has neither our Python nor our HOME.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from clipql.encode.cache import cache_folder, repository_of
from clipql.encode.folder import ModelFolder
from clipql.errors import EncodeError
from clipql.version import __version__

DEFINITION, COMMANDS = "encode_function.xml", "user_scripts"
FUNCTIONS = {"encode_text": "text", "encode_image": "image"}

_XML = """<functions>
{functions}</functions>
"""
# The first call of a process loads the model, and a block of 65,000 rows takes minutes: ClickHouse's limits of 10
# seconds are for quicker commands. One command a function encodes on all cores; more would only share them.
_FUNCTION = """    <function>
        <type>executable_pool</type>
        <name>{name}</name>
        <return_type>Array(Float32)</return_type>
        <argument>
            <type>String</type>
            <name>{argument}</name>
        </argument>
        <format>TabSeparated</format>
        <command>{name}</command>
        <execute_direct>1</execute_direct>
        <pool_size>{pool}</pool_size>
        <send_chunk_header>0</send_chunk_header>
        <max_command_execution_time>{seconds}</max_command_execution_time>
        <command_read_timeout>{milliseconds}</command_read_timeout>
        <command_write_timeout>{milliseconds}</command_write_timeout>
        <command_termination_timeout>5</command_termination_timeout>
        <deterministic>{deterministic}</deterministic>
    </function>
"""


@dataclass(frozen=True)
class Installation:
    """What was written. readers: folders that the server's user must be able to read."""

    definition: Path
    commands: tuple[Path, ...]
    readers: tuple[Path, ...]

    def server_config(self) -> str:
        """The lines for the server's configuration, a file in its config.d."""
        folder = self.definition.parent
        return (
            "<clickhouse>\n"
            f"    <user_defined_executable_functions_config>{_text(folder / '*_function.xml')}"
            "</user_defined_executable_functions_config>\n"
            f"    <user_scripts_path>{_text(folder / COMMANDS)}/</user_scripts_path>\n"
            "</clickhouse>"
        )


def install(
    folder: str | os.PathLike[str],
    model: ModelFolder,
    *,
    precision: str | None = None,
    pool_size: int = 1,
    timeout_seconds: int = 600,
) -> Installation:
    """Write the definition and the commands into a folder, replacing those of an earlier installation.

    model: the model as `models.find` gives it. precision: what that was asked for. pool_size: processes for each
    function. timeout_seconds: most for a block of rows, and for a caller that waits for a process. Raises EncodeError.
    """
    folder = Path(folder).absolute()
    definition, commands = folder / DEFINITION, folder / COMMANDS
    try:
        commands.mkdir(parents=True, exist_ok=True)
        definition.write_text(_definition(pool_size, timeout_seconds), encoding="utf-8")
        written = []
        for name, kind in FUNCTIONS.items():
            path = commands / name
            path.write_text(_command(kind, model, precision), encoding="utf-8")
            path.chmod(0o755)
            written.append(path)
    except OSError as error:
        raise EncodeError(f"cannot write {error.filename or folder}: {error.strerror or error}") from error
    return Installation(definition, tuple(written), _readers(model))


def _definition(pool_size: int, timeout_seconds: int) -> str:
    functions = (
        _FUNCTION.format(
            name=name,
            argument="text" if kind == "text" else "path",
            pool=pool_size,
            seconds=timeout_seconds,
            milliseconds=timeout_seconds * 1000,
            # what a path leads to may change
            deterministic=int(kind == "text"),
        )
        for name, kind in FUNCTIONS.items()
    )
    return _XML.format(functions="".join(functions))


def _command(kind: str, model: ModelFolder, precision: str | None) -> str:
    """A shell script. A model out of the cache is given by its name, so that it stays what it is called."""
    lines = ["#!/bin/sh", f"# clipql {__version__}: what ClickHouse runs for encode_{kind}", "set -eu"]
    lines.append(f"export PYTHONPATH={shlex.quote(str(_package().parent))}")
    name = repository_of(model.path)
    if name is not None:
        lines.append(f"export HF_HUB_CACHE={shlex.quote(str(cache_folder().absolute()))}")
    model_name = shlex.quote(name or str(model.path.absolute()))
    # without one, the command takes what `clipql model optimize` made
    option = f" --precision {shlex.quote(precision)}" if precision else ""
    lines.append(f"exec {shlex.quote(sys.executable)} -m clipql udf run {kind} --model {model_name}{option}")
    return "\n".join(lines) + "\n"


def _readers(model: ModelFolder) -> tuple[Path, ...]:
    folder = model.path.absolute()
    if repository_of(folder) is not None:
        folder = folder.parents[1]  # what a snapshot has are links to the blobs beside it
    return tuple(dict.fromkeys((Path(sys.prefix), Path(sys.base_prefix), _package(), folder)))


def _package() -> Path:
    return Path(os.path.abspath(__file__)).parent.parent


def _text(path: Path) -> str:
    return str(path).replace("&", "&amp;").replace("<", "&lt;")
