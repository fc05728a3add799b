"""Data sets on Hugging Face: what hf://datasets/… means over HTTP, by huggingface_hub.

What must stay true: all files are of the one commit that the revision named when the run began; the user's token goes
to the hub and nowhere else.
"""

from __future__ import annotations

import re
from urllib.parse import quote

import httpx2

from clipql.encode import hub
from clipql.errors import DownloadError

_ADDRESS = re.compile(
    r"hf://datasets/(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>refs/convert/[^/]+|refs/pr/\d+|[^/]+))?(?:/(?P<path>.*))?"
)


def split(url: str) -> tuple[str, str]:
    """An address as the data set, with its revision, and a path in it. Raises DownloadError."""
    match = _matched(url)
    return url[: match.start("path")].rstrip("/") if match["path"] else url.rstrip("/"), match["path"] or ""


def _matched(url: str) -> re.Match[str]:
    match = _ADDRESS.fullmatch(url)
    if match is None:
        raise DownloadError(f"{url}: expected hf://datasets/OWNER/NAME, hf://datasets/OWNER/NAME@REVISION, or a folder")
    return match


def paths_of(url: str, address: str, folder: str) -> list[str]:
    """The paths of all files of a data set that lie in a folder, or are it, at the commit of `web_address`.

    url: for messages; address: what `web_address` gave. Raises DownloadError.
    """
    from huggingface_hub import HfApi, errors, get_token
    from huggingface_hub.hf_api import RepoFile

    endpoint = hub.endpoint()
    name, commit = re.findall(r"/datasets/(.+)/resolve/([0-9a-f]{40})", address)[0]
    api = HfApi(endpoint=endpoint, library_name="clipql")
    try:
        found = api.list_repo_tree(
            name, folder or None, recursive=True, revision=commit, repo_type="dataset", token=get_token()
        )
        return [entry.path for entry in found if isinstance(entry, RepoFile)]
    except errors.EntryNotFoundError:
        return []
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise DownloadError(f"{url}: {endpoint} says HTTP {status} where its files are listed") from error
    except (httpx2.HTTPError, OSError) as error:
        raise DownloadError(f"{url}: {endpoint} cannot be reached ({error or type(error).__name__})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"{url}: {endpoint} does not answer as the hub does ({error!r})") from error


def web_address(url: str) -> tuple[str, dict[str, str]]:
    """The HTTP address of a folder or template of a data set at its present commit, and the headers to send.

    Raises DownloadError where there is no such data set, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, errors, get_token

    match = _matched(url)
    name, endpoint = match["name"], hub.endpoint()
    if hub.offline():
        raise DownloadError(f"{url}: HF_HUB_OFFLINE is set, so the hub is not asked")
    token = get_token()
    try:
        info = HfApi(endpoint=endpoint, library_name="clipql").dataset_info(
            name, revision=match["revision"], timeout=30, token=token
        )
    except errors.HFValidationError as error:
        raise DownloadError(f"{url}: {error}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise DownloadError(
            f"{url}: {endpoint} says HTTP {status}: see whether the data set and the revision are there; for a private "
            "or gated one set HF_TOKEN to a token that may read it"
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        raise DownloadError(f"{url}: {endpoint} cannot be reached ({error or type(error).__name__})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"{url}: {endpoint} does not answer as the hub does ({error!r})") from error
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise DownloadError(f"{url}: {endpoint} names {info.sha!r} as the commit; expected 40 hexadecimal digits")
    path = quote(match["path"] or "", safe="/{}:_")
    address = f"{endpoint}/datasets/{name}/resolve/{info.sha}/{path}".rstrip("/")
    return address, {"Authorization": f"Bearer {token}"} if token else {}
