package orchestratorotel

import (
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// This file turns the reports of the process's workers into values of their replica sets, like
// reports.go and reason.go of the module prometheus. Each module has its own copy: a shared
// package would have to be released with both.

// A worker is one call of Run.
type worker struct {
	set  orchestrator.ReplicaSetName
	name string
}

// workerOf removes the incarnation from the worker's name. So an incarnation replaces the report
// of the one before, whose lanes would otherwise be shown forever.
func workerOf(s orchestrator.Source) worker {
	name := s.Worker
	if i := strings.LastIndexByte(name, '~'); i >= 0 && strings.Trim(name[i+1:], "0123456789") == "" {
		name = name[:i]
	}
	return worker{s.ReplicaSet, name}
}

// A place is where a lane runs.
type place struct {
	projection string
	partition  int
}

// A lane is the report of a lane and the generation that its worker runs.
type lane struct {
	orchestrator.LaneReport
	generation int64
	at         time.Time // of the report
}

// A summary combines the reports of one replica set.
type summary struct {
	members    int
	states     map[orchestrator.WorkerState]int
	generation int64 // the newest that runs
	partitions int   // of that generation; 0: none runs
	lanes      map[place]lane
	leaseOnly  int           // workers that go by their lease alone, without having been told to
	gap        time.Duration // for how long readers have waited at the same gap, at most
}

// summarize combines the reports of each replica set.
//
// Two workers may report one lane:
//  1. w1 reports that it runs partition 1 under generation 4;
//  2. generation 5 gives partition 1 to w2, which starts it and reports;
//  3. metrics are collected before w1 reports again.
//
// The report under the newer generation counts. With two values of one series, it would be
// random which is exported.
func summarize(reports map[worker]orchestrator.WorkerReport) map[orchestrator.ReplicaSetName]*summary {
	sets := map[orchestrator.ReplicaSetName]*summary{}
	for w, r := range reports {
		s := sets[w.set]
		if s == nil {
			s = &summary{states: map[orchestrator.WorkerState]int{}, lanes: map[place]lane{}}
			sets[w.set] = s
		}
		s.states[r.State]++
		if r.State != orchestrator.WorkerJoining {
			s.members++
		}
		if r.LeaseOnly != "" {
			s.leaseOnly++
		}
		if r.Gap != nil {
			s.gap = max(s.gap, r.At.Sub(r.Gap.Since))
		}
		for _, l := range r.Lanes {
			if r.Generation > s.generation {
				s.generation, s.partitions = r.Generation, l.TotalPartitions
			}
			at := place{l.Projection, l.Partition}
			if other, ok := s.lanes[at]; !ok || r.Generation > other.generation {
				s.lanes[at] = lane{l, r.Generation, r.At}
			}
		}
	}
	return sets
}

// sums is what the partitions of a projection in this process add up to.
type sums struct {
	parked  int           // events
	oldest  float64       // for how long the oldest of these is parked, in seconds
	paused  time.Duration // for how long it is paused, by order; 0: it is not
	rebuild bool          // another version of it is the live one
}

func (s *summary) projections() map[string]sums {
	of := map[string]sums{}
	for at, l := range s.lanes {
		p := of[at.projection]
		p.parked, p.oldest = p.parked+l.Parked, max(p.oldest, l.ParkedSeconds)
		p.rebuild = p.rebuild || l.Rebuild
		if l.State == orchestrator.LanePaused {
			p.paused = max(p.paused, l.at.Sub(l.Since), time.Millisecond) // the server's clock may be ahead
		}
		of[at.projection] = p
	}
	return of
}
