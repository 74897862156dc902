-- The tables of a nevertwice store, version 1. Run it once, in a transaction.

-- One row for each key. `stamp` is the time of the last write and the version that the next one is
-- compared with; `keep` is how long the row is kept from there on (both in microseconds). `due` is
-- a hint for purges, in units of 2^26 microseconds: a finish leaves it alone, so that it is a HOT
-- update, which the free space on each page is for. An empty record is a removed one: its stamp
-- stays until it is purged.
CREATE TABLE "nevertwice" (
  stamp bigint NOT NULL CHECK (stamp BETWEEN 0 AND 1::bigint << 61),
  keep bigint NOT NULL CHECK (keep BETWEEN 0 AND 1::bigint << 61),
  due integer NOT NULL,
  evidence boolean NOT NULL,
  id bytea PRIMARY KEY CHECK (octet_length(id) = 32),
  record bytea NOT NULL
) WITH (fillfactor = 35, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX ON "nevertwice" (due);

-- One row: the version of these tables, and the random id of the store.
CREATE TABLE "nevertwice_meta" (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  version integer NOT NULL,
  store uuid NOT NULL
);
INSERT INTO "nevertwice_meta" (version, store) VALUES (1, gen_random_uuid());

-- The greatest stamp of all rows that were purged: a sequence, since it is read often, must not
-- bloat, and must be seen outside of snapshots.
CREATE SEQUENCE "nevertwice_mark" MINVALUE 0 START 0;

-- Functions. Without them, a store sends single statements instead.

-- Replaces (or removes, if `next` is null) the record under `key` if its stamp is `expected` (null:
-- if there is none). A conflict shows the present record. `patience` bounds the wait for a row that
-- another transaction holds; null: its caller has set that.
CREATE FUNCTION "nevertwice_swap_one_v1"(
  key bytea, expected bigint, kept bigint, is_evidence boolean, next bytea, patience text,
  OUT done boolean, OUT at bigint, OUT now bigint, OUT present bytea
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  mark bigint;
BEGIN
  IF patience IS NOT NULL THEN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
      RAISE EXCEPTION 'nevertwice needs READ COMMITTED' USING ERRCODE = 'NT001';
    END IF;
    -- For this transaction. Plans of a table that was small once must not stay sequential; where
    -- there is no other plan, its cost would have it compiled, at 10 ms each.
    PERFORM set_config('lock_timeout', patience, true), set_config('enable_seqscan', 'off', true),
      set_config('jit', 'off', true);
  END IF;
  done := true;
  LOOP
    now := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    at := now;
    IF expected IS NOT NULL THEN
      UPDATE "nevertwice" AS t SET
        stamp = greatest(now, t.stamp + 1), keep = kept, evidence = is_evidence, record = coalesce(next, ''),
        due = CASE
          WHEN next IS NOT NULL AND t.due <= (now + kept + kept / 16) / 67108864 + 3 THEN t.due
          ELSE least((greatest(now, t.stamp + 1) + kept) / 67108864 + 1, 2147483647)
        END
      WHERE t.id = key AND t.stamp = expected AND t.record <> '' RETURNING t.stamp INTO at;
      IF FOUND THEN RETURN; END IF;
    ELSIF next IS NOT NULL THEN
      INSERT INTO "nevertwice" (stamp, keep, due, evidence, id, record)
      VALUES (now, kept, least((now + kept) / 67108864 + 1, 2147483647), is_evidence, key, next)
      ON CONFLICT (id) DO NOTHING;
      IF FOUND THEN
        -- Read after the insert: a purge raises the mark before it removes the row.
        SELECT last_value INTO mark FROM "nevertwice_mark";
        IF mark >= at THEN
          at := mark + 1;
          UPDATE "nevertwice" AS t SET stamp = at WHERE t.id = key;
        END IF;
        now := greatest(now, at);
        RETURN;
      END IF;
    END IF;
    -- A statement of its own, since it has to see what the one before ran into.
    SELECT t.stamp, t.record INTO at, present FROM "nevertwice" AS t WHERE t.id = key;
    now := greatest(now, at);
    -- A damaged stamp, which the store reports.
    IF at > 1::bigint << 60 THEN
      done := false;
      RETURN;
    END IF;
    IF present <> '' THEN
      IF at IS DISTINCT FROM expected THEN
        done := false;
        RETURN;
      END IF;
    ELSE
      present := NULL;
      IF expected IS NOT NULL OR next IS NULL THEN
        done := expected IS NULL;
        at := now;
        RETURN;
      END IF;
      UPDATE "nevertwice" AS t SET
        stamp = greatest(now, t.stamp + 1), keep = kept, evidence = is_evidence, record = next,
        due = least((greatest(now, t.stamp + 1) + kept) / 67108864 + 1, 2147483647)
      WHERE t.id = key AND t.record = '' RETURNING t.stamp INTO at;
      IF FOUND THEN
        now := greatest(now, at);
        RETURN;
      END IF;
    END IF;
  END LOOP;
END
$$;

-- Does many swaps in one transaction, each on its own and in the order given, which is that of
-- their keys. If `careful`, the answer for a row that another transaction holds longer than
-- `patience` is null, and otherwise it is an error.
CREATE FUNCTION "nevertwice_swap_v1"(
  keys bytea[], expected bigint[], kept bigint[], evidence boolean[], next bytea[], patience text, careful boolean
) RETURNS TABLE (done boolean, at bigint, now bigint, present bytea) LANGUAGE plpgsql AS $$
DECLARE
  held bytea;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'nevertwice needs READ COMMITTED' USING ERRCODE = 'NT001';
  END IF;
  PERFORM set_config('lock_timeout', patience, true), set_config('enable_seqscan', 'off', true),
    set_config('jit', 'off', true);
  FOR n IN 1 .. cardinality(keys) LOOP
    IF keys[n] = held THEN
      done := NULL;
    ELSIF careful THEN
      BEGIN
        SELECT * INTO done, at, now, present
        FROM "nevertwice_swap_one_v1"(keys[n], expected[n], kept[n], evidence[n], next[n], NULL);
      EXCEPTION WHEN lock_not_available THEN
        done := NULL; at := 0; now := 0; present := NULL;
        held := keys[n];
      END;
    ELSE
      SELECT * INTO done, at, now, present
      FROM "nevertwice_swap_one_v1"(keys[n], expected[n], kept[n], evidence[n], next[n], NULL);
    END IF;
    RETURN NEXT;
  END LOOP;
END
$$;

-- Does swaps of different keys by few statements, which cost less than one for each: inserts, then
-- updates, then a read of what they ran into. An item without a row in the answer is to be done on
-- its own: there is no record, or another transaction has just written it. Two such calls whose
-- keys are sorted do not deadlock. One that meets a call of `nevertwice_swap_v1` may, until its
-- patience ends.
CREATE FUNCTION "nevertwice_swap_together_v1"(
  keys bytea[], versions bigint[], keeps bigint[], proofs boolean[], records bytea[], patience text
) RETURNS TABLE (key bytea, done boolean, at bigint, now bigint, present bytea) LANGUAGE plpgsql AS $$
DECLARE
  moment bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
  mark bigint;
  written bytea[];
  replaced bytea[];
  stamps bigint[];
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'nevertwice needs READ COMMITTED' USING ERRCODE = 'NT001';
  END IF;
  -- Nested loops keep the order of the keys.
  PERFORM set_config('lock_timeout', patience, true), set_config('enable_seqscan', 'off', true),
    set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
    set_config('jit', 'off', true);
  WITH w AS (
    INSERT INTO "nevertwice" AS t (stamp, keep, due, evidence, id, record)
    SELECT moment, u.keep, least((moment + u.keep) / 67108864 + 1, 2147483647), u.proof, u.id, u.next
    FROM unnest(keys, versions, keeps, proofs, records) AS u (id, expected, keep, proof, next)
    WHERE u.expected IS NULL AND u.next IS NOT NULL
    ON CONFLICT (id) DO NOTHING RETURNING t.id
  ) SELECT array_agg(w.id) INTO written FROM w;
  IF written IS NOT NULL THEN
    at := moment;
    -- Read after the insert: a purge raises the mark before it removes the row.
    SELECT m.last_value INTO mark FROM "nevertwice_mark" AS m;
    IF mark >= at THEN
      at := mark + 1;
      UPDATE "nevertwice" AS t SET stamp = at WHERE t.id = ANY (written);
    END IF;
    RETURN QUERY SELECT w.id, true, at, at, NULL::bytea FROM unnest(written) AS w (id);
    IF cardinality(written) = cardinality(keys) THEN RETURN; END IF;
  END IF;
  moment := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
  WITH w AS (
    UPDATE "nevertwice" AS t SET
      stamp = greatest(moment, t.stamp + 1), keep = u.keep, evidence = u.proof, record = coalesce(u.next, ''),
      due = CASE
        WHEN u.next IS NOT NULL AND t.record <> '' AND t.due <= (moment + u.keep + u.keep / 16) / 67108864 + 3
        THEN t.due
        ELSE least((greatest(moment, t.stamp + 1) + u.keep) / 67108864 + 1, 2147483647)
      END
    FROM unnest(keys, versions, keeps, proofs, records) AS u (id, expected, keep, proof, next)
    WHERE t.id = u.id AND (
      t.stamp = u.expected AND t.record <> ''
      -- A removed record.
      OR u.expected IS NULL AND u.next IS NOT NULL AND t.record = '' AND t.stamp <= 1::bigint << 60
    ) RETURNING t.id, t.stamp
  ) SELECT array_agg(w.id), array_agg(w.stamp) INTO replaced, stamps FROM w;
  IF replaced IS NOT NULL THEN
    RETURN QUERY SELECT w.id, true, w.stamp, greatest(w.stamp, moment), NULL::bytea
      FROM unnest(replaced, stamps) AS w (id, stamp);
    written := written || replaced;
    IF cardinality(written) = cardinality(keys) THEN RETURN; END IF;
  END IF;
  -- A statement of its own, since it has to see what the ones before ran into.
  RETURN QUERY SELECT t.id, false, t.stamp, greatest(t.stamp, moment), t.record
    FROM unnest(keys, versions) AS u (id, expected) JOIN "nevertwice" AS t ON t.id = u.id
    WHERE t.stamp IS DISTINCT FROM u.expected AND t.record <> ''
      AND NOT EXISTS (SELECT FROM unnest(written) AS w (id) WHERE w.id = u.id);
END
$$;

-- Removes expired rows among the first `step` due ones, and postpones the others. Raises the mark
-- first.
CREATE FUNCTION "nevertwice_purge_v1"(
  step integer, OUT examined bigint, OUT removed bigint, OUT unsettled bigint
) LANGUAGE plpgsql AS $$
DECLARE
  moment bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
  gone bytea[];
  later bytea[];
  last bigint;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'nevertwice needs READ COMMITTED' USING ERRCODE = 'NT001';
  END IF;
  PERFORM set_config('lock_timeout', '1s', true), set_config('enable_seqscan', 'off', true),
    set_config('jit', 'off', true);
  -- One at a time, so that none lowers the mark.
  IF NOT pg_try_advisory_xact_lock(1853187702, '"nevertwice"'::regclass::oid::integer) THEN
    examined := 0; removed := 0; unsettled := 0;
    RETURN;
  END IF;
  SELECT count(*), max(d.stamp) FILTER (WHERE d.is_over), array_agg(d.id) FILTER (WHERE d.is_over),
    array_agg(d.id) FILTER (WHERE NOT d.is_over),
    count(*) FILTER (WHERE d.is_over AND d.is_record),
    count(*) FILTER (WHERE d.is_over AND d.is_record AND d.evidence)
  INTO examined, last, gone, later, removed, unsettled
  FROM (
    SELECT t.id, t.stamp, t.evidence, t.record <> '' AS is_record,
      t.keep < 2305843009213693951
        AND least(t.stamp, 1::bigint << 61) + least(t.keep, 1::bigint << 61) <= moment AS is_over
    FROM "nevertwice" AS t WHERE t.due <= moment / 67108864 ORDER BY t.due LIMIT step FOR UPDATE SKIP LOCKED
  ) AS d;
  IF gone IS NOT NULL THEN
    PERFORM setval('"nevertwice_mark"', last) FROM "nevertwice_mark" WHERE last_value < last;
    DELETE FROM "nevertwice" AS t WHERE t.id = ANY (gone);
  END IF;
  IF later IS NOT NULL THEN
    UPDATE "nevertwice" AS t SET due = least(
      (least(t.stamp, 1::bigint << 61) + least(t.keep, 1::bigint << 61)) / 67108864 + 1, 2147483647
    ) WHERE t.id = ANY (later);
  END IF;
END
$$;
