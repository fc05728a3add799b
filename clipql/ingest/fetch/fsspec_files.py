"""Files by fsspec: folders of this machine, and whatever else has a file system there whose package is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from clipql.errors import DownloadError
from clipql.ingest.fetch.digests import Digest
from clipql.ingest.fetch.transport import Changed, Failure, RemoteFile, Reply

_BLOCK = 1 << 20
_ETAGS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "modified", "created")


class AnyFileSystem:
    """One of fsspec's file systems. url: any address on it."""

    def __init__(self, url: str) -> None:
        try:
            self._fs, _ = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise DownloadError(f"{url}: {error}") from error
        except (ValueError, OSError) as error:
            raise DownloadError(
                f"{url}: {error}; known are http:, https:, s3:, hf:, file: and the file systems of fsspec"
            ) from error
        self._local = "file" in _protocols(self._fs)

    def close(self) -> None:
        """Nothing is kept open."""

    def path(self, url: str) -> str:
        """An address as the file system spells it in `paths`."""
        return str(self._fs._strip_protocol(url))

    def paths(self, url: str) -> list[str]:
        """All files below a folder, or the file itself; none where there is nothing. Raises Failure."""
        try:
            return [str(p) for p in self._fs.find(self._fs._strip_protocol(url))]
        except FileNotFoundError:
            return []
        except Exception as error:  # each file system has its own
            raise self._failure(url, error) from error

    def stat(self, url: str, *, careful: bool = False) -> RemoteFile | None:
        """What the file system says of a file."""
        path = self._fs._strip_protocol(url)
        try:
            self._fs.invalidate_cache(path)
            info: dict[str, Any] = self._fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # each file system has its own
            raise self._failure(url, error) from error
        if info.get("type", "file") != "file":
            return None
        size = info.get("size")
        told = [f"{name}={info[name]}" for name in _ETAGS if info.get(name) is not None]
        md5 = info.get("md5Hash") or info.get("content_md5")
        digests = (Digest("md5", str(md5), "the source"),) if isinstance(md5, str) and len(md5) == 32 else ()
        return RemoteFile(url, int(size) if size is not None else None, " ".join(told) or None, None, digests)

    @contextmanager
    def read(self, file: RemoteFile, start: int) -> Iterator[Reply]:
        """The bytes of a file from a place on; whether it has changed meanwhile is asked after the last."""
        path = self._fs._strip_protocol(file.url)
        try:
            with self._fs.open(path, "rb", cache_type="none") as stream:
                if start:
                    stream.seek(start)
                yield Reply(start, self._blocks(file, stream))
        except FileNotFoundError as error:
            raise Changed("it is gone") from error
        except OSError as error:
            raise self._failure(file.url, error) from error

    def _blocks(self, file: RemoteFile, stream: Any) -> Iterator[bytes]:
        while True:
            try:
                block = stream.read(_BLOCK)
            except Exception as error:
                raise self._failure(file.url, error) from error
            if not block:
                break
            yield block
        now = self.stat(file.url)
        if now is None or (now.size, now.etag) != (file.size, file.etag):
            raise Changed("it was written to meanwhile")

    def _failure(self, url: str, error: Exception) -> Failure:
        final = self._local or isinstance(error, (PermissionError, ImportError, NotImplementedError, ValueError))
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Failure(f"{url} cannot be read: {said}", again=not final)


def _protocols(fs: Any) -> tuple[str, ...]:
    named = fs.protocol
    return (named,) if isinstance(named, str) else tuple(named)
