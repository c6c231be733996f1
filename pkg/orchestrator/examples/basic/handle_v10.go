//go:build !pupsourcing12

package main

import (
	"context"
	"errors"

	"github.com/getpup/pupsourcing/es"
)

// Handle in pupsourcing up to v1.1. The tag pupsourcing12 selects the form since v1.2.

func (p audit) Handle(ctx context.Context, e es.PersistedEvent) error { return p.list(ctx, e) }

// uncalled is the Handle of projections that have another method for events.
type uncalled struct{}

func (uncalled) Handle(context.Context, es.PersistedEvent) error {
	return errors.New("Handle was called for a projection that has HandleTx or HandleBatch")
}
