//go:build !race

// A world has one thread: the race detector would find nothing and take ten times as long.

package sim

import (
	"flag"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A mutant is the production code with one guard removed or one rule bent.
type mutant struct {
	name   string
	rules  rules
	breaks []promise // one of these must be broken; others may be too
}

var mutants = []mutant{
	{"activates without waiting for the drain", rules{memory: memoryRules{step: func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		g.Members = slices.Clone(g.Members)
		for i := range g.Members {
			g.Members[i].Holds = 0
		}
		return protocol.Step(g, now, watch)
	}}}, []promise{oneOwner, onlyGrow, agreement, nothingTwice}},
	{"commits without the fence", rules{memory: memoryRules{unfenced: true, anyPosition: true}}, []promise{onlyGrow, nothingTwice, inOrder}},
	{"hands over by partition number", rules{memory: memoryRules{handoff: func(old []protocol.Checkpoint, total int) []protocol.Checkpoint {
		next := make([]protocol.Checkpoint, total)
		copy(next, old)
		return next
	}}}, []promise{nothingLost, nothingTwice, inOrder}},
	{"hands over the highest position", rules{memory: memoryRules{handoff: func(old []protocol.Checkpoint, total int) []protocol.Checkpoint {
		var highest int64
		for _, c := range old {
			highest = max(highest, c.Position)
		}
		next := make([]protocol.Checkpoint, total)
		for i := range next {
			next[i].Position = highest
		}
		return next
	}}}, []promise{nothingLost}},
	{"drops the marks at a hand-over", rules{memory: memoryRules{handoff: func(old []protocol.Checkpoint, total int) []protocol.Checkpoint {
		next := protocol.Handoff(old, total)
		for i := range next {
			next[i].Ahead = nil
		}
		return next
	}}}, []promise{nothingTwice, inOrder}},
	{"waits at a gap only for locks on the table, not for those on the sequence", rules{memory: memoryRules{tableAlone: true}}, []promise{nothingLost}},
	{"treats a standby server as the primary", rules{memory: memoryRules{standbyUnseen: true}}, []promise{nothingLost}},
	{"does not check at a gap whether the sequence caches", rules{asksOnce: true}, []promise{nothingLost}},
	{"lets a worker join that reads another table", rules{memory: memoryRules{anyStream: true}}, []promise{nothingLost}},
	{"reads past gaps", rules{passesGaps: true}, []promise{nothingLost}},
	{"waits for a gap and does not read again", rules{readsOnce: true}, []promise{nothingLost}},
	{"serves a page of another window", rules{wrongWindow: true}, []promise{nothingLost}},
	{"serves a lagging lane from the position of the others", rules{skipsDropped: true}, []promise{nothingLost}},
	{"treats a scoped page as if it had no gaps", rules{trustsScopedPages: true}, []promise{nothingLost}},
	{"finds the gaps in a scope and passes them", rules{passesScopedGaps: true}, []promise{nothingLost}},
	{"leaves out one of its own slots", rules{dropsOwnSlot: true}, []promise{nothingLost}},
	{"reads only the slots of its first partition", rules{countsOnePartition: true}, []promise{nothingLost}},
	{"counts only events in scope as the progress of a store", rules{countsScopeAlone: true}, []promise{recovers}},
	{"takes the limit of a read as its result", rules{passesWholeLimit: true}, []promise{nothingLost}},
	{"hands events beyond the scope to a handler", rules{forgetsScope: true}, []promise{withinScope}},
	{"treats scopes that differ in event types as equal", rules{mixesEventTypes: true}, []promise{withinScope, nothingLost}},
	{"decides a join by an old reading and counts the lease from the join", rules{leaseFromJoin: true}, []promise{oneOwner, onLease}},
	{"counts the lease from the reply", rules{leaseFromReply: true}, []promise{oneOwner, onLease}},
	{"does not enforce its own lease", rules{leaseUnenforced: true}, []promise{oneOwner, inOrder, nothingTwice, onLease}},
	{"reports a stop before its handlers have returned", rules{stopsTooEarly: true}, []promise{oneOwner}},
	{"leaves its place vacant before its handlers have returned", rules{vacatesAtOnce: true}, []promise{oneOwner}},
	{"leaves its place vacant although a commit may arrive late", rules{alwaysSettled: true}, []promise{onlyGrow, nothingTwice, inOrder}},
	{"takes a place that is already taken", step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		next, d := protocol.Step(g, now, watch)
		for _, t := range d.Taken {
			i := slices.IndexFunc(g.Members, func(m protocol.Member) bool { return m.ID == t.From })
			next.Members = append(next.Members, g.Members[i])
		}
		return next, d
	}), []promise{agreement, oneOwner}},
	{"takes a place whose window is over", step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		g.Members = slices.Clone(g.Members)
		for i := range g.Members {
			if m := &g.Members[i]; m.Vacant {
				m.Lease, m.LeaseEnd = time.Hour, now.Add(time.Hour)
			}
		}
		return protocol.Step(g, now, watch)
	}), []promise{agreement}},
	{"gives up a vacant place too early", step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		g.Members = slices.Clone(g.Members)
		for i := range g.Members {
			if m := &g.Members[i]; m.Vacant && m.LeaseEnd.Sub(now) < m.Lease/2 {
				m.LeaseEnd = now
			}
		}
		return protocol.Step(g, now, watch)
	}), []promise{agreement}},
	{"rejoins under the old identity", rules{sameIdentity: true}, []promise{oneOwner, agreement, recovers, staysStill}},
	{"treats a COMMIT without a reply as failed", rules{unknownIsFailure: true}, []promise{nothingTwice, inOrder, recovers}},
	// The fence would repair this one: the next commit names a position at which the row
	// does not stand, and the lane goes back to it. So that guard is removed too.
	{"treats a COMMIT without a reply as done, without the fence on the position", rules{unknownIsSuccess: true, memory: memoryRules{anyPosition: true}}, []promise{nothingLost}},
	{"reads a checkpoint without waiting for its writer", rules{memory: memoryRules{hastyFind: true}}, []promise{inOrder, nothingTwice, nothingLost}},
	{"commits again without the handlers' effects", rules{retriesEmpty: true}, []promise{nothingLost}},
	{"moves the checkpoint after the handler has ended its transaction", rules{memory: memoryRules{unmarked: true}}, []promise{nothingLost}},
	{"retries a statement's time limit without end", rules{answer: func(l *lane, a protocol.LaneAnswer) protocol.LaneAnswer {
		if l.doing == protocol.LaneHandle && a.Failure == protocol.Fault {
			a.Failure = protocol.Passing
		}
		return a
	}, lane: func(c protocol.LaneConfig) protocol.LaneConfig {
		c.Lease *= 1000
		return c
	}}, []promise{underPolicy}},
	{"retries a passing failure without end", rules{lane: func(c protocol.LaneConfig) protocol.LaneConfig {
		c.Lease *= 1000
		return c
	}}, []promise{underPolicy}},
	{"counts a suspension as a failure of the handler", rules{answer: func(_ *lane, a protocol.LaneAnswer) protocol.LaneAnswer {
		if a.Failure == protocol.Interrupted {
			a.Failure = protocol.Fault
		}
		return a
	}}, []promise{underPolicy}},
	{"counts a lost connection as a failure of the handler", rules{answer: func(l *lane, a protocol.LaneAnswer) protocol.LaneAnswer {
		if a.Failure == protocol.Cut {
			a.Failure = protocol.Fault
		}
		return a
	}}, []promise{underPolicy}},
	{"retries after a permanent error", rules{answer: func(l *lane, a protocol.LaneAnswer) protocol.LaneAnswer {
		if a.Failure == protocol.Permanent && l.doing == protocol.LaneHandle {
			a.Failure = protocol.Fault
		}
		return a
	}}, []promise{underPolicy}},
	{"goes past a failed plain batch", rules{answer: func(l *lane, a protocol.LaneAnswer) protocol.LaneAnswer {
		if l.doing == protocol.LaneHandle && l.kind == protocol.PlainBatched && a.Failure == protocol.Fault {
			a.Failure = protocol.NoFailure
		}
		return a
	}}, []promise{nothingLost}},
	{"repeats a plain batch that has succeeded", rules{answer: func(l *lane, a protocol.LaneAnswer) protocol.LaneAnswer {
		if l.doing == protocol.LaneHandle && l.kind == protocol.PlainBatched && l.p.w.calls%10 == 0 {
			a.Failure = protocol.Fault
		}
		return a
	}}, []promise{nothingTwice}},
	{"calls the handler again in a failed transaction", rules{keepsTransaction: true}, []promise{nothingTwice}},
	{"runs a paused projection", rules{runsPaused: true}, []promise{obeys}},
	{"drops a rewind when a newer generation is opened", step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		draining := g.Phase == protocol.Draining
		due := g.Rewinds
		next, d := protocol.Step(g, now, watch)
		if draining && d.Opened && len(due) > 0 {
			next.Rewinds, d.Rewinds = nil, nil
		}
		return next, d
	}), []promise{nothingLost, recovers}},
	{"carries out no rewind", step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		next, d := protocol.Step(g, now, watch)
		d.Rewinds = nil
		return next, d
	}), []promise{nothingLost, recovers}},
	{"postpones the activation when workers join", rules{memory: memoryRules{step: func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		next, d := protocol.Step(g, now, watch)
		fresh := func(m protocol.Member) bool { return now.Sub(m.Joined) < m.Lease/2 }
		if d.Activated && next.Generation > 1 && slices.ContainsFunc(next.Members, fresh) {
			// It waits for further joins.
			next.Phase, d.Activated = protocol.Draining, false
			for i := range next.Members {
				next.Members[i].Holds = 0
			}
		}
		return next, d
	}}}, []promise{recovers, bounded}},
	{"expires leases by a clock that jumped", rules{memory: memoryRules{step: func(g protocol.Group, now time.Time, _ protocol.Watch) (protocol.Group, protocol.Decision) {
		return protocol.Step(g, now, protocol.Watch{Seen: now, For: 1000 * time.Hour})
	}}}, []promise{oneOwner, agreement}},
	{"takes a projection from a replica set that runs it", rules{memory: memoryRules{takesAny: true}}, []promise{oneOwner, inOrder, nothingTwice}},
	{"ignores the generation of a projection's former set", rules{memory: memoryRules{step: func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		g.Floor = 0
		return protocol.Step(g, now, watch)
	}}}, []promise{onlyGrow}},
	{"bounds no idle transaction", rules{memory: memoryRules{noIdleBound: true}}, []promise{recovers, bounded}},

	// Where a new projection starts.
	{"starts a projection above the highest position", rules{startsAtHighest: true}, []promise{nothingLost}},
	{"starts a projection at the first gap", rules{startsAtGap: true}, []promise{startsWhere}},
	{"starts a projection at the end as it was before the join", rules{startsEarly: true}, []promise{startsWhere}},
	{"decides at each join where a projection starts", rules{memory: memoryRules{startsAgain: true}}, []promise{startsWhere}},

	// Events that can't be read.
	{"fails a page for one unreadable event", rules{failsPages: true}, []promise{recovers}},
	{"does not read an unreadable event again", rules{keepsUnreadable: true}, []promise{recovers}},
	{"hands an unreadable event to the handler", rules{handsBadOut: true}, []promise{nothingLost}},
	{"skips an unreadable event", rules{skipsBad: true}, []promise{nothingLost}},

	// A rebuild beside a live projection.
	{"lets a rebuild pass the live projection", rules{answer: func(l *lane, a protocol.LaneAnswer) protocol.LaneAnswer {
		if l.doing == protocol.LaneFollow && !a.Live {
			a.Checkpoints = []protocol.Checkpoint{{Position: math.MaxInt64 / 2}}
		}
		return a
	}}, []promise{follows}},
	{"lets a rebuild pass the live projection on slots that are behind", rules{answer: func(l *lane, a protocol.LaneAnswer) protocol.LaneAnswer {
		if l.doing == protocol.LaneFollow && !a.Live {
			var high int64
			for _, c := range a.Checkpoints {
				high = max(high, c.Position)
			}
			a.Checkpoints = []protocol.Checkpoint{{Position: high}}
		}
		return a
	}}, []promise{follows}},
	{"marks no event as a replay", rules{replay: func(*lane, bool) bool { return false }}, []promise{follows}},
	{"marks events as replays after the promotion", rules{replay: func(l *lane, is bool) bool {
		return is || l.id.Projection == rebuilt
	}}, []promise{follows}},
	{"promotes without checking that the live projection has stopped", promotes(func(next, live *protocol.Standing) {
		live.Stopped = true
	}), []promise{follows, oneOwner, onlyGrow, nothingTwice}},
	{"promotes a rebuild that is behind on some slots", promotes(func(next, live *protocol.Standing) {
		for _, s := range []*protocol.Standing{next, live} {
			s.Checkpoints = []protocol.Checkpoint{{Position: protocol.Handoff(s.Checkpoints, 1)[0].Position}}
		}
	}), []promise{follows}},
	{"never ends a hold", step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		g.Holds = slices.Clone(g.Holds)
		for i := range g.Holds {
			g.Holds[i].Until = now.Add(time.Hour)
		}
		return protocol.Step(g, now, watch)
	}), []promise{recovers}},

	// What other workers wait for.
	{"expires a lease late", step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		for _, m := range g.Members {
			if m.Expired(now, watch) && now.Before(m.LeaseEnd.Add(m.Lease)) {
				return protocol.Step(g, now, protocol.Watch{})
			}
		}
		return protocol.Step(g, now, watch)
	}), []promise{bounded}},
	{"sends every other heartbeat", rules{timing: func(t protocol.Timing) protocol.Timing {
		t.Heartbeat *= 2
		return t
	}}, []promise{bounded}},
	{"does not report that it has stopped", rules{action: func(_ *worker, a protocol.Action) protocol.Action {
		if s, ok := a.(protocol.Sync); ok {
			s.Request.Stopped = 0
			return s
		}
		return a
	}}, []promise{bounded}},
	{"never gives up a handler", rules{action: func(_ *worker, a protocol.Action) protocol.Action {
		if e, ok := a.(protocol.Exit); ok && e.Cause == protocol.DrainTimeout {
			return nil
		}
		return a
	}}, []promise{bounded}},
	{"does not cancel a handler that takes too long to stop", rules{action: func(_ *worker, a protocol.Action) protocol.Action {
		if c, ok := a.(protocol.Cancel); ok && !c.Lost {
			return nil
		}
		return a
	}}, []promise{bounded}},
	{"cancels handlers as soon as it is asked to stop", rules{action: func(p *worker, a protocol.Action) protocol.Action {
		if d, ok := a.(protocol.Drain); ok {
			p.record(fact{kind: runDrains, generation: d.Generation})
			return protocol.Cancel{Generation: d.Generation}
		}
		return a
	}}, []promise{bounded}},

	// The lease, and events that are handled again.
	{"uses its whole lease", rules{timing: func(t protocol.Timing) protocol.Timing {
		t.Lease = t.Lease * 5 / 4
		return t
	}, action: func(p *worker, a protocol.Action) protocol.Action {
		if s, ok := a.(protocol.Sync); ok {
			s.Request.Lease = p.timing.Lease
			return s
		}
		return a
	}}, []promise{onLease}},
	{"checks its lease before a batch, not before each event", rules{signals: func(_ *lane, s protocol.Signals) protocol.Signals {
		s.LeaseOver = false
		return s
	}}, []promise{onLease}},
	{"does not cancel handlers when its lease is over", rules{action: func(_ *worker, a protocol.Action) protocol.Action {
		if c, ok := a.(protocol.Cancel); ok && c.Lost {
			return nil
		}
		return a
	}}, []promise{onLease}},
	{"starts a generation again that it has stopped", rules{input: func(p *worker, in protocol.Input) protocol.Input {
		if s, ok := in.(protocol.Synced); ok && p.run != nil && p.run.left == 0 && s.View.May() && s.View.Generation == p.run.generation {
			p.start(protocol.Share{Generation: s.View.Generation, Partitions: s.View.Partitions, Total: s.View.Total})
		}
		return in
	}}, []promise{agreement}},
	{"does not look for lanes that are missing", rules{input: func(_ *worker, in protocol.Input) protocol.Input {
		if l, ok := in.(protocol.Lanes); ok {
			l.Missing = false
			return l
		}
		return in
	}}, []promise{recovers}},
	{"commits nothing when it is asked to stop", rules{signals: func(_ *lane, s protocol.Signals) protocol.Signals {
		s.Canceled = s.Canceled || s.Asked
		return s
	}}, []promise{nothingTwice}},
	{"repeats a plain handler call that has succeeded", rules{answer: func(l *lane, a protocol.LaneAnswer) protocol.LaneAnswer {
		if l.doing == protocol.LaneHandle && l.kind == protocol.Plain && l.p.w.calls%10 == 0 {
			a.Failure = protocol.Fault
		}
		return a
	}}, []promise{nothingTwice}},

	// The liveness connection.
	{"removes a worker at once when its liveness lock is missing", rules{input: func(p *worker, in protocol.Input) protocol.Input {
		if s, ok := in.(protocol.Proven); ok && len(s.Group.Absent) > 0 {
			p.sync(protocol.Request{Worker: p.session.ID(), Lease: p.timing.Lease, Watch: protocol.Watch{Absent: s.Group.Absent}})
		}
		return in
	}}, []promise{oneOwner, inOrder, nothingTwice}},
	{"saves a decision although its input has changed", rules{memory: memoryRules{blindAttempt: true}}, []promise{oneOwner, nothingLost, onlyGrow}},
	{"starts from a checkpoint that was read for another generation", rules{startsFromAnyLook: true}, []promise{nothingTwice, nothingLost}},
	{"ignores missing liveness locks", rules{input: func(_ *worker, in protocol.Input) protocol.Input {
		switch s := in.(type) {
		case protocol.Proven:
			s.Group.Absent = nil
			return s
		case protocol.Synced:
			s.View.Others.Absent = nil
			return s
		}
		return in
	}}, []promise{bounded}},
	{"checks liveness locks without the generation", rules{looksAtNobody: true}, []promise{bounded}},
	// See "When the lease decides alone" in protocol/presence.go.
	{"goes by its lease while its row has a session", rules{input: func(p *worker, in protocol.Input) protocol.Input {
		switch s := in.(type) {
		case protocol.Proven:
			if p.now().Sub(s.Sent) > 100*time.Millisecond {
				p.alone = true
			}
			if p.alone { // so that it does not rejoin without one
				s.Sent = p.now()
			}
			return s
		case protocol.Thwarted:
			p.alone = p.alone || s.Vain >= 4
			return nil
		}
		return in
	}, action: func(p *worker, a protocol.Action) protocol.Action {
		if p.alone && a == (protocol.Suspend{}) {
			return nil
		}
		return a
	}, signals: func(l *lane, s protocol.Signals) protocol.Signals {
		s.Unproven = s.Unproven && !l.p.alone
		return s
	}}, []promise{oneOwner, onLease}},
	{"ends its liveness connection when it gives up its handlers", rules{action: func(_ *worker, a protocol.Action) protocol.Action {
		if e, ok := a.(protocol.Exit); ok {
			e.Keep = 0
			return e
		}
		return a
	}}, []promise{oneOwner}},
	{"begins a handler without a proof of liveness", rules{unprovenBegins: true}, []promise{onLease}},
	{"does not suspend handlers", rules{action: func(_ *worker, a protocol.Action) protocol.Action {
		if a == (protocol.Suspend{}) {
			return nil
		}
		return a
	}}, []promise{onLease}},
	{"counts a proof of liveness from its answer", rules{input: func(p *worker, in protocol.Input) protocol.Input {
		switch in := in.(type) {
		case protocol.Proven:
			in.Sent = p.now()
			return in
		case protocol.Attached:
			in.Sent = p.now()
			return in
		}
		return in
	}}, []promise{oneOwner, onLease}},
	{"counts a proof of an unpublished liveness connection", rules{input: func(_ *worker, in protocol.Input) protocol.Input {
		if s, ok := in.(protocol.Synced); ok {
			s.Request.Presence.Number = math.MaxInt32
			return s
		}
		return in
	}}, []promise{oneOwner, onLease}},

	// Notifications of new events.
	{"polls as rarely after notifications have stopped", rules{hears: func(f *feed, h protocol.Hearing) {
		if h != protocol.HintsDown {
			f.listener.core.Hear(h)
		}
	}}, []promise{bounded}},
	{"does not poll when notifications stop", rules{hears: func(f *feed, h protocol.Hearing) {
		c := f.p.w.plan.feed
		c.Poll, c.BySlot = f.p.w.plan.poll, true
		if h == protocol.HintsDown { // poll as often as it must from now on
			c.Poll /= 5
		} else {
			f.listener.core.Hear(h)
		}
		f.core.Configure(c)
	}}, []promise{bounded}},
	{"trusts a connection before a notification has come", rules{hears: func(f *feed, h protocol.Hearing) {
		if f.listener.core.Hear(h); h == protocol.HintsUp {
			f.listener.core.Hear(protocol.HintHeard)
		}
	}}, []promise{bounded}},

	// Parked events.
	{"parks without the fence", rules{memory: memoryRules{parkUnfenced: true}}, []promise{onlyGrow, nothingTwice, nothingLost, inOrder}},
	{"does not read rows that others have parked", looks(func(l *lane, rows []protocol.Parked) []protocol.Parked {
		if n, _ := l.core.Parked(); n == 0 {
			return nil
		}
		return rows
	}), []promise{inOrder}},
	{"assumes that nothing is parked", rules{answer: func(l *lane, a protocol.LaneAnswer) protocol.LaneAnswer {
		if l.doing == protocol.LaneLoad {
			a.Found.NoneParked = a.Found.Exists
		}
		return a
	}}, []promise{inOrder, recovers}},
	{"handles events although an earlier one of the aggregate is parked", looks(func(_ *lane, rows []protocol.Parked) []protocol.Parked {
		for i := range rows {
			rows[i].Aggregate += "?"
		}
		return rows
	}), []promise{inOrder}},
	{"retries parked events in any order", looks(func(_ *lane, rows []protocol.Parked) []protocol.Parked {
		for i := range rows {
			if rows[i].Request == protocol.Retry {
				rows[i].Aggregate = fmt.Sprint(rows[i].Position)
			}
		}
		return rows
	}), []promise{inOrder}},
	{"deletes a parked event before its retry is committed", rules{unparksApart: true}, []promise{nothingLost, nothingTwice}},
	{"discards parked events without a request", looks(func(_ *lane, rows []protocol.Parked) []protocol.Parked {
		for i := range rows {
			rows[i].Request = protocol.Discard
		}
		return rows
	}), []promise{nothingLost}},
	{"takes the requests for all parked events", looks(func(l *lane, rows []protocol.Parked) []protocol.Parked {
		if n, _ := l.core.Parked(); n == 0 {
			return rows
		}
		return slices.DeleteFunc(rows, func(p protocol.Parked) bool { return p.Request == protocol.Unasked })
	}), []promise{inOrder, recovers}},
	{"ignores requests about parked events", looks(func(_ *lane, rows []protocol.Parked) []protocol.Parked {
		for i := range rows {
			rows[i].Request = protocol.Unasked
		}
		return rows
	}), []promise{recovers}},
	{"forgets what it has parked", rules{answer: func(l *lane, a protocol.LaneAnswer) protocol.LaneAnswer {
		if rows := l.core.Parking(); l.doing == protocol.LanePark {
			for i := range rows {
				rows[i].Aggregate = "?"
			}
		}
		return a
	}}, []promise{inOrder}},

	// Orders to park an event.
	{"parks the event it stands at, not the one that the order names", looks(func(l *lane, rows []protocol.Parked) []protocol.Parked {
		for i := range rows {
			if rows[i].Request == protocol.ToPark && len(l.events) > 0 {
				rows[i].Position = l.events[0].position
			}
		}
		return rows
	}), []promise{underPolicy}},
	{"parks the event after the one that the order names", looks(func(_ *lane, rows []protocol.Parked) []protocol.Parked {
		for i := range rows {
			if rows[i].Request == protocol.ToPark {
				rows[i].Position++
			}
		}
		return rows
	}), []promise{underPolicy, obeys}},
	{"ignores orders to park", looks(func(_ *lane, rows []protocol.Parked) []protocol.Parked {
		return slices.DeleteFunc(rows, func(p protocol.Parked) bool { return p.Request == protocol.ToPark })
	}), []promise{obeys}},

	// Members and their partitions.
	{"exceeds the limit of partitions", step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		limit := g.MaxPartitions
		g.MaxPartitions = 0
		next, d := protocol.Step(g, now, watch)
		next.MaxPartitions = limit
		return next, d
	}), []promise{agreement}},
	{"gives each worker one partition", step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		wants := map[protocol.WorkerID]int{}
		g.Members = slices.Clone(g.Members)
		for i := range g.Members {
			m := &g.Members[i]
			wants[m.ID], m.Wants = m.Wants, 1
		}
		next, d := protocol.Step(g, now, watch)
		for i := range next.Members {
			m := &next.Members[i]
			m.Wants = wants[m.ID]
		}
		return next, d
	}), []promise{agreement}},
	{"does not run its last partition", rules{action: func(_ *worker, a protocol.Action) protocol.Action {
		if s, ok := a.(protocol.Start); ok && len(s.Share.Partitions) > 1 {
			s.Share.Partitions = s.Share.Partitions[:len(s.Share.Partitions)-1]
			return s
		}
		return a
	}}, []promise{agreement}},
	{"renumbers the partitions of all workers", step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		next, d := protocol.Step(g, now, watch)
		if d.Opened {
			for i := range next.Members {
				m := &next.Members[i]
				m.Partitions = slices.Clone(m.Partitions)
				for j, k := range m.Partitions {
					m.Partitions[j] = next.Total - 1 - k
				}
				slices.Reverse(m.Partitions)
			}
		}
		return next, d
	}), []promise{agreement}},
	{"lets a standby displace a running worker", step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		g.Members = slices.Clone(g.Members)
		slices.Reverse(g.Members)
		return protocol.Step(g, now, watch)
	}), []promise{agreement}},
	{"never promotes a standby", step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		if g.MaxPartitions == 0 || g.Generation == 0 {
			return protocol.Step(g, now, watch)
		}
		run, stand := g, g
		waits := func(m protocol.Member) bool { return len(m.Partitions) == 0 }
		run.Members = slices.DeleteFunc(slices.Clone(g.Members), waits)
		stand.Members = slices.DeleteFunc(slices.Clone(g.Members), func(m protocol.Member) bool { return !waits(m) })
		next, d := protocol.Step(run, now, watch)
		next.Members = append(next.Members, stand.Members...)
		return next, d
	}), []promise{agreement}},
	{"ignores the join window", step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		window := g.JoinWindow
		g.JoinWindow = 0
		next, d := protocol.Step(g, now, watch)
		next.JoinWindow = window
		return next, d
	}), []promise{staysStill}},
	{"extends the join window with each join", postponed(func(g protocol.Group, d protocol.Decision, next protocol.Group, now time.Time) bool {
		return next.Generation > 1 && g.Phase == protocol.Active && strings.HasSuffix(next.Reason, "joined") &&
			slices.ContainsFunc(g.Members, func(m protocol.Member) bool {
				return len(m.Partitions) == 0 && now.Sub(m.Joined) < 2*g.JoinWindow
			})
	}), []promise{bounded}},
	{"makes the first worker wait for the join window", postponed(func(g protocol.Group, _ protocol.Decision, next protocol.Group, now time.Time) bool {
		return next.Generation == 1 && now.Sub(g.Members[0].Joined) < g.JoinWindow
	}), []promise{agreement}},
	{"makes a crash wait for the join window", postponed(func(_ protocol.Group, d protocol.Decision, _ protocol.Group, _ time.Time) bool {
		return len(d.Expired) > 0
	}), []promise{agreement}},
	{"makes a leave wait for the join window", postponed(func(g protocol.Group, d protocol.Decision, next protocol.Group, _ time.Time) bool {
		return len(d.Expired) == 0 && g.Phase == protocol.Active && strings.HasSuffix(next.Reason, "gone")
	}), []promise{agreement}},
}

// looks changes what lanes read of parked events.
func looks(bend func(*lane, []protocol.Parked) []protocol.Parked) rules {
	return rules{answer: func(l *lane, a protocol.LaneAnswer) protocol.LaneAnswer {
		if l.doing == protocol.LaneLoadParked {
			a.Parked = bend(l, slices.Clone(a.Parked))
		}
		return a
	}}
}

// promotes changes the state on which a promotion decides, in the program and in the
// switch.
func promotes(bend func(next, live *protocol.Standing)) rules {
	return rules{standing: func(a *protocol.PromotionAnswer) { bend(&a.Next, &a.Live) }, memory: memoryRules{ready: func(next, live *store.ProjectionVersion) error {
		n, l := *next, *live
		bend(&n.Standing, &l.Standing)
		return store.Ready(&n, &l)
	}}}
}

// step replaces the coordinator.
func step(s func(protocol.Group, time.Time, protocol.Watch) (protocol.Group, protocol.Decision)) rules {
	return rules{memory: memoryRules{step: s}}
}

// postponed delays the opening of a generation to a later Step.
func postponed(when func(g protocol.Group, d protocol.Decision, next protocol.Group, now time.Time) bool) rules {
	return step(func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		next, d := protocol.Step(g, now, watch)
		if !d.Opened || !when(g, d, next, now) {
			return next, d
		}
		g.Members = slices.DeleteFunc(slices.Clone(g.Members), func(m protocol.Member) bool { return slices.Contains(d.Expired, m.ID) })
		return g, protocol.Decision{Expired: d.Expired, StepAt: now.Add(g.JoinWindow)}
	})
}

// mutantSeeds is the number of seeds in which a mutant must be caught.
const mutantSeeds = 1000

var mutantName = flag.String("sim.mutant", "", "play only the mutants whose name holds this `text`")

// mutantsFile has the first seed that catches each mutant. TestMutants plays that one, which
// takes a tenth of the time of a search. If it no longer does, because what a seed draws has
// changed, the test searches all seeds; -update writes what it finds.
const mutantsFile = "testdata/mutants.txt"

// TestMutants checks that every mutant is caught within mutantSeeds, on a seed on which the
// correct code passes.
func TestMutants(t *testing.T) {
	t.Parallel()
	known := firstSeeds(t)
	mutants := slices.DeleteFunc(slices.Clone(mutants), func(m mutant) bool { return !strings.Contains(m.name, *mutantName) })
	seeds, caught := make([]int, len(mutants)), make([]outcome, len(mutants))
	var next atomic.Int64
	var cores sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		cores.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(mutants); i = int(next.Add(1)) - 1 {
				seeds[i], caught[i] = catch(t, mutants[i], known[mutants[i].name])
			}
		})
	}
	cores.Wait()
	var table, file strings.Builder
	fmt.Fprintf(&table, "%-64s %-14s %5s\n", "mutant", "broke", "seeds")
	for i, m := range mutants {
		v := caught[i].violation
		if v == nil {
			t.Errorf("no promise was broken by the mutant that %s, in %d seeds", m.name, seeds[i])
			continue
		}
		fmt.Fprintf(&table, "%-64s %-14s %5d\n", m.name, v.promise, seeds[i])
		fmt.Fprintf(&file, "%4d %s\n", seeds[i], m.name)
		if n := known[m.name]; n != seeds[i] && !*update {
			t.Logf("%s: seed %d does not catch the mutant that %s, and seed %d does; -update writes it", mutantsFile, n, m.name, seeds[i])
		}
		control, err := play(caught[i].plan, rules{}, inMemory, false)
		if err != nil {
			t.Fatal(err)
		}
		if v := control.violation; v != nil {
			t.Errorf("seed %d, which caught the mutant that %s, breaks %s without the mutant too: %s", control.plan.seed, m.name, v.promise, v.what)
		}
	}
	t.Logf("\n%s", table.String())
	if *update && *mutantName == "" && !t.Failed() {
		if err := os.WriteFile(mutantsFile, []byte(file.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// firstSeeds reads mutantsFile. With -update it knows none, so that all are searched.
func firstSeeds(t *testing.T) map[string]int {
	t.Helper()
	known := map[string]int{}
	if *update {
		return known
	}
	text, err := os.ReadFile(mutantsFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		seed, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(seed)
		if err != nil {
			t.Fatalf("%s: %q: %v", mutantsFile, line, err)
		}
		known[name] = n
	}
	return known
}

// catch plays the seed that is known to catch the mutant and, if it does not, seeds until one
// does.
func catch(t *testing.T, m mutant, known int) (seeds int, caught outcome) {
	t.Helper()
	if known > 0 && known <= mutantSeeds {
		if o, is := catches(t, m, known); is {
			return known, o
		}
	}
	for seed := 1; seed <= mutantSeeds && !t.Failed(); seed++ {
		if o, is := catches(t, m, seed); is {
			return seed, o
		}
	}
	return mutantSeeds, outcome{}
}

// catches reports whether a seed breaks a promise that the mutant must break.
func catches(t *testing.T, m mutant, seed int) (o outcome, is bool) {
	t.Helper()
	p := planOf(uint64(seed), options{})
	if p.rebuild == nil && slices.Contains(m.breaks, follows) {
		return o, false // there is no rebuild
	}
	o, err := play(p, m.rules, inMemory, false)
	if err != nil {
		t.Error(err)
		return o, false
	}
	return o, o.violation != nil && slices.Contains(m.breaks, o.violation.promise)
}
