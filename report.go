package orchestrator

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
)

// WorkerReport is the progress of one worker. About once in HeartbeatInterval, the worker
// passes it to Observer.Reported and writes it into the table orchestrator_reports. Nothing
// is decided by it.
type WorkerReport struct {
	Source
	// State is what the worker is doing.
	State WorkerState `json:"state"`
	// Generation is the one that the worker runs, or ran last; 0: none yet.
	Generation int64 `json:"generation"`
	// Partitions are the ones that the worker runs. Never nil.
	Partitions []int `json:"partitions"`
	// Head is the highest position that the worker has seen in its event store; 0: not
	// known.
	Head int64 `json:"head"`
	// Gap is the gap that reads wait at; nil: there is none.
	Gap *GapReport `json:"gap,omitempty"`
	// Lanes are the projections on the partitions that the worker runs, those that are paused
	// (LanePaused), and, while it waits for others to stop, those that it ran. Never nil.
	Lanes []LaneReport `json:"lanes"`
	// LeaseOnly is why fast crash detection is off; "": it is on, or Config.LeaseOnly is
	// set.
	LeaseOnly string `json:"lease_only,omitempty"`
}

// WorkerState is what a worker is doing.
type WorkerState string

// The states of a worker.
const (
	WorkerJoining   WorkerState = "joining"   // it is not a member yet
	WorkerStandby   WorkerState = "standby"   // it is a member without partitions
	WorkerWaiting   WorkerState = "waiting"   // it waits for other workers to stop
	WorkerRunning   WorkerState = "running"   // it runs its partitions
	WorkerDraining  WorkerState = "draining"  // it stops, to re-partition or to leave
	WorkerSuspended WorkerState = "suspended" // its handlers are suspended until the database answers
)

// GapReport is a missing position that a transaction may still fill.
type GapReport struct {
	// Position is the first position that is missing.
	Position int64 `json:"position"`
	// Since is when a reader first found the gap.
	Since time.Time `json:"since"`
	// Backends are the process ids of the transactions; 0 is a prepared transaction.
	// Never nil.
	Backends []int `json:"backends"`
}

// LaneState is what one projection is doing on one partition.
type LaneState string

// The states of a lane.
const (
	LaneIdle      LaneState = "idle"      // there is nothing to handle
	LaneReading   LaneState = "reading"   // it waits for events to be read
	LaneHandling  LaneState = "handling"  // its handler runs, or what it did is committed
	LaneRetrying  LaneState = "retrying"  // the handler has failed, or was interrupted, and is called again
	LaneFull      LaneState = "full"      // too many events are parked: see FailureRule.MaxParked
	LaneDatabase  LaneState = "database"  // the database has failed, and is tried again
	LaneRefused   LaneState = "refused"   // the event store can't be read without losing events
	LaneBeyond    LaneState = "beyond"    // its position is beyond the end of the event stream
	LaneFollows   LaneState = "follows"   // it is where the live version of its projection is: see WithRebuildOf
	LaneSuspended LaneState = "suspended" // the worker waits until the database answers
	LaneEnded     LaneState = "ended"     // it has stopped
	LanePaused    LaneState = "paused"    // no handler of it runs, by order (ops.Pause). Since is the time of the order
	// These are in no worker's report. ops.Status uses them for lanes that no worker runs.
	LaneVacant  LaneState = "vacant"  // its worker has left, and a replacement may come (Config.ReplacementWindow)
	LaneStopped LaneState = "stopped" // its worker has stopped or is gone, and no other has started it yet
)

// LaneReport is the progress of one projection on one partition.
type LaneReport struct {
	// Projection is the name of the projection.
	Projection string `json:"projection"`
	// Partition is the number of the partition, from 0 to TotalPartitions-1.
	Partition int `json:"partition"`
	// TotalPartitions is the number of partitions of the generation.
	TotalPartitions int `json:"total_partitions"`
	// Position is the one up to which everything is handled or belongs to other
	// partitions. It may be beyond the checkpoint, which is committed later.
	Position int64 `json:"position"`
	// Behind is the number of positions between Position and the end of the stream. About
	// one of TotalPartitions of them is the lane's. -1: not known.
	Behind int64 `json:"behind"`
	// BehindSeconds is how long there has been an event to handle: the age of the oldest
	// one by its own time, if that is known (TableConfig.Time), else since the worker has
	// known of it.
	BehindSeconds float64 `json:"behind_seconds"`
	// State is what the lane is doing.
	State LaneState `json:"state"`
	// Since is when the lane last moved, or had nothing to do.
	Since time.Time `json:"since"`
	// Handling is the position that the handler is called for; 0: it does not run.
	Handling int64 `json:"handling,omitempty"`
	// Attempts is how often the handler has failed at its present event; 0: it has not,
	// or it is not known which event of a batch has failed.
	Attempts int `json:"attempts,omitempty"`
	// Error is the latest failure of the handler, the database or a read, shortened; "":
	// there is none.
	Error string `json:"error,omitempty"`
	// Interruption is why the latest call of the handler was interrupted: the cause
	// (context.Cause) with which it was cancelled, or its lost connection. It is called
	// again. "": it was not.
	Interruption string `json:"interruption,omitempty"`
	// Stalled is true if the lane has stalled: see Config.StallAfter.
	Stalled bool `json:"stalled,omitempty"`
	// Rebuild is true if another version of the projection is the live one (WithRebuildOf).
	Rebuild bool `json:"rebuild,omitempty"`
	// PerSecond is how many positions a second the lane moved in about the last half
	// minute, those of other partitions included.
	PerSecond float64 `json:"per_second,omitempty"`
	// Parked is the number of parked events.
	Parked int `json:"parked,omitempty"`
	// ParkedSeconds is the age of the oldest parked event.
	ParkedSeconds float64 `json:"parked_seconds,omitempty"`
}

// A laneStatus is how far a lane is, as it last noted it.
type laneStatus[E any] struct {
	position int64
	found    bool // the position is known
	state    LaneState
	// next is the first event to handle, or near it, or nil. Its page is immutable.
	next     *Record[E]
	attempts int
	err      string
	cut      string // what has interrupted the handler, which has not failed then
	parked   int
	oldest   time.Time // of what is parked
	rebuild  bool      // another version is the live one
}

// noteStatus notes how far the lane is, before it does what its core says.
func (l *lane[E]) noteStatus(a protocol.LaneAction) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.status
	before := s.position
	s.position, s.found = l.core.Position()
	s.parked, s.oldest = l.core.Parked()
	s.rebuild = l.core.Rebuilds()
	s.next = nil
	if n := l.core.Handled(); n < len(l.events) {
		s.next = l.events[n]
	} else {
		s.next = l.last
	}
	switch a.Do {
	case protocol.LaneFind, protocol.LaneRead, protocol.LaneFollow:
		s.state = LaneReading
	case protocol.LaneLoadParked:
		if s.state != LaneRetrying { // else it looks between two attempts
			s.state = LaneReading
		}
	case protocol.LaneProve:
		s.state = LaneSuspended
		if a.Why == protocol.Suspended {
			s.interrupted(l.interruption())
		}
	case protocol.LaneEnd:
		s.state = LaneEnded
	case protocol.LanePause:
		s.pause(a, l.fault, l.err)
	default:
		s.state = LaneHandling
	}
	if s.position > before || s.state == LaneIdle || s.state == LaneFollows {
		s.attempts, s.err, s.cut = 0, "", ""
	}
}

func (s *laneStatus[E]) interrupted(cause error) {
	s.attempts, s.err, s.cut = 0, "", brief(redact.Connection(cause))
}

func (s *laneStatus[E]) failed(attempts int, err error) {
	s.attempts, s.err, s.cut = attempts, brief(err), ""
}

func (s *laneStatus[E]) pause(a protocol.LaneAction, fault, database error) {
	switch a.Why {
	case protocol.HandlerFailed:
		s.state = LaneRetrying
		s.failed(a.Attempts, fault)
	case protocol.HandlerCut:
		s.state = LaneRetrying
		s.interrupted(fault)
	case protocol.DatabaseFailed:
		s.state = LaneDatabase
		s.failed(0, redact.Connection(database))
		if refused := (*refusal)(nil); errors.As(database, &refused) {
			s.state = LaneRefused
		}
	case protocol.ParkedFull:
		s.state = LaneFull
	case protocol.AtLive:
		s.state = LaneFollows
	case protocol.HandlerWaits:
		s.state = LaneRetrying
	default:
		s.state = LaneIdle
	}
}

// briefMax is how many bytes of an error go into a report.
const briefMax = 300

// brief returns the first line of an error, shortened, as text that PostgreSQL's jsonb takes.
func brief(err error) string {
	text, _, _ := strings.Cut(fmt.Sprint(redact.Error(err)), "\n")
	text = strings.ReplaceAll(strings.ToValidUTF8(text, "?"), "\x00", "?")
	for len(text) > briefMax {
		_, last := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-last]
	}
	return text
}

// A watch is what a worker remembers between two checks of its lanes. It belongs to the loop.
type watch struct {
	generation int64     // that runs, or ran last
	reported   time.Time // to the observer
	due        bool      // a report is to go with the next heartbeat
}

// observeEvery is the time between two checks of the lanes.
func (w *worker[E]) observeEvery() time.Duration {
	stall := w.cfg.StallAfter
	for _, name := range w.names {
		stall = min(stall, w.cfg.stallAfter(name))
	}
	return max(min(w.cfg.HeartbeatInterval, stall/2), time.Millisecond)
}

// observe checks the lanes: it reports those that have stalled, and tells the session whether
// one is missing.
func (w *worker[E]) observe(now time.Time) protocol.Input {
	w.feed.refresh(now, w.cfg.HeartbeatInterval)
	reach := w.feed.reach()
	gap := gapReport(reach.gap)
	w.readPaused(now)
	for _, l := range w.lanes() {
		if s := l.noted(); s.found {
			l.pace.See(now, s.position)
		}
		r := l.report(now, reach)
		stalled, unstalled := l.watch.See(now, r.Position, r.idle(), r.Handling, w.cfg.stallAfter(l.id.Projection))
		if stalled {
			w.stalled(now, l, r, gap)
		}
		if unstalled {
			w.unstalled(now, l, r.Position)
		}
		// A stall may begin as something else: a long call, a gap, an outage.
		if fails(r) && l.watch.Stalled && !l.failedLong {
			l.log.Error("handler keeps failing, partition stalled", "position", r.Position, "for", now.Sub(l.watch.Since), "attempt", r.Attempts, "error", r.Error)
		}
		l.failedLong = l.watch.Stalled && (l.failedLong || fails(r))
	}
	if now.Sub(w.watch.reported) > w.cfg.HeartbeatInterval-w.observeEvery()/2 && !w.awaitsPaused() {
		w.watch.reported, w.watch.due = now, true
		if w.to.Reported != nil {
			emit(w.to, w.to.Reported, w.report(now))
		}
	}
	return w.lanesSeen()
}

// lanesSeen returns the input for the session: whether a lane has ended by itself.
func (w *worker[E]) lanesSeen() protocol.Input {
	missing := slices.ContainsFunc(w.lanes(), func(l *lane[E]) bool { return l.ended.Load() })
	return protocol.Lanes{Generation: w.watch.generation, Missing: missing}
}

// lanes returns the lanes that the worker runs.
func (w *worker[E]) lanes() []*lane[E] {
	if w.run == nil || w.run.over {
		return nil
	}
	return w.run.lanes
}

// lanesShown returns the lanes to report: also those that have stopped, while the worker
// waits for others. Their events wait for as long as that takes.
func (w *worker[E]) lanesShown(state WorkerState) []*lane[E] {
	if w.run != nil && state == WorkerWaiting {
		return w.run.lanes
	}
	return w.lanes()
}

// stalled reports that a lane has stalled, once for each stall.
//
// A failed attempt is a warning, since most failures pass: a pager that rings for each of
// them is soon ignored. Errors are for what a person must act on: a failure policy has parked
// the event or stopped the worker, or the handler has failed for as long as StallAfter, which
// under RetryForever is the one error that there is. A stall for another reason, such as an
// open transaction, is a warning.
func (w *worker[E]) stalled(now time.Time, l *lane[E], r LaneReport, gap *GapReport) {
	reason, lasted := stallReason(&l.watch, now, r, gap), now.Sub(l.watch.Since)
	if !fails(r) { // that is an error, which observe logs
		l.log.Warn("partition stalled", "position", r.Position, "for", lasted, "reason", reason)
	}
	emit(w.to, w.to.Stalled, Stalled{Source: l.source(), Lane: l.name(), Position: r.Position, For: lasted, Reason: reason})
}

// fails reports whether the handler has failed at the event that the lane is at.
func fails(r LaneReport) bool {
	return (r.State == LaneRetrying || r.Attempts > 0) && r.Interruption == "" && r.State != LaneFull
}

func (w *worker[E]) unstalled(now time.Time, l *lane[E], position int64) {
	l.log.Info("partition moves again", "position", position)
	emit(w.to, w.to.Stalled, Stalled{Source: l.source(), Lane: l.name(), Position: position, For: now.Sub(l.watch.Stood), Over: true})
}

// report returns the worker's report.
func (w *worker[E]) report(now time.Time) WorkerReport {
	reach := w.feed.reach()
	r := WorkerReport{
		Source: w.source(w.session.ID()), State: WorkerState(w.session.State(now)), Generation: w.watch.generation, Head: reach.Head(),
		Partitions: []int{}, Gap: gapReport(reach.gap), Lanes: []LaneReport{},
	}
	if w.run != nil && !w.run.over {
		r.Partitions = w.run.share.Partitions
	}
	if why := w.leaseOnly.Load(); why != nil {
		r.LeaseOnly = *why
	}
	for _, l := range w.lanesShown(r.State) {
		r.Lanes = append(r.Lanes, l.report(now, reach))
	}
	r.Lanes = append(r.Lanes, w.reportPaused(now, r.State, reach)...)
	return r
}

// takeReport returns the report that goes with a request, if one is due.
func (w *worker[E]) takeReport(now time.Time, r protocol.Request) []byte {
	if !r.Heartbeat || r.ReadOnly || !w.watch.due {
		return nil
	}
	w.watch.due = false
	report, err := json.Marshal(w.report(now))
	if err != nil { // none of its fields can fail
		return nil
	}
	return report
}

func gapReport(g *Gap) *GapReport {
	if g == nil {
		return nil
	}
	return &GapReport{Position: g.Position, Since: g.Since, Backends: append([]int{}, g.Backends...)}
}

// noted returns how far the lane is.
func (l *lane[E]) noted() laneStatus[E] {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// report returns the lane's report.
func (l *lane[E]) report(now time.Time, reach reach) LaneReport {
	s, a := l.noted(), l.id.Assignment
	r := LaneReport{
		Projection: l.id.Projection, Partition: a.Partition, TotalPartitions: a.Total,
		Position: s.position, Behind: -1, State: s.state, Since: l.watch.Since, Handling: l.position.Load(),
		Attempts: s.attempts, Error: s.err, Interruption: s.cut, Stalled: l.watch.Stalled,
		PerSecond: math.Round(100*l.pace.PerSecond()) / 100, Parked: s.parked, Rebuild: s.rebuild,
	}
	if r.Since.IsZero() {
		r.Since = now
	}
	if s.parked > 0 {
		r.ParkedSeconds = max(0, now.Sub(s.oldest).Seconds())
	}
	if !s.found {
		return r
	}
	switch r.Behind = reach.Behind(s.position); {
	case reach.Lost(s.position) && (r.State == LaneReading || r.State == LaneIdle):
		r.State = LaneBeyond
	case r.Behind == 0 && r.State == LaneReading:
		r.State = LaneIdle // it polls
	}
	r.BehindSeconds = reach.Lag(now, s.position, s.next.at()).Seconds()
	return r
}

// idle reports whether there is nothing for the lane to do, as far as is known.
func (r LaneReport) idle() bool {
	return r.Behind == 0 || r.State == LaneFollows || r.Behind < 0 && r.State == LaneIdle
}
