package protocol

import (
	"slices"
	"testing"
	"time"
)

// attach carries a worker's wish for a session of its own to the server.
func (w *sessionWorld) attach(p *proc, a Attach) {
	if d := p.connects; d > 0 {
		p.connects = 0
		w.after(d, p, func() { w.attach(p, a) })
		return
	}
	sent := w.now
	if !w.now.Before(p.cutOff) {
		p.lock = 0 // the one before is closed, and the server hears of it
	}
	if w.now.Before(p.noneTill) {
		w.after(w.delay(), p, func() { w.input(p, Detached{Number: a.Number, Jitter: float64(w.below(8)) / 8}) })
		return
	}
	w.reach(p, func() Input {
		p.lock = a.Number
		roundTrip := time.Millisecond
		if w.now.Before(p.farUntil) {
			roundTrip += presenceSlow
		}
		presence := Presence{p.key, a.Number}
		in := Attached{Number: a.Number, Key: p.key, Sent: sent, RoundTrip: roundTrip, Worker: a.Worker}
		if i := w.group.index(a.Worker); i >= 0 {
			m := w.group.Members[i]
			if in.Published.Row = true; m.Holds == w.group.Generation {
				in.Published.Runs = m.Holds
			}
			if m.Presence.Number < a.Number {
				w.group.Members = slices.Clone(w.group.Members)
				w.group.Members[i].Presence = presence
			}
		}
		return in
	}, Detached{Number: a.Number})
}

// prove asks a session.
func (w *sessionWorld) prove(p *proc, a Prove) {
	sent := w.now
	w.reach(p, func() Input {
		if p.lock != a.Number {
			return Detached{Number: a.Number}
		}
		in := Proven{Number: a.Number, Sent: sent, Glimpsed: a.Glimpse}
		if a.Glimpse {
			in.Group = Glimpse{Generation: w.group.Generation, Others: w.others(p.session.ID())}
			in.Group.Absent = slices.DeleteFunc(in.Group.Absent, func(a Absence) bool { return a.Worker == p.session.ID() })
		}
		return in
	}, Detached{Number: a.Number})
}

// others are what a look, or a heartbeat, shows of them.
func (w *sessionWorld) others(own WorkerID) Others {
	o := Others{Alone: true}
	for _, m := range w.group.Members {
		o.Alone = o.Alone && m.ID == own
		if m.Presence.Number != 0 && !w.holds(m.Presence) {
			o.Absent = append(o.Absent, Absence{m.ID, m.Presence})
		}
	}
	return o
}

func (w *sessionWorld) holds(p Presence) bool {
	for _, o := range w.procs {
		if o.key == p.Key {
			return o.lock == p.Number
		}
	}
	return false
}

// lose ends a worker's own session at the server.
func (w *sessionWorld) lose(p *proc) {
	p.lock = 0
	if p.run != nil && w.now.Before(p.frozen) {
		p.run.excused = true
	}
}

// reach does something at the server, and brings the answer back, or what a
// worker takes for one when none has come in a second.
func (w *sessionWorld) reach(p *proc, do func() Input, none Input) {
	const patience = time.Second
	there, back := w.delay(), w.delay()
	if w.now.Before(p.farUntil) {
		there, back = there+presenceSlow/2, back+presenceSlow
	}
	gaveUp := false
	w.after(patience, p, func() {
		if !gaveUp {
			gaveUp = true
			w.input(p, none)
		}
	})
	if w.now.Before(p.cutOff) {
		return
	}
	w.after(there, nil, func() {
		if p.dead || gaveUp || w.now.Before(p.cutOff) {
			return
		}
		in := do()
		w.after(back, p, func() {
			if !gaveUp && !w.now.Before(p.cutOff) {
				gaveUp = true
				w.input(p, in)
			}
		})
	})
}

// suspend has the handlers return that run.
func (w *sessionWorld) suspend(p *proc) {
	run := p.run
	w.after(time.Duration(w.below(5))*40*time.Millisecond, p, func() {
		run.suspended = true
		w.goOn(p)
	})
}

// A worker that dies with its session is replaced in less than two seconds; one
// that loses its session and lives on takes another, and nobody minds.
func TestPresence(t *testing.T) {
	for _, tt := range []struct {
		name       string
		happens    func(w *sessionWorld, p *proc)
		after      time.Duration
		owners     int
		generation int64 // more
	}{
		{"a crash", func(_ *sessionWorld, p *proc) { p.dead, p.lock = true, 0 }, 1950 * time.Millisecond, 1, 1},
		{"a crash of the machine", func(_ *sessionWorld, p *proc) { p.dead = true }, 20 * time.Second, 2, 0},
		{"a crash of the machine, and the lease is over", func(_ *sessionWorld, p *proc) { p.dead = true }, 40 * time.Second, 1, 1},
		{"a lost session of a worker that is handling", func(_ *sessionWorld, p *proc) { p.lock = 0 }, time.Minute, 2, 0},
		{"a server that restarts", func(w *sessionWorld, _ *proc) {
			for _, p := range w.procs {
				p.lock = 0
			}
		}, time.Minute, 2, 0},
		{"a worker that is cut off keeps what it has, for a lease", func(w *sessionWorld, p *proc) { p.cutOff = w.now.Add(time.Hour) }, 20 * time.Second, 2, 0},
		{"a worker that is cut off, and its session ended at the server", func(w *sessionWorld, p *proc) { p.cutOff, p.lock = w.now.Add(time.Hour), 0 }, 1950 * time.Millisecond, 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &sessionWorld{dice: &dice{}, now: testStart, present: true, tracing: true, layouts: map[int64]map[int]WorkerID{}, totals: map[int64]int{}}
			victim := w.join()
			w.join()
			w.runUntil(w.now.Add(time.Minute))
			if w.group.Total != 2 || w.group.Phase != Active {
				t.Fatalf("the group is %s", w.group)
			}
			before := w.group.Generation
			tt.happens(w, victim)
			w.runUntil(w.now.Add(tt.after))
			if w.err != nil {
				t.Fatal(w.err)
			}
			if w.group.Total != tt.owners || w.group.Generation != before+tt.generation || w.group.Phase != Active {
				t.Errorf("after %v the group is %s, want generation %d of %d", tt.after, w.group, before+tt.generation, tt.owners)
				for _, line := range w.trace {
					t.Log(line)
				}
			}
		})
	}
}

// A crash is over within two seconds whoever is there, without a hint: who does not see
// that the worker is missing, since others have removed it by then, sees that there is a
// new generation. Each of 40 crashes comes at another moment, half of them when there is nothing to handle.
func TestCrashOfOneOfMany(t *testing.T) {
	for _, c := range []struct {
		workers int
		newest  time.Duration // for how long one of them has been there
	}{{2, time.Minute}, {3, time.Minute}, {5, time.Minute}, {10, time.Minute}, {3, 3 * time.Second}, {5, 3 * time.Second}, {10, 3 * time.Second}} {
		workers := c.workers
		for crash := range 40 {
			w := &sessionWorld{dice: &dice{}, now: testStart, present: true, idle: crash%2 == 0, tracing: true, layouts: map[int64]map[int]WorkerID{}, totals: map[int64]int{}}
			victim := w.join()
			for i := range workers - 1 {
				wait := time.Duration(37*i) * time.Millisecond // each looks at another time
				if i == workers-2 && workers > 2 {
					wait = time.Minute
				}
				w.runUntil(w.now.Add(wait))
				w.join()
			}
			w.runUntil(w.now.Add(c.newest + time.Duration(crash)*61*time.Millisecond))
			if w.group.Total != workers || w.group.Phase != Active {
				t.Fatalf("the group is %s", w.group)
			}
			before := w.group.Generation
			victim.dead, victim.lock = true, 0
			w.runUntil(w.now.Add(2 * time.Second))
			if w.err != nil {
				t.Fatal(w.err)
			}
			if w.group.Total != workers-1 || w.group.Generation != before+1 || w.group.Phase != Active {
				t.Errorf("%+v, crash %d: 2s later the group is %s, want generation %d", c, crash, w.group, before+1)
			}
		}
	}
}

// Whenever a worker loses its session and can't know, its handlers have returned
// when others take over: five of them look for it, at any time, and its last
// proof is of any age.
func TestPresenceToTheLast(t *testing.T) {
	closest := time.Hour
	for ms := 0; ms < 1300; ms += 11 {
		w := &sessionWorld{dice: &dice{}, now: testStart, present: true, layouts: map[int64]map[int]WorkerID{}, totals: map[int64]int{}}
		victim := w.join()
		for range 4 {
			w.join()
			w.runUntil(w.now.Add(237 * time.Millisecond))
		}
		w.runUntil(testStart.Add(time.Minute + time.Duration(ms)*time.Millisecond))
		before := w.group.Generation
		victim.cutOff, victim.lock = w.now.Add(time.Hour), 0
		var stopped time.Time
		for w.group.Generation == before && w.err == nil {
			if victim.run.suspended && stopped.IsZero() {
				stopped = w.now
			}
			w.runUntil(w.now.Add(time.Millisecond))
		}
		w.runUntil(w.now.Add(time.Second))
		if w.err != nil {
			t.Fatal(w.err)
		}
		if stopped.IsZero() {
			t.Fatalf("%dms: the others have removed a worker whose handlers run", ms)
		}
		closest = min(closest, w.now.Add(-time.Second).Sub(stopped))
	}
	t.Logf("handlers had stopped %v before the others went on, at the closest", closest)
	if spare := presenceGrace - presenceOwn; closest < spare-5*time.Millisecond {
		t.Errorf("handlers had stopped only %v before, and are to have %v", closest, spare)
	}
}

// A request that was sent earlier and arrives later does not bring back a
// session that is gone: others have long seen that.
func TestPresenceNeverGoesBack(t *testing.T) {
	g := Apply(Group{}, Request{Worker: "a", Lease: time.Minute, Join: true, Presence: Presence{7, 1}}, testStart)
	g = Apply(g, Request{Worker: "a", Lease: time.Minute, Heartbeat: true, Presence: Presence{7, 2}}, testStart)
	g = Apply(g, Request{Worker: "a", Lease: time.Minute, Heartbeat: true, Presence: Presence{7, 1}}, testStart)
	g = Apply(g, Request{Worker: "a", Lease: time.Minute, Heartbeat: true}, testStart)
	if got := g.Members[0].Presence; got != (Presence{7, 2}) {
		t.Errorf("the presence is %v", got)
	}
	for _, absent := range []Absence{{"a", Presence{7, 1}}, {"b", Presence{7, 2}}, {"a", Presence{8, 2}}} {
		if after, _ := Step(g, testStart, Watch{Absent: []Absence{absent}}); len(after.Members) != 1 {
			t.Errorf("removed for %v", absent)
		}
	}
	if after, _ := Step(g, testStart, Watch{Absent: []Absence{{"a", Presence{7, 2}}}}); len(after.Members) != 0 {
		t.Errorf("not removed: %s", after)
	}
}

// A worker that starts joins and takes a session at the same time, and either may
// be first. It may lose the session at once, before it has heard of it even.
func TestPresenceFromTheStart(t *testing.T) {
	for slow := 0; slow <= 200; slow += 20 {
		for ms := 10; ms < 400; ms += 15 {
			w := &sessionWorld{dice: &dice{}, now: testStart, present: true, tracing: true, layouts: map[int64]map[int]WorkerID{}, totals: map[int64]int{}}
			other := w.join()
			w.runUntil(testStart.Add(time.Minute))
			victim := w.join()
			victim.connects = time.Duration(slow) * time.Millisecond
			w.runUntil(w.now.Add(10 * time.Millisecond))
			w.input(other, Hinted{}) // so it stops at once
			w.runUntil(w.now.Add(time.Duration(ms) * time.Millisecond))
			victim.cutOff, victim.lock = w.now.Add(time.Hour), 0
			w.runUntil(w.now.Add(time.Minute))
			if w.err != nil {
				t.Errorf("connected in %dms, lost after %dms: %v", slow, ms, w.err)
				for _, line := range w.trace {
					t.Log(line)
				}
				t.FailNow()
			}
		}
	}
}

// A session that was there before the join is published as soon as the worker is a
// member, and not at the next heartbeat: nothing is handled before.
func TestPresenceBecomesKnown(t *testing.T) {
	now := testStart
	s := NewSession("w", Timing{Heartbeat: 5 * time.Second, Lease: 30 * time.Second, Drain: time.Minute}, Request{})
	s.Present()
	next := func(in Input) (request Request) {
		t.Helper()
		for _, a := range s.Next(now, in) {
			if sync, ok := a.(Sync); ok {
				request = sync.Request
			}
		}
		return request
	}
	mayBegin := func() bool {
		begin, _, bound := s.Proof()
		return !bound || now.Before(begin)
	}
	sent := now
	join := next(Tick{})
	now = now.Add(20 * time.Millisecond)
	next(Attached{Number: 1, Key: 7, Sent: sent}) // it came before the join
	now = now.Add(20 * time.Millisecond)
	view := View{Now: now, Member: true, Generation: 1, Total: 1, Partitions: []int{0}, Holds: 1}
	beat := next(Synced{Request: join, Sent: sent, View: view})
	if beat.Presence != (Presence{7, 1}) || mayBegin() {
		t.Errorf("the next request is %+v, want the session to be published at once; handlers may begin: %t", beat, mayBegin())
	}
	sent, now = now, now.Add(20*time.Millisecond)
	if next(Synced{Request: beat, Sent: sent, View: view}); !mayBegin() {
		t.Error("handlers may not begin though the session is known and was there just now")
	}
}

// A worker that was missed once is asked to be removed, though a later look does not show
// it: another look may have its lock at that moment.
func TestSightingIsKept(t *testing.T) {
	p := presence{attached: 1}
	now := testStart.Add(time.Minute)
	p.since = testStart
	a := Absence{"a", Presence{7, 1}}
	p.see(now, []Absence{a})
	p.see(now.Add(presenceGlimpse-time.Millisecond), nil)
	if got := p.remove(now.Add(presenceGrace)); !slices.Equal(got, []Absence{a}) {
		t.Errorf("it asks to remove %v, want %v", got, a)
	}
	if p.see(now.Add(2*presenceGlimpse), nil); len(p.absent) > 0 {
		t.Errorf("it was sent, is seen no longer, and kept: %v", p.absent)
	}
	p.see(now.Add(3*presenceGlimpse), []Absence{a})
	p.detach(now.Add(3*presenceGlimpse), Detached{})
	if len(p.absent) > 0 {
		t.Errorf("its own session is gone, and it keeps %v", p.absent)
	}
}

// A server that restarts ends all sessions. A heartbeat that comes right after it, by a
// new connection, finds everybody's gone, its own worker's as well: nobody is removed for
// that, whenever it comes.
func TestRestartRemovesNobody(t *testing.T) {
	for ms := 0; ms < 6000; ms += 37 {
		w := &sessionWorld{dice: &dice{}, now: testStart, present: true, tracing: true, layouts: map[int64]map[int]WorkerID{}, totals: map[int64]int{}}
		w.idle = true // or each would soon ask its own session
		for range 3 {
			w.join()
			w.runUntil(w.now.Add(331 * time.Millisecond))
		}
		w.runUntil(testStart.Add(time.Minute + time.Duration(ms)*time.Millisecond))
		before := w.group.Generation
		for _, p := range w.procs {
			p.lock, p.noneTill = 0, w.now.Add(2*time.Second)
		}
		w.runUntil(w.now.Add(20 * time.Second))
		if w.err != nil {
			t.Fatal(w.err)
		}
		if w.group.Generation != before {
			t.Fatalf("%d ms: after a restart the group is %s, want generation %d", ms, w.group, before)
		}
	}
}

// A join that arrives when its worker was removed makes a member of it again, and
// gives no leave to go on with what it ran: see presence.publish.
func TestLateJoinBringsNoProof(t *testing.T) {
	reached := false
	for ms := 0; ms < 1000; ms += 23 {
		w := &sessionWorld{dice: &dice{}, now: testStart, present: true, tracing: true, layouts: map[int64]map[int]WorkerID{}, totals: map[int64]int{}}
		victim, other := w.join(), w.join()
		w.runUntil(testStart.Add(time.Minute))
		before := w.group.Generation
		victim.cutOff, victim.lock = w.now.Add(time.Hour), 0
		for w.group.Generation == before || w.group.Phase == Draining {
			w.input(other, Hinted{})
			w.runUntil(w.now.Add(time.Millisecond))
		}
		late := Request{Worker: victim.session.ID(), Lease: worldTiming.Lease, Join: true, JoinWindow: time.Minute, Presence: Presence{victim.key, 1}}
		w.group, _ = Step(Apply(w.group, late, w.now), w.now, Watch{})
		victim.cutOff = w.now.Add(time.Duration(ms) * time.Millisecond)
		for range 3500 {
			i := w.group.index(victim.session.ID())
			reached = reached || victim.run != nil && victim.lock > 1 && i >= 0 && w.group.Members[i].Presence.Number == victim.lock
			w.runUntil(w.now.Add(time.Millisecond))
		}
		w.runUntil(w.now.Add(3 * time.Minute))
		w.settled()
		if w.err != nil {
			t.Fatalf("mended after %dms: %v", ms, w.err)
		}
	}
	if !reached {
		t.Error("the worker never had a session that stood in its new row while it ran what it had")
	}
}

// What shows that another generation is there gives no leave to begin under the one
// that runs, not even for a moment: see presence.publish.
func TestAnswerOfAnotherGenerationBringsNoProof(t *testing.T) {
	now := testStart
	s := NewSession("w", Timing{Heartbeat: 5 * time.Second, Lease: 30 * time.Second, Drain: time.Minute}, Request{})
	s.Present()
	var request Request
	next := func(in Input) (actions []Action) {
		actions = s.Next(now, in)
		for _, a := range actions {
			if sync, ok := a.(Sync); ok {
				request = sync.Request
			}
		}
		return actions
	}
	answer := func(v View) []Action {
		sent := now
		now = now.Add(5 * time.Millisecond)
		v.Now, v.Member, v.Partitions = now, true, []int{0}
		return next(Synced{Request: request, Sent: sent, View: v})
	}
	next(Tick{})
	next(Attached{Number: 1, Sent: now, Worker: "w"})
	answer(View{Generation: 1, Total: 1, Holds: 1})
	answer(View{Generation: 1, Total: 1, Holds: 1})
	// Its session ends, and it is removed; a join that is late makes a member of it
	// again, in generation 2, while it takes another session.
	now = now.Add(time.Second)
	next(Detached{Number: 1})
	now = now.Add(time.Second)
	next(Tick{})
	next(Attached{Number: 2, Sent: now, Worker: "w", Published: Published{Row: true}})
	if request.Presence.Number != 2 {
		t.Fatalf("it sends %+v, want it to publish its session", request)
	}
	actions := answer(View{Generation: 2, Total: 1, Holds: 0})
	begin, _, bound := s.Proof()
	if !bound || now.Before(begin) {
		t.Errorf("handlers of generation 1 may begin for %s, by an answer that shows generation 2; the session says %v", begin.Sub(now), actions)
	}
}

// far is a world with one worker whose own session needs a while for each answer.
func far(roundTrip time.Duration) (*sessionWorld, *proc) {
	w := &sessionWorld{dice: &dice{}, now: testStart, present: true, tracing: true, layouts: map[int64]map[int]WorkerID{}, totals: map[int64]int{}}
	p := w.join()
	if roundTrip > presenceSlow {
		p.farUntil = w.now.Add(time.Hour)
	}
	return w, p
}

// A worker whose session is slow from the start never publishes it, and does not have
// to join a second time.
func TestSlowFromTheStart(t *testing.T) {
	w, p := far(2 * presenceSlow)
	w.runUntil(w.now.Add(10 * time.Second))
	if w.err != nil {
		t.Fatal(w.err)
	}
	if p.forgone != ForgoneSlow || w.group.Generation != 1 || w.group.Members[0].Presence != (Presence{}) {
		t.Errorf("it goes by its lease for %q, and the group is %s, with presence %v", p.forgone, w.group, w.group.Members[0].Presence)
	}
	if p.run == nil || p.run.suspended {
		t.Error("its handlers do not run")
	}
}

// A worker whose session gets slow, that is interrupted again and again, or that can't
// have a session, comes back without one. The one that it has published is there until
// its handlers have stopped.
func TestForgoes(t *testing.T) {
	for _, tt := range []struct {
		name    string
		happens func(w *sessionWorld, p *proc)
		why     Forgone
	}{
		{"slow answers", func(w *sessionWorld, p *proc) { p.farUntil = w.now.Add(time.Hour) }, ForgoneSlow},
		{"interrupted, and nothing handled", func(w *sessionWorld, p *proc) { w.input(p, Thwarted{Vain: vainMax}) }, ForgoneSuspended},
		{"interrupted a few times", func(w *sessionWorld, p *proc) { w.input(p, Thwarted{Vain: vainMax - 1}) }, ""},
		{"stands still again and again", func(w *sessionWorld, p *proc) {
			for i := range suspensionsMax {
				w.after(time.Duration(i)*time.Second, nil, func() { p.frozen = w.now.Add(700 * time.Millisecond) })
			}
		}, ForgoneSuspended},
		{"stands still a few times", func(w *sessionWorld, p *proc) {
			for i := range suspensionsMax - 1 {
				w.after(time.Duration(i)*time.Second, nil, func() { p.frozen = w.now.Add(700 * time.Millisecond) })
			}
		}, ""},
		{"no session, and requests are answered", func(w *sessionWorld, p *proc) { p.noneTill = w.now.Add(time.Hour); p.lock = 0 }, ForgoneUnavailable},
		{"no session for a moment", func(w *sessionWorld, p *proc) { p.noneTill = w.now.Add(2 * time.Second); p.lock = 0 }, ""},
		{"no database", func(w *sessionWorld, p *proc) { p.cutOff = w.now.Add(20 * time.Second); p.lock = 0 }, ""},
		{"a pooler", func(w *sessionWorld, p *proc) {
			p.session.presence.inFlight = true // an answer is awaited
			w.input(p, Detached{Number: p.session.presence.number, Never: true})
		}, ForgoneToPooler},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, p := far(0)
			w.runUntil(w.now.Add(time.Minute))
			tt.happens(w, p)
			for range 60_000 {
				w.runUntil(w.now.Add(time.Millisecond))
				if p.forgone != "" && p.run != nil && p.run.assignment.Generation == 1 {
					t.Fatalf("%s its session ends while the handlers of its published incarnation run", w.now.Sub(testStart))
				}
			}
			w.runUntil(w.now.Add(time.Minute))
			if w.err != nil {
				t.Fatal(w.err)
			}
			if p.forgone != tt.why {
				t.Errorf("it goes by its lease because %q, want %q", p.forgone, tt.why)
			}
			if got := w.group.Members[0].Presence.Number == 0; got != (tt.why != "") {
				t.Errorf("its row has presence %v", w.group.Members[0].Presence)
			}
			if p.run == nil || p.run.suspended {
				t.Error("its handlers do not run")
			}
		})
	}
}
