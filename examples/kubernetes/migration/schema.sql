-- The tables of pupsourcing-orchestrator, schema version 3.
--
-- Apply it with orchestrator.Migrate(ctx, db), with psql -f, or copy it into
-- your migrations. It is idempotent and upgrades older versions. It creates
-- everything in the first schema of the search path, unless a schema on the
-- path has the tables already: then it upgrades them there. PostgreSQL 13 or
-- later.
--
-- It is one statement, so that all of it is applied or nothing, whatever tool runs
-- it. (A tool that splits files at semicolons needs a hint: in goose, put it between
-- "-- +goose StatementBegin" and "-- +goose StatementEnd".)
--
-- A role that may CREATE in a schema of the search path can create functions and
-- operators there that match better than those of PostgreSQL, and that would run with
-- the rights of the role that applies this or reads the views. So functions are written
-- with their schema, and operators have operands of exactly their types. The text is
-- ASCII, because it must work in databases of every encoding.
DO $orchestrator$
DECLARE
    old_path   constant text := pg_catalog.current_setting('search_path'::text);
    old_wait   constant text := pg_catalog.current_setting('lock_timeout'::text);
    home       oid;      -- the schema of the tables
    home_name  text;
    present    bigint;   -- the version that is there
    flaw       text;
    rule       record;
BEGIN
-- The schema that has the tables, or will have them.
SELECT c.relnamespace INTO home FROM pg_catalog.pg_class c
 WHERE c.oid = pg_catalog.to_regclass('orchestrator_schema'::text)::oid AND c.relpersistence <> 't'::"char";
IF home IS NULL THEN
    SELECT n.oid INTO home FROM pg_catalog.pg_namespace n WHERE n.nspname = pg_catalog.current_schema()::name;
END IF;
IF home IS NULL THEN
    RAISE EXCEPTION 'no schema has been selected to create in: the search path names none that exists' USING ERRCODE = '3F000';
END IF;
SELECT n.nspname::text INTO home_name FROM pg_catalog.pg_namespace n WHERE n.oid = home;
PERFORM pg_catalog.set_config('search_path'::text, pg_catalog.format('%I, pg_temp'::text, VARIADIC ARRAY[home_name]), true);
IF old_wait = '0'::text THEN -- an ALTER TABLE that waits makes every heartbeat wait behind it
    PERFORM pg_catalog.set_config('lock_timeout'::text, '3s'::text, true);
END IF;

-- Tables of the same names that are not the library's are refused before anything is
-- changed: those with other columns, and those that an untrusted role owns, which could
-- have created them as a trap. Trusted are the roles that have power here anyway.
SELECT pg_catalog.format(
           CASE WHEN a.attname IS NULL THEN 'table %I.%I is not one of pupsourcing-orchestrator: it has no column %I'::text
                ELSE 'table %I.%I is not one of pupsourcing-orchestrator: its column %I is not of the type %s'::text END,
           VARIADIC ARRAY[home_name, x.tab, x.col, x.typ])
  INTO flaw
  FROM (VALUES
       ('orchestrator_schema'::text, 'singleton'::text, 'boolean'::text),
       ('orchestrator_schema'::text, 'version'::text, 'integer'::text),
       ('orchestrator_replica_sets'::text, 'name'::text, 'text'::text),
       ('orchestrator_replica_sets'::text, 'generation'::text, 'bigint'::text),
       ('orchestrator_replica_sets'::text, 'phase'::text, 'text'::text),
       ('orchestrator_replica_sets'::text, 'total'::text, 'integer'::text),
       ('orchestrator_replica_sets'::text, 'reason'::text, 'text'::text),
       ('orchestrator_replica_sets'::text, 'opened_at'::text, 'timestamp with time zone'::text),
       ('orchestrator_replica_sets'::text, 'activated_at'::text, 'timestamp with time zone'::text),
       ('orchestrator_replica_sets'::text, 'step_at'::text, 'timestamp with time zone'::text),
       ('orchestrator_replica_sets'::text, 'max_partitions'::text, 'integer'::text),
       ('orchestrator_replica_sets'::text, 'join_window_us'::text, 'bigint'::text),
       ('orchestrator_workers'::text, 'replica_set'::text, 'text'::text),
       ('orchestrator_workers'::text, 'id'::text, 'text'::text),
       ('orchestrator_workers'::text, 'seq'::text, 'bigint'::text),
       ('orchestrator_workers'::text, 'joined_at'::text, 'timestamp with time zone'::text),
       ('orchestrator_workers'::text, 'lease_us'::text, 'bigint'::text),
       ('orchestrator_workers'::text, 'lease_until'::text, 'timestamp with time zone'::text),
       ('orchestrator_workers'::text, 'generation'::text, 'bigint'::text),
       ('orchestrator_workers'::text, 'total'::text, 'integer'::text),
       ('orchestrator_workers'::text, 'partitions'::text, 'jsonb'::text),
       ('orchestrator_workers'::text, 'wants'::text, 'integer'::text),
       ('orchestrator_workers'::text, 'presence_key'::text, 'integer'::text),
       ('orchestrator_workers'::text, 'presence_number'::text, 'integer'::text),
       ('orchestrator_workers'::text, 'holds'::text, 'bigint'::text),
       ('orchestrator_workers'::text, 'projections'::text, 'jsonb'::text),
       ('orchestrator_reports'::text, 'replica_set'::text, 'text'::text),
       ('orchestrator_reports'::text, 'worker'::text, 'text'::text),
       ('orchestrator_reports'::text, 'reported_at'::text, 'timestamp with time zone'::text),
       ('orchestrator_reports'::text, 'report'::text, 'jsonb'::text),
       ('orchestrator_projections'::text, 'name'::text, 'text'::text),
       ('orchestrator_projections'::text, 'replica_set'::text, 'text'::text),
       ('orchestrator_checkpoints'::text, 'projection'::text, 'text'::text),
       ('orchestrator_checkpoints'::text, 'partition'::text, 'integer'::text),
       ('orchestrator_checkpoints'::text, 'replica_set'::text, 'text'::text),
       ('orchestrator_checkpoints'::text, 'generation'::text, 'bigint'::text),
       ('orchestrator_checkpoints'::text, 'total'::text, 'integer'::text),
       ('orchestrator_checkpoints'::text, 'position'::text, 'bigint'::text),
       ('orchestrator_checkpoints'::text, 'ahead'::text, 'jsonb'::text),
       ('orchestrator_checkpoints'::text, 'updated_at'::text, 'timestamp with time zone'::text),
       ('orchestrator_history'::text, 'replica_set'::text, 'text'::text),
       ('orchestrator_history'::text, 'generation'::text, 'bigint'::text),
       ('orchestrator_history'::text, 'reason'::text, 'text'::text),
       ('orchestrator_history'::text, 'total'::text, 'integer'::text),
       ('orchestrator_history'::text, 'members'::text, 'jsonb'::text),
       ('orchestrator_history'::text, 'opened_at'::text, 'timestamp with time zone'::text),
       ('orchestrator_history'::text, 'activated_at'::text, 'timestamp with time zone'::text),
       ('orchestrator_history'::text, 'waited_for'::text, 'jsonb'::text),
       ('orchestrator_parked'::text, 'projection'::text, 'text'::text),
       ('orchestrator_parked'::text, 'position'::text, 'bigint'::text),
       ('orchestrator_parked'::text, 'slot'::text, 'integer'::text),
       ('orchestrator_parked'::text, 'aggregate_id'::text, 'text'::text),
       ('orchestrator_parked'::text, 'error'::text, 'text'::text),
       ('orchestrator_parked'::text, 'attempts'::text, 'integer'::text),
       ('orchestrator_parked'::text, 'parked_at'::text, 'timestamp with time zone'::text),
       ('orchestrator_parked'::text, 'request'::text, 'text'::text),
       ('orchestrator_park_orders'::text, 'number'::text, 'bigint'::text),
       ('orchestrator_park_orders'::text, 'replica_set'::text, 'text'::text),
       ('orchestrator_park_orders'::text, 'generation'::text, 'bigint'::text),
       ('orchestrator_park_orders'::text, 'projection'::text, 'text'::text),
       ('orchestrator_park_orders'::text, 'position'::text, 'bigint'::text),
       ('orchestrator_park_orders'::text, 'slot'::text, 'integer'::text),
       ('orchestrator_park_orders'::text, 'ordered_by'::text, 'text'::text),
       ('orchestrator_park_orders'::text, 'ordered_at'::text, 'timestamp with time zone'::text),
       ('orchestrator_park_orders'::text, 'ended_at'::text, 'timestamp with time zone'::text),
       ('orchestrator_park_orders'::text, 'outcome'::text, 'text'::text)
       ) AS x (tab, col, typ)
  JOIN pg_catalog.pg_class c ON c.relnamespace = home AND c.relname = x.tab::name
  LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = x.col::name AND NOT a.attisdropped
 WHERE a.attname IS NULL OR pg_catalog.format_type(a.atttypid, NULL::integer) <> x.typ
 LIMIT 1;
IF flaw IS NOT NULL THEN
    RAISE EXCEPTION '%', flaw USING ERRCODE = 'duplicate_table',
        HINT = 'Another program has made it (old migrations of pupsourcing leave such tables). Nothing was changed. Rename or drop it, or put another schema first in the search path.';
END IF;
SELECT pg_catalog.format('table %I.%I is owned by the role %I, which is neither %I, nor the owner of the schema or the database, nor a superuser'::text,
           VARIADIC ARRAY[home_name, c.relname::text, o.rolname::text, CURRENT_USER::text])
  INTO flaw
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_roles o ON o.oid = c.relowner
  JOIN pg_catalog.pg_roles me ON me.rolname = CURRENT_USER
  JOIN pg_catalog.pg_namespace n ON n.oid = home
  JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
 WHERE c.relnamespace = home
   AND c.relname IN ('orchestrator_schema'::name, 'orchestrator_replica_sets'::name, 'orchestrator_workers'::name,
                     'orchestrator_reports'::name, 'orchestrator_projections'::name, 'orchestrator_checkpoints'::name,
                     'orchestrator_history'::name, 'orchestrator_parked'::name, 'orchestrator_park_orders'::name, 'orchestrator_status'::name,
                     'orchestrator_status_workers'::name, 'orchestrator_status_partitions'::name)
   AND NOT (o.rolsuper OR o.oid = n.nspowner OR o.oid = d.datdba
            OR CASE WHEN me.rolsuper THEN o.oid = me.oid ELSE pg_catalog.pg_has_role(me.oid, o.oid, 'USAGE'::text) END)
 LIMIT 1;
IF flaw IS NOT NULL THEN
    RAISE EXCEPTION '%', flaw USING ERRCODE = 'insufficient_privilege',
        HINT = 'Nothing was changed. If the tables are yours, run this as their owner. If not, drop them, or put another schema first in the search path.';
END IF;

-- Tables of a newer version work for older programs, and are not changed.
IF pg_catalog.to_regclass('orchestrator_schema'::text) IS NOT NULL THEN
    SELECT pg_catalog.max(s.version)::bigint INTO present FROM orchestrator_schema s;
END IF;
IF present > 3::bigint AND pg_catalog.to_regclass('orchestrator_checkpoints'::text) IS NULL THEN
    RAISE EXCEPTION 'table %.orchestrator_schema says version %, and beside it there is no table orchestrator_checkpoints', home_name, present
        USING ERRCODE = 'duplicate_table',
        HINT = 'Another program has made it. Nothing was changed. Rename or drop it, or put another schema first in the search path.';
END IF;
IF present IS NULL OR present <= 3::bigint THEN

-- The version of this schema. A program that needs a newer one does not start
-- (ErrSchema).
CREATE TABLE IF NOT EXISTS orchestrator_schema (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    version   integer NOT NULL
);

-- One row for each replica set: its newest generation. Every change of a set's
-- members locks this row first, and is decided then.
CREATE TABLE IF NOT EXISTS orchestrator_replica_sets (
    name           text        PRIMARY KEY,
    -- The fencing token. It only grows.
    generation     bigint      NOT NULL DEFAULT 0,
    -- 'draining': older generations are being stopped; 'active': this one runs.
    phase          text        NOT NULL DEFAULT 'active' CHECK (phase IN ('draining', 'active')),
    total          integer     NOT NULL DEFAULT 0,
    -- Why the generation was opened, when, and when it was activated.
    reason         text        NOT NULL DEFAULT '',
    opened_at      timestamptz,
    activated_at   timestamptz,
    -- When the window closes in which joins are gathered (JoinWindow).
    step_at        timestamptz,
    -- Settings of the set: those of the newest worker.
    max_partitions integer     NOT NULL DEFAULT 0,
    join_window_us bigint      NOT NULL DEFAULT 0,
    -- What operators have ordered. ["name", ...]: the projections that the
    -- generation does not run; "": none of them.
    paused         jsonb       NOT NULL DEFAULT '[]',
    -- {"name": position, ...}: the positions that projections are set to when the
    -- next generation is activated.
    rewinds        jsonb       NOT NULL DEFAULT '{}',
    -- {"name": microseconds, ...}: those of paused that are paused for a limited time,
    -- and its end, since 1970.
    holds          jsonb       NOT NULL DEFAULT '{}',
    -- The events table that the set reads, as its first worker has named it; '': not
    -- known. A worker that reads another one is refused.
    events_table   text        NOT NULL DEFAULT ''
);

-- One row for each living worker; one that joins again has a new row. A heartbeat
-- updates only its own row.
CREATE TABLE IF NOT EXISTS orchestrator_workers (
    replica_set text        NOT NULL,
    id          text        NOT NULL,
    -- The order in which workers joined.
    seq         bigint      GENERATED ALWAYS AS IDENTITY,
    joined_at   timestamptz NOT NULL,
    lease_us    bigint      NOT NULL,
    lease_until timestamptz NOT NULL,
    -- The worker's place in a generation. The generation is repeated here so that a
    -- heartbeat reads the whole assignment from one row.
    generation  bigint      NOT NULL,
    total       integer     NOT NULL,
    partitions  jsonb       NOT NULL, -- [0, 4, ...]; []: none
    -- The largest number of partitions that the worker takes.
    wants       integer     NOT NULL,
    -- The advisory lock (key, number) that the worker's dedicated connection holds
    -- while its process is alive; number 0: none, and the lease alone decides. A
    -- negative key is the connection's process id, negated, which is not known before.
    presence_key    integer NOT NULL,
    presence_number integer NOT NULL,
    -- The active generation that the worker must stop before a newer one
    -- can be activated; 0: none.
    holds       bigint      NOT NULL,
    -- The names of the projections that the worker runs.
    projections jsonb       NOT NULL,
    -- The set's paused, repeated like the generation.
    paused      jsonb       NOT NULL DEFAULT '[]',
    -- The worker gets no partitions (ops.DrainWorker).
    drained     boolean     NOT NULL DEFAULT false,
    -- The worker has left, and its partitions are reserved for a replacement until
    -- lease_until (ReplacementWindow). No worker runs them.
    vacant      boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (replica_set, id)
);

-- The latest report of each worker, for people and for metrics. Nothing is decided by
-- it.
CREATE TABLE IF NOT EXISTS orchestrator_reports (
    replica_set text        NOT NULL,
    worker      text        NOT NULL,
    reported_at timestamptz NOT NULL,
    report      jsonb       NOT NULL, -- WorkerReport in Go
    PRIMARY KEY (replica_set, worker)
);

-- The replica set that a projection belongs to.
CREATE TABLE IF NOT EXISTS orchestrator_projections (
    name        text    PRIMARY KEY,
    replica_set text    NOT NULL,
    -- The live version that this projection is to replace, or was replaced by: it goes
    -- no further than that one. NULL: it is the live version. '': there was an order for
    -- it, and no worker has run it yet.
    follows     text,
    -- It was removed (Retire): its name is not used again.
    retired     boolean NOT NULL DEFAULT false,
    -- It was live, and another version has replaced it (Promote). Nothing is decided by
    -- it.
    replaced    boolean NOT NULL DEFAULT false
);

-- How far each projection is on each partition. An active generation has
-- exactly the partitions 0 to total-1 of every projection of its set.
CREATE TABLE IF NOT EXISTS orchestrator_checkpoints (
    projection  text        NOT NULL,
    partition   integer     NOT NULL,
    replica_set text        NOT NULL,
    -- The fence: a commit names the generation that it runs under and the position
    -- that it starts from, and finds no row if either has changed. Negative: the
    -- projection came from another set, where this was its number, and no generation of
    -- this set has run it yet. 0: the row was imported (importer.Import), and no
    -- generation has run it yet.
    generation  bigint      NOT NULL,
    -- The layout: the partition's slots are those with slot mod total = partition.
    total       integer     NOT NULL,
    position    bigint      NOT NULL,
    -- [[slot, position], ...] in slot order: slots of the partition that are
    -- handled beyond position (marks). NULL: none.
    ahead       jsonb,
    updated_at  timestamptz NOT NULL,
    PRIMARY KEY (projection, partition)
);
CREATE INDEX IF NOT EXISTS orchestrator_checkpoints_replica_set
    ON orchestrator_checkpoints (replica_set);

-- The latest generations of each replica set, up to 1000.
CREATE TABLE IF NOT EXISTS orchestrator_history (
    replica_set  text        NOT NULL,
    generation   bigint      NOT NULL,
    reason       text        NOT NULL,
    total        integer     NOT NULL,
    -- {"worker": [0, 4, ...], ...}: the partitions of each worker.
    members      jsonb       NOT NULL,
    opened_at    timestamptz NOT NULL,
    -- NULL: it is draining, or was superseded before it was active.
    activated_at timestamptz,
    -- The workers that had to stop first.
    waited_for   jsonb       NOT NULL DEFAULT '[]',
    PRIMARY KEY (replica_set, generation)
);

-- The dead-letter queue: events that a projection has failed at and gone past, and the
-- later events of their aggregates, which wait behind them (ParkEvents, ops.Park). None
-- of them counts as handled.
CREATE TABLE IF NOT EXISTS orchestrator_parked (
    projection   text        NOT NULL,
    position     bigint      NOT NULL,
    slot         integer     NOT NULL,
    aggregate_id text        NOT NULL,
    -- The failure, and after how many attempts; '': it waits behind another event.
    error        text        NOT NULL,
    attempts     integer     NOT NULL,
    parked_at    timestamptz NOT NULL,
    -- What an operator has asked for: the lane that has the slot carries it out.
    request      text        CHECK (request IN ('retry', 'discard')),
    PRIMARY KEY (projection, position)
);

-- Orders to park the event that a projection is at, whatever its failure rule is
-- (ops.Park): those that wait for the lane, and the outcome of about the latest thousand
-- of each replica set.
CREATE TABLE IF NOT EXISTS orchestrator_park_orders (
    number      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    replica_set text        NOT NULL,
    generation  bigint      NOT NULL, -- the set's newest one when the order was given
    projection  text        NOT NULL,
    position    bigint      NOT NULL,
    slot        integer, -- of the event; NULL: no lane has read it yet
    ordered_by  text        NOT NULL,
    ordered_at  timestamptz NOT NULL,
    -- When it ended; NULL: it waits. And how: 'parked', or why it lapsed.
    ended_at    timestamptz,
    outcome     text
);
CREATE UNIQUE INDEX IF NOT EXISTS orchestrator_park_orders_waiting
    ON orchestrator_park_orders (projection, position) WHERE ended_at IS NULL;
CREATE INDEX IF NOT EXISTS orchestrator_park_orders_history
    ON orchestrator_park_orders (replica_set, number);

-- All locks that the upgrade needs, in one order, before the first change.
IF present IS NULL OR present < 3::bigint THEN
    LOCK TABLE orchestrator_replica_sets, orchestrator_workers, orchestrator_reports, orchestrator_projections,
               orchestrator_checkpoints, orchestrator_history, orchestrator_parked IN ACCESS EXCLUSIVE MODE;
END IF;

-- Upgrade from version 1. (Before the views, which show these columns.)
ALTER TABLE orchestrator_replica_sets
    ADD COLUMN IF NOT EXISTS paused  jsonb   NOT NULL DEFAULT '[]',
    ADD COLUMN IF NOT EXISTS rewinds jsonb   NOT NULL DEFAULT '{}';
ALTER TABLE orchestrator_workers
    ADD COLUMN IF NOT EXISTS paused  jsonb   NOT NULL DEFAULT '[]',
    ADD COLUMN IF NOT EXISTS drained boolean NOT NULL DEFAULT false;

-- Upgrade to version 3.
ALTER TABLE orchestrator_replica_sets
    ADD COLUMN IF NOT EXISTS holds   jsonb   NOT NULL DEFAULT '{}';
ALTER TABLE orchestrator_projections
    ADD COLUMN IF NOT EXISTS follows text,
    ADD COLUMN IF NOT EXISTS retired boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS replaced boolean NOT NULL DEFAULT false;
CREATE INDEX IF NOT EXISTS orchestrator_parked_requests
    ON orchestrator_parked (projection, position) WHERE request IS NOT NULL;

-- The content of rows is checked here as well as by the programs that read it. A row of
-- an older table that breaks a rule is named.
FOR rule IN
    SELECT x.tab, x.col, x.id, x.holds, pg_catalog.concat(VARIADIC ARRAY[x.tab, '_'::text, x.col, '_valid'::text]) AS name
      FROM (VALUES
           ('orchestrator_replica_sets'::text, 'generation'::text, 'name'::text,
            'generation >= 0'::text),
           ('orchestrator_replica_sets'::text, 'total'::text, 'name'::text,
            'total BETWEEN 0 AND 5040'::text),
           ('orchestrator_replica_sets'::text, 'max_partitions'::text, 'name'::text,
            'max_partitions BETWEEN 0 AND 5040'::text),
           ('orchestrator_replica_sets'::text, 'join_window_us'::text, 'name'::text,
            'join_window_us BETWEEN 0 AND 9223372036854775'::text),
           ('orchestrator_replica_sets'::text, 'opened_at'::text, 'name'::text,
            'opened_at BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 00:00:00+00''::timestamptz'::text),
           ('orchestrator_replica_sets'::text, 'activated_at'::text, 'name'::text,
            'activated_at BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 00:00:00+00''::timestamptz'::text),
           ('orchestrator_replica_sets'::text, 'step_at'::text, 'name'::text,
            'step_at BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 00:00:00+00''::timestamptz'::text),
           ('orchestrator_replica_sets'::text, 'paused'::text, 'name'::text,
            'pg_catalog.jsonb_typeof(paused) = ''array''::text AND NOT pg_catalog.jsonb_path_exists(paused, ''strict $[*] ? (@.type() != "string")''::jsonpath)'::text),
           ('orchestrator_replica_sets'::text, 'rewinds'::text, 'name'::text,
            'pg_catalog.jsonb_typeof(rewinds) = ''object''::text AND NOT pg_catalog.jsonb_path_exists(rewinds, ''strict $.* ? (@.type() != "number" || @ < 0 || @ > 9223372036854775807 || @.floor() != @)''::jsonpath)'::text),
           ('orchestrator_replica_sets'::text, 'holds'::text, 'name'::text,
            'pg_catalog.jsonb_typeof(holds) = ''object''::text AND NOT pg_catalog.jsonb_path_exists(holds, ''strict $.* ? (@.type() != "number" || @ < 0 || @ > 9223372036854775807 || @.floor() != @)''::jsonpath)'::text),
           ('orchestrator_workers'::text, 'lease_us'::text, 'replica_set, id'::text,
            'lease_us BETWEEN 1 AND 9223372036854775'::text),
           ('orchestrator_workers'::text, 'generation'::text, 'replica_set, id'::text,
            'generation >= 0'::text),
           ('orchestrator_workers'::text, 'total'::text, 'replica_set, id'::text,
            'total BETWEEN 0 AND 5040'::text),
           ('orchestrator_workers'::text, 'partitions'::text, 'replica_set, id'::text,
            'pg_catalog.jsonb_typeof(partitions) = ''array''::text AND NOT pg_catalog.jsonb_path_exists(partitions, ''strict $[*] ? (@.type() != "number" || @ < 0 || @ >= 5040 || @.floor() != @)''::jsonpath)'::text),
           ('orchestrator_workers'::text, 'wants'::text, 'replica_set, id'::text,
            'wants BETWEEN 0 AND 5040'::text),
           ('orchestrator_workers'::text, 'presence_number'::text, 'replica_set, id'::text,
            'presence_number >= 0'::text),
           ('orchestrator_workers'::text, 'holds'::text, 'replica_set, id'::text,
            'holds >= 0'::text),
           ('orchestrator_workers'::text, 'joined_at'::text, 'replica_set, id'::text,
            'joined_at BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 00:00:00+00''::timestamptz'::text),
           ('orchestrator_workers'::text, 'lease_until'::text, 'replica_set, id'::text,
            'lease_until BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 00:00:00+00''::timestamptz'::text),
           ('orchestrator_workers'::text, 'projections'::text, 'replica_set, id'::text,
            'pg_catalog.jsonb_typeof(projections) = ''array''::text AND NOT pg_catalog.jsonb_path_exists(projections, ''strict $[*] ? (@.type() != "string")''::jsonpath)'::text),
           ('orchestrator_workers'::text, 'paused'::text, 'replica_set, id'::text,
            'pg_catalog.jsonb_typeof(paused) = ''array''::text AND NOT pg_catalog.jsonb_path_exists(paused, ''strict $[*] ? (@.type() != "string")''::jsonpath)'::text),
           ('orchestrator_reports'::text, 'reported_at'::text, 'replica_set, worker'::text,
            'reported_at BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 00:00:00+00''::timestamptz'::text),
           ('orchestrator_reports'::text, 'report'::text, 'replica_set, worker'::text,
            'pg_catalog.jsonb_typeof(report) = ''object''::text AND NOT pg_catalog.jsonb_path_exists(report, ''lax $.head ? (@.type() != "number" || @.floor() != @ || @ < 0 || @ > 9223372036854775807)''::jsonpath) AND NOT pg_catalog.jsonb_path_exists(report, ''lax $.generation ? (@.type() != "number" || @.floor() != @ || @ < 0 || @ > 9223372036854775807)''::jsonpath) AND coalesce(pg_catalog.jsonb_typeof(report -> ''head''::text), ''number''::text) = ''number''::text AND coalesce(pg_catalog.jsonb_typeof(report -> ''generation''::text), ''number''::text) = ''number''::text AND coalesce(pg_catalog.jsonb_typeof(report -> ''lanes''::text), ''array''::text) = ''array''::text AND NOT pg_catalog.jsonb_path_exists(report, ''lax $.lanes[*] ? (@.type() != "object" || @.partition.type() != "number" || @.position.type() != "number" || @.behind.type() != "number" || @.behind_seconds.type() != "number" || @.per_second.type() != "number" || @.handling.type() != "number" || @.attempts.type() != "number" || @.projection.type() != "string" || @.state.type() != "string" || @.error.type() != "string" || @.interruption.type() != "string" || @.stalled.type() != "boolean" || @.since.type() != "string" || !(@.since like_regex "^[0-9]{4}-[0-9]{2}-[0-9]{2}T"))''::jsonpath)'::text),
           ('orchestrator_checkpoints'::text, 'generation'::text, 'projection, partition::text'::text,
            'generation >= -9223372036854775807'::text),
           ('orchestrator_checkpoints'::text, 'total'::text, 'projection, partition::text'::text,
            'total BETWEEN 1 AND 5040'::text),
           ('orchestrator_checkpoints'::text, 'partition'::text, 'projection, partition::text'::text,
            'partition >= 0 AND partition < total'::text),
           ('orchestrator_checkpoints'::text, 'position'::text, 'projection, partition::text'::text,
            'position >= 0'::text),
           ('orchestrator_checkpoints'::text, 'ahead'::text, 'projection, partition::text'::text,
            'CASE pg_catalog.jsonb_typeof(ahead) WHEN ''null''::text THEN true WHEN ''array''::text THEN NOT pg_catalog.jsonb_path_exists(ahead, ''strict $[*] ? (@.type() != "array" || @.size() != 2 || @[0].type() != "number" || @[1].type() != "number" || @[0] < 0 || @[0] >= 5040 || @[0].floor() != @[0] || @[1] < 0 || @[1] > 9223372036854775807 || @[1].floor() != @[1])''::jsonpath) ELSE ahead IS NULL END'::text),
           ('orchestrator_checkpoints'::text, 'updated_at'::text, 'projection, partition::text'::text,
            'updated_at BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 00:00:00+00''::timestamptz'::text),
           ('orchestrator_history'::text, 'total'::text, 'replica_set, generation::text'::text,
            'total BETWEEN 0 AND 5040'::text),
           ('orchestrator_history'::text, 'members'::text, 'replica_set, generation::text'::text,
            'pg_catalog.jsonb_typeof(members) = ''object''::text AND NOT pg_catalog.jsonb_path_exists(members, ''strict $.* ? (@.type() != "array")''::jsonpath) AND NOT pg_catalog.jsonb_path_exists(members, ''lax $.*[*] ? (@.type() != "number" || @ < 0 || @ >= 5040 || @.floor() != @)''::jsonpath)'::text),
           ('orchestrator_history'::text, 'opened_at'::text, 'replica_set, generation::text'::text,
            'opened_at BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 00:00:00+00''::timestamptz'::text),
           ('orchestrator_history'::text, 'activated_at'::text, 'replica_set, generation::text'::text,
            'activated_at BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 00:00:00+00''::timestamptz'::text),
           ('orchestrator_history'::text, 'waited_for'::text, 'replica_set, generation::text'::text,
            'pg_catalog.jsonb_typeof(waited_for) = ''array''::text AND NOT pg_catalog.jsonb_path_exists(waited_for, ''strict $[*] ? (@.type() != "string")''::jsonpath)'::text),
           ('orchestrator_parked'::text, 'position'::text, 'projection, position::text'::text,
            'position >= 0'::text),
           ('orchestrator_parked'::text, 'slot'::text, 'projection, position::text'::text,
            'slot BETWEEN 0 AND 5039'::text),
           ('orchestrator_parked'::text, 'attempts'::text, 'projection, position::text'::text,
            'attempts >= 0'::text),
           ('orchestrator_parked'::text, 'parked_at'::text, 'projection, position::text'::text,
            'parked_at BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 00:00:00+00''::timestamptz'::text),
           ('orchestrator_park_orders'::text, 'position'::text, 'number::text'::text,
            'position >= 0'::text),
           ('orchestrator_park_orders'::text, 'slot'::text, 'number::text'::text,
            'slot BETWEEN 0 AND 5039'::text),
           ('orchestrator_park_orders'::text, 'ordered_at'::text, 'number::text'::text,
            'ordered_at BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 00:00:00+00''::timestamptz'::text),
           ('orchestrator_park_orders'::text, 'ended_at'::text, 'number::text'::text,
            'ended_at BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 00:00:00+00''::timestamptz'::text)
           ) AS x (tab, col, id, holds)
     WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k
                        WHERE k.conrelid = pg_catalog.to_regclass(pg_catalog.quote_ident(x.tab))::oid
                          AND k.conname = pg_catalog.concat(VARIADIC ARRAY[x.tab, '_'::text, x.col, '_valid'::text])::name)
LOOP
    EXECUTE pg_catalog.format('ALTER TABLE %I ADD CONSTRAINT %I CHECK (%s) NOT VALID'::text, VARIADIC ARRAY[rule.tab, rule.name, rule.holds]);
    EXECUTE pg_catalog.format('SELECT pg_catalog.concat_ws('', ''::text, VARIADIC ARRAY[%s]) FROM %I WHERE NOT (%s) LIMIT 1'::text,
        VARIADIC ARRAY[rule.id, rule.tab, rule.holds]) INTO flaw;
    IF flaw IS NOT NULL THEN
        RAISE EXCEPTION 'table %, row (%): the column % holds what it can''t hold', rule.tab, flaw, rule.col
            USING ERRCODE = 'check_violation', DETAIL = pg_catalog.concat(VARIADIC ARRAY['It must hold: '::text, rule.holds]),
            HINT = 'Nothing was changed. Correct the row, or delete it, and try again.';
    END IF;
    EXECUTE pg_catalog.format('ALTER TABLE %I VALIDATE CONSTRAINT %I'::text, VARIADIC ARRAY[rule.tab, rule.name]);
END LOOP;

ALTER TABLE orchestrator_replica_sets
    ADD COLUMN IF NOT EXISTS events_table text NOT NULL DEFAULT '';
ALTER TABLE orchestrator_workers
    ADD COLUMN IF NOT EXISTS vacant boolean NOT NULL DEFAULT false;

-- For people. One row for each replica set: its generation, and the workers that it
-- waits for.
CREATE OR REPLACE VIEW orchestrator_status AS
SELECT s.name AS replica_set, s.generation, s.phase, s.total, s.reason, s.opened_at, s.activated_at,
       (SELECT pg_catalog.count(*) FROM orchestrator_workers w WHERE w.replica_set = s.name) AS workers,
       (SELECT pg_catalog.count(*) FROM orchestrator_workers w WHERE w.replica_set = s.name AND w.partitions = '[]'::jsonb) AS without_partitions,
       CASE WHEN s.phase = 'draining'::text THEN
            (SELECT pg_catalog.array_agg(w.id ORDER BY w.seq) FROM orchestrator_workers w WHERE w.replica_set = s.name AND w.holds <> 0 AND NOT w.vacant)
       END AS waits_for,
       s.paused, s.rewinds,
       (SELECT pg_catalog.max((r.report ->> 'head'::text)::bigint) FROM orchestrator_reports r WHERE r.replica_set = s.name) AS head
  FROM orchestrator_replica_sets s;

-- One row for each worker.
CREATE OR REPLACE VIEW orchestrator_status_workers AS
SELECT w.replica_set, w.id AS worker, w.seq, w.joined_at, w.lease_until, w.lease_until > pg_catalog.clock_timestamp() AND NOT w.vacant AS alive,
       w.generation, w.total, w.partitions, w.holds, w.drained, w.projections,
       r.reported_at, CASE WHEN w.vacant THEN 'vacant'::text ELSE r.report ->> 'state'::text END AS state, (r.report ->> 'head'::text)::bigint AS head, r.report -> 'gap'::text AS gap
  FROM orchestrator_workers w
  LEFT JOIN orchestrator_reports r ON r.replica_set = w.replica_set AND r.worker = w.id;

-- One row for each projection on each partition: its worker and its progress. The
-- columns from "behind" on are from the worker's latest report. Parked events are
-- counted once, partitions unnested, and a report taken apart once, so that all of it
-- can be joined by hash. (Status in Go joins by itself.)
CREATE OR REPLACE VIEW orchestrator_status_partitions AS
SELECT c.replica_set, c.projection, c.partition, c.total, c.generation, w.id AS worker,
       c.position, coalesce(pg_catalog.jsonb_array_length(c.ahead), 0) AS marks, c.updated_at,
       s.paused ? c.projection OR s.paused ? ''::text AS paused,
       coalesce(p.parked, 0) AS parked,
       l.position AS reached, l.behind, l.behind_seconds, l.state, l.since, l.handling, l.attempts,
       coalesce(l.error, 'interrupted: '::text || l.interruption) AS error,
       coalesce(l.stalled, false) AS stalled, r.reported_at,
       p.parked_since
  FROM orchestrator_checkpoints c
  JOIN orchestrator_replica_sets s ON s.name = c.replica_set
  LEFT JOIN (
       SELECT t.replica_set, t.projection, t.total, e.slot % t.total AS partition,
              pg_catalog.count(*) AS parked, pg_catalog.min(e.parked_at) AS parked_since
         FROM (SELECT DISTINCT k.replica_set, k.projection, k.total FROM orchestrator_checkpoints k) t
         JOIN orchestrator_parked e ON e.projection = t.projection
        GROUP BY 1, 2, 3, 4) p
    ON p.replica_set = c.replica_set AND p.projection = c.projection AND p.total = c.total AND p.partition = c.partition
  LEFT JOIN (
       SELECT v.replica_set, v.generation, v.id, x.partition::integer AS partition
         FROM orchestrator_workers v CROSS JOIN LATERAL pg_catalog.jsonb_array_elements_text(v.partitions) AS x (partition)
       UNION ALL -- what a worker has not stopped yet, though it has a place in the next generation
       SELECT DISTINCT v.replica_set, v.holds, v.id, y.partition
         FROM orchestrator_workers v
         JOIN orchestrator_reports q ON q.replica_set = v.replica_set AND q.worker = v.id AND (q.report ->> 'generation'::text)::bigint = v.holds
        CROSS JOIN LATERAL pg_catalog.jsonb_to_recordset(q.report -> 'lanes'::text) AS y (partition integer)
        WHERE v.holds <> 0 AND v.holds <> v.generation AND NOT v.vacant) w
    ON w.replica_set = c.replica_set AND w.generation = c.generation AND w.partition = c.partition
  LEFT JOIN (
       SELECT q.replica_set, q.worker, q.reported_at, (q.report ->> 'generation'::text)::bigint AS generation
         FROM orchestrator_reports q) r
    ON r.replica_set = c.replica_set AND r.worker = w.id AND r.generation = c.generation
  LEFT JOIN (
       SELECT q.replica_set, q.worker, y.*
         FROM orchestrator_reports q CROSS JOIN LATERAL pg_catalog.jsonb_to_recordset(q.report -> 'lanes'::text) AS y (
              projection text, partition integer, position bigint, behind bigint, behind_seconds double precision, state text,
              since timestamptz, handling bigint, attempts integer, error text, interruption text, stalled boolean)) l
    ON l.replica_set = r.replica_set AND l.worker = r.worker AND l.projection = c.projection AND l.partition = c.partition;

INSERT INTO orchestrator_schema (version) VALUES (3)
    ON CONFLICT (singleton) DO UPDATE SET version = greatest(orchestrator_schema.version, excluded.version);

END IF;
PERFORM pg_catalog.set_config('search_path'::text, old_path, true);
PERFORM pg_catalog.set_config('lock_timeout'::text, old_wait, true);
END
$orchestrator$;
