package ops

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// Wait is a reason why something is stalled, or needs a person.
type Wait struct {
	Kind     WaitKind `json:"kind"`
	Severity Severity `json:"severity"`
	// Text is the reason in a sentence, for people: the cause first.
	Text string `json:"text"`
	// Remedy is what ends it: a statement for psql, or a command of orchestrator. "": that
	// depends on the cause, or it passes by itself.
	Remedy     string `json:"remedy,omitempty"`
	Worker     string `json:"worker,omitempty"`
	Projection string `json:"projection,omitempty"`
	Partition  *int   `json:"partition,omitempty"`
	Position   int64  `json:"position,omitempty"`
	Backends   []int  `json:"backends,omitempty"` // pids in pg_stat_activity
	// Effects are the stalls that this one explains. They are not in Waits themselves.
	Effects []Wait `json:"effects,omitempty"`
}

// Severity is how urgent a Wait is.
type Severity string

const (
	SeverityCritical Severity = "critical" // something does not move, and will not without a person
	SeverityWarning  Severity = "warning"  // a person should look at it, and other work goes on
	SeverityInfo     Severity = "info"     // it was ordered, or passes by itself
)

// rank orders severities, the most urgent first.
func (s Severity) rank() int {
	return slices.Index([]Severity{SeverityCritical, SeverityWarning, SeverityInfo}, s)
}

// AtLeast reports whether s is as urgent as other, or more.
func (s Severity) AtLeast(other Severity) bool { return s.rank() <= other.rank() }

// WaitKind is the kind of reason why something is stalled.
type WaitKind string

// The kinds of a Wait. Waits of one severity are in this order: causes stand before what may
// be their effect.
const (
	WaitUnowned     WaitKind = "unowned"     // no worker has the partition
	WaitEvents      WaitKind = "events"      // the events can't be read without losing some
	WaitGap         WaitKind = "gap"         // an open transaction may still commit an event at a lower position
	WaitDrain       WaitKind = "drain"       // a worker has not stopped an older generation yet
	WaitBeyond      WaitKind = "beyond"      // the event stream ends before the checkpoint
	WaitRetry       WaitKind = "retry"       // the handler, or what it needs, failed and is tried again
	WaitInterrupted WaitKind = "interrupted" // the handler was interrupted, which is not a failure, and is called again
	WaitStalled     WaitKind = "stalled"     // there are events to handle, and the position does not move
	WaitSilent      WaitKind = "silent"      // a worker has not renewed its lease for half of it
	WaitAbsent      WaitKind = "absent"      // no running program has the projection
	WaitParked      WaitKind = "parked"      // the projection has events in its dead-letter queue
	WaitVacant      WaitKind = "vacant"      // a worker has left, and its partitions are reserved for a replacement
	WaitHeld        WaitKind = "held"        // while another version takes its place: see Promote
	WaitPaused      WaitKind = "paused"      // by order: see Pause
	WaitLeaseOnly   WaitKind = "lease_only"  // a crash of the worker is noticed only when its lease is over
)

var waitKinds = []WaitKind{
	WaitUnowned, WaitEvents, WaitGap, WaitDrain, WaitBeyond, WaitRetry, WaitInterrupted, WaitStalled,
	WaitSilent, WaitAbsent, WaitParked, WaitVacant, WaitHeld, WaitPaused, WaitLeaseOnly,
}

// passes is how long a rebalance, or a gap, may last before it is a warning: longer than the
// slow handlers and transactions of most programs, and less than CoordinationTimeout.
const passes = 30 * time.Second

// waits derives from the rest of the status what is stalled, and why.
func (s *ReplicaSetStatus) waits(backends map[int]backend) []Wait {
	waits := slices.Concat(s.drains(), s.lanes(s.gaps(backends)), s.members(), s.absent(), s.stopped(), s.parked())
	slices.SortStableFunc(waits, func(a, b Wait) int {
		return cmp.Or(cmp.Compare(a.Severity.rank(), b.Severity.rank()),
			cmp.Compare(slices.Index(waitKinds, a.Kind), slices.Index(waitKinds, b.Kind)))
	})
	return waits
}

// A gap is an open transaction that holds back the readers of these workers.
type gap struct {
	Wait
	workers []string
	open    bool // one of its transactions still is
}

// gaps returns the transactions that hold readers back, each once for all workers.
func (s *ReplicaSetStatus) gaps(backends map[int]backend) (gaps []gap) {
	for _, w := range s.Workers {
		g := w.Gap
		if g == nil || !w.Alive { // a worker that is gone waits for nothing
			continue
		}
		i := slices.IndexFunc(gaps, func(o gap) bool { return o.Position == g.Position && slices.Equal(o.Backends, g.Backends) })
		if i >= 0 {
			gaps[i].workers = append(gaps[i].workers, w.Worker)
			gaps[i].Worker = "" // several
			continue
		}
		wait := Wait{Kind: WaitGap, Severity: SeverityInfo, Worker: w.Worker, Position: g.Position, Backends: g.Backends}
		if s.At.Sub(g.Since) >= passes {
			wait.Severity = SeverityWarning
		}
		var who, ends []string
		for _, pid := range g.Backends {
			if pid == 0 {
				who = append(who, "a prepared transaction")
				ends = append(ends, "SELECT gid, prepared, owner FROM pg_prepared_xacts ORDER BY prepared")
				continue
			}
			b, open := backends[pid]
			if !open {
				continue // it has ended since the report
			}
			who = append(who, b.String(pid))
			if b.since != nil { // another transaction may have the pid when this is run
				ends = append(ends, fmt.Sprintf("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %d AND xact_start = '%s'", pid, b.since.UTC().Format("2006-01-02 15:04:05.999999Z07:00")))
			}
		}
		wait.Text = fmt.Sprintf("an open transaction holds the readers back: %s may still commit an event at position %d; nothing after position %d is handled, since %s",
			strings.Join(who, ", "), g.Position, g.Position-1, ago(s.At, g.Since))
		if len(who) == 0 {
			wait.Severity = SeverityInfo
			wait.Text = fmt.Sprintf("the transactions that held the readers back at position %d, since %s, have ended: the readers go on with their next check", g.Position, ago(s.At, g.Since))
		}
		wait.Remedy = strings.Join(ends, "; ")
		gaps = append(gaps, gap{wait, []string{w.Worker}, len(who) > 0})
	}
	return gaps
}

// A backend is what pg_stat_activity shows of a server process. What the role may not see is
// empty.
type backend struct {
	application, user, state string
	since                    *time.Time // of its transaction
	at                       time.Time
}

func (b backend) String(pid int) string {
	parts := []string{fmt.Sprintf("backend %d", pid)}
	if b.application != "" {
		parts = append(parts, "application "+b.application)
	}
	if b.user != "" {
		parts = append(parts, "user "+b.user)
	}
	if b.since != nil {
		parts = append(parts, "open for "+duration(b.at.Sub(*b.since)))
	}
	if b.state != "" {
		parts = append(parts, b.state)
	}
	if len(parts) == 1 {
		return parts[0]
	}
	return fmt.Sprintf("%s (%s)", parts[0], strings.Join(parts[1:], ", "))
}

// The backends that hold gaps open, of which the workers' reports have the pids.
var statusBackendsSQL = sqltext.New(`
SELECT a.pid, coalesce(a.application_name, ''), coalesce(a.usename::text, ''), coalesce(a.state, ''), a.xact_start, {clock}
  FROM pg_stat_activity a
  JOIN (SELECT b.pid, max(r.reported_at) AS reported_at
          FROM orchestrator_reports r
         CROSS JOIN LATERAL jsonb_array_elements_text(CASE WHEN jsonb_typeof((r.report -> 'gap') -> 'backends') = 'array' THEN (r.report -> 'gap') -> 'backends' ELSE '[]' END) AS b (pid)
         WHERE r.replica_set = {set}
         GROUP BY 1) w ON w.pid = a.pid::text AND (a.xact_start <= w.reported_at OR a.state IS NULL)`) // state: NULL if the role may not see it

// readBackends reads who holds gaps open, if there are any.
func (s *ReplicaSetStatus) readBackends(ask querier) (map[int]backend, error) {
	backends := map[int]backend{}
	if !slices.ContainsFunc(s.Workers, func(w WorkerStatus) bool { return w.Gap != nil }) {
		return backends, nil
	}
	err := ask(statusBackendsSQL, func(scan func(...any) error) error {
		var pid int
		var b backend
		err := scan(&pid, &b.application, &b.user, &b.state, &b.since, &b.at)
		backends[pid] = b
		return err
	})
	return backends, err
}

// drains returns the workers that a rebalance waits for, and what each has in hand.
func (s *ReplicaSetStatus) drains() (waits []Wait) {
	if s.Phase != PhaseDraining {
		return nil
	}
	severity := SeverityInfo
	if s.OpenedAt != nil && s.At.Sub(*s.OpenedAt) >= passes {
		severity = SeverityWarning
	}
	for _, w := range s.Workers {
		if w.Holds == 0 || w.Vacant {
			continue
		}
		wait := Wait{Kind: WaitDrain, Severity: severity, Worker: w.Worker}
		wait.Text = fmt.Sprintf("worker %s has not stopped generation %d yet; generation %d waits for it", w.Worker, w.Holds, s.Generation)
		switch p := s.inHand(w.Worker); {
		case !w.Alive:
			wait.Text = fmt.Sprintf("worker %s has not stopped generation %d, and its lease has expired; generation %d waits until it stops or is removed", w.Worker, w.Holds, s.Generation)
		case p != nil:
			wait.Projection, wait.Partition, wait.Position = p.Projection, &p.Partition, p.Report.Handling
			wait.Text = fmt.Sprintf("worker %s is still handling event %d of projection %s (partition %d of %d, for %s); generation %d waits for it",
				w.Worker, p.Report.Handling, p.Projection, p.Partition, p.TotalPartitions, duration(s.At.Sub(p.Report.Since)), s.Generation)
		}
		waits = append(waits, wait)
	}
	return waits
}

// inHand returns the partition of a worker whose event is in hand for the longest time, or
// nil.
func (s *ReplicaSetStatus) inHand(worker string) (longest *PartitionStatus) {
	for i := range s.Partitions {
		p := &s.Partitions[i]
		if p.Worker != worker || p.Report == nil || p.Report.Handling == 0 {
			continue
		}
		if longest == nil || p.Report.Since.Before(longest.Report.Since) {
			longest = p
		}
	}
	return longest
}

// lanes returns what is wrong with projections on partitions, and the gaps. A stall is an
// effect of a gap if nothing is in hand, and the worker reads no further than the gap. That a
// paused projection stands beyond the end is known from the others, which read on and have
// reported since it got there.
func (s *ReplicaSetStatus) lanes(gaps []gap) (waits []Wait) {
	gone := map[string]time.Time{} // workers whose lease has expired, and that no other one has removed
	for _, w := range s.Workers {
		if !w.Alive && !w.Vacant {
			gone[w.Worker] = w.LeaseUntil
		}
	}
	runs := s.Phase == PhaseActive || !slices.ContainsFunc(s.Workers, func(w WorkerStatus) bool { return w.Alive })
	for i, p := range s.Partitions {
		at := Wait{Severity: SeverityCritical, Worker: p.Worker, Projection: p.Projection, Partition: &s.Partitions[i].Partition}
		where := fmt.Sprintf("projection %s, partition %d of %d", p.Projection, p.Partition, p.TotalPartitions)
		on := ", on worker " + p.Worker
		switch r := p.Report; {
		case r != nil && r.State == orchestrator.LaneBeyond:
			at.Kind, at.Position, at.Remedy = WaitBeyond, p.Position, command("rewind", string(s.ReplicaSet), p.Projection, strconv.FormatInt(s.Head, 10))
			at.Text = fmt.Sprintf("%s: the event stream ends before the checkpoint at position %d (its highest position is %d): the stream was emptied, restored or replaced, or the projection was set to a position beyond its end. New events up to the checkpoint count as handled. Rewind the projection", where, p.Position, s.Head)
		case p.Paused && !s.PausedAll && s.Head > 0 && p.Position > s.Head && s.At.Sub(p.UpdatedAt) >= passes:
			// Head is what workers have seen that may read little, so this is no proof.
			at.Kind, at.Position, at.Severity = WaitBeyond, p.Position, SeverityWarning
			at.Text = fmt.Sprintf("%s: it is paused at position %d, and no worker has seen the event stream beyond position %d: the stream may have been emptied, restored or replaced; compare with its highest position before you resume", where, p.Position, s.Head)
		case p.Paused:
			continue
		case p.Worker == "" && runs:
			at.Kind, at.Text = WaitUnowned, where+": no worker has it"
		case runs && !gone[p.Worker].IsZero():
			at.Kind, at.Text = WaitUnowned, fmt.Sprintf("%s: the lease of worker %s expired at %s, and no other worker has taken over", where, p.Worker, ago(s.At, gone[p.Worker]))
		case r == nil:
			continue
		case r.State == orchestrator.LaneRefused:
			at.Kind, at.Position = WaitEvents, r.Position
			at.Text = fmt.Sprintf("%s%s: can't read past position %d: %s", where, on, r.Position, r.Error)
		case r.Error != "":
			at.Kind, at.Position = WaitRetry, max(r.Handling, r.Position+1)
			if !r.Stalled {
				at.Severity = SeverityWarning
			}
			doing := string(r.State)
			if r.Attempts > 0 {
				doing += fmt.Sprintf(" after attempt %d", r.Attempts)
			}
			at.Text = fmt.Sprintf("%s%s: %s: %s", where, on, doing, r.Error)
		case r.Interruption != "":
			at.Kind, at.Severity, at.Position = WaitInterrupted, SeverityWarning, max(r.Handling, r.Position+1)
			at.Text = fmt.Sprintf("%s%s: the handler was interrupted at position %d and will be called again: %s", where, on, at.Position, r.Interruption)
		case r.Stalled && r.Handling != 0:
			at.Kind, at.Position = WaitStalled, r.Position
			at.Text = fmt.Sprintf("%s%s: handling event %d since %s", where, on, r.Handling, ago(s.At, r.Since))
		case r.Stalled:
			at.Kind, at.Position = WaitStalled, r.Position
			at.Text = fmt.Sprintf("%s%s: stalled at position %d since %s (%s)", where, on, r.Position, ago(s.At, r.Since), r.State)
			if i := slices.IndexFunc(gaps, func(g gap) bool { return g.open && waitsAt(r, g.Position) && slices.Contains(g.workers, p.Worker) }); i >= 0 {
				gaps[i].Severity, gaps[i].Effects = SeverityCritical, append(gaps[i].Effects, at)
				continue
			}
		default:
			continue
		}
		waits = append(waits, at)
	}
	for _, g := range gaps {
		waits = append(waits, g.Wait)
	}
	return waits
}

// waitsAt reports whether a gap is what a stalled lane waits at: it has handled all that was
// read before it.
func waitsAt(r *orchestrator.LaneReport, gap int64) bool {
	return r.State == orchestrator.LaneIdle || r.State == orchestrator.LaneReading && r.Position+1 == gap
}

// members returns what is wrong with workers, and the places that wait for a replacement.
func (s *ReplicaSetStatus) members() (waits []Wait) {
	for _, w := range s.Workers {
		partitions, them := "partition "+protocol.FormatPartitions(w.Partitions)+" waits", "it"
		if len(w.Partitions) != 1 {
			partitions, them = "partitions "+protocol.FormatPartitions(w.Partitions)+" wait", "them"
		}
		left, lease := w.LeaseUntil.Sub(s.At), w.LeaseUntil.Sub(w.LastHeartbeat)
		reported := w.JoinedAt
		if w.ReportedAt != nil && w.ReportedAt.After(reported) {
			reported = *w.ReportedAt
		}
		switch {
		case w.Vacant && left <= 0:
			waits = append(waits, Wait{Kind: WaitVacant, Severity: SeverityWarning, Worker: w.Worker, Text: fmt.Sprintf(
				"worker %s has left, and no replacement came; %s for a worker to reassign %s", w.Worker, partitions, them)})
		case w.Vacant:
			waits = append(waits, Wait{Kind: WaitVacant, Severity: SeverityInfo, Worker: w.Worker, Remedy: command("drain", string(s.ReplicaSet), w.Worker),
				Text: fmt.Sprintf("worker %s has left; %s up to %s for its replacement", w.Worker, partitions, duration(left))})
		case w.Alive && left < lease/2:
			waits = append(waits, Wait{Kind: WaitSilent, Severity: SeverityWarning, Worker: w.Worker, Text: fmt.Sprintf(
				"worker %s has sent no heartbeat for %s: it can't reach the database, or hangs; the others take over in %s", w.Worker, duration(s.At.Sub(w.LastHeartbeat)), duration(left))})
		}
		if w.Alive && left >= lease/2 && s.At.Sub(reported) > max(lease/2, passes) {
			waits = append(waits, Wait{Kind: WaitSilent, Severity: SeverityWarning, Worker: w.Worker, Text: fmt.Sprintf(
				"worker %s sends heartbeats and has not reported for %s: what it does is not known; its log says why", w.Worker, duration(s.At.Sub(reported)))})
		}
		if w.Alive && w.LeaseOnly != "" {
			waits = append(waits, Wait{Kind: WaitLeaseOnly, Severity: SeverityInfo, Worker: w.Worker, Text: fmt.Sprintf(
				"worker %s has no fast crash detection, a crash is noticed when its lease is over: %s", w.Worker, w.LeaseOnly)})
		}
	}
	return waits
}

// absent returns the projections that have checkpoints and are in no running program.
func (s *ReplicaSetStatus) absent() (waits []Wait) {
	alive := slices.DeleteFunc(slices.Clone(s.Workers), func(w WorkerStatus) bool { return !w.Alive })
	if len(alive) == 0 {
		return nil // no program runs: the partitions are unowned
	}
	replacedBy, _ := s.versions()
	var last string
	for _, p := range s.Partitions {
		if p.Projection == last || p.Paused || replacedBy[p.Projection] != "" {
			continue
		}
		last = p.Projection
		if !slices.ContainsFunc(alive, func(w WorkerStatus) bool { return slices.Contains(w.Projections, p.Projection) }) {
			waits = append(waits, Wait{Kind: WaitAbsent, Severity: SeverityWarning, Projection: p.Projection,
				Text: fmt.Sprintf("projection %s is in no running program: its events are not handled; run a program that has it, or retire it", p.Projection)})
		}
	}
	return waits
}

// parked returns the projections that have events in their dead-letter queue.
func (s *ReplicaSetStatus) parked() (waits []Wait) {
	replacedBy, _ := s.versions()
	parked := map[string]int{}
	for _, p := range s.Partitions {
		if replacedBy[p.Projection] != "" {
			continue
		}
		if parked[p.Projection] += p.Parked; p.Partition == p.TotalPartitions-1 && parked[p.Projection] > 0 {
			text := "1 event is parked"
			if n := parked[p.Projection]; n > 1 {
				text = fmt.Sprintf("%d events are parked", n)
			}
			waits = append(waits, Wait{Kind: WaitParked, Severity: SeverityWarning, Projection: p.Projection, Remedy: command("park", "list", p.Projection),
				Text: fmt.Sprintf("projection %s: %s", p.Projection, text)})
		}
	}
	return waits
}

// command returns a command line of orchestrator to paste into a shell: names are quoted where
// a shell would read anything else in them.
func command(args ...string) string {
	line := "orchestrator"
	for _, arg := range args {
		if strings.HasPrefix(arg, "-") {
			line += " --" // flags may stand anywhere
		}
		if !plainArgument.MatchString(arg) {
			arg = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		line += " " + arg
	}
	return line
}

var plainArgument = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.:@/+-]*$`)

// ago returns when something was, and how long ago that is.
func ago(now, at time.Time) string {
	return fmt.Sprintf("%s UTC (%s ago)", at.UTC().Format(time.DateTime), duration(now.Sub(at)))
}

// duration returns a duration in whole seconds.
func duration(d time.Duration) string { return max(0, d).Round(time.Second).String() }
