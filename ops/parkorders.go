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

// ParkOrder is an order of Park and its outcome.
type ParkOrder struct {
	Number     int64          `json:"number"`
	Projection string         `json:"projection"`
	Position   int64          `json:"position"`
	By         string         `json:"by"` // who gave the order
	OrderedAt  time.Time      `json:"ordered_at"`
	State      ParkOrderState `json:"state"`
	// EndedAt is when a worker recorded the outcome. nil: no worker has.
	EndedAt *time.Time `json:"ended_at"`
	// Reason is why the order lapsed, if State is ParkLapsed.
	Reason string `json:"reason,omitempty"`
}

// ParkOrderState is the outcome of an order of Park.
type ParkOrderState string

const (
	ParkWaiting ParkOrderState = "waiting" // no worker has carried it out yet
	ParkDone    ParkOrderState = "parked"  // the event was parked
	ParkLapsed  ParkOrderState = "lapsed"  // the event was not parked: see Reason
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

// Park orders a worker to put the event that blocks a projection (a poison event) into the
// projection's dead-letter queue, under any failure rule. The later events of the same
// aggregate are parked behind it, as under ParkEvents. All other events go on. Park returns
// the number of the order: AwaitPark waits for its outcome. RetryParked and DiscardParked
// take the event out of the queue. by names who gives the order, for History.
//
// position is the event's position, as in Status, the log and HandlerError. The worker that has
// the partition decides. It parks the event if the projection's handler fails at it, alone or in
// a batch with it. It parks nothing else. The order lapses if the event was handled meanwhile,
// if the projection fails at an earlier event, and after a day. A rewind ends it too.
//
// A worker checks for orders about once a second while its handler fails, also between two
// attempts, and before it calls a handler on new partitions. So an order survives rebalances
// and restarts, and works if the event crashes the process. The order waits while a call of
// the handler does not return, and while the projection is paused.
//
// If the same order exists already, Park returns its number. It returns ErrRejected if the order
// is impossible: by or a name is invalid, the projection belongs to another set or has never
// run, its checkpoint is past the position, the event is parked already, or the event stream
// ends before it. The other errors are those of Pause.
func Park(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, projection string, position int64, by string, options ...orchestrator.TablesOption) (order int64, err error) {
	what := fmt.Sprintf("park event %d of projection %q in replica set %q", position, projection, set)
	t := store.TablesOf(db, options)
	for _, name := range []struct{ of, is string }{{"the replica set", string(set)}, {"the projection", projection}, {"who gives the order (by)", by}} {
		if problem := store.NameProblem(name.is); problem != "" {
			return 0, fmt.Errorf("%s: %w: the name of %s %s", what, ErrRejected, name.of, problem)
		}
	}
	if position < 1 {
		return 0, fmt.Errorf("%s: %w: the first position is 1", what, ErrRejected)
	}
	s := store.New(t.DB, string(set), store.Options{Schema: t.Schema})
	if err = s.Check(ctx); err == nil {
		order, err = s.OrderPark(ctx, projection, position, by)
	}
	if store.Unstorable(err) && !storable(ctx, t.DB, string(set), projection, by) {
		return 0, fmt.Errorf("%s: %w: this database can't store such a name: %w", what, ErrRejected, redact.Error(err))
	}
	if err != nil {
		return 0, redact.Error(fmt.Errorf("%s: %w", what, err))
	}
	return order, nil
}

// AwaitPark waits for the outcome of an order of Park. It returns nil when the event is
// parked, ErrRejected with the reason if the order lapsed, and the context's cause if ctx ends
// first. It also waits while no worker runs.
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

// readParkOrders reads the orders that no worker has carried out yet.
func (s *ReplicaSetStatus) readParkOrders(ask querier) error {
	return ask(store.WaitingOrdersSQL, func(scan func(...any) error) error {
		o, err := store.ScanParkOrder(scan)
		if o := parkOrderOf(o); err == nil && o.State == ParkWaiting {
			s.ParkOrders = append(s.ParkOrders, o)
		}
		return err
	})
}

// parkOrdersMax is the most orders that History returns.
const parkOrdersMax = 1000

// withParkOrders adds to each generation the orders that were given under it.
func withParkOrders(ask querier, records []GenerationRecord) error {
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
