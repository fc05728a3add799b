"""Files in S3 and what speaks its protocol, by botocore (extra `s3`).

Credentials, regions and other endpoints (AWS_ENDPOINT_URL) are found as every AWS tool finds them; where there are no
credentials, requests are not signed, as public buckets want it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from clipql.errors import DownloadError
from clipql.ingest.fetch.digests import from_headers
from clipql.ingest.fetch.manners import LONGEST_RETRY_AFTER, Patience, retry_after
from clipql.ingest.fetch.transport import Changed, Failure, RemoteFile, Reply

_BLOCK = 1 << 16
_TRY_AGAIN = {408, 429, 500, 502, 503, 504}


class S3:
    """A client of one endpoint."""

    def __init__(self, patience: Patience) -> None:
        try:
            import botocore.session
            from botocore import UNSIGNED
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError as error:
            raise DownloadError("s3: addresses need botocore: pip install 'clipql[s3]'") from error
        self._timeout = patience.timeout_seconds
        try:
            session = botocore.session.get_session()
            settings = Config(
                connect_timeout=self._timeout,
                read_timeout=self._timeout,
                max_pool_connections=32,
                retries={"total_max_attempts": 1},  # we try again ourselves, and continue where it broke off
                response_checksum_validation="when_required",
            )
            if session.get_credentials() is None:
                settings = settings.merge(Config(signature_version=UNSIGNED))
            region = session.get_config_variable("region") or "us-east-1"
            self._client: Any = session.create_client("s3", region_name=region, config=settings)
        except (BotoCoreError, ValueError) as error:
            raise DownloadError(f"S3 cannot be used: {error}") from error

    def close(self) -> None:
        """Let go of connections."""
        self._client.close()

    def stat(self, url: str, *, careful: bool = False) -> RemoteFile | None:
        """What HeadObject says."""
        bucket, key = _place(url)
        try:
            with self._translated(url):
                found = self._client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        except Failure as failure:
            if failure.status == 404:
                return None
            raise
        headers = {k.lower(): str(v) for k, v in _headers(found).items()}
        headers.setdefault("x-amz-request-id", "")
        modified = found.get("LastModified")
        told = str(modified.timestamp()) if modified else None
        return RemoteFile(url, int(found["ContentLength"]), found.get("ETag"), told, from_headers(headers))

    def keys(self, bucket: str, prefix: str) -> list[str]:
        """The keys of a bucket that begin so. Raises Failure."""
        with self._translated(f"s3://{bucket}/{prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return [one["Key"] for page in pages for one in page.get("Contents", ())]

    @contextmanager
    def read(self, file: RemoteFile, start: int) -> Iterator[Reply]:
        """The bytes of that version of the object, from a place on."""
        bucket, key = _place(file.url)
        options: dict[str, Any] = {"Range": f"bytes={start}-"} if start else {}
        if file.etag:
            options["IfMatch"] = file.etag
        with self._translated(file.url):
            found = self._client.get_object(Bucket=bucket, Key=key, **options)
        body = found["Body"]
        try:
            came = found.get("ContentRange")
            if start and (came is None or not str(came).startswith(f"bytes {start}-")):
                raise Changed(f"byte {start:,} was asked for and {came!r} came")
            if file.etag and found.get("ETag") not in (None, file.etag):
                raise Changed(f"its ETag was {file.etag} and is {found['ETag']}")
            yield Reply(start, self._blocks(file.url, body))
        finally:
            body.close()

    def _blocks(self, url: str, body: Any) -> Iterator[bytes]:
        with self._translated(url):
            while block := body.read(_BLOCK):
                yield block

    @contextmanager
    def _translated(self, url: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, ParamValidationError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ClientError as error:
            raise _refused(url, error) from error
        except ParamValidationError as error:
            raise Failure(f"{url}: {error}", again=False) from error
        except (BotoCoreError, HTTPClientError, HTTPError, OSError) as error:
            raise Failure(f"{url} cannot be reached or breaks off ({error or type(error).__name__})", again=True) from (
                error
            )


def _place(url: str) -> tuple[str, str]:
    found = urlsplit(url)
    # a key may hold what looks like a query
    return found.netloc, url.partition("://")[2].partition("/")[2]


def _headers(found: Mapping[str, Any]) -> Mapping[str, str]:
    headers: Mapping[str, str] = found["ResponseMetadata"].get("HTTPHeaders", {})
    return headers


def _refused(url: str, error: Any) -> Exception:
    meta = error.response.get("ResponseMetadata", {})
    status = int(meta.get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", ""))
    if status in (412, 416):
        return Changed(f"S3 has another object under this name (HTTP {status})")
    if code == "NoSuchBucket":
        return Failure(f"{url}: there is no such bucket", again=False, status=status)
    wait = retry_after({k.lower(): v for k, v in meta.get("HTTPHeaders", {}).items()}.get("retry-after"))
    said = f"{url}: S3 says {code or status} (HTTP {status})"
    if status in (401, 403):
        said += ": the object is not there, or these credentials may not read it"
    again = status in _TRY_AGAIN and (wait or 0.0) <= LONGEST_RETRY_AFTER
    return Failure(said, again=again, wait_seconds=wait, status=status)
