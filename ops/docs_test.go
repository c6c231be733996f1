package ops_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
	"github.com/getpup/pupsourcing-orchestrator/pqnotify"
)

// sqlOfTheDocs returns the block of SQL of a page that contains a text.
func sqlOfTheDocs(t *testing.T, page, contains string) string {
	t.Helper()
	text, err := os.ReadFile("../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, m := range regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		if strings.Contains(m[1], contains) {
			found = append(found, m[1])
		}
	}
	if len(found) != 1 {
		t.Fatalf("docs/%s has %d blocks of SQL with %q, want 1", page, len(found), contains)
	}
	return found[0]
}

// A projection that is renamed with the SQL of docs/operations.md goes on where it was; one
// whose rows are deleted with it begins anew.
func TestRenameAndDeleteOfTheDocs(t *testing.T) {
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	run := func(name string) *testworld.Running {
		return testworld.Run(t, cfg, testworld.Effects{Projection: name, Log: &testworld.History{}}.Transactional())
	}
	first := run("old_name")
	w.Active("set", 1)
	w.Append(100)
	w.CaughtUp("old_name")
	w.Exec(`INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at) VALUES ('old_name', 1000000, 0, 'a', '', 0, now())`)
	first.Stop()
	w.Exec(sqlOfTheDocs(t, "operations.md", "SET name = 'new_name'"))
	w.Exec(`UPDATE effects SET projection = 'new_name'`) // its read model
	if n := w.Number(`SELECT count(*) FROM orchestrator_parked WHERE projection = 'new_name'`); n != 1 {
		t.Errorf("%d parked events have the new name, want 1", n)
	}
	w.Exec(`DELETE FROM orchestrator_parked`)
	second := run("new_name")
	w.Append(50)
	w.CaughtUp("new_name")
	w.CheckEffects("new_name")
	second.Stop()

	w.Exec(`DELETE FROM effects`)
	w.Exec(strings.ReplaceAll(sqlOfTheDocs(t, "operations.md", "DELETE FROM orchestrator_projections"), "old_name", "new_name"))
	run("new_name")
	w.CaughtUp("new_name")
	w.CheckEffects("new_name")
}

// The SQL that docs/operations.md has for the first five minutes, and for a gap.
func TestSQLOfTheFirstFiveMinutes(t *testing.T) {
	w := newWorld(t)
	testworld.Run(t, w.Config(w.DB, "set"), w.All(w.DB, &testworld.History{})...)
	w.Active("set", 1)
	for statement := range strings.SplitSeq(strings.TrimSpace(sqlOfTheDocs(t, "operations.md", "orchestrator_status_partitions")), ";") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if n := w.Number(fmt.Sprintf(`SELECT count(*) FROM (%s) x`, statement)); n == 0 {
			t.Errorf("no row: %s", statement)
		}
	}
	abandoned, err := w.Connect().Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer abandoned.Close()
	var pid int
	if err := abandoned.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	w.Exec(strings.ReplaceAll(sqlOfTheDocs(t, "operations.md", "pg_terminate_backend"), "4711", fmt.Sprint(pid)))
	pgtest.Eventually(t, "the backend is gone", func() bool {
		return w.Number(`SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, pid) == 0
	})
}

// A projection that is in no program any more is named, and nothing else is wrong.
func TestProjectionOfNoProgram(t *testing.T) {
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	stays := testworld.Effects{Projection: "stays", Log: &testworld.History{}}.Transactional()
	first := testworld.Run(t, cfg, stays, testworld.Effects{Projection: "left", Log: &testworld.History{}}.Transactional())
	w.Append(50)
	w.CaughtUp("stays", "left")
	first.Stop()
	testworld.Run(t, cfg, stays)
	w.Append(50)
	w.CaughtUp("stays")
	pgtest.Eventually(t, "the worker has reported", func() bool {
		s, _ := w.Stand("set")
		return len(s.Partitions) == 2 && s.Partitions[1].Report != nil
	})
	if s, _ := w.Stand("set"); len(s.Waits) != 1 || s.Waits[0].Kind != ops.WaitAbsent || s.Waits[0].Projection != "left" {
		t.Errorf("the reasons are %+v", s.Waits)
	}
}

// The trigger of docs/configuration.md announces what is appended, on the channel that the
// page sets.
func TestTriggerOfTheDocs(t *testing.T) {
	w := newWorld(t)
	w.Exec(sqlOfTheDocs(t, "configuration.md", "CREATE TRIGGER"))
	page, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	channel := regexp.MustCompile(`EventsChannel: "(\w+)"`).FindSubmatch(page)
	if channel == nil {
		t.Fatal("docs/configuration.md sets no EventsChannel")
	}
	notifier, err := pqnotify.New(w.URL)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	up, heard, done := make(chan bool), make(chan string, 1), make(chan error, 1)
	go func() {
		done <- notifier.Listen(ctx, []string{string(channel[1])}, func() { close(up) }, func(channel, _ string) {
			select {
			case heard <- channel:
			default:
			}
		})
	}()
	select {
	case <-up:
	case err := <-done:
		t.Fatal(err)
	}
	w.Append(3)
	if got := <-heard; got != string(channel[1]) {
		t.Errorf("heard %q", got)
	}
	stop()
	<-done
}
