"""What one run spends of a budget, and on which models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from parallel_processor.exceptions import ParallelProcessorError, RunStoppedError, StopCause
from parallel_processor.files.identity import content_key
from parallel_processor.files.records import read_outcome
from parallel_processor.files.resume import AnsweredRequests
from parallel_processor.models import Attempt, AttemptStatus, Estimate, Outcome, Request, Response
from parallel_processor.planning.budget import Budget
from parallel_processor.planning.costs import Costs, ModelCost, Spent, dearest_first
from parallel_processor.planning.ledger import Ledger, ledger_path
from parallel_processor.planning.tariff import Asked, counted_use, may_be_charged, tier_of, use_of

if TYPE_CHECKING:
    from parallel_processor.workers.pending import PendingRequest

_AT_RISK = 0.02  # of the bound: what a kill may waste, if the job won't leave more
_MARGIN = 1.25  # above what the rest of a job will cost by the average of what it has


@dataclass(slots=True)
class _Row:
    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    has_price: bool = True


_NOTHING = Spent()


class _Reserved(NamedTuple):
    amount: Spent  # the most
    likely: Spent  # what the ledger covers
    excess: Spent  # of that above what answers mostly use


class Spending:
    """What one run spends. Any thread may call it. The budget's lock guards every field.

    Attributes:
        before: what earlier runs with the same results have spent.
        uncertain: what attempts may have cost that don't say it.
    """

    def __init__(
        self, budget: Budget, request_url: str, stop: Callable[[BaseException], None]
    ) -> None:
        """``stop`` is called once nothing more may be sent, with the reason."""
        self._budget, self._request_url, self._stop = budget, request_url, stop
        self._rows: dict[tuple[str, str], _Row] = {}
        self._in_flight: dict[PendingRequest, _Reserved] = {}
        self._delivered: dict[int, Spent] = {}  # what their records will say, by request
        self._path: Path | None = None
        self._ledger: Ledger | None = None
        self._copied = AnsweredRequests()  # on record, if equal requests share an answer
        self._refused_at = -1  # the budget's count of attempts that had ended
        self._reserved = self._excess = self._unrecorded = self._recorded = Spent()
        self._spent = Spent()  # by this run
        self._job: Callable[[], tuple[int, int] | None] = lambda: None
        self._spare, self._spare_at = Spent(), 0
        self.before = self.uncertain = Spent()

    @property
    def is_bounded(self) -> bool:
        """True if :meth:`reserve` has to be asked."""
        return self._budget.is_bounded

    @property
    def is_short(self) -> bool:
        """True while the next attempt must wait for what those in flight leave. Takes no lock."""
        return self._refused_at == self._budget.ended

    # The results file.

    def open(self, results: Path, *, overwrite: bool) -> None:
        """The run writes ``results``. Raises :class:`ResultsFileError` if the ledger can't be used."""
        self._path = results.resolve()
        ledger = Ledger(ledger_path(self._path), self._budget.bound, overwrite=overwrite)
        with self._budget.lock:
            self._ledger, self._unrecorded = ledger, ledger.before
            if overwrite:
                self._budget.forget(self._path)

    def add_record(self, line: bytes) -> None:
        """Count a good record that is there."""
        outcome = read_outcome(line, 0)
        if outcome is not None and not self._is_copy(outcome):
            with self._budget.lock:
                self._recorded = self._recorded.plus(self._of_record(outcome))

    def _is_copy(self, outcome: Outcome) -> bool:
        """True if an equal request has the same answer, and equal ones are sent once. For one thread."""
        response = outcome.raw_response
        if not self._budget.pays_once or response is None:
            return False
        key = _pair_key(outcome.request, response)
        is_copy = key is not None and self._copied.has(key)
        if key is not None and not is_copy:
            self._copied.add(key)
        return is_copy

    def begin(self, job: Callable[[], tuple[int, int] | None] = lambda: None) -> None:
        """All records that are there were counted.

        ``job`` tells how many requests have ended, and how many are left; ``None`` if that is unknown.
        """
        self._copied = AnsweredRequests()
        with self._budget.lock:
            self._job = job
            self.before = self._recorded.plus(self._unrecorded)
            if self._path is not None:
                self._budget.found(self._path, self.before)

    def delivers(self, outcome: Outcome) -> None:
        """An outcome is on its way to the writer, which may forget its response."""
        if outcome.ok and self._ledger is not None and not outcome.deduplicated:
            with self._budget.lock:
                self._delivered[outcome.request.number] = self._of_record(outcome)

    def recorded(self, outcomes: Iterable[Outcome], on_record: bool) -> None:
        """These outcomes are on record, or never will be."""
        with self._budget.lock:
            for outcome in outcomes:
                amount = self._delivered.pop(outcome.request.number, None)
                if amount is not None and on_record:
                    self._recorded = self._recorded.plus(amount)
                    self._unrecorded = self._unrecorded.minus(amount).at_least_0()
            self._cover()

    def end(self) -> None:
        """The run is over: attempts that never came back count in full."""
        with self._budget.lock:
            for pending in tuple(self._in_flight):
                lost = self._give_back(pending)
                self._budget.spent = self._budget.spent.plus(lost)
                self._spent = self._spent.plus(lost)
                self._unrecorded = self._unrecorded.plus(lost)
            waiting = self._budget.take_waiting()
        for call in waiting:
            call()

    def close(self) -> None:
        """Nothing more comes on record. Raises :class:`ResultsFileError` if the ledger can't be written."""
        self.end()
        with self._budget.lock:
            if self._path is not None:
                self._budget.left(self._path, self._recorded.plus(self._unrecorded))
                ledger, self._ledger, self._path = self._ledger, None, None
                if ledger is not None:
                    ledger.finish(self._unrecorded)

    def _of_record(self, outcome: Outcome) -> Spent:
        request, response = outcome.request, outcome.raw_response
        if response is None:
            return Spent()
        if request.is_row:  # its record doesn't have it
            return self._budget.tariff.of_record("", response)
        return self._budget.tariff.of_record(request.model, response, _tier(request.body))

    # Attempts.

    def why_never(self, pending: PendingRequest) -> str:
        """Why the whole budget has no room for a request that was counted; empty if it has."""
        assert pending.estimate is not None
        with self._budget.lock:
            most = self._budget.tariff.most(self._asked(pending), pending.estimate)
            return self._budget.why_never(most)

    def reserve(
        self,
        pending: PendingRequest,
        on_room: Callable[[], None],
        divide: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Reserve what an attempt may use, which is about to be sent.

        False if it must wait while :attr:`is_short`, or if the run stops now. ``on_room`` is called at the
        end of the wait. Before the run stops, ``divide`` is called. If it is true, ``pending`` is smaller
        now, and false is returned at once.
        """
        budget, asked, estimate = self._budget, self._asked(pending), pending.estimate
        assert estimate is not None
        with budget.lock:
            if budget.bound.cost < float("inf") and budget.tariff.price(asked) is None:
                text = budget.tariff.no_price(asked)
                self._stop(RunStoppedError(text, StopCause.PRICE, models=(asked.model,)))
                return False
            amount = budget.tariff.most(asked, estimate)
            likely = budget.tariff.likely(asked, estimate, amount)
            excess = likely.minus(budget.tariff.usual(asked))
            if self._risks_too_much(excess):
                self._refused_at = budget.ended
                budget.wait(on_room)
                return False
            if not budget.has_room(amount):
                if not budget.in_flight and divide():
                    return False
                self._refused_at = budget.ended
                if budget.in_flight:
                    budget.wait(on_room)
                else:
                    text = budget.why_not(amount, pending.request.number)
                    self._stop(RunStoppedError(text, StopCause.BUDGET))
                return False
            budget.reserve(amount)
            self._in_flight[pending] = _Reserved(amount, likely, excess)
            self._reserved = self._reserved.plus(likely)
            self._excess = self._excess.plus(excess)
            if not self._cover():
                self._give_back(pending)
                return False
            return True

    def release(self, pending: PendingRequest) -> None:
        """The attempt is not sent after all."""
        with self._budget.lock:
            self._give_back(pending)
            waiting = self._budget.take_waiting()
        for call in waiting:
            call()

    def ended(self, pending: PendingRequest, attempt: Attempt | BaseException) -> None:
        """An attempt has ended: what it used takes the place of what was reserved."""
        asked = self._asked(pending)
        if not self._budget.is_bounded:
            with self._budget.lock:
                self._used(asked, None, attempt, _NOTHING)
            return
        with self._budget.lock:
            reserved = self._give_back(pending)
            used = self._used(asked, pending.estimate, attempt, reserved)
            self._budget.spent = self._budget.spent.plus(used)
            self._spent = self._spent.plus(used)
            self._unrecorded = self._unrecorded.plus(used)
            waiting = self._budget.take_waiting()
            self._cover()
        for call in waiting:
            call()

    # Caller holds the lock.

    def _give_back(self, pending: PendingRequest) -> Spent:
        reserved = self._in_flight.pop(pending, None)
        if reserved is None:
            return Spent()
        self._budget.release(reserved.amount)
        self._reserved = self._reserved.minus(reserved.likely)
        self._excess = self._excess.minus(reserved.excess)
        if not self._in_flight:  # without what the sums of fractions leave
            self._reserved = self._excess = Spent()
        return reserved.amount

    def _risks_too_much(self, excess: Spent) -> bool:
        """True if a kill now would count too much as spent. It is the ledger that counts then."""
        if self._ledger is None or not self._in_flight:
            return False
        risk = self._excess.plus(excess)
        limit = self._budget.bound.times(_AT_RISK)
        return risk.exceeds(limit) and risk.exceeds(limit.or_more(self._to_spare()))

    def _to_spare(self) -> Spent:
        """What the whole job will probably leave of the bound. It is looked at after some more attempts."""
        ended = self._budget.ended
        if ended >= self._spare_at:
            self._spare_at = ended + 1 + ended // 20
            self._spare = Spent()
            done, left = self._job() or (0, 0)
            if done:
                whole = self._budget.spent.plus(self._spent.times(_MARGIN * left / done))
                self._spare = self._budget.bound.minus(whole)
        return self._spare

    def _cover(self) -> bool:
        """Have the ledger cover what no record says; if it can't, the run stops, and this is false."""
        try:
            if self._ledger is not None:
                self._ledger.cover(self._unrecorded.plus(self._reserved))
        except ParallelProcessorError as error:
            self._stop(error)
            return False
        return True

    def _used(
        self,
        asked: Asked,
        estimate: Estimate | None,
        attempt: Attempt | BaseException,
        reserved: Spent,
    ) -> Spent:
        tariff, use, tier, price = self._budget.tariff, None, "", None
        if isinstance(attempt, Attempt) and attempt.response is not None:
            tier = tier_of(attempt.response)
            price = tariff.price(asked, tier)
            needs_all = price is not None or self.is_bounded
            use = use_of(attempt.response) if needs_all else counted_use(attempt)
        if use is None or not isinstance(attempt, Attempt) or attempt.response is None:
            if not may_be_charged(attempt):
                return Spent()
            self.uncertain = self.uncertain.plus(reserved)
            return reserved
        if not use.input_tokens:
            use = tariff.with_prompt(use, asked, estimate)
        key = asked.model, tier or asked.tier
        if (row := self._rows.get(key)) is None:
            row = self._rows[key] = _Row()
        row.answers += 1
        row.input_tokens += use.input_tokens
        row.output_tokens += use.output_tokens
        row.has_price = price is not None
        cost = 0.0 if price is None else use.cost(price)
        row.cost += cost
        spent = Spent(cost, use.used_tokens)
        if estimate is not None and attempt.status is AttemptStatus.ANSWERED:
            tariff.learn(asked, estimate, use, spent)
        return spent

    def _asked(self, pending: PendingRequest) -> Asked:
        bucket, request = pending.bucket, pending.request
        tier = bucket.upstream.tier or _tier(request.body)
        url = bucket.url or request.url or self._request_url
        return Asked(url, bucket.model or request.model, tier)

    # Figures. Any thread.

    def costs(self) -> Costs | None:
        """What was spent until now; ``None`` if there are no prices."""
        if self._budget.tariff.prices is None:
            return None
        with self._budget.lock:
            before, uncertain = self.before.cost, self.uncertain.cost
            found = [
                ModelCost(
                    model=model,
                    tier=tier,
                    answers=row.answers,
                    input_tokens=row.input_tokens,
                    output_tokens=row.output_tokens,
                    cost=row.cost if row.has_price else None,
                )
                for (model, tier), row in self._rows.items()
            ]
        return Costs(models=dearest_first(found), before=before, uncertain=uncertain)


def _tier(body: Any) -> str:
    """The service tier that a request names."""
    named = body.get("service_tier") if isinstance(body, dict) else None
    return named if isinstance(named, str) else ""


def _pair_key(request: Request, response: Response) -> bytes | None:
    """16 bytes of a request and its answer; ``None`` if it isn't clear that no other one has them."""
    asked = content_key(request)
    if request.body is None:  # a Batch record: only the answer can tell
        data = response.data
        if not isinstance(data, dict) or not (data.get("id") or data.get("responseId")):
            return None
    return hashlib.blake2b(asked + response.body, digest_size=16).digest()
