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
// projection is live already, it says so and does nothing. How far the projection is while
// Promote waits, and in about what time it will be close, Status says: see RebuildStatus.
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
	c := &changeOver{t: t, set: orchestrator.ReplicaSetName(live.ReplicaSet), projection: projection, live: live.Name, script: script}
	if p.Parked, p.Stopped, err = c.run(ctx); err != nil {
		return Promotion{}, err
	}
	p.Replaced = live.Name
	return p, nil
}

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
	case next.Follows == "" && (next.Followed || next.Replaced):
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

// A changeOver lets a projection take the place of the live one. What it does when is decided
// by protocol.Promotion.
type changeOver struct {
	t                        store.Tables
	set                      orchestrator.ReplicaSetName // of the live one
	projection, live, script string

	held bool  // the live one was to be held
	why  error // what it waits for
}

func (c *changeOver) run(ctx context.Context) (parked int, stopped time.Duration, err error) {
	core := protocol.NewPromotion()
	var answer protocol.PromotionAnswer
	var held time.Time
	var failed error // the latest request that has
	for {
		answer.Stop = ctx.Err() != nil
		action := core.Next(time.Now(), answer)
		answer = protocol.PromotionAnswer{}
		switch action.Do {
		case protocol.PromoteLook:
			answer, err = c.check(ctx, core)
		case protocol.PromoteHold:
			if !c.held {
				c.held, held = true, time.Now()
			}
			err = c.order(ctx, protocol.OrderHold)
			answer.Failure = failureOf(err)
		case protocol.PromoteSwitch:
			parked, err = c.change(ctx)
			if answer.Failure = failureOf(err); answer.Failure == protocol.FailsNow {
				c.why = err
			}
		case protocol.PromotePause:
			calls.Sleep(ctx, action.For)
		case protocol.PromoteRelease:
			release, cancel := context.WithTimeout(context.WithoutCancel(ctx), protocol.HoldFor/2)
			_ = c.order(release, protocol.OrderRelease) // else the hold ends by itself
			cancel()
		case protocol.PromoteEnd:
			if c.held {
				stopped = time.Since(held)
			}
			return parked, stopped, c.ended(ctx, action.End, failed)
		}
		if err != nil {
			failed = err
		}
	}
}

// change is the switch. The hold goes on while the program's own SQL runs.
func (c *changeOver) change(ctx context.Context) (parked int, err error) {
	ctx, cancel := context.WithTimeout(ctx, protocol.PromoteMax)
	renewing := make(chan struct{})
	go func() {
		defer close(renewing)
		for calls.Sleep(ctx, protocol.HoldFor/4) {
			_ = c.order(ctx, protocol.OrderHold) // refused where an operator has paused it
		}
	}()
	parked, err = store.Promote(ctx, c.t, c.projection, c.live, c.script)
	cancel()
	<-renewing
	return parked, err
}

func (c *changeOver) check(ctx context.Context, core *protocol.Promotion) (a protocol.PromotionAnswer, err error) {
	all, err := store.Versions(ctx, c.t, c.projection, c.live)
	if a.Failure = failureOf(err); err != nil {
		return a, err
	}
	next, live := all[c.projection], all[c.live]
	if next == nil || live == nil {
		return a, nil
	}
	a.Follows, a.Runs, a.Next, a.Live = next.Follows == c.live, len(next.Workers) > 0, next.Standing, live.Standing
	switch lacks := core.Goal(next.Standing); {
	case c.held:
		c.why = store.Ready(next, live)
	case len(next.Workers) == 0:
		c.why = fmt.Errorf("no worker runs %s, and it is %d positions behind %s", c.projection, lacks, c.live)
	default:
		c.why = fmt.Errorf("%s is %d positions behind %s", c.projection, lacks, c.live)
	}
	return a, nil
}

func (c *changeOver) order(ctx context.Context, kind protocol.OrderKind) error {
	_, err := orderOf(ctx, c.t, c.set, protocol.Order{Kind: kind, Projection: c.live})
	return err
}

// failureOf says what an error means for a promotion.
func failureOf(err error) protocol.PromotionFailure {
	notYet, unclear := (*store.NotYetError)(nil), (*store.UnclearError)(nil)
	switch {
	case err == nil:
		return protocol.NotFailed
	case errors.As(err, &unclear):
		return protocol.MayHaveHappened
	case errors.As(err, &notYet), store.LockTimeout(err), store.Deadlock(err), store.Passing(err),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return protocol.FailsNow
	}
	return protocol.IsRefused
}

// ended says how it has ended; err is of the latest request that has failed.
func (c *changeOver) ended(ctx context.Context, end protocol.PromotionEnd, err error) error {
	switch end {
	case protocol.Promoted:
		return nil
	case protocol.NoRebuild:
		return fmt.Errorf("%w: %q does not follow %q any more", ErrRejected, c.projection, c.live)
	case protocol.StoodStill:
		return fmt.Errorf("promote %s: %s has stood still for %s, and goes on; nothing was changed: %w", c.projection, c.live, protocol.PromoteMax, c.why)
	case protocol.PerhapsDone:
		return fmt.Errorf("%w; it is not known whether %s is live now: promote it again", err, c.projection)
	case protocol.GivenUp:
		why := c.why
		if why == nil {
			why = errors.New("the database did not answer")
		}
		return fmt.Errorf("promote %s: %w: %w; nothing was changed", c.projection, ctx.Err(), why)
	}
	return err
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
