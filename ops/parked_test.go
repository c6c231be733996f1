package ops_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// If a retry fails again, the event stays parked without the request, and later ones wait. A
// retry whose COMMIT gets no answer has its effect once.
func TestRetryParked(t *testing.T) {
	t.Parallel()
	for _, happened := range []bool{true, false} {
		t.Run(fmt.Sprintf("happened=%t", happened), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			db, f := testworld.Faulty(t, w.URL)
			var mended, retrying atomic.Bool
			var lost atomic.Int64
			f.OnCommit(func(do func() error) error {
				if !retrying.Load() || lost.Add(1)%3 == 0 {
					return do()
				}
				if happened {
					if err := do(); err != nil {
						return err
					}
				}
				return testworld.ErrLost
			})
			w.Append(200)
			hook := testworld.Failing(&mended, func(e orchestrator.Event) bool { return e.AggregateID == "a3" })
			cfg := testworld.Parking(w.Config(db, "set"), testworld.Exact...)
			cfg.EventStore = w.Config(w.DB, "set").EventStore
			r := testworld.Run(t, cfg, testworld.Effects{Projection: "transactional", Hook: hook}.Transactional(), testworld.Effects{Projection: "batched", Hook: hook}.Batched())
			events := w.OfAggregate("a3")
			for _, name := range testworld.Exact {
				pgtest.Eventually(t, "all of them are parked", func() bool {
					got, _ := w.Parked(name)
					return slices.Equal(got, events)
				})
				// Not the first event of its aggregate: it waits, and the request has no effect.
				// The first one: it fails.
				_, before := w.Parked(name)
				w.Retry(name, ops.ParkedSelector{Positions: events[1:2]})
				w.Retry(name, ops.ParkedSelector{Positions: events[:1]})
				pgtest.Eventually(t, "the first has failed again", func() bool {
					_, all := w.Parked(name)
					return all[0].Attempts == before[0].Attempts+1 && all[0].Request == ""
				})
				if _, all := w.Parked(name); len(all) != len(events) || all[1].Request != "retry" || all[1].Attempts != 0 {
					t.Errorf("%s has parked %+v", name, all)
				}
			}
			mended.Store(true)
			retrying.Store(true)
			for _, name := range testworld.Exact {
				if n := w.Retry(name, ops.ParkedSelector{All: true}); n != len(events) {
					t.Errorf("%d events are to be retried, want %d", n, len(events))
				}
			}
			w.CaughtUp(testworld.Exact...)
			for _, name := range testworld.Exact {
				pgtest.Eventually(t, "nothing is parked", func() bool {
					got, _ := w.Parked(name)
					return len(got) == 0
				})
			}
			r.Stop()
			w.CheckEffects(testworld.Exact...)
			if lost.Load() == 0 {
				t.Error("no COMMIT was lost")
			}
		})
	}
}

// A discarded event is never handled. Other parked events wait for a request.
func TestDiscardParked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(200)
	var mended atomic.Bool
	hook := testworld.Failing(&mended, func(e orchestrator.Event) bool { return e.AggregateID == "a3" })
	r := testworld.Run(t, testworld.Parking(w.Config(w.DB, "set"), "plain"), testworld.Effects{Projection: "plain", Hook: hook}.Plain(w.DB))
	events := w.OfAggregate("a3")
	pgtest.Eventually(t, "all of them are parked", func() bool {
		got, _ := w.Parked("plain")
		return slices.Equal(got, events)
	})
	mended.Store(true)
	if n, err := ops.DiscardParked(t.Context(), w.DB, "plain", ops.ParkedSelector{Positions: events[:2]}); n != 2 || err != nil {
		t.Fatalf("%d events are to be discarded, %v", n, err)
	}
	pgtest.Eventually(t, "two are gone", func() bool {
		got, _ := w.Parked("plain")
		return slices.Equal(got, events[2:])
	})
	w.Retry("plain", ops.ParkedSelector{AggregateID: "a3"})
	pgtest.Eventually(t, "none is left", func() bool {
		got, _ := w.Parked("plain")
		return len(got) == 0
	})
	r.Stop()
	if got := w.Positions(`SELECT position FROM effects WHERE aggregate = 'a3' ORDER BY id`); !slices.Equal(got, events[2:]) {
		t.Errorf("of the aggregate %v were handled, want %v", got, events[2:])
	}
}

// If an event is no longer in the store, its row stays parked, with an error that says so.
func TestRetryParkedEventThatIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(100)
	var mended atomic.Bool
	hook := testworld.Failing(&mended, func(e orchestrator.Event) bool { return e.AggregateID == "a3" })
	r := testworld.Run(t, testworld.Parking(w.Config(w.DB, "set"), "transactional"), testworld.Effects{Projection: "transactional", Hook: hook}.Transactional())
	events := w.OfAggregate("a3")
	pgtest.Eventually(t, "all of them are parked", func() bool {
		got, _ := w.Parked("transactional")
		return slices.Equal(got, events)
	})
	mended.Store(true)
	w.Exec(`DELETE FROM events WHERE global_position = $1`, events[0])
	w.Retry("transactional", ops.ParkedSelector{Positions: events[:1]})
	pgtest.Eventually(t, "the row says that it is gone", func() bool {
		_, all := w.Parked("transactional")
		return strings.Contains(all[0].Error, "has no event at this position") && all[0].Request == ""
	})
	r.Stop()
}

func TestParkedErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "p"}.Transactional())
	w.Active("set", 1)
	r.Stop()
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
			if n, err := ask(t.Context(), w.DB, tt.projection, tt.which); n != 0 || !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("of %s, %s: %d, %v, want %v", tt.projection, tt.which, n, err, tt.want)
			}
		}
	}
	if _, err := ops.Parked(t.Context(), w.DB, "q", 1); !errors.Is(err, ops.ErrNoProjection) {
		t.Errorf("what q has parked: %v", err)
	}
	if all, err := ops.Parked(t.Context(), w.DB, "p", 1); len(all) != 0 || err != nil {
		t.Errorf("what p has parked: %v, %v", all, err)
	}
	cfg := w.Config(w.DB, "set")
	cfg.Failures = map[string]orchestrator.FailureRule{"typo": {}}
	err := testworld.Run(t, cfg, testworld.Effects{Projection: "p"}.Transactional()).Failed()
	if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(err.Error(), `"typo"`) {
		t.Errorf("a rule for a projection that there is not: %v", err)
	}
}
