-- One row per key. `id` is the digest of scope and key. `stamp` is the version that a swap
-- compares, in microseconds of the store's time. The record's own bytes carry a checksum over both.
-- `due` is the time at which the row may be removed, in units of 2^26 microseconds (about 67 s):
-- the record's deadline or somewhat later, so that a finish need not move the row in the index.
-- 9223372036854775807 means never. In a row that is evidence of an effect that may have happened it
-- is negative, so that unresolved records are found without scanning the others.
CREATE TABLE main."{table}" (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL,
    stamp INTEGER NOT NULL,
    due INTEGER NOT NULL,
    record BLOB NOT NULL
) STRICT;

-- Six bytes of an id find its row at a third of the cost of all 32. Two ids may share them, so
-- every statement also compares the whole id. The index is not unique: an id stays unique only
-- because a row is inserted by the transaction that has the write lock and found none.
CREATE INDEX main."{table}_id" ON "{table}" (substr(id, 1, 6));

CREATE INDEX main."{table}_due" ON "{table}" (due);

-- The version is stored here and not in `user_version`, which belongs to the owner of the database.
-- `store` is a random id (16 bytes and their CRC-32), created with the table, that its tokens
-- carry. `high_water` is at least the stamp of every removed row, and at most 100 ms below the
-- stamp of any existing row, so that no fence is given twice, whatever the clock says. `mirror` is
-- its bitwise complement: a damaged mark must not move the time. `anchor` is the value from which
-- every process of one boot derives the time: the id of the boot (16 bytes), microseconds since the
-- boot began (8), the stamp at that moment (8), and a CRC-32 of these (4), all little-endian. It is
-- empty until the table is first opened.
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
