//go:build !race

package protocol

import (
	"fmt"
	"strings"
	"time"
)

func (w *groupWorld) key(b []byte) []byte {
	k := &keyWriter{b, w.now()}
	g := w.group
	k.number(g.Generation, int64(g.Total), int64(len(g.Members)))
	k.flags(g.Phase == Active)
	for _, m := range g.Members {
		k.text(string(m.ID))
		k.number(only(m.Partitions), m.Holds)
		k.flags(m.Vacant)
		k.time(m.LeaseEnd)
		if len(m.Partitions) == 0 && w.joinWindow > 0 {
			k.time(m.Joined)
		}
	}
	k.due(w.stepAt)
	k.number(w.active.generation, int64(len(w.active.owners)))
	for _, id := range w.active.owners {
		k.text(string(id))
	}
	for _, row := range w.rows {
		k.number(row.generation)
		w.checkpointKey(k, row.checkpoint)
	}
	k.number(int64(len(w.txs)))
	for _, tx := range w.txs {
		k.flags(tx.flying)
		k.number(int64(tx.owner), int64(tx.partition), tx.generation, int64(tx.events))
		w.checkpointKey(k, tx.to)
		k.due(testStart.Add(tx.since + groupIdle))
	}
	k.number(int64(len(w.late)))
	for _, r := range w.late {
		requestKey(k, r.Request)
		k.flags(r.saves)
		k.text(r.saving.by)
		k.number(int64(r.partition), r.generation, int64(r.events))
		w.checkpointKey(k, r.from)
		w.checkpointKey(k, r.to)
		k.time(testStart.Add(r.by))
	}
	l := w.left
	for _, n := range [...]int8{l.faults, l.lost, l.slow, l.uncommitted, l.crash, l.freeze, l.cut, l.leave, l.restart} {
		k.number(int64(n))
	}
	k.number(int64(w.appended), int64(w.committed))
	for _, p := range w.all() {
		k.number(int64(p.life))
		if p.life == alive {
			w.workerKey(k, p)
		} else {
			k.text(p.name)
		}
	}
	return k.b
}

func (w *groupWorld) checkpointKey(k *keyWriter, c Checkpoint) {
	k.number(c.Position, int64(w.marksOf(c)))
}

func requestKey(k *keyWriter, r Request) {
	k.text(string(r.Worker))
	k.flags(r.Join, r.Leave, r.Heartbeat, r.ReadOnly, r.Vacate > 0)
	k.number(r.Stopped, int64(min(r.Watch.For, groupTiming.Lease)/time.Millisecond), int64(r.Watch.Errors[0]/time.Microsecond), int64(r.Watch.Errors[1]/time.Microsecond)) // all have the same lease
	k.time(r.Watch.Seen)
}

func (w *groupWorld) workerKey(k *keyWriter, p *groupProc) {
	k.flags(p.asked, p.leaving, !w.awake(p), w.isCut(p))
	if w.isCut(p) {
		k.number(int64((p.cut - w.at) / time.Millisecond))
	}
	if !w.awake(p) {
		k.number(int64((p.frozen - w.at) / time.Millisecond))
	}
	c := p.call
	even := w.left.slow == 0 && w.left.freeze == 0 && w.awake(p) && (c.where == nowhere || c.sent.Equal(w.now()))
	sessionKey(k, &p.session, even)
	k.due(p.wake)
	k.number(int64(len(p.inputs)))
	for _, in := range p.inputs {
		switch in := in.(type) {
		case Refused:
			k.number(0, in.Generation)
		case Stopped:
			k.number(1, in.Generation)
			k.flags(in.Settled)
		}
	}
	k.number(int64(c.where))
	if c.where != nowhere {
		k.flags(c.slow)
		requestKey(k, c.request)
		k.time(c.sent)
	}
	if v := c.view; c.where == back {
		k.flags(v.Member)
		k.number(v.Generation, int64(v.Total), only(v.Partitions), v.Holds)
		k.time(v.Now)
		k.time(v.StepAt)
	}
	k.flags(p.run != nil)
	if r := p.run; r != nil {
		k.number(r.assignment.Generation, int64(r.assignment.Partition), int64(r.assignment.Total))
		k.flags(r.asked, r.canceled, r.slow, r.delayed, r.excused)
		k.number(int64(r.handled))
		w.laneKey(k, r)
	}
}

// sessionKey writes what decides what a session does next. In its place are
// left out: what only the next running, or none, would look at; how often
// polls and failures were, where only some of that counts in this timing; and
// the readings that a clock which never steps can't fall out with. even says
// that all further readings are as exact as can be.
func sessionKey(k *keyWriter, s *Session, even bool) {
	k.text(string(s.id))
	k.flags(s.member, s.asked, s.lost, s.running != nil, s.inFlight, s.step, s.early, s.renew,
		s.failures > 0, s.ask, s.leaving, s.replaced, s.unsettled)
	if !s.lost {
		k.time(s.leaseEnd)
	}
	if s.running != nil {
		k.number(s.running.Generation, only(s.running.Partitions), int64(s.running.Total))
		k.time(s.stopping)
		k.time(s.canceled)
		refused := s.refused == s.running.Generation
		k.flags(refused)
		if refused {
			k.time(s.refusedAt)
		}
	}
	k.number(s.stopped, s.reported, int64(s.polls%pollsPerStep))
	if s.inFlight {
		k.number(0)
	} else {
		k.due(s.next)
	}
	k.time(s.giveUp)
	k.time(s.stepAt)
	c := s.clock
	k.number(int64(min(c.until.Sub(c.since), groupTiming.Lease)/time.Millisecond),
		int64(c.widest[0]/time.Millisecond), int64(c.widest[1]/time.Millisecond))
	k.time(c.until)
	k.time(c.seen)
	if !even || c.widest[0] > 0 || c.widest[1] > 0 {
		k.time(c.anchor.sent)
	}
}

func (w *groupWorld) laneKey(k *keyWriter, r *groupRun) {
	l := &r.lane
	resume := int64(0)
	if l.doing == LanePause && r.action.Why == NothingNew {
		resume = 1 // and else to find: handlers don't fail, nor do reads
	}
	k.number(int64(l.doing), resume, int64(l.size), int64(l.done))
	k.flags(l.more, l.open, l.track != nil, l.unclear)
	if l.track == nil {
		return
	}
	t := &r.track
	w.checkpointKey(k, t.checkpoint)
	w.checkpointKey(k, l.next)
	k.number(t.cursor, int64(len(t.pending)))
	k.number(t.pending...)
	k.number(int64(t.allowed), t.until)
}

func (w *groupWorld) tell(m move) string {
	p := w.procs[m.who]
	switch m.what {
	case toStop:
		return p.name + " hears that it is to stop"
	case toAppend:
		return fmt.Sprintf(". . . and event %d is appended", groupEvents[w.appended].Position)
	case toEndTx:
		return fmt.Sprintf("the transaction on partition %d is rolled back", w.txs[m.which].partition)
	case toLand:
		return fmt.Sprintf("a late COMMIT on partition %d is carried out", w.txs[m.which].partition)
	case toArrive:
		if r := w.late[m.which]; r.saves {
			return fmt.Sprintf("late: on partition %d, %s to %s is saved, if the fence lets it", r.partition, r.from, r.to)
		}
		return fmt.Sprintf("a late request is carried out: %s", tellRequest(w.late[m.which].Request))
	case toInput:
		return fmt.Sprintf("%s hears %T%v", p.name, p.inputs[0], p.inputs[0])
	case toAnswer:
		if p.call.where == failed {
			return p.name + " hears that its request failed"
		}
		return p.name + " gets the answer: " + tellView(p.call.view)
	case toCarry:
		return "the request is carried out: " + tellRequest(p.call.request)
	case toGiveUp:
		return p.name + " waits for its answer no longer"
	case toLane:
		return p.name + ": " + tellLane(p.run)
	case toTick:
		return p.name + " wakes"
	case toWait:
		return ". . ."
	case toBegin:
		return ". . . and " + p.name + " begins"
	case toLeave:
		return ". . . and " + p.name + " is asked to stop"
	case toLoseRequest:
		return "lost on its way: " + tellRequest(p.call.request)
	case toLoseAnswer:
		return "carried out, and the answer lost: " + tellRequest(p.call.request)
	case toLoseWrite:
		return p.name + ": " + tellLane(p.run) + ", and the answer is lost"
	case toLoseCommit:
		return p.name + ": COMMIT is carried out, and the answer is lost"
	case toDropCommit:
		return p.name + ": COMMIT is lost"
	case toFlyCommit:
		return p.name + ": COMMIT is late, and not waited for"
	case toLoseSave:
		return p.name + ": " + tellLane(p.run) + ", and the answer is lost"
	case toDropSave:
		return p.name + ": " + tellLane(p.run) + ", but that is lost"
	case toFlySave:
		return p.name + ": " + tellLane(p.run) + ", but that is late, and not waited for"
	case toSlow:
		return ". . . though something is under way"
	case toFreeze:
		return fmt.Sprintf(". . . and %s is frozen for %v", p.name, freezes[m.which])
	case toCut:
		return fmt.Sprintf(". . . and %s is cut off from the database for %v", p.name, cutFor)
	case toCrash:
		return ". . . and " + p.name + " has crashed"
	case toRestart:
		return p.name + " is replaced by v" + p.name[1:]
	}
	return "?"
}

func tellRequest(r Request) string {
	what := "step"
	switch {
	case r.Join:
		what = "join"
	case r.Leave:
		what = "leave"
	case r.ReadOnly:
		what = "read-only heartbeat"
	case r.Heartbeat:
		what = "heartbeat"
	}
	text := string(r.Worker) + " " + what
	if r.Stopped > 0 {
		text += fmt.Sprintf(", stopped %d", r.Stopped)
	}
	return text
}

func tellView(v View) string {
	switch {
	case !v.Member:
		return "no member"
	case !v.Assigned():
		return fmt.Sprintf("generation %d, no partition", v.Generation)
	}
	return fmt.Sprintf("generation %d partition %d/%d, may run it: %t", v.Generation, only(v.Partitions), v.Total, v.May())
}

func tellLane(r *groupRun) string {
	switch a := r.action; a.Do {
	case LaneHandle:
		return fmt.Sprintf("event %d is handled", r.track.pending[a.First])
	case LaneWrite, LaneSave:
		return fmt.Sprintf("%ss %s to %s", a.Do, a.From, a.To)
	default:
		return a.Do.String()
	}
}

func (w *groupWorld) String() string {
	var b strings.Builder
	b.WriteString(w.group.String())
	for k, row := range w.rows {
		fmt.Fprintf(&b, " %d@%d:%s", k, row.generation, row.checkpoint)
	}
	for _, p := range w.all() {
		if p.life == alive && p.run != nil {
			fmt.Fprintf(&b, " | %s %s", p.session.ID(), p.run.assignment)
		}
	}
	return b.String()
}
