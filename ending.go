package orchestrator

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// Table as a FinalStore and a TimeStore: up to where the stream is final, and where a time
// begins. protocol.Ending decides in which order to ask.

// reads reports whether the table is read from a pool.
func (t *Table[E]) reads(db *sql.DB) bool { return t.db == db }

// ends is what a Table knows of its end. turn holds one token, for the search for it.
type ends struct {
	turn  chan struct{}
	known protocol.End
	// A search by a worker that has time, which continues where an earlier caller has
	// given up: the transactions that it waits for may stay open for long, and a new
	// search would wait for newer ones as well.
	patient *protocol.Ending
	answer  protocol.ReadAnswer
	left    time.Time // when the caller gave up
}

// Final implements FinalStore. It waits for the transactions that append at the time, unless
// that was done within the last minute; see protocol.Ending.
func (t *Table[E]) Final(ctx context.Context) (position int64, err error) {
	done, err := t.ending(ctx, false, nil)
	return done.Passed, err
}

// settle waits for open transactions, so that Final need not. It calls waits repeatedly with
// the server processes that it waits for.
func (t *Table[E]) settle(ctx context.Context, waits func(backends []int)) error {
	_, err := t.ending(ctx, true, waits)
	return err
}

// ending carries out a protocol.Ending.
func (t *Table[E]) ending(ctx context.Context, patient bool, waits func(backends []int)) (done protocol.ReadAction, err error) {
	table, err := t.find(ctx)
	if err != nil {
		return done, err
	}
	select {
	case t.ends.turn <- struct{}{}:
		defer func() { <-t.ends.turn }()
	case <-ctx.Done():
		return done, fmt.Errorf("find the end of events table %s: %w", t.sql.Name, ctx.Err())
	}
	e, answer := t.ends.patient, t.ends.answer
	t.ends.patient = nil
	if !patient || e == nil || time.Since(t.ends.left) > startSoon {
		own := protocol.NewEnding(&t.ends.known, patient)
		e, answer = &own, protocol.ReadAnswer{}
	}
	for pauses := 0; ; {
		action := e.Next(time.Now(), answer)
		if action.Pause {
			if waits != nil {
				waits(backendsOf(e))
			}
			if !calls.Sleep(ctx, min(endPauseMin<<min(pauses, 10), endPauseMax)) {
				if patient {
					t.ends.patient, t.ends.answer, t.ends.left = e, answer, time.Now()
				}
				return done, t.stillOpen(e, ctx.Err())
			}
			pauses++
		}
		answer.Stale = false
		switch action.Do {
		case protocol.ReadAsk, protocol.ReadHolders:
			answer, err = bounded(ctx, lookMax, t.ask, nil)
		case protocol.ReadHigh:
			answer.High, err = bounded(ctx, lookMax, func(ctx context.Context) (int64, error) { return table.High(ctx, t.db, at(action)) }, nil)
		case protocol.ReadAhead:
			answer.Last, answer.Missing, err = table.Ahead(ctx, t.db, at(action), action.After)
		case protocol.ReadDone:
			return action, nil
		case protocol.ReadRefuse:
			return done, t.refused(action.Why)
		}
		if eventtable.Elsewhere(err) {
			store.DropStandbys(ctx, t.db)
			answer.Stale, err = true, nil
		}
		switch {
		case err != nil && pauses > 0 && ctx.Err() != nil: // ctx ended during a query
			return done, t.stillOpen(e, ctx.Err())
		case err != nil:
			return done, fmt.Errorf("find the end of events table %s: %w", t.sql.Name, err)
		}
	}
}

// stillOpen is the error of a search whose context has ended.
func (t *Table[E]) stillOpen(e *protocol.Ending, ended error) error {
	return fmt.Errorf("find the end of events table %s: transactions that append events are still open (server processes %s; 0 is a prepared transaction); wait for them, or end them: %w",
		t.sql.Name, strings.Trim(fmt.Sprint(backendsOf(e)), "[]"), ended)
}

const (
	endPauseMin = 2 * time.Millisecond
	endPauseMax = 250 * time.Millisecond
)

func backendsOf(e *protocol.Ending) (backends []int) {
	wait, _ := e.Waiting()
	for _, h := range wait.Holders {
		backends = append(backends, h.Backend)
	}
	return backends
}

// timeProblem returns why the table is not a TimeStore; "": it is one.
func (t *Table[E]) timeProblem() string {
	if t.cfg.TimeColumn == "" {
		return "TableConfig.TimeColumn is empty; name the column with the time of each event"
	}
	return ""
}

// PositionBefore implements TimeStore. It needs TableConfig.TimeColumn, and without an index
// on that column scans all events.
func (t *Table[E]) PositionBefore(ctx context.Context, at time.Time) (position int64, err error) {
	if problem := t.timeProblem(); problem != "" {
		return 0, fmt.Errorf("%w: %s", ErrInvalidConfig, problem)
	}
	table, err := t.find(ctx)
	if err != nil {
		return 0, err
	}
	switch kind, err := table.TimeType(ctx, t.db); {
	case err != nil:
		return 0, err
	case kind != "timestamp with time zone":
		return 0, tableError("TimeColumn", fmt.Sprintf("%q is of type %s; it must be of type timestamp with time zone", t.cfg.TimeColumn, kind))
	}
	// In this order: below what was final before the first event is searched, no event
	// can become visible.
	done, err := t.ending(ctx, true, nil)
	if err != nil {
		return 0, err
	}
	first, err := table.FirstAt(ctx, t.db, eventtable.At{Epoch: done.Epoch, Reaches: done.Passed}, at)
	switch {
	case eventtable.Elsewhere(err):
		store.DropStandbys(ctx, t.db)
		return 0, fmt.Errorf("find the first event at a time in %s: the server or the table was replaced meanwhile: %w", t.sql.Name, context.DeadlineExceeded)
	case err != nil:
		return 0, err
	case first == 0 || first > done.Passed:
		return done.Passed, nil
	}
	return first - 1, nil
}
