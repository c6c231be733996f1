package ops

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// RebuildStatus is the state of a projection that follows a live version: a rebuild of it
// (orchestrator.WithRebuildOf), or a version that it has replaced (Promote).
type RebuildStatus struct {
	Projection     string                      `json:"projection"`
	ReplicaSet     orchestrator.ReplicaSetName `json:"replica_set"`
	Live           string                      `json:"live"` // the version that is live
	LiveReplicaSet orchestrator.ReplicaSetName `json:"live_replica_set"`
	State          RebuildState                `json:"state"`
	// Text is the state in a sentence, for people.
	Text string `json:"text"`
	// Position is the lowest checkpoint of the projection's partitions. LivePosition is
	// that of Live. Behind is the difference, in positions, at least 0.
	Position     int64 `json:"position"`
	LivePosition int64 `json:"live_position"`
	Behind       int64 `json:"behind"`
	// PerSecond is LaneReport.PerSecond of the partition that is the furthest behind, in
	// positions per second.
	PerSecond float64 `json:"per_second"`
	// LeftSeconds estimates when the projection reaches Live, if both go on at their
	// present rates. nil: unknown.
	LeftSeconds *float64 `json:"left_seconds"`
	// HeldUntil is until when Promote holds Live. nil: Live is not held.
	HeldUntil *time.Time `json:"held_until,omitempty"`
}

// RebuildState is the state of a version that is not live.
type RebuildState string

const (
	RebuildCatchingUp RebuildState = "catching up"  // behind the live version
	RebuildClose      RebuildState = "close behind" // can be promoted within seconds
	RebuildTakesOver  RebuildState = "takes over"   // being promoted: the live version is held
	RebuildPaused     RebuildState = "paused"       // by order: see Pause
	RebuildReplaced   RebuildState = "replaced"     // was live, and does not run any more
)

// All versions of one projection are read together: judge needs to know whether only one of
// them can take the live version's place.
var statusRebuildsSQL = sqltext.New(`
SELECT f.name, f.replica_set, f.replaced, l.name, l.replica_set,
       coalesce((SELECT min(c.position) FROM orchestrator_checkpoints c WHERE c.projection = f.name), 0),
       coalesce((SELECT min(c.position) FROM orchestrator_checkpoints c WHERE c.projection = l.name), 0),
       coalesce(fs.paused ? f.name OR fs.paused ? '', false), coalesce(ls.holds, '{}')
  FROM orchestrator_projections f
  JOIN orchestrator_projections l ON l.name = f.follows
  LEFT JOIN orchestrator_replica_sets fs ON fs.name = f.replica_set
  LEFT JOIN orchestrator_replica_sets ls ON ls.name = l.replica_set
 WHERE NOT f.retired AND (l.replica_set = {set} OR EXISTS (
       SELECT FROM orchestrator_projections o WHERE o.follows = l.name AND o.replica_set = {set}))
 ORDER BY l.name, f.name`)

// readRebuilds reads the versions that are not live. reports are those of the set's own
// workers; reports of other sets are read if needed.
func (s *ReplicaSetStatus) readRebuilds(of func(orchestrator.ReplicaSetName) querier, reports map[string]*reported) error {
	err := of(s.ReplicaSet)(statusRebuildsSQL, func(scan func(...any) error) error {
		var r RebuildStatus
		var replaced, paused bool
		var holds string
		err := scan(&r.Projection, &r.ReplicaSet, &replaced, &r.Live, &r.LiveReplicaSet, &r.Position, &r.LivePosition, &paused, &holds)
		row := store.RowOf("projections", r.Projection).Scanned(err)
		if err != nil {
			return row.Err
		}
		held := store.RowOf("replica_sets", string(r.LiveReplicaSet))
		r.HeldUntil = untilOf(held.Positions("holds", holds))[r.Live]
		switch {
		case paused && replaced:
			r.State = RebuildReplaced
		case paused:
			r.State = RebuildPaused
		}
		r.Behind = max(0, r.LivePosition-r.Position)
		s.Rebuilds = append(s.Rebuilds, r)
		return held.Err
	})
	if err != nil {
		return err
	}
	known := map[orchestrator.ReplicaSetName]map[string]*reported{s.ReplicaSet: reports}
	running := map[string]int{} // live version → number of versions that can take its place
	for _, r := range s.Rebuilds {
		if r.State != "" {
			continue
		}
		running[r.Live]++
		for _, set := range []orchestrator.ReplicaSetName{r.ReplicaSet, r.LiveReplicaSet} {
			if known[set] == nil {
				if known[set], err = readReports(of(set), set); err != nil {
					return err
				}
			}
		}
	}
	for i := range s.Rebuilds {
		r := &s.Rebuilds[i]
		next, live := paceOf(known[r.ReplicaSet], r.Projection), paceOf(known[r.LiveReplicaSet], r.Live)
		if r.State == "" {
			r.judge(next, live, running[r.Live] == 1)
		}
		r.Text = r.text(next, live)
	}
	return nil
}

// untilOf returns until when projections are held.
func untilOf(holds map[string]int64) map[string]*time.Time {
	until := map[string]*time.Time{}
	for name, at := range holds {
		t := time.UnixMicro(at).UTC()
		until[name] = &t
	}
	return until
}

// A pace is the position and rate of a version on the partition that is the furthest behind.
type pace struct {
	known     bool // a worker has reported on it
	position  int64
	perSecond float64
	follows   bool // it has reached the live version
}

func paceOf(reports map[string]*reported, projection string) (p pace) {
	for _, r := range reports {
		for _, l := range r.Lanes {
			if l.Projection != projection || l.State == "" || p.known &&
				(l.Position > p.position || l.Position == p.position && l.PerSecond > p.perSecond) {
				continue
			}
			p = pace{true, l.Position, l.PerSecond, l.State == orchestrator.LaneFollows}
		}
	}
	return p
}

// judge sets the state and the estimate of a version that runs.
func (r *RebuildStatus) judge(next, live pace, alone bool) {
	r.PerSecond = next.perSecond
	if closer := next.perSecond - live.perSecond; r.Behind == 0 || closer > 0 {
		left := 0.0
		if r.Behind > 0 {
			left = float64(r.Behind) / closer
		}
		r.LeftSeconds = &left
	}
	switch {
	case r.HeldUntil != nil && alone:
		r.State = RebuildTakesOver
	case next.known && (r.Behind == 0 || next.follows || float64(r.Behind) <= next.perSecond*protocol.PromoteClose.Seconds()): // as Promote judges
		r.State = RebuildClose
	default:
		r.State = RebuildCatchingUp
	}
}

func (r *RebuildStatus) text(next, live pace) string {
	behind := grouped(r.Behind) + " positions"
	if r.Behind == 1 {
		behind = "1 position"
	}
	switch {
	case r.State == RebuildReplaced:
		return fmt.Sprintf("%s was replaced by %s", r.Projection, r.Live)
	case r.State == RebuildPaused:
		return fmt.Sprintf("%s is paused, %s behind %s", r.Projection, behind, r.Live)
	case r.State == RebuildTakesOver:
		return fmt.Sprintf("%s is taking the place of %s, which is held until %s UTC; it is %s behind", r.Projection, r.Live, r.HeldUntil.Format(time.TimeOnly), behind)
	case r.State == RebuildClose && r.Behind == 0:
		return fmt.Sprintf("%s has caught up with %s and can be promoted", r.Projection, r.Live)
	case r.State == RebuildClose:
		return fmt.Sprintf("%s is %s behind %s and can be promoted", r.Projection, behind, r.Live)
	case !next.known:
		return fmt.Sprintf("%s is %s behind %s; no worker has reported on it yet", r.Projection, behind, r.Live)
	case r.LeftSeconds != nil:
		return fmt.Sprintf("%s is %s behind %s, %s left", r.Projection, behind, r.Live, about(*r.LeftSeconds))
	case next.perSecond > 0:
		return fmt.Sprintf("%s is %s behind %s and is not catching up", r.Projection, behind, r.Live)
	}
	return fmt.Sprintf("%s is %s behind %s", r.Projection, behind, r.Live)
}

// grouped writes 1234567 as 1,234,567.
func grouped(n int64) string {
	digits := fmt.Sprint(n)
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return b.String()
}

// about formats an estimate with no more precision than it has.
func about(seconds float64) string {
	switch {
	case seconds < 60:
		return "less than a minute"
	case seconds < 90*60:
		return fmt.Sprintf("about %.0f min", seconds/60)
	case seconds < 48*3600:
		return fmt.Sprintf("about %.0f h", seconds/3600)
	}
	return fmt.Sprintf("about %s days", grouped(int64(min(seconds/86400, 1e6))))
}

// versions returns two maps of the set's own projections: from a replaced one to the version
// that has replaced it, and from a held one to the version that is taking its place.
func (s *ReplicaSetStatus) versions() (replacedBy, replacing map[string]string) {
	replacedBy, replacing = map[string]string{}, map[string]string{}
	for _, r := range s.Rebuilds {
		if r.State == RebuildReplaced && r.ReplicaSet == s.ReplicaSet {
			replacedBy[r.Projection] = r.Live
		}
		if r.State == RebuildTakesOver && r.LiveReplicaSet == s.ReplicaSet {
			replacing[r.Live] = r.Projection
		}
	}
	return replacedBy, replacing
}

// stopped returns the projections that are paused or held by order. Replaced versions are
// left out: they need no action.
func (s *ReplicaSetStatus) stopped() (waits []Wait) {
	if s.PausedAll {
		waits = append(waits, Wait{Kind: WaitPaused, Severity: SeverityInfo, Text: "the replica set is paused by order", Remedy: command("resume", string(s.ReplicaSet))})
	}
	replacedBy, replacing := s.versions()
	for _, name := range s.Paused {
		if _, replaced := replacedBy[name]; replaced {
			continue
		}
		wait := Wait{Kind: WaitPaused, Severity: SeverityInfo, Projection: name, Remedy: command("resume", string(s.ReplicaSet), name)}
		wait.Text = fmt.Sprintf("projection %s is paused by order", name)
		switch n := s.behind(name); {
		case n == 1:
			wait.Text += ", 1 position behind"
		case n > 1:
			wait.Text += fmt.Sprintf(", %d positions behind", n)
		}
		if until, held := s.Held[name]; held {
			wait.Kind, wait.Remedy = WaitHeld, ""
			wait.Text = fmt.Sprintf("projection %s is held while %s takes its place, until %s UTC", name, cmp.Or(replacing[name], "another version"), until.Format(time.TimeOnly))
		}
		waits = append(waits, wait)
	}
	return waits
}

// behind returns how far the hindmost partition of a projection is behind. 0: it is not, or
// that is not known.
func (s *ReplicaSetStatus) behind(projection string) (most int64) {
	for _, p := range s.Partitions {
		if p.Projection == projection && p.Report != nil {
			most = max(most, p.Report.Behind)
		}
	}
	return most
}
