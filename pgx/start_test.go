package orchestratorpgx_test

import (
	"context"
	"slices"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	orchestratorpgx "github.com/getpup/pupsourcing-orchestrator/pgx"
)

// With a table that pgx reads, StartNow and StartAtTime work.
func TestWhereAProjectionStarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(10)
	w.Exec(`UPDATE events SET created_at = timestamptz '2020-01-01 00:00:00Z' + global_position * interval '1 day'`)
	table, err := orchestratorpgx.NewEventTable(w.pool, "")
	if err != nil {
		t.Fatal(err)
	}
	if at, err := table.Final(t.Context()); err != nil || at != 10 {
		t.Errorf("final to %d, %v", at, err)
	}
	for day, want := range map[int]int64{1: 0, 5: 3, 11: 9, 12: 10} {
		if at, err := table.PositionBefore(t.Context(), time.Date(2020, 1, day, 0, 0, 0, 0, time.UTC)); err != nil || at != want {
			t.Errorf("before January %d: %d, %v, want %d", day, at, err, want)
		}
	}
	handled := make(chan int64, 100)
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{DB: orchestratorpgx.DB(w.pool), EventStore: table, ReplicaSet: "set"})
	if err != nil {
		t.Fatal(err)
	}
	p := orchestrator.Plain("p", func(_ context.Context, e orchestrator.Event) error {
		handled <- e.GlobalPosition
		return nil
	}, orchestrator.WithStart(orchestrator.StartAfter(7)))
	if err := o.CatchUp(t.Context(), []orchestrator.Projection[orchestrator.Event]{p}); err != nil {
		t.Fatal(err)
	}
	close(handled)
	var got []int64
	for at := range handled {
		got = append(got, at)
	}
	if !slices.Equal(got, []int64{8, 9, 10}) {
		t.Errorf("handled %v", got)
	}
}
