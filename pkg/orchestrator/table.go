package orchestrator

import (
	"database/sql"
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"
	"weak"

	"github.com/getpup/pupsourcing/es"

	root "github.com/getpup/pupsourcing-orchestrator"
)

type (
	eventsTable = root.Table[es.PersistedEvent]
	tableKey    struct {
		db            *sql.DB
		schema, table string
	}
)

// tables are the tables in use. Workers that read the same table of the same database share
// one, and so read the stream once. The pointers are weak: an entry is removed when no
// Orchestrator uses its table any more.
var tables = struct {
	sync.Mutex
	of map[tableKey]weak.Pointer[eventsTable]
}{of: map[tableKey]weak.Pointer[eventsTable]{}}

// tableOf returns the reader of an events table.
func tableOf(db *sql.DB, name string) (*eventsTable, error) {
	if name == "" {
		name = "events"
	}
	schema, table, ok := tableName(name)
	if !ok {
		return nil, configError("EventsTable", fmt.Sprintf("is %q; it must be the name of a table in SQL, such as events, my_schema.events or \"Events\"", name))
	}
	key := tableKey{db, schema, table}
	tables.Lock()
	defer tables.Unlock()
	if t := tables.of[key].Value(); t != nil {
		return t, nil
	}
	t, err := newTable(key)
	if err != nil {
		return nil, err
	}
	own := weak.Make(t)
	tables.of[key] = own
	runtime.AddCleanup(t, func(key tableKey) {
		tables.Lock()
		defer tables.Unlock()
		if tables.of[key] == own { // unless it was replaced meanwhile
			delete(tables.of, key)
		}
	}, key)
	return t, nil
}

func newTable(k tableKey) (*eventsTable, error) {
	return root.NewTable(k.db, root.TableConfig[es.PersistedEvent]{
		Schema: k.schema, Table: k.table, AggregateTypeColumn: "aggregate_type", BoundedContextColumn: "bounded_context", EventTypeColumn: "event_type",
		TimeColumn: "created_at",
		Columns: []string{
			"global_position", "bounded_context", "aggregate_type", "aggregate_id", "aggregate_version",
			"event_id", "event_type", "event_version", "payload", "trace_id", "correlation_id",
			"causation_id", "metadata", "created_at",
		},
		Fields: func(e *es.PersistedEvent, dest []any) []any {
			return append(dest, &e.GlobalPosition, &e.BoundedContext, &e.AggregateType, &e.AggregateID, &e.AggregateVersion,
				&e.EventID, &e.EventType, &e.EventVersion, &e.Payload, &e.TraceID, &e.CorrelationID,
				&e.CausationID, &e.Metadata, &e.CreatedAt)
		},
		Size: func(e es.PersistedEvent) int { return eventSize + len(e.Payload) + len(e.Metadata) },
		Time: func(e es.PersistedEvent) time.Time { return e.CreatedAt },
	})
}

// eventSize is about the size of an event in memory without payload and metadata.
const eventSize = 600

// sqlName matches the name of a table in SQL, with or without a schema.
var sqlName = regexp.MustCompile(`^(?:(` + identifier + `)\.)?(` + identifier + `)$`)

const identifier = `"(?:[^"]|"")+"|[\pL_][\pL_0-9$]*`

// tableName splits a name that pupsourcing puts into its statements unquoted. The root package
// quotes names.
func tableName(name string) (schema, table string, ok bool) {
	parts := sqlName.FindStringSubmatch(name)
	if parts == nil {
		return "", "", false
	}
	return unquote(parts[1]), unquote(parts[2]), true
}

// unquote returns the name that an identifier stands for. Without quotes, ASCII letters become
// lower case.
func unquote(identifier string) string {
	if strings.HasPrefix(identifier, `"`) {
		return strings.ReplaceAll(identifier[1:len(identifier)-1], `""`, `"`)
	}
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r - 'A' + 'a'
		}
		return r
	}, identifier)
}
