package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// A rebuild is promoted with SQL from a file, after the command has printed its progress. The
// promotion is undone, with SQL from standard input. Then the rebuild is retired.
func TestPromote(t *testing.T) {
	s := newStage(t)
	s.worker()
	s.running(1)
	s.append(50)
	pgtest.Eventually(t, "all is handled", func() bool { return s.handled("quick") == 50 })
	gate := make(chan struct{})
	inner := projection{"quick_v2", s}
	stop := s.start("next", orchestrator.Plain("quick_v2", func(ctx context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 1 {
			select {
			case <-gate:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return inner.Handle(ctx, e)
	}, orchestrator.WithRebuildOf("quick")))
	pgtest.Eventually(t, "the rebuild has begun", func() bool {
		st, err := ops.Status(t.Context(), s.db, "next")
		return err == nil && len(st.Rebuilds) == 1 && st.Rebuilds[0].Behind == 50
	})
	for _, set := range []string{"set", "next"} {
		if out := s.ok("status", set); !strings.Contains(out, "  > quick_v2 is 50 positions behind quick") {
			t.Errorf("status %s:\n%s", set, out)
		}
	}
	if code, _, errs := s.run("promote", "quick_v2", "-timeout", "1ms"); code != exitFailed {
		t.Errorf("promote, for a moment only, ends with %d: %s", code, errs)
	}

	s.exec(`CREATE VIEW model AS SELECT 1 AS version`)
	version := func() (n int) {
		if err := s.db.QueryRowContext(t.Context(), `SELECT version FROM model`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	file := filepath.Join(t.TempDir(), "switch.sql")
	if err := os.WriteFile(file, []byte(`CREATE OR REPLACE VIEW model AS SELECT 2 AS version`), 0o600); err != nil {
		t.Fatal(err)
	}
	said := &testworld.Log{To: io.Discard}
	var out bytes.Buffer
	done := make(chan int)
	go func() {
		done <- run(t.Context(), []string{"promote", "quick_v2", "-sql", file, "-interval", "10ms", "-database", s.url}, nil, &out, said)
	}()
	said.Wait(t, "quick_v2 is 50 positions behind quick")
	if n := version(); n != 1 {
		t.Errorf("readers see version %d already", n)
	}
	close(gate)
	if code := <-done; code != exitOK || !strings.HasPrefix(out.String(), "quick_v2 is live and has replaced quick; no version handled events for ") || version() != 2 {
		t.Errorf("promote ends with %d, readers see version %d: %s", code, version(), &out)
	}
	if out := s.ok("promote", "quick_v2"); out != "quick_v2 is live already; nothing was done\n" {
		t.Errorf("promote again: %s", out)
	}
	if out := s.ok("status", "set"); !strings.Contains(out, "  > quick was replaced by quick_v2\n") || strings.Contains(out, "!") || strings.Contains(out, "paused") {
		t.Errorf("status:\n%s", out)
	}
	if out := s.ok("status", "set", "-check"); out != "No reason of severity warning or worse.\n" {
		t.Errorf("status -check:\n%s", out)
	}

	out.Reset()
	back := strings.NewReader(`CREATE OR REPLACE VIEW model AS SELECT 3 AS version`)
	if code := run(t.Context(), []string{"promote", "quick", "-sql", "-", "-database", s.url}, back, &out, io.Discard); code != exitOK || version() != 3 {
		t.Errorf("the way back ends with %d, readers see version %d: %s", code, version(), &out)
	}
	history := s.ok("history", "set")
	for _, reason := range []string{"hold of quick", "resume of quick"} {
		if !strings.Contains(history, reason) {
			t.Errorf("the history lacks %q:\n%s", reason, history)
		}
	}

	if code, _, errs := s.run("retire", "quick_v2"); code != exitUsage || !strings.Contains(errs, "-yes") {
		t.Errorf("a retire that was not confirmed ends with %d: %s", code, errs)
	}
	if code, _, errs := s.run("retire", "quick_v2", "-yes"); code != exitFailed || !strings.Contains(errs, "remove it from the program first") {
		t.Errorf("to retire what a program has ends with %d: %s", code, errs)
	}
	stop()
	if out := s.ok("retire", "quick_v2", "-yes"); !strings.HasPrefix(out, "quick_v2 is retired") {
		t.Errorf("retire: %s", out)
	}
	if out := s.ok("status"); strings.Contains(out, "  > ") {
		t.Errorf("it is still shown:\n%s", out)
	}
	for _, c := range []struct {
		args  []string
		stdin string
		code  int
		says  string
	}{
		{[]string{"promote"}, "", exitUsage, "missing PROJECTION"},
		{[]string{"promote", "quick", "slow"}, "", exitUsage, `unexpected argument "slow"; usage: orchestrator promote PROJECTION`},
		{[]string{"promote", "quick", "-sql", ""}, "", exitUsage, "leave -sql out"},
		{[]string{"promote", "quick", "-sql", file + "x"}, "", exitUsage, "switch.sqlx"},
		{[]string{"promote", "quick", "-sql", "-"}, " \n", exitUsage, "the file is empty"},
		{[]string{"promote", "quick", "-sql", "-"}, "SELECT 1; COMMIT", exitFailed, "COMMIT"},
		{[]string{"promote", "quick", "-interval", "0s"}, "", exitUsage, "-interval"},
		{[]string{"promote", "quick", "-timeout", "0s"}, "", exitUsage, "-timeout is 0s; it must be more than 0\n"},
		{[]string{"promote", "slow"}, "", exitFailed, `"slow" is not a rebuild`},
		{[]string{"promote", "quick_v2"}, "", exitFailed, "was retired"},
		{[]string{"promote", "nobody"}, "", exitFailed, `"nobody"`},
		{[]string{"retire", "nobody", "-yes"}, "", exitFailed, `"nobody"`},
		{[]string{"retire", "quick", "-yes"}, "", exitFailed, "remove it"},
	} {
		var out, errs bytes.Buffer
		code := run(t.Context(), append(c.args, "-database", s.url), strings.NewReader(c.stdin), &out, &errs)
		if code != c.code || !strings.Contains(errs.String(), c.says) {
			t.Errorf("orchestrator %v ends with %d: %s\nwant %d and %q", c.args, code, &errs, c.code, c.says)
		}
	}
}

// Empty texts and repeated texts are not printed.
func TestReportPrintsChangesOnly(t *testing.T) {
	texts := make(chan string)
	var printed []string
	stop := report(t.Context(), time.Millisecond, func(ctx context.Context) string {
		select {
		case text := <-texts:
			return text
		case <-ctx.Done():
			return "too late"
		}
	}, func(text string) { printed = append(printed, text) })
	for _, text := range []string{"", "a", "a", "", "a", "b", "b", "a", ""} {
		texts <- text
	}
	stop()
	if diff := cmp.Diff([]string{"a", "b", "a"}, printed); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestRenderRebuilds(t *testing.T) {
	s := ops.ReplicaSetStatus{
		ReplicaSet: "main", At: now, Generation: 7, Phase: "active", TotalPartitions: 1, Reason: "hold of users", ActivatedAt: ago(time.Second),
		Held: map[string]time.Time{"users": now},
		Partitions: []ops.PartitionStatus{
			{Projection: "old", TotalPartitions: 1, Position: 9, Paused: true, Parked: 2},
			{Projection: "other", TotalPartitions: 1, Position: 9, Paused: true},
			{Projection: "users", TotalPartitions: 1, Position: 9, Paused: true},
		},
		Rebuilds: []ops.RebuildStatus{
			{Projection: "old", State: ops.RebuildReplaced, Text: "old was replaced by\nnew"},
			{Projection: "other", State: ops.RebuildPaused, Text: "other is paused"},
		},
		Waits: []ops.Wait{{Kind: ops.WaitHeld, Severity: ops.SeverityInfo, Text: "projection users is held"}},
	}
	want := strings.TrimPrefix(`
main: generation 7 active for 1s, 1 partition (hold of users)
   i projection users is held
   > old was replaced by new
   > other is paused

  PROJECTION  PARTS  STATE     BEHIND  FOR  RATE  PARKED
  old         1      replaced  -       -    -     2
  other       1      paused    -       -    -     -
  users       1      held      -       -    -     -

  no workers
`, "\n")
	if diff := cmp.Diff(want, paint(view{}.set(s), false)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	later := s
	later.Rebuilds = []ops.RebuildStatus{{Projection: "old", State: ops.RebuildCatchingUp}, s.Rebuilds[1]}
	if gist([]ops.ReplicaSetStatus{s}) == gist([]ops.ReplicaSetStatus{later}) {
		t.Error("that it is run again is no news")
	}
}
