package layouttest

import (
	"database/sql"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

var elixirLayouts = []layout{{
	name: "message-db (Eventide)",
	// A schema of its own, and a function that locks the category of the stream.
	ddl: `
CREATE SCHEMA message_store;
CREATE TABLE message_store.messages (
    global_position bigserial PRIMARY KEY,
    position        bigint NOT NULL,
    time            timestamp NOT NULL DEFAULT now(),
    stream_name     text NOT NULL,
    type            text NOT NULL,
    data            jsonb,
    metadata        jsonb,
    id              uuid NOT NULL UNIQUE);
CREATE UNIQUE INDEX ON message_store.messages (stream_name, position);
CREATE FUNCTION message_store.write(event uuid, stream text, kind text, body jsonb) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE version bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext(split_part(stream, '-', 1)));
    SELECT coalesce(max(position) + 1, 0) INTO version FROM message_store.messages WHERE stream_name = stream;
    INSERT INTO message_store.messages (id, stream_name, position, type, data) VALUES (event, stream, version, kind, body);
    RETURN version;
END $$`,
	insert: `SELECT message_store.write('{id}', 'account{i}-{stream}', 'Opened', '{data}')`,
	table:  `message_store.messages`,
	events: `SELECT global_position AS position, stream_name AS aggregate FROM message_store.messages`,
	reader: reads(messageDB, func(m messageDBMessage) int64 { return m.Position }),
}}

type messageDBMessage struct {
	Position int64
	Stream   string
	Version  int64
	Type     string
	Data     []byte // NULL is nil
}

func messageDB(db *sql.DB) (*orchestrator.Table[messageDBMessage], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[messageDBMessage]{
		Schema:            "message_store",
		Table:             "messages",
		AggregateIDColumn: "stream_name",
		EventTypeColumn:   "type",
		Columns:           []string{"global_position", "stream_name", "position", "type", "data"},
		Fields: func(m *messageDBMessage, dest []any) []any {
			return append(dest, &m.Position, &m.Stream, &m.Version, &m.Type, &m.Data)
		},
	})
}
