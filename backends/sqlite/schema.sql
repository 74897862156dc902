-- One row per key. `id` is the digest of scope and key, `stamp` the version that a swap compares. The record's own
-- bytes carry a checksum over both. `expires` is the record's deadline, rounded up to a coarse grain so that finishing
-- what was begun rarely moves it in its index; 9223372036854775807 is never. Times are microseconds in the store's time.
CREATE TABLE main."{table}" (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL,
    stamp INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    record BLOB NOT NULL
) STRICT;

CREATE UNIQUE INDEX main."{table}_id" ON "{table}" (id);

CREATE INDEX main."{table}_expires" ON "{table}" (expires);

-- The version is here and not in `user_version`, which belongs to whoever owns the database. `high_water` is the greatest
-- stamp ever given in this file, to removed rows too: no fence is given twice, whatever the clock says.
CREATE TABLE main."{table}_meta" (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,
    high_water INTEGER NOT NULL
) STRICT;

INSERT INTO main."{table}_meta" (one, version, high_water) VALUES (1, {version}, 0);
