package layouttest

import (
	"database/sql"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

var goLayouts = []layout{{
	name: "hallgren/eventsourcing",
	// The position is an int4, and the time a text.
	ddl: `
CREATE TABLE events (
    seq       serial PRIMARY KEY,
    id        varchar NOT NULL,
    version   integer,
    reason    varchar,
    type      varchar,
    timestamp varchar,
    data      bytea,
    UNIQUE (id, type, version))`,
	insert: `INSERT INTO events (id, version, reason, type, timestamp, data) VALUES ('{stream}', {version}, 'Opened', 'Order', '2026-01-02T03:04:05Z', '{data}')`,
	table:  `events`,
	events: `SELECT seq AS position, id AS aggregate FROM events`,
	reader: reads(hallgren, func(e hallgrenEvent) int64 { return e.Position }),
}, {
	name: "watermill-sql",
	// The key begins with the transaction, so there is no index on the position. No column
	// groups events into aggregates.
	ddl: `
CREATE TABLE watermill_orders (
    "offset"       bigserial,
    uuid           varchar(36) NOT NULL,
    created_at     timestamp   NOT NULL DEFAULT now(),
    payload        json,
    metadata       json,
    transaction_id xid8        NOT NULL,
    PRIMARY KEY (transaction_id, "offset"))`,
	add: `
ALTER TABLE watermill_orders ADD COLUMN order_id text
    GENERATED ALWAYS AS (coalesce(metadata ->> 'order_id', '')) STORED;
CREATE UNIQUE INDEX ON watermill_orders ("offset")`,
	insert: `INSERT INTO watermill_orders (uuid, payload, metadata, transaction_id) VALUES ('{id}', '{data}', '{"order_id": "{stream}"}', pg_current_xact_id())`,
	table:  `watermill_orders`,
	events: `SELECT "offset" AS position, metadata ->> 'order_id' AS aggregate FROM watermill_orders`,
	reader: reads(watermill, func(e watermillMessage) int64 { return e.Offset }),
}, {
	name: "go-eventually",
	// It numbers only the events of a stream.
	ddl: `
CREATE TABLE event_streams (event_stream_id text PRIMARY KEY, version integer NOT NULL);
CREATE TABLE events (
    event_stream_id text    NOT NULL REFERENCES event_streams,
    type            text    NOT NULL,
    version         integer NOT NULL,
    event           bytea   NOT NULL,
    metadata        jsonb,
    PRIMARY KEY (event_stream_id, version))`,
	add: `ALTER TABLE events ADD COLUMN global_position bigserial UNIQUE`,
	insert: `
WITH stream AS (
    INSERT INTO event_streams VALUES ('{stream}', {version}) ON CONFLICT (event_stream_id) DO UPDATE SET version = excluded.version)
INSERT INTO events (event_stream_id, type, version, event) VALUES ('{stream}', 'Opened', {version}, '{data}')`,
	table:  `events`,
	events: `SELECT global_position AS position, event_stream_id AS aggregate FROM events`,
	reader: reads(goEventually, func(e goEventuallyEvent) int64 { return e.Position }),
}}

type hallgrenEvent struct {
	Position int64
	ID       string
	Version  int
	Reason   string
	Data     []byte
}

func hallgren(db *sql.DB) (*orchestrator.Table[hallgrenEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[hallgrenEvent]{
		Table:               "events",
		PositionColumn:      "seq",
		AggregateIDColumn:   "id",
		AggregateTypeColumn: "type",
		EventTypeColumn:     "reason",
		Columns:             []string{"seq", "id", "version", "reason", "data"},
		Fields: func(e *hallgrenEvent, dest []any) []any {
			return append(dest, &e.Position, &e.ID, &e.Version, &e.Reason, &e.Data)
		},
	})
}

type watermillMessage struct {
	Offset   int64
	UUID     string
	Payload  []byte
	Metadata []byte
}

func watermill(db *sql.DB) (*orchestrator.Table[watermillMessage], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[watermillMessage]{
		Table:             "watermill_orders",
		PositionColumn:    "offset",
		AggregateIDColumn: "order_id",
		Columns:           []string{"offset", "uuid", "payload", "metadata"},
		Fields: func(m *watermillMessage, dest []any) []any {
			return append(dest, &m.Offset, &m.UUID, &m.Payload, &m.Metadata)
		},
	})
}

type goEventuallyEvent struct {
	Position int64
	Stream   string
	Version  int
	Type     string
	Event    []byte
}

func goEventually(db *sql.DB) (*orchestrator.Table[goEventuallyEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[goEventuallyEvent]{
		Table:             "events",
		AggregateIDColumn: "event_stream_id",
		EventTypeColumn:   "type",
		Columns:           []string{"global_position", "event_stream_id", "version", "type", "event"},
		Fields: func(e *goEventuallyEvent, dest []any) []any {
			return append(dest, &e.Position, &e.Stream, &e.Version, &e.Type, &e.Event)
		},
	})
}
