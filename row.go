package orchestrator

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// Turning rows into Records. A row that can't become an event becomes a Record with an Err:
// its projections fail at that event, and everything else goes on. The rows before it are
// read, whatever fails: the program's functions and Scanners, by an error, a panic or the end
// of their goroutine; the driver; or the server, which then ends the whole statement.

// An unreadable is the error of an event that could not be read. It is a failure of the
// event, whatever it wraps.
type unreadable struct{ err error }

func (u *unreadable) Error() string { return u.err.Error() }
func (u *unreadable) Unwrap() error { return u.err }

// unreadableIn returns why one of the events could not be read, nil if all could.
func unreadableIn[E any](events []*Record[E]) error {
	for _, e := range events {
		if e.Err != nil {
			return &unreadable{own("the row", fmt.Errorf("event at position %d: %w", e.Position, e.Err))}
		}
	}
	return nil
}

// errExited is the error of a function of the program that has ended its goroutine.
var errExited = errors.New("it ended its goroutine (runtime.Goexit)")

// contained calls the program's code on a goroutine of its own, and returns an error if it
// panics or ends that goroutine.
func contained(f func()) (err error) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err = errExited
		defer func() {
			if v := recover(); v != nil {
				err = &PanicError{Value: v, Stack: debug.Stack()}
			}
		}()
		f()
		err = nil
	}()
	<-ended
	return err
}

// page reads the events in a range, and not many more once they exceed bytes, if that is not
// 0. If the statement fails because of an event, it is repeated for smaller ranges, until that
// event stands alone.
func (t *Table[E]) page(ctx context.Context, r *eventtable.Reader, g eventtable.Range, room, bytes int) (page[E], error) {
	p, err := t.rows(ctx, r, g, room, bytes)
	n := len(p.events)
	switch {
	case err == nil || !ofTheData(err):
		return p, err
	case n > 0: // the next one is at fault: rows come in order
		g = g.Above(p.events[n-1].Position).First(1)
	case g.Len() > 1:
		p, err := t.page(ctx, r, g.First(g.Len()/2), min(room, g.Len()/2), bytes)
		p.more = true
		return p, err
	default:
		e, found := t.keysOf(ctx, r, g)
		switch {
		case found != nil:
			return p, err
		case g.Rows == nil: // the statement may have failed at another row, which it had to sort
			p, err = t.page(ctx, r, eventtable.Range{Rows: []int64{e.Position}, At: g.At}, 1, 0)
			p.more = true
			return p, err
		}
		e.Err = fmt.Errorf("read it from %s: %w", t.sql.Name, err)
		p.events, p.more = append(p.events, e), true
		return p, nil
	}
	next, err := t.page(ctx, r, g, 1, 0)
	p.events, p.bytes, p.more = append(p.events, next.events...), p.bytes+next.bytes, true
	return p, err
}

// keysOf reads only the identity of the first event in a range: its position, and what its
// partition and scope depend on. A part that can't be read is empty.
func (t *Table[E]) keysOf(ctx context.Context, r *eventtable.Reader, g eventtable.Range) (e Record[E], err error) {
	g = g.First(1)
	into := [eventtable.Parts]*string{nil, &e.AggregateID, &e.AggregateType, &e.BoundedContext, &e.EventType}
	read := func(only ...eventtable.Part) error {
		g.Only = append([]eventtable.Part{}, only...)
		query, args := r.Page(g)
		texts := make([]sql.NullString, len(only))
		dest := []any{&e.Position}
		for i := range texts {
			dest = append(dest, &texts[i])
		}
		err := dbconn.QueryRow(ctx, t.db, query, args...).Scan(dest...)
		for i, part := range only {
			*into[part] = texts[i].String
		}
		return err
	}
	if err := read(); err != nil {
		return e, fmt.Errorf("read the key of an event from %s: %w", t.sql.Name, err)
	}
	g.After, g.Limit = e.Position-1, 1
	for _, part := range r.Selected[1:] {
		if err := read(part); err != nil && !ofTheData(err) {
			return e, fmt.Errorf("read the key of the event at position %d from %s: %w", e.Position, t.sql.Name, err)
		}
	}
	return e, nil
}

// ofTheData reports whether an error may be about a value that was read, which the server
// can't convert or has lost, or which the driver can't take.
func ofTheData(err error) bool {
	if eventtable.Elsewhere(err) {
		return false
	}
	state := store.State(err)
	if len(state) == 5 {
		return slices.Contains([]string{"21", "22", "38", "39", "54", "P0", "XX"}, state[:2])
	}
	return !store.Passing(err) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// rows runs the statement for a range. The page has room for so many events, and is copied for
// more. With an error it returns the events before it.
func (t *Table[E]) rows(ctx context.Context, r *eventtable.Reader, g eventtable.Range, room, bytes int) (p page[E], err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	rows, err := r.Rows(ctx, t.db, g)
	if err != nil {
		return p, fmt.Errorf("read events from %s: %w", t.sql.Name, err)
	}
	defer rows.Close()
	p.events = make([]Record[E], 0, room)
	row := newRow(t, r)
	full := false
	for done := false; !done && err == nil; {
		failed := contained(func() {
			for rows.Next() {
				p.events = slices.Grow(p.events, 1)[:len(p.events)+1] // and not append, which clears it again
				row.in = &p.events[len(p.events)-1]
				if err = row.read(rows); err != nil {
					break
				}
				if n := len(p.events) - 1; full && row.in.Position != p.events[n-1].Position {
					p.events, p.more = p.events[:n], true
					break
				}
				p.bytes += row.in.Size
				// One row more shows whether events of one position would be parted.
				full = protocol.PageFull(p.bytes, bytes, len(p.events), g.Len())
				row.in = nil
			}
			done = true
		})
		switch {
		case failed == nil:
		case row.in == nil: // it was the driver
			err = fmt.Errorf("read events from %s: %w", t.sql.Name, failed)
		default:
			err = row.spoil(rows, failed)
			p.bytes += row.in.Size
			row.in = nil
		}
	}
	if err != nil && row.in != nil {
		p.events = p.events[:len(p.events)-1]
	}
	switch {
	case err != nil:
		return p, err
	case p.more:
		// What follows is not read: closing the rows would read it all. The
		// connection ends with the statement.
		stop()
	case rows.Err() != nil:
		return p, fmt.Errorf("read events from %s: %w", t.sql.Name, rows.Err())
	}
	return p, nil
}

// A row reads rows into records, one after the other. The program's code never runs inside
// rows.Scan, which holds a lock of the rows: a Scanner that panics there would leave it
// locked, and closing the rows would never return.
type row[E any] struct {
	table  *Table[E]
	reader *eventtable.Reader
	texts  [eventtable.Parts]eventtable.Text
	in     *Record[E] // what the row in hand becomes
	held   []held
	holds  bool           // some are in use
	kinds  []reflect.Type // of the fields that are no Scanners
	fields []any          // where Columns go, as Fields says
	dest   []any          // where what was selected goes
}

func newRow[E any](t *Table[E], r *eventtable.Reader) *row[E] {
	n := len(r.Shared)
	return &row[E]{table: t, reader: r, held: make([]held, n), kinds: make([]reflect.Type, n)}
}

// A held is a value for a Scanner, which gets it after rows.Scan.
type held struct {
	into  any // nil: no Scanner gets it
	value any
}

func (h *held) Scan(value any) error {
	if b, ok := value.([]byte); ok {
		value = slices.Clone(b) // the driver's, until the next row
	}
	h.value = value
	return nil
}

// read makes a record of a row. It returns an error if not even the position could be read.
func (w *row[E]) read(rows dbconn.Scanner) error {
	if failed := w.decode(rows); failed != nil {
		return w.spoil(rows, failed)
	}
	return nil
}

// decode makes an event of a row.
func (w *row[E]) decode(rows dbconn.Scanner) error {
	cfg, e := &w.table.cfg, w.in
	w.fields = cfg.Fields(&e.Event, w.fields[:0])
	if len(w.fields) != len(w.held) {
		return fmt.Errorf("TableConfig.Fields appended %d destinations, for %d Columns", len(w.fields), len(w.held))
	}
	if err := rows.Scan(w.columns()...); err != nil {
		return err
	}
	w.identify()
	if w.texts[eventtable.AggregateID].Null {
		return fmt.Errorf("column %s (the aggregate id) is NULL; set it to '' to keep such events in one partition", eventtable.Quote(cfg.AggregateIDColumn))
	}
	for i, part := range w.reader.Shared {
		if part != eventtable.Parts {
			if err := w.share(i, part); err != nil {
				return err
			}
		}
	}
	for i := range w.held {
		if h := &w.held[i]; w.holds && h.into != nil {
			if err := scanInto(h.into, h.value); err != nil {
				return fmt.Errorf("column %s: %w", eventtable.Quote(cfg.Columns[i]), err)
			}
		}
	}
	if cfg.Time != nil {
		e.Time = cfg.Time(e.Event)
	}
	if cfg.Size != nil {
		e.Size = max(0, cfg.Size(e.Event))
	} else {
		e.Size = w.size()
	}
	return nil
}

// columns returns the destinations of the selected columns, in order.
func (w *row[E]) columns() []any {
	w.begin()
	for i, part := range w.reader.Shared {
		if part == eventtable.Parts {
			w.dest = append(w.dest, w.target(i))
		}
	}
	return w.dest
}

// begin clears the previous row, and makes dest the destinations of the identity.
func (w *row[E]) begin() {
	w.dest = append(w.dest[:0], &w.in.Position)
	for _, part := range w.reader.Selected[1:] {
		w.texts[part] = eventtable.Text{}
		w.dest = append(w.dest, &w.texts[part])
	}
	if w.holds {
		clear(w.held)
		w.holds = false
	}
}

// identify copies the identity into the record.
func (w *row[E]) identify() {
	e := w.in
	e.AggregateID, e.AggregateType = w.texts[eventtable.AggregateID].String, w.texts[eventtable.AggregateType].String
	e.BoundedContext, e.EventType = w.texts[eventtable.BoundedContext].String, w.texts[eventtable.EventType].String
}

// share copies a part of the identity into the field that has the same column.
func (w *row[E]) share(i int, part eventtable.Part) error {
	switch d := w.fields[i].(type) {
	case *int64:
		if part == eventtable.Position && d != nil {
			*d = w.in.Position
			return nil
		}
	case *string:
		switch text := &w.texts[part]; {
		case part == eventtable.Position || d == nil:
		case text.Null:
			return fmt.Errorf("column %s is NULL, but its field is a string", eventtable.Quote(w.table.cfg.Columns[i]))
		default:
			*d = text.String
			return nil
		}
	}
	return fmt.Errorf("column %s: TableConfig.Fields returned a %T, but another type when NewTable called it", eventtable.Quote(w.table.cfg.Columns[i]), w.fields[i])
}

// target returns the destination of a column in rows.Scan: the field, or, if that is a Scanner
// other than those of database/sql, a held.
func (w *row[E]) target(i int) any {
	field := w.fields[i]
	switch d := field.(type) {
	case *string, *[]byte, *int64, *int, *int32, *bool, *float64, *time.Time, *any:
		return field
	case *sql.NullString:
		if d != nil {
			return field
		}
	case *sql.NullInt64:
		if d != nil {
			return field
		}
	case *sql.NullTime:
		if d != nil {
			return field
		}
	default:
		kind := reflect.TypeOf(field)
		if kind == w.kinds[i] || !scans(kind) {
			w.kinds[i] = kind
			return field
		}
	}
	w.held[i].into, w.holds = field, true
	return &w.held[i]
}

// scans reports whether a destination of the type is a Scanner, or leads to one.
func scans(kind reflect.Type) bool {
	for kind != nil {
		if kind.Implements(scannerType) {
			return true
		}
		if kind.Kind() != reflect.Pointer || kind.Elem().Kind() != reflect.Pointer {
			return false
		}
		kind = kind.Elem()
	}
	return false
}

var scannerType = reflect.TypeFor[sql.Scanner]()

// scanInto does what rows.Scan does for a Scanner, or for pointers to one.
func scanInto(dest, value any) error {
	if s, ok := dest.(sql.Scanner); ok {
		return s.Scan(value)
	}
	pointer := reflect.ValueOf(dest).Elem()
	if value == nil {
		pointer.SetZero()
		return nil
	}
	pointer.Set(reflect.New(pointer.Type().Elem()))
	return scanInto(pointer.Interface(), value)
}

// spoil makes the record of a row that failed: its identity, and Err. It returns an error if
// not even the position could be read.
func (w *row[E]) spoil(rows dbconn.Scanner, failed error) error {
	*w.in = Record[E]{}
	w.begin()
	w.holds = true
	for i, part := range w.reader.Shared {
		if part == eventtable.Parts {
			w.dest = append(w.dest, &w.held[i])
		}
	}
	if err := rows.Scan(w.dest...); err != nil {
		return fmt.Errorf("read an event from %s: %w", w.table.sql.Name, err)
	}
	w.identify()
	w.in.Err = fmt.Errorf("read it from %s: %w", w.table.sql.Name, failed)
	w.in.Size = int(reflect.TypeFor[Record[E]]().Size())
	return nil
}

// size returns about how many bytes an event takes in memory, from what was read for it.
func (w *row[E]) size() int {
	e := w.in
	n := int(reflect.TypeFor[Record[E]]().Size()) + len(e.AggregateID) + len(e.AggregateType) + len(e.BoundedContext) + len(e.EventType)
	for i := range w.held {
		switch h := &w.held[i]; {
		case h.value != nil:
			raw := 0
			switch v := h.value.(type) {
			case string:
				raw = len(v)
			case []byte:
				raw = len(v)
			}
			n += max(raw, sizeBehind(h.into))
		case w.reader.Shared[i] == eventtable.Parts:
			switch d := w.fields[i].(type) {
			case *int64, *int, *int32, *bool, *float64, *time.Time:
			case *string:
				n += len(*d)
			case *[]byte:
				n += len(*d)
			case *sql.NullString:
				n += len(d.String)
			default:
				n += sizeBehind(d)
			}
		}
	}
	return n
}
