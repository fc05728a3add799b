"""Answers in Native as the version that a client names has it: which columns have which time zone, block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from clipql.errors import ClipqlError, QueryError
from clipql.serve import native_blocks as native
from clipql.serve import totals
from clipql.serve.guard import Checked
from clipql.serve.service import Request, Service
from clipql.sql.recognition import settings
from clipql.sql.session import Answer, Session
from clipql.sql.totals import may_have_more
from clipql.syntax.reading import read
from clipql.syntax.statements import Select


def run(
    service: Service,
    checked: Checked,
    request: Request,
    version: int,
    session: Session | None,
    sink: Callable[[bytes], None],
    *,
    apart: totals.Apart | None = None,
) -> Answer:
    """Run what the guard has passed, as `Service.run_checked`. version: of the client, 0 where it names none.

    apart: every block of Native is given to `sink` by itself, after one without rows that names the columns; those of
    totals and extremes are put there.
    """
    text, format = settings.take_format(checked.sql)
    if apart is not None and format not in (None, "Native", "Null"):
        # clients of the native protocol write the format themselves
        checked, format = replace(checked, sql=text), None
    if not version or (format or request.format) != "Native" or checked.writes:
        return service.run_checked(checked, request, session, sink)
    if apart is not None and isinstance(read(text).kind, Select) and may_have_more(text, service.registry):
        return totals.run(service, replace(checked, sql=text), request, version, session, sink, apart)

    def described() -> list[tuple[str, str]]:
        # DESCRIBE names what Native leaves out
        asking = replace(request, format="ArrowStream", progress=None)
        try:
            found = service.run_checked(replace(checked, sql=f"DESCRIBE ({text})"), asking, session).output.arrow()
        except ClipqlError:
            return []  # such as SHOW, which is no SELECT
        return list(zip(found.column("name").to_pylist(), found.column("type").to_pylist(), strict=True))

    def zones() -> dict[int, str]:
        return {place: type for place, (_, type) in enumerate(described()) if type.startswith("DateTime(")}

    blocks = native.Blocks(version, zones)
    if apart is None:
        answer = service.run_checked(checked, request, session, lambda piece: sink(blocks.of(piece)))
        return replace(
            answer, output=replace(answer.output, data=blocks.of(answer.output.data, rows=answer.output.rows))
        )
    begun = False

    def one_by_one(piece: bytes, rows: int | None = None) -> None:
        nonlocal begun
        for block in blocks.each(piece, rows=rows):
            if not begun:
                begun = True
                sink(blocks.header_of(block))
            sink(block)

    try:
        answer = service.run_checked(checked, request, session, one_by_one)
    except QueryError as error:
        if begun or error is not blocks.unknown:
            raise
        # where all rows are one block, its last column may be of a type that cannot be told apart from the next
        answer = service.run_checked(checked, request, session)
    one_by_one(answer.output.data, answer.output.rows)
    if not begun and not checked.sets and (columns := described()):
        sink(blocks.header(columns))
    return replace(answer, output=replace(answer.output, data=b""))
