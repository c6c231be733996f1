// Command orchestrator shows replica sets of pupsourcing-orchestrator and gives
// them orders. Everything is safe while workers run.
//
//	orchestrator status [SET]                       who runs what, how far, and why it stands still
//	orchestrator watch [SET]                        the same, again and again
//	orchestrator history SET                        its latest generations
//	orchestrator pause SET [PROJECTION]             have it, or all of the set, not run, until resumed
//	orchestrator resume SET [PROJECTION]
//	orchestrator rewind SET PROJECTION POSITION     back or forward: handle what is above POSITION next
//	orchestrator drain SET WORKER                   take a worker's partitions away
//	orchestrator undrain SET WORKER
//	orchestrator promote PROJECTION                 let a rebuild take the live version's place; -sql FILE switches the readers over
//	orchestrator retire PROJECTION                  remove what is left of a version that was replaced
//	orchestrator park list PROJECTION               what it has gone past without handling it
//	orchestrator park retry PROJECTION WHICH        -position N (or several), -aggregate ID or -all
//	orchestrator park discard PROJECTION WHICH
//	orchestrator park add SET PROJECTION POSITION   go past the event that it stands at, whatever its failure rule
//
// The database is the one that -database or DATABASE_URL names. Others on the machine
// see -database, and a password in it, in the list of processes: use DATABASE_URL, or a
// password file (PGPASSFILE), where there is a password. -schema names the PostgreSQL
// schema of the library's tables, where the search path does not lead to it. A worker may be
// named by the beginning of its name. Orders wait until their generation is
// active, and say whom they wait for. "orchestrator status -h" and the like list
// the flags of a command, which may stand anywhere after its name.
//
// A promotion waits until the rebuild is close behind the live version, says meanwhile how
// far it is, and runs the SQL of a file, or of its input (-sql -), in the transaction in
// which the versions change:
//
//	echo 'CREATE OR REPLACE VIEW order_list AS SELECT * FROM orders_v2' | orchestrator promote orders_v2 -sql -
//
// It ends with 0; with 1 when something failed; with 2 when it was called wrongly;
// and status -check with 3 when something stands still.
package main

import (
	"cmp"
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

//go:embed main.go
var source string

// usage is the comment above.
func usage() string {
	doc, _, _ := strings.Cut(source, "package main")
	var b strings.Builder
	for line := range strings.Lines(doc) {
		line = strings.TrimPrefix(strings.TrimPrefix(line, "//"), " ")
		b.WriteString(strings.Replace(line, "\t", "    ", 1))
	}
	return b.String()
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// What the command ends with.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitStandsStill
)

// A usageError is the caller's.
type usageError struct{ problem string }

func (e usageError) Error() string { return e.problem }

var errStandsStill = errors.New("something stands still")

// run is the command, with what it needs of the process.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	screen := stdout
	stdout, stderr = safeWriter{stdout}, safeWriter{stderr}
	err := command(ctx, args, stdin, stdout, stderr, screen)
	var wrong usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage())
		return exitOK
	case errors.As(err, &wrong):
		fmt.Fprintf(stderr, "orchestrator: %s\nFor all commands: orchestrator -h\n", redact.Text(wrong.problem))
		return exitUsage
	case errors.Is(err, errStandsStill):
		return exitStandsStill
	}
	fmt.Fprintf(stderr, "orchestrator: %s\n", strings.TrimPrefix(redact.Error(err).Error(), "orchestrator: "))
	return exitFailed
}

// A call is one command line.
type call struct {
	db             *sql.DB
	in             orchestrator.TablesOption // where its tables are
	args           []string
	stdin          io.Reader
	stdout, stderr io.Writer // nothing of the database's reaches a terminal through them as it is
	screen         io.Writer // stdout, for what moves the cursor

	json, check, nowait, yes bool
	interval, timeout        time.Duration
	limit                    int
	all                      bool
	aggregate, by            string
	positions                positions
	sql                      sqlFile
}

var commands = map[string]struct {
	run  func(context.Context, *call) error
	args string // what it takes; those in brackets may be left out
	// flags beside -database.
	flags func(*call, *flag.FlagSet)
}{
	"status": {status, "[SET]", func(c *call, f *flag.FlagSet) {
		f.BoolVar(&c.json, "json", false, "as JSON")
		f.BoolVar(&c.check, "check", false, "end with 3 when something stands still")
	}},
	"watch": {watch, "[SET]", func(c *call, f *flag.FlagSet) {
		f.DurationVar(&c.interval, "interval", time.Second, "how often to look")
	}},
	"history": {history, "SET", func(c *call, f *flag.FlagSet) {
		f.BoolVar(&c.json, "json", false, "as JSON")
		f.IntVar(&c.limit, "n", 20, "how `many` generations")
	}},
	"pause":   {pause, "SET [PROJECTION]", orderFlags},
	"resume":  {resume, "SET [PROJECTION]", orderFlags},
	"rewind":  {rewind, "SET PROJECTION POSITION", confirmedFlags},
	"drain":   {drain, "SET WORKER", orderFlags},
	"undrain": {undrain, "SET WORKER", orderFlags},
	"promote": {promote, "PROJECTION", func(c *call, f *flag.FlagSet) {
		f.Var(&c.sql, "sql", "run the SQL of this `FILE` in the same transaction, which switches the readers over; - is the input")
		f.DurationVar(&c.timeout, "timeout", time.Hour, "how long to wait until it is close behind; then nothing is changed")
		f.DurationVar(&c.interval, "interval", 3*time.Second, "how often to say how far it is, if that changes")
	}},
	"retire": {retire, "PROJECTION", func(c *call, f *flag.FlagSet) {
		f.BoolVar(&c.yes, "yes", false, "don't ask")
	}},
	"park": {park, "list|retry|discard|add [SET] PROJECTION [POSITION]", func(c *call, f *flag.FlagSet) {
		f.BoolVar(&c.json, "json", false, "list as JSON")
		f.IntVar(&c.limit, "n", 100, "list at most this `many` events")
		f.BoolVar(&c.all, "all", false, "retry or discard all of the projection's")
		f.StringVar(&c.aggregate, "aggregate", "", "retry or discard those of the aggregate with this `ID`")
		f.Var(&c.positions, "position", "retry or discard the one at position `N`; may be given several times")
		f.BoolVar(&c.yes, "yes", false, "discard or add without asking")
		f.StringVar(&c.by, "by", login(), "who adds, for the history: a `name`")
		f.BoolVar(&c.nowait, "nowait", false, "add: don't wait until the event is parked")
		f.DurationVar(&c.timeout, "timeout", time.Minute, "add: how long to wait for that")
	}},
}

func orderFlags(c *call, f *flag.FlagSet) {
	f.BoolVar(&c.nowait, "nowait", false, "don't wait until the order has its effect")
	f.DurationVar(&c.timeout, "timeout", time.Minute, "how long to wait for that")
}

func confirmedFlags(c *call, f *flag.FlagSet) {
	orderFlags(c, f)
	f.BoolVar(&c.yes, "yes", false, "don't ask")
}

func command(ctx context.Context, args []string, stdin io.Reader, stdout, stderr, screen io.Writer) error {
	if len(args) == 0 {
		return usageError{"which command?"}
	}
	name, args := args[0], args[1:]
	if name == "-h" || name == "-help" || name == "--help" || name == "help" {
		return flag.ErrHelp
	}
	command, ok := commands[name]
	if !ok {
		return usageError{fmt.Sprintf("there is no command %q", name)}
	}
	c := &call{stdin: stdin, stdout: stdout, stderr: stderr, screen: screen}
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	url := flags.String("database", "", "the database's `URL`, which others see in the list of processes; without it, DATABASE_URL is")
	schema := flags.String("schema", "", "the `name` of the PostgreSQL schema of the library's tables; without it, the search path leads to them")
	command.flags(c, flags)
	switch err := c.parse(flags, args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, "orchestrator %s %s\n", name, command.args)
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	case err != nil:
		return usageError{fmt.Sprintf("%s: %v", name, err)}
	}
	most := strings.Fields(command.args)
	least := len(most) - strings.Count(command.args, "[")
	if len(c.args) < least || len(c.args) > len(most) {
		return usageError{fmt.Sprintf("%s takes %s, and got %q", name, command.args, c.args)}
	}
	if slices.Contains(c.args, "") { // a variable that is not set: not "all of them"
		return usageError{fmt.Sprintf("%s takes %s, and one of %q is empty", name, command.args, c.args)}
	}
	if flags.Lookup("timeout") != nil && c.timeout <= 0 { // or the order would be given, and not waited for
		instead := ""
		if flags.Lookup("nowait") != nil {
			instead = "; to wait for nothing, say -nowait"
		}
		return usageError{fmt.Sprintf("%s: -timeout is %s%s", name, c.timeout, instead)}
	}
	if *url = cmp.Or(*url, os.Getenv("DATABASE_URL")); *url == "" {
		return usageError{"which database? set -database or DATABASE_URL to a URL such as postgres://…"}
	}
	connector, err := pq.NewConnector(*url)
	if err != nil {
		return usageError{fmt.Sprintf("-database or DATABASE_URL: %v", redact.Error(err))}
	}
	c.db = sql.OpenDB(connector)
	defer c.db.Close()
	if err := c.db.PingContext(ctx); err != nil {
		return fmt.Errorf("reach the database: %w", err)
	}
	c.in = orchestrator.InSchema(*schema)
	if err := store.New(c.db, "", store.Options{Schema: *schema}).Check(ctx); err != nil {
		return err
	}
	return command.run(ctx, c)
}

// parse takes flags before, between and after the arguments.
func (c *call) parse(flags *flag.FlagSet, args []string) error {
	for {
		if err := flags.Parse(args); err != nil {
			return err
		}
		if flags.NArg() == 0 {
			return nil
		}
		c.args = append(c.args, flags.Arg(0))
		args = flags.Args()[1:]
	}
}

// arg returns the i-th argument, or "".
func (c *call) arg(i int) string {
	if i < len(c.args) {
		return c.args[i]
	}
	return ""
}
