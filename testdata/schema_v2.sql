-- The tables of pupsourcing-orchestrator, schema version 2.
--
-- Apply it with orchestrator.RunMigrations(db), with psql -f, or copy it into
-- the migrations that you have. It is idempotent, and creates everything in
-- the first schema of the search path. PostgreSQL 13 or later.

-- The version of this schema. A program that needs a newer one says so and
-- does not start.
CREATE TABLE IF NOT EXISTS orchestrator_schema (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    version   integer NOT NULL
);

-- One row for each replica set: its newest generation. Whoever changes
-- anything about a set's membership locks this row first, and decides then.
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
    -- When a window in which joins are gathered closes.
    step_at        timestamptz,
    -- Settings of the set, as the newest worker brought them along.
    max_partitions integer     NOT NULL DEFAULT 0,
    join_window_us bigint      NOT NULL DEFAULT 0,
    -- What operators have ordered. ["name", …]: the projections that the
    -- generation does not run; "": none of them.
    paused         jsonb       NOT NULL DEFAULT '[]',
    -- {"name": position, …}: where projections are to be set when the next
    -- generation is activated.
    rewinds        jsonb       NOT NULL DEFAULT '{}'
);

-- One row for each living worker, in fact for each incarnation of one. A
-- heartbeat updates nothing but its own row here.
CREATE TABLE IF NOT EXISTS orchestrator_workers (
    replica_set text        NOT NULL,
    id          text        NOT NULL,
    -- The order in which workers joined.
    seq         bigint      GENERATED ALWAYS AS IDENTITY,
    joined_at   timestamptz NOT NULL,
    lease_us    bigint      NOT NULL,
    lease_until timestamptz NOT NULL,
    -- The worker's place in a generation. The generation stands here a second
    -- time so that a heartbeat reads an assignment in one piece.
    generation  bigint      NOT NULL,
    total       integer     NOT NULL,
    partitions  jsonb       NOT NULL, -- [0, 4, …]; []: none
    -- How many partitions the worker takes at most.
    wants       integer     NOT NULL,
    -- The advisory lock (key, number) that a session of the worker's own holds
    -- while its process is there; number 0: none, and the lease alone decides.
    presence_key    integer NOT NULL,
    presence_number integer NOT NULL,
    -- The active generation that the worker has to stop before a newer one
    -- can be activated; 0: none.
    holds       bigint      NOT NULL,
    -- The names of the projections that the worker runs.
    projections jsonb       NOT NULL,
    -- The set's paused, a second time like the generation.
    paused      jsonb       NOT NULL DEFAULT '[]',
    -- The worker is to have no partitions (DrainWorker).
    drained     boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (replica_set, id)
);

-- What a worker last said of itself, for people and for metrics. Nothing is
-- decided by it.
CREATE TABLE IF NOT EXISTS orchestrator_reports (
    replica_set text        NOT NULL,
    worker      text        NOT NULL,
    reported_at timestamptz NOT NULL,
    report      jsonb       NOT NULL, -- WorkerReport in Go
    PRIMARY KEY (replica_set, worker)
);

-- The replica set that a projection belongs to.
CREATE TABLE IF NOT EXISTS orchestrator_projections (
    name        text PRIMARY KEY,
    replica_set text NOT NULL
);

-- How far each projection is on each partition. An active generation has
-- exactly the partitions 0 to total-1 of every projection of its set.
CREATE TABLE IF NOT EXISTS orchestrator_checkpoints (
    projection  text        NOT NULL,
    partition   integer     NOT NULL,
    replica_set text        NOT NULL,
    -- The fence: a commit names the generation that it runs under and the
    -- position that it starts from, and finds no row when either has changed.
    -- Negative: the projection came from another set, where it stood under
    -- that number, and no generation of this set has it yet. 0: the row was
    -- imported (ImportCheckpoints), and no generation has it yet.
    generation  bigint      NOT NULL,
    -- The layout: the partition's slots are those with slot mod total = partition.
    total       integer     NOT NULL,
    position    bigint      NOT NULL,
    -- [[slot, position], …] in slot order: slots of the partition that are
    -- handled further than position. NULL: none.
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
    -- {"worker": [0, 4, …], …}: who has which partitions.
    members      jsonb       NOT NULL,
    opened_at    timestamptz NOT NULL,
    -- NULL: it drains, or was superseded before it was active.
    activated_at timestamptz,
    -- Who had to stop something when it was opened: whom it waited for.
    waited_for   jsonb       NOT NULL DEFAULT '[]',
    PRIMARY KEY (replica_set, generation)
);

-- Events that a projection has failed at and gone past, and the later events of
-- their aggregates, which wait behind them (ParkEvents). None counts as handled.
CREATE TABLE IF NOT EXISTS orchestrator_parked (
    projection   text        NOT NULL,
    position     bigint      NOT NULL,
    slot         integer     NOT NULL,
    aggregate_id text        NOT NULL,
    -- Why and after how many attempts; '' and 0: it waits behind another.
    error        text        NOT NULL,
    attempts     integer     NOT NULL,
    parked_at    timestamptz NOT NULL,
    -- What the lane that has the slot is asked to do with the event.
    request      text        CHECK (request IN ('retry', 'discard')),
    PRIMARY KEY (projection, position)
);

-- Upgrade from version 1. (Before the views, which show these columns.)
ALTER TABLE orchestrator_replica_sets
    ADD COLUMN IF NOT EXISTS paused  jsonb   NOT NULL DEFAULT '[]',
    ADD COLUMN IF NOT EXISTS rewinds jsonb   NOT NULL DEFAULT '{}';
ALTER TABLE orchestrator_workers
    ADD COLUMN IF NOT EXISTS paused  jsonb   NOT NULL DEFAULT '[]',
    ADD COLUMN IF NOT EXISTS drained boolean NOT NULL DEFAULT false;

-- For people. One row for each replica set: what runs, and whom it waits for.
CREATE OR REPLACE VIEW orchestrator_status AS
SELECT s.name AS replica_set, s.generation, s.phase, s.total, s.reason, s.opened_at, s.activated_at,
       (SELECT count(*) FROM orchestrator_workers w WHERE w.replica_set = s.name) AS workers,
       (SELECT count(*) FROM orchestrator_workers w WHERE w.replica_set = s.name AND w.partitions = '[]') AS without_partitions,
       CASE WHEN s.phase = 'draining' THEN
            (SELECT array_agg(w.id ORDER BY w.seq) FROM orchestrator_workers w WHERE w.replica_set = s.name AND w.holds <> 0)
       END AS waits_for,
       s.paused, s.rewinds,
       (SELECT max((r.report ->> 'head')::bigint) FROM orchestrator_reports r WHERE r.replica_set = s.name) AS head
  FROM orchestrator_replica_sets s;

-- One row for each worker.
CREATE OR REPLACE VIEW orchestrator_status_workers AS
SELECT w.replica_set, w.id AS worker, w.seq, w.joined_at, w.lease_until, w.lease_until > clock_timestamp() AS alive,
       w.generation, w.total, w.partitions, w.holds, w.drained, w.projections,
       r.reported_at, r.report ->> 'state' AS state, (r.report ->> 'head')::bigint AS head, r.report -> 'gap' AS gap
  FROM orchestrator_workers w
  LEFT JOIN orchestrator_reports r ON r.replica_set = w.replica_set AND r.worker = w.id;

-- One row for each projection on each partition: who has it, and how far it is.
-- What begins with "behind" and what follows it is what the worker last said.
CREATE OR REPLACE VIEW orchestrator_status_partitions AS
SELECT c.replica_set, c.projection, c.partition, c.total, c.generation, w.id AS worker,
       c.position, coalesce(jsonb_array_length(c.ahead), 0) AS marks, c.updated_at,
       s.paused ? c.projection OR s.paused ? '' AS paused,
       (SELECT count(*) FROM orchestrator_parked p WHERE p.projection = c.projection AND p.slot % c.total = c.partition) AS parked,
       l.position AS reached, l.behind, l.behind_seconds, l.state, l.since, l.handling, l.attempts, l.error,
       coalesce(l.stalled, false) AS stalled, r.reported_at,
       (SELECT min(p.parked_at) FROM orchestrator_parked p WHERE p.projection = c.projection AND p.slot % c.total = c.partition) AS parked_since
  FROM orchestrator_checkpoints c
  JOIN orchestrator_replica_sets s ON s.name = c.replica_set
  LEFT JOIN orchestrator_workers w
    ON w.replica_set = c.replica_set AND w.generation = c.generation AND w.partitions @> to_jsonb(c.partition)
  LEFT JOIN orchestrator_reports r
    ON r.replica_set = c.replica_set AND r.worker = w.id AND (r.report ->> 'generation')::bigint = c.generation
  LEFT JOIN LATERAL jsonb_to_recordset(r.report -> 'lanes') AS l (
       projection text, partition integer, position bigint, behind bigint, behind_seconds double precision, state text,
       since timestamptz, handling bigint, attempts integer, error text, stalled boolean)
    ON l.projection = c.projection AND l.partition = c.partition;

INSERT INTO orchestrator_schema (version) VALUES (2)
    ON CONFLICT (singleton) DO UPDATE SET version = greatest(orchestrator_schema.version, excluded.version);
