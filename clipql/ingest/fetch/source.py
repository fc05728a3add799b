"""Where the files of a part lie at a source: a base address with LAION's folders, or a template.

The folders are those of clip-retrieval and of LAION-400M's first host (img_emb/, text_emb/, metadata/), those of its
mirrors (images/, texts/, metadata/), or none. Numbers are plain, or filled with zeros to four or five digits as in
LAION-5B and on Hugging Face. Which of them it is, the first part that is there shows.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from clipql.errors import DownloadError
from clipql.ingest.fetch.http import Http, shown
from clipql.ingest.fetch.manners import Patience
from clipql.ingest.fetch.transport import Failure, RemoteFile, Transport

IMAGE, TEXT, METADATA = "img_emb", "text_emb", "metadata"
KINDS = (METADATA, IMAGE, TEXT)
_ENDINGS = {IMAGE: "npy", TEXT: "npy", METADATA: "parquet"}
_MIRRORS = {IMAGE: "images", TEXT: "texts", METADATA: "metadata"}
_FIELDS = ("kind", "folder", "number", "ending")
_FILE = "{kind}_{number%s}.{ending}"
_LAYOUTS = [f"{folder}{_FILE % digits}" for digits in ("", ":04", ":05") for folder in ("{kind}/", "{folder}/", "")]
# of the parts that are asked for, so many are looked for to learn the layout
_TRIED = 4


def local_name(kind: str, number: int) -> str:
    """Where a file goes in the folder of a download, whatever its source calls it."""
    return f"{kind}/{kind}_{number}.{_ENDINGS[kind]}"


def is_address(text: str) -> bool:
    """Whether a source is an address, and no folder of this machine."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(//)?", text)
    return scheme is not None and (scheme[1] is not None or not Path(text).exists())


@dataclass(frozen=True)
class Source:
    """Where parts come from. said: for messages and records; base: what lies beside the parts, None of a template."""

    transport: Transport
    said: str
    template: str
    base: Callable[[str], str] | None = None

    def url(self, kind: str, number: int) -> str:
        """The address of one file."""
        names = {"kind": kind, "folder": _MIRRORS[kind], "number": number, "ending": _ENDINGS[kind]}
        return self.template.format(**names)


def open_source(text: str, patience: Patience) -> tuple[Transport, str, list[str], Callable[[str], str] | None]:
    """How to reach a source, what to call it, and the templates it may follow. Raises DownloadError."""
    address, headers, said = text, dict[str, str](), shown(text)
    if address.startswith("hf:"):
        from clipql.ingest.fetch.datasets import web_address

        address, headers = web_address(address)
    elif address.startswith("file:"):
        address = unquote(urlsplit(address).path)
        said = address
    elif not is_address(address):
        address = said = str(Path(address).absolute())
    is_template = _check_template(text)
    if is_template:
        templates, base = [address], None
    else:
        base = _under(address)
        templates = [base(layout) for layout in _LAYOUTS]
    return _transport(address, patience, headers), said.rstrip("/") or "/", templates, base


def _transport(address: str, patience: Patience, headers: dict[str, str]) -> Transport:
    if address.startswith(("http:", "https:")):
        return Http(patience, headers)
    if address.startswith("s3:"):
        from clipql.ingest.fetch.s3 import S3

        return S3(patience)
    from clipql.ingest.fetch.fsspec_files import AnyFileSystem

    return AnyFileSystem(address.partition("{")[0])


def _check_template(text: str) -> bool:
    """Whether a source is a template. Raises DownloadError for one that does not tell every file apart."""
    if "{number" not in text and "{kind" not in text:
        return False
    try:
        fields = {name: form for _, name, form, _ in string.Formatter().parse(text) if name is not None}
        text.format(kind=IMAGE, folder="images", number=0, ending="npy")
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise DownloadError(
            f"{text}: {error!r} in the template; it may hold {', '.join(f'{{{f}}}' for f in _FIELDS)} and {{number:04}}"
        ) from error
    if "number" not in fields or not {"kind", "folder"} & set(fields):
        raise DownloadError(
            f"{text}: a template needs {{number}} and {{kind}} (img_emb, text_emb, metadata), or {{folder}} (images, "
            "texts, metadata), or all files would have one address"
        )
    return True


def _under(address: str) -> Callable[[str], str]:
    """A function from what lies under a base address to its own address; braces in the base are no placeholders."""
    if address.startswith(("http:", "https:")):
        found = urlsplit(address)
        path = found.path.rstrip("/").replace("{", "%7B").replace("}", "%7D")
        head = urlunsplit((found.scheme, found.netloc, path, "", ""))
        query = f"?{found.query}".replace("{", "%7B").replace("}", "%7D") if found.query else ""
        return lambda name: f"{head}/{name}{query}"
    root = address.rstrip("/").replace("{", "{{").replace("}", "}}")
    return lambda name: f"{root}/{name}"


def settle(
    opened: tuple[Transport, str, list[str], Callable[[str], str] | None],
    numbers: Sequence[int],
    kinds: Sequence[str],
    stat: Callable[[str], RemoteFile | None],
) -> Source:
    """The template that the files of a source follow. stat: the transport's, with patience. Raises DownloadError.

    A file that is refused stands for none; a source that cannot be reached is not asked for the next.
    """
    transport, said, templates, base = opened
    if len(templates) == 1:
        return Source(transport, said, templates[0], base)
    # not by the metadata, which lies in the same folder in two of the layouts
    vectors = [k for k in (IMAGE, TEXT) if k in kinds]
    looked: list[str] = []
    refused: Failure | None = None
    for number in numbers[:_TRIED]:
        for template in templates:
            source = Source(transport, said, template, base)
            for url in (source.url(kind, number) for kind in vectors):
                if url in looked:  # 12345 is written alike with and without zeros
                    continue
                looked.append(url)
                try:
                    if stat(url):
                        return source
                except Failure as failure:
                    if failure.again:
                        raise DownloadError(str(failure)) from failure
                    refused = failure
    if refused:
        raise DownloadError(str(refused)) from refused
    raise DownloadError(
        f"{said} has none of the first parts: looked for {shown(looked[0])}, {shown(looked[1])} and {len(looked) - 2} "
        "others. See whether the address and --parts are right, or give a template such as "
        f"{said.rstrip('/')}/{{kind}}/{{kind}}_{{number}}.{{ending}}"
    )
