//go:build !pupsourcing12

package orchestrator_test

import (
	"context"
	"errors"

	"github.com/getpup/pupsourcing/es"
)

// Handle in pupsourcing up to v1.1. The tag pupsourcing12 selects the form since v1.2.

func (p plain) Handle(ctx context.Context, e es.PersistedEvent) error { return p.write(ctx, p.db, e) }

func (s *seen) Handle(_ context.Context, e es.PersistedEvent) error { return s.keep(e) }

func (failing) Handle(context.Context, es.PersistedEvent) error { return errFailing }

func (p handRun) Handle(ctx context.Context, e es.PersistedEvent) error { return p.handle(ctx, e) }

// uncalled is the Handle of projections that have another method for events.
type uncalled struct{}

func (uncalled) Handle(context.Context, es.PersistedEvent) error {
	return errors.New("Handle was called for a projection that has HandleTx or HandleBatch")
}
