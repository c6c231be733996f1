package main

import "github.com/getpup/pupsourcing-orchestrator/internal/eventtable"

// tables are what the demo needs beside the library's own tables.
var tables = eventtable.Layout + `
-- What the projections did, a row for each event that they handled. No
-- constraint says that an event has one effect only: a second one is to be
-- found, and not to be hidden behind an error.
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

-- Which worker was frozen, the generation that it ran, and when it was woken.
CREATE TABLE freezes (
    worker     text        NOT NULL,
    generation bigint      NOT NULL,
    woken_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);`
