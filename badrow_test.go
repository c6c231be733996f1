package orchestrator_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// An oddEvent has a note that may be unreadable, in many ways.
type oddEvent struct {
	position int64
	note     string
	data     *oddData
	maybe    **oddData
}

// oddData is a Scanner that does what the text says.
type oddData struct{ text string }

func (d *oddData) Scan(value any) error {
	text := fmt.Sprintf("%s", value)
	switch d.text = text; text {
	case "error":
		return json.Unmarshal([]byte("{"), &struct{}{})
	case "panic":
		panic("a nil map")
	case "exit":
		runtime.Goexit()
	}
	return nil
}

// oddTable reads events, of which the 3rd is odd. What rows say of the data is done by
// the function that has its name.
func oddTable(t *testing.T, db *sql.DB, pointers bool, writers ...string) *orchestrator.Table[oddEvent] {
	t.Helper()
	does := func(e oddEvent, what string) {
		switch e.note {
		case what + " panics":
			panic("the " + what)
		case what + " exits":
			runtime.Goexit()
		}
	}
	sequence := ""
	if len(writers) > 0 { // odd is a view
		sequence = writers[0] + "_global_position_seq"
	}
	table, err := orchestrator.NewTable(db, orchestrator.TableConfig[oddEvent]{
		Table: "odd", Writers: writers, Sequence: sequence, Columns: []string{"global_position", "note", "data"},
		Fields: func(e *oddEvent, dest []any) []any {
			if pointers {
				e.maybe = new(*oddData)
				return append(dest, &e.position, &e.note, e.maybe)
			}
			e.data = &oddData{}
			return append(dest, &e.position, &e.note, e.data)
		},
		Size: func(e oddEvent) int { does(e, "Size"); return 100 },
		Time: func(e oddEvent) (at time.Time) { does(e, "Time"); return at },
	})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

const oddLayout = `CREATE TABLE odd (global_position bigserial PRIMARY KEY, aggregate_id text DEFAULT 'a', note text DEFAULT '', data text DEFAULT '')`

// A row that can't become an event becomes a record that says so. All others are read,
// whole or by slot, and no connection is left behind.
func TestTableReadsPastABadRow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		row      string // of the 3rd event: what it sets
		pointers bool
		want     string
	}{
		"is NULL, but its field is a string": {row: `note = NULL`, want: "NULL"},
		"no aggregate":                       {row: `aggregate_id = NULL`, want: `"aggregate_id" (the aggregate id) is NULL`},
		"a Scanner fails":                    {row: `data = 'error'`, want: `"data": unexpected end of JSON input`},
		"a Scanner panics":                   {row: `data = 'panic'`, want: "nil map"},
		"a Scanner ends its goroutine":       {row: `data = 'exit'`, want: "runtime.Goexit"},
		"a Scanner behind a pointer panics":  {row: `data = 'panic'`, pointers: true, want: "nil map"},
		"Size panics":                        {row: `note = 'Size panics'`, want: "the Size"},
		"Size ends its goroutine":            {row: `note = 'Size exits'`, want: "runtime.Goexit"},
		"Time panics":                        {row: `note = 'Time panics'`, want: "the Time"},
		"Time ends its goroutine":            {row: `note = 'Time exits'`, want: "runtime.Goexit"},
		"all of them, and one after another": {row: `data = 'panic', note = NULL, aggregate_id = NULL`, want: "NULL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStream(t, oddLayout, `INSERT INTO odd SELECT FROM generate_series(1, 5)`, `UPDATE odd SET `+c.row+` WHERE global_position = 3`)
			table := oddTable(t, s.db, c.pointers)
			if err := table.Check(t.Context()); err != nil {
				t.Error(err)
			}
			expectOdd(t, table, 3, c.want)
			if n := s.db.Stats().InUse; n != 0 {
				t.Errorf("%d connections are in use", n)
			}
		})
	}
}

// expectOdd reads five events in all ways.
func expectOdd(t *testing.T, table *orchestrator.Table[oddEvent], bad int64, want string) {
	t.Helper()
	type way func(after int64) ([]orchestrator.Record[oddEvent], error)
	for name, read := range map[string]way{
		"whole": func(after int64) ([]orchestrator.Record[oddEvent], error) {
			return records(t.Context(), table, after, 100)
		},
		"by slot": func(after int64) ([]orchestrator.Record[oddEvent], error) {
			page, _, _, err := table.ReadOwn(t.Context(), 0, 1, after, 100, 0)
			return page, err
		},
	} {
		var positions []int64
		for after := int64(0); after < 5; after = positions[len(positions)-1] {
			page, err := read(after)
			if err != nil || len(page) == 0 {
				t.Fatalf("%s, after %d: %d events, %v", name, after, len(page), err)
			}
			for _, e := range page {
				positions = append(positions, e.Position)
				switch {
				case e.Position != bad:
					if e.Err != nil || e.AggregateID != "a" || e.Event.position != e.Position {
						t.Errorf("%s: position %d: %+v", name, e.Position, e)
					}
				case e.Err == nil || !strings.Contains(e.Err.Error(), want):
					t.Errorf("%s: position %d says %v, and not %s", name, e.Position, e.Err, want)
				}
			}
		}
		if !slices.Equal(positions, []int64{1, 2, 3, 4, 5}) {
			t.Errorf("%s: %v", name, positions)
		}
	}
}

// Fields that fail, at some row, are that row's failure as well; and NewTable says what is
// wrong with those that always do.
func TestTableFields(t *testing.T) {
	t.Parallel()
	s := newStream(t, oddLayout, `INSERT INTO odd SELECT FROM generate_series(1, 5)`)
	for name, fails := range map[string]func(){"panic": func() { panic("the Fields") }, "Goexit": runtime.Goexit} {
		calls, bad := 0, 0
		table, err := orchestrator.NewTable(s.db, orchestrator.TableConfig[oddEvent]{
			Table: "odd", Columns: []string{"note"},
			Fields: func(e *oddEvent, dest []any) []any {
				if calls++; calls == bad {
					fails()
				}
				return append(dest, &e.note)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		bad = calls + 3
		page, err := records(t.Context(), table, 0, 10)
		if err != nil || len(page) != 5 || page[2].Err == nil || page[2].Position != 3 || page[2].AggregateID != "a" || page[1].Err != nil || page[3].Err != nil {
			t.Errorf("%s: %v, %+v", name, err, page)
		}
	}
	for name, fields := range map[string]func(e *oddEvent, dest []any) []any{
		"fails: panic: no": func(*oddEvent, []any) []any { panic("no") },
		"runtime.Goexit":   func(*oddEvent, []any) []any { runtime.Goexit(); return nil },
		"*sql.RawBytes":    func(_ *oddEvent, dest []any) []any { return append(dest, new(sql.RawBytes)) },
	} {
		_, err := orchestrator.NewTable(s.db, orchestrator.TableConfig[oddEvent]{Columns: []string{"note"}, Fields: fields})
		if err == nil || !strings.Contains(err.Error(), name) || !errors.Is(err, orchestrator.ErrInvalidConfig) {
			t.Errorf("want an error with %q: %v", name, err)
		}
	}
}

// A text that the server can't convert ends the statement, and is one event's failure
// all the same, wherever it is.
func TestTableReadsPastATextThatTheServerCannotConvert(t *testing.T) {
	t.Parallel()
	_, base := pgtest.Database(t)
	admin := reopen(t, base, "application_name", "admin")
	for encoding, bad := range map[string]string{"SQL_ASCII": `\xff`, "WIN1252": `\x81`} {
		for column, want := range map[string]string{"note": "a", "aggregate_id": ""} {
			t.Run(encoding+" "+column, func(t *testing.T) {
				name := strings.ToLower(encoding + "_" + column + "_" + strings.ReplaceAll(strings.ToLower(t.Name()), "/", "_")[:4])
				execute(t, admin, `DROP DATABASE IF EXISTS "`+name+`"`, fmt.Sprintf(`CREATE DATABASE %q ENCODING '%s' LOCALE 'C' TEMPLATE template0`, name, encoding))
				t.Cleanup(func() { admin.ExecContext(context.Background(), fmt.Sprintf(`DROP DATABASE %q WITH (FORCE)`, name)) })
				db := ofDatabase(t, base, name)
				execute(t, db, oddLayout, `INSERT INTO odd SELECT FROM generate_series(1, 5)`,
					fmt.Sprintf(`UPDATE odd SET %s = convert_from('%s', '%s') WHERE global_position = 3`, column, bad, encoding))
				table := oddTable(t, db, false)
				expectOdd(t, table, 3, "22") // class 22
				if page, err := records(t.Context(), table, 0, 100); err != nil || len(page) != 5 {
					t.Errorf("a read of all is of %d events, %v", len(page), err)
				}
				page, err := records(t.Context(), table, 2, 1)
				if err != nil || len(page) != 1 || page[0].AggregateID != want {
					t.Errorf("%v, %+v", err, page)
				}
				if n := db.Stats().InUse; n != 0 {
					t.Errorf("%d connections are in use", n)
				}
			})
		}
	}
}

// A statement that fails as a whole before it returns a row is narrowed down as well.
func TestTableNarrowsDownWhatFailsBeforeTheFirstRow(t *testing.T) {
	t.Parallel()
	s := newStream(t,
		`CREATE TABLE base (global_position bigserial, aggregate_id text DEFAULT 'a', note text DEFAULT '', data text DEFAULT '')`, // no index: it is sorted
		`INSERT INTO base SELECT FROM generate_series(1, 5)`, `UPDATE base SET data = 'bad' WHERE global_position = 3`,
		`CREATE VIEW odd AS SELECT global_position, aggregate_id, note, (CASE data WHEN 'bad' THEN (1 / length(note)) END)::text AS data FROM base`)
	table := oddTable(t, s.db, false, "base")
	expectOdd(t, table, 3, "division by zero")
}

// ofDatabase opens another database of the server.
func ofDatabase(t *testing.T, base, name string) *sql.DB {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	db, err := sql.Open("postgres", u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// A row that can't be read is each projection's own failure, under its own rule: it is
// parked, or it is tried again; all other events are handled, and what
// precedes it in any case. Whoever mends the row heals it, where it is tried again and
// where it is parked.
func TestBadRowIsOneEventsFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`ALTER TABLE events ALTER event_type DROP NOT NULL`)
	w.Append(300)
	aggregate := w.OfAggregate("a7")
	bad, behind := aggregate[2], aggregate[2:]
	w.Exec(`UPDATE events SET event_type = NULL WHERE global_position = $1`, bad)
	before := w.Number(`SELECT count(*) FROM events WHERE global_position < $1`, bad)

	projections := []orchestrator.Projection[orchestrator.Event]{
		testworld.Effects{Projection: "plain"}.Plain(w.DB), testworld.Effects{Projection: "transactional"}.Transactional(), testworld.Effects{Projection: "batched"}.Batched(),
		testworld.Effects{Projection: "again"}.Transactional(), testworld.Effects{Projection: "plain again"}.Plain(w.DB), testworld.Effects{Projection: "batched again"}.Batched(),
	}
	again := []string{"again", "plain again", "batched again"}
	cfg := testworld.Parking(w.Config(w.DB, "set"), testworld.Names...)
	cfg.Partitions = 4
	log := &testworld.Log{To: t.Output()}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	testworld.Run(t, cfg, projections...)
	second := cfg
	second.EventStore = w.Config(w.DB, "set").EventStore
	testworld.Run(t, second, projections...)

	for _, name := range testworld.Names {
		pgtest.Eventually(t, name+" has parked it, and what follows of its aggregate", func() bool {
			got, _ := w.Parked(name)
			return slices.Equal(got, behind)
		})
		pgtest.Eventually(t, name+" has handled all others", func() bool { return w.Handled(name) == 300-int64(len(behind)) })
		_, parked := w.Parked(name)
		if p := parked[0]; p.Attempts < 2 || !strings.Contains(p.Error, fmt.Sprintf("position %d", bad)) || !strings.Contains(p.Error, "NULL") {
			t.Errorf("%s has parked %+v", name, p)
		}
	}
	others := w.Number(`SELECT count(*) FROM events WHERE aggregate_id <> 'a7' OR global_position < $1`, bad)
	for _, name := range again {
		pgtest.Eventually(t, name+" has handled what precedes it", func() bool {
			return w.Number(`SELECT count(*) FROM effects WHERE projection = $1 AND position < $2`, name, bad) == before
		})
		if n := w.Handled(name); n > others {
			t.Errorf("%s has handled %d events, and %d are no part of what waits", name, n, others)
		}
	}
	log.Wait(t, "handler failed, will retry")

	w.Exec(`UPDATE events SET event_type = 'mended' WHERE global_position = $1`, bad)
	w.CaughtUp(again...)
	for _, name := range testworld.Names {
		w.Retry(name, ops.ParkedSelector{All: true})
	}
	w.CaughtUp(testworld.Names...)
	w.CheckEffects(append(again, testworld.Exact...)...)
}

// A bad row ends Run where a failure is to, and the error names it.
func TestBadRowStopsWhoStopsOnFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`ALTER TABLE events ALTER event_type DROP NOT NULL`)
	w.Append(100)
	w.Exec(`UPDATE events SET event_type = NULL WHERE global_position = 60`)
	cfg := w.Config(w.DB, "set")
	cfg.Failures = map[string]orchestrator.FailureRule{"p": {Policy: orchestrator.StopOnFailure, Attempts: 2}}
	err := testworld.Run(t, cfg, testworld.Effects{Projection: "p"}.Batched()).Failed()
	var failure *orchestrator.HandlerError
	if !errors.As(err, &failure) || failure.Position != 60 || failure.Attempts < 2 || !strings.Contains(err.Error(), "position 60") || !strings.Contains(err.Error(), "NULL") {
		t.Errorf("Run returned %v", err)
	}
	if n := w.Number(`SELECT count(*) FROM effects WHERE position < 60`); n != 59 || w.Handled("p") != 59 {
		t.Errorf("%d of the 59 events before it were handled, and %d in all", n, w.Handled("p"))
	}
}

// An event store of any kind may say so of an event, and what it wraps does not matter:
// a text that ends too early is no lost connection.
type halfStore struct{ countedStore }

func (s *halfStore) Read(ctx context.Context, r orchestrator.ReadRequest) (orchestrator.Page[orchestrator.Event], error) {
	page, err := s.countedStore.Read(ctx, r)
	for i := range page.Records {
		if page.Records[i].Position == 17 {
			page.Records[i].Err = fmt.Errorf("decode: %w", io.ErrUnexpectedEOF)
		}
	}
	return page, err
}

func TestEventStoreSaysThatAnEventIsUnreadable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := testworld.Parking(w.Config(w.DB, "set"), testworld.Names...)
	cfg.EventStore = &halfStore{countedStore{n: 100}}
	testworld.Run(t, cfg, w.All(w.DB, nil)...)
	for _, name := range testworld.Names {
		pgtest.Eventually(t, name+" has parked two, the one and the one behind it", func() bool {
			got, _ := w.Parked(name)
			return slices.Equal(got, []int64{17, 67})
		})
		pgtest.Eventually(t, name+" has handled all others", func() bool {
			return w.Number(`SELECT min(position) FROM orchestrator_checkpoints WHERE projection = $1`, name) == 100
		})
	}
}
