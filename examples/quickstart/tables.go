package main

// tables are the demo's own, beside the events and the library's tables.
const tables = `
-- What the projections did, a row for each event that they handled. No constraint keeps an
-- event from having two effects: the verification has to find a second one.
CREATE TABLE effects (
    seq               bigserial   PRIMARY KEY, -- the order in which they were written
    projection        text        NOT NULL,
    position          bigint      NOT NULL,
    aggregate_id      text        NOT NULL,
    aggregate_version bigint      NOT NULL,
    worker            text        NOT NULL,
    generation        bigint      NOT NULL,
    partition         integer     NOT NULL,
    total             integer     NOT NULL,
    began             timestamptz NOT NULL,
    ended             timestamptz NOT NULL
);

-- The workers that were frozen, the generation that each was running, and when it was woken.
CREATE TABLE freezes (
    worker     text        NOT NULL,
    generation bigint      NOT NULL,
    woken_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);`
