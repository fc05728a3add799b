"""As many short statements at work as there are cores; those that wait meanwhile, and are alike, are answered together.

Python runs one thread at a time: more threads than cores, each for a few tenths of a millisecond, spend their time on
handing over. So whoever comes while all turns are taken leaves its question and sleeps, and the next to have a turn
answers with its own all that wait and are of its kind, in less time than each takes alone.

What must stay true: each question is answered once, by its own thread or by another, or raises what it raises alone;
whoever waits does so for turns that are taken; a fork begins with turns that are all free.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from typing import Generic, TypeVar

from clipql.errors import ClipqlError, QueryCancelled
from clipql.index.cores import threads

Q = TypeVar("Q")
A = TypeVar("A")

MOST = 16  # questions answered together: the last of them waits for all


class Together(Generic[Q, A]):
    """Turns, which threads have while they answer questions of type Q by answers of type A. No turn is taken twice by
    a thread.
    """

    def __init__(self, most: int | None = None) -> None:
        """most: turns; as many as the process may use cores, where it is not given."""
        self._most = most or threads()
        self.renew()
        _all.add(self)

    def renew(self) -> None:
        """Make all turns free: after a fork, whose other threads are not there any more."""
        self._guard = Lock()
        self._free = self._most
        self._waiting: deque[_Waiting[Q, A]] = deque()

    def ask(
        self,
        kind: Hashable,
        question: Q,
        alone: Callable[[Q], A],
        each: Callable[[Sequence[Q]], Sequence[A | None] | None],
    ) -> A:
        """The answer to a question, by `alone` within a turn, or by another thread's `each`.

        kind: questions of one kind may be answered together; None for one that may not. each: the answers to several
        questions, in their order; None in place of those that are to be asked alone, or for all.
        """
        own = _Waiting[Q, A](kind, question)
        with self._guard:
            if mine := self._free > 0:
                self._free -= 1
            else:
                self._waiting.append(own)
        if not mine:
            self._wait(own)
            if own.answer is not None:
                return own.answer
            if not own.turn:
                return self.ask(None, question, alone, each)
        try:
            others = self._alike(kind)
            if others:
                self._answer([own, *others], each)
            return alone(question) if own.answer is None else own.answer
        finally:
            self._pass_on()

    def _wait(self, own: _Waiting[Q, A]) -> None:
        """Sleep until there is an answer, or a turn."""
        try:
            own.woken.acquire()
        except BaseException:  # Ctrl-C
            with self._guard:
                there = own in self._waiting
                if there:
                    self._waiting.remove(own)
            if not there and own.turn:
                self._pass_on()
            raise

    def _alike(self, kind: Hashable) -> list[_Waiting[Q, A]]:
        """Those of a kind that wait, who are not waiting any more for a turn."""
        if kind is None or not self._waiting:
            return []
        with self._guard:
            some = [one for one in self._waiting if one.kind == kind][: MOST - 1]
            for one in some:
                self._waiting.remove(one)
        return some

    def _answer(
        self, asked: Sequence[_Waiting[Q, A]], each: Callable[[Sequence[Q]], Sequence[A | None] | None]
    ) -> None:
        """Answer several, the first of which is the thread's own, and wake the others."""
        try:
            for one, answer in zip(asked, each([one.question for one in asked]) or (), strict=False):
                one.answer = answer
        except QueryCancelled:  # the thread's own question is given up; the others are asked alone
            raise
        except ClipqlError:  # whose it is, each says that is asked alone
            pass
        finally:
            for one in asked[1:]:
                one.woken.release()

    def _pass_on(self) -> None:
        """Give the turn to whoever has waited the longest."""
        with self._guard:
            if not self._waiting:
                self._free += 1
                return
            heir = self._waiting.popleft()
            heir.turn = True
        heir.woken.release()


class _Waiting(Generic[Q, A]):
    """A question on its way. turn: whether its thread was given one."""

    __slots__ = ("answer", "kind", "question", "turn", "woken")

    def __init__(self, kind: Hashable, question: Q) -> None:
        self.kind, self.question, self.turn = kind, question, False
        self.answer: A | None = None
        self.woken = Lock()
        self.woken.acquire()


_all: weakref.WeakSet[Together] = weakref.WeakSet()  # type: ignore[type-arg]


def _renew() -> None:
    for each in list(_all):
        each.renew()


os.register_at_fork(after_in_child=_renew)
