"""Answers in Native as the version that a client names has it: which columns have which time zone, block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from clipql.errors import ClipqlError
from clipql.serve import native_blocks as native
from clipql.serve.guard import Checked
from clipql.serve.service import Request, Service
from clipql.sql import settings
from clipql.sql.session import Answer, Session


def run(
    service: Service,
    checked: Checked,
    request: Request,
    params: Mapping[str, str],
    session: Session | None,
    sink: Callable[[bytes], None],
) -> Answer:
    """Run what the guard has passed, as `Service.run_checked`. params: those of the request, which name the version."""
    version = native.version(params)
    text, format = settings.take_format(checked.sql)
    if not version or (format or request.format) != "Native" or checked.writes:
        return service.run_checked(checked, request, session, sink)
    asking = replace(request, format="ArrowStream")

    def zones() -> dict[int, str]:
        # DESCRIBE names what Native leaves out
        try:
            described = service.run_checked(replace(checked, sql=f"DESCRIBE ({text})"), asking, session)
        except ClipqlError:
            return {}  # such as SHOW, which is no SELECT
        types = described.output.arrow().column("type").to_pylist()
        return {place: type for place, type in enumerate(types) if type.startswith("DateTime(")}

    blocks = native.Blocks(version, zones)
    answer = service.run_checked(checked, request, session, lambda piece: sink(blocks.of(piece)))
    return replace(answer, output=replace(answer.output, data=blocks.of(answer.output.data, rows=answer.output.rows)))
