-- What fanwire keeps in a PostgreSQL database, and the functions it publishes with there.
--
-- PostgreSQL 13 or later, no extension. The file is one statement, so it is all or nothing wherever it
-- runs, also inside a transaction of somebody else's. It may run any number of times and at the same time
-- from several connections, whatever the isolation. The objects go into the first schema of the
-- search_path; where some are found on the search_path already, they are brought up to date where they
-- are, and what is missing of them is made.
DO $install$
DECLARE
  this_version constant integer := 1;
  path constant text := current_setting('search_path');
  installed regclass;
  anything regclass;
  installed_version integer;
  needed_version integer;
  is_whole boolean;
  is_without_histories boolean;
  is_newly_made boolean;
  place name;
  home text;
BEGIN
  IF current_setting('server_encoding') NOT IN ('UTF8', 'SQL_ASCII') THEN
    RAISE EXCEPTION 'fanwire needs a database whose encoding is UTF8, and this one has %',
      current_setting('server_encoding') USING ERRCODE = 'feature_not_supported';
  END IF;
  -- "fanwire" in ASCII. Of many that come at once each but the first finds the work done.
  PERFORM pg_advisory_xact_lock(28817574702183013);
  -- To open a table makes this session hear of what others did to the catalog while it waited.
  PERFORM FROM pg_catalog.pg_statistic_ext LIMIT 0;

  -- From REPEATABLE READ on a query sees what was there before the wait. Functions like to_regclass
  -- and all that makes an object see the newest catalog, so what is there is asked of them alone.
  installed := to_regclass('fanwire_schema');
  anything := coalesce(installed, to_regclass('fanwire_uploads'), to_regclass('fanwire_messages'),
    to_regclass('fanwire_keys'));
  IF anything IS NULL THEN
    place := current_schema();
    IF place IS NULL THEN
      RAISE EXCEPTION 'fanwire has no schema to put its tables in: search_path is %', path
        USING ERRCODE = 'invalid_schema_name';
    END IF;
  ELSE
    SELECT object_names[1] INTO place
    FROM pg_identify_object_as_address('pg_catalog.pg_class'::regclass, anything, 0);
  END IF;
  home := quote_ident(place) || '.';
  is_without_histories := to_regclass(home || 'fanwire_uploads') IS NULL
    OR to_regclass(home || 'fanwire_messages') IS NULL;
  is_whole := NOT is_without_histories AND to_regclass(home || 'fanwire_keys') IS NOT NULL
    AND to_regclass(home || 'fanwire_uploads_expires') IS NOT NULL;
  IF installed IS NOT NULL THEN
    EXECUTE format('SELECT version, needs FROM %s', installed)
      INTO installed_version, needed_version;
    IF needed_version > this_version THEN
      RAISE EXCEPTION 'schema % holds fanwire''s tables in version %, and this fanwire knows version %',
        place, installed_version, this_version
        USING ERRCODE = 'feature_not_supported', HINT = 'Use a newer fanwire here.';
    END IF;
    is_newly_made := NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = installed);
    -- What is newer is left as it is. What is no older is there to be used, whoever owns it, unless
    -- some of it is missing. What this transaction cannot see yet, somebody made during the wait.
    IF installed_version > this_version OR is_whole AND (is_newly_made OR (
        installed_version = this_version AND NOT pg_has_role(
          (SELECT c.relowner FROM pg_catalog.pg_class c WHERE c.oid = installed), 'USAGE'))) THEN
      RETURN;
    END IF;
    -- 40001 if a newer version came during the wait, which this one would take back.
    EXECUTE format('SELECT FROM %s FOR UPDATE', installed);
  END IF;
  PERFORM set_config('search_path', format('%I, pg_temp', place), true);

  -- Each of these is made if it is missing, so that running this heals what somebody dropped. IF NOT
  -- EXISTS would say a notice each time, and CREATE INDEX would wait for who publishes.
  IF installed IS NULL THEN
    -- `version` is that of this file; fanwire from version `needs` on can work with it.
    CREATE TABLE fanwire_schema (version integer NOT NULL, needs integer NOT NULL);
    GRANT SELECT ON fanwire_schema TO PUBLIC;
  END IF;
  IF installed IS NULL OR installed_version IS NULL AND NOT is_newly_made THEN
    INSERT INTO fanwire_schema VALUES (this_version, 1);
  END IF;

  IF to_regclass(home || 'fanwire_uploads') IS NULL THEN
    -- An upload that has a history. All tables are logged: an offset must not be given twice because
    -- the server crashed. Half of each page is left free, so that a row that changes with every message
    -- stays on its page and no index has to follow (HOT), as long as `expires` does not change.
    CREATE TABLE fanwire_uploads (
      upload bytea PRIMARY KEY,                     -- SHA-256 of the id, which may be of any length
      history bigint GENERATED ALWAYS AS IDENTITY,  -- what the other tables know it by
      epoch text NOT NULL,
      last bigint NOT NULL,                         -- the newest offset
      first bigint NOT NULL,                        -- the oldest offset that is kept without a gap
      milestone bigint,                             -- the newest progress or final message
      version bigint,                               -- the newest version
      sources jsonb NOT NULL,                       -- who published, and the number of their newest
      keys integer NOT NULL DEFAULT 0,              -- rows of fanwire_keys
      expires timestamptz NOT NULL
    ) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);
  END IF;
  IF to_regclass(home || 'fanwire_uploads_expires') IS NULL THEN
    CREATE INDEX fanwire_uploads_expires ON fanwire_uploads (expires);
  END IF;

  IF to_regclass(home || 'fanwire_messages') IS NULL THEN
    -- The messages that one call recorded of one upload, each up to its reserved member. Up to 8 kB
    -- they stand in the row as they are; to compress them would cost more than all the rest.
    CREATE TABLE fanwire_messages (
      history bigint NOT NULL,
      newest bigint NOT NULL,                       -- the offset of the last one
      oldest bigint NOT NULL,                       -- the offset of the first one
      heads text[] NOT NULL,
      PRIMARY KEY (history, newest)
    ) WITH (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.1,
      autovacuum_vacuum_cost_delay = 0);
    ALTER TABLE fanwire_messages ALTER heads SET STORAGE EXTERNAL;
  END IF;

  IF to_regclass(home || 'fanwire_keys') IS NULL THEN
    -- Idempotency keys.
    CREATE TABLE fanwire_keys (
      history bigint NOT NULL,
      key bytea NOT NULL,                           -- SHA-256 of the key
      "offset" bigint NOT NULL,
      PRIMARY KEY (history, key)
    ) WITH (autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);
  END IF;

  -- Histories are in two tables. Without one of them the other one is worth nothing, and the numbers of
  -- histories would be given again: all of them begin anew. TRUNCATE takes what a DELETE of an older
  -- transaction would not see.
  IF anything IS NOT NULL AND is_without_histories THEN
    TRUNCATE fanwire_uploads, fanwire_messages, fanwire_keys;
  END IF;

  -- Whoever calls a function finds the tables, whatever the own search_path is, and none of a session's
  -- temporary tables in their place: FROM CURRENT is what has been set above. Plans are made once, perhaps
  -- while the tables are still empty: what is right then, to read all of them, is wrong an hour later, so
  -- some functions set `enable_…` too. Joins not in fanwire_record, where what is joined are the messages
  -- of one call.

  -- Sends a frame or a bare message, in numbered parts if it is too long for one notification.
  CREATE OR REPLACE FUNCTION fanwire_send(name text, content text) RETURNS void
  LANGUAGE plpgsql AS $$
  DECLARE
    -- With 46 bytes in front, and three more where a character is not cut: 7999.
    size constant integer := 7950;
    bytes bytea;
    total integer;
    count integer;
    id text;
    start integer := 0;
    stop integer;
  BEGIN
    IF octet_length(content) <= 7999 THEN
      PERFORM pg_notify(name, content);
      RETURN;
    END IF;
    -- Bytes, because to find a character of a text all before it must be read.
    bytes := convert_to(content, 'UTF8');
    total := octet_length(bytes);
    count := (total + size - 1) / size;
    id := left(replace(gen_random_uuid()::text, '-', ''), 16);
    FOR part IN 1 .. count LOOP
      stop := least(part * size, total);
      WHILE stop < total AND get_byte(bytes, stop) & 192 = 128 LOOP
        stop := stop - 1;
      END LOOP;
      PERFORM pg_notify(name, '~c' || id || ',' || part - 1 || ',' || count || ':'
        || convert_from(substring(bytes FROM start + 1 FOR stop - start), 'UTF8'));
      start := stop;
    END LOOP;
  END
  $$;

  -- Publishes JSON on a channel as it is, unless it is rolled back. Nothing is recorded.
  CREATE OR REPLACE FUNCTION fanwire_notify(channel text, payload text) RETURNS void
  LANGUAGE plpgsql
  SET search_path FROM CURRENT AS $$
  DECLARE
    white constant text := E' \t\n\r';
    number integer;
    name text;
    content text;
    rest integer;
    mark text := '';
  BEGIN
    IF channel IS NULL OR payload IS NULL THEN
      RAISE EXCEPTION 'fanwire: % is NULL', CASE WHEN channel IS NULL THEN 'the channel' ELSE 'the message' END
        USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM payload::json;

    -- Of equal notifications of one transaction PostgreSQL delivers one. White space behind the JSON
    -- tells them apart: the number of the message in its transaction, to the base of four.
    number := coalesce(nullif(current_setting('fanwire.number', true), ''), '0')::integer;
    PERFORM set_config('fanwire.number', (number + 1)::text, true);
    rest := number;
    WHILE rest > 0 LOOP
      mark := substr(white, rest % 4 + 1, 1) || mark;
      rest := rest / 4;
    END LOOP;
    content := rtrim(payload, white) || mark;

    IF channel LIKE 'upload:%' OR channel LIKE 'user:%' THEN
      name := 'fanwire';
    ELSIF octet_length(channel) BETWEEN 1 AND 63 AND NOT starts_with(channel, 'fanwire_') THEN
      PERFORM fanwire_send(channel, content);
      RETURN;
    ELSE
      name := 'fanwire_' || left(encode(sha256(convert_to(channel, 'UTF8')), 'hex'), 32);
    END IF;
    PERFORM fanwire_send(name, '~m' || octet_length(channel) || ':' || channel || content);
  END
  $$;

  -- Forgets uploads that have expired, so many at most, and passes by those that somebody else holds.
  CREATE OR REPLACE FUNCTION fanwire_sweep(most integer DEFAULT 64) RETURNS integer
  LANGUAGE plpgsql
  SET search_path FROM CURRENT SET enable_seqscan = off AS $$
  #variable_conflict use_column
  DECLARE
    moment constant timestamptz := clock_timestamp();
    gone bytea[];
    histories bigint[];
  BEGIN
    SELECT array_agg(u.upload), array_agg(u.history) INTO gone, histories FROM (
      SELECT upload, history FROM fanwire_uploads WHERE expires < moment
      ORDER BY expires LIMIT most FOR UPDATE SKIP LOCKED) u;
    IF gone IS NULL THEN
      RETURN 0;
    END IF;
    DELETE FROM fanwire_messages WHERE history = ANY (histories);
    DELETE FROM fanwire_keys WHERE history = ANY (histories);
    DELETE FROM fanwire_uploads WHERE upload = ANY (gone);
    RETURN cardinality(gone);
  END
  $$;

  -- Records one message of an upload whose row this transaction has locked: what fanwire_record has no
  -- shorter way for. `fresh` is the epoch of a history that begins.
  CREATE OR REPLACE FUNCTION fanwire_record_one(
    channel text, upload bytea, head text, is_milestone boolean, source text, number bigint, key text,
    version bigint, size integer, ttl interval, fresh text,
    OUT status smallint, OUT epoch text, OUT "offset" bigint)
  LANGUAGE plpgsql AS $$
  #variable_conflict use_variable
  DECLARE
    moment constant timestamptz := clock_timestamp();
    due constant timestamptz := moment + ttl + ttl / 8;
    slack constant integer := greatest(1, size / 8);
    hash constant bytea := sha256(convert_to(key, 'UTF8'));
    u fanwire_uploads;
  BEGIN
    SELECT * INTO STRICT u FROM fanwire_uploads f WHERE f.upload = fanwire_record_one.upload;
    IF u.expires < moment THEN
      DELETE FROM fanwire_messages m WHERE m.history = u.history;
      DELETE FROM fanwire_keys k WHERE k.history = u.history;
      u.epoch := fresh;
      u.last := 0;
      u.first := 1;
      u.milestone := NULL;
      u.version := NULL;
      u.sources := '{}';
      u.keys := 0;
    END IF;
    epoch := u.epoch;

    IF number <= (u.sources ->> source)::bigint THEN
      status := 3;
      RETURN;
    END IF;
    IF key IS NOT NULL THEN
      SELECT k."offset" INTO "offset" FROM fanwire_keys k
      WHERE k.history = u.history AND k.key = hash;
      IF FOUND THEN
        status := 1;
        RETURN;
      END IF;
    END IF;
    IF version <= u.version THEN
      status := 2;
      RETURN;
    END IF;

    status := 0;
    "offset" := u.last + 1;
    IF key IS NOT NULL THEN
      INSERT INTO fanwire_keys VALUES (u.history, hash, "offset");
      u.keys := u.keys + 1;
      IF u.keys >= size + slack THEN
        DELETE FROM fanwire_keys k WHERE k.history = u.history AND k."offset" < (
          SELECT min(n."offset") FROM (SELECT o."offset" FROM fanwire_keys o
            WHERE o.history = u.history ORDER BY o."offset" DESC LIMIT size) n);
        u.keys := size;
      END IF;
    END IF;
    IF is_milestone THEN
      u.milestone := "offset";
    END IF;
    IF source IS NOT NULL THEN
      u.sources := CASE WHEN pg_column_size(u.sources) > 1500 AND NOT u.sources ? source
        THEN '{}' ELSE u.sources END || jsonb_build_object(source, number);
    END IF;
    u.first := greatest(u.first, "offset" - size + 1);
    UPDATE fanwire_uploads f SET
      epoch = u.epoch, last = "offset", first = u.first, milestone = u.milestone,
      version = coalesce(fanwire_record_one.version, u.version), sources = u.sources, keys = u.keys,
      expires = CASE WHEN u.expires BETWEEN moment + ttl AND due THEN u.expires ELSE due END
    WHERE f.upload = fanwire_record_one.upload;
    INSERT INTO fanwire_messages VALUES (u.history, "offset", "offset", ARRAY[head]);
    IF "offset" > size AND "offset" % greatest(1, size / 2) = 0 THEN
      DELETE FROM fanwire_messages m WHERE m.history = u.history AND m.newest < u.first
        AND coalesce(u.milestone NOT BETWEEN m.oldest AND m.newest, true);
    END IF;
    PERFORM fanwire_send('fanwire', '~m' || octet_length(channel) || ':' || channel || head
      || '"_fanwire":{"epoch":"' || epoch || '","offset":' || "offset" || '}}');
  END
  $$;

  -- Gives messages of uploads the next offsets, keeps them and publishes them, unless it is rolled back.
  --
  -- uploads     SHA-256 of the ids
  -- heads       the messages up to their reserved member
  -- source, numbers  by which a message is known that is sent again; or NULL. They grow
  -- keys, versions   NULL, or NULL for a message that has none
  -- size        how many messages are kept of each upload
  -- ttl_ms      how long they are kept, in ms; up to an eighth longer
  --
  -- status      0 published, 1 duplicate ("offset" is that of the first), 2 stale, 3 had come already
  CREATE OR REPLACE FUNCTION fanwire_record(
    channels text[], uploads bytea[], heads text[], milestones boolean[], source text,
    numbers bigint[], keys text[], versions bigint[], size integer, ttl_ms bigint)
  RETURNS TABLE (status smallint, epoch text, "offset" bigint)
  LANGUAGE plpgsql
  SET search_path FROM CURRENT SET enable_seqscan = off AS $$
  #variable_conflict use_variable
  DECLARE
    total constant integer := cardinality(channels);
    moment constant timestamptz := clock_timestamp();
    ttl constant interval := ttl_ms * interval '1 ms';
    renew constant timestamptz := moment + ttl;
    due constant timestamptz := renew + ttl / 8;
    portion constant integer := greatest(1, size / 2);
    fresh constant text := left(replace(gen_random_uuid()::text, '-', ''), 16);
    lowest constant bigint := numbers[1];
    places bigint[];
    epochs text[];
    offsets bigint[];
    statuses smallint[];
    overfull bigint[];
    excess bigint[];
    renewed integer;
  BEGIN
    -- The rows of all uploads are locked first, in the order of their keys, so that two calls cannot
    -- wait for each other. Uploads whose messages have neither keys nor versions, and that neither are
    -- behind `lowest` nor have expired, are done here. Everything in one statement, because each costs
    -- as much as ten messages.
    WITH given AS MATERIALIZED (
      SELECT g.upload, min(g.channel) AS channel, array_agg(g.head) AS heads,
        array_agg(g.place) AS places, count(*) AS count, max(g.number) AS number,
        array_position(array_agg(g.place), max(g.place) FILTER (WHERE g.milestone)) AS milestone,
        count(g.key) + count(g.version) = 0 AS plain
      FROM (
        SELECT * FROM unnest(channels, uploads, heads, milestones, numbers, keys, versions)
          WITH ORDINALITY AS t(channel, upload, head, milestone, number, key, version, place)
        ORDER BY upload, place) g
      GROUP BY g.upload
    ), touched AS (
      INSERT INTO fanwire_uploads AS u (upload, epoch, last, first, milestone, sources, expires)
      SELECT g.upload, fresh, CASE WHEN g.plain THEN g.count ELSE 0 END,
        CASE WHEN g.plain THEN greatest(1, g.count - size + 1) ELSE 1 END,
        CASE WHEN g.plain THEN g.milestone END,
        CASE WHEN g.plain AND source IS NOT NULL THEN jsonb_build_object(source, g.number)
          ELSE '{}' END, due
      FROM given g ORDER BY g.upload
      ON CONFLICT (upload) DO UPDATE SET
        last = u.last + EXCLUDED.last,
        first = greatest(u.first, u.last + EXCLUDED.last - size + 1),
        milestone = coalesce(u.last + EXCLUDED.milestone, u.milestone),
        sources = CASE WHEN pg_column_size(u.sources) > 1500 AND NOT u.sources ? source
          THEN '{}' ELSE u.sources END || EXCLUDED.sources,
        expires = CASE WHEN u.expires BETWEEN renew AND due THEN u.expires ELSE due END
      WHERE EXCLUDED.last > 0 AND u.expires >= moment
        AND coalesce((u.sources ->> source)::bigint < lowest, true)
      RETURNING u.upload, u.history, u.epoch, u.last, u.first, u.milestone, u.expires
    ), said AS MATERIALIZED (
      SELECT t.history, t.epoch, t.last, t.last - g.count AS before, t.first, t.milestone,
        g.places, g.heads, '~m' || octet_length(g.channel) || ':' || g.channel AS opening,
        '"_fanwire":{"epoch":"' || t.epoch || '","offset":' AS middle
      FROM touched t JOIN given g ON g.upload = t.upload WHERE t.last > 0
    ), kept AS (
      INSERT INTO fanwire_messages (history, newest, oldest, heads)
      SELECT s.history, s.last, s.before + 1, s.heads FROM said s
    ), told AS (
      SELECT f.place, f.epoch, f."offset", CASE WHEN octet_length(f.frame) <= 7999
        THEN pg_notify('fanwire', f.frame) ELSE fanwire_send('fanwire', f.frame) END
      FROM (
        SELECT m.place, s.epoch, s.before + m.rank AS "offset",
          s.opening || m.head || s.middle || s.before + m.rank || '}}' AS frame
        FROM said s, unnest(s.places, s.heads) WITH ORDINALITY AS m(place, head, rank)
        ORDER BY m.place) f
    )
    SELECT array_agg(t.place), array_agg(t.epoch), array_agg(t."offset"),
      (SELECT array_agg(ARRAY[s.history, s.first, s.milestone]) FROM said s
        WHERE s.last > size AND s.last / portion > s.before / portion),
      (SELECT count(*) FROM touched t WHERE t.expires = due)
    INTO places, epochs, offsets, overfull, renewed
    FROM told t;

    IF overfull IS NOT NULL THEN
      FOREACH excess SLICE 1 IN ARRAY overfull LOOP
        DELETE FROM fanwire_messages m WHERE m.history = excess[1] AND m.newest < excess[2]
          AND coalesce(excess[3] NOT BETWEEN m.oldest AND m.newest, true);
      END LOOP;
    END IF;

    IF places IS NULL OR cardinality(places) < total THEN
      statuses := array_fill(0::smallint, ARRAY[total]);
      SELECT array_agg(a.epoch ORDER BY p), array_agg(a."offset" ORDER BY p) INTO epochs, offsets
      FROM generate_series(1, total) p
        LEFT JOIN unnest(places, epochs, offsets) AS a(place, epoch, "offset") ON a.place = p;
      FOR p IN 1 .. total LOOP
        CONTINUE WHEN epochs[p] IS NOT NULL;
        SELECT * INTO status, epoch, "offset" FROM fanwire_record_one(
          channels[p], uploads[p], heads[p], milestones[p], source, numbers[p], keys[p], versions[p],
          size, ttl, fresh);
        statuses[p] := status;
        epochs[p] := epoch;
        offsets[p] := "offset";
        renewed := renewed + (status = 0 AND "offset" = 1)::integer;
      END LOOP;
    END IF;

    -- Whoever adds, clears away: twice as many as begin or go on for longer.
    IF renewed > 0 THEN
      PERFORM fanwire_sweep(least(2 * renewed, 64));
    END IF;
    RETURN QUERY SELECT coalesce(a.status, 0::smallint), a.epoch, a."offset"
    FROM unnest(statuses, epochs, offsets) AS a(status, epoch, "offset");
  END
  $$;

  -- What is kept of uploads: for each of which something is, its entries in order, or one row without
  -- any. `ask` counts from 1. Asked for is what follows `offsets` in `epochs`, if that is the history
  -- still, and the current state otherwise or if `epochs` is NULL there.
  CREATE OR REPLACE FUNCTION fanwire_read(uploads bytea[], epochs text[], offsets bigint[])
  RETURNS TABLE (
    ask integer, epoch text, last bigint, milestone bigint, "offset" bigint, payload text)
  LANGUAGE plpgsql STABLE PARALLEL SAFE
  SET search_path FROM CURRENT SET enable_seqscan = off
  SET enable_hashjoin = off SET enable_mergejoin = off AS $$
  DECLARE
    moment constant timestamptz := clock_timestamp();
  BEGIN
    RETURN QUERY
    SELECT a.ask::integer, u.epoch, u.last, u.milestone, m."offset",
      m.head || '"_fanwire":{"epoch":"' || u.epoch || '","offset":' || m."offset" || '}}'
    FROM unnest(uploads, epochs, offsets) WITH ORDINALITY AS a(upload, epoch, since, ask)
      JOIN fanwire_uploads u ON u.upload = a.upload AND u.expires >= moment
      CROSS JOIN LATERAL (SELECT CASE
        WHEN a.epoch = u.epoch AND a.since = u.last THEN u.last + 1
        WHEN a.epoch = u.epoch AND a.since < u.last THEN least(u.milestone, a.since + 1)
        ELSE coalesce(u.milestone, 1) END) AS b(begin)
      LEFT JOIN LATERAL (
        SELECT k.oldest + e.rank - 1 AS "offset", e.head
        FROM fanwire_messages k, unnest(k.heads) WITH ORDINALITY AS e(head, rank)
        WHERE k.history = u.history AND k.newest >= b.begin AND k.oldest + e.rank - 1 >= b.begin
          AND (k.oldest + e.rank - 1 >= u.first OR k.oldest + e.rank - 1 = u.milestone)
      ) m ON true
    ORDER BY a.ask, m."offset";
  END
  $$;

  -- The next three are for transactions of the application: what they publish is delivered at the
  -- commit, and not at all after a rollback.

  -- Publishes to who subscribed to a topic, as PostgresPubSub.broadcast does.
  CREATE OR REPLACE FUNCTION fanwire_publish(
    topic text, payload json, channel_prefix text DEFAULT 'pyview_') RETURNS void
  LANGUAGE plpgsql
  SET search_path FROM CURRENT AS $$
  BEGIN
    PERFORM fanwire_notify(channel_prefix || topic, payload::text);
  END
  $$;

  -- Publishes to a user, as UploadProgressPublisher.publish_to_user does.
  CREATE OR REPLACE FUNCTION fanwire_publish_user(user_id text, payload json) RETURNS void
  LANGUAGE plpgsql
  SET search_path FROM CURRENT AS $$
  BEGIN
    PERFORM fanwire_notify('user:' || user_id, payload::text);
  END
  $$;

  -- Publishes to who watches an upload, as UploadProgressPublisher.publish_progress does, and gives the
  -- offset that a recorded message has: of a duplicate that of the first, of a stale one NULL.
  -- Without `history_size` nothing is recorded.
  CREATE OR REPLACE FUNCTION fanwire_publish_upload(
    upload_id text, payload json, history_size integer DEFAULT NULL, ttl interval DEFAULT '1 hour',
    version bigint DEFAULT NULL, idempotency_key text DEFAULT NULL) RETURNS bigint
  LANGUAGE plpgsql
  SET search_path FROM CURRENT AS $$
  DECLARE
    white constant text := E' \t\n\r';
    object json := payload;
    inside text;
    "offset" bigint;
  BEGIN
    IF history_size IS NULL THEN
      IF version IS NOT NULL OR idempotency_key IS NOT NULL THEN
        RAISE EXCEPTION 'fanwire_publish_upload: % needs history_size',
          CASE WHEN version IS NOT NULL THEN 'version' ELSE 'idempotency_key' END
          USING ERRCODE = 'invalid_parameter_value';
      END IF;
      PERFORM fanwire_notify('upload:' || upload_id, payload::text);
      RETURN NULL;
    END IF;
    IF upload_id IS NULL OR payload IS NULL OR ttl IS NULL THEN
      RAISE EXCEPTION 'fanwire_publish_upload: % is NULL', CASE WHEN upload_id IS NULL THEN 'upload_id'
        WHEN payload IS NULL THEN 'payload' ELSE 'ttl' END USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF history_size < 1 OR ttl <= '0' OR version NOT BETWEEN 0 AND 9007199254740991 THEN
      RAISE EXCEPTION 'fanwire_publish_upload: %', CASE
        WHEN history_size < 1 THEN 'history_size is less than 1: ' || history_size
        WHEN ttl <= '0' THEN 'ttl is not longer than 0: ' || ttl
        ELSE 'version is not between 0 and 9007199254740991: ' || version END
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF json_typeof(payload) <> 'object' THEN
      RAISE EXCEPTION 'fanwire_publish_upload: a message that is recorded must be a JSON object, not %',
        json_typeof(payload) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- PostgreSQL reads no member of JSON in which one is no text to it: NUL, half of a surrogate pair.
    IF strpos(payload::text, '\u') > 0 THEN
      object := regexp_replace(
        payload::text, '\\u(0000|[dD][89a-fA-F][0-9a-fA-F]{2})', '\\u0001', 'g')::json;
    END IF;
    IF object -> '_fanwire' IS NOT NULL THEN
      RAISE EXCEPTION 'fanwire_publish_upload: the member _fanwire of a recorded message is reserved'
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    inside := btrim(payload::text, white);
    inside := btrim(substr(inside, 2, length(inside) - 2), white);
    SELECT r."offset" INTO "offset" FROM fanwire_record(
      ARRAY['upload:' || upload_id], ARRAY[sha256(convert_to(upload_id, 'UTF8'))],
      ARRAY['{' || inside || CASE WHEN inside = '' THEN '' ELSE ',' END],
      ARRAY[coalesce(object ->> 'action' IN ('upload_progress', 'batch_progress', 'file_progress',
        'upload_completed', 'upload_failed'), false)],
      NULL, NULL, ARRAY[idempotency_key], ARRAY[version], history_size,
      greatest(1, extract(epoch FROM ttl) * 1000)::bigint) r;
    RETURN "offset";
  END
  $$;

  UPDATE fanwire_schema SET version = this_version WHERE version < this_version;
  PERFORM set_config('search_path', path, true);
END
$install$;
