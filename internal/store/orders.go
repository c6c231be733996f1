package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// ErrRejected is returned by Sync for an order that can't be carried out.
var ErrRejected = errors.New("orchestrator: order rejected")

var belongsSQL = sqltext.New(`SELECT replica_set FROM orchestrator_projections WHERE name = {projection}`)

// Orders of operators: what the tables have to say about one, before protocol.Order.Check.

// checkOrder returns why the group can't carry the order out; nil if it can.
func (s *Store) checkOrder(ctx context.Context, tx *sql.Tx, g protocol.Group, o protocol.Order) error {
	if g.Generation == 0 {
		return fmt.Errorf("%w: no worker of replica set %q has ever run", ErrRejected, s.set)
	}
	if o.Projection != protocol.All {
		var set string
		err := s.row(ctx, tx, belongsSQL, sqltext.Values{"projection": o.Projection}, &set)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			if err := s.checkNew(ctx, tx, g, o); err != nil {
				return err
			}
		case err != nil:
			return fmt.Errorf("look up projection %q: %w", o.Projection, err)
		case set != s.set:
			return fmt.Errorf("%w: projection %q belongs to replica set %q, not to %q", ErrRejected, o.Projection, set, s.set)
		}
	}
	if err := o.Check(g); err != nil {
		return fmt.Errorf("%w: %w", ErrRejected, err)
	}
	return nil
}

// checkNew checks an order about a projection that no worker has brought yet. Such a projection
// may be paused before it runs, or set to the position at which it starts. It may be resumed
// only if it was paused.
func (s *Store) checkNew(ctx context.Context, tx *sql.Tx, g protocol.Group, o protocol.Order) error {
	switch o.Kind {
	case protocol.OrderRewind:
		return s.ordered(ctx, tx, o)
	case protocol.OrderResume:
		if !slices.Contains(g.Paused, o.Projection) {
			return fmt.Errorf("%w: there is no projection %q", ErrRejected, o.Projection)
		}
	}
	return nil
}
