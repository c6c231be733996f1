package layouttest

import (
	"database/sql"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

var jvmLayouts = []layout{{
	name: "Axon Framework 4, JDBC",
	ddl: `
CREATE TABLE DomainEventEntry (
    globalIndex         bigserial PRIMARY KEY,
    aggregateIdentifier varchar(255) NOT NULL,
    sequenceNumber      bigint NOT NULL,
    type                varchar(255),
    eventIdentifier     varchar(255) NOT NULL UNIQUE,
    payload             bytea NOT NULL,
    payloadType         varchar(255) NOT NULL,
    timeStamp           varchar(255) NOT NULL,
    UNIQUE (aggregateIdentifier, sequenceNumber))`,
	insert: `INSERT INTO DomainEventEntry (aggregateIdentifier, sequenceNumber, type, eventIdentifier, payload, payloadType, timeStamp)
	         VALUES ('{stream}', {version}, 'Order', '{id}', '{data}', 'Opened', '2026-01-02T03:04:05Z')`,
	table:  `DomainEventEntry`,
	events: `SELECT globalIndex AS position, aggregateIdentifier AS aggregate FROM DomainEventEntry`,
	reader: reads(axon4, func(e axon4Event) int64 { return e.Position }),
}, {
	name: "Akka Persistence JDBC",
	// A deleted event stays, with a mark.
	ddl: `
CREATE TABLE event_journal (
    ordering           bigserial,
    persistence_id     varchar(255) NOT NULL,
    sequence_number    bigint NOT NULL,
    deleted            boolean NOT NULL DEFAULT false,
    event_ser_id       integer NOT NULL,
    event_ser_manifest varchar(255) NOT NULL,
    event_payload      bytea NOT NULL,
    PRIMARY KEY (persistence_id, sequence_number));
CREATE UNIQUE INDEX ON event_journal (ordering)`,
	insert: `INSERT INTO event_journal (persistence_id, sequence_number, deleted, event_ser_id, event_ser_manifest, event_payload) VALUES ('Order|{stream}', {version}, {version} % 5 = 0, 33, 'Opened', '{data}')`,
	table:  `event_journal`,
	events: `SELECT ordering AS position, persistence_id AS aggregate FROM event_journal`,
	reader: reads(akka, func(e akkaEvent) int64 { return e.Position }),
}, {
	name: "eugene-khyst/postgresql-event-sourcing",
	ddl: `
CREATE TABLE es_aggregate (id uuid PRIMARY KEY, version integer NOT NULL, aggregate_type text NOT NULL);
CREATE TABLE es_event (
    id             bigserial PRIMARY KEY,
    transaction_id xid8 NOT NULL,
    aggregate_id   uuid NOT NULL REFERENCES es_aggregate,
    version        integer NOT NULL,
    event_type     text NOT NULL,
    json_data      json NOT NULL,
    UNIQUE (aggregate_id, version))`,
	insert: `
INSERT INTO es_aggregate VALUES ('{stream}', {version}, 'ORDER') ON CONFLICT (id) DO UPDATE SET version = excluded.version;
INSERT INTO es_event (transaction_id, aggregate_id, version, event_type, json_data)
VALUES (pg_current_xact_id(), '{stream}', {version}, 'OPENED', '{data}')`,
	table:  `es_event`,
	events: `SELECT id AS position, aggregate_id::text AS aggregate FROM es_event`,
	reader: reads(eugeneKhyst, func(e eugeneKhystEvent) int64 { return e.ID }),
}}

type axon4Event struct {
	Position  int64
	Aggregate string
	Version   int64
	Type      string
	Payload   []byte
}

func axon4(db *sql.DB) (*orchestrator.Table[axon4Event], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[axon4Event]{
		Table:               "domainevententry",
		PositionColumn:      "globalindex",
		AggregateIDColumn:   "aggregateidentifier",
		AggregateTypeColumn: "type",
		EventTypeColumn:     "payloadtype",
		Columns:             []string{"globalindex", "aggregateidentifier", "sequencenumber", "payloadtype", "payload"},
		Fields: func(e *axon4Event, dest []any) []any {
			return append(dest, &e.Position, &e.Aggregate, &e.Version, &e.Type, &e.Payload)
		},
	})
}

type akkaEvent struct {
	Position      int64
	PersistenceID string
	Sequence      int64
	Deleted       bool
	Manifest      string
	Payload       []byte
}

func akka(db *sql.DB) (*orchestrator.Table[akkaEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[akkaEvent]{
		Table:             "event_journal",
		PositionColumn:    "ordering",
		AggregateIDColumn: "persistence_id",
		Columns:           []string{"ordering", "persistence_id", "sequence_number", "deleted", "event_ser_manifest", "event_payload"},
		Fields: func(e *akkaEvent, dest []any) []any {
			return append(dest, &e.Position, &e.PersistenceID, &e.Sequence, &e.Deleted, &e.Manifest, &e.Payload)
		},
	})
}

type eugeneKhystEvent struct {
	ID        int64
	Aggregate string
	Version   int
	Type      string
	Data      []byte
}

func eugeneKhyst(db *sql.DB) (*orchestrator.Table[eugeneKhystEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[eugeneKhystEvent]{
		Table:           "es_event",
		PositionColumn:  "id",
		EventTypeColumn: "event_type",
		Columns:         []string{"id", "aggregate_id", "version", "event_type", "json_data"},
		Fields: func(e *eugeneKhystEvent, dest []any) []any {
			return append(dest, &e.ID, &e.Aggregate, &e.Version, &e.Type, &e.Data)
		},
	})
}
