// Command orchestrator shows what replica sets (consumer groups) do, and gives them orders.
// All commands are safe while workers run.
//
//	export DATABASE_URL=postgres://user@host:5432/name
//	orchestrator status
//
// Commands:
//
//	orchestrator status [SET]                       what is stalled and why, projections, lag; -v partitions and workers
//	orchestrator watch [SET]                        live status; scrolls and sorts on a terminal
//	orchestrator wait PROJECTION [POSITION]         wait until a projection has handled the events up to POSITION
//	orchestrator history SET                        latest generations
//	orchestrator pause SET [PROJECTION]             stop a projection, or the whole set, until it is resumed
//	orchestrator resume SET [PROJECTION]            restart what was paused
//	orchestrator rewind SET PROJECTION POSITION     move the checkpoint back or forward to POSITION
//	orchestrator drain SET WORKER                   take a worker's partitions away
//	orchestrator undrain SET WORKER                 let a drained worker have partitions again
//	orchestrator promote PROJECTION                 make a rebuild the live version; -sql FILE switches the readers
//	orchestrator retire PROJECTION                  remove checkpoints and parked events of a replaced version
//	orchestrator park list PROJECTION               list parked events (the dead-letter queue)
//	orchestrator park retry PROJECTION              handle parked events again
//	orchestrator park discard PROJECTION            drop parked events unhandled
//	orchestrator park add SET PROJECTION POSITION   park the event that blocks a projection (a poison event)
//	orchestrator import SET PROJECTION              take over the checkpoints of processors that were run by hand
//	orchestrator migrate                            create or upgrade the library's tables
//	orchestrator version                            versions of the command, of Go and of the tables
//	orchestrator completion bash|zsh|fish           completion for a shell
//
// "orchestrator COMMAND -h" shows an example and the flags of a command. Flags can stand
// anywhere after the command.
//
// -database is the URL of the database (default: $DATABASE_URL). Other users of the machine
// can see flags in the list of processes. If there is a password, use DATABASE_URL or a
// password file (PGPASSFILE). -schema is the PostgreSQL schema of the library's tables
// (default: as found by the search path).
//
// status shows the most urgent reasons first: "!!" is critical, "!" a warning, "i" an
// information. "status -check" prints only what is critical or a warning, and exits with 3 if
// there is any; -check=critical and -check=info set another limit.
//
// park retry and park discard take one of -position N (repeatable), -aggregate ID and -all.
// WORKER can be the beginning of a name, if no other worker's name begins like that. Orders
// wait until they have taken effect, and print what they wait for.
//
// promote waits until the rebuild is close behind the live version, and prints its progress.
// Then it runs the SQL of -sql in the transaction that makes the rebuild live. "-sql -" reads
// the SQL from standard input:
//
//	echo 'CREATE OR REPLACE VIEW order_list AS SELECT * FROM orders_v2' | orchestrator promote orders_v2 -sql -
//
// Exit codes: 0: success; 1: failure; 2: wrong usage; 3: status -check has found something.
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
	"maps"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

//go:embed main.go
var source string

// usage returns the package's documentation.
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

// The exit codes of the command.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitStalled
)

// A usageError is an error in the command line.
type usageError struct{ problem string }

func (e usageError) Error() string { return e.problem }

// run runs the command and returns its exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	screen := stdout
	stdout, stderr = safeWriter{stdout}, safeWriter{stderr}
	err := command(ctx, args, stdin, stdout, stderr, screen)
	var wrong usageError
	var found stalled
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage())
		return exitOK
	case errors.As(err, &wrong):
		help := "orchestrator -h"
		if _, ok := commands[args0(args)]; ok {
			help = "orchestrator " + args[0] + " -h"
		}
		fmt.Fprintf(stderr, "orchestrator: %s\nHelp: %s\n", redact.Text(wrong.problem), help)
		return exitUsage
	case errors.As(err, &found):
		return exitStalled
	}
	fmt.Fprintf(stderr, "orchestrator: %s\n", strings.TrimPrefix(redact.Error(err).Error(), "orchestrator: "))
	return exitFailed
}

// A call is one command line.
type call struct {
	db             *sql.DB
	in             orchestrator.TablesOption // the schema of the library's tables
	url, schema    string
	args           []string
	stdin          io.Reader
	stdout, stderr io.Writer // they escape control characters: see safeWriter
	screen         io.Writer // stdout without escaping, for control sequences

	json, nowait, yes, verbose, pastEnd bool
	check                               level
	interval, timeout                   time.Duration
	limit                               int
	all                                 bool
	aggregate, by                       string
	positions                           positions
	sql                                 sqlFile
	old                                 oldProcessors
}

// A subcommand is one entry of the list of commands.
type subcommand struct {
	run  func(context.Context, *call) error
	args string // arguments; those in brackets are optional
	// variants are the arguments after a first argument that selects a variant, by that
	// argument. nil: there are no variants.
	variants map[string]string
	short    string // what it does
	example  string // arguments of an example
	flags    func(*call, *flag.FlagSet)
	bare     bool // the library's tables may be missing
	offline  bool // the database may be missing
}

var commands = map[string]subcommand{
	"status": {run: status, args: "[SET]", example: "main-projections -check",
		short: "Show what is stalled and why, and the projections, of all replica sets or of one; the most urgent first. !! is critical, ! a warning, i an information.",
		flags: func(c *call, f *flag.FlagSet) {
			f.BoolVar(&c.json, "json", false, "print JSON")
			f.Var(&c.check, "check", "print only what is wrong, and exit with 3 if there is something of this `severity` or worse: critical, warning or info. -check alone is -check=warning")
			f.BoolVar(&c.verbose, "v", false, "show partitions, workers, and the stalls that a reason explains")
		}},
	"watch": {run: watch, args: "[SET]", example: "main-projections -interval 5s",
		short: "Show the status of all replica sets, or of one, until q or Ctrl-C. On a terminal: arrows, PgUp and PgDn scroll; w, n, b and p sort; v shows details.",
		flags: func(c *call, f *flag.FlagSet) {
			f.DurationVar(&c.interval, "interval", time.Second, "time between two updates, at least 10ms")
			f.BoolVar(&c.verbose, "v", false, "show partitions, workers, and the stalls that a reason explains")
		}},
	"wait": {run: wait, args: "PROJECTION [POSITION]", example: "search_index 4711 -timeout 10s",
		short: "Wait until a projection has handled all events up to POSITION, on all partitions. Without POSITION: up to the present end of the stream.",
		flags: func(c *call, f *flag.FlagSet) {
			f.DurationVar(&c.timeout, "timeout", time.Minute, "how long to wait")
		}},
	"migrate": {run: migrate, bare: true, example: "-schema orchestrator",
		short: "Create or upgrade the library's tables. Workers may run. The schema of -schema is created if it is missing.",
		flags: func(c *call, f *flag.FlagSet) {
			f.DurationVar(&c.timeout, "timeout", 5*time.Minute, "give up after this time")
		}},
	"import": {run: imports, args: "SET PROJECTION", example: "main-projections user_count -total 3",
		short: "Take over the checkpoints of processors that were run by hand. Stop them first. It shows what it would do, asks, and then does it.",
		flags: importFlags},
	"version": {run: version, bare: true, offline: true, short: "Show the versions of this command, of Go, and of the library's tables if the database can be reached.",
		flags: func(*call, *flag.FlagSet) {}},
	"completion": {run: completion, args: "bash|zsh|fish", offline: true, example: "bash > /etc/bash_completion.d/orchestrator",
		variants: map[string]string{"bash": "", "zsh": "", "fish": ""},
		short:    "Print a script that completes commands, flags, and the names of sets, projections and workers, which it reads from the database.",
		flags:    func(*call, *flag.FlagSet) {}},
	"history": {run: history, args: "SET", example: "main-projections -n 5",
		short: "Show the latest generations of a replica set, newest first.",
		flags: func(c *call, f *flag.FlagSet) {
			f.BoolVar(&c.json, "json", false, "print JSON")
			f.IntVar(&c.limit, "n", 20, "the most `generations` to show")
		}},
	"pause": {run: pause, args: "SET [PROJECTION]", example: "main-projections search_index", flags: orderFlags,
		short: "Stop a projection, or all projections of a replica set, until resume."},
	"resume": {run: resume, args: "SET [PROJECTION]", example: "main-projections search_index", flags: orderFlags,
		short: "Restart a paused projection, or all projections of a replica set, from their checkpoints."},
	"rewind": {run: rewind, args: "SET PROJECTION POSITION", example: "main-projections search_index 0",
		flags: func(c *call, f *flag.FlagSet) {
			orderFlags(c, f)
			f.BoolVar(&c.yes, "yes", false, "don't ask for confirmation")
			f.BoolVar(&c.pastEnd, "past-end", false, "accept a POSITION beyond the end of the stream: new events up to it are skipped")
		},
		short: "Move the checkpoint of a projection to POSITION. Going back repeats events after POSITION; going forward skips events. 0 repeats all."},
	"drain": {run: drain, args: "SET WORKER", example: "main-projections shop-7d9f", flags: orderFlags,
		short: "Take a worker's partitions away, for maintenance. It stays in the set as a standby."},
	"undrain": {run: undrain, args: "SET WORKER", example: "main-projections shop-7d9f", flags: orderFlags,
		short: "Let a drained worker have partitions again."},
	"promote": {run: promote, args: "PROJECTION", example: "orders_v2 -sql switch.sql",
		short: "Make a rebuild the live version, as soon as it is close behind the present one.",
		flags: func(c *call, f *flag.FlagSet) {
			f.Var(&c.sql, "sql", "run the SQL in `FILE` in the same transaction, to switch the readers; - is standard input")
			f.DurationVar(&c.timeout, "timeout", time.Hour, "give up if the rebuild is not close behind after this time; then nothing is changed")
			f.DurationVar(&c.interval, "interval", 3*time.Second, "time between two progress messages")
		}},
	"retire": {run: retire, args: "PROJECTION", example: "orders_v1",
		short: "Remove the checkpoints and parked events of a version that was replaced. The read model stays.",
		flags: func(c *call, f *flag.FlagSet) {
			f.BoolVar(&c.yes, "yes", false, "don't ask for confirmation")
		}},
	"park": {run: park, args: "list|retry|discard|add [SET] PROJECTION [POSITION]", example: "list search_index",
		variants: map[string]string{"list": "PROJECTION", "retry": "PROJECTION", "discard": "PROJECTION", "add": "SET PROJECTION POSITION"},
		short:    "Show and handle the dead-letter queue of a projection. add parks the event that blocks the projection.",
		flags: func(c *call, f *flag.FlagSet) {
			f.BoolVar(&c.json, "json", false, "list: print JSON")
			f.IntVar(&c.limit, "n", 100, "list: the most `events` to show")
			f.BoolVar(&c.all, "all", false, "retry, discard: all parked events of the projection")
			f.StringVar(&c.aggregate, "aggregate", "", "retry, discard: the parked events of the aggregate with this `ID`")
			f.Var(&c.positions, "position", "retry, discard: the event at position `N`; repeatable")
			f.BoolVar(&c.yes, "yes", false, "discard, add: don't ask for confirmation")
			f.StringVar(&c.by, "by", login(), "add: `name` of the person who gives the order, for the history")
			f.BoolVar(&c.nowait, "nowait", false, "add: don't wait until the event is parked")
			f.DurationVar(&c.timeout, "timeout", time.Minute, "add: how long to wait for that")
		}},
}

func orderFlags(c *call, f *flag.FlagSet) {
	f.BoolVar(&c.nowait, "nowait", false, "don't wait until the order has taken effect")
	f.DurationVar(&c.timeout, "timeout", time.Minute, "how long to wait for that")
}

func command(ctx context.Context, args []string, stdin io.Reader, stdout, stderr, screen io.Writer) error {
	if len(args) == 0 {
		return usageError{"missing command; for example: orchestrator status"}
	}
	name, args := args[0], args[1:]
	switch name {
	case "-h", "-help", "--help":
		return flag.ErrHelp
	case "help":
		if len(args) == 0 {
			return flag.ErrHelp
		}
		name, args = args[0], []string{"-h"}
	case completeCommand:
		complete(ctx, args, stdout)
		return nil
	}
	command, ok := commands[name]
	if !ok {
		return usageError{fmt.Sprintf("unknown command %q%s", name, didYouMean(name, slices.Sorted(maps.Keys(commands))))}
	}
	c := &call{stdin: stdin, stdout: stdout, stderr: stderr, screen: screen}
	flags := c.flagSet(name)
	switch err := c.parse(flags, args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, "%s\n\n%s\n\nExample: orchestrator %s\n\nFlags:\n", command.usage(name), command.short, strings.TrimSpace(name+" "+command.example))
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	case err != nil:
		return usageError{fmt.Sprintf("%s: %s", name, flagProblem(flags, err))}
	}
	if problem := command.problem(name, c.args); problem != "" {
		return usageError{problem}
	}
	if problem := emptyFlag(flags); problem != "" {
		return usageError{name + ": " + problem}
	}
	if flags.Lookup("timeout") != nil && c.timeout <= 0 { // or the order would be given without waiting for it
		instead := ""
		if flags.Lookup("nowait") != nil {
			instead = "; to give the order without waiting, pass -nowait"
		}
		return usageError{fmt.Sprintf("%s: -timeout is %s; it must be more than 0%s", name, c.timeout, instead)}
	}
	if err := c.open(command); err != nil {
		return err
	}
	if c.db != nil {
		defer c.db.Close()
	}
	c.in = orchestrator.InSchema(c.schema)
	if !command.offline {
		if err := c.db.PingContext(ctx); err != nil {
			return fmt.Errorf("can't reach the database: %w", err)
		}
	}
	if !command.bare && !command.offline {
		if err := store.New(c.db, "", store.Options{Schema: c.schema}).Check(ctx); errors.Is(err, store.ErrSchema) {
			return fmt.Errorf("%w; or run: orchestrator migrate", err)
		} else if err != nil {
			return err
		}
	}
	err := command.run(ctx, c)
	if errors.Is(err, ops.ErrNoReplicaSet) {
		return c.noReplicaSet(ctx, err)
	}
	return err
}

// flagSet returns the flags of a command.
func (c *call) flagSet(name string) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&c.url, "database", "", "`URL` of the database; default: $DATABASE_URL. Other users of the machine can see it in the list of processes")
	flags.StringVar(&c.schema, "schema", "", "`name` of the PostgreSQL schema of the library's tables; default: as found by the search path")
	commands[name].flags(c, flags)
	return flags
}

// open makes the database of -database or DATABASE_URL ready. If a command can do without, there
// may be none.
func (c *call) open(command subcommand) error {
	url := cmp.Or(c.url, os.Getenv("DATABASE_URL"))
	if url == "" {
		if command.offline {
			return nil
		}
		return usageError{"no database: set DATABASE_URL, or pass -database, with a URL such as postgres://…"}
	}
	connector, err := pq.NewConnector(url)
	if err != nil {
		return usageError{fmt.Sprintf("-database or DATABASE_URL: %v", redact.Error(err))}
	}
	c.db = sql.OpenDB(connector)
	return nil
}

// emptyFlag returns what is wrong if a flag has an empty value, which an unset variable of a
// shell gives: it must not mean what no flag means.
func emptyFlag(flags *flag.FlagSet) (problem string) {
	flags.Visit(func(f *flag.Flag) {
		if problem == "" && f.Value.String() == "" {
			problem = fmt.Sprintf("the value of -%s is empty; leave -%[1]s out, or give it a value", f.Name)
		}
	})
	return problem
}

var (
	undefinedFlag = regexp.MustCompile(`^flag provided but not defined: -(.*)$`)
	invalidFlag   = regexp.MustCompile(`(?s)^invalid (?:boolean )?value "(.*)" for (?:flag )?-(\S+?): (?:parse error|strconv.*)$`)
)

// flagProblem returns what is wrong with flags, in a sentence.
func flagProblem(flags *flag.FlagSet, err error) string {
	if m := undefinedFlag.FindStringSubmatch(err.Error()); m != nil {
		if name := m[1]; strings.Trim(name, "0123456789") != name && strings.Trim(name, "0123456789._") == "" {
			return fmt.Sprintf("-%s is negative; positions are whole numbers, at least 0", name)
		}
		var known []string
		flags.VisitAll(func(f *flag.Flag) { known = append(known, f.Name) })
		return fmt.Sprintf("unknown flag -%s (there are: -%s)%s", m[1], strings.Join(known, ", -"), didYouMean(m[1], known))
	}
	if m := invalidFlag.FindStringSubmatch(err.Error()); m != nil {
		must := "a whole number"
		if f := flags.Lookup(m[2]); f != nil {
			switch kind, _ := flag.UnquoteUsage(f); kind {
			case "duration":
				must = "a duration such as 500ms, 10s or 5m"
			case "":
				must = "true or false"
			}
		}
		return fmt.Sprintf("-%s is %q; it must be %s", m[2], m[1], must)
	}
	return strings.Replace(err.Error(), "flag needs an argument: ", "missing value of ", 1)
}

// noReplicaSet returns an error that lists the replica sets that there are.
func (c *call) noReplicaSet(ctx context.Context, err error) error {
	sets, failed := ops.ReplicaSets(ctx, c.db, c.in)
	if failed != nil {
		return err
	}
	names := make([]string, len(sets))
	for i, set := range sets {
		names[i] = string(set)
	}
	hint := ""
	if c.check != "" && slices.Contains(severities, ops.Severity(c.set())) {
		hint = fmt.Sprintf("; for the level, write -check=%s", c.set())
	}
	return fmt.Errorf("no replica set %q (there are: %s)%s%s", c.set(), cmp.Or(strings.Join(names, ", "), "none"), didYouMean(string(c.set()), names), hint)
}

// usage returns the usage line of a command, and one for each variant.
func (s subcommand) usage(name string) string {
	if s.variants == nil {
		return strings.TrimSpace(fmt.Sprintf("Usage: orchestrator %s %s", name, s.args))
	}
	lines := []string{"Usage:"}
	for _, variant := range slices.Sorted(maps.Keys(s.variants)) {
		lines = append(lines, strings.TrimRight(fmt.Sprintf("  orchestrator %s %s %s", name, variant, s.variants[variant]), " "))
	}
	return strings.Join(lines, "\n")
}

// problem returns what is wrong with the arguments of a command, or "".
func (s subcommand) problem(name string, args []string) string {
	takes := s.args
	if s.variants != nil {
		known := slices.Sorted(maps.Keys(s.variants))
		if len(args) == 0 {
			return fmt.Sprintf("%s: missing %s; usage: orchestrator %s %s", name, strings.Join(known, ", "), name, s.args)
		}
		variant := args[0]
		var is bool
		if takes, is = s.variants[variant]; !is {
			return fmt.Sprintf("%s: unknown argument %q (there are: %s)%s", name, variant, strings.Join(known, ", "), didYouMean(variant, known))
		}
		name, args = name+" "+variant, args[1:]
	}
	most := strings.Fields(takes)
	least := len(most) - strings.Count(takes, "[")
	usage := strings.TrimSpace(fmt.Sprintf("; usage: orchestrator %s %s", name, takes))
	switch empty := slices.Index(args, ""); {
	case len(args) < least:
		return fmt.Sprintf("%s: missing %s%s", name, strings.Join(most[len(args):least], " and "), usage)
	case len(args) > len(most):
		return fmt.Sprintf("%s: unexpected argument %q%s", name, args[len(most)], usage)
	case empty >= 0: // an unset variable of a shell must not mean "all"
		return fmt.Sprintf("%s: %s is empty%s", name, strings.Trim(most[empty], "[]"), usage)
	}
	return ""
}

// didYouMean suggests the name that is like what was typed, if there is one.
func didYouMean(typed string, names []string) string {
	best, least := "", 3
	for _, name := range names {
		if d := distance(typed, name); d < least && d < len(name) {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %q?", best)
}

// distance returns how many characters must be inserted, removed, replaced or swapped with
// their neighbour to turn a into b.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		for j := range rows[i] {
			if i == 0 || j == 0 {
				rows[i][j] = i + j
				continue
			}
			replace := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// args0 returns the first argument, or "".
func args0(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// parse parses flags that stand before, between and after the arguments.
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
