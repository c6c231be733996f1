package sim

import (
	"context"
	"errors"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

func (c *postgresConnection) parked(l store.Lane, done func([]protocol.Parked, error)) {
	if err := c.free("parked"); err != nil {
		done(nil, err)
		return
	}
	rows, err := c.store().Parked(context.Background(), l)
	done(rows, c.db.heard(err))
}

func (c *postgresConnection) park(l store.Lane, from, to protocol.Checkpoint, parked []protocol.Parked, done func(error)) {
	if err := c.free("park"); err != nil {
		done(err)
		return
	}
	done(c.db.heard(c.store().Park(context.Background(), l, from, to, parked, "failed")))
}

func (c *postgresConnection) unpark(l store.Lane, position int64, done func(error)) {
	if c.open == nil && c.ended == nil {
		if err := c.enter(c.store().BeginHandler); err != nil {
			done(err)
			return
		}
	}
	done(c.run(func(ctx context.Context) error {
		err := c.store().Unpark(ctx, c.open.Tx, l, position)
		if err != nil && !errors.Is(err, store.ErrSuperseded) && !errors.Is(err, store.ErrNotParked) && !errors.Is(err, store.ErrTransactionEnded) {
			return err
		}
		return errors.Join(err, c.look(ctx))
	}))
}

func (c *postgresConnection) forget(l store.Lane, position int64, done func(error)) {
	if err := c.free("forget"); err != nil {
		done(err)
		return
	}
	done(c.db.heard(c.store().Drop(context.Background(), l, position)))
}

func (c *postgresConnection) note(l store.Lane, position int64, attempts int, done func(error)) {
	if err := c.free("note"); err != nil {
		done(err)
		return
	}
	done(c.db.heard(c.store().Note(context.Background(), l, position, attempts, "failed again")))
}

func (c *postgresConnection) request(projection string, position int64, r protocol.ParkRequest, done func(n int, err error)) {
	if err := c.free("request"); err != nil {
		done(0, err)
		return
	}
	n, err := store.AskParked(context.Background(), store.Tables{DB: c.db.pool}, projection, store.ParkedSelection{Positions: []int64{position}}, r)
	done(n, c.db.heard(err))
}

func (c *postgresConnection) orderPark(projection string, position int64, done func(number int64, err error)) {
	if err := c.free("request"); err != nil {
		done(0, err)
		return
	}
	number, err := c.store().OrderPark(context.Background(), projection, position, "operator")
	done(number, c.db.heard(err))
}

func (c *postgresConnection) outcome(number int64) (string, error) {
	o, err := c.store().ParkOrder(context.Background(), number)
	return o.Outcome, c.db.heard(err)
}

func (c *postgresConnection) locate(l store.Lane, number int64, slot int, done func(error)) {
	if err := c.free("locate"); err != nil {
		done(err)
		return
	}
	done(c.db.heard(c.store().Locate(context.Background(), l, number, slot)))
}

func (c *postgresConnection) lapse(l store.Lane, number int64, why string, done func(error)) {
	if err := c.free("lapse"); err != nil {
		done(err)
		return
	}
	done(c.db.heard(c.store().Lapse(context.Background(), l, number, why)))
}
