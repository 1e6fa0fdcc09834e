"""The mutants: each is the product without one of its rules. They are text, and are never imported."""

from tests.mutants.mutant import Edit, Mutant

MUTANTS = (
    Mutant(
        "the fence",
        (
            Edit(
                "proto/log/turns.py",
                "headers = {FENCE: str(fence), FENCE_SUBJECT: subjects.entries(key)}",
                "headers: dict[str, str] = {}",
            ),
        ),
        "zombie",
        "I1 order",
    ),
    Mutant(
        "`prev`: an entry names the one that it continues",
        (
            Edit(
                "proto/chain.py",
                "if chain.is_ended or entry.prev != chain.last:",
                "if chain.is_ended:",
            ),
        ),
        "fork",
        "I6 readers",
    ),
    Mutant(
        "the tail rule: what is unclear is not lost",
        (
            Edit(
                "proto/append.py",
                "        except (Unclear, LogFull) as error:\n            unclear: Exception = error\n",
                "        except Unclear as error:\n            raise FenceLost(str(error)) from error\n"
                "        except LogFull as error:\n            unclear: Exception = error\n",
            ),
        ),
        "lost_acknowledgement",
        "I9 cost",
    ),
    Mutant(
        "the tail rule: what is unclear may stand already",
        (
            Edit(
                "proto/append.py",
                "    for number, stored in enumerate(page.entries, 1):\n        there = link(",
                "    if page.entries:\n        return None, page.entries[-1].seq\n"
                "    for number, stored in enumerate(page.entries, 1):\n        there = link(",
            ),
        ),
        "lost_acknowledgement",
        "I4 no loss",
    ),
    Mutant(
        "de-duplication at the reader",
        (
            Edit(
                "proto/join.py",
                "        if stored.seq <= self.read or self.chain.is_ended:\n            return []\n",
                "        if self.chain.is_ended:\n            return []\n"
                "        if stored.seq <= self.read:\n            return [stored]\n",
            ),
        ),
        "feed",
        "I6 readers",
    ),
    Mutant(
        "the gap check at the reader",
        (
            Edit(
                "proto/join.py",
                "        self.behind = max(self.behind, stored.seq)\n        return []\n",
                "        self.chain, self.read = Chain(stored.seq, self.chain.attempt), stored.seq\n"
                "        return [stored]\n",
            ),
        ),
        "feed",
        "I6 readers",
    ),
    Mutant(
        "a reader goes on after its cursor",
        (
            Edit(
                "gateway/live.py",
                "        position = 0 if cursor == self.after else self._position(cursor)\n",
                "        position = 0 if cursor == self.after else max(self._position(cursor) - 1, 0)\n",
            ),
        ),
        "many_clients",
        "I6 readers",
    ),
    Mutant(
        "a request is acknowledged after its end",
        (
            Edit(
                "generators/worker.py",
                "            with metrics.RUNNING.track_inprogress():\n",
                "            await self._held[key].done()\n            with metrics.RUNNING.track_inprogress():\n",
            ),
        ),
        "killed",
        "I2 one end",
    ),
    Mutant(
        "who lost the fence acknowledges nothing",
        (
            Edit(
                "generators/worker.py",
                "            return not is_batch and await self._was_ended(key)\n",
                "            return True\n",
            ),
        ),
        "zombie",
        "I14 leases",
    ),
    Mutant(
        "a continuation goes on from the last byte",
        (
            Edit(
                "generators/attempt.py",
                "return corrected(call_after(request, turn), turn), continuation_of(request, turn)",
                "return corrected(call_of(request), turn), None",
            ),
        ),
        "killed",
        "I5 text",
    ),
    Mutant(
        "the end is last",
        (
            Edit(
                "proto/chain.py",
                "if chain.is_ended or entry.prev != chain.last:",
                "if entry.prev != chain.last:",
            ),
            Edit(
                "gateway/cancel.py",
                "    while turn.end is None:\n",
                "    is_first = True\n    while turn.end is None or is_first:\n        is_first = False\n",
            ),
        ),
        "many_clients",
        "I2 one end",
    ),
    Mutant(
        "cancelling closes the call at once",
        (
            Edit(
                "generators/attempt.py",
                "        await self._log.until_ended(key)\n",
                "        await asyncio.Event().wait()\n",
            ),
        ),
        "silence",
        "I8 cancellation",
    ),
    Mutant(
        "an idempotency key is claimed",
        (
            Edit(
                "gateway/accept.py",
                "claim = await gateway.claims.claim(tenant, idempotency_key, mine) "
                "if idempotency_key is not None else mine",
                "claim = mine",
            ),
        ),
        "many_clients",
        "I7 idempotency",
    ),
    Mutant(
        "the upsert: an end overwrites what was running",
        (
            Edit(
                "persistence/sql.py",
                "ON CONFLICT (tenant, turn) DO UPDATE SET\n"
                "    outcome = excluded.outcome,\n    content = excluded.content,",
                "ON CONFLICT (tenant, turn) DO UPDATE SET\n    content = excluded.content,",
            ),
        ),
        "many_clients",
        "I10 rows",
    ),
    Mutant(
        "persistence commits, and then acknowledges",
        (
            Edit(
                "persistence/recorder.py",
                "                async with _leased(batch, self._deliveries.renew_every_s):\n",
                "                for delivery in batch:\n                    await delivery.done()\n"
                "                async with _leased(batch, self._deliveries.renew_every_s):\n",
            ),
        ),
        "locked",
        "I10 rows",
    ),
)
