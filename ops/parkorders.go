package ops

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A ParkOrder is an order to park an event, and what has become of it. See Park.
type ParkOrder struct {
	Number     int64          `json:"number"`
	Projection string         `json:"projection"`
	Position   int64          `json:"position"`
	By         string         `json:"by"` // who has given it
	OrderedAt  time.Time      `json:"ordered_at"`
	State      ParkOrderState `json:"state"`
	// EndedAt is when it ended, where a worker has said so.
	EndedAt *time.Time `json:"ended_at"`
	// Reason is why nothing came of it, if it is ParkLapsed.
	Reason string `json:"reason,omitempty"`
}

// A ParkOrderState is what has become of an order to park an event.
type ParkOrderState string

const (
	ParkWaiting ParkOrderState = "waiting" // for a worker
	ParkDone    ParkOrderState = "parked"  // the event is parked, or was
	ParkLapsed  ParkOrderState = "lapsed"  // nothing came of it
)

func parkOrderOf(o store.ParkOrder) ParkOrder {
	out := ParkOrder{Number: o.Number, Projection: o.Projection, Position: o.Position, By: o.By, OrderedAt: o.OrderedAt, EndedAt: o.EndedAt}
	switch o.Outcome {
	case "":
		out.State = ParkWaiting
	case "parked":
		out.State = ParkDone
	default:
		out.State, out.Reason = ParkLapsed, o.Outcome
	}
	return out
}

// Park orders to park the event that a projection stands at, since its handler always fails
// there, under whatever failure rule: the later events of its aggregate are parked behind
// it, as under ParkEvents, and all others go on. It returns the number of the order, by
// which AwaitPark says what has become of it. The event is retried or forgotten with
// RetryParked and DiscardParked. by is who gives the order, for History.
//
// The position is that of the event, which Status, the log and HandlerError show. The worker
// that has its partition decides: it parks the event if the projection stands there by then,
// at it or in a batch with it that fails, and nothing else. If the event was handled
// meanwhile, or the projection stands at an earlier one, the order lapses. A worker looks
// about once a second while its handler fails, also between two attempts, and when it gets
// partitions, before it calls a handler: so the order survives re-partitions and restarts,
// and helps where the event ends the process. It waits for a call of the handler that does
// not return, and while the projection is paused; after a day it lapses. A rewind ends it.
//
// To order what is ordered already returns the number of that order. It returns ErrRejected
// where nothing can come of it: by or a name can't be one, the projection is another set's or
// has not run, is past the position, or has parked the event already, or the event stream
// ends before it. The other errors are as with Pause.
func Park(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, projection string, position int64, by string, options ...orchestrator.TablesOption) (order int64, err error) {
	what := fmt.Sprintf("park event %d of projection %q in replica set %q", position, projection, set)
	t := store.TablesOf(db, options)
	for _, name := range []struct{ of, is string }{{"the replica set", string(set)}, {"the projection", projection}, {"whoever gives the order", by}} {
		if problem := store.NameProblem(name.is); problem != "" {
			return 0, fmt.Errorf("%s: %w: the name of %s %s", what, ErrRejected, name.of, problem)
		}
	}
	if position < 1 {
		return 0, fmt.Errorf("%s: %w: positions begin with 1", what, ErrRejected)
	}
	s := store.New(t.DB, string(set), store.Options{Schema: t.Schema})
	if err = s.Check(ctx); err == nil {
		order, err = s.OrderPark(ctx, projection, position, by)
	}
	if store.Unstorable(err) && !storable(ctx, t.DB, string(set), projection, by) {
		return 0, fmt.Errorf("%s: %w: nothing can have such a name in this database: %w", what, ErrRejected, redact.Error(err))
	}
	if err != nil {
		return 0, redact.Error(fmt.Errorf("%s: %w", what, err))
	}
	return order, nil
}

// AwaitPark waits until an order of Park has ended. It returns nil where the event is parked,
// and ErrRejected, with the reason, where nothing came of it. It goes on looking until ctx ends,
// also while there is no worker to carry it out.
func AwaitPark(ctx context.Context, db *sql.DB, order int64, options ...orchestrator.TablesOption) error {
	t := store.TablesOf(db, options)
	s := store.New(t.DB, "", store.Options{Schema: t.Schema})
	return calls.Await(ctx, func() (bool, error) {
		row, err := s.ParkOrder(ctx, order)
		switch o := parkOrderOf(row); {
		case errors.Is(err, sql.ErrNoRows):
			return false, fmt.Errorf("wait for order %d: %w: there is no such order", order, ErrRejected)
		case err != nil:
			return false, fmt.Errorf("wait for order %d: %w", order, err)
		case o.State == ParkLapsed:
			return false, fmt.Errorf("park event %d of projection %q: %w: %s", o.Position, o.Projection, ErrRejected, o.Reason)
		default:
			return o.State == ParkDone, nil
		}
	})
}

// readParkOrders reads the orders of the set that wait.
func (s *ReplicaSetStatus) readParkOrders(ask asking) error {
	return ask(store.WaitingOrdersSQL, func(scan func(...any) error) error {
		o, err := store.ScanParkOrder(scan)
		if o := parkOrderOf(o); err == nil && o.State == ParkWaiting {
			s.ParkOrders = append(s.ParkOrders, o)
		}
		return err
	})
}

// parkOrdersMax is how many orders History shows at most.
const parkOrdersMax = 1000

// withParkOrders adds to generations the orders that were given under them.
func withParkOrders(ask asking, records []GenerationRecord) error {
	at := map[int64]*GenerationRecord{}
	for i := range records {
		at[records[i].Generation] = &records[i]
	}
	return ask(store.ParkOrdersSQL, func(scan func(...any) error) error {
		o, err := store.ScanParkOrder(scan)
		if r := at[o.Generation]; err == nil && r != nil {
			r.ParkOrders = append(r.ParkOrders, parkOrderOf(o))
		}
		return err
	})
}
