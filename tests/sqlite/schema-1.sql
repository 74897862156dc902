-- One row per key. `id` is the digest of scope and key, `stamp` the version that a swap compares. The record's own
-- bytes carry a checksum over both. `expires` is when the row may be removed: at the record's deadline or somewhat later, so
-- that finishing what was begun need not move it in its index; 9223372036854775807 is never. Times are microseconds in
-- the store's time.
CREATE TABLE main."{table}" (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL,
    stamp INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    record BLOB NOT NULL
) STRICT;

CREATE UNIQUE INDEX main."{table}_id" ON "{table}" (id);

CREATE INDEX main."{table}_expires" ON "{table}" (expires);

-- The version is here and not in `user_version`, which belongs to whoever owns the database. `high_water` is not
-- less than the stamp of any row that was removed, and at most 100 ms below that of any row there is: no fence is given
-- twice, whatever the clock says.
CREATE TABLE main."{table}_meta" (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,
    high_water INTEGER NOT NULL
) STRICT;

INSERT INTO main."{table}_meta" (one, version, high_water) VALUES (1, {version}, 0);
