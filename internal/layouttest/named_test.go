package layouttest

import (
	"database/sql"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// Layouts in which the database does not show where positions come from. The configuration says
// it, with Sequence, NoSequence or Writers.

const commandedTables = `
CREATE TABLE streams (stream_id bigserial PRIMARY KEY, stream_uuid text NOT NULL UNIQUE, stream_version bigint NOT NULL DEFAULT 0);
INSERT INTO streams (stream_id, stream_uuid) VALUES (0, '$all');
CREATE TABLE events (event_id uuid PRIMARY KEY, event_type text NOT NULL, data bytea NOT NULL, created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE stream_events (
    event_id                uuid NOT NULL REFERENCES events,
    stream_id               bigint NOT NULL REFERENCES streams,
    stream_version          bigint NOT NULL,
    original_stream_id      bigint REFERENCES streams,
    original_stream_version bigint,
    PRIMARY KEY (event_id, stream_id));
CREATE UNIQUE INDEX ON stream_events (stream_id, stream_version);
CREATE FUNCTION append(stream text, at bigint, event uuid, body bytea) RETURNS void LANGUAGE sql AS $$
    INSERT INTO events (event_id, event_type, data) VALUES (event, 'Opened', body);
    INSERT INTO streams (stream_uuid) VALUES (stream) ON CONFLICT DO NOTHING;
    WITH one AS (UPDATE streams SET stream_version = at WHERE stream_uuid = stream RETURNING stream_id)
    INSERT INTO stream_events SELECT event, stream_id, at, stream_id, at FROM one;
    WITH everything AS (UPDATE streams SET stream_version = stream_version + 1 WHERE stream_id = 0 RETURNING stream_version)
    INSERT INTO stream_events
    SELECT event, 0, everything.stream_version, s.stream_id, at FROM everything, streams s WHERE s.stream_uuid = stream;
$$`

var namedLayouts = []layout{{
	name: "Marten, one tenant of several sequences",
	ddl:  martenTenants,
	take: `SELECT nextval('mt_events_sequence_red')`,
	insert: `INSERT INTO mt_events (tenant_id, seq_id, id, stream_id, version, data, type)
	         VALUES ('red', {position}, '{id}', '{stream}', {version}, '{data}', 'opened')`,
	table:  `mt_events`,
	events: `SELECT seq_id AS position, stream_id::text AS aggregate FROM mt_events WHERE tenant_id = 'red'`,
	// The other tenant has the same numbers.
	meanwhile: `INSERT INTO mt_events (tenant_id, seq_id, id, stream_id, version, data, type)
	            SELECT 'blue', nextval('mt_events_sequence_blue'), gen_random_uuid(), gen_random_uuid(), 1, '{}', 'opened' FROM generate_series(1, 500)`,
	reader: reads(martenTenant, func(e martenEvent) int64 { return e.Position }),
}, {
	name: "Axon Framework 5, JPA",
	// persist() takes the number from a sequence without a link to the table. The insert follows
	// at the flush.
	ddl: `
CREATE SEQUENCE "aggregate-event-global-index-sequence";
CREATE TABLE aggregate_event_entry (
    global_index              bigint PRIMARY KEY,
    aggregate_type            varchar(255),
    aggregate_identifier      varchar(255),
    aggregate_sequence_number bigint,
    identifier                varchar(255) NOT NULL UNIQUE,
    type                      varchar(255) NOT NULL,
    version                   varchar(255) NOT NULL,
    timestamp                 varchar(255) NOT NULL,
    payload                   bytea NOT NULL,
    UNIQUE (aggregate_identifier, aggregate_sequence_number))`,
	add: `
ALTER TABLE aggregate_event_entry ADD COLUMN aggregate text NOT NULL
    GENERATED ALWAYS AS (coalesce(aggregate_identifier, identifier)) STORED`,
	take: `SELECT nextval('"aggregate-event-global-index-sequence"')`,
	insert: `INSERT INTO aggregate_event_entry (global_index, aggregate_type, aggregate_identifier, aggregate_sequence_number, identifier, type, version, timestamp, payload)
	         VALUES ({position}, 'Order', '{stream}', {version}, '{id}', 'Opened', '1', '2026-01-02T03:04:05Z', '{data}')`,
	// An event without an aggregate.
	meanwhile: `INSERT INTO aggregate_event_entry (global_index, identifier, type, version, timestamp, payload)
	            SELECT nextval('"aggregate-event-global-index-sequence"'), gen_random_uuid(), 'Opened', '1', '2026-01-02T03:04:05Z', '{}'`,
	table:  `aggregate_event_entry`,
	events: `SELECT global_index AS position, coalesce(aggregate_identifier, identifier) AS aggregate FROM aggregate_event_entry`,
	reader: reads(axon5, func(e axon5Event) int64 { return e.Position }),
}, {
	name: "Rails Event Store, with the name of the stream",
	ddl:  railsTables,
	add: `
CREATE VIEW orders AS
    SELECT e.id, s.stream, s.position AS version, e.event_type, e.data
      FROM event_store_events e
      JOIN event_store_events_in_streams s USING (event_id)
     WHERE s.stream LIKE 'Order$%'`,
	insert: railsInsert,
	table:  `event_store_events`,
	events: `SELECT id AS position, stream AS aggregate FROM orders`,
	reader: reads(railsStreams, func(e railsStreamEvent) int64 { return e.ID }),
}, {
	name: "Commanded",
	// The positions of $all come from a row that each append increments, and so locks until it
	// commits.
	ddl: commandedTables,
	add: `
CREATE VIEW all_events AS
    SELECT a.stream_version AS global_position, s.stream_uuid, a.original_stream_version, e.event_type, e.data
      FROM stream_events a
      JOIN streams s ON s.stream_id = a.original_stream_id
      JOIN events e USING (event_id)
     WHERE a.stream_id = 0`,
	insert: `SELECT append('order-{stream}', {version}, '{id}', '{data}')`,
	serial: true,
	events: `SELECT stream_version AS position, original_stream_id::text AS aggregate FROM stream_events WHERE stream_id = 0`,
	reader: reads(commanded, func(e commandedEvent) int64 { return e.Position }),
}, {
	name: "nextval in a trigger",
	ddl: plainTable(`bigint PRIMARY KEY`) + `
CREATE SEQUENCE positions;
CREATE FUNCTION number() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.id := nextval('positions'); RETURN NEW; END $$;
CREATE TRIGGER number BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION number()`,
	insert: plainInsert, table: `events`, events: plainEvents, reader: reads(plainNamedSequence, plainPosition),
}, {
	name: "max + 1 under a lock",
	ddl:  plainTable(`bigint PRIMARY KEY`),
	insert: `
SELECT pg_advisory_xact_lock(1);
INSERT INTO events (id, order_id, version, type, data)
SELECT coalesce(max(id), 0) + 1, '{stream}', {version}, 'opened', '{data}' FROM events`,
	serial: true, events: plainEvents, reader: reads(plainNoSequence, plainPosition),
}, {
	name: "a row that is counted up",
	ddl: plainTable(`bigint PRIMARY KEY`) + `
CREATE TABLE counter AS SELECT 0::bigint AS n`,
	insert: `
WITH next AS (UPDATE counter SET n = n + 1 RETURNING n)
INSERT INTO events (id, order_id, version, type, data) SELECT n, '{stream}', {version}, 'opened', '{data}' FROM next`,
	serial: true, events: plainEvents, reader: reads(plainNoSequence, plainPosition),
}}

var refusedNamedLayouts = []layout{{
	name: "Axon Framework 4, JPA with Hibernate 6",
	ddl: `
CREATE SEQUENCE domain_event_entry_seq INCREMENT BY 50;
CREATE TABLE domain_event_entry (
    global_index         bigint PRIMARY KEY,
    aggregate_identifier varchar(255) NOT NULL,
    sequence_number      bigint NOT NULL,
    payload_type         varchar(255) NOT NULL,
    payload              bytea NOT NULL)`,
	refused: "INCREMENT 50",
	reader:  reads(axon4JPA, func(e axon4Event) int64 { return e.Position }),
}, {
	name:    "Axon Framework 5, without naming the sequence",
	ddl:     namedLayouts[1].ddl + ";" + namedLayouts[1].add,
	refused: "TableConfig.Sequence",
	reader:  reads(axon5Unnamed, func(e axon5Event) int64 { return e.Position }),
}, {
	name:    "Commanded, without Writers",
	ddl:     commandedTables + ";" + namedLayouts[3].add,
	insert:  namedLayouts[3].insert,
	serial:  true,
	refused: "Writers",
	reader:  reads(commandedView, func(e commandedEvent) int64 { return e.Position }),
}, {
	name:    "positions that are not unique",
	ddl:     `CREATE TABLE events (id bigint, order_id uuid, version integer, type text, data jsonb)`,
	refused: "unique index",
	reader:  reads(plainNoSequence, plainPosition),
}}

func martenTenant(db *sql.DB) (*orchestrator.Table[martenEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[martenEvent]{
		Table:             "mt_events_red",
		PositionColumn:    "seq_id",
		Sequence:          "mt_events_sequence_red",
		AggregateIDColumn: "stream_id",
		EventTypeColumn:   "type",
		Columns:           []string{"seq_id", "stream_id", "version", "type", "data"},
		Fields: func(e *martenEvent, dest []any) []any {
			return append(dest, &e.Position, &e.Stream, &e.Version, &e.Type, &e.Data)
		},
	})
}

type axon5Event struct {
	Position  int64
	Aggregate string
	Type      string
	Payload   []byte
}

func axon5(db *sql.DB) (*orchestrator.Table[axon5Event], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[axon5Event]{
		Table:             "aggregate_event_entry",
		PositionColumn:    "global_index",
		Sequence:          `"aggregate-event-global-index-sequence"`,
		AggregateIDColumn: "aggregate",
		EventTypeColumn:   "type",
		Columns:           []string{"global_index", "aggregate", "type", "payload"},
		Fields: func(e *axon5Event, dest []any) []any {
			return append(dest, &e.Position, &e.Aggregate, &e.Type, &e.Payload)
		},
	})
}

type railsStreamEvent struct {
	ID      int64
	Stream  string
	Version int
	Type    string
	Data    []byte
}

func railsStreams(db *sql.DB) (*orchestrator.Table[railsStreamEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[railsStreamEvent]{
		Table:             "orders",
		Writers:           []string{"event_store_events"},
		Sequence:          "event_store_events_id_seq",
		PositionColumn:    "id",
		AggregateIDColumn: "stream",
		EventTypeColumn:   "event_type",
		Columns:           []string{"id", "stream", "version", "event_type", "data"},
		Fields: func(e *railsStreamEvent, dest []any) []any {
			return append(dest, &e.ID, &e.Stream, &e.Version, &e.Type, &e.Data)
		},
	})
}

type commandedEvent struct {
	Position int64
	Stream   string
	Version  int64
	Type     string
	Data     []byte
}

func commanded(db *sql.DB) (*orchestrator.Table[commandedEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[commandedEvent]{
		Table:             "all_events",
		Writers:           []string{"stream_events"},
		NoSequence:        true,
		AggregateIDColumn: "stream_uuid",
		EventTypeColumn:   "event_type",
		Columns:           []string{"global_position", "stream_uuid", "original_stream_version", "event_type", "data"},
		Fields: func(e *commandedEvent, dest []any) []any {
			return append(dest, &e.Position, &e.Stream, &e.Version, &e.Type, &e.Data)
		},
	})
}

func plainNamedSequence(db *sql.DB) (*orchestrator.Table[plainEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[plainEvent]{
		Table:             "events",
		PositionColumn:    "id",
		Sequence:          "positions",
		AggregateIDColumn: "order_id",
		EventTypeColumn:   "type",
		Columns:           []string{"id", "order_id", "version", "type", "data"},
		Fields: func(e *plainEvent, dest []any) []any {
			return append(dest, &e.ID, &e.Order, &e.Version, &e.Type, &e.Data)
		},
	})
}

func plainNoSequence(db *sql.DB) (*orchestrator.Table[plainEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[plainEvent]{
		Table:             "events",
		PositionColumn:    "id",
		NoSequence:        true,
		AggregateIDColumn: "order_id",
		EventTypeColumn:   "type",
		Columns:           []string{"id", "order_id", "version", "type", "data"},
		Fields: func(e *plainEvent, dest []any) []any {
			return append(dest, &e.ID, &e.Order, &e.Version, &e.Type, &e.Data)
		},
	})
}

func axon4JPA(db *sql.DB) (*orchestrator.Table[axon4Event], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[axon4Event]{
		Table:             "domain_event_entry",
		PositionColumn:    "global_index",
		Sequence:          "domain_event_entry_seq",
		AggregateIDColumn: "aggregate_identifier",
		Columns:           []string{"global_index", "aggregate_identifier", "sequence_number", "payload_type", "payload"},
		Fields: func(e *axon4Event, dest []any) []any {
			return append(dest, &e.Position, &e.Aggregate, &e.Version, &e.Type, &e.Payload)
		},
	})
}

func axon5Unnamed(db *sql.DB) (*orchestrator.Table[axon5Event], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[axon5Event]{
		Table:             "aggregate_event_entry",
		PositionColumn:    "global_index",
		AggregateIDColumn: "aggregate",
		Columns:           []string{"global_index", "aggregate", "type", "payload"},
		Fields: func(e *axon5Event, dest []any) []any {
			return append(dest, &e.Position, &e.Aggregate, &e.Type, &e.Payload)
		},
	})
}

func commandedView(db *sql.DB) (*orchestrator.Table[commandedEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[commandedEvent]{
		Table:             "all_events",
		AggregateIDColumn: "stream_uuid",
		Columns:           []string{"global_position", "stream_uuid", "original_stream_version", "event_type", "data"},
		Fields: func(e *commandedEvent, dest []any) []any {
			return append(dest, &e.Position, &e.Stream, &e.Version, &e.Type, &e.Data)
		},
	})
}
