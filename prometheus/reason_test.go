package prometheus

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

func TestReason(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"first worker", "first worker"},
		{"2 joined", "joined"},
		{"12 gone", "gone"},
		{"2 joined, 1 gone", "joined,gone"},
		{"1 above MaxPartitions", "above MaxPartitions"},
		{"1 gone, 3 below MaxPartitions", "gone,below MaxPartitions"},
		{"pause of orders", "pause"},
		{"pause of all", "pause"},
		{"resume of all", "resume"},
		{"rewind of orders to 0", "rewind"},
		{"drain of host-1-abc", "drain"},
		{"undrain of host-1-abc", "undrain"},
		{"pause of 2 joined, 1 gone", "pause"}, // a projection can have any name
		{"pause of rewind of all", "pause"},
		// Everything else becomes "other", also texts of later versions.
		{"", "other"},
		{"pause", "other"},
		{"2 joined, host-1-abc gone", "other"},
		{"2 joined, ", "other"},
		{"demolition of all", "other"},
		{"the hold of orders is over", "other"},
	} {
		if got := reason(test.text); got != test.want {
			t.Errorf("reason(%q) = %q, want %q", test.text, got, test.want)
		}
	}
}

// All texts of the coordinator are known here.
func TestReasonOfTheCoordinator(t *testing.T) {
	now := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	var g protocol.Group
	step := func(want string, requests ...protocol.Request) {
		t.Helper()
		for _, r := range requests {
			r.Lease, r.Stopped = time.Hour, g.Generation
			g = protocol.Apply(g, r, now)
		}
		var d protocol.Decision
		if g, d = protocol.Step(g, now, protocol.Watch{}); !d.Opened {
			t.Fatalf("no generation was opened: %s", g)
		}
		if got := reason(g.Reason); got != want {
			t.Errorf("reason(%q) = %q, want %q", g.Reason, got, want)
		}
	}
	step("first worker", protocol.Request{Worker: "w1", Join: true})
	step("joined", protocol.Request{Worker: "w2", Join: true}, protocol.Request{Worker: "w3", Join: true})
	step("joined,gone", protocol.Request{Worker: "w4", Join: true}, protocol.Request{Worker: "w2", Leave: true})
	step("gone", protocol.Request{Worker: "w3", Leave: true})
	step("above MaxPartitions", protocol.Request{Worker: "w5", Join: true, MaxPartitions: 1})
}

// All states of workers are exported.
func TestStates(t *testing.T) {
	want := []string{string(protocol.Joining), string(protocol.Standby), string(protocol.Waiting), string(protocol.Running),
		string(protocol.Stopping), string(protocol.Unproven)}
	if diff := cmp.Diff(want, states); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReasonOfAnOrder(t *testing.T) {
	for _, o := range []protocol.Order{
		{Kind: protocol.OrderPause, Projection: "orders"},
		{Kind: protocol.OrderPause, Projection: protocol.All},
		{Kind: protocol.OrderResume, Projection: "orders"},
		{Kind: protocol.OrderRewind, Projection: "orders", Position: 7},
		{Kind: protocol.OrderDrain, Worker: "w1"},
		{Kind: protocol.OrderUndrain, Worker: "w1"},
		{Kind: protocol.OrderHold, Projection: "orders"},
		{Kind: protocol.OrderRelease, Projection: "orders"},
	} {
		if got := reason(o.String()); got != string(o.Kind) {
			t.Errorf("reason(%q) = %q, want %q", o, got, o.Kind)
		}
	}
}
