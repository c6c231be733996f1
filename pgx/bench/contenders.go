package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/lib/pq" // the driver "postgres", for comparison

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	orchestratorpgx "github.com/getpup/pupsourcing-orchestrator/pgx"
)

// A stream is a database with events.
type stream struct {
	events  int64
	url     string
	pool    *pgxpool.Pool
	pq      *sql.DB
	drop    func(context.Context) error
	workers int
}

// fill appends events of 1 KB, one to each of 1000 aggregates in turn.
const fill = `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload, correlation_id, metadata)
SELECT 'bench', 'thing', 'a' || i % 1000, i / 1000 + 1,
       gen_random_uuid(), 'happened', decode(repeat(md5(i::text), 64), 'hex'), md5(i::text), '{"user": "u1"}'
  FROM generate_series(0, $1::bigint - 1) AS i`

const poolSize = 20

func newStream(ctx context.Context, server *embedpg.Server, events int64) (*stream, error) {
	s := &stream{events: events}
	var err error
	if s.url, s.drop, err = server.CreateDatabase(ctx, fmt.Sprintf("bench_%d", time.Now().UnixNano())); err != nil {
		return nil, err
	}
	u, err := url.Parse(s.url)
	if err != nil {
		return nil, err
	}
	if s.pq, err = sql.Open("postgres", s.url); err != nil {
		return nil, err
	}
	q := u.Query()
	q.Set("pool_max_conns", fmt.Sprint(poolSize))
	u.RawQuery = q.Encode()
	if s.pool, err = pgxpool.New(ctx, u.String()); err != nil {
		return nil, err
	}
	if err := orchestrator.Migrate(ctx, s.pq); err != nil {
		return nil, err
	}
	if _, err := s.pq.ExecContext(ctx, eventtable.Layout); err != nil {
		return nil, err
	}
	if _, err := s.pq.ExecContext(ctx, fill, events); err != nil {
		return nil, err
	}
	for _, q := range []string{`VACUUM ANALYZE events`, `CHECKPOINT`} {
		if _, err := s.pq.ExecContext(ctx, q); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *stream) close(ctx context.Context) error {
	s.pool.Close()
	_ = s.pq.Close()
	return s.drop(ctx)
}

// A contender reads the stream and returns its rate in events per second.
type contender struct {
	name               string
	run                func(context.Context, *stream) (float64, error)
	goalFloor, goalRaw float64 // 0: none
}

const (
	floor     = "lib/pq, bare loop"
	rawValues = "pgx, raw values"
	pageSize  = 1000
)

func contenders() []contender {
	return []contender{
		{name: floor, run: pqLoop},
		{name: "pgx, bare loop", run: pgxLoop},
		{name: rawValues, run: rawLoop},
		{name: "COPY … BINARY, thrown away", run: copyOut},
		{name: "table", run: tableLoop},
		{name: "orchestrator", run: worker, goalFloor: 2.5, goalRaw: 0.8},
		{name: "orchestrator over lib/pq", run: pqWorker},
	}
}

const columns = `global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
       event_version, payload, trace_id, correlation_id, causation_id, metadata, created_at`

const selectEvents = `SELECT ` + columns + ` FROM events WHERE global_position > $1 ORDER BY global_position LIMIT $2`

func fields(e *orchestrator.Event) []any {
	return []any{&e.GlobalPosition, &e.BoundedContext, &e.AggregateType, &e.AggregateID, &e.AggregateVersion,
		&e.EventID, &e.EventType, &e.EventVersion, &e.Payload, &e.TraceID, &e.CorrelationID, &e.CausationID, &e.Metadata, &e.CreatedAt}
}

// A tally checks that events come one after the other. It measures the time from the first event
// to the first event of the last page of the largest size: all contenders have read and handled
// the events between.
type tally struct {
	want, next  int64
	first, last time.Time
	done        chan struct{}
	wrong       error
}

// largestPage is the page size of the library.
const largestPage = 2000

func newTally(s *stream) *tally { return &tally{want: s.events, next: 1, done: make(chan struct{})} }

func (t *tally) note(position int64) {
	if position != t.next && t.wrong == nil {
		t.wrong = fmt.Errorf("got event %d, want %d", position, t.next)
	}
	switch t.next {
	case 1:
		t.first = time.Now()
	case t.want - largestPage + 1:
		t.last = time.Now()
	case t.want:
		close(t.done)
	}
	t.next++
}

func (t *tally) rate() (float64, error) {
	if t.wrong == nil && t.next <= t.want {
		t.wrong = fmt.Errorf("got %d events, want %d", t.next-1, t.want)
	}
	return float64(t.want-largestPage) / t.last.Sub(t.first).Seconds(), t.wrong
}

// paged reads page by page.
func paged(s *stream, read func(after int64, note func(int64)) error) (float64, error) {
	t := newTally(s)
	for t.next <= t.want && t.wrong == nil {
		before := t.next
		if err := read(t.next-1, t.note); err != nil {
			return 0, err
		}
		if t.next == before {
			break
		}
	}
	return t.rate()
}

func pqLoop(ctx context.Context, s *stream) (float64, error) {
	conn, err := s.pq.Conn(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	page := make([]orchestrator.Event, 0, pageSize)
	return paged(s, func(after int64, note func(int64)) error {
		rows, err := conn.QueryContext(ctx, selectEvents, after, pageSize)
		if err != nil {
			return err
		}
		defer rows.Close()
		page = page[:0]
		for rows.Next() {
			var e orchestrator.Event
			if err := rows.Scan(fields(&e)...); err != nil {
				return err
			}
			page = append(page, e)
		}
		for i := range page {
			note(page[i].GlobalPosition)
		}
		return rows.Err()
	})
}

func pgxLoop(ctx context.Context, s *stream) (float64, error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	page := make([]orchestrator.Event, 0, pageSize)
	return paged(s, func(after int64, note func(int64)) error {
		rows, err := conn.Query(ctx, selectEvents, after, pageSize)
		if err != nil {
			return err
		}
		defer rows.Close()
		page = page[:0]
		for rows.Next() {
			var e orchestrator.Event
			if err := rows.Scan(fields(&e)...); err != nil {
				return err
			}
			page = append(page, e)
		}
		for i := range page {
			note(page[i].GlobalPosition)
		}
		return rows.Err()
	})
}

func rawLoop(ctx context.Context, s *stream) (float64, error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	return paged(s, func(after int64, note func(int64)) error {
		rows, err := conn.Query(ctx, selectEvents, after, pageSize)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var position int64
			for _, b := range rows.RawValues()[0] {
				position = position<<8 | int64(b)
			}
			note(position)
		}
		return rows.Err()
	})
}

// copyOut measures the most that the server can deliver.
func copyOut(ctx context.Context, s *stream) (float64, error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	began := time.Now()
	_, err = conn.Conn().PgConn().CopyTo(ctx, io.Discard, `COPY (SELECT `+columns+` FROM events ORDER BY global_position) TO STDOUT BINARY`)
	return float64(s.events) / time.Since(began).Seconds(), err
}

func tableLoop(ctx context.Context, s *stream) (float64, error) {
	events, err := orchestratorpgx.NewEventTable(s.pool, "")
	if err != nil {
		return 0, err
	}
	return paged(s, func(after int64, note func(int64)) error {
		page, err := events.Read(ctx, orchestrator.ReadRequest{After: after, Limit: pageSize})
		for i := range page.Records {
			note(page.Records[i].Event.GlobalPosition)
		}
		return err
	})
}

func worker(ctx context.Context, s *stream) (float64, error) {
	cfg, err := orchestratorpgx.Config(s.pool, s.fresh())
	if err != nil {
		return 0, err
	}
	return handled(ctx, s, cfg)
}

func pqWorker(ctx context.Context, s *stream) (float64, error) {
	events, err := orchestrator.NewEventTable(s.pq, "")
	if err != nil {
		return 0, err
	}
	return handled(ctx, s, orchestrator.Config[orchestrator.Event]{DB: s.pq, EventStore: events, ReplicaSet: s.fresh()})
}

func (s *stream) fresh() orchestrator.ReplicaSetName {
	s.workers++
	return orchestrator.ReplicaSetName(fmt.Sprintf("set%d", s.workers))
}

// handled lets one worker pass all events to a projection that does nothing.
func handled(ctx context.Context, s *stream, cfg orchestrator.Config[orchestrator.Event]) (float64, error) {
	cfg.BatchSize, cfg.JoinWindow, cfg.Logger = 1000, time.Millisecond, slog.New(slog.DiscardHandler)
	o, err := orchestrator.New(cfg)
	if err != nil {
		return 0, err
	}
	t := newTally(s)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{
			orchestrator.Plain("nothing of "+string(cfg.ReplicaSet), func(_ context.Context, e orchestrator.Event) error {
				t.note(e.GlobalPosition)
				return t.wrong
			}),
		})
	}()
	select {
	case <-t.done:
		cancel()
		err = <-ended
	case err = <-ended:
	}
	if err != nil {
		return 0, err
	}
	return t.rate()
}
