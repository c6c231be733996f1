package layouttest

import (
	"database/sql"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

var jsLayouts = []layout{{
	name: "Emmett",
	// Two levels of partitions. When a stream is archived, its events move to another partition
	// and keep their positions. There is no index on the position.
	ddl: `
CREATE SEQUENCE emt_global_message_position;
CREATE TABLE emt_messages (
    stream_position  bigint NOT NULL,
    global_position  bigint DEFAULT nextval('emt_global_message_position'),
    transaction_id   xid8 NOT NULL,
    created          timestamptz NOT NULL DEFAULT now(),
    is_archived      boolean NOT NULL DEFAULT false,
    stream_id        text NOT NULL,
    partition        text NOT NULL DEFAULT 'emt:default',
    message_id       text NOT NULL,
    message_type     text NOT NULL,
    message_data     jsonb NOT NULL,
    message_metadata jsonb NOT NULL,
    PRIMARY KEY (stream_id, stream_position, partition, is_archived)) PARTITION BY LIST (partition);
CREATE TABLE emt_messages_default PARTITION OF emt_messages FOR VALUES IN ('emt:default') PARTITION BY LIST (is_archived);
CREATE TABLE emt_messages_default_active PARTITION OF emt_messages_default FOR VALUES IN (false);
CREATE TABLE emt_messages_default_archived PARTITION OF emt_messages_default FOR VALUES IN (true);
ALTER SEQUENCE emt_global_message_position OWNED BY emt_messages.global_position`,
	add: `CREATE INDEX ON emt_messages (global_position)`,
	insert: `INSERT INTO emt_messages (stream_position, transaction_id, stream_id, message_id, message_type, message_data, message_metadata)
	         VALUES ({version}, pg_current_xact_id(), '{stream}', '{id}', 'Opened', '{data}', '{}')`,
	meanwhile: `UPDATE emt_messages SET is_archived = true WHERE stream_id LIKE '%1-0000-%'`,
	table:     `emt_messages`,
	events:    `SELECT global_position AS position, stream_id AS aggregate FROM emt_messages`,
	reader:    reads(emmett, func(e emmettMessage) int64 { return e.Position }),
}, {
	name: "Castore",
	ddl: `
CREATE TABLE event (
    id             bigserial PRIMARY KEY,
    aggregate_name varchar(32) NOT NULL,
    aggregate_id   uuid NOT NULL,
    version        bigint NOT NULL,
    type           varchar(64) NOT NULL,
    data           jsonb,
    metadata       jsonb,
    timestamp      timestamptz NOT NULL DEFAULT current_timestamp(3),
    UNIQUE (aggregate_name, aggregate_id, version))`,
	insert: `INSERT INTO event (aggregate_name, aggregate_id, version, type, data) VALUES ('ORDER', '{stream}', {version}, 'OPENED', '{data}') RETURNING *`,
	// An event is written again by force: a number is taken and not used.
	meanwhile: `INSERT INTO event (aggregate_name, aggregate_id, version, type) SELECT aggregate_name, aggregate_id, version, 'CHANGED' FROM event WHERE version = 1
	                ON CONFLICT (aggregate_name, aggregate_id, version) DO UPDATE SET type = excluded.type`,
	table:  `event`,
	events: `SELECT id AS position, aggregate_id::text AS aggregate FROM event`,
	reader: reads(castore, func(e castoreEvent) int64 { return e.ID }),
}}

type emmettMessage struct {
	Position int64
	Stream   string
	Version  int64
	Type     string
	Data     []byte
}

func emmett(db *sql.DB) (*orchestrator.Table[emmettMessage], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[emmettMessage]{
		Table:             "emt_messages",
		AggregateIDColumn: "stream_id",
		EventTypeColumn:   "message_type",
		Columns:           []string{"global_position", "stream_id", "stream_position", "message_type", "message_data"},
		Fields: func(m *emmettMessage, dest []any) []any {
			return append(dest, &m.Position, &m.Stream, &m.Version, &m.Type, &m.Data)
		},
	})
}

type castoreEvent struct {
	ID        int64
	Aggregate string
	Version   int64
	Type      string
	Data      []byte // NULL is nil
}

func castore(db *sql.DB) (*orchestrator.Table[castoreEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[castoreEvent]{
		Table:               "event",
		PositionColumn:      "id",
		AggregateTypeColumn: "aggregate_name",
		EventTypeColumn:     "type",
		Columns:             []string{"id", "aggregate_id", "version", "type", "data"},
		Fields: func(e *castoreEvent, dest []any) []any {
			return append(dest, &e.ID, &e.Aggregate, &e.Version, &e.Type, &e.Data)
		},
	})
}
