-- From version 1, whose `expires` was in microseconds and whose unique index held the whole id. The column's new name
-- keeps a process of the older release, which may still have the file open, from taking one unit for the other: its writes
-- and its purge fail, its reads are right.
DROP INDEX main."{table}_id";
DROP INDEX main."{table}_expires";
ALTER TABLE main."{table}" RENAME COLUMN expires TO due;
UPDATE main."{table}" SET due = due / 67108864 + (due % 67108864 > 0) WHERE due < 9223372036854775807;
CREATE INDEX main."{table}_id" ON "{table}" (substr(id, 1, 6));
CREATE INDEX main."{table}_due" ON "{table}" (due);
UPDATE main."{table}_meta" SET version = 2 WHERE one = 1;
