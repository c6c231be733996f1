package protocol

import (
	"testing"
	"time"
)

// Interleavings that broke a promise, each as small as it gets.

var (
	testStart  = time.Date(2024, 6, 1, 12, 0, 0, 0, time.UTC)
	testTiming = Timing{Heartbeat: 5 * time.Second, Lease: 30 * time.Second, Drain: 60 * time.Second}
)

// syncOf returns the request among the actions.
func syncOf(t *testing.T, actions []Action) Request {
	t.Helper()
	for _, a := range actions {
		if s, ok := a.(Sync); ok {
			return s.Request
		}
	}
	t.Fatalf("no request among %v", actions)
	return Request{}
}

// carryOut applies a request the way a store does: Step unless it is a
// heartbeat.
func carryOut(g Group, r Request, now time.Time) (Group, View) {
	g = Apply(g, r, now)
	var d Decision
	if !r.Heartbeat {
		g, d = Step(g, now, r.Watch)
	}
	return g, g.View(r.Worker, now, d)
}

// L1: a worker must release a generation that was activated for it and
// superseded before it looked.
//  1. a runs generation 1, b joins: 2 is opened, a stops and reports it: 2 is
//     activated for a and b, and b is not told yet;
//  2. c joins: 3 is opened, a stops again;
//  3. b looks: 3 is draining. It never started 2, so it has nothing to stop,
//     and unless it says so everybody waits for b for ever.
func TestNeverStartedGenerationIsReleased(t *testing.T) {
	now := testStart
	b := NewSession("b", testTiming, Request{})
	join := func(id WorkerID) Request { return Request{Worker: id, Lease: testTiming.Lease, Join: true} }

	g, _ := carryOut(Group{}, join("a"), now)
	r := syncOf(t, b.Next(now, Tick{}))
	g, v := carryOut(g, r, now)
	actions := b.Next(now, Synced{Request: r, Sent: now, View: v})
	g, _ = carryOut(g, Request{Worker: "a", Lease: testTiming.Lease, Stopped: 1}, now) // activates 2
	g, _ = carryOut(g, join("c"), now)                                                 // opens 3
	g, _ = carryOut(g, Request{Worker: "a", Lease: testTiming.Lease, Stopped: 2}, now)

	for range 20 {
		if _, asks := actions[0].(Sync); !asks {
			now = actions[len(actions)-1].(Wake).At
			actions = b.Next(now, Tick{})
		}
		r = syncOf(t, actions)
		g, v = carryOut(g, r, now)
		actions = b.Next(now, Synced{Request: r, Sent: now, View: v})
		if g.Phase == Active {
			return
		}
	}
	t.Errorf("b looked 20 times, and the group still waits: %s", g)
}

// S1: what has stopped must not be started again by an answer that was on its
// way when it stopped.
//  1. w runs generation 1 and sends a heartbeat;
//  2. its lanes end by themselves (their commits were refused, or they saw the
//     lease end) and the session hears that;
//  3. the answer comes: w may run generation 1. It starts;
//  4. w reports that it has stopped 1. The group believes it: x joins, and
//     generation 2 is activated while w runs 1.
func TestStaleAnswerStartsNothingThatStopped(t *testing.T) {
	now := testStart
	w := NewSession("w", testTiming, Request{})
	r := syncOf(t, w.Next(now, Tick{}))
	g, v := carryOut(Group{}, r, now)
	actions := w.Next(now, Synced{Request: r, Sent: now, View: v}) // starts 1

	now = actions[len(actions)-1].(Wake).At
	r = syncOf(t, w.Next(now, Tick{}))
	_, v = carryOut(g, r, now)
	w.Next(now, Stopped{Generation: 1})
	for _, a := range w.Next(now, Synced{Request: r, Sent: now, View: v}) {
		if s, ok := a.(Start); ok {
			t.Errorf("started %s, which had stopped", s.Share)
		}
	}
}

// S1: a slow answer must not hide a step of the database's clock.
//  1. w3 watches the clock; one of its requests is answered after 10s, late
//     because it was late to arrive: the clock was read at the end;
//  2. w2 renews its lease, and is cut off;
//  3. the clock steps by 10.4s, which w3 can't tell from those 10s;
//  4. w3 sees w2's lease over, 10.4s before it is.
func TestSlowAnswerHidesNoClockStep(t *testing.T) {
	lease := testTiming.Lease
	at := func(s float64) time.Time { return testStart.Add(time.Duration(s * float64(time.Second))) }
	var c clockWatch
	for s := -90.0; s <= -5; s += 5 {
		c.observe(at(s), at(s), at(s), lease)
	}
	c.observe(at(0), at(10), at(10), lease) // the slow one

	w2 := Member{ID: "w2", Lease: lease, LeaseEnd: at(10.5).Add(lease)}
	step := 10400 * time.Millisecond // at 10.6
	for s := 15.0; s < 34; s++ {
		c.observe(at(s), at(s), at(s).Add(step), lease)
		if w2.Expired(at(s).Add(step), c.watch()) {
			t.Fatalf("expired %vs after its renewal, and w2 goes on for %v", s-10.5, testTiming.ownLease())
		}
	}
}

// S1: a worker that was cut off must not judge by what it saw before.
//  1. w3 reads 12:01:00, and is cut off;
//  2. the clock steps back to 11:02:00, and w2 renews its lease there;
//  3. minutes later the clock steps forward to where it was (a failover and a
//     return from it), and w3 is the first to arrive, and joins again.
//
// To w3 the lease of w2 was over at its last reading, after a long and even
// watch, and the clock does not read earlier than that. It has to watch anew.
func TestOldReadingExpiresNobody(t *testing.T) {
	now := testStart
	w3 := NewSession("w3", testTiming, Request{})
	g := Group{}
	actions := w3.Next(now, Tick{})
	for now.Before(testStart.Add(time.Minute)) {
		if s, asks := actions[0].(Sync); asks {
			var v View
			g, v = carryOut(g, s.Request, now)
			actions = w3.Next(now, Synced{Request: s.Request, Sent: now, View: v})
			continue
		}
		now = actions[len(actions)-1].(Wake).At
		actions = w3.Next(now, Tick{})
	}
	seen := syncOf(t, actions).Watch
	now = now.Add(4 * time.Minute)
	w3.Next(now, SyncFailed{Request: Request{Worker: "w3"}, Sent: now})
	r := syncOf(t, w3.Next(now, Stopped{Generation: 1})) // joins again
	w2 := Member{ID: "w2", Lease: testTiming.Lease, LeaseEnd: seen.Seen.Add(-time.Hour)}
	if w2.Expired(now, r.Watch) {
		t.Errorf("expired by a reading of %v ago", now.Sub(r.Watch.Seen))
	}
}

// S1: how far the clock may run away unseen must be measured by the lease that
// is at stake, and not by that of the worker that judges. (Two programs that
// disagree during a roll-out.)
//  1. w1 has a lease of 10s and w2 one of 300s;
//  2. w1 renews its lease, and the clock steps by 5s;
//  3. to w2 that is as good as even: less than a 50th of 300s.
func TestStepIsMeasuredByTheLeaseAtStake(t *testing.T) {
	at := func(s int) time.Time { return testStart.Add(time.Duration(s) * time.Second) }
	var c clockWatch
	for s := -600; s <= 0; s += 5 {
		c.observe(at(s), at(s), at(s), 300*time.Second)
	}
	w1 := Member{ID: "w1", Lease: 10 * time.Second, LeaseEnd: at(1).Add(10 * time.Second)}
	step := 5 * time.Second
	for s := 2; s <= 8; s++ {
		c.observe(at(s), at(s), at(s).Add(step), 300*time.Second)
		if w1.Expired(at(s).Add(step), c.watch()) {
			t.Fatalf("expired %ds after its renewal, and its lease is 10s", s-1)
		}
	}
}

// L1: a database that is slow, and no more than that, must not keep a dead
// worker's partitions from being given away. A slow reading shows the clock
// less exactly; that is a reason for patience, and not for none at all.
func TestSlowDatabaseStillExpires(t *testing.T) {
	lease := testTiming.Lease
	dead := Member{ID: "dead", Lease: lease, LeaseEnd: testStart.Add(lease)}
	var c clockWatch
	now := testStart
	for now.Before(testStart.Add(4 * lease)) {
		sent, executed, received := now, now.Add(500*time.Millisecond), now.Add(time.Second)
		c.observe(sent, received, executed, lease)
		now = now.Add(testTiming.Heartbeat)
	}
	if !dead.Expired(now, c.watch()) {
		t.Errorf("%v after its lease, with answers that take a second, a dead worker is still waited for", now.Sub(dead.LeaseEnd))
	}
}

// S1 and L1: steps that hide in slow answers add up over a lease that is longer
// than that of the worker which judges by them.
//  1. the answers that w1 gets are slow, and each hides a step of the clock: each
//     is what the next ones are compared with;
//  2. from some time on they are quick, which w1 goes by;
//  3. the lease of w2, many times longer, touches the slow ones as well.
//
// So what is unused of it must cover all of them, or else there is patience. But
// not for ever.
func TestHiddenStepsAddUpOverALongerLease(t *testing.T) {
	const lease = 6 * time.Second
	const slow, hidden = lease / 3, lease/3 + lease/watchTolerance
	for _, ratio := range []time.Duration{1, 2, 3, 5, 6, 7, 10, 20, 100} {
		long := ratio * lease
		for calm := time.Duration(0); calm <= long+2*lease; calm += lease {
			for shift := time.Duration(0); shift < lease; shift += lease / 6 {
				var c clockWatch
				var step time.Duration
				w2 := Member{ID: "w2", Lease: long}
				at := func(d time.Duration) time.Time { return testStart.Add(d + step) }
				expired := time.Duration(-1)
				for n, now := 0, -2*long-4*lease; expired < 0 && now < 3*long+6*lease; n, now = n+1, now+lease/3 {
					sent := testStart.Add(now)
					if now >= shift && w2.LeaseEnd.IsZero() { // with the reading before
						w2.LeaseEnd = at(shift + long)
					}
					if n%3 != 0 || now >= calm {
						c.observe(sent, sent, at(now), lease)
					} else {
						c.observe(sent, sent.Add(slow), at(now+slow), lease)
						step += hidden
					}
					if !w2.LeaseEnd.IsZero() && w2.Expired(at(now), c.watch()) {
						expired = now - shift
					}
				}
				if expired < long-long/10 {
					t.Errorf("lease %v beside %v, quick answers from %v on: it was expired after %v (negative: never)", long, lease, calm, expired)
				}
				if most := long*17/10 + 3*lease; expired > most {
					t.Errorf("lease %v beside %v, quick answers from %v on: it was expired after %v, and is to be by %v", long, lease, calm, expired, most)
				}
			}
		}
	}
}
