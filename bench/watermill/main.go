// Command watermill compares the library with github.com/ThreeDotsLabs/watermill-sql, an
// alternative for Go programs that consume events from PostgreSQL. Both get the same events of 1
// KB in batches of 100: one subscriber of one consumer group, and one worker. The handler only
// checks that each event comes once and in order.
//
//	cd bench/watermill && go run .
//
// The two take turns on the same server, over lib/pq, with the same pool. Each reads its own
// table: watermill's events are published with its own Publisher, 100 in a transaction, with the
// payload as bytes. The time counts from the first event to the last, without the time to
// subscribe or to join.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/lib/pq" // the driver "postgres"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

func main() {
	quick := flag.Bool("quick", false, "fewer repetitions")
	asJSON := flag.Bool("json", false, "print the result as JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	repetitions := 3
	if *quick {
		repetitions = 1
	}
	result, err := measure(ctx, eventCount, repetitions)
	if err == nil {
		err = result.report(os.Stdout, *asJSON)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "watermill:", err)
		os.Exit(1)
	}
}

const (
	eventCount = 50_000
	aggregates = 1000
	batchSize  = 100
	goal       = 20 // times as fast
)

// A result has a rate, in events per second, for each repetition of each contender.
type result struct {
	Watermill []float64 `json:"watermill"`
	Library   []float64 `json:"library"`
	Ratio     []float64 `json:"ratio"`
	Goal      float64   `json:"goal"`
	Met       bool      `json:"met"`
}

func (r *result) report(out io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	met := map[bool]string{true: "yes", false: "no"}[r.Met]
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "row\tvalue\trange\tn\tratio\trange\tgoal\tmet\t")
	fmt.Fprintf(t, "beside/watermill-100\t%.0f events/s\t%.0f … %.0f\t%d\t\t\t\t\t\n",
		median(r.Watermill), slices.Min(r.Watermill), slices.Max(r.Watermill), len(r.Watermill))
	fmt.Fprintf(t, "beside/library-100\t%.0f events/s\t%.0f … %.0f\t%d\t%.1f\t%.1f … %.1f\t≥ %g\t%s\t\n",
		median(r.Library), slices.Min(r.Library), slices.Max(r.Library), len(r.Library),
		median(r.Ratio), slices.Min(r.Ratio), slices.Max(r.Ratio), r.Goal, met)
	return t.Flush()
}

func median(samples []float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// measure lets the two take turns.
func measure(ctx context.Context, events, repetitions int) (_ *result, err error) {
	server, err := embedpg.Start(ctx, embedpg.Options{Fsync: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	url, drop, err := server.CreateDatabase(ctx, fmt.Sprintf("beside_%d", time.Now().UnixNano()))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, drop(context.WithoutCancel(ctx))) }()
	db, err := sql.Open("postgres", url)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	db.SetMaxOpenConns(20)
	db.SetMaxIdleConns(20)
	if err := fill(ctx, db, events); err != nil {
		return nil, err
	}
	r := &result{Goal: goal}
	for n := range repetitions {
		theirs, err := subscribe(ctx, db, fmt.Sprintf("group%d", n), events)
		if err != nil {
			return nil, fmt.Errorf("watermill: %w", err)
		}
		ours, err := work(ctx, db, fmt.Sprintf("set%d", n), events)
		if err != nil {
			return nil, fmt.Errorf("the library: %w", err)
		}
		r.Watermill, r.Library, r.Ratio = append(r.Watermill, theirs), append(r.Library, ours), append(r.Ratio, ours/theirs)
	}
	r.Met = median(r.Ratio) >= goal
	return r, nil
}

// appended appends the events for the library: 1 KB each, one to each aggregate in turn.
const appended = `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload, correlation_id, metadata)
SELECT 'bench', 'thing', 'a' || i % $2, i / $2 + 1,
       gen_random_uuid(), 'happened', decode(repeat(md5(i::text), 64), 'hex'), md5(i::text), '{"user": "u1"}'
  FROM generate_series(0, $1::bigint - 1) AS i`

const topic = "events"

func schema() watermillsql.DefaultPostgreSQLSchema {
	return watermillsql.DefaultPostgreSQLSchema{
		SubscribeBatchSize:  batchSize,
		GeneratePayloadType: func(string) string { return "BYTEA" },
	}
}

// fill appends the events for the library and publishes the same events for watermill.
func fill(ctx context.Context, db *sql.DB, events int) error {
	if err := orchestrator.RunMigrations(db); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, eventtable.Layout); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, appended, events, aggregates); err != nil {
		return err
	}
	publisher, err := watermillsql.NewPublisher(watermillsql.BeginnerFromStdSQL(db), watermillsql.PublisherConfig{
		SchemaAdapter: schema(), AutoInitializeSchema: true,
	}, nil)
	if err != nil {
		return err
	}
	defer publisher.Close()
	rows, err := db.QueryContext(ctx, `
SELECT event_id, aggregate_id, aggregate_version, event_type, correlation_id, payload FROM events ORDER BY global_position`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var some []*message.Message
	publish := func() error {
		err := publisher.Publish(topic, some...)
		some = nil
		return err
	}
	for rows.Next() {
		var id, aggregate, version, kind, correlation string
		var payload []byte
		if err := rows.Scan(&id, &aggregate, &version, &kind, &correlation, &payload); err != nil {
			return err
		}
		m := message.NewMessage(id, payload)
		m.Metadata = message.Metadata{"aggregate": aggregate, "version": version, "type": kind, "correlation": correlation, "user": "u1"}
		if some = append(some, m); len(some) == batchSize {
			if err := publish(); err != nil {
				return err
			}
		}
	}
	if len(some) > 0 {
		err = publish()
	}
	if err = errors.Join(err, rows.Err()); err != nil {
		return err
	}
	for _, q := range []string{`VACUUM ANALYZE events`, `VACUUM ANALYZE "watermill_` + topic + `"`, `CHECKPOINT`} {
		if _, err := db.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("%s: %w", q, err)
		}
	}
	return nil
}

// A ledger checks that each aggregate's events come as 1, 2, 3 …, and computes the rate.
type ledger struct {
	want, count int
	last        [aggregates]int64
	first, end  time.Time
}

func newLedger(want int) *ledger { return &ledger{want: want} }

// note returns done with the last event.
func (l *ledger) note(aggregate string, version int64) (done bool, err error) {
	n, err := strconv.Atoi(strings.TrimPrefix(aggregate, "a"))
	if err != nil || n >= len(l.last) || l.last[n]+1 != version {
		return false, fmt.Errorf("event lost, repeated or out of order: version %d of aggregate %s does not follow its predecessor", version, aggregate)
	}
	l.last[n] = version
	if l.count++; l.count == 1 {
		l.first = time.Now()
	}
	if l.count == l.want {
		l.end = time.Now()
	}
	return l.count == l.want, nil
}

func (l *ledger) rate() float64 { return float64(l.want-1) / l.end.Sub(l.first).Seconds() }

// subscribe is watermill's turn.
func subscribe(ctx context.Context, db *sql.DB, group string, events int) (rate float64, err error) {
	s, err := watermillsql.NewSubscriber(watermillsql.BeginnerFromStdSQL(db), watermillsql.SubscriberConfig{
		ConsumerGroup: group, SchemaAdapter: schema(), OffsetsAdapter: watermillsql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true,
	}, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	messages, err := s.Subscribe(ctx, topic)
	if err != nil {
		return 0, err
	}
	l := newLedger(events)
	for m := range messages {
		version, err := strconv.ParseInt(m.Metadata.Get("version"), 10, 64)
		if err != nil {
			return 0, err
		}
		done, err := l.note(m.Metadata.Get("aggregate"), version)
		if err != nil {
			return 0, err
		}
		m.Ack()
		if done {
			return l.rate(), nil
		}
	}
	return 0, errors.Join(errors.New("the subscriber has ended"), ctx.Err())
}

// work is the library's turn.
func work(ctx context.Context, db *sql.DB, set string, events int) (float64, error) {
	table, err := orchestrator.NewEventTable(db, "")
	if err != nil {
		return 0, err
	}
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB: db, EventStore: table, ReplicaSet: orchestrator.ReplicaSetName(set), BatchSize: batchSize, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return 0, err
	}
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	checked := &checking{name: set, ledger: newLedger(events), leave: leave}
	if err := o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{checked}); err != nil {
		return 0, err
	}
	if err := context.Cause(ctx); !errors.Is(err, errDone) {
		return 0, err
	}
	return checked.ledger.rate(), nil
}

var errDone = errors.New("all events are handled")

// checking passes its events to a ledger, and leaves after the last one.
type checking struct {
	name   string
	ledger *ledger
	leave  context.CancelCauseFunc
}

func (c *checking) Name() string { return c.name }

func (c *checking) Handle(_ context.Context, e orchestrator.Event) error {
	done, err := c.ledger.note(e.AggregateID, e.AggregateVersion)
	if err != nil {
		c.leave(err)
	} else if done {
		c.leave(errDone)
	}
	return err
}
