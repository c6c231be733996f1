package orchestrator

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A Table reads an events table in PostgreSQL without losing an event, in whatever order
// transactions take their positions and commit: it moves past a missing position only when
// no transaction can fill it any more. protocol.Reading decides in which order to ask; the
// statements are in internal/eventtable. It refuses, by name, a table for which it can't
// guarantee that (docs/event-stores.md).

// Event is a row of an events table in the standard layout, which is pupsourcing's. Each call
// of a handler gets its own copy, Payload and Metadata included.
type Event struct {
	GlobalPosition   int64
	BoundedContext   string
	AggregateType    string
	AggregateID      string
	AggregateVersion int64
	EventID          string // a UUID in its usual form
	EventType        string
	EventVersion     int
	Payload          []byte
	TraceID          sql.NullString
	CorrelationID    sql.NullString
	CausationID      sql.NullString
	Metadata         []byte // JSON; nil for NULL
	CreatedAt        time.Time
}

// TableConfig is where the events are and how to read a row. Names are used exactly as they
// are written: upper and lower case count.
type TableConfig[E any] struct {
	// Table is the events table, in Schema. Default: events, and the schema that the
	// search path leads to. That is looked up once: a search path that a session sets
	// later, and temporary tables, change nothing.
	Schema, Table string
	// PositionColumn is the column of the position: a positive integer (smallint,
	// integer, bigint), unique, and taken from a sequence by the inserting transaction.
	// Without an index that begins with it, reading is slow. Default: global_position.
	//
	// Events are lost, and no check can detect it, if positions are taken in another
	// transaction than the inserting one, or by a program itself, from a block of
	// numbers or below the highest position.
	PositionColumn string
	// Sequence is the sequence of PositionColumn, as SQL has its name, with its schema if
	// need be. Set it if nothing in the database links the two, as with Hibernate, or if
	// a trigger or a function takes the numbers. Default: the column's own (serial,
	// identity), or the one that its default names.
	Sequence string
	// NoSequence is true if no sequence fills the positions: each is taken inside the INSERT
	// statement, or under a lock that the transaction holds until its end (max() + 1, a
	// counter row). A table without a sequence is refused unless this is set. A trigger that
	// takes numbers from a sequence needs Sequence instead. Default: false.
	NoSequence bool
	// Writers are the tables of a view: if Table is a view, name each table whose rows it
	// shows as events, as SQL has the name, and set Sequence to the sequence of their
	// positions. Readers wait for transactions that write to these tables, and Check checks
	// them in place of the view. Default: none.
	Writers []string
	// AggregateIDColumn is the column whose text decides the partition. It must not be
	// NULL, and its text must not depend on the session's settings, as that of a
	// timestamp or a float does. Default: aggregate_id.
	AggregateIDColumn string
	// AggregateTypeColumn, BoundedContextColumn and EventTypeColumn are the columns, as
	// text, that the scope of a projection selects by; NULL is "". Their types are
	// restricted like that of AggregateIDColumn. Default: none, and Run refuses a
	// projection whose scope needs one.
	AggregateTypeColumn, BoundedContextColumn, EventTypeColumn string
	// TimeColumn is the column with the time of an event, of type timestamp with time
	// zone, for StartAtTime. Without an index on it, StartAtTime scans all events.
	// Default: none, and Run refuses a projection with StartAtTime.
	TimeColumn string
	// Columns are the columns that an event is made of. Required.
	Columns []string
	// Fields appends to dest a destination for each of Columns, in their order, and
	// returns dest: pointers as for sql.Rows.Scan, or a sql.Scanner for a value that must
	// be converted. It is called once for each row, with a zero event, and should not
	// allocate. If it, a Scanner, Size or Time fails for a row, only that event has failed
	// (Record.Err). Required.
	Fields func(e *E, dest []any) []any
	// Size returns about how many bytes an event takes in memory, for
	// Config.ReadAheadBytes. Default: the size of its columns.
	Size func(E) int
	// Time returns the time of an event, from which the lag in seconds is computed.
	// Default: not known, and the lag counts from when the event was first seen.
	Time func(E) time.Time
}

// Table is an EventStore over an events table in PostgreSQL. Its role needs SELECT on the
// table and nothing else.
//
// A Table never moves past a position that a transaction may still commit. Sequences give out
// positions in order, and transactions commit in any order. But a transaction that has taken a
// position holds a lock on the sequence, and one that inserts a lock on the table, until it
// ends. So when a position is missing, Table lists the transactions that hold such a lock or
// wait for one (pg_locks), returns the events before the gap, and continues when all of these
// transactions have ended. This is exact, needs no timeout, and has no cost without gaps. A
// transaction that stays open after it has taken a position, or has written to the table in
// any way, holds back all readers until it ends, also after a ROLLBACK TO: Waiting returns it.
//
// What this assumes of the table, its sequence and the server is checked: in Check, in Read
// about twice a minute, and each time before a gap is passed. If it does not hold, Check
// and Read return an error that says why, and what to do. docs/event-stores.md lists the
// assumptions, and the ones that can't be checked: see TableConfig.PositionColumn.
//
// A table that was emptied, restored or replaced is read as it is now. Table reads from the
// primary only.
//
// A type that embeds a *Table is its own EventStore: its Read is called for every request, and
// each process reads whole backlogs, not only the slots of its own partitions.
type Table[E any] struct {
	db  *sql.DB
	cfg TableConfig[E]
	sql eventtable.Table
	// found is sql with its schema; nil: it was not looked up yet. finding holds one token,
	// for the goroutine that looks it up.
	found   atomic.Pointer[eventtable.Table]
	finding chan struct{}
	// fields are the destinations of a row, as Fields returned them in NewTable.
	fields []any
	// libpq: the driver is lib/pq, which takes one round trip for a statement without
	// arguments, and two for one with.
	libpq bool

	// turn holds one token, for the reading that may use the horizon. mu is held for
	// moments only.
	turn    chan struct{}
	mu      sync.Mutex
	horizon protocol.Horizon
	reader  *eventtable.Reader // nil: the columns' types are not known yet
	end     int64              // see page

	ends ends
}

// NewTable returns a Table that reads from db. It does not use the database before Check or
// Read. The error is ErrInvalidConfig and names the field.
func NewTable[E any](db *sql.DB, cfg TableConfig[E]) (*Table[E], error) {
	if db == nil {
		return nil, fmt.Errorf("%w: NewTable: db is nil", ErrInvalidConfig)
	}
	if cfg.Fields == nil {
		return nil, tableError("Fields", "is nil")
	}
	if len(cfg.Columns) == 0 {
		return nil, tableError("Columns", "is empty")
	}
	fields, problem := sample(cfg)
	if problem != "" {
		return nil, tableError("Fields", problem)
	}
	for _, d := range []struct {
		value    *string
		fallback string
	}{{&cfg.Table, "events"}, {&cfg.PositionColumn, eventtable.DefaultPosition}, {&cfg.AggregateIDColumn, eventtable.DefaultAggregate}} {
		if *d.value == "" {
			*d.value = d.fallback
		}
	}
	type named struct{ field, name string }
	names := []named{{"Table", cfg.Table}, {"PositionColumn", cfg.PositionColumn}, {"AggregateIDColumn", cfg.AggregateIDColumn}}
	for _, n := range []named{
		{"Schema", cfg.Schema}, {"AggregateTypeColumn", cfg.AggregateTypeColumn}, {"BoundedContextColumn", cfg.BoundedContextColumn}, {"EventTypeColumn", cfg.EventTypeColumn}, {"TimeColumn", cfg.TimeColumn},
	} {
		if n.name != "" {
			names = append(names, n)
		}
	}
	for i, c := range cfg.Columns {
		names = append(names, named{fmt.Sprintf("Columns[%d]", i), c})
	}
	if cfg.Sequence != "" {
		names = append(names, named{"Sequence", cfg.Sequence})
	}
	for i, w := range cfg.Writers {
		names = append(names, named{fmt.Sprintf("Writers[%d]", i), w})
	}
	for _, n := range names {
		if problem := store.NameProblem(n.name); problem != "" {
			return nil, tableError(n.field, problem)
		}
	}
	if cfg.NoSequence && cfg.Sequence != "" {
		return nil, tableError("NoSequence", "and Sequence are both set; set one of them")
	}

	return &Table[E]{
		db: db, cfg: cfg, fields: fields, libpq: sqltext.LibPQ(db), finding: make(chan struct{}, 1), turn: make(chan struct{}, 1), end: -1,
		ends: ends{turn: make(chan struct{}, 1)},
		sql: eventtable.New(eventtable.Config{
			Schema: cfg.Schema, Table: cfg.Table, Position: cfg.PositionColumn, Aggregate: cfg.AggregateIDColumn,
			AggregateType: cfg.AggregateTypeColumn, BoundedContext: cfg.BoundedContextColumn, EventType: cfg.EventTypeColumn, Time: cfg.TimeColumn, Columns: cfg.Columns,
			Sequence: cfg.Sequence, NoSequence: cfg.NoSequence, Writers: cfg.Writers,
		}),
	}, nil
}

// sample calls Fields once, and returns its destinations, or what is wrong with them.
func sample[E any](cfg TableConfig[E]) (fields []any, problem string) {
	if err := contained(func() { fields = cfg.Fields(new(E), make([]any, 1)) }); err != nil {
		return nil, fmt.Sprintf("fails: %v", err)
	}
	if n := len(fields) - 1; n != len(cfg.Columns) {
		return nil, fmt.Sprintf("appends %d destinations, for %d Columns", n, len(cfg.Columns))
	}
	fields = fields[1:]
	for i, f := range fields {
		if _, raw := f.(*sql.RawBytes); raw {
			return nil, fmt.Sprintf("returns a *sql.RawBytes for column %q, which the next row overwrites; use a *[]byte", cfg.Columns[i])
		}
	}
	return fields, ""
}

func tableError(field, problem string) error {
	return fmt.Errorf("%w: TableConfig.%s %s", ErrInvalidConfig, field, problem)
}

// NewEventTable returns a Table over an events table of the standard layout, which is
// pupsourcing's: docs/event-stores.md has its DDL. An empty name is "events".
func NewEventTable(db *sql.DB, table string) (*Table[Event], error) {
	return NewTable(db, TableConfig[Event]{
		Table: table, AggregateTypeColumn: "aggregate_type", BoundedContextColumn: "bounded_context", EventTypeColumn: "event_type",
		TimeColumn: "created_at",
		Columns: []string{
			"global_position", "bounded_context", "aggregate_type", "aggregate_id", "aggregate_version",
			"event_id", "event_type", "event_version", "payload", "trace_id", "correlation_id",
			"causation_id", "metadata", "created_at",
		},
		Fields: func(e *Event, dest []any) []any {
			return append(dest, &e.GlobalPosition, &e.BoundedContext, &e.AggregateType, &e.AggregateID, &e.AggregateVersion,
				&e.EventID, &e.EventType, &e.EventVersion, &e.Payload, &e.TraceID, &e.CorrelationID,
				&e.CausationID, &e.Metadata, &e.CreatedAt)
		},
		Size: func(e Event) int { return eventSize + len(e.Payload) + len(e.Metadata) },
		Time: func(e Event) time.Time { return e.CreatedAt },
	})
}

// eventSize is about what an Event takes beside its payload and metadata.
const eventSize = 600

// Read implements EventStore. Events out of r.Scope are filtered in PostgreSQL. r.Limit must
// be at least 1.
func (t *Table[E]) Read(ctx context.Context, r ReadRequest) (Page[E], error) {
	if r.Limit < 1 {
		return Page[E]{}, fmt.Errorf("%w: ReadRequest.Limit is %d, and must be at least 1", ErrInvalidConfig, r.Limit)
	}
	if err := t.scopeProblem("the request", r.Scope); err != nil {
		return Page[E]{}, err
	}
	p, err := t.read(ctx, r.Scope, r.After, r.Limit, r.MaxBytes, false)
	if err != nil {
		return Page[E]{}, err
	}
	return Page[E]{Records: p.events, Through: p.passed, More: p.more}, nil
}

// emptyIsValue marks that an empty text is a value in a column that scopes select by. Whether
// there is such a column is checked before.
func (t *Table[E]) emptyIsValue() {}

// scopeProblem returns an error if the table has no column for a scope.
func (t *Table[E]) scopeProblem(whose string, s Scope) error {
	for _, part := range []struct {
		field, column, list string
		names               []string
	}{
		{"AggregateTypeColumn", t.cfg.AggregateTypeColumn, "AggregateTypes", s.AggregateTypes},
		{"BoundedContextColumn", t.cfg.BoundedContextColumn, "BoundedContexts", s.BoundedContexts},
		{"EventTypeColumn", t.cfg.EventTypeColumn, "EventTypes", s.EventTypes},
	} {
		if len(part.names) > 0 && part.column == "" {
			return tableError(part.field, fmt.Sprintf("is empty, but the scope of %s has %s: name their column, or remove them from the scope", whose, part.list))
		}
	}
	return nil
}

// A page is what a read has found.
type page[E any] struct {
	events []Record[E]
	passed int64 // up to where everything was seen
	more   bool  // there may be more at once
	bytes  int
	head   int64 // the highest position that was seen, perhaps beyond a gap
	// end is the position up to which some were given out: a checkpoint above it is
	// beyond the end of the stream. -1: not known.
	end int64
}

// read reads the events of a scope above after, at most limit of them, and not many more once
// they exceed bytes, if that is not 0. If few are expected, it saves lib/pq a round trip;
// if many are, bytes.
func (t *Table[E]) read(ctx context.Context, s Scope, after int64, limit, bytes int, few bool) (p page[E], err error) {
	reading := protocol.NewReading(&t.horizon, after, limit)
	if !s.all() {
		reading = reading.Scoped()
	}
	done, head, err := t.carry(ctx, &reading, func(action protocol.ReadAction, answer *protocol.ReadAnswer) (err error) {
		reader, err := t.statements(ctx)
		if err != nil {
			return err
		}
		room := min(limit, pageEvents)
		if few {
			room = min(limit, fewEvents)
		}
		p, err = t.page(ctx, reader, eventtable.Range{
			After: after, Limit: limit, Types: s.AggregateTypes, Contexts: s.BoundedContexts, EventTypes: s.EventTypes, Through: action.Through, Literals: few && t.libpq,
			At: at(action),
		}, room, bytes)
		answer.Cut, answer.Positions = p.more, slices.Grow(answer.Positions, len(p.events))
		for i := range p.events {
			answer.Positions = append(answer.Positions, p.events[i].Position)
		}
		return err
	})
	if err != nil {
		return page[E]{}, err
	}
	p.events, p.passed, p.more, p.head, p.end = p.events[:done.Take], done.Passed, done.More, head, t.reach(head)
	return p, nil
}

// readOwn is read for the events in some slots. It reads the keys of all events, in the way
// in which read reads events, and then the rows of its own: once a position is final and its
// event was seen, every later statement sees the row.
func (t *Table[E]) readOwn(ctx context.Context, slots *protocol.SlotSet, after int64, limit, bytes int) (p page[E], err error) {
	span := slots.Span(limit)
	reading := protocol.NewReading(&t.horizon, after, span)
	var reader *eventtable.Reader
	var keys []protocol.Key
	done, head, err := t.carry(ctx, &reading, func(action protocol.ReadAction, answer *protocol.ReadAnswer) (err error) {
		if reader, err = t.statements(ctx); err != nil {
			return err
		}
		keys, answer.Cut, err = t.keys(ctx, reader, eventtable.Range{After: after, Limit: span, At: at(action)})
		for _, k := range keys {
			answer.Positions = append(answer.Positions, k.Position)
		}
		return err
	})
	if err != nil {
		return page[E]{}, err
	}
	own, through := slots.Own(keys[:done.Take], limit, done.Passed)
	if len(own) > 0 {
		if p, err = t.page(ctx, reader, eventtable.Range{Rows: own, At: at(done)}, len(own), bytes); err != nil {
			return page[E]{}, t.failed(ctx, &reading, err)
		}
		if err := t.same(ctx, reader, slots, p.events); err != nil {
			return page[E]{}, err
		}
	}
	cut := int64(0)
	if p.more {
		cut = p.events[len(p.events)-1].Position
	}
	p.passed, p.more = done.OwnPassed(through, cut)
	p.head, p.end = head, t.reach(head)
	return p, nil
}

// statements returns the statements that read events, once the types of the columns
// are known.
func (t *Table[E]) statements(ctx context.Context) (*eventtable.Reader, error) {
	t.mu.Lock()
	r := t.reader
	t.mu.Unlock()
	if r != nil {
		return r, nil
	}
	table, err := t.find(ctx)
	if err != nil {
		return nil, err
	}
	types, err := table.Types(ctx, t.db)
	if err != nil {
		return nil, err
	}
	r, err = table.Reader(types, func(column int, part eventtable.Part) bool {
		_, number := t.fields[column].(*int64)
		_, text := t.fields[column].(*string)
		return number && part == eventtable.Position || text && part != eventtable.Position
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidConfig, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reader = r
	return r, nil
}

// keys reads the keys of the events in a range. It stops, with cut set, at one that can't be
// read.
func (t *Table[E]) keys(ctx context.Context, r *eventtable.Reader, g eventtable.Range) (keys []protocol.Key, cut bool, err error) {
	keys, err = r.Keys(ctx, t.db, g)
	if err == nil || !ofTheData(err) {
		return keys, false, err
	}
	if n := len(keys); n > 0 {
		g = g.Above(keys[n-1].Position)
	}
	e, found := t.keysOf(ctx, r, g.First(1))
	if found != nil {
		return nil, false, err
	}
	return append(keys, protocol.Key{Position: e.Position, Slot: protocol.SlotOf(e.AggregateID)}), true, nil
}

// same checks that events are in the slots that they were read for, that is, that their rows
// have the aggregate ids that their keys had. Otherwise no lane might handle one of them.
func (t *Table[E]) same(ctx context.Context, r *eventtable.Reader, slots *protocol.SlotSet, events []Record[E]) error {
	for i := range events {
		e := &events[i]
		if slots.Has(protocol.SlotOf(e.AggregateID)) {
			continue
		}
		key, err := t.keysOf(ctx, r, eventtable.Range{Rows: []int64{e.Position}})
		if err != nil {
			return err
		}
		return fmt.Errorf("read events from %s: the aggregate id of the event at position %d was changed while it was read (read %q, now %q): stop the workers before you change aggregate ids",
			t.sql.Name, e.Position, e.AggregateID, key.AggregateID)
	}
	return nil
}

// carry carries out a reading: protocol.Reading decides what to do next, and look reads the
// page.
func (t *Table[E]) carry(ctx context.Context, reading *protocol.Reading, look func(protocol.ReadAction, *protocol.ReadAnswer) error) (done protocol.ReadAction, head int64, err error) {
	table, err := t.find(ctx)
	if err != nil {
		return done, 0, err
	}
	var answer protocol.ReadAnswer
	turn := false
	defer func() {
		if turn {
			<-t.turn
		}
	}()
	for {
		action := t.next(reading, answer)
		if action.Turn != turn {
			if err := t.take(ctx, action.Turn); err != nil {
				return action, head, err
			}
			turn = action.Turn
		}
		answer.Stale = false
		switch action.Do {
		case protocol.ReadAsk, protocol.ReadHolders:
			answer, err = bounded(ctx, lookMax, t.ask, nil)
			head = max(head, answer.High)
		case protocol.ReadHigh:
			answer.High, err = bounded(ctx, lookMax, func(ctx context.Context) (int64, error) { return table.High(ctx, t.db, at(action)) }, nil)
			head = max(head, answer.High)
		case protocol.ReadAhead:
			answer.Last, answer.Missing, err = table.Ahead(ctx, t.db, at(action), action.After)
			head = max(head, answer.Last)
		case protocol.ReadPage:
			answer.Cut, answer.Positions = false, answer.Positions[:0]
			err = look(action, &answer)
			for _, position := range answer.Positions {
				head = max(head, position)
			}
		case protocol.ReadDone:
			return action, head, nil
		case protocol.ReadRefuse:
			return action, head, t.refused(action.Why)
		}
		if eventtable.Elsewhere(err) {
			store.DropStandbys(ctx, t.db)
			t.forget()
			answer.Stale, err = true, nil
		}
		if err != nil {
			return action, head, t.failed(ctx, reading, err)
		}
	}
}

// find looks up the table's schema, once, so that the same table is read from then on.
// Other callers wait for the answer; the lookup has a timeout, so that a silent connection
// does not hold them up.
func (t *Table[E]) find(ctx context.Context) (*eventtable.Table, error) {
	if found := t.found.Load(); found != nil {
		return found, nil
	}
	select {
	case t.finding <- struct{}{}:
		defer func() { <-t.finding }()
	case <-ctx.Done():
		return nil, fmt.Errorf("events table %s: %w", t.sql.Name, ctx.Err())
	}
	if found := t.found.Load(); found != nil {
		return found, nil
	}
	found, err := bounded(ctx, lookMax, func(ctx context.Context) (eventtable.Table, error) { return t.sql.Find(ctx, t.db) }, nil)
	if err != nil {
		return nil, fmt.Errorf("events table %s: %w", t.sql.Name, err)
	}
	t.found.Store(&found)
	return &found, nil
}

// asked reads the facts that the assumptions are about.
func (t *Table[E]) asked(ctx context.Context) (f eventtable.Facts, holders []protocol.Holder, err error) {
	table, err := t.find(ctx)
	if err != nil {
		return f, nil, err
	}
	return table.Ask(ctx, t.db)
}

// forget drops the types of the columns: it may be another table now.
func (t *Table[E]) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reader = nil
}

// reach notes that a position was seen, and returns the end of the stream.
func (t *Table[E]) reach(head int64) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end >= 0 {
		t.end = max(t.end, head)
	}
	return t.end
}

// at returns where a statement must run.
func at(a protocol.ReadAction) eventtable.At {
	return eventtable.At{Epoch: a.Epoch, Reaches: a.Reaches}
}

// ask reads the facts that the assumptions are about, and the transactions that write.
func (t *Table[E]) ask(ctx context.Context) (a protocol.ReadAnswer, err error) {
	facts, holders, err := t.asked(ctx)
	if err != nil {
		return a, err
	}
	a = protocol.ReadAnswer{Epoch: facts.Epoch, Broken: facts.Judge(), Holders: holders, High: facts.Highest()}
	switch {
	case facts.Standby:
		store.DropStandbys(ctx, t.db)
	case a.Broken == "":
		t.mu.Lock()
		t.end = facts.Given()
		t.mu.Unlock()
	}
	return a, nil
}

// failed ends a reading with an error.
func (t *Table[E]) failed(ctx context.Context, r *protocol.Reading, err error) error {
	if context.Cause(ctx) != context.Canceled { // which says nothing about the table
		t.mu.Lock()
		r.Fail()
		t.mu.Unlock()
	}
	switch {
	case eventtable.Elsewhere(err): // the server's error is of a class that does not pass
		return fmt.Errorf("read events from %s: the server or the table was replaced meanwhile", t.sql.Name)
	case store.CantWrite(err):
		store.DropStandbys(ctx, t.db)
	}
	return err
}

// A refusal is the error of reading a table for which an assumption does not hold. It passes
// when that is fixed.
type refusal struct{ table, why string }

func (r *refusal) Error() string { return fmt.Sprintf("events table %s: %s", r.table, r.why) }

func (t *Table[E]) refused(why string) error { return &refusal{t.sql.Name, why} }

// askAgain checks the assumptions while reading goes on. If one does not hold, or can't be
// checked, the next reading checks it, and returns the error.
func (t *Table[E]) askAgain(ctx context.Context) {
	now := time.Now()
	a, err := bounded(ctx, lookMax, t.ask, nil)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil || a.Broken != "" || !t.horizon.Believe(a.Epoch, a.High, now) {
		t.horizon.AskAgain()
	}
}

// next advances a reading, one at a time.
func (t *Table[E]) next(r *protocol.Reading, a protocol.ReadAnswer) protocol.ReadAction {
	t.mu.Lock()
	defer t.mu.Unlock()
	return r.Next(time.Now(), a)
}

// lookMax is the timeout of a query of the locks, so that a silent connection does not hold
// up the other readers.
const lookMax = 10 * time.Second

// take waits for the turn of a reading, or gives it back.
func (t *Table[E]) take(ctx context.Context, turn bool) error {
	if !turn {
		<-t.turn
		return nil
	}
	select {
	case t.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fewEvents is the room in a page, in events, if few are expected.
const fewEvents = 16

// Gap is a missing position that readers wait at.
type Gap struct {
	// Position is the first position that is missing.
	Position int64
	// Since is when a reader first found the gap, by the process's clock.
	Since time.Time
	// Backends are the process ids (pg_stat_activity.pid) of the transactions that may
	// still fill it; 0 is a prepared transaction (pg_prepared_xacts).
	Backends []int
}

// Waiting implements GapWaiter: it returns the gap that readers wait at, and false if there
// is none. It does not use the database.
func (t *Table[E]) Waiting() (Gap, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	wait, waiting := t.horizon.Waiting()
	if !waiting {
		return Gap{}, false
	}
	g := Gap{Position: wait.Position, Since: wait.Since}
	for _, h := range wait.Holders {
		g.Backends = append(g.Backends, h.Backend)
	}
	return g, true
}

// Head implements HeadStore: it returns the highest position of a committed event, which
// readers may not have reached; 0: there is none.
func (t *Table[E]) Head(ctx context.Context) (int64, error) {
	head, _, err := t.reaches(ctx)
	return head, err
}

// reaches returns the head and the last position that was given out, which may be higher if
// the latest events were deleted. It needs the right to read the sequence; without it, the
// two are the same.
func (t *Table[E]) reaches(ctx context.Context) (head, given int64, err error) {
	facts, _, err := t.asked(ctx)
	switch {
	case err != nil:
		return 0, 0, err
	case facts.Standby: // it may know only of what was, some time ago
		store.DropStandbys(ctx, t.db)
		return 0, 0, t.refused(facts.Judge())
	}
	return facts.Highest(), facts.Given(), nil
}

// identity returns the name of the table, and of its database if workers coordinate in
// another one.
func (t *Table[E]) identity(ctx context.Context, coordination *sql.DB) (table string, err error) {
	found, err := t.find(ctx)
	if err != nil {
		return "", err
	}
	if t.db == coordination {
		return found.Identity(ctx, t.db)
	}
	var here, there string
	err = sideBySide(
		func() (err error) {
			if table, err = found.Identity(ctx, t.db); err == nil {
				there, err = eventtable.Database(ctx, t.db)
			}
			return err
		},
		func() (err error) { here, err = eventtable.Database(ctx, coordination); return err })
	if err != nil || here == there {
		return table, err
	}
	return table + " in database " + there, nil
}

// Check implements Checker: it returns an error if the table or one of its columns is missing
// or may not be read, if it can't be read without losing events, or if a column does not
// fit its field. Run calls it at the start.
func (t *Table[E]) Check(ctx context.Context) error {
	var facts eventtable.Facts
	var first []Record[E]
	var unread error // why the first event can't be read
	_, err := t.find(ctx)
	asked := time.Now()
	if err == nil {
		err = sideBySide(
			func() (err error) { facts, _, err = t.asked(ctx); return err },
			func() error { first, unread = t.readFirst(ctx); return nil })
	}
	if err != nil {
		return fmt.Errorf("check events table: %w%s", err, t.hint(ctx, err))
	}
	why := facts.Judge()
	if why == "" && !facts.Standby {
		t.mu.Lock()
		t.horizon.Believe(facts.Epoch, facts.Highest(), asked)
		t.mu.Unlock()
	}
	if !facts.Standby && facts.Locked {
		if err = unread; err == nil {
			err = t.checkWays(ctx, first)
		}
	}
	switch {
	case err != nil && (why == "" || strings.HasPrefix(store.State(err), "42")): // a column that is missing says more
		return fmt.Errorf("check events table: %w", err)
	case why != "":
		return fmt.Errorf("check %w", t.refused(why))
	}
	return nil
}

var versionSQL = sqltext.New(`SELECT version()`)

// hint returns a likely cause of an error about the table, and what to do.
func (t *Table[E]) hint(ctx context.Context, err error) string {
	var version string
	missing := store.State(err) == "42P01" || errors.Is(err, eventtable.ErrNoTable)
	text, _ := sqltext.Names{Literals: true}.Bind(versionSQL, nil)
	switch {
	case missing && t.cfg.Schema == "" && strings.ContainsRune(t.cfg.Table, '.'):
		return "; set the schema in TableConfig.Schema"
	case missing && t.cfg.Table != strings.ToLower(t.cfg.Table):
		return "; upper and lower case count, and PostgreSQL keeps a name that was created without quotes in lower case"
	case store.State(err) != "" && dbconn.QueryRow(ctx, t.db, text).Scan(&version) == nil:
		if other := eventtable.Lookalike(version); other != "" {
			return fmt.Sprintf("; the server is %s, and Table supports PostgreSQL only", other)
		}
	}
	return ""
}

// readFirst reads the first event, if there is one, with all columns.
func (t *Table[E]) readFirst(ctx context.Context) ([]Record[E], error) {
	reader, err := t.statements(ctx)
	if err != nil {
		return nil, err
	}
	if err := t.fits(ctx, reader); err != nil {
		return nil, err
	}
	whole, err := t.page(ctx, reader, eventtable.Range{Limit: 1, Literals: true}, 1, 0)
	return whole.events, err
}

// checkWays reads the first event, which readFirst has read, in each of the other ways in
// which events are read, and returns an error if one of them returns another event.
func (t *Table[E]) checkWays(ctx context.Context, first []Record[E]) error {
	reader, err := t.statements(ctx)
	if err != nil {
		return err
	}
	literals := t.libpq
	scoped := eventtable.Range{Limit: 1, Literals: literals}
	var want Record[E]
	at := []int64{}
	if len(first) > 0 {
		want = first[0]
		scoped.After, scoped.Through, at = want.Position-1, want.Position, []int64{want.Position}
	}
	if t.cfg.AggregateTypeColumn != "" {
		scoped.Types = []string{want.AggregateType}
	}
	if t.cfg.BoundedContextColumn != "" {
		scoped.Contexts = []string{want.BoundedContext}
	}
	if t.cfg.EventTypeColumn != "" {
		scoped.EventTypes = []string{want.EventType}
	}
	key := func() error {
		keys, _, err := t.keys(ctx, reader, eventtable.Range{After: max(0, want.Position-1), Limit: 1, Literals: literals})
		if err == nil && len(at) > 0 && (len(keys) == 0 || keys[0].Position != want.Position || keys[0].Slot != protocol.SlotOf(want.AggregateID)) {
			err = fmt.Errorf("%s: the event at position %d differs when its key alone is read: %+v", t.sql.Name, want.Position, keys)
		}
		return err
	}
	page := func(way string, g eventtable.Range) func() error {
		return func() error {
			p, err := t.page(ctx, reader, g, 1, 0)
			switch {
			case err != nil:
				return err
			case len(at) == 0 || want.Err != nil && len(p.events) == 0:
			case len(p.events) != 1 || !p.events[0].is(&want):
				return fmt.Errorf("%s: the event at position %d differs when it is read %s: %d events, %+v", t.sql.Name, want.Position, way, len(p.events), p.events)
			}
			return nil
		}
	}
	return sideBySide(key, page("by its position", eventtable.Range{Rows: at, Literals: literals}), page("within its scope", scoped))
}

// sideBySide makes calls at the same time, and returns the error of the first one, in their
// order, that failed. A call that panics, or ends its goroutine, has failed: the program's
// own code makes events.
func sideBySide(calls ...func() error) error {
	errs := make([]error, len(calls))
	var all sync.WaitGroup
	for i, call := range calls {
		all.Go(func() {
			if err := contained(func() { errs[i] = call() }); err != nil {
				errs[i] = err
			}
		})
	}
	all.Wait()
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		return errs[i]
	}
	return nil
}

// fits returns an error if a column is of a type that can't be scanned into its field, as far
// as the driver can tell. It finds that also in a table without events.
func (t *Table[E]) fits(ctx context.Context, r *eventtable.Reader) error {
	row := newRow(t, r)
	row.in, row.fields = new(Record[E]), t.fields
	switch problem, err := r.Fits(ctx, t.db, row.columns()); {
	case err != nil:
		return fmt.Errorf("read events from %s: %w", t.sql.Name, err)
	case problem != "":
		return tableError("Fields", fmt.Sprintf("does not fit %s: %s", t.sql.Name, problem))
	}
	return nil
}

// is reports whether two records are of the same event.
func (r *Record[E]) is(o *Record[E]) bool {
	return r.Position == o.Position && r.AggregateID == o.AggregateID && r.AggregateType == o.AggregateType && r.BoundedContext == o.BoundedContext && r.EventType == o.EventType
}
