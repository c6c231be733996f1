package orchestrator

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
)

// doParked is do for what is about parked events.
func (l *lane[E]) doParked(a protocol.LaneAction, answer protocol.LaneAnswer) (protocol.LaneAnswer, error) {
	var err error
	s, patience := l.worker.store, l.worker.patience()
	switch a.Do {
	case protocol.LaneLook:
		look := s.Parked
		if a.Requests {
			look = s.Requested
		}
		answer.Parked, err = bounded(l.ctx, patience, func(ctx context.Context) ([]protocol.Parked, error) { return look(ctx, l.id) }, nil)
	case protocol.LanePark:
		parked, text := l.core.Parking(), ""
		if a.Attempts > 0 {
			text = fmt.Sprint(redact.Error(l.fault))
		}
		err = boundedDo(l.ctx, patience, func(ctx context.Context) error { return s.Park(ctx, l.id, a.From, a.To, parked, text) })
		if err == nil {
			l.parked(a, parked)
		}
	case protocol.LaneFetch:
		l.again, answer.Page = nil, nil
		var e *Record[E]
		e, err = bounded(l.ctx, patience, func(ctx context.Context) (*Record[E], error) { return l.tap.fetch(ctx, a.Position) }, nil)
		if e != nil {
			l.again, answer.Page = []*Record[E]{e}, []protocol.Key{{Position: e.Position, Aggregate: e.AggregateID}}
		}
	case protocol.LaneUnpark:
		tx := l.tx.tx
		err = boundedDo(l.ctx, patience, func(ctx context.Context) error {
			return tx.During(ctx, func() error { return s.Unpark(ctx, tx.Tx, l.id, a.Position) })
		})
	case protocol.LaneDrop:
		err = boundedDo(l.ctx, patience, func(ctx context.Context) error { return s.Drop(ctx, l.id, a.Position) })
		if err == nil && a.Discard {
			l.log.Info("parked event discarded", "position", a.Position)
		}
	case protocol.LaneNote:
		failure := a.Err
		if failure == nil {
			failure = l.fault
			l.failed(a.Position, a.Attempts, true, 0)
		}
		l.log.Error("parked event retried, and failed", "position", a.Position, "attempt", a.Attempts, "error", failure)
		err = boundedDo(l.ctx, patience, func(ctx context.Context) error {
			return s.Note(ctx, l.id, a.Position, a.Attempts, fmt.Sprint(redact.Error(failure)))
		})
	}
	return answer, err
}

// parked tells that events were parked. Those behind another are many, and each
// as good as the first.
func (l *lane[E]) parked(a protocol.LaneAction, parked []protocol.Parked) {
	l.full = false
	for _, p := range parked {
		e := EventParked{Source: l.source(), Lane: l.name(), Position: p.Position, AggregateID: p.Aggregate, Attempts: p.Attempts}
		if p.Attempts > 0 {
			e.Err = redact.Error(l.fault)
			l.failed(p.Position, p.Attempts, true, 0)
		}
		tell(l.worker.to, l.worker.to.EventParked, e)
		if p.Attempts > 0 {
			l.log.Error("event parked", "position", p.Position, "aggregate", p.Aggregate, "attempts", p.Attempts, "error", l.fault)
		} else {
			l.log.Debug("event parked behind another", "position", p.Position, "aggregate", p.Aggregate)
		}
	}
}

// readAgain reads the first pending event again that could not be read, before it is
// tried again: whoever mends a row heals its event.
func (l *lane[E]) readAgain() {
	i := slices.IndexFunc(l.events, func(e *Record[E]) bool { return e.Err != nil })
	if i < 0 || l.signals(time.Now()).Asked {
		return
	}
	position := l.events[i].Position
	again, err := bounded(l.ctx, l.worker.patience(), func(ctx context.Context) (*Record[E], error) { return l.tap.fetch(ctx, position) }, nil)
	if err == nil && again != nil {
		l.events[i] = again
	}
}

// fetch reads the event at a position, nil if there is none within the scope.
func (t *tap[E]) fetch(ctx context.Context, position int64) (r *Record[E], err error) {
	if failed := contained(func() { r, err = t.at(ctx, position) }); failed != nil {
		return nil, fmt.Errorf("%w: read at position %d: %w", ErrEventStore, position, failed)
	}
	return r, err
}

func (t *tap[E]) at(ctx context.Context, position int64) (*Record[E], error) {
	page, err := t.feed.events.Read(ctx, ReadRequest{After: position - 1, Limit: 1, Scope: t.scope})
	if err != nil {
		return nil, fmt.Errorf("%w: read at position %d: %w", ErrEventStore, position, err)
	}
	if len(page.Records) == 0 || page.Records[0].Position != position {
		return nil, nil
	}
	return &page.Records[0], nil
}
