//go:build pupsourcing12

package main

import (
	"context"
	"database/sql"
	"errors"

	"github.com/getpup/pupsourcing/es"
)

// Handle in pupsourcing since v1.2.

func (p audit) Handle(ctx context.Context, _ *sql.Tx, e es.PersistedEvent) error {
	return p.list(ctx, e)
}

// uncalled is the Handle of projections that have another method for events.
type uncalled struct{}

func (uncalled) Handle(context.Context, *sql.Tx, es.PersistedEvent) error {
	return errors.New("Handle was called for a projection that has HandleTx or HandleBatch")
}
