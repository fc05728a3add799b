"""A packed body gives what it holds or an error, and never more than may be: whatever its headers claim."""

from __future__ import annotations

import resource

from claims import LIMIT, Packed, claims

from clipql.errors import QueryError
from clipql.serve import unpacking

REFUSED = {307, 354, 271}  # too large; not packed as it says
ROOM = 200 << 20


def unpacked(packed: Packed) -> tuple[bytes | int, int]:
    """What it gives, or the code of the error; the bytes that were counted."""
    counted = 0

    def count(size: int) -> None:
        nonlocal counted
        counted += size

    try:
        if packed.encoding == "blocks":
            return unpacking.unpack_blocks(packed.body, LIMIT, count), counted
        return unpacking.unpacked(packed.encoding, packed.body, LIMIT, count), counted
    except QueryError as error:
        return error.code, counted


def test_no_claim_gives_more_than_may_be_or_anything_else_than_it_holds() -> None:
    every = list(claims())
    assert len(every) > 1_500
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    wrong = []
    for packed in every:
        found, counted = unpacked(packed)
        good = found in REFUSED if isinstance(found, int) else found == packed.holds and len(found) <= LIMIT
        if not good or counted > LIMIT:
            wrong.append((packed.name, found if isinstance(found, int) else len(found), counted))
    assert wrong == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 < before + ROOM


def test_what_claims_the_truth_or_nothing_and_fits_is_given() -> None:
    ends = ("claiming None", *(f"of {size:,}, claiming {size}" for size in (1, 10, LIMIT)))
    plain = [p for p in claims() if p.name.endswith(ends) and len(p.holds) <= LIMIT and p.encoding != "blocks"]
    assert len(plain) == 4 * 4 + 3 * 3
    assert [unpacked(p)[0] for p in plain] == [p.holds for p in plain]
