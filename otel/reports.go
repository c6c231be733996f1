package orchestratorotel

import (
	"strings"

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
}

// A summary combines the reports of one replica set.
type summary struct {
	members    int
	states     map[orchestrator.WorkerState]int
	generation int64 // the newest that runs
	partitions int   // of that generation; 0: none runs
	lanes      map[place]lane
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
		for _, l := range r.Lanes {
			if r.Generation > s.generation {
				s.generation, s.partitions = r.Generation, l.TotalPartitions
			}
			at := place{l.Projection, l.Partition}
			if other, ok := s.lanes[at]; !ok || r.Generation > other.generation {
				s.lanes[at] = lane{l, r.Generation}
			}
		}
	}
	return sets
}

// parkedEvents is the number of a projection's parked events, and the age of the oldest.
type parkedEvents struct {
	events  int
	seconds float64
}

// parked returns the parked events of each projection.
func (s *summary) parked() map[string]parkedEvents {
	of := map[string]parkedEvents{}
	for at, l := range s.lanes {
		p := of[at.projection]
		of[at.projection] = parkedEvents{p.events + l.Parked, max(p.seconds, l.ParkedSeconds)}
	}
	return of
}
