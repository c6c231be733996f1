package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/getpup/pupsourcing-orchestrator/importer"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// migrate says what it has done, and version what there is.
func TestMigrateAndVersion(t *testing.T) {
	db, url := pgtest.Database(t)
	s := &stage{t: t, db: db, url: url}
	if out := s.ok("version"); !strings.Contains(out, runtime.Version()) || !strings.Contains(out, "needs version 3") || !strings.Contains(out, "no table orchestrator_schema") {
		t.Errorf("version without tables: %s", out)
	}
	if out := s.ok("migrate"); out != "created the tables in schema \"public\", version 3\n" {
		t.Errorf("migrate: %s", out)
	}
	if out := s.ok("migrate"); out != "nothing to do: the tables in schema \"public\" have version 3\n" {
		t.Errorf("migrate again: %s", out)
	}
	s.exec(`UPDATE orchestrator_schema SET version = 2`)
	if out := s.ok("version"); !strings.Contains(out, `schema "public" has version 2; to upgrade it: orchestrator migrate`) {
		t.Errorf("version of older tables: %s", out)
	}
	if out := s.ok("migrate"); out != "upgraded the tables in schema \"public\" from version 2 to 3\n" {
		t.Errorf("migrate from version 2: %s", out)
	}
	if out := s.ok("migrate", "-schema", "elsewhere"); out != "created the tables in schema \"elsewhere\", version 3\n" {
		t.Errorf("migrate -schema: %s", out)
	}
	if out := s.ok("version", "-schema", "elsewhere"); !strings.Contains(out, `schema "elsewhere" has version 3`+"\n") {
		t.Errorf("version -schema: %s", out)
	}
	t.Setenv("DATABASE_URL", "")
	for _, c := range []struct {
		args []string
		says string
	}{
		{nil, "no database is named"},
		{[]string{"-database", "postgres://127.0.0.1:1/nothing?sslmode=disable"}, "can't be read: "},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), append([]string{"version"}, c.args...), nil, &out, &errs); code != exitOK || !strings.Contains(out.String(), c.says) {
			t.Errorf("version %s ends with %d: %s%s", c.args, code, &out, &errs)
		}
	}
}

// wait ends when everything is handled, and says how far behind a projection is that does not
// get there.
func TestWait(t *testing.T) {
	s := newStage(t)
	s.poison.Store(3)
	s.worker()
	s.running(1)
	s.append(4)
	if out := s.ok("wait", "slow", "4"); out != "slow has handled all events up to position 4\n" {
		t.Errorf("wait: %s", out)
	}
	pgtest.Eventually(t, "the end of the stream is reported", func() bool { return s.status().Head == 4 })
	if out := s.ok("wait", "slow"); out != "slow has handled all events up to position 4\n" {
		t.Errorf("wait without a position: %s", out)
	}
	if code, out, errs := s.run("wait", "quick", "4", "-timeout", "300ms"); code != exitFailed || out != "" || !strings.Contains(errs, "projection quick is at position 2 after 300ms: 2 behind position 4") {
		t.Errorf("wait for what fails ends with %d: %s%s", code, out, errs)
	}
	if code, _, errs := s.run("wait", "qiuck", "4", "-timeout", "1ms"); code != exitFailed || !strings.Contains(errs, "projection qiuck has never run; check the name") {
		t.Errorf("wait for a mistyped name ends with %d: %s", code, errs)
	}
	if code, _, errs := s.run("wait", "qiuck"); code != exitUsage || !strings.Contains(errs, "pass a POSITION") {
		t.Errorf("wait for a mistyped name, without a position, ends with %d: %s", code, errs)
	}
}

// import shows what it would do, changes nothing unless it is confirmed, and then takes over
// checkpoints.
func TestImport(t *testing.T) {
	s := newStage(t)
	s.exec(`CREATE TABLE projection_checkpoints (projection_name text PRIMARY KEY, last_global_position bigint NOT NULL)`)
	s.exec(`INSERT INTO projection_checkpoints VALUES ('quick_p0', 7), ('quick_p1', 9)`)
	imported := func() (n int) {
		if err := s.db.QueryRowContext(t.Context(), `SELECT count(*) FROM orchestrator_checkpoints WHERE projection = 'quick'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	args := []string{"import", "set", "quick", "-total", "2", "-watch", "10ms"}
	if out := s.ok(append(args, "-dry-run")...); !strings.Contains(out, "quick_p1        9         9") || !strings.Contains(out, "nothing was changed") || imported() != 0 {
		t.Errorf("a dry run, %d rows:\n%s", imported(), out)
	}
	if code, out, errs := s.run(args...); code != exitUsage || !strings.Contains(out, "No event is handled again.") || !strings.Contains(errs, "-yes") || imported() != 0 {
		t.Errorf("an import that was not confirmed ends with %d, %d rows:\n%s%s", code, imported(), out, errs)
	}
	if out := s.ok(append(args, "-yes")...); !strings.HasSuffix(out, "quick is imported; start the workers of replica set set\n") || imported() == 0 {
		t.Errorf("an import, %d rows:\n%s", imported(), out)
	}
	if code, _, errs := s.run(append(args, "-yes")...); code != exitFailed || !strings.Contains(errs, "has checkpoints already") {
		t.Errorf("a second import ends with %d: %s", code, errs)
	}
	if code, _, errs := s.run("import", "set", "slow", "-total", "2", "-watch", "10ms", "-segments"); code != exitFailed || !strings.Contains(errs, "consumer_workers") {
		t.Errorf("an import of segments that are not there ends with %d: %s", code, errs)
	}
	if code, _, errs := s.run("import", "set", "slow", "-total", "2", "-segments", "-key-column", "k"); code != exitUsage || !strings.Contains(errs, "don't go with -segments") {
		t.Errorf("columns of segments: %d, %s", code, errs)
	}
	s.exec(`CREATE TABLE consumer_segments (consumer_name text, segment_id int, total_segments int, owner_id text, checkpoint bigint)`)
	s.exec(`CREATE TABLE consumer_workers (consumer_name text, worker_id text, last_heartbeat timestamptz)`)
	s.exec(`INSERT INTO consumer_segments VALUES ('slow', 0, 2, NULL, 5), ('slow', 1, 2, NULL, 6)`)
	if out := s.ok("import", "set", "slow", "-total", "2", "-watch", "10ms", "-segments", "-yes"); !strings.HasSuffix(out, "slow is imported; start the workers of replica set set\n") {
		t.Errorf("an import of segments:\n%s", out)
	}
	got := renderImport(importer.Result{Lowest: 5, Partitions: []importer.Partition{{Key: "a\x1b", Position: 9, Start: 5}}})
	want := "  OLD CHECKPOINT  POSITION  STARTS AFTER\n  a\\u001b         9         5\nSome events after position 5 are handled again: the total does not divide 5040.\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Completion offers commands, flags and the names of the database, and is quiet where there are
// none.
func TestComplete(t *testing.T) {
	s := newStage(t)
	s.worker()
	s.running(1)
	worker := s.status().Workers[0].Worker
	s.exec(`INSERT INTO orchestrator_replica_sets (name, generation, total, reason, opened_at, activated_at) VALUES ('$(reboot)', 3, 1, '', now(), now()), ('other', 3, 1, '', now(), now())`)
	for words, want := range map[string]string{
		"":                            "completion drain help history import migrate park pause promote resume retire rewind status undrain version wait watch",
		"st":                          "status",
		"help wa":                     "wait watch",
		"status ":                     "other set", // a shell would run what the third name has
		"status s":                    "set",
		"status -":                    "-check -database -json -schema -v",
		"status -check=":              "-check=critical -check=info -check=warning",
		"status -check = c":           "critical", // as bash splits it
		"status -check = ":            "critical info warning",
		"status set ":                 "",
		"pause set ":                  "quick slow",
		"pause -timeout 3s set q":     "quick",
		"pause -timeout ":             "",
		"pause -schema elsewhere set": "",
		"pause other ":                "",
		"pause nobody ":               "",
		"rewind set quick ":           "",
		"drain set ":                  worker,
		"promote ":                    "quick slow",
		"park ":                       "add discard list retry",
		"park list ":                  "quick slow",
		"park add set s":              "slow",
		"completion z":                "zsh",
		"nothing ":                    "",
		"pause \x1b":                  "",
	} {
		t.Setenv("DATABASE_URL", s.url)
		if words == "status -check = " {
			words = "status -check ="
		}
		var out, errs bytes.Buffer
		code := run(t.Context(), append([]string{completeCommand}, strings.Split(words, " ")...), nil, &out, &errs)
		got := strings.Fields(out.String())
		slices.Sort(got)
		if code != exitOK || strings.Join(got, " ") != want || errs.Len() > 0 {
			t.Errorf("%q: %d, %q %s, want %q", words, code, got, &errs, want)
		}
		if strings.HasPrefix(words, "pause ") {
			t.Setenv("DATABASE_URL", "postgres://127.0.0.1:1/nothing?sslmode=disable")
			out.Reset()
			if code := run(t.Context(), []string{completeCommand, "pause", ""}, nil, &out, &errs); code != exitOK || out.Len()+errs.Len() > 0 {
				t.Errorf("without a database: %d, %s%s", code, &out, &errs)
			}
		}
	}
}

// asCommand is set in processes of the test binary that are the command.
const asCommand = "ORCHESTRATOR_TEST_COMMAND"

// The scripts work in the shells that there are on this machine.
func TestCompletionScripts(t *testing.T) {
	s := newStage(t)
	s.worker()
	s.running(1)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "orchestrator")); err != nil {
		t.Fatal(err)
	}
	for shell, script := range map[string]string{
		"bash": `source <(orchestrator completion bash)
			try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _orchestrator; echo "${COMPREPLY[*]}"; }
			try orchestrator sta; try orchestrator pause set q; try orchestrator status -check = w; try orchestrator pause set quick ""`,
		"zsh": `autoload -U compinit; compdef() { :; }; compadd() { echo "${(@P)2}"; }; _files() { echo; }
			source <(orchestrator completion zsh)
			try() { local words=("$@") CURRENT=$#; _orchestrator; }
			try orchestrator sta; try orchestrator pause set q; try orchestrator status -check=w; try orchestrator pause set quick ""`,
		"fish": `orchestrator completion fish | source
			for line in "orchestrator sta" "orchestrator pause set q" "orchestrator status -check=w" "orchestrator pause set quick "
				set found (complete -C "$line"); printf "%s\\n" "$found"
			end`,
	} {
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("there is no %s", shell)
			continue
		}
		cmd := exec.CommandContext(t.Context(), path, "-c", script)
		cmd.Env = append(os.Environ(), "PATH="+dir+string(os.PathListSeparator)+os.Getenv("PATH"), "DATABASE_URL="+s.url, asCommand+"=1", "HOME="+dir)
		out, err := cmd.CombinedOutput()
		got := strings.ReplaceAll(string(out), "-check=", "")
		var lines []string
		for line := range strings.Lines(got) {
			lines = append(lines, strings.TrimSpace(line))
		}
		if want := []string{"status", "quick", "warning", ""}; err != nil || !slices.Equal(lines, want) {
			t.Errorf("%s: %v, got %q, want %q", shell, err, lines, want)
		}
	}
}
