package protocol

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestApply(t *testing.T) {
	const lease = 30 * time.Second
	before := Group{
		Generation: 5, Phase: Active, Total: 2, MaxPartitions: 4, JoinWindow: time.Second,
		Members: []Member{
			{ID: "a", Joined: testStart, Lease: lease, LeaseEnd: testStart.Add(lease), Partitions: []int{0}, Holds: 5},
			{ID: "b", Joined: testStart, Lease: lease, LeaseEnd: testStart.Add(lease), Partitions: []int{1}, Holds: 5},
		},
	}
	now := testStart.Add(10 * time.Second)
	renewed := func(m Member, lease time.Duration, holds int64) Member {
		m.Lease, m.LeaseEnd, m.Holds = lease, now.Add(lease), holds
		return m
	}
	a, b := before.Members[0], before.Members[1]
	c, again := Member{ID: "c", Joined: now, Lease: lease, LeaseEnd: now.Add(lease)}, Member{ID: "a~3", Joined: now, Lease: lease, LeaseEnd: now.Add(lease)}
	vacant := a
	vacant.Vacant, vacant.Holds, vacant.Lease, vacant.LeaseEnd = true, 0, time.Minute, now.Add(time.Minute)
	for _, tt := range []struct {
		why     string
		request Request
		want    []Member
		limit   int
	}{
		{"a heartbeat renews the lease", Request{Worker: "a", Lease: lease, Heartbeat: true}, []Member{renewed(a, lease, 5), b}, 4},
		{"by the length that it asks for now", Request{Worker: "a", Lease: time.Minute}, []Member{renewed(a, time.Minute, 5), b}, 4},
		{"a heartbeat of somebody who was removed brings nobody back", Request{Worker: "c", Lease: lease, Stopped: 5}, []Member{a, b}, 4},
		{"a join comes last, with the group's settings", Request{Worker: "c", Lease: lease, Join: true, MaxPartitions: 9}, []Member{a, b, c}, 9},
		{"a join that is sent again changes no settings and no order", Request{Worker: "a", Lease: lease, Join: true, MaxPartitions: 9}, []Member{renewed(a, lease, 5), b}, 4},
		{"a new incarnation takes the old one away: nobody waits for its lease", Request{Worker: "a~3", Lease: lease, Join: true, MaxPartitions: 4}, []Member{b, again}, 4},
		{"a leave", Request{Worker: "a", Leave: true}, []Member{b}, 4},
		{"a leave before the new incarnation has joined takes both", Request{Worker: "a~2", Leave: true}, []Member{b}, 4},
		{"what has stopped is released", Request{Worker: "a", Lease: lease, Stopped: 5}, []Member{renewed(a, lease, 0), b}, 4},
		{"an old report that is delivered twice releases nothing newer", Request{Worker: "a", Lease: lease, Stopped: 4}, []Member{renewed(a, lease, 5), b}, 4},
		{"a leave that may be replaced keeps the place", Request{Worker: "a", Leave: true, Vacate: time.Minute}, []Member{vacant, b}, 4},
		{"unless that is the worker's earlier incarnation", Request{Worker: "a~2", Leave: true, Vacate: time.Minute}, []Member{b}, 4},
	} {
		t.Run(tt.why, func(t *testing.T) {
			got := Apply(before, tt.request, now)
			if diff := cmp.Diff(tt.want, got.Members); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if got.MaxPartitions != tt.limit {
				t.Errorf("a limit of %d, want %d", got.MaxPartitions, tt.limit)
			}
		})
	}
	several := before
	several.Members = []Member{{ID: "a"}, {ID: "a~2", Drained: true}, {ID: "a~3"}, {ID: "b"}}
	for id, want := range map[WorkerID][]WorkerID{
		"a": {"a", "a~2", "a~3", "b"}, "a~2": {"a~2", "a~3", "b"}, "a~3": {"a~3", "b"}, "a~4": {"b", "a~4"},
		"c": {"a", "a~2", "a~3", "b", "c"}, "a~x": {"a", "a~2", "a~3", "b", "a~x"}, "a~10": {"b", "a~10"},
	} {
		var got []WorkerID
		for _, m := range Apply(several, Request{Worker: id, Lease: lease, Join: true}, now).Members {
			got = append(got, m.ID)
			if was := m.ID == "a~2"; m.ID != "b" && m.Drained != (was || m.Joined == now && m.ID.Succeeds("a~2")) {
				t.Errorf("a join of %s: %s is drained: %v", id, m.ID, m.Drained)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("a join of %s beside a to a~3 (-want +got):\n%s", id, diff)
		}
	}
	late := before
	late.Members = several.Members[2:]
	if got := Apply(late, Request{Worker: "a~2", Lease: lease, Join: true}, now).Members; len(got) != 2 {
		t.Errorf("a late join of a~2 beside a~3: %+v", got)
	}
	if !sameGroup(before, Group{
		Generation: 5, Phase: Active, Total: 2, MaxPartitions: 4, JoinWindow: time.Second, Members: []Member{a, b},
	}) {
		t.Error("Apply has written into its argument")
	}
}

// What a worker has sent before it left may arrive later, in any order.
func TestApplyToAVacancy(t *testing.T) {
	const window = 10 * time.Second
	shown := Presence{Key: 7, Number: 3}
	before := Group{Generation: 5, Phase: Active, Total: 2, Members: []Member{
		{ID: "a", Joined: testStart, Lease: time.Minute, LeaseEnd: testStart.Add(time.Minute), Partitions: []int{0}, Holds: 5, Presence: shown},
		{ID: "b", Joined: testStart, Lease: time.Minute, LeaseEnd: testStart.Add(time.Minute), Partitions: []int{1}, Holds: 5},
	}}
	left := Apply(before, Request{Worker: "a", Leave: true, Vacate: window}, testStart)
	later := testStart.Add(time.Second)
	for _, tt := range []struct {
		why     string
		request Request
		same    bool
	}{
		{"a heartbeat", Request{Worker: "a", Lease: time.Minute, Heartbeat: true, Presence: shown}, true},
		{"a report", Request{Worker: "a", Lease: time.Minute, Stopped: 5, Report: true, Presence: shown}, true},
		{"a join", Request{Worker: "a", Lease: time.Minute, Join: true}, true},
		{"the leave, once more, makes the window no longer", Request{Worker: "a", Leave: true, Vacate: window}, true},
		{"a leave for good", Request{Worker: "a", Leave: true}, false},
		{"the leave of a later incarnation, which nobody is any more", Request{Worker: "a~2", Leave: true}, false},
	} {
		if got := Apply(left, tt.request, later); sameGroup(got, left) != tt.same {
			t.Errorf("%s: %s became %s", tt.why, left, got)
		}
	}
	if v := left.View("a", later, Decision{}); v.Member || v.May() {
		t.Errorf("who has left is shown %+v", v)
	}
	if v := left.View("b", later, Decision{}); !v.StepAt.Equal(testStart.Add(window)) {
		t.Errorf("the next step is at %v, and the window is over at %v", v.StepAt, testStart.Add(window))
	}
	for _, o := range []Order{{Kind: OrderDrain, Worker: "a"}, {Kind: OrderDrain, Worker: "b"}} {
		after, d := Step(Apply(left, Request{Order: &o}, later), later, Watch{})
		if err := o.Check(left); (err == nil) != (o.Worker == "a") {
			t.Errorf("%s: %v", o, err)
		} else if err == nil && (len(d.Lapsed) != 1 || after.Total != 1) {
			t.Errorf("%s: %s, %s", o, d, after)
		}
	}
}
