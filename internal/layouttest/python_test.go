package layouttest

import (
	"database/sql"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

var pythonLayouts = []layout{{
	name: "Python eventsourcing",
	// Each append locks the table.
	ddl: `
CREATE TABLE stored_events (
    originator_id      uuid NOT NULL,
    originator_version bigint NOT NULL,
    topic              text,
    state              bytea,
    notification_id    bigserial,
    PRIMARY KEY (originator_id, originator_version));
CREATE UNIQUE INDEX ON stored_events (notification_id)`,
	insert: `
LOCK TABLE stored_events IN EXCLUSIVE MODE;
INSERT INTO stored_events (originator_id, originator_version, topic, state) VALUES ('{stream}', {version}, 'orders:Order.Opened', '{data}')`,
	serial: true,
	events: `SELECT notification_id AS position, originator_id::text AS aggregate FROM stored_events`,
	reader: reads(pythonEventsourcing, func(e pythonEvent) int64 { return e.Position }),
}}

type pythonEvent struct {
	Position   int64
	Originator string
	Version    int64
	Topic      string
	State      []byte
}

func pythonEventsourcing(db *sql.DB) (*orchestrator.Table[pythonEvent], error) {
	return orchestrator.NewTable(db, orchestrator.TableConfig[pythonEvent]{
		Table:             "stored_events",
		PositionColumn:    "notification_id",
		AggregateIDColumn: "originator_id",
		EventTypeColumn:   "topic",
		Columns:           []string{"notification_id", "originator_id", "originator_version", "topic", "state"},
		Fields: func(e *pythonEvent, dest []any) []any {
			return append(dest, &e.Position, &e.Originator, &e.Version, &e.Topic, &e.State)
		},
	})
}
