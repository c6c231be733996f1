package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// The whole demo, with real processes, on a database that is there already, into pipes.
func TestRun(t *testing.T) {
	db, url := pgtest.Database(t)
	t.Setenv("DATABASE_URL", url)
	t.Setenv("TERM", "xterm")
	var stdout bytes.Buffer
	stderr := &visitor{}
	status := run([]string{"-events", "1500", "-aggregates", "100", "-workers", "3", "-json"}, strings.NewReader("kkkkkkq"), &stdout, stderr)
	output := stderr.String()
	t.Logf("stdout:\n%s\nstderr:\n%s", &stdout, output)
	if status != 0 {
		t.Errorf("got exit status %d, want 0", status)
	}

	var got summary
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil || strings.Count(stdout.String(), "\n") != 1 {
		t.Fatalf("stdout is not the summary in one line: %v", err)
	}
	if got.Generations < 7 { // three joins, the crash, the freeze, the wake, the stop
		t.Errorf("got %d generations, want at least 7", got.Generations)
	}
	line := fmt.Sprintf("\nevents=1500 lost=0 duplicated=0 out_of_order=0 overlaps=0 generations=%d\n", got.Generations)
	if !strings.Contains(output, line) {
		t.Errorf("the output does not have %q", line)
	}
	got.Generations, got.Redelivered = 0, 0
	if want := (summary{Events: 1500}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, line := range strings.Split(output, "\n") {
		if len([]rune(line)) > 80 {
			t.Errorf("%d columns: %s", len([]rune(line)), line)
		}
	}
	if escape := strings.Index(output, "\x1b"); escape >= 0 {
		t.Errorf("not a terminal, and yet an escape sequence: %q", output[escape:min(len(output), escape+20)])
	}
	if strings.Contains(output, "by you") || strings.Contains(output, "keys:") {
		t.Error("it took keys, and stdin is no terminal")
	}
	if !strings.Contains(output, "crash noticed after ") {
		t.Error("it does not say when the crash was noticed")
	}
	if stderr.status != 200 {
		t.Errorf("the status page answered with %d", stderr.status)
	}
	wantNoSchema(t, db)
}

// A visitor is an output that opens the status page when the address is written to it.
type visitor struct {
	bytes.Buffer
	status int
}

func (v *visitor) Write(p []byte) (int, error) {
	n, err := v.Buffer.Write(p)
	if address := regexp.MustCompile(`open (http://127\.0\.0\.1:\d+/)`).FindSubmatch(v.Bytes()); v.status == 0 && address != nil {
		v.status = -1
		if answer, err := http.Get(string(address[1])); err == nil {
			v.status = answer.StatusCode
			_ = answer.Body.Close()
		}
	}
	return n, err
}

// wantNoSchema checks that nothing was left behind.
func wantNoSchema(t *testing.T, db *sql.DB) {
	t.Helper()
	var n int
	if err := db.QueryRow(`SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'quickstart%'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	if n != 0 {
		t.Errorf("%d schemas were left behind", n)
	}
}

func TestFlags(t *testing.T) {
	for _, test := range []struct {
		args   string
		status int
		stderr string // a regular expression
	}{
		{"-workers 2", 2, `-workers is 2; it must be from 3 to 32`},
		{"-events 0", 2, `-events is 0; the least is`},
		{"-events many", 2, `invalid value "many" for flag -events`},
		{"-aggregates 1", 2, `-aggregates is 1; the least is 8`},
		{"-nothing", 2, `flag provided but not defined: -nothing`},
		{"something", 2, `unexpected argument "something"`},
		{"-h", 0, `(?s)usage: .*-aggregates .*-events .*-hold.*-json.*-record .*-workers `},
	} {
		var stdout, stderr bytes.Buffer
		status := run(strings.Fields(test.args), strings.NewReader(""), &stdout, &stderr)
		if status != test.status || !regexp.MustCompile(test.stderr).MatchString(stderr.String()) || stdout.Len() > 0 {
			t.Errorf("%s: got exit status %d, stderr %q, stdout %q", test.args, status, &stderr, &stdout)
		}
	}
}

// A worker may print anything.
func TestWorkerLog(t *testing.T) {
	var said []string
	l := &workerLog{
		log:   func(_, _, _ string, args ...any) { said = append(said, args[0].(string)) },
		short: func(s string) string { return strings.ReplaceAll(s, "host-12-abc", "w1") },
	}
	for _, part := range []string{
		`{"level":"INFO","msg":"started","generation":1}` + "\n" + `{"level":"WARN","msg":"lease`,
		` lost","generation":1}` + "\n\n" + `{"level":"WARN","msg":"removed","workers":"host-12-abc"}` + "\n",
		`{"level":"WARN","msg":"odd","workers":7}` + "\n" + `{"level":"WARN","msg":"odd","workers":7}` + "\n",
		"panic: oh \x00 no\n" + `{"half": ` + "\n", `"just a string"` + "\n[]\n",
		strings.Repeat("x", 3*lineMax), "\nthe end",
	} {
		if n, err := l.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("Write: %d, %v; want %d", n, err, len(part))
		}
	}
	l.flush()
	if got, want := strings.Join(said, "|"), "lease lost|removed: w1|odd"; got != want {
		t.Errorf("said %q, want %q", got, want)
	}
	tail := l.tail()
	for _, want := range []string{"panic: oh", `{"half":`, `"just a string"`, "[]", "the end"} {
		if !strings.Contains(tail, want) {
			t.Errorf("the tail lacks %q", want)
		}
	}
}

func TestWrapped(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", ""},
		{"one two", "one two"},
		{"one two three", "one two|three"},
		{"one\ttwo\x1b[1mthree", "one two|[1mthree"},
		{"abcdefghijklmnop", "abcdefghi…"},
		{"aaaaaaaa bbbbbbbb cccccccc dddddddd", "aaaaaaaa|bbbbbbbb|cccccccc …"},
	} {
		if got := strings.Join(wrapped(test.text, 10), "|"); got != test.want {
			t.Errorf("%q: got %q, want %q", test.text, got, test.want)
		}
	}
}
