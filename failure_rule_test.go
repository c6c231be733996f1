package orchestrator

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// What is said of one projection goes before what is said of all, and zeros are
// defaults.
func TestFailureRule(t *testing.T) {
	t.Parallel()
	c := Config[Event]{OnFailure: ParkEvents, Failures: map[string]FailureRule{
		"stops": {Policy: StopOnFailure},
		"tries": {Policy: StopOnFailure, Attempts: 3},
		"parks": {Policy: ParkEvents, MaxParked: 7},
	}}
	for name, want := range map[string]FailureRule{
		"other": {ParkEvents, 5, 1000},
		"stops": {StopOnFailure, 1, 1000},
		"tries": {StopOnFailure, 3, 1000},
		"parks": {ParkEvents, 5, 7},
	} {
		if diff := cmp.Diff(want, c.failureRule(name)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	// The lanes know the policies by the same numbers.
	for root, core := range map[FailurePolicy]protocol.FailurePolicy{
		RetryForever: protocol.RetryForever, StopOnFailure: protocol.StopOnFailure, ParkEvents: protocol.ParkEvents,
	} {
		if got := (Config[Event]{OnFailure: root}).laneConfig(protocol.Plain, "p").OnFailure; got != core {
			t.Errorf("policy %d is %d to a lane", root, got)
		}
	}
}
