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

// A Table reads an events table in PostgreSQL and loses nothing, in whatever order
// transactions take their positions and commit: it goes past a position that is missing
// only when nobody can fill it any more. In which order to ask what, protocol.Reading
// decides; the statements are in internal/eventtable. What it can't guarantee for a table
// it refuses by name (docs/assumptions.md).

// An Event is a row of an events table in pupsourcing's layout. Each call of a handler
// gets its own, Payload and Metadata included.
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

// A TableConfig says where the events are and how to read a row. Names are
// taken as they are written and quoted.
type TableConfig[E any] struct {
	// Table is the events table, in Schema; if that is not set, in the schema that the
	// search path leads to, which is looked up once: what a session does to its
	// search path later, and temporary tables, change nothing. Default: events.
	Schema, Table string
	// PositionColumn is a positive integer (smallint, integer, bigint), unique, and
	// filled from a sequence by the inserting transaction itself. Without an index that
	// begins with it, reading works and is slow. Default: global_position.
	//
	// What nothing can show: a position that was taken in another transaction than the
	// one that inserts it, and one that a program takes by itself, from a block or
	// by inserting a number of its own below the highest. Such events are lost.
	PositionColumn string
	// Sequence is the one that writers take positions from, as SQL has its name, with
	// its schema where need be: to be set where nothing links it to PositionColumn, as
	// with Hibernate, or in a trigger or a function. Default: the column's own (serial,
	// identity), or the one that its default names.
	Sequence string
	// NoSequence says that positions come from no sequence: that each is taken inside
	// the INSERT statement itself, or under a lock that its writer holds to the end of
	// the transaction (max() + 1, a row that counts). Where there is no sequence and
	// this is not set, the table is refused. A trigger that takes numbers from a
	// sequence needs Sequence instead.
	NoSequence bool
	// Writers are, where Table is a view, the tables from which it takes its events, as
	// SQL has their names: their writers are waited for, and they are what all
	// assumptions are about. Name every table whose rows the view shows as events, and
	// the sequence of their positions in Sequence.
	Writers []string
	// AggregateIDColumn, as text, decides the partition. It must not be NULL, and
	// of a type whose text does not depend on the session's settings: not a
	// timestamp, say, or a float. Default: aggregate_id.
	AggregateIDColumn string
	// AggregateTypeColumn, BoundedContextColumn and EventTypeColumn, as text, are what
	// the scope of a projection is about; NULL is "". Their types are bound as that
	// of AggregateIDColumn. Default: none, and Run refuses a projection whose
	// scope needs one.
	AggregateTypeColumn, BoundedContextColumn, EventTypeColumn string
	// TimeColumn, of type timestamp with time zone, is when an event came about, for
	// StartAtTime. Without an index on it, the first such event is looked for among
	// all. Default: none, and Run refuses a projection that starts at a time.
	TimeColumn string
	// Columns are what an event is made of. Required.
	Columns []string
	// Fields appends to dest where each of Columns goes in an event, in this order, and
	// returns dest: pointers as for sql.Rows.Scan, or a sql.Scanner where a value has
	// to be converted. It is called for each row, with a zero event, and takes no
	// allocation of its own for it. A row that it, a Scanner, Size or Time fails for is
	// a failure of that event alone (Record.Err). Required.
	Fields func(e *E, dest []any) []any
	// Size returns about how many bytes an event takes in memory, by which what
	// is read ahead is bounded. Default: as many as its columns have.
	Size func(E) int
	// Time returns when an event came about, by which it is said how old the
	// oldest event is that a projection has not handled. Default: not known.
	Time func(E) time.Time
}

// A Table is an EventStore over a table of events in PostgreSQL. It needs the
// privilege to read the table and nothing else.
//
// A type that embeds a *Table is an EventStore of its own: its Read is called for every
// request, with a scope or without, and backlogs are not read by slot.
//
// It never passes a position that a transaction may still commit: sequences
// hand out positions in order, and transactions commit in any. Taking a position
// locks its sequence, and an insert its table, to the end of the transaction; so when
// a position is missing, Table lists who holds such a lock or waits for one (pg_locks),
// hands out the events before the gap, and goes on when all of those transactions have
// ended. That is exact and needs no timeout. It costs nothing while there are no gaps.
// A transaction that stays open after it has taken a position, or has written to the
// table in any way, holds all readers back until it ends, also after a ROLLBACK TO:
// Waiting names it.
//
// What that rests on, of the table, its sequence and the server, is asked for: in Check,
// in Read about twice a minute, and whenever a gap is about to be passed. Where it
// does not hold, or does not any more, Check and Read refuse the table with an error
// that says why, and what to do. docs/assumptions.md has the list.
//
// What nothing can show: a position that was taken in another transaction than the
// one that inserts it, and one that a program takes by itself, from a block or
// by inserting a number of its own below the highest. Such events are lost.
//
// A Table may outlive its events: one that was emptied, restored or replaced is read
// as it is now. It works on the primary only.
type Table[E any] struct {
	db  *sql.DB
	cfg TableConfig[E]
	sql eventtable.Table
	// found is sql with its schema; nil: it was not looked up yet. finding holds one token,
	// for who looks it up.
	found   atomic.Pointer[eventtable.Table]
	finding chan struct{}
	// fields are the destinations of a row, as NewTable has got them.
	fields []any
	// libpq: the driver is lib/pq, which takes one round trip for a statement without
	// arguments, and two for one with.
	libpq bool

	// turn holds one token, for the reading whose turn it is at the horizon. mu
	// is only ever held for a moment.
	turn    chan struct{}
	mu      sync.Mutex
	horizon protocol.Horizon
	reader  *eventtable.Reader // nil: the columns' types are not known yet
	end     int64              // see page

	ends ends
}

// NewTable returns a Table that reads from db. The error is ErrInvalidConfig
// and names the field; the database is not touched before Check or Read.
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

// sample calls Fields once, and says what is wrong with it.
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

// NewEventTable returns a Table over an events table in pupsourcing's layout;
// an empty name is "events".
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

// Read implements EventStore. What is out of r.Scope does not leave the server.
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

// emptyIsValue says that the columns of scopes may be empty: that there are such columns is
// checked.
func (t *Table[E]) emptyIsValue() {}

// scopeProblem says what the table lacks to read the scope of something.
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
	// end is the position up to which some were given out: who stands above it has
	// lost his stream. -1: not known.
	end int64
}

// read reads the events of a scope above after, at most limit of them, and not
// many more once they exceed bytes, if that is not 0. Where few are to be expected, it
// saves lib/pq a round trip, and where many are, bytes.
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

// readOwn is read, of the events in some slots. It reads the keys of all, as read
// does the events, and then the rows of its own: once a position is final and
// its event was seen, the row is there for every later statement.
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

// keys reads the keys of the events in a range. It ends early, and says so, at one that
// can't be read.
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

// same makes sure that events that were read for their slots are in these: that their
// rows have the aggregate ids that their keys had. Nobody else may read one that is not.
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

// carry carries a reading to its end. What it does in which order is for
// protocol.Reading to say; look reads the page.
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

// find looks up the table's schema, once: the table is the same for as long as it
// is read. Who needs it meanwhile waits for the answer, which is bounded, so that a
// connection that has fallen silent does not hold up the others.
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

// asked asks what is assumed of the table.
func (t *Table[E]) asked(ctx context.Context) (f eventtable.Facts, holders []protocol.Holder, err error) {
	table, err := t.find(ctx)
	if err != nil {
		return f, nil, err
	}
	return table.Ask(ctx, t.db)
}

// forget has the types of the columns asked for again: it may be another table.
func (t *Table[E]) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reader = nil
}

// reach takes in that a position was seen, and returns how far the stream reaches.
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

// ask asks what is assumed of the table, and who writes it.
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

// failed gives a reading up.
func (t *Table[E]) failed(ctx context.Context, r *protocol.Reading, err error) error {
	if context.Cause(ctx) != context.Canceled { // of that, nobody learns anything
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

// A refusal is the error of reading a table for which something that is assumed of it
// does not hold. It passes when that is mended.
type refusal struct{ table, why string }

func (r *refusal) Error() string { return fmt.Sprintf("events table %s: %s", r.table, r.why) }

func (t *Table[E]) refused(why string) error { return &refusal{t.sql.Name, why} }

// askAgain asks what is assumed, while reading goes on. If it does not hold, or can't be
// asked, the next reading asks, and says so.
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

// lookMax bounds a look at the locks, so that one on a connection that has
// fallen silent does not hold up the other readers.
const lookMax = 10 * time.Second

// take waits for the reader's turn, or gives it back.
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

// fewEvents is for how many events there is room in a page where few are expected.
const fewEvents = 16

// A Gap is a position that readers wait at.
type Gap struct {
	Position int64     // the first position that is missing
	Since    time.Time // when a reader first met it
	// Backends are the process ids (pg_stat_activity.pid) of the transactions
	// that may still fill it, 0 for a prepared one (pg_prepared_xacts).
	Backends []int
}

// Waiting returns the gap that readers wait at, if there is one.
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

// Head returns the highest position of an event that is committed; 0: there
// is none. Readers may not have come to it yet.
func (t *Table[E]) Head(ctx context.Context) (int64, error) {
	head, _, err := t.reaches(ctx)
	return head, err
}

// reaches returns with the head the last position that was given out, where the role may
// see that of the sequence: what was deleted is still behind a reader that stands there.
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

// identity names the table, and its database where that is not the one in which
// workers coordinate.
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

// Check makes sure that the table and its columns exist and may be read, and
// that it can be read without losing events.
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

// hint says more of why a table can't be asked about.
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

// readFirst reads the first event, if there is one, with every column that is named.
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
// which events are read, and makes sure that it is the same event in each.
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

// sideBySide makes calls at the same time, and returns the error of the first that fails,
// in their order. One that panics, or ends its goroutine, has failed: an event is made by
// the program's own code.
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

// fits makes sure that the columns are of types that can be scanned into the fields, where
// the driver can tell: a table without events says nothing of that otherwise.
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
