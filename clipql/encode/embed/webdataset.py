"""Tars as webdataset and img2dataset write them: members of one name and several endings are one sample.

What must stay true: every picture is a row, and every other member is a caption of one or is noted as unused, with the
reason; a tar that is cut short or damaged gives the samples before the damage, and one row that says what is wrong; the
keys of the rows follow from the names and kinds of the members alone.

A sample is what has one name up to the last dot, so that `shot 2024.01.01.jpg` and `shot 2024.01.01.txt` belong
together; a second picture of one name is a row of its own. Where a picture has no caption, those of the name up to the
first dot are its, as webdataset has it: `2.json` is that of `2.seg.png`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipql.encode import pictures
from clipql.encode.embed.captions import SIDECARS, BadSidecar, from_sidecars
from clipql.encode.embed.members import DAMAGE, Member, NoTarget, read_members
from clipql.encode.embed.rows import LARGEST, Row, Skip, Unused

# how much of the samples that share a name up to the first dot waits for captions that come behind them
_MOST_WAITING, _MOST_BYTES = 64, 64 << 20


@dataclass
class _Sample:
    """stem: the members' name up to the last dot; picture: the name of its member; texts: of the others, by ending."""

    stem: str
    picture: str = ""
    data: bytes = b""
    texts: dict[str, bytes] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # of the texts' members
    size: int = 0
    error: str = ""
    lent: bool = False  # another picture has its texts


def read_tar(path: Path, skip: Skip, column: str | None = None, unused: Unused | None = None) -> Iterator[Row]:
    """One row a sample, in the order of the tar. column: the key of the caption in `.json` members."""
    reading = _Reading(path, skip, column, unused or Unused())
    rows = 0
    try:
        for member in read_members(path):
            for row in reading.take(member):
                rows += 1
                yield row
    except DAMAGE as error:
        for row in reading.end(damaged=True):
            rows += 1
            yield row
        said = getattr(error, "strerror", None) or error
        message = f"{path} is damaged or cut short after {rows:,} samples ({said}); the rest of it is missing"
        yield Row(f"{path}#!", path=str(path), error=message)
        return
    yield from reading.end()


class _Reading:
    """The samples of one tar that are not yet whole: those with one name up to the first dot."""

    def __init__(self, path: Path, skip: Skip, column: str | None, unused: Unused) -> None:
        self._path, self._skip, self._column, self._unused = path, skip, column, unused
        self._key = ""
        self._waiting: list[_Sample] = []
        self._last: _Sample | None = None  # that the last member went to

    def take(self, member: Member) -> Iterator[Row]:
        """Note a member; gives the rows that are whole by that."""
        folder, slash, file = member.name.rpartition("/")
        stem, ending = _split(file)
        key = folder + slash + file.partition(".")[0]
        is_picture, reason, data = ending in pictures.ENDINGS, member.odd or _hidden(file), None
        if not reason and not is_picture and ending not in SIDECARS:
            data, reason = _unknown(member)
            is_picture = True
        if reason:
            self._unused.note(f"{self._path}#{member.name}", reason)
            return
        if key != self._key:
            yield from self.end()
            self._key = key
        sample = next((s for s in reversed(self._waiting) if s.stem == folder + slash + stem), None)
        if sample is None or (is_picture and sample.picture) or (not is_picture and ending in sample.texts):
            # of the same name once more, as where tars were joined
            sample = _Sample(folder + slash + stem)
            self._waiting.append(sample)
        self._last = sample
        self._read(member, sample, ending, is_picture, data)
        if len(self._waiting) > _MOST_WAITING or sum(s.size for s in self._waiting) > _MOST_BYTES:
            yield from self._give(len(self._waiting) - 1)

    def _read(self, member: Member, sample: _Sample, ending: str, is_picture: bool, data: bytes | None) -> None:
        """Take in a member; data: where it has been read."""
        if is_picture:
            sample.picture = member.name
        else:
            sample.texts[ending] = b""
            sample.names.append(member.name)
        if self._skip:
            sample.size += member.size  # as if it were read, so that the rows come in the same order
            return
        where = f"{self._path}#{member.name}"
        if member.size > LARGEST:
            sample.error = f"{where} has {member.size:,} bytes; the most that is read is {LARGEST:,}"
            return
        sample.size += member.size
        try:
            data = member.read() if data is None else data
        except NoTarget as error:
            sample.error = f"{where}: {error}"
            return
        if is_picture:
            sample.data = data
        else:
            sample.texts[ending] = data

    def end(self, damaged: bool = False) -> Iterator[Row]:
        """The rows of all that waits. damaged: the tar was, where the last member should be."""
        last = self._last
        if damaged and last is not None and not last.data:
            last.error = last.error or f"{self._path}#{last.stem}: the tar is damaged or cut short here"
        yield from self._give(len(self._waiting))
        self._last = None

    def _give(self, number: int) -> Iterator[Row]:
        """The rows of the first so many samples that wait."""
        lenders = [s for s in self._waiting if s.texts]
        given, self._waiting = self._waiting[:number], self._waiting[number:]
        for sample in given:
            if not sample.picture or sample.texts:
                continue
            for stem in (sample.stem, self._key):
                lender = next((s for s in lenders if s.stem == stem), None)
                if lender is not None:
                    sample.texts, lender.lent = lender.texts, True
                    break
        for sample in given:
            if sample.picture or (not sample.lent and any(e in sample.texts for e in ("txt", "caption"))):
                yield self._row(sample)
            elif not sample.lent:
                for name in sample.names:
                    self._unused.note(f"{self._path}#{name}", "no picture has its name")

    def _row(self, sample: _Sample) -> Row:
        key = f"{self._path}#{sample.stem}"
        where = f"{self._path}#{sample.picture}" if sample.picture else key
        error = sample.error or ("" if sample.picture else f"{key} has a caption and no picture")
        caption, extra = "", dict[str, Any]()
        try:
            caption, extra = from_sidecars({e: d for e, d in sample.texts.items() if d}, key, self._column)
        except BadSidecar as bad:
            error = error or str(bad)
        return Row(key, None if error else sample.data, where, caption, error, extra)


def _split(file: str) -> tuple[str, str]:
    """A file's name up to the last dot, and its ending in small letters."""
    stem, dot, ending = file.rpartition(".")
    return (stem, ending.lower()) if dot else (file, "")


def _hidden(file: str) -> str:
    return "its name begins with a dot" if file.startswith(".") else ""


def _unknown(member: Member) -> tuple[bytes, str]:
    """The content of a member whose name says nothing, and why it is no picture; '' where it is one."""
    if member.size > LARGEST:
        return b"", f"its name is not that of a picture, and it has {member.size:,} bytes"
    try:
        data = member.read()
    except NoTarget as error:
        return b"", str(error)
    return data, pictures.why_none(data)
