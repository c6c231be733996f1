package layouttest

import (
	"database/sql"
	"fmt"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// plainTable is the DDL of a table of no known store, with a common way to number events.
func plainTable(position string) string {
	return fmt.Sprintf(`
CREATE TABLE events (
    id       %s,
    order_id uuid NOT NULL,
    version  integer NOT NULL,
    type     text NOT NULL,
    data     jsonb NOT NULL,
    UNIQUE (order_id, version));`, position)
}

const (
	plainInsert    = `INSERT INTO events (order_id, version, type, data) VALUES ('{stream}', {version}, 'opened', '{data}')`
	numberedInsert = `INSERT INTO events (id, order_id, version, type, data) VALUES ({position}, '{stream}', {version}, 'opened', '{data}')`
	plainEvents    = `SELECT id AS position, order_id::text AS aggregate FROM events`
)

var plainLayouts = []layout{{
	name:   "bigserial",
	ddl:    plainTable(`bigserial PRIMARY KEY`),
	insert: plainInsert, table: `events`, events: plainEvents, reader: reads(plain, plainPosition),
}, {
	name:   "identity",
	ddl:    plainTable(`bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY`),
	insert: plainInsert, table: `events`, events: plainEvents, reader: reads(plain, plainPosition),
}, {
	name:   "nextval in an earlier statement",
	ddl:    plainTable(`bigserial PRIMARY KEY`),
	take:   `SELECT nextval('events_id_seq')`,
	insert: numberedInsert, table: `events`, events: plainEvents, reader: reads(plain, plainPosition),
}}

type plainEvent struct {
	ID      int64
	Order   string
	Version int
	Type    string
	Data    []byte
}

func plainPosition(e plainEvent) int64 { return e.ID }

func plain(db *sql.DB) (*orchestrator.Table[plainEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[plainEvent]{
		Table:             "events",
		PositionColumn:    "id",
		AggregateIDColumn: "order_id",
		EventTypeColumn:   "type",
		Columns:           []string{"id", "order_id", "version", "type", "data"},
		Fields: func(e *plainEvent, dest []any) []any {
			return append(dest, &e.ID, &e.Order, &e.Version, &e.Type, &e.Data)
		},
	})
}
