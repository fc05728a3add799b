"""Files from strangers, damaged at random: each is read, or refused by an error that names it.

    python -m bench.fuzz --minutes 5 --seed 1

Seeds of every kind are changed by bytes, by chunks, by their own structure, and by what counts in them; a child process
reads them as clipql does. Anything but an answer or a ClipqlError with the file's name is kept in --out: a traceback, a
crash, more than --seconds, or memory beyond --memory.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import fuzz_seeds

KINDS = ("npy", "parquet", "tar", "picture", "model", "part")
_NUMBERS = (0, 1, 127, 128, 255, 256, 32767, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1)
_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**18), 0.5, 1e308, float("nan"), float("inf"), "",
    "x", "\0", "../../etc/passwd", "/dev/zero", "\ud800", "a" * 70_000, [], {}, [[]], [None], {"": None}, [1] * 3,
    [1e30] * 3,
)  # fmt: skip
_DEEP = ("[" * 100_000, '{"a":' * 50_000)


# damage


def damaged(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Contents with one to a few things changed."""
    if not content:
        return content
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(content) or 1) if rng.random() < 0.6 else rng.randrange(min(512, len(content)) or 1)
        how = rng.randrange(9)
        if how == 0:
            content = content[:at] + bytes([content[at : at + 1][0] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        elif how == 1:
            content = content[:at] + rng.randbytes(rng.randint(1, 8)) + content[at + rng.randint(0, 8) :]
        elif how in (2, 3):
            form = rng.choice("<>") + rng.choice("HIQ")
            number = rng.choice(_NUMBERS) & ((1 << 8 * struct.calcsize(form)) - 1)
            content = content[:at] + struct.pack(form, number) + content[at + struct.calcsize(form) :]
        elif how == 4:
            content = content[:at] + content[at + rng.randint(1, 64) :]
        elif how == 5:
            piece = content[at : at + rng.randint(1, 256)]
            content = content[:at] + piece * rng.choice((2, 3, 50)) + content[at:]
        elif how == 6:
            content = content[: max(1, at)]
        elif how == 7:
            other = rng.choice(others)
            content = content[:at] + other[rng.randrange(len(other)) :][: rng.randint(1, 4096)] + content[at:]
        else:
            content = content[:at] + rng.choice((b"\0", b"\xff", b"9", b"7")) * rng.randint(1, 12) + content[at + 8 :]
        content = content or b"\0"
    return content


def made_good(rng: random.Random, content: bytes) -> bytes:
    """The same with checksums as they must be, without which a reader would not look any further."""
    if content.startswith(b"\x89PNG"):
        found, at = content[:8], 8
        while at + 12 <= len(content):
            size = min(int.from_bytes(content[at : at + 4], "big"), len(content) - at - 12)
            body = content[at + 4 : at + 8 + size]
            found += content[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
            at += 12 + size
        return found
    if content[257:262] == b"ustar":
        blocks = [content[i : i + 512] for i in range(0, len(content), 512)]
        for i, block in enumerate(blocks):
            if block[257:262] == b"ustar" and len(block) == 512:
                total = sum(block[:148]) + 8 * 32 + sum(block[156:])
                blocks[i] = block[:148] + b"%06o\0 " % total + block[156:]
        return b"".join(blocks)
    return content


def damaged_json(rng: random.Random, content: bytes) -> bytes:
    """JSON with values put in the place of others, taken out or nested."""
    if rng.random() < 0.03:
        return rng.choice(_DEEP).encode()
    whole = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(whole))[:4000]
        holder, key = rng.choice(places)
        if rng.random() < 0.15:
            if isinstance(holder, dict):
                holder.pop(key, None)
            continue
        holder[key] = rng.choice([*_ODD, [holder[key]], {"a": holder[key]}, str(holder[key])[:2000]])
        if not isinstance(whole, dict | list) or not whole:
            break
    return json.dumps(whole).encode("utf-8", "surrogatepass")


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in pairs[:40]:
        yield value, key
        if depth < 6:
            yield from _places(inner, depth + 1)


def case(rng: random.Random, kind: str, seeds: Any) -> dict[str, bytes]:
    """The files of one case."""
    if isinstance(seeds, dict):
        files = dict(seeds)
        weights = [4 if n.endswith(".json") else 2 for n in files]
        for name in rng.choices(list(files), weights, k=rng.choice((1, 1, 2))):
            by_structure = name.endswith(".json") and rng.random() < 0.8
            try:
                files[name] = (damaged_json if by_structure else _by_bytes(seeds))(rng, files[name])
            except (ValueError, TypeError, IndexError, RecursionError):
                files[name] = damaged(rng, files[name], [files[name]])
        return files
    content = rng.choice(seeds)
    opened: Callable[[bytes], bytes] = bytes
    if kind == "tar" and rng.random() < 0.7:
        for magic, unpack, pack in (
            (b"\x1f\x8b", gzip.decompress, gzip.compress),
            (b"\xfd7", lzma.decompress, lzma.compress),
        ):
            if content.startswith(magic):
                content, opened = unpack(content), pack
    content = damaged(rng, content, seeds)
    return {"": opened(made_good(rng, content) if rng.random() < 0.7 else content)}


def _by_bytes(seeds: dict[str, bytes]) -> Callable[[random.Random, bytes], bytes]:
    return lambda rng, content: damaged(rng, content, list(seeds.values()))


# reading, in the child


def read(kind: str, place: Path, db: Any) -> None:
    """Read a file, or a folder, as clipql does."""
    from clipql.encode.embed.rows import Skip

    if kind == "npy":
        from clipql.storage.vectors import segments

        for row, block in segments.read_blocks(segments.read_header(place)):
            segments.check_finite(block, row, str(place))
    elif kind == "picture":
        from clipql.encode import pictures
        from clipql.encode.prepare import OPENAI

        pictures.read(place, OPENAI)
    elif kind == "tar":
        from clipql.encode.embed.webdataset import read_tar

        _named(list(read_tar(place, Skip())), place)
    elif kind == "parquet":
        from clipql.encode.embed.parquet import read_parquet
        from clipql.ingest.layout import read_metadata

        _named(list(read_parquet(place, Skip(), pictures=True)), place)
        _named(list(read_parquet(place, Skip(), pictures=False, column="caption")), place)
        read_metadata(place)
    elif kind == "part":
        try:
            db.ingest(place, table="t")
            assert db.sql("SELECT count(), count(image_embedding[1]) FROM t").rows
        finally:
            db.sql("DROP TABLE IF EXISTS t SYNC")
    else:
        from clipql.encode.clip import ClipEncoder
        from clipql.encode.folder import read_folder
        from clipql.encode.onnx import OnnxTowers

        found = read_folder(place)
        encoder = ClipEncoder(found, OnnxTowers(found, threads=1))
        encoder.encode_texts(["a cat", "\ud800 ñ" * 50])
        encoder.encode_pictures([_PICTURE])


def _named(rows: list[Any], place: Path) -> None:
    for row in rows:
        assert not row.error or str(place) in row.error, row.error
        json.dumps([row.caption, row.path, row.key]).encode()


_PICTURE = b""


def child(kind: str, seed: int, place: Path, first: int) -> None:
    """Read case after case; say in `now` which one, so that the parent knows what it stopped at."""
    from clipql.errors import ClipqlError

    global _PICTURE
    _PICTURE = fuzz_seeds.pictures()[0]
    room = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    scratch = place / "scratch"
    if kind == "model":
        seeds: Any = fuzz_seeds.model(place / "seed")
    elif kind == "part":
        seeds = fuzz_seeds.part(place / "seed")
    else:
        seeds = fuzz_seeds.SEEDS[kind]()
    db = None
    if kind == "part":
        import clipql

        db = clipql.connect(place / f"db-{first}")
    number = first
    while True:
        rng = random.Random(f"{kind} {seed} {number}")
        files = case(rng, kind, seeds)
        shutil.rmtree(scratch, ignore_errors=True)
        for name, content in files.items():
            path = scratch / (name or f"file.{kind}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        target = scratch if isinstance(seeds, dict) else scratch / f"file.{kind}"
        (place / "next").write_text(str(number))
        (place / "next").replace(place / "now")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        trouble = ""
        try:
            read(kind, target, db)
        except ClipqlError as error:
            if str(target) not in str(error):
                trouble = f"the file is not named: {error!r}"
        except BaseException:  # noqa: BLE001  what is looked for
            trouble = traceback.format_exc()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if trouble or grown > int(os.environ["FUZZ_MEMORY"]) * 1024:
            (place / "told").write_text(f"{trouble}\ngrown by {grown >> 10} MB")
            os._exit(3)
        number += 1


# the parent


def fuzz(kind: str, seed: int, seconds: float, out: Path, bound: float) -> tuple[int, int]:
    """Run cases of a kind for so long. Returns how many, and how many went wrong."""
    number = wrong = 0
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        while time.monotonic() < end:
            command = [sys.executable, "-m", "bench.fuzz", "--child", kind, str(seed), made, str(number)]
            with open(place / "stderr", "wb") as errors:
                process = subprocess.Popen(command, stderr=errors, stdout=errors)
            last, since, came = "", time.monotonic(), ""
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.25)
                came = (place / "now").read_text() if (place / "now").exists() else ""
                if came != last:
                    last, since = came, time.monotonic()
                elif time.monotonic() - since > bound + (60 if not came else 0):
                    process.kill()
                    (place / "told").write_text(f"it takes more than {bound:g} seconds")
            ended = process.poll()
            process.kill()
            process.wait()
            came = (place / "now").read_text() if (place / "now").exists() else str(number)
            number = int(came) + 1
            if ended is not None:
                wrong += 1
                told = (place / "told").read_text() if (place / "told").exists() else ""
                told = told or f"it ended with {ended}: " + (place / "stderr").read_text(errors="replace")[-3000:]
                kept = out / f"{kind}-{seed}-{came}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(place / "scratch", kept / "files")
                (kept / "told.txt").write_text(told)
                print(f"{kind} {came}: {told.strip().split(chr(10))[-3:]}", flush=True)
            for name in ("told", "now"):
                (place / name).unlink(missing_ok=True)
            for old in place.glob("db-*"):
                shutil.rmtree(old, ignore_errors=True)
    return number, wrong


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--minutes", type=float, default=5.0, help="for each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="that one file may take")
    parser.add_argument("--memory", type=int, default=1200, help="MB that one file may take")
    parser.add_argument("--out", type=Path, default=Path("fuzzed"))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        kind, seed, place, first = given.child
        child(kind, int(seed), Path(place), int(first))
    os.environ["FUZZ_MEMORY"] = str(given.memory)
    os.nice(10)
    failed = 0
    for kind in given.kinds.split(","):
        cases, wrong = fuzz(kind, given.seed, given.minutes * 60, given.out, given.seconds)
        failed += wrong
        print(f"{kind}: {cases:,} cases, {wrong} wrong", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
