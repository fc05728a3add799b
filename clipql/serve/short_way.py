"""Short work is done on the event loop, where handing it to a thread and back would take as long.

What must stay true: the answer is that of the long way, with all its checks; nothing is waited for; and what turned out
to take long goes the long way for a while.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from typing import Any

from clipql.engine.users import Acting
from clipql.serve.service import Service
from clipql.sql.session import Answer
from clipql.syntax.recent import Recent

# seconds: of one answer, by the clock and of the processor, beyond which it goes the long way; for how long it does
LONG, WORK, AWHILE = 0.25, 0.02, 1.0


class ShortWay:
    """Answers at once what can be."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._long: Recent[Hashable, float] = Recent(256)

    def answer(
        self,
        sql: str,
        params: Mapping[str, Any],
        format: str,
        acting: Acting,
        own: Mapping[str, str],
        *,
        write: bool,
        as_table: bool = False,
    ) -> Answer | None:
        """The answer to a statement; None where it must go the long way.

        own: clipql's settings beside it. as_table: the output may hold an Arrow table instead of bytes.

        Call it from the event loop. Raises ClipqlError.
        """
        service = self._service
        until = self._long.find(key := (sql, format))
        if until is not None and time.monotonic() < until:
            return None
        with service.engine.act(acting):
            checked = service.guard.remembered(sql, write=write)
            if checked is None or checked.writes or checked.sets or checked.kills is not None or checked.slow:
                return None
            limits, fellows = service.options.limits, service.fellows
            if not fellows.start(limits.running):
                return None
            began, worked = time.perf_counter(), time.thread_time()
            try:
                with service.moment_now() as held:
                    if not held:
                        return None
                    session = service.database.session()
                    session.settings.update(own)
                    answer = session.at_once(checked.sql, params, format=format, as_table=as_table)
            finally:
                fellows.finish()
                if time.perf_counter() - began > LONG or time.thread_time() - worked > WORK:
                    self._long.keep(key, time.monotonic() + AWHILE)
        if answer is not None:
            service.metrics.searched(answer)
        return answer
