package protocol

import "testing"

// What the error of a coordination request means for its worker.
func TestCoordination(t *testing.T) {
	for _, c := range []struct {
		why   string
		facts Facts
		want  SyncFailure
	}{
		{"the connection was lost", Facts{Failed: true, Lost: true}, SyncPasses},
		{"no answer in time", Facts{Failed: true, Deadline: true}, SyncPasses},
		{"a privilege is missing", Facts{Failed: true, State: "42501"}, SyncDenied},
		{"the schema is gone", Facts{Failed: true, State: "3F000"}, SyncDenied},
		{"the pool is closed", Facts{Failed: true, Closed: true}, SyncDenied},
		{"a projection is another set's, whose worker lives", Facts{Failed: true, Taken: true}, SyncTaken},
		{"that worker seems dead: it will be removed", Facts{Failed: true, Taken: true, Over: true}, SyncPasses},
		{"another event stream", Facts{Failed: true, Stranger: true}, SyncStranger},
	} {
		if got := c.facts.Coordination(); got != c.want {
			t.Errorf("%s: %q, want %q", c.why, got, c.want)
		}
	}
}

// What an error means, by what is known of it, by the kind of the lane, and by what the
// lane was at.
func TestClassify(t *testing.T) {
	state := func(s string) Facts { return Facts{Failed: true, State: s} }
	lost, network := Facts{Failed: true, Lost: true}, Facts{Failed: true, Network: true}
	late, refused := Facts{Failed: true, Deadline: true}, Facts{Failed: true, Refused: true}
	const (
		p, tx, b = Plain, Transactional, Batched
		handle   = LaneHandle
	)
	for _, c := range []struct {
		why   string
		facts Facts
		kind  LaneKind
		do    LaneDo
		want  Failure
	}{
		{"nothing", Facts{}, tx, handle, NoFailure},
		{"the handler says so", Facts{Failed: true}, p, handle, Fault},
		{"a tie", state("40001"), tx, handle, Passing},
		{"a tie", state("40P01"), p, handle, Passing},
		{"the server was stopped", state("57P01"), tx, handle, Cut},
		{"the server is full", state("53300"), tx, handle, Cut},
		{"no connection", state("08006"), p, handle, Cut},
		{"lost", lost, b, handle, Cut},
		{"lost", lost, p, handle, Cut},
		{"the network of a transaction is the database's", network, tx, handle, Cut},
		{"any other is nobody knows whose", network, p, handle, Fault},
		{"permanent, as it says", Facts{Failed: true, Final: true}, p, handle, Permanent},
		{"permanent, as it says, of a tie", Facts{Failed: true, Final: true, State: "40001"}, tx, handle, Permanent},
		{"permanent, as it says, of a lost connection", Facts{Failed: true, Final: true, Lost: true}, b, handle, Permanent},
		{"permanent, as it says, of its own deadline", Facts{Failed: true, Final: true, Deadline: true}, tx, handle, Permanent},
		{"what the server refuses for good is for the policy", state("42P01"), tx, handle, Fault},
		{"statement_timeout", state("57014"), tx, handle, Fault},
		{"temp_file_limit", state("53400"), tx, handle, Fault},
		{"out of memory", state("53200"), tx, handle, Fault},
		{"lock_timeout", state("55P03"), tx, handle, Fault},
		{"its own deadline", late, tx, handle, Fault},
		{"its own deadline, over the network", Facts{Failed: true, Deadline: true, Network: true, Lost: true}, tx, handle, Fault},
		{"it has cancelled itself", Facts{Failed: true, Canceled: true}, tx, handle, Fault},
		{"left idle", state("25P03"), tx, handle, Fault},
		{"left idle, where the driver does not say so", Facts{Failed: true, Lost: true, Idled: true}, tx, handle, Fault},
		{"another database is closed", Facts{Failed: true, Closed: true}, p, handle, Fault},
		{"not the fence: the handler says it", refused, tx, handle, Fault},

		{"the fence", refused, tx, LaneWrite, Fenced},
		{"the fence", refused, p, LaneSave, Fenced},
		{"it has ended its transaction", Facts{Failed: true, Ended: true}, tx, LaneWrite, Fault},
		{"the driver has ended it", Facts{Failed: true, Done: true}, tx, LaneWrite, Fault},
		{"rows are open", Facts{Failed: true}, tx, LaneWrite, Fault},
		{"it has failed before", state("25P02"), b, LaneUnpark, Fault},
		{"another role", state("42501"), tx, LaneWrite, Fault},
		{"another search path", state("42P01"), tx, LaneUnpark, Fault},
		{"left idle", state("25P03"), tx, LaneWrite, Fault},
		{"lost", lost, tx, LaneWrite, Passing},
		{"no answer", late, tx, LaneWrite, Passing},
		{"a statement of ours is never too slow", state("57014"), tx, LaneWrite, Passing},
		{"a lock of ours", state("55P03"), tx, LaneWrite, Passing},

		{"a deferred constraint", state("23505"), tx, LaneCommit, Fault},
		{"the same of class 42", state("42501"), tx, LaneCommit, Fault},
		{"it may have happened", Facts{Failed: true}, tx, LaneCommit, Passing},
		{"it may have happened", Facts{Failed: true, Done: true}, tx, LaneCommit, Passing},
		{"a tie", state("40001"), tx, LaneCommit, Passing},

		{"no privilege", state("42501"), p, LaneSave, Permanent},
		{"no table", state("42P01"), tx, LaneLoad, Permanent},
		{"no table", state("42P01"), tx, LaneOpen, Permanent},
		{"the program has closed its database", Facts{Failed: true, Closed: true}, tx, LaneOpen, Permanent},
		{"lost", lost, tx, LaneRead, Passing},
		{"whatever it is", Facts{Failed: true}, p, LaneRead, Passing},
	} {
		if got := Classify(c.facts, c.kind, c.do, false); got != c.want {
			t.Errorf("%s, at %s, kind %d: %d, want %d", c.why, c.do, c.kind, got, c.want)
		}
		want := c.want
		if c.do == LaneHandle && c.facts.Failed || (c.do == LaneWrite || c.do == LaneUnpark) && want == Fault {
			want = Interrupted
		}
		if got := Classify(c.facts, c.kind, c.do, true); got != want {
			t.Errorf("%s, at %s, kind %d, suspended: %d, want %d", c.why, c.do, c.kind, got, want)
		}
	}
}

func TestForItsSizeAndAway(t *testing.T) {
	state := func(s string) Facts { return Facts{Failed: true, State: s} }
	for _, c := range []struct {
		why        string
		facts      Facts
		size, away bool
	}{
		{"it took too long", Facts{Failed: true, Deadline: true}, true, true},
		{"statement_timeout", state("57014"), true, true},
		{"out of memory", state("53200"), true, true},
		{"a value that can't be sent", state("22P05"), true, false},
		{"too complex", state("54001"), true, false},
		{"no such column", state("42703"), false, false},
		{"the server starts", state("57P03"), false, true},
		{"the connection was lost", Facts{Failed: true, Lost: true}, false, true},
		{"the network", Facts{Failed: true, Network: true}, false, true},
		{"a connection string that can't be parsed", Facts{Failed: true, Network: true, Malformed: true}, false, false},
		{"anything else", Facts{Failed: true}, false, false},
	} {
		if size, away := c.facts.ForItsSize(), c.facts.Away(); size != c.size || away != c.away {
			t.Errorf("%s: for its size %t, away %t; want %t, %t", c.why, size, away, c.size, c.away)
		}
	}
}

// Each wait grows from the first to the longest, and has one.
func TestBackoffs(t *testing.T) {
	for r := RetryStart; r <= RetryAwait; r++ {
		b := r.Backoff()
		if b.Min <= 0 || b.Max <= b.Min || b.Delay(1, 0) != b.Min || b.Delay(100, 0) != b.Max || b.Delay(100, 1) != b.Max/2 {
			t.Errorf("%d: %+v, first %s, at last %s to %s", r, b, b.Delay(1, 0), b.Delay(100, 1), b.Delay(100, 0))
		}
	}
}
