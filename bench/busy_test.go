package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestTally shows that a statement counts once, in its class, and that reading the locks of all
// sessions is detected. A reader's check of its table does not count as coordination.
func TestTally(t *testing.T) {
	got := tally([]trip{
		{text: `WITH beat AS ( UPDATE "public".orchestrator_workers SET lease_us = 1`},
		{text: `SELECT pg_catalog.pg_advisory_unlock_shared(1, 2), '[]'`},
		{text: `SELECT pg_catalog.pg_advisory_unlock_shared(1, 2), (SELECT FROM pg_catalog.pg_locks)`},
		{text: `SELECT pg_catalog.pg_advisory_unlock_shared(1, 2), pg_catalog.pg_try_advisory_xact_lock(3, 4)`},
		{text: `WITH RECURSIVE root (oid) AS (SELECT "events") SELECT FROM pg_locks`},
		{how: "prepare", text: `SELECT "global_position" FROM "public"."events"`},
		{how: "execute", text: `SELECT "global_position" FROM "public"."events"`},
		{text: `UPDATE "public".orchestrator_checkpoints SET position = 1`},
		{text: `COMMIT`},
	})
	want := busyTally{scans: 1, of: map[string]int{
		"heartbeats": 1, "proofs": 1, "looks": 2, "questions": 1, "reads": 1, "commits": 1, "others": 1,
	}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(busyTally{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
