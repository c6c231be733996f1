package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// failing is a hook that fails at what is poison, until it is mended.
func failing(mended *atomic.Bool, poison func(e orchestrator.Event) bool) func(context.Context, orchestrator.Event) error {
	return func(_ context.Context, e orchestrator.Event) error {
		if !mended.Load() && poison(e) {
			return fmt.Errorf("can't handle %s\x00\xff", e.AggregateID)
		}
		return nil
	}
}

// ofAggregate returns the positions of an aggregate's events.
func (w *world) ofAggregate(aggregate string) []int64 {
	w.t.Helper()
	return w.positions(`SELECT global_position FROM events WHERE aggregate_id = $1 ORDER BY 1`, aggregate)
}

func (w *world) positions(query string, args ...any) (out []int64) {
	w.t.Helper()
	rows, err := w.db.QueryContext(w.t.Context(), query, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var p int64
		if err := rows.Scan(&p); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, p)
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	return out
}

// parked returns the positions that a projection has parked.
func (w *world) parked(projection string) (positions []int64, events []ops.ParkedEvent) {
	w.t.Helper()
	events, err := ops.Parked(w.t.Context(), w.db, projection, 1000)
	if err != nil && !errors.Is(err, ops.ErrNoProjection) { // nobody has joined yet
		w.t.Fatal(err)
	}
	for _, e := range events {
		positions = append(positions, e.Position)
	}
	return positions, events
}

func (w *world) retry(projection string, which ops.ParkedSelector) int {
	w.t.Helper()
	n, err := ops.RetryParked(w.t.Context(), w.db, projection, which)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// parking has every projection park after two failures.
func parking(cfg orchestrator.Config[orchestrator.Event], names ...string) orchestrator.Config[orchestrator.Event] {
	cfg.Failures = map[string]orchestrator.FailureRule{}
	for _, name := range names {
		cfg.Failures[name] = orchestrator.FailureRule{Policy: orchestrator.ParkEvents, Attempts: 2}
	}
	return cfg
}

// Of each kind of projection, the handler fails at one event. That is parked, and
// with it what comes later of its aggregate, before and after workers join and
// leave; all others go on. When the handler is mended, everything is retried, in
// order, and each event has had its effect once.
func TestParkAcrossRebalances(t *testing.T) {
	w := newWorld(t)
	var mended atomic.Bool
	w.append(500)
	poison := w.ofAggregate("a7")[2]
	hook := failing(&mended, func(e orchestrator.Event) bool { return e.GlobalPosition == poison })
	projections := func() []orchestrator.Projection[orchestrator.Event] {
		return []orchestrator.Projection[orchestrator.Event]{
			plain{effects{name: "plain", hook: hook}, w.db},
			transactional{effects{name: "transactional", hook: hook}},
			batched{effects{name: "batched", hook: hook}},
		}
	}
	cfg := parking(w.config(w.db, "set"), names...)

	// settled waits until every event is handled or parked, which are those of
	// the aggregate from the poisoned one on.
	settled := func() {
		t.Helper()
		aggregate := w.ofAggregate("a7")
		want := aggregate[slices.Index(aggregate, poison):]
		for _, name := range names {
			eventually(t, "all but the parked events are handled by "+name, func() bool {
				return w.handled(name)+int64(len(want)) == w.number(`SELECT count(*) FROM events`)
			})
			var got []int64
			var events []ops.ParkedEvent
			eventually(t, "those are parked by "+name, func() bool {
				got, events = w.parked(name)
				return len(got) == len(want)
			})
			if !slices.Equal(got, want) {
				t.Errorf("%s has parked %v, want %v", name, got, want)
			}
			for i, e := range events {
				if behind := i > 0; e.AggregateID != "a7" || behind != (e.Attempts == 0 && e.Error == "") || e.ParkedAt.IsZero() {
					t.Errorf("%s has parked %+v", name, e)
				}
			}
			if e := events[0]; e.Attempts < 2 || !strings.HasPrefix(e.Error, "can't handle a7") {
				t.Errorf("%s has parked %+v first", name, e)
			}
		}
	}
	first := run(t, cfg, projections()...)
	settled()
	second := run(t, cfg, projections()...)
	third := run(t, cfg, projections()...)
	w.active("set", 3)
	w.append(500)
	settled()
	first.stop()
	w.append(500)
	settled()

	mended.Store(true)
	for _, name := range names {
		if n := w.retry(name, ops.ParkedSelector{AggregateID: "a7"}); n == 0 {
			t.Errorf("nothing of %s is to be retried", name)
		}
	}
	w.append(500)
	w.caughtUp(names...)
	for _, name := range names {
		eventually(t, name+" has nothing parked any more", func() bool {
			got, _ := w.parked(name)
			return len(got) == 0
		})
	}
	second.stop()
	third.stop()
	w.checkEffects(names...)
}

// A retry that fails again leaves its event where it is, without the request; the
// later ones wait. A retry whose COMMIT is not heard of has its effect once.
func TestRetryParked(t *testing.T) {
	for _, happened := range []bool{true, false} {
		t.Run(fmt.Sprintf("happened=%t", happened), func(t *testing.T) {
			w := newWorld(t)
			db, f := faulty(t, w.url)
			var mended, retrying atomic.Bool
			var lost atomic.Int64
			f.onCommit(func(do func() error) error {
				if !retrying.Load() || lost.Add(1)%3 == 0 {
					return do()
				}
				if happened {
					if err := do(); err != nil {
						return err
					}
				}
				return errLost
			})
			w.append(200)
			hook := failing(&mended, func(e orchestrator.Event) bool { return e.AggregateID == "a3" })
			cfg := parking(w.config(db, "set"), exact...)
			cfg.EventStore = w.config(w.db, "set").EventStore
			r := run(t, cfg, transactional{effects{name: "transactional", hook: hook}}, batched{effects{name: "batched", hook: hook}})
			events := w.ofAggregate("a3")
			for _, name := range exact {
				eventually(t, "all of them are parked", func() bool {
					got, _ := w.parked(name)
					return slices.Equal(got, events)
				})
				// Not the first: it waits, and nothing comes of it. The first: it fails.
				_, before := w.parked(name)
				w.retry(name, ops.ParkedSelector{Positions: events[1:2]})
				w.retry(name, ops.ParkedSelector{Positions: events[:1]})
				eventually(t, "the first has failed again", func() bool {
					_, all := w.parked(name)
					return all[0].Attempts == before[0].Attempts+1 && all[0].Request == ""
				})
				if _, all := w.parked(name); len(all) != len(events) || all[1].Request != "retry" || all[1].Attempts != 0 {
					t.Errorf("%s has parked %+v", name, all)
				}
			}
			mended.Store(true)
			retrying.Store(true)
			for _, name := range exact {
				if n := w.retry(name, ops.ParkedSelector{All: true}); n != len(events) {
					t.Errorf("%d events are to be retried, want %d", n, len(events))
				}
			}
			w.caughtUp(exact...)
			for _, name := range exact {
				eventually(t, "nothing is parked", func() bool {
					got, _ := w.parked(name)
					return len(got) == 0
				})
			}
			r.stop()
			w.checkEffects(exact...)
			if lost.Load() == 0 {
				t.Error("no COMMIT was lost")
			}
		})
	}
}

// What is discarded is never handled, and what is not waits until it is asked for.
func TestDiscardParked(t *testing.T) {
	w := newWorld(t)
	w.append(200)
	var mended atomic.Bool
	hook := failing(&mended, func(e orchestrator.Event) bool { return e.AggregateID == "a3" })
	r := run(t, parking(w.config(w.db, "set"), "plain"), plain{effects{name: "plain", hook: hook}, w.db})
	events := w.ofAggregate("a3")
	eventually(t, "all of them are parked", func() bool {
		got, _ := w.parked("plain")
		return slices.Equal(got, events)
	})
	mended.Store(true)
	if n, err := ops.DiscardParked(t.Context(), w.db, "plain", ops.ParkedSelector{Positions: events[:2]}); n != 2 || err != nil {
		t.Fatalf("%d events are to be discarded, %v", n, err)
	}
	eventually(t, "two are gone", func() bool {
		got, _ := w.parked("plain")
		return slices.Equal(got, events[2:])
	})
	w.retry("plain", ops.ParkedSelector{AggregateID: "a3"})
	eventually(t, "none is left", func() bool {
		got, _ := w.parked("plain")
		return len(got) == 0
	})
	r.stop()
	if got := w.positions(`SELECT position FROM effects WHERE aggregate = 'a3' ORDER BY id`); !slices.Equal(got, events[2:]) {
		t.Errorf("of the aggregate %v were handled, want %v", got, events[2:])
	}
}

// An event that is no longer in the store stays parked, with an error that says so.
func TestRetryParkedEventThatIsGone(t *testing.T) {
	w := newWorld(t)
	w.append(100)
	var mended atomic.Bool
	hook := failing(&mended, func(e orchestrator.Event) bool { return e.AggregateID == "a3" })
	r := run(t, parking(w.config(w.db, "set"), "transactional"), transactional{effects{name: "transactional", hook: hook}})
	events := w.ofAggregate("a3")
	eventually(t, "all of them are parked", func() bool {
		got, _ := w.parked("transactional")
		return slices.Equal(got, events)
	})
	mended.Store(true)
	w.exec(`DELETE FROM events WHERE global_position = $1`, events[0])
	w.retry("transactional", ops.ParkedSelector{Positions: events[:1]})
	eventually(t, "the row says that it is gone", func() bool {
		_, all := w.parked("transactional")
		return strings.Contains(all[0].Error, "no such event") && all[0].Request == ""
	})
	r.stop()
}

// Beyond the bound the lane waits, until there is room.
func TestParkedBound(t *testing.T) {
	w := newWorld(t)
	w.append(200)
	var mended atomic.Bool
	hook := failing(&mended, func(e orchestrator.Event) bool { return e.AggregateID == "a3" || e.AggregateID == "a4" })
	cfg := parking(w.config(w.db, "set"), "transactional")
	log := &watchedLog{to: testWriter{t}}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	cfg.Failures["transactional"] = orchestrator.FailureRule{Policy: orchestrator.ParkEvents, Attempts: 1, MaxParked: 3}
	r := run(t, cfg, transactional{effects{name: "transactional", hook: hook}})
	log.wait(t, "too many events parked")
	got, _ := w.parked("transactional")
	if len(got) != 3 {
		t.Errorf("%v are parked, want three", got)
	}
	before := w.handled("transactional")
	if stands := w.number(`SELECT position FROM orchestrator_checkpoints`); before != stands-3 {
		t.Errorf("%d events are handled up to %d, with three parked", before, stands)
	}
	mended.Store(true)
	w.retry("transactional", ops.ParkedSelector{All: true})
	eventually(t, "all are handled", func() bool {
		if got, _ := w.parked("transactional"); len(got) > 0 {
			w.retry("transactional", ops.ParkedSelector{All: true})
		}
		return w.handled("transactional") == 200
	})
	r.stop()
	w.checkEffects("transactional")
}

// A halted lane stays where it is, and others go on. A new generation tries again.
func TestHaltLane(t *testing.T) {
	w := newWorld(t)
	w.append(200)
	var mended atomic.Bool
	poison := w.ofAggregate("a3")[0]
	hook := failing(&mended, func(e orchestrator.Event) bool { return e.GlobalPosition == poison })
	cfg := w.config(w.db, "set")
	log := &watchedLog{to: testWriter{t}}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	cfg.Failures = map[string]orchestrator.FailureRule{"transactional": {Policy: orchestrator.HaltLane, Attempts: 3}}
	projections := []orchestrator.Projection[orchestrator.Event]{
		transactional{effects{name: "transactional", hook: hook}}, batched{effects{name: "batched"}},
	}
	first := run(t, cfg, projections...)
	log.wait(t, "lane halted")
	w.caughtUp("batched")
	if got := w.handled("transactional"); got != poison-1 {
		t.Errorf("%d events are handled, want all before %d", got, poison)
	}
	mended.Store(true)
	second := run(t, cfg, projections...)
	w.caughtUp(exact...)
	first.stop()
	second.stop()
	w.checkEffects(exact...)
}

// What comes later of a parked aggregate waits also under a policy that parks
// nothing.
func TestParkedUnderAnotherPolicy(t *testing.T) {
	w := newWorld(t)
	w.append(200)
	var mended atomic.Bool
	hook := failing(&mended, func(e orchestrator.Event) bool { return e.AggregateID == "a3" })
	cfg := parking(w.config(w.db, "set"), "transactional")
	p := transactional{effects{name: "transactional", hook: hook}}
	r := run(t, cfg, p)
	eventually(t, "they are parked", func() bool {
		got, _ := w.parked("transactional")
		return slices.Equal(got, w.ofAggregate("a3"))
	})
	r.stop()
	mended.Store(true)
	cfg.Failures = nil
	w.append(200)
	r = run(t, cfg, p)
	eventually(t, "they are parked", func() bool {
		got, _ := w.parked("transactional")
		return slices.Equal(got, w.ofAggregate("a3"))
	})
	w.retry("transactional", ops.ParkedSelector{All: true})
	w.caughtUp("transactional")
	r.stop()
	w.checkEffects("transactional")
}

func TestParkedErrors(t *testing.T) {
	w := newWorld(t)
	r := run(t, w.config(w.db, "set"), transactional{effects{name: "p"}})
	w.active("set", 1)
	r.stop()
	for _, tt := range []struct {
		projection string
		which      ops.ParkedSelector
		want       error
	}{
		{"q", ops.ParkedSelector{All: true}, ops.ErrNoProjection},
		{"q", ops.ParkedSelector{Positions: []int64{1}}, ops.ErrNoProjection},
		{"p", ops.ParkedSelector{Positions: []int64{1}}, ops.ErrNotParked},
		{"p", ops.ParkedSelector{AggregateID: "a"}, ops.ErrNotParked},
		{"p", ops.ParkedSelector{All: true}, nil},
		{"p", ops.ParkedSelector{}, orchestrator.ErrInvalidConfig},
		{"p", ops.ParkedSelector{AggregateID: "a", All: true}, orchestrator.ErrInvalidConfig},
	} {
		for _, ask := range []func(context.Context, *sql.DB, string, ops.ParkedSelector, ...orchestrator.TablesOption) (int, error){ops.RetryParked, ops.DiscardParked} {
			if n, err := ask(t.Context(), w.db, tt.projection, tt.which); n != 0 || !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("of %s, %s: %d, %v, want %v", tt.projection, tt.which, n, err, tt.want)
			}
		}
	}
	if _, err := ops.Parked(t.Context(), w.db, "q", 1); !errors.Is(err, ops.ErrNoProjection) {
		t.Errorf("what q has parked: %v", err)
	}
	if all, err := ops.Parked(t.Context(), w.db, "p", 1); len(all) != 0 || err != nil {
		t.Errorf("what p has parked: %v, %v", all, err)
	}
	cfg := w.config(w.db, "set")
	cfg.Failures = map[string]orchestrator.FailureRule{"typo": {}}
	err := run(t, cfg, transactional{effects{name: "p"}}).failed()
	if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(err.Error(), `"typo"`) {
		t.Errorf("a rule for a projection that there is not: %v", err)
	}
}
