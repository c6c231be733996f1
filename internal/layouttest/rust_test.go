package layouttest

import (
	"database/sql"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

var rustLayouts = []layout{{
	name: "Disintegrate",
	// A column for each domain id, and no aggregate. Writers are SERIALIZABLE.
	ddl: `
CREATE SEQUENCE seq_event_event_id;
CREATE TABLE event (
    event_id    bigint PRIMARY KEY DEFAULT nextval('seq_event_event_id'),
    event_type  varchar(255),
    payload     bytea,
    inserted_at timestamp DEFAULT now(),
    order_id    text,
    customer_id text);
ALTER SEQUENCE seq_event_event_id OWNED BY event.event_id`,
	add: `
ALTER TABLE event ADD COLUMN aggregate text NOT NULL
    GENERATED ALWAYS AS (coalesce(order_id, event_id::text)) STORED`,
	begin:     `BEGIN ISOLATION LEVEL SERIALIZABLE`,
	insert:    `INSERT INTO event (event_type, payload, order_id, customer_id) VALUES ('OrderOpened', '{data}', '{stream}', 'c') RETURNING (event_id)`,
	meanwhile: `INSERT INTO event (event_type, payload, customer_id) VALUES ('CustomerMoved', '{}', 'c') RETURNING (event_id)`,
	table:     `event`,
	events:    `SELECT event_id AS position, coalesce(order_id, event_id::text) AS aggregate FROM event`,
	reader:    reads(disintegrate, func(e disintegrateEvent) int64 { return e.ID }),
}}

type disintegrateEvent struct {
	ID      int64
	Order   sql.NullString
	Type    string
	Payload []byte
}

func disintegrate(db *sql.DB) (*orchestrator.Table[disintegrateEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[disintegrateEvent]{
		Table:             "event",
		PositionColumn:    "event_id",
		AggregateIDColumn: "aggregate",
		EventTypeColumn:   "event_type",
		Columns:           []string{"event_id", "order_id", "event_type", "payload"},
		Fields: func(e *disintegrateEvent, dest []any) []any {
			return append(dest, &e.ID, &e.Order, &e.Type, &e.Payload)
		},
	})
}
