"""Fetches files of a model from the Hugging Face hub into its cache, by huggingface_hub.

What must stay true: a file under its name in the cache is whole and has the digest that the hub says; what an
interrupted download has brought stays beside it as `.incomplete` and is continued by the next; only files that were
asked for are requested; every error of the library, of the network and of the disk leaves as ModelError.

The library lists the files, makes the headers and speaks HTTP. It does not store them, because it throws away what
an interrupted download has brought and looks at no digest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from clipql.encode.cache import cache_folder, repository_folder
from clipql.errors import ModelError
from clipql.version import __version__

# Seconds before each further attempt, after one that brought nothing
WAITS = (0.5, 1.0, 2.0, 4.0)
_TIMEOUT_SECONDS = 10.0
_BLOCK = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TRY_AGAIN = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model on the hub. digest: SHA-256 of what is in large-file storage, git's SHA-1 of what is not."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Repository:
    """A model on the hub at one commit."""

    name: str
    commit: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class PullProgress:
    """How a pull gets on. Bytes of this file and of all; `fetched` are those that came over the network."""

    file: str
    file_number: int
    files: int
    file_done: int
    file_size: int
    done: int
    size: int
    fetched: int
    seconds: float
    finished: bool


Progress = Callable[[PullProgress], None]


def offline() -> bool:
    """Whether the user has ruled the network out (HF_HUB_OFFLINE)."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in {"1", "ON", "YES", "TRUE"}


def endpoint() -> str:
    """The hub's address: $HF_ENDPOINT, else https://huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def repository(name: str) -> Repository:
    """What the hub says of a model's files. Raises ModelError."""
    with _translated(name):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint(), library_name="clipql", library_version=__version__)
        info = _insisting(lambda: api.model_info(name, files_metadata=True, timeout=_timeout()))
        files = tuple(_remote_file(name, each) for each in info.siblings or ())
        return Repository(name, _hexadecimal(name, "commit", info.sha, 40), files)


def fetch(source: Repository, files: Sequence[RemoteFile], progress: Progress | None = None) -> Path:
    """Bring files into the cache and return the folder that has them under their names.

    Those that are there already are checked and kept. Raises ModelError.
    """
    with _translated(source.name), _locked(source.name):
        folder = repository_folder(source.name)
        blobs, names = folder / "blobs", folder / "snapshots" / source.commit
        blobs.mkdir(parents=True, exist_ok=True)
        report = _Report(files, progress)
        for number, file in enumerate(files):
            report.begin(number)
            _bring(source, file, blobs / file.digest, report)
        # Only now, so that a folder with the name of a commit has all its files
        for file in files:
            _link(blobs / file.digest, names / file.path)
        _point(folder / "refs" / "main", source.commit)
        return names


class _Report:
    """Adds up what the files of a pull have brought and passes it on."""

    def __init__(self, files: Sequence[RemoteFile], progress: Progress | None) -> None:
        self._files, self._progress = files, progress
        self._size, self._began = sum(file.size for file in files), time.monotonic()
        self._number = self._fetched = 0

    def begin(self, number: int) -> None:
        self._number = number

    def step(self, done: int, fetched: int = 0, *, finished: bool = False) -> None:
        """done: bytes of the present file that are there; fetched: those that have just come."""
        self._fetched += fetched
        if self._progress is None:
            return
        file = self._files[self._number]
        before = sum(each.size for each in self._files[: self._number])
        self._progress(
            PullProgress(
                file=file.path,
                file_number=self._number + 1,
                files=len(self._files),
                file_done=done,
                file_size=file.size,
                done=before + done,
                size=self._size,
                fetched=self._fetched,
                seconds=time.monotonic() - self._began,
                finished=finished,
            )
        )


def _bring(source: Repository, file: RemoteFile, blob: Path, report: _Report) -> None:
    """See to it that the blob is there and is what the hub says."""
    if blob.is_file():
        if _digest(blob, file) == file.digest:
            report.step(file.size, finished=True)
            return
        blob.unlink()  # what was damaged since is fetched anew
    partial = blob.with_name(blob.name + ".incomplete")
    with open(partial, "ab", buffering=0) as stored:
        _download(source, file, stored, report)
        os.fsync(stored.fileno())
    seen = _digest(partial, file)
    if seen != file.digest:
        partial.unlink()
        raise ModelError(
            f"{file.path} of {source.name} came with the {_kind(file)} {seen}; the hub says {file.digest}. What came "
            "was removed; pull again to fetch it anew. If it comes wrong again, a proxy or mirror on the way changes it"
        )
    os.replace(partial, blob)
    report.step(file.size, finished=True)


def _download(source: Repository, file: RemoteFile, stored: BinaryIO, report: _Report) -> None:
    """Continue a file to its full length, over as many connections as it takes while each brings something."""
    import httpx2

    if stored.tell() > file.size:
        stored.truncate(0)
        stored.seek(0)
    room = shutil.disk_usage(cache_folder()).free
    if room < file.size - stored.tell():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    report.step(stored.tell())
    waits = list(WAITS)
    while stored.tell() < file.size:
        before = stored.tell()
        failure: Exception | None = None
        try:
            _continue(source, file, stored, report)
        except httpx2.TransportError as error:
            failure = error
        except httpx2.HTTPError as error:
            if getattr(getattr(error, "response", None), "status_code", 0) not in _TRY_AGAIN:
                raise
            failure = error
        if stored.tell() > before:
            waits = list(WAITS)
        elif not waits:
            raise failure or ModelError(
                f"the hub sends {stored.tell():,} of the {file.size:,} bytes of {file.path} of {source.name} and ends; "
                "try again later"
            )
        elif stored.tell() < file.size:
            time.sleep(waits.pop(0))


def _continue(source: Repository, file: RemoteFile, stored: BinaryIO, report: _Report) -> None:
    from huggingface_hub import get_session, hf_raise_for_status

    have = stored.tell()
    headers = _headers()
    if have:
        headers["Range"] = f"bytes={have}-"
    url = f"{endpoint()}/{source.name}/resolve/{source.commit}/{quote(file.path)}"
    with get_session().stream("GET", url, headers=headers, timeout=_timeout()) as response:
        if response.status_code >= 400:
            response.read()
            if response.status_code == 416:  # the server knows of no such place: begin anew
                stored.truncate(0)
                stored.seek(0)
                return
        hf_raise_for_status(response)
        start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if have and (response.status_code != 206 or start is None or int(start[1]) != have):
            have = 0
            stored.truncate(0)
            stored.seek(0)
            if response.status_code == 206:
                return
        for block in response.iter_bytes():
            if have + len(block) > file.size:
                raise ModelError(
                    f"{endpoint()} sends more than the {file.size:,} bytes that {file.path} of {source.name} has"
                )
            _write(stored, block)
            have += len(block)
            report.step(have, len(block))


def _write(stored: BinaryIO, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[stored.write(rest) :]


def _link(blob: Path, name: Path) -> None:
    name.parent.mkdir(parents=True, exist_ok=True)
    name.unlink(missing_ok=True)
    try:
        name.symlink_to(os.path.relpath(blob, name.parent))
    except OSError:  # a file system without links
        shutil.copyfile(blob, name)


def _point(ref: Path, commit: str) -> None:
    ref.parent.mkdir(parents=True, exist_ok=True)
    temporary = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
    temporary.write_text(commit, encoding="ascii")
    os.replace(temporary, ref)


def _digest(path: Path, file: RemoteFile) -> str:
    if len(file.digest) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as stored:
        while block := stored.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _kind(file: RemoteFile) -> str:
    return "SHA-256" if len(file.digest) == 64 else "git SHA-1"


def _remote_file(name: str, sibling: Any) -> RemoteFile:
    digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    size = sibling.lfs.size if sibling.lfs else sibling.size
    what = f"digest of {sibling.rfilename}"
    if not isinstance(size, int) or size < 0:
        raise ModelError(f"{endpoint()} gives {size!r} as the size of {sibling.rfilename} of {name}; expected a number")
    return RemoteFile(sibling.rfilename, size, _hexadecimal(name, what, digest, 64 if sibling.lfs else 40))


def _hexadecimal(name: str, what: str, value: object, length: int) -> str:
    # It becomes part of a path
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{length}}}", value):
        raise ModelError(f"{endpoint()} gives {value!r} as the {what} of {name}; expected {length} hexadecimal digits")
    return value


def _headers() -> dict[str, str]:
    from huggingface_hub import get_token

    headers = {"User-Agent": f"clipql/{__version__}", "Accept-Encoding": "identity"}
    token = get_token()  # HTTP clients drop it when a redirect leads to another host
    return headers | {"Authorization": f"Bearer {token}"} if token else headers


def _timeout() -> float:
    try:
        return float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or _TIMEOUT_SECONDS)
    except ValueError:
        return _TIMEOUT_SECONDS


def _insisting(ask: Callable[[], Any]) -> Any:
    """The answer to a question, asked again where the network fails."""
    import httpx2

    for wait in WAITS[:2]:
        try:
            return ask()
        except httpx2.TransportError:
            time.sleep(wait)
    return ask()


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    """Have a model's files to oneself: two who continue one file would garble it."""
    path = cache_folder() / ".locks" / repository_folder(name).name / "clipql.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ModelError(f"another process is pulling {name}; wait until it has finished") from None
        yield


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn what huggingface_hub, the network and the disk raise into ModelError."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except ModelError:
        raise
    except (errors.OfflineModeIsEnabled, errors.HFValidationError) as error:
        raise ModelError(f"cannot pull {name}: {error}") from error
    except errors.HfHubHTTPError as error:
        raise ModelError(_refused(name, error)) from error
    except httpx2.TimeoutException as error:
        raise ModelError(
            f"cannot pull {name}: {endpoint()} was silent for {_timeout():g} s, several times. What has come so far "
            "is kept; pull again to continue, with a larger HF_HUB_DOWNLOAD_TIMEOUT if the network is slow"
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ModelError(
            f"cannot pull {name}: {endpoint()} cannot be reached or breaks off ({error or type(error).__name__}). What "
            "has come so far is kept; pull again to continue. docs/models.md says how to get a model without a network"
        ) from error
    except OSError as error:
        raise ModelError(_unwritable(name, error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # an answer that the library cannot read
        raise ModelError(f"cannot pull {name}: {endpoint()} does not answer as the hub does ({error!r})") from error


def _refused(name: str, error: Any) -> str:
    from huggingface_hub import errors

    status = error.response.status_code
    where = f"{endpoint()} (HTTP {status})"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name} is gated at {where}: ask for access on its page, make a token that may read it, and set HF_TOKEN"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{where} lists a file of {name} but does not have it: {error.response.url}; try again later"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return (
            f"there is no model {name} at {where}, or it is private: check the name; for a private one set HF_TOKEN "
            "to a token that may read it"
        )
    if status == 403:
        return f"{where} refuses {name} to this token; set HF_TOKEN to one that may read it"
    return f"cannot pull {name}: {where} says {error.response.reason_phrase or 'no'}; try again later"


def _unwritable(name: str, error: OSError) -> str:
    folder = cache_folder()
    if error.errno in _FULL:
        room = 0.0
        with contextlib.suppress(OSError):
            room = shutil.disk_usage(folder).free / 1e6
        return (
            f"the disk is full while pulling {name}: {room:,.0f} MB are free in {folder}. What has come so far is "
            "kept; free some room, or set HF_HOME to a folder on another disk, and pull again"
        )
    return (
        f"cannot pull {name} into {folder}: {error.filename or ''} {error.strerror or error}; HF_HOME names another "
        "folder for models"
    )
