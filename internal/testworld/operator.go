package testworld

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// Ordered returns a function that takes the results of an order. It fails the test if the order
// was refused, and otherwise waits until its generation is active.
func (w *World) Ordered(set orchestrator.ReplicaSetName) func(generation int64, err error) {
	return func(generation int64, err error) {
		w.T.Helper()
		if err == nil {
			err = ops.AwaitGeneration(w.T.Context(), w.DB, set, generation)
		}
		if err != nil {
			w.T.Fatal(err)
		}
	}
}

// Workers returns the workers of a set, in the order in which they joined.
func (w *World) Workers(set orchestrator.ReplicaSetName) []ops.WorkerStatus {
	w.T.Helper()
	s, err := ops.Status(w.T.Context(), w.DB, set)
	if err != nil {
		w.T.Fatal(err)
	}
	return s.Workers
}

// Stand returns the status of a set, and its waits by kind.
func (w *World) Stand(set orchestrator.ReplicaSetName) (s ops.ReplicaSetStatus, waits map[ops.WaitKind][]ops.Wait) {
	w.T.Helper()
	s, err := ops.Status(w.T.Context(), w.DB, set)
	if err != nil {
		w.T.Fatal(err)
	}
	waits = map[ops.WaitKind][]ops.Wait{}
	for _, wait := range s.Waits {
		waits[wait.Kind] = append(waits[wait.Kind], wait)
	}
	return s, waits
}

// Parked returns the parked events of a projection and their positions.
func (w *World) Parked(projection string) (positions []int64, events []ops.ParkedEvent) {
	w.T.Helper()
	events, err := ops.Parked(w.T.Context(), w.DB, projection, 1000)
	if err != nil && !errors.Is(err, ops.ErrNoProjection) { // no worker has joined yet
		w.T.Fatal(err)
	}
	for _, e := range events {
		positions = append(positions, e.Position)
	}
	return positions, events
}

// Retry requests a retry of parked events, and returns their number.
func (w *World) Retry(projection string, which ops.ParkedSelector) int {
	w.T.Helper()
	n, err := ops.RetryParked(w.T.Context(), w.DB, projection, which)
	if err != nil {
		w.T.Fatal(err)
	}
	return n
}

// Calm waits until nothing of a set is stalled.
func (w *World) Calm(set orchestrator.ReplicaSetName) {
	w.T.Helper()
	pgtest.Eventually(w.T, "nothing of "+string(set)+" is stalled", func() bool {
		s, _ := w.Stand(set)
		return len(s.Waits) == 0
	})
}

// StatusPage returns the JSON answer of a status page.
func StatusPage(t testing.TB, page http.Handler) (code int, body string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
	r.Header.Set("Accept", "application/json")
	answer := httptest.NewRecorder()
	page.ServeHTTP(answer, r)
	return answer.Code, answer.Body.String()
}
