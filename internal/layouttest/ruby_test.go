package layouttest

import (
	"database/sql"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

const (
	railsTables = `
CREATE TABLE event_store_events (
    id         bigserial PRIMARY KEY,
    event_id   uuid NOT NULL UNIQUE,
    event_type varchar NOT NULL,
    metadata   jsonb,
    data       jsonb NOT NULL,
    created_at timestamp NOT NULL DEFAULT now());
CREATE TABLE event_store_events_in_streams (
    id         bigserial PRIMARY KEY,
    stream     varchar NOT NULL,
    position   integer,
    event_id   uuid NOT NULL REFERENCES event_store_events (event_id),
    created_at timestamp NOT NULL DEFAULT now(),
    UNIQUE (stream, position),
    UNIQUE (stream, event_id));`
	railsInsert = `
INSERT INTO event_store_events (event_id, event_type, metadata, data) VALUES ('{id}', 'OrderOpened', '{}', '{"order_id": "{stream}"}');
INSERT INTO event_store_events_in_streams (stream, position, event_id) VALUES ('Order${stream}', {version} - 1, '{id}')`
)

var rubyLayouts = []layout{{
	name: "Rails Event Store",
	// No column groups events into aggregates: streams are in another table.
	ddl: railsTables,
	add: `
ALTER TABLE event_store_events ADD COLUMN order_id text NOT NULL
    GENERATED ALWAYS AS (coalesce(data ->> 'order_id', event_id::text)) STORED`,
	insert: railsInsert,
	table:  `event_store_events`,
	events: `SELECT id AS position, data ->> 'order_id' AS aggregate FROM event_store_events`,
	reader: reads(rails, func(e railsEvent) int64 { return e.ID }),
}, {
	name: "pg_eventstore",
	// Three levels of partitions, which the appending transaction creates.
	ddl: `
CREATE TABLE events (
    id              uuid NOT NULL DEFAULT gen_random_uuid(),
    context         varchar NOT NULL,
    stream_name     varchar NOT NULL,
    stream_id       varchar NOT NULL,
    global_position bigserial NOT NULL,
    stream_revision integer NOT NULL,
    data            jsonb NOT NULL,
    type            varchar NOT NULL,
    PRIMARY KEY (context, stream_name, type, global_position)) PARTITION BY LIST (context);
CREATE INDEX ON events (global_position);
CREATE TABLE events_sales PARTITION OF events FOR VALUES IN ('Sales') PARTITION BY LIST (stream_name);
CREATE TABLE events_sales_order PARTITION OF events_sales FOR VALUES IN ('Order') PARTITION BY LIST (type);
CREATE TABLE events_sales_order_opened PARTITION OF events_sales_order FOR VALUES IN ('Opened')`,
	insert: `INSERT INTO events (context, stream_name, stream_id, stream_revision, data, type) VALUES ('Sales', 'Order', '{stream}', {version} - 1, '{data}', 'Opened')`,
	meanwhile: `
BEGIN;
CREATE TABLE events_sales_order_closed PARTITION OF events_sales_order FOR VALUES IN ('Closed');
INSERT INTO events (context, stream_name, stream_id, stream_revision, data, type) VALUES ('Sales', 'Order', 'x', 0, '{}', 'Closed');
COMMIT`,
	table:  `events`,
	events: `SELECT global_position AS position, stream_id AS aggregate FROM events`,
	reader: reads(pgEventstore, func(e pgEventstoreEvent) int64 { return e.Position }),
}}

type railsEvent struct {
	ID      int64
	EventID string
	Type    string
	Data    []byte
}

func rails(db *sql.DB) (*orchestrator.Table[railsEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[railsEvent]{
		Table:             "event_store_events",
		PositionColumn:    "id",
		AggregateIDColumn: "order_id",
		EventTypeColumn:   "event_type",
		Columns:           []string{"id", "event_id", "event_type", "data"},
		Fields: func(e *railsEvent, dest []any) []any {
			return append(dest, &e.ID, &e.EventID, &e.Type, &e.Data)
		},
	})
}

type pgEventstoreEvent struct {
	Position int64
	Stream   string
	Revision int
	Type     string
	Data     []byte
}

func pgEventstore(db *sql.DB) (*orchestrator.Table[pgEventstoreEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[pgEventstoreEvent]{
		Table:                "events",
		AggregateIDColumn:    "stream_id",
		AggregateTypeColumn:  "stream_name",
		BoundedContextColumn: "context",
		EventTypeColumn:      "type",
		Columns:              []string{"global_position", "stream_id", "stream_revision", "type", "data"},
		Fields: func(e *pgEventstoreEvent, dest []any) []any {
			return append(dest, &e.Position, &e.Stream, &e.Revision, &e.Type, &e.Data)
		},
	})
}
