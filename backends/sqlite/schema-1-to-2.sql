-- From version 1, whose `expires` was in microseconds and whose unique index held the whole id. The column's new name
-- keeps a process of the older release, which may still have the file open, from taking one unit for the other: its writes
-- and its purge fail, its reads are right.
DROP INDEX main."{table}_id";
DROP INDEX main."{table}_expires";
ALTER TABLE main."{table}" RENAME COLUMN expires TO due;
UPDATE main."{table}" SET due = due / 67108864 + (due % 67108864 > 0) WHERE due < 9223372036854775807;
CREATE INDEX main."{table}_id" ON "{table}" (substr(id, 1, 6));
CREATE INDEX main."{table}_due" ON "{table}" (due);
CREATE TABLE main."{table}_meta_2" (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,
    high_water INTEGER NOT NULL,
    mirror INTEGER NOT NULL
) STRICT;
INSERT INTO main."{table}_meta_2" SELECT one, 2, high_water, ~high_water FROM main."{table}_meta";
DROP TABLE main."{table}_meta";
ALTER TABLE main."{table}_meta_2" RENAME TO "{table}_meta";
