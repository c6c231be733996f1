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

// Promotion is the result of Promote.
type Promotion struct {
	Live     string `json:"live"`     // the version that is live now
	Replaced string `json:"replaced"` // the version that was live before; "": Live was live already, nothing was done
	// Parked is the number of parked events of Replaced. Live has handled them as replays,
	// so neither version caused their side effects.
	Parked int `json:"parked"`
	// Stopped is how long no version handled events.
	Stopped time.Duration `json:"stopped"`
}

// Promote makes a rebuilt projection (orchestrator.WithRebuildOf) the live version:
//
//  1. It waits until the rebuild is close behind the live version. Both go on running.
//  2. It holds the live version: none of its handlers runs.
//  3. It waits until the rebuild has handled everything that the live version has, on each slot.
//  4. In one transaction it runs script and records that the rebuild is live. script is SQL
//     that switches readers to the new read model, such as CREATE OR REPLACE VIEW. Readers
//     see the old read model before the commit, and the new one after it, with everything that the
//     old one had. script may be "". It must not contain COMMIT or statements that
//     PostgreSQL does not allow in a transaction.
//
// The new version then goes on, and its events are no longer replays. The replaced version stays
// paused. To undo the promotion, call Promote with the replaced version: it runs again,
// catches up with replays, and takes its place back. Retire removes it.
//
// A worker must run the rebuild, in the same replica set or in another one. The live version need
// not run. While Promote waits, Status shows how far the rebuild is: see RebuildStatus.
//
// If the program that calls Promote crashes, either the promotion has happened, or the live
// version goes on by itself after 10 seconds. Call Promote again to find out: if the rebuild is
// live already, it does nothing and returns an empty Replaced.
//
// It returns ErrRejected if the projection is not a rebuild, or has parked events that the live
// version has handled. Step 1 lasts until ctx ends. The live version is held for at most 30
// seconds, plus the time that its handlers take to return. If Promote returns an error, the live
// version goes on and script has had no effect, unless the error says that it is unknown whether
// the rebuild is live now: then call Promote again.
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
		return p, fmt.Errorf("%w: the SQL must not contain %s: it runs in a transaction of Promote", ErrRejected, word)
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
	c := &switchover{t: t, set: orchestrator.ReplicaSetName(live.ReplicaSet), projection: projection, live: live.Name, script: script}
	if p.Parked, p.Stopped, err = c.run(ctx); err != nil {
		return Promotion{}, err
	}
	p.Replaced = live.Name
	return p, nil
}

// pair returns a projection and the live version that it follows. live is nil if the
// projection is live itself and others follow it, or have.
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
		return nil, nil, fmt.Errorf("%w: projection %q is not a rebuild (WithRebuildOf) and has not replaced another version", ErrRejected, projection)
	}
	if all, err = store.Versions(ctx, t, projection, next.Follows); err != nil {
		return nil, nil, err
	}
	next, live = all[projection], all[next.Follows]
	switch {
	case next == nil || live == nil:
		return nil, nil, fmt.Errorf("%w: projection %q or the version that it follows was removed meanwhile", ErrRejected, projection)
	case next.Stream != "" && live.Stream != "" && next.Stream != live.Stream:
		return nil, nil, fmt.Errorf("%w: %q and %q read different event streams (%s and %s)", ErrRejected, next.Name, live.Name, next.Stream, live.Stream)
	}
	return next, live, nil
}

// A switchover carries out a promotion. protocol.Promotion decides its steps.
type switchover struct {
	t                        store.Tables
	set                      orchestrator.ReplicaSetName // of the live version
	projection, live, script string

	held bool  // a hold of the live version was requested
	why  error // what the promotion waits for
}

func (c *switchover) run(ctx context.Context) (parked int, stopped time.Duration, err error) {
	core := protocol.NewPromotion()
	var answer protocol.PromotionAnswer
	var held time.Time
	var failed error // the error of the latest request that failed
	for {
		answer.Stop = ctx.Err() != nil
		action := core.Next(time.Now(), answer)
		answer = protocol.PromotionAnswer{}
		switch action.Do {
		case protocol.PromoteCheck:
			answer, err = c.check(ctx, core)
		case protocol.PromoteHold:
			if !c.held {
				c.held, held = true, time.Now()
			}
			err = c.order(ctx, protocol.OrderHold)
			answer.Failure = failureOf(err)
		case protocol.PromoteSwitch:
			parked, err = c.commit(ctx)
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

// commit runs the transaction of step 4, and renews the hold meanwhile.
func (c *switchover) commit(ctx context.Context) (parked int, err error) {
	ctx, cancel := context.WithTimeout(ctx, protocol.PromoteMax)
	renewing := make(chan struct{})
	go func() {
		defer close(renewing)
		for calls.Sleep(ctx, protocol.HoldFor/4) {
			_ = c.order(ctx, protocol.OrderHold) // rejected if an operator has paused the live version
		}
	}()
	parked, err = store.Promote(ctx, c.t, c.projection, c.live, c.script)
	cancel()
	<-renewing
	return parked, err
}

// check reads how far both versions are.
func (c *switchover) check(ctx context.Context, core *protocol.Promotion) (a protocol.PromotionAnswer, err error) {
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
		c.why = fmt.Errorf("no worker runs %s, which is %d positions behind %s", c.projection, lacks, c.live)
	default:
		c.why = fmt.Errorf("%s is %d positions behind %s", c.projection, lacks, c.live)
	}
	return a, nil
}

func (c *switchover) order(ctx context.Context, kind protocol.OrderKind) error {
	_, err := orderOf(ctx, c.t, c.set, protocol.Order{Kind: kind, Projection: c.live})
	return err
}

// failureOf classifies an error for protocol.Promotion.
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

// ended returns the result of the promotion. err is the error of the latest request that failed.
func (c *switchover) ended(ctx context.Context, end protocol.PromotionEnd, err error) error {
	switch end {
	case protocol.Promoted:
		return nil
	case protocol.NoRebuild:
		return fmt.Errorf("%w: %q is no longer a rebuild of %q", ErrRejected, c.projection, c.live)
	case protocol.StoodStill:
		return fmt.Errorf("promote %s: %s was held for %s, and goes on now; nothing was changed: %w", c.projection, c.live, protocol.PromoteMax, c.why)
	case protocol.PerhapsDone:
		return fmt.Errorf("%w; it is unknown whether %s is live now: call Promote again", err, c.projection)
	case protocol.GivenUp:
		why := c.why
		if why == nil {
			why = errors.New("the database did not answer")
		}
		return fmt.Errorf("promote %s: %w: %w; nothing was changed", c.projection, ctx.Err(), why)
	}
	return err
}

// Retire removes the checkpoints and the parked events of a projection that was replaced
// (Promote) or that no program runs any more. It does not touch the read model. The name
// stays reserved: Run refuses a projection of that name, which would start again and handle
// every event a second time.
//
// It returns ErrRejected if there is no such projection, if a running worker has it, or if
// other projections follow it.
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

// Live returns the name of the live version of a projection: the projection itself, or the
// version that it follows or that has replaced it. It returns ErrRejected if there is no
// such projection.
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
