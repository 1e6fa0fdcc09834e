#!/usr/bin/env bash
# SQLite FTS5 looks at the range of rowid only when it has found a row: two frequent words that no row has together read all.
#
# Guessed:  `MATCH 'odd even' AND rowid >= ?` over the newest 10 rows costs as much as one word over this range.
# Version:  the SQLite of python3 (3.38 or newer); seen with 3.40.1.
# Seen:     the shortest of five runs, over 200,000 rows of which each has one of the words:
#               newest 10 rows, one word:  0.2 ms
#               newest 10 rows, two words: 12.2 ms
#               all rows, two words:       12.2 ms
#           The intersection moves on until both words meet. It does not end at the bound.
# Meets:    full-text search in pages (`rowid < ? ORDER BY rowid DESC LIMIT 20`) over a large table. Search for one word, the
#           rarest, and test the others row by row.
# Tailrace: Searches the index for one word, the rarest, and tests the others row by row (ADR 28).
# Exits non-zero if this changes, and 77 if this SQLite is older or has no FTS5.
. "$(dirname "$0")/setup.sh"
run_python <<'PYTHON'
import sqlite3
import sys
import time

ROWS = 200_000
if sqlite3.sqlite_version_info < (3, 38):
    sys.exit(77)
database = sqlite3.connect(":memory:")
try:
    database.execute("CREATE VIRTUAL TABLE t USING fts5(words, detail = none)")
except sqlite3.OperationalError:
    sys.exit(77)
database.executemany("INSERT INTO t (rowid, words) VALUES (?, ?)", ((n, "odd" if n % 2 else "even") for n in range(1, ROWS + 1)))
database.execute("INSERT INTO t (t) VALUES ('optimize')")


def milliseconds(words, first):
    """Returns the shortest of five runs."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        database.execute("SELECT rowid FROM t WHERE t MATCH ? AND rowid >= ? ORDER BY rowid DESC", (words, first)).fetchall()
        times.append((time.perf_counter() - begin) * 1000)
    return min(times)


seen = [milliseconds("odd", ROWS - 9), milliseconds("odd even", ROWS - 9), milliseconds("odd even", 0)]
for label, value in zip(("newest 10 rows, one word: ", "newest 10 rows, two words:", "all rows, two words:      "), seen, strict=True):
    print(label, f"{value:.1f} ms")
one, two, everything = seen
assert two > 10 * one and two > everything / 3, seen
PYTHON
