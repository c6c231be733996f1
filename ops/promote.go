package ops

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A Promotion says what Promote has done.
type Promotion struct {
	Live     string `json:"live"`     // the projection that is live now
	Replaced string `json:"replaced"` // the one that was before; "": Live was live already, and nothing was done
	// Parked is how many events Replaced has parked. Live has handled them, as replays, so
	// what goes beyond the read model was done for them by neither.
	Parked int `json:"parked"`
	// Stopped is for how long no version handled events.
	Stopped time.Duration `json:"stopped"`
}

// Promote lets a projection that was built anew (orchestrator.WithRebuildOf) take the place
// of the live one:
//
//  1. It waits until the projection is close behind the live one. Both run on.
//  2. It holds the live one: no handler of it runs any more.
//  3. It waits until the projection has handled all that the live one has, on each slot.
//  4. In one transaction it runs script, which is SQL of the program's own that has readers
//     use the new read model, such as CREATE OR REPLACE VIEW, and writes down
//     that the projection is live. Until then readers see the old model, and afterwards the
//     new one, which has everything that the old one had. script may be "". It can't
//     contain COMMIT, nor what PostgreSQL does not allow in a transaction.
//
// Then the projection goes on, and its events are no replays any more. The one that it has
// replaced stays as it is, paused. To undo it, call Promote with that one: it is run again,
// catches up, as replays, and takes its place back. Retire removes it.
//
// Both are to be run by workers, of the same replica set or of different ones; the live one
// need not be. If the program that calls Promote crashes, the live one goes on by itself
// after 10 seconds, or everything has happened. Call Promote again to know: where the
// projection is live already, it says so and does nothing.
//
// It returns ErrRejected where the projection follows no other one, or has parked events
// that the live one has handled. It waits until ctx ends, in step 1; the live one is held
// for at most promoteMax, 30 seconds, plus the time that its handlers take to return. Where it
// fails, the live one goes on, and nothing of script has happened.
func Promote(ctx context.Context, db *sql.DB, projection, script string, options ...orchestrator.TablesOption) (p Promotion, err error) {
	defer func() { err = redact.Error(err) }()
	t := store.TablesOf(db, options)
	if err := store.New(db, "", store.Options{Schema: t.Schema}).Check(ctx); err != nil {
		return p, err
	}
	if problem := store.NameProblem(projection); problem != "" {
		return p, fmt.Errorf("%w: the name of the projection %s", ErrRejected, problem)
	}
	if word := sqltext.EndsTransaction(script); word != "" {
		return p, fmt.Errorf("%w: the SQL contains %s, and is run in a transaction, which is not its to end", ErrRejected, word)
	}
	if sqltext.FirstWord(script) == "" {
		script = ""
	}
	next, live, err := pair(ctx, t, projection)
	if err != nil {
		return p, err
	}
	p.Live = projection
	if live == nil {
		return p, nil
	}
	if next.Paused {
		if _, err := Resume(ctx, db, orchestrator.ReplicaSetName(next.ReplicaSet), projection, options...); err != nil {
			return p, err
		}
	}
	if err := comeClose(ctx, t, projection, live.Name); err != nil {
		return p, err
	}
	p.Replaced = live.Name
	began := time.Now()
	p.Parked, err = changeOver(ctx, t, projection, live, script)
	p.Stopped = time.Since(began)
	return p, err
}

// How Promote waits.
const (
	promotePoll  = 100 * time.Millisecond
	promoteClose = 5 * time.Second  // that the projection is behind the live one, before that is held
	promoteMax   = 30 * time.Second // that the live one stands still
)

// pair returns a projection and the live one that it follows; nil: it is that itself, and
// another follows it.
func pair(ctx context.Context, t store.Tables, projection string) (next, live *store.ProjectionVersion, err error) {
	all, err := store.Versions(ctx, t, projection)
	if err != nil {
		return nil, nil, err
	}
	next = all[projection]
	switch {
	case next == nil:
		return nil, nil, fmt.Errorf("%w: there is no projection %q", ErrRejected, projection)
	case next.Retired:
		return nil, nil, fmt.Errorf("%w: projection %q was retired", ErrRejected, projection)
	case next.Follows == "" && next.Followed:
		return next, nil, nil
	case next.Follows == "":
		return nil, nil, fmt.Errorf("%w: projection %q is no rebuild of another one (WithRebuildOf), and there is none that it has replaced", ErrRejected, projection)
	}
	if all, err = store.Versions(ctx, t, projection, next.Follows); err != nil {
		return nil, nil, err
	}
	next, live = all[projection], all[next.Follows]
	switch {
	case next == nil || live == nil:
		return nil, nil, fmt.Errorf("%w: projection %q is gone, or what it follows is", ErrRejected, projection)
	case next.Stream != "" && live.Stream != "" && next.Stream != live.Stream:
		return nil, nil, fmt.Errorf("%w: %q reads the events of %s, and %q those of %s", ErrRejected, next.Name, next.Stream, live.Name, live.Stream)
	}
	return next, live, nil
}

// comeClose waits until a projection comes to where the live one was a moment ago.
func comeClose(ctx context.Context, t store.Tables, projection, live string) error {
	var goal []protocol.Checkpoint
	var set time.Time
	why := "the database did not answer"
	for {
		all, err := store.Versions(ctx, t, projection, live)
		next, now := all[projection], all[live]
		switch {
		case err != nil && !store.Passing(err) && ctx.Err() == nil:
			return err
		case err != nil:
		case next == nil || now == nil || next.Follows != live:
			return fmt.Errorf("%w: %q does not follow %q any more", ErrRejected, projection, live)
		default:
			if goal == nil {
				goal, set = lowest(now.Checkpoints), time.Now()
			}
			lacks := protocol.Lacks(next.Checkpoints, goal)
			if lacks == 0 && time.Since(set) <= promoteClose {
				return nil
			}
			why = fmt.Sprintf("%s is %d positions behind %s", projection, lacks, live)
			if len(next.Workers) == 0 {
				why = fmt.Sprintf("no worker runs %s, and it is %d positions behind %s", projection, lacks, live)
			}
			if lacks == 0 {
				goal = nil
			}
		}
		if !calls.Sleep(ctx, promotePoll) {
			return fmt.Errorf("promote %s: %w: %s; nothing was changed", projection, ctx.Err(), why)
		}
	}
}

// lowest returns the position that a projection has reached on all slots: how far one that
// follows it comes while it runs.
func lowest(checkpoints []protocol.Checkpoint) []protocol.Checkpoint {
	return []protocol.Checkpoint{{Position: protocol.Handoff(checkpoints, 1)[0].Position}}
}

// changeOver holds the live projection, and lets the other one take its place when that has
// come to where the live one has stopped.
func changeOver(ctx context.Context, t store.Tables, projection string, live *store.ProjectionVersion, script string) (parked int, err error) {
	h := &holder{t: t, set: orchestrator.ReplicaSetName(live.ReplicaSet), projection: live.Name}
	if err := h.hold(ctx); err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			h.release(ctx)
		}
	}()
	var stopped time.Time
	for {
		all, err := store.Versions(ctx, t, projection, live.Name)
		next, old := all[projection], all[live.Name]
		if err == nil && (next == nil || old == nil || next.Follows != live.Name) {
			return 0, fmt.Errorf("%w: %q does not follow %q any more", ErrRejected, projection, live.Name)
		}
		if err == nil {
			err = store.Ready(next, old)
		}
		if err == nil {
			parked, err = store.Promote(ctx, t, projection, live.Name, script)
		}
		notYet, unclear := (*store.NotYetError)(nil), (*store.UnclearError)(nil)
		switch {
		case err == nil:
			return parked, nil
		case errors.As(err, &unclear):
			return 0, fmt.Errorf("%w; it is not known whether %s is live now: promote it again", err, projection)
		case !errors.As(err, &notYet) && !store.LockTimeout(err) && !store.Deadlock(err) && !store.Passing(err):
			return 0, err
		}
		if old != nil && old.Stopped && stopped.IsZero() {
			stopped = time.Now()
		}
		if !stopped.IsZero() && time.Since(stopped) > promoteMax {
			return 0, fmt.Errorf("promote %s: %s has stood still for %s, and goes on; nothing was changed: %w", projection, live.Name, promoteMax, err)
		}
		if !calls.Sleep(ctx, promotePoll) {
			return 0, fmt.Errorf("promote %s: %w: %w; nothing was changed", projection, ctx.Err(), err)
		}
		if err := h.goOn(ctx); err != nil {
			return 0, err
		}
	}
}

// A holder holds a projection.
type holder struct {
	t          store.Tables
	set        orchestrator.ReplicaSetName
	projection string
	paused     bool // it was paused before, and is to stay that
	at         time.Time
}

func (h *holder) order(ctx context.Context, kind protocol.OrderKind) error {
	_, err := orderOf(ctx, h.t, h.set, protocol.Order{Kind: kind, Projection: h.projection})
	return err
}

func (h *holder) hold(ctx context.Context) error {
	h.at = time.Now()
	err := h.order(ctx, protocol.OrderHold)
	if err == nil || !errors.Is(err, ErrRejected) {
		return err
	}
	all, failed := store.Versions(ctx, h.t, h.projection)
	if v := all[h.projection]; failed == nil && v != nil && v.Paused && !v.Held {
		h.paused = true // an operator has
		return nil
	}
	return err
}

// goOn has the hold last.
func (h *holder) goOn(ctx context.Context) error {
	if h.paused || time.Since(h.at) < protocol.HoldFor/4 {
		return nil
	}
	return h.hold(ctx)
}

// release ends the hold, which else would end by itself.
func (h *holder) release(ctx context.Context) {
	if h.paused {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), protocol.HoldFor/2)
	defer cancel()
	_ = h.order(ctx, protocol.OrderRelease)
}

// Retire removes what is left of a projection: its checkpoints and its parked events, not
// its read model. It is for one that was replaced (Promote), or that no program has any
// more. Its name stays known, and Run refuses a projection of that name, which would begin
// anew and handle every event again.
//
// It returns ErrRejected where there is no such projection, a worker runs a program that
// has it, or other projections follow it.
func Retire(ctx context.Context, db *sql.DB, projection string, options ...orchestrator.TablesOption) error {
	t := store.TablesOf(db, options)
	if err := store.New(db, "", store.Options{Schema: t.Schema}).Check(ctx); err != nil {
		return redact.Error(err)
	}
	if problem := store.NameProblem(projection); problem != "" {
		return fmt.Errorf("%w: the name of the projection %s", ErrRejected, problem)
	}
	if err := store.Retire(ctx, t, projection); err != nil {
		return redact.Error(fmt.Errorf("retire %s: %w", projection, err))
	}
	return nil
}

// Live returns the version of a projection that is live: the projection itself, or the one
// that has replaced it. It returns ErrRejected where there is no such projection.
func Live(ctx context.Context, db *sql.DB, projection string, options ...orchestrator.TablesOption) (string, error) {
	all, err := store.Versions(ctx, store.TablesOf(db, options), projection)
	switch v := all[projection]; {
	case err != nil:
		return "", redact.Error(err)
	case v == nil:
		return "", fmt.Errorf("%w: there is no projection %q", ErrRejected, projection)
	case v.Follows != "":
		return v.Follows, nil
	}
	return projection, nil
}
