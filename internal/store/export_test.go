package store

import (
	"context"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// Decide decides on a request, and returns what carries it out; nil: only step does.
func (s *Store) Decide(ctx context.Context, r protocol.Request, projections []string) (carry func() (Result, bool, error), err error) {
	a, err := s.attempt(ctx, r, projections, nil, r.Report)
	if a == nil {
		return nil, err
	}
	return func() (Result, bool, error) {
		done, err := a.carry(ctx, s)
		return a.result, done, err
	}, nil
}
