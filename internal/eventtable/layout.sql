-- An events table in pupsourcing's layout, for tests and the demo.
CREATE TABLE events (
    global_position   bigserial   PRIMARY KEY,
    bounded_context   text        NOT NULL,
    aggregate_type    text        NOT NULL,
    aggregate_id      text        NOT NULL,
    aggregate_version bigint      NOT NULL,
    event_id          uuid        NOT NULL UNIQUE,
    event_type        text        NOT NULL,
    event_version     integer     NOT NULL DEFAULT 1,
    payload           bytea       NOT NULL,
    trace_id          text,
    correlation_id    text,
    causation_id      text,
    metadata          jsonb,
    created_at        timestamptz NOT NULL DEFAULT now(),
    UNIQUE (bounded_context, aggregate_type, aggregate_id, aggregate_version)
);
