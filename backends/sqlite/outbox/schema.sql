-- state: 0 pending, 1 dead. An event is due unless the time is in [since, due): its claim, or its
-- pause before a retry. A clock set back to well before `since` makes it due at once.
CREATE TABLE main."{table}" (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL CHECK (length(id) = 16),
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    payload BLOB NOT NULL,
    pushed INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    since INTEGER NOT NULL DEFAULT 0,
    due INTEGER NOT NULL DEFAULT 0,
    owner BLOB,
    error TEXT
) STRICT;
CREATE INDEX main."{table}_keys" ON "{table}" (topic, key, seq) WHERE key <> '';
CREATE INDEX main."{table}_free" ON "{table}" (seq) WHERE key = '' AND state = 0;
CREATE INDEX main."{table}_dead" ON "{table}" (seq) WHERE state = 1;
CREATE TABLE main."{table}_meta" (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL) STRICT;
INSERT INTO main."{table}_meta" VALUES (1, {version});
