package orchestrator_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// docs/getting-started.md, from the first line to the last: its tables, its events, its
// program in two copies, one of which is killed, the command, and the lines that it shows.
func TestGettingStarted(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("programs can't be asked to stop on Windows")
	}
	t.Parallel()
	page := readPage(t, "docs/getting-started.md")
	programs, sql, shown := page.blocks["go"], page.blocks["sql"], page.blocks["text"]
	if len(programs) != 1 || len(sql) != 4 || len(shown) != 4 {
		t.Fatalf("the page has %d programs, %d blocks of SQL and %d of output; want 1, 4 and 4", len(programs), len(sql), len(shown))
	}
	if squeeze(sql[0]) != squeeze(regexp.MustCompile(`(?m)^--.*\n`).ReplaceAllString(eventtable.Layout, "")) {
		t.Error("the events table is not internal/eventtable/layout.sql")
	}
	if stores := readPage(t, "docs/event-stores.md"); stores.blocks["sql"][0] != sql[0] {
		t.Error("docs/event-stores.md has another events table")
	}

	dir := moduleOf(t, programs[0])
	runIn(t, dir, "", "go", "vet", ".")
	command := func(block string, line int) []string { return strings.Fields(strings.Split(block, "\n")[line]) }
	commands := page.blocks["console"] // of 1, 4, 5 and 6
	if len(commands) != 4 {
		t.Fatalf("the page has %d blocks of commands, want 4", len(commands))
	}
	runIn(t, dir, "", command(commands[1], 0)...)
	db, url := pgtest.Database(t)
	copyOf := func() *shopCopy { return startShop(t, dir, command(commands[1], 1)[0], url) }
	exec := func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%v\n%s", err, statement)
		}
	}
	orders := func() (rows []string) {
		t.Helper()
		found, err := db.QueryContext(t.Context(), sql[3])
		if err != nil {
			t.Fatal(err)
		}
		defer found.Close()
		for found.Next() {
			var id, customer, status string
			if err := found.Scan(&id, &customer, &status); err != nil {
				t.Fatal(err)
			}
			rows = append(rows, fmt.Sprintf("%s | %s | %s", id, customer, status))
		}
		return rows
	}
	var want []string
	for line := range strings.Lines(shown[1]) {
		want = append(want, strings.Join(strings.Fields(line), " "))
	}

	// What it says where a table is missing is in the table of what to do.
	early := copyOf()
	const noEvents = `events table "events": it does not exist`
	if err := early.wait(); err == nil || !strings.Contains(early.output(), noEvents) || !page.has(noEvents) {
		t.Errorf("without an events table the program ends with %v:\n%s", err, early.output())
	}
	exec(sql[0])
	exec(sql[2])
	first := copyOf()
	defer func() {
		if t.Failed() {
			t.Logf("the first copy:\n%s", first.output())
		}
	}()
	const failed, noOrders = "handler failed, will retry", `relation "orders" does not exist`
	first.saysAny(failed, strings.ReplaceAll(noOrders, `"`, `\"`))
	if !page.has(failed) || !page.has(noOrders) {
		t.Errorf("the page does not have %q and %q", failed, noOrders)
	}
	exec(sql[1])
	first.says(shown[0])
	pgtest.Eventually(t, "the read model has the orders", func() bool { return len(orders()) == len(want) })
	pgtest.Eventually(t, fmt.Sprintf("%q are %q", orders(), want), func() bool { return cmp.Equal(want, orders()) })

	second := copyOf()
	second.says(shown[2])
	first.says(`INFO partitions started replica_set= worker= generation=2 partitions= total_partitions=2`)
	if out := runIn(t, dir, url, command(commands[2], 0)...); !strings.Contains(out, "0/2") || !strings.Contains(out, "1/2") {
		t.Errorf("the status does not show two partitions:\n%s", out)
	}

	if !strings.Contains(second.output(), fmt.Sprintf("-%d-", second.cmd.Process.Pid)) {
		t.Errorf("the worker's name does not have its process id, %d:\n%s", second.cmd.Process.Pid, second.output())
	}
	if err := second.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	first.says(shown[3])
	for i := range 20 {
		exec(strings.NewReplacer("order-1", fmt.Sprint("new-", i), "order-2", fmt.Sprint("other-", i)).Replace(sql[2]))
	}
	pgtest.Eventually(t, "the copy that is left has handled all", func() bool { return len(orders()) == len(want)+40 })

	if err := first.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := first.wait(); err != nil {
		t.Errorf("the program ended with %v:\n%s", err, first.output())
	}
}

// A docsPage is a page's text and its blocks, by their language.
type docsPage struct {
	text   string
	blocks map[string][]string
}

func (p docsPage) has(text string) bool { return strings.Contains(p.text, text) }

func readPage(t *testing.T, name string) docsPage {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(name))
	if err != nil {
		t.Fatal(err)
	}
	page := docsPage{string(text), map[string][]string{}}
	for _, m := range regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```").FindAllStringSubmatch(string(text), -1) {
		page.blocks[m[1]] = append(page.blocks[m[1]], m[2])
	}
	return page
}

// squeeze returns a text with one space wherever there is some.
func squeeze(text string) string { return strings.Join(strings.Fields(text), " ") }

// moduleOf returns a folder with a module of its own that has the program, as "go mod init"
// and "go get" leave it.
func moduleOf(t *testing.T, program string) (dir string) {
	t.Helper()
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile("go.sum")
	if err != nil {
		t.Fatal(err)
	}
	pq := strings.TrimSpace(runIn(t, ".", "", "go", "list", "-m", "-f", "{{.Version}}", "github.com/lib/pq"))
	const own = "github.com/getpup/pupsourcing-orchestrator"
	dir = t.TempDir()
	for name, text := range map[string]string{
		"main.go": program,
		"go.sum":  string(sums),
		"go.mod":  fmt.Sprintf("module shop\n\ngo 1.25.0\n\nrequire (\n\t%s v0.0.0\n\tgithub.com/lib/pq %s\n)\n\nreplace %s => %s\n", own, pq, own, root),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// runIn runs a command and returns what it says.
func runIn(t *testing.T, dir, url string, command ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod", "GOPROXY=off", "DATABASE_URL="+url)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(command, " "), err, out, stderr.String())
	}
	return string(out)
}

// A shopCopy is a running copy of the page's program.
type shopCopy struct {
	t     *testing.T
	cmd   *exec.Cmd
	ended chan struct{}
	err   error

	mu    sync.Mutex
	lines []string
}

func startShop(t *testing.T, dir, program, url string) *shopCopy {
	t.Helper()
	c := &shopCopy{t: t, cmd: exec.CommandContext(context.WithoutCancel(t.Context()), filepath.Join(dir, program)), ended: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), "DATABASE_URL="+url)
	pipe, err := c.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.ended)
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			c.mu.Lock()
			c.lines = append(c.lines, lines.Text())
			c.mu.Unlock()
		}
		c.err = c.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.ended
	})
	return c
}

func (c *shopCopy) wait() error {
	<-c.ended
	return c.err
}

func (c *shopCopy) output() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.lines, "\n")
}

// says waits until the copy has logged each of the lines, whatever their times, names and
// numbers.
func (c *shopCopy) says(lines string) {
	c.t.Helper()
	want := ""
	defer func() {
		if c.t.Failed() {
			c.t.Logf("waited for %q in\n%s", want, c.output())
		}
	}()
	for line := range strings.Lines(lines) {
		want = kindOf(line)
		pgtest.Eventually(c.t, "the program says "+want, func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return slices.ContainsFunc(c.lines, func(l string) bool { return kindOf(l) == want })
		})
	}
}

// saysAny waits until the copy has logged a line that contains all of the texts.
func (c *shopCopy) saysAny(texts ...string) {
	c.t.Helper()
	pgtest.Eventually(c.t, fmt.Sprintf("the program says %q", texts), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.ContainsFunc(c.lines, func(l string) bool {
			return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(l, text) })
		})
	})
}

// kindOf returns of a line of the log level, message and keys, and the values that tell
// lines of one kind apart.
func kindOf(line string) string {
	line = regexp.MustCompile(`^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d `).ReplaceAllString(strings.TrimSpace(line), "")
	return regexp.MustCompile(`([a-z_]+)=("[^"]*"|\[[^]]*\]|\S*)`).ReplaceAllStringFunc(line, func(pair string) string {
		if key, _, _ := strings.Cut(pair, "="); !slices.Contains([]string{"generation", "total_partitions", "reason"}, key) {
			return key + "="
		}
		return pair
	})
}
