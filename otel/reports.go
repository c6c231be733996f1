package orchestratorotel

import (
	"strings"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// What the workers of the process report becomes what is said of their replica sets, as
// module prometheus does it (reports.go, reason.go there). Each has its own: a package that
// both import would have to be released with both.

// A worker is one call of Run.
type worker struct {
	set  orchestrator.ReplicaSetName
	name string
}

// workerOf leaves out of the name which incarnation it is: each takes the place of
// the one before, whose lanes would otherwise be shown for ever.
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

// A lane is the report of a lane, and the generation that its worker runs.
type lane struct {
	orchestrator.LaneReport
	generation int64
}

// A summary is what the workers of one replica set say.
type summary struct {
	members    int
	states     map[orchestrator.WorkerState]int
	generation int64 // the newest that is run
	partitions int   // of it; 0: none is run
	lanes      map[place]lane
}

// summarize puts the reports of each replica set together.
//
// Two workers may report one lane:
//  1. w1 reports that it runs partition 1 under generation 4;
//  2. generation 5 gives partition 1 to w2, which starts it and reports;
//  3. metrics are collected before w1 reports again.
//
// The one under the newer generation counts: of two values of one series, which is taken
// is chance.
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

// aside is what a projection has set aside, and for how long the oldest is.
type aside struct {
	events  int
	seconds float64
}

// parked adds up the events that are set aside, of each projection.
func (s *summary) parked() map[string]aside {
	of := map[string]aside{}
	for at, l := range s.lanes {
		p := of[at.projection]
		of[at.projection] = aside{p.events + l.Parked, max(p.seconds, l.ParkedSeconds)}
	}
	return of
}
