package pgtest

import (
	"context"
	"testing"
	"time"
)

// waitMax ends a broken test. It is not a limit for slow tests.
const waitMax = time.Minute

// Eventually polls until condition returns true. what describes the condition, for the failure
// message.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("still not true after %s: %s", waitMax, what)
		}
	}
}
