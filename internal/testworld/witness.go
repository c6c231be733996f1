package testworld

import (
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// A Witness records all calls of an Observer.
type Witness struct {
	mu   sync.Mutex
	told []any
}

// Observe returns an Observer whose functions all call then.
func Observe(then func(event any)) *orchestrator.Observer {
	o := &orchestrator.Observer{}
	v := reflect.ValueOf(o).Elem()
	for i := range v.NumField() {
		v.Field(i).Set(reflect.MakeFunc(v.Field(i).Type(), func(args []reflect.Value) []reflect.Value {
			then(args[0].Interface())
			return nil
		}))
	}
	return o
}

// Observer returns an Observer that the Witness records.
func (s *Witness) Observer() *orchestrator.Observer {
	return Observe(func(event any) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.told = append(s.told, event)
	})
}

// Told returns the recorded events of a type, those of each witness in order.
func Told[T any](witnesses ...*Witness) (events []T) {
	for _, s := range witnesses {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range s.told {
			if e, ok := e.(T); ok {
				events = append(events, e)
			}
		}
	}
	return events
}

// Awaited waits for an event for which is returns true.
func Awaited[T any](t *testing.T, s *Witness, what string, is func(T) bool) (found T) {
	t.Helper()
	pgtest.Eventually(t, fmt.Sprintf("the observer receives %s (%T)", what, found), func() bool {
		events := Told[T](s)
		i := slices.IndexFunc(events, is)
		if i < 0 {
			return false
		}
		found = events[i]
		return true
	})
	return found
}

// Any returns true for every event of a type.
func Any[T any](T) bool { return true }

// Seen starts a worker with a Witness.
func (w *World) Seen(t *testing.T, cfg orchestrator.Config[orchestrator.Event], projections ...orchestrator.Projection[orchestrator.Event]) (*Running, *Witness) {
	s := &Witness{}
	cfg.Observer = s.Observer()
	return Run(t, cfg, projections...), s
}

// Reported waits for a report with a lane for which is returns true.
func Reported(t *testing.T, s *Witness, what, projection string, partition int, is func(orchestrator.WorkerReport, orchestrator.LaneReport) bool) orchestrator.LaneReport {
	t.Helper()
	var found orchestrator.LaneReport
	Awaited(t, s, what, func(r orchestrator.WorkerReport) bool {
		return slices.ContainsFunc(r.Lanes, func(l orchestrator.LaneReport) bool {
			found = l
			return l.Projection == projection && l.Partition == partition && is(r, l)
		})
	})
	return found
}
