-- One row per key. `id` is the digest of scope and key, `stamp` the version that a swap compares, in microseconds of the
-- store's time. The record's own bytes carry a checksum over both. `due` is when the row may be removed, in units of
-- 2^26 microseconds (about 67 s): at the record's deadline or somewhat later, so that finishing what was begun need not
-- move it in its index; 9223372036854775807 is never. In a row that is evidence of an effect that may have happened it is
-- negative, so that what is unresolved is found without a walk over the others.
CREATE TABLE main."{table}" (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL,
    stamp INTEGER NOT NULL,
    due INTEGER NOT NULL,
    record BLOB NOT NULL
) STRICT;

-- Six bytes of an id find its row at a third of the price of all 32. Two ids may start alike, so every statement compares
-- the whole one too; and nothing but the rule that a row is added only where the same transaction, which has the
-- write lock, found none keeps an id from being there twice.
CREATE INDEX main."{table}_id" ON "{table}" (substr(id, 1, 6));

CREATE INDEX main."{table}_due" ON "{table}" (due);

-- The version is here and not in `user_version`, which belongs to whoever owns the database. `store` is a random
-- id (16 bytes, and a CRC-32 of them), made with the table: its tokens carry it. `high_water` is not less than the stamp of any row that was removed, and at most 100 ms below
-- that of any row there is: no fence is given twice, whatever the clock says. `mirror` is the same with every bit turned
-- over: a damaged mark must not move time. `anchor` is what every process of one boot derives the time from: the id of
-- the boot (16 bytes), microseconds since it began (8), the stamp at that moment (8), and a CRC-32 of these (4), all
-- little-endian; it is empty until the table is first opened.
CREATE TABLE main."{table}_meta" (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,
    store BLOB NOT NULL,
    high_water INTEGER NOT NULL,
    mirror INTEGER NOT NULL,
    anchor BLOB NOT NULL
) STRICT;

INSERT INTO main."{table}_meta" (one, version, store, high_water, mirror, anchor)
VALUES (1, {version}, x'{store}', 0, ~0, x'');
