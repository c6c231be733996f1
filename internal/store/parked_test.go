package store_test

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// parked runs a set with one projection and parks events at 1 to n.
func parked(t *testing.T, n int64, failure string) (*store.Store, store.Lane, func() []store.ParkedRow) {
	t.Helper()
	db := migrated(t)
	s := store.New(db, "it's a 100%d set", store.Options{Bounds: store.BoundsOf(lease)})
	if _, err := join(s, t, "a", "p"); err != nil {
		t.Fatal(err)
	}
	l := store.Lane{Projection: "p", Assignment: protocol.Assignment{Generation: 1, Total: 1}}
	var rows []protocol.Parked
	for i := range n {
		rows = append(rows, protocol.Parked{Position: i + 1, Slot: protocol.SlotOf("x"), Aggregate: "x", Attempts: int(1 - min(i, 1))})
	}
	if err := s.Park(t.Context(), l, protocol.Checkpoint{}, protocol.Checkpoint{Position: n}, rows, failure); err != nil {
		t.Fatal(err)
	}
	return s, l, func() []store.ParkedRow {
		t.Helper()
		rows, err := store.ListParked(t.Context(), store.Tables{DB: db}, "p", 100)
		if err != nil {
			t.Fatal(err)
		}
		return rows
	}
}

// Whatever an error says can be stored, as far as there is room.
func TestParkedErrors(t *testing.T) {
	for _, failure := range []string{"it's %d \\ \x00 \xff \n", strings.Repeat("ü", 5000)} {
		s, l, list := parked(t, 2, failure)
		first := list()[0].Error
		if first == "" || !utf8.ValidString(first) || len(first) > 4100 || !strings.HasPrefix(first, failure[:4]) {
			t.Errorf("of %.20q is kept %.20q, %d bytes", failure, first, len(first))
		}
		if behind := list()[1]; behind.Error != "" || behind.Attempts != 0 {
			t.Errorf("behind it: %+v", behind)
		}
		if err := s.Note(t.Context(), l, 2, 1, failure); err != nil {
			t.Fatal(err)
		}
		if noted := list()[1]; noted.Error != first || noted.Attempts != 1 {
			t.Errorf("noted: %.20q, want %.20q", noted.Error, first)
		}
	}
}

// A projection that is set back forgets what it gets again.
func TestDropParkedAbove(t *testing.T) {
	db := migrated(t)
	for _, p := range []string{"p", "q"} {
		for i := range 3 {
			if _, err := db.ExecContext(t.Context(), `
INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at) VALUES ($1, $2, 0, 'x', '', 0, now())`, p, i+1); err != nil {
				t.Fatal(err)
			}
		}
	}
	tx := begin(t, db)
	if err := store.New(db, "set", store.Options{}).DropParkedAbove(t.Context(), tx, "p", 1); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string][]int64{"p": {1}, "q": {1, 2, 3}} {
		rows, err := store.ListParked(t.Context(), store.Tables{DB: db}, p, 100)
		if err != nil {
			t.Fatal(err)
		}
		var got []int64
		for _, r := range rows {
			got = append(got, r.Position)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has parked %v, want %v", p, got, want)
		}
	}
}
