-- The tables of pupsourcing-orchestrator, schema version 1.
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
    join_window_us bigint      NOT NULL DEFAULT 0
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
    PRIMARY KEY (replica_set, id)
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

INSERT INTO orchestrator_schema (version) VALUES (1)
    ON CONFLICT (singleton) DO UPDATE SET version = greatest(orchestrator_schema.version, excluded.version);
