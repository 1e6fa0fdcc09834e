"""Records a process: `python -m tests.checker.recorded_process HISTORY MODULE [ARGUMENT…]`.

Wraps the methods with which a process changes stored state: append, publish, acknowledge, commit.
`recorded_process(module, folder)` launches it.
"""

import os
import runpy
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tailrace.persistence.rows import TurnRow
from tailrace.persistence.store import Store
from tailrace.proto import entries
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, Event
from tailrace.proto.errors import EntryTooLarge, FenceLost, LogFull
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.nats import Delivery, TurnLog
from tailrace.proto.nats.log_server import Published
from tests.checker.history import HISTORY, Ack, Append, Commit, Recorder, digest
from tests.harness.processes import ForkedProcess, Process

# After these errors the entry is not stored (PROTOCOL R10, R13).
REFUSED = (FenceLost, LogFull, EntryTooLarge)


def record(recorder: Recorder) -> None:
    """Wraps the methods in this process."""
    append, publish_soon, ack, commit = TurnLog.append, TurnLog.publish_soon, Delivery.ack, Store.record

    def begun(key: TurnKey, prev: Seq, entry: Entry) -> Append:
        sha256 = digest(entries.encode(entry))
        return Append(tenant=key.tenant, turn=key.turn, kind=entries.KINDS[type(entry)], prev=prev, sha256=sha256)

    async def recorded_append(self: TurnLog, key: TurnKey, chain: Chain, entry: Entry, **options: Any) -> Chain:
        with recorder.recording(begun(key, chain.last, entry)) as appending:
            try:
                extended = await append(self, key, chain, entry, **options)
            except REFUSED:
                appending.fail()
                raise
            appending.ok(seq=extended.last)
            return extended

    def recorded_publish(self: TurnLog, key: TurnKey, entry: Event, fence: Seq, done: Published) -> bool:
        with ExitStack() as unclear:
            appending = unclear.enter_context(recorder.recording(begun(key, fence, entry)))

            def note(outcome: Seq | Exception) -> None:
                if not isinstance(outcome, Exception):
                    appending.ok(seq=outcome)
                recording.close()
                done(outcome)

            is_sent = publish_soon(self, key, entry, fence, note)
            if is_sent:
                recording = unclear.pop_all()
            return is_sent

    async def recorded_ack(self: Delivery) -> None:
        consumer = self._message.metadata.consumer
        begun = Ack(tenant=self.key.tenant, turn=self.key.turn, consumer=consumer, seq=self.seq)
        with recorder.recording(begun) as acknowledging:
            await ack(self)
            acknowledging.ok()

    async def recorded_commit(self: Store, rows: Sequence[TurnRow], reached: Seq = BEFORE_FIRST) -> None:
        with recorder.recording(
            Commit(rows={f"{row.tenant} {row.turn}": Seq(row.cursor) for row in rows})
        ) as committing:
            await commit(self, rows, reached)
            committing.ok()

    TurnLog.append = recorded_append  # type: ignore[method-assign]
    TurnLog.publish_soon = recorded_publish  # type: ignore[assignment,method-assign]
    Delivery.ack = recorded_ack  # type: ignore[method-assign]
    Store.record = recorded_commit  # type: ignore[method-assign]


def recorded_process(module: str, folder: Path, **environ: object) -> Process:
    """Returns a process of `module` that writes its operations into the history in `folder`."""
    # A library that is loaded before the interpreter, as the clock of the chaos runs, needs a new one.
    launched = Process if "LD_PRELOAD" in environ else ForkedProcess
    return launched("tests.checker.recorded_process", folder, str(folder / HISTORY), module, **environ)


def main() -> None:
    path, module, *arguments = sys.argv[1:]
    record(Recorder(Path(path), f"{module}-{os.getpid()}-{os.urandom(2).hex()}"))
    sys.argv = [module, *arguments]
    runpy.run_module(f"tailrace.{module}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
