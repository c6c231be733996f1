package main

import (
	"context"
	"database/sql"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// TestBounded shows that a batch with events on both sides of the last position writes those
// before it and no others. Where batches end is random. Otherwise the library would seem to
// write more rows than the floor.
func TestBounded(t *testing.T) {
	for _, c := range []struct {
		name  string
		batch []int64
		want  []int64
	}{
		{"all count", []int64{3, 4}, []int64{3, 4}},
		{"it ends at the last that counts", []int64{4, 5}, []int64{4, 5}},
		{"it straddles", []int64{4, 5, 6, 7}, []int64{4, 5}},
		{"it straddles a gap", []int64{4, 7}, []int64{4}},
		{"none counts, and there is no statement", []int64{6, 7}, nil},
	} {
		var noted []int64
		tx := &inserts{}
		p := bounded{through: 5, inserting: inserting{"p", func(_ context.Context, events []orchestrator.Event) {
			for _, e := range events {
				noted = append(noted, e.GlobalPosition)
			}
		}}}
		var batch []orchestrator.Event
		for _, position := range c.batch {
			batch = append(batch, orchestrator.Event{GlobalPosition: position, AggregateVersion: position})
		}
		if err := p.HandleBatch(t.Context(), tx, batch); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(c.want, noted); diff != "" {
			t.Errorf("%s: noted (-want +got):\n%s", c.name, diff)
		}
		if diff := cmp.Diff(c.want, tx.versions); diff != "" {
			t.Errorf("%s: written (-want +got):\n%s", c.name, diff)
		}
	}
}

// inserts records the versions that insertEffects writes.
type inserts struct {
	orchestrator.Tx
	versions []int64
}

func (i *inserts) ExecContext(_ context.Context, _ string, args ...any) (sql.Result, error) {
	i.versions = append(i.versions, *args[2].(*pq.Int64Array)...)
	return nil, nil
}
