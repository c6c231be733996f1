package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// A roll-out with a ReplacementWindow opens no generation: each new worker takes the place
// of one that has left. Events are handled as ever, while all of that goes on.
func TestRolloutWithoutAPause(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := &testworld.History{}
	cfg := w.Config(w.DB, "set")
	cfg.ReplacementWindow = time.Minute
	var workers []*testworld.Running
	for n := range 3 {
		workers = append(workers, testworld.Run(t, cfg, w.All(w.DB, h)...))
		w.Active("set", n+1)
	}
	w.Append(200)
	generation := w.Active("set", 3)
	for n := range workers {
		w.Append(100)
		workers[n].Stop()
		if vacant := w.Number(`SELECT count(*) FROM orchestrator_workers WHERE vacant AND holds = 0 AND presence_number = 0`); vacant != 1 {
			t.Fatalf("%d places are vacant after a stop", vacant)
		}
		w.Append(100)
		workers[n] = testworld.Run(t, cfg, w.All(w.DB, h)...)
		pgtest.Eventually(t, "the place is taken", func() bool {
			return w.Number(`SELECT count(*) FROM orchestrator_workers WHERE NOT vacant`) == 3
		})
		w.CaughtUp(testworld.Names...)
	}
	if now := w.Active("set", 3); now != generation {
		t.Errorf("generation %d after the roll-out, and %d before", now, generation)
	}
	if n := w.Number(`SELECT count(*) FROM effects WHERE projection = 'plain'`); n != w.Number(`SELECT count(*) FROM events`) {
		t.Errorf("the plain projection has handled %d events, some of them twice", n)
	}
	h.Check(t)
	w.CheckEffects(testworld.Exact...)
}

// Without a replacement, the others share the partitions when the window is over. A worker
// that ends because something has failed reserves nothing, nor does CatchUp.
func TestReplacementWindowEndsWithoutAReplacement(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stays := w.Config(w.DB, "set")
	testworld.Run(t, stays, w.All(w.DB, nil)...)
	goes := stays
	goes.ReplacementWindow = 300 * time.Millisecond
	leaves := testworld.Run(t, goes, w.All(w.DB, nil)...)
	generation := w.Active("set", 2)
	leaves.Stop()
	w.Append(50)
	if after := w.Active("set", 1); after != generation+1 {
		t.Errorf("generation %d after a leave, and %d before", after, generation)
	}
	w.CaughtUp(testworld.Names...)

	goes.ReplacementWindow = time.Hour
	o, err := orchestrator.New(goes)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.CatchUp(t.Context(), w.All(w.DB, nil)); err != nil {
		t.Fatal(err)
	}
	goes.OnFailure = orchestrator.StopOnFailure
	broken := errors.New("broken")
	failing := testworld.Run(t, goes, append(w.All(w.DB, nil), testworld.Effects{Projection: "failing", Hook: func(context.Context, orchestrator.Event) error { return broken }}.Plain(w.DB))...)
	w.Append(50)
	if err := failing.Failed(); !errors.Is(err, broken) {
		t.Errorf("Run returned %v", err)
	}
	if n := w.Number(`SELECT count(*) FROM orchestrator_workers WHERE vacant`); n != 0 {
		t.Errorf("%d places are vacant", n)
	}
	w.Active("set", 1)
	w.CaughtUp(testworld.Names...)
	w.CheckEffects(testworld.Exact...)
}

// A commit whose reply the leaving worker has not got may still happen. Then nothing is
// reserved: under another generation it can't happen.
func TestReplacementIsNotAwaitedAfterAnUncertainCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	db, faults := testworld.Faulty(t, w.URL)
	cfg := w.Config(db, "set")
	cfg.ReplacementWindow, cfg.CoordinationTimeout = time.Hour, 2*time.Second
	leaves := testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
	w.Active("set", 1)
	locked := make(chan *sql.Tx, 1)
	var once sync.Once
	faults.OnCommit(func(commit func() error) (err error) {
		err = testworld.ErrLost
		once.Do(func() { // it happens, and the lane can't find that out before it has to end
			if commit() != nil {
				t.Error("the commit has failed")
			}
			tx, err := w.DB.Begin()
			if err == nil {
				_, err = tx.Exec(`SELECT FROM orchestrator_checkpoints FOR UPDATE`)
			}
			if err != nil {
				t.Error(err)
			}
			locked <- tx
		})
		return err
	})
	w.Append(10)
	tx := <-locked
	leaves.Stop()
	if err := tx.Rollback(); err != nil {
		t.Error(err)
	}
	if n := w.Number(`SELECT count(*) FROM orchestrator_workers`); n != 0 {
		t.Errorf("%d members after the leave", n)
	}
	faults.Commit.Store(nil)
	testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
	w.CaughtUp("transactional")
	w.CheckEffects("transactional")
}
