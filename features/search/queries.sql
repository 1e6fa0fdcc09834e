-- The SQL statements of the full text search, which include fragments of persistence/queries.sql.

-- name: put_words
-- Stores the words of a turn, unless its row is that of another fold. `number` is the next free one of the 1024 of the
-- microsecond `asked_at`. Runs after put_turn, in the same transaction.
INSERT INTO searched (number, tenant, turn, words)
SELECT coalesce(
    (SELECT max(number) + 1 FROM searched
        WHERE number >= turns.asked_at * 1024 AND number < turns.asked_at * 1024 + 1024),
    turns.asked_at * 1024
), tenant, turn, :words
FROM turns WHERE tenant = :tenant AND turn = :turn AND cursor = :cursor
ON CONFLICT (tenant, turn) DO UPDATE SET words = excluded.words WHERE searched.words <> excluded.words

-- name: delete_words
-- Deletes the words of a turn.
DELETE FROM searched WHERE tenant = :tenant AND turn = :turn

-- name: unsearched
-- Some turns whose words are not stored yet, of all tenants.
SELECT tenant, turn FROM unsearched LIMIT :limit

-- name: outdated_words
-- Some turns whose words another version of words.py has made, of all tenants. The order makes the planner use
-- the partial index. Without it, the planner expects many such turns, and reads the whole table.
SELECT tenant, turn FROM searched WHERE substr(words, 1, 2) <> '2 ' ORDER BY tenant, turn LIMIT :limit

-- name: forget_unsearched
-- Removes a turn from `unsearched`, because its words are stored.
DELETE FROM unsearched WHERE tenant = :tenant AND turn = :turn

-- fragment: contain_words
-- Whether a row of `searched` has all words of :words. Each is 8 characters long; spaces separate them.
NOT EXISTS (
            SELECT 1 FROM json_each('["' || replace(:words, ' ', '","') || '"]') AS word
            WHERE instr(searched.words, word.value) = 0
        )

-- fragment: has_words
-- Whether a row `one` of a turn has all words of :words.
(
    SELECT {contain_words} FROM searched WHERE searched.tenant = :tenant AND searched.turn = one.turn
)

-- name: turns_with_words
-- The turns of `turns` with all words of :words, newest first.
{turns_in_range} AND {has_words}
{newest_of_page}

-- name: turns_of_outcome_with_words
-- Those of `turns_of_outcome`.
{turns_of_outcome_in_range} AND {has_words}
{newest_of_page}

-- name: labelled_turns_with_words
-- Those of `labelled_turns`.
{labelled_turns_in_range} AND {has_words}
{newest_of_page}

-- fragment: found
-- The rows with :word and all words of :words, from the index of the first, which is in the order of `number`.
SELECT number, turn FROM search CROSS JOIN searched ON searched.number = search.rowid
WHERE search MATCH :word AND search.rowid >= :from_number AND search.rowid <= :before_number
    AND searched.tenant = :tenant AND (:words = '' OR {contain_words})

-- name: end_of_found_turns
-- The same as `end_of_turns`, among the turns with the word :word.
SELECT rowid / 1024 AS asked_at, '' AS turn FROM search
WHERE search MATCH :word AND rowid >= :from_number AND rowid <= :before_number
ORDER BY rowid DESC LIMIT 1 OFFSET :offset

-- name: found_turns
-- The turns with all words of :words, by the index of words, with all labels of `others`, newest first. For rare words: it
-- reads all of their turns.
WITH one AS ({found}), page AS (
    SELECT number / 1024 AS asked_at, turn FROM one
    WHERE (number / 1024, turn) >= (:from_at, :start) AND (number / 1024, turn) < (:before_at, :before)
        AND {has_labels} AND {has_outcome}
    ORDER BY number / 1024 DESC, turn DESC LIMIT :limit
)
SELECT turns.*, usage.* FROM page
{join} turns ON turns.tenant = :tenant AND turns.turn = page.turn
{join} usage ON usage.tenant = :tenant AND usage.session = turns.session AND usage.turn = turns.turn
ORDER BY page.asked_at DESC, page.turn DESC
