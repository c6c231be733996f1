package orchestrator

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// A call of Config.Around that has returned before its handler is not over before that has
// returned: another worker may get the partition then.
func TestAroundWaitsForTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		given := &callContext{of: &laneContext{handlerScope: &handlerScope{Context: t.Context()}}}
		n := &nextCall{given: given, handle: func(context.Context) error { <-release; return nil }}
		go func() { _ = n.next(given) }()
		synctest.Wait() // until the handler runs
		var err error
		over := make(chan struct{})
		go func() {
			defer close(over)
			err = n.end(nil)
		}()
		synctest.Wait()
		select {
		case <-over:
			t.Error("it is over, and the handler runs")
		default:
		}
		close(release)
		<-over
		if !errors.Is(err, errNextLeft) {
			t.Errorf("it ended with %v", err)
		}
	})
}
