// Command bench measures the price of the library, side by side with what any program would have
// to pay.
//
//	go run ./bench            all rows, under ten minutes
//	go run ./bench -quick     the most important ones, under 90 seconds
//
// Absolute figures say more about the machine than about the library. So each row is a ratio, if
// there is something to compare with in the same run: contenders take turns (A B C A B C …) on
// the same server and the same events, with the same connection options, pool, batch size and
// handler. Every run checks its own result: if events are lost, repeated or out of order within
// an aggregate, the benchmark ends with an error.
//
// It starts a PostgreSQL server with fsync on, or uses the server in DATABASE_URL.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
)

func main() {
	if spec := os.Getenv(workerEnv); spec != "" {
		os.Exit(workerMain(spec))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// options are the flags.
type options struct {
	quick, json, list     bool
	only, charts, profile string
	trace                 time.Duration
}

func parseOptions(args []string, usage io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are returned
	flags.BoolVar(&o.quick, "quick", false, "fewer rows and repetitions")
	flags.BoolVar(&o.json, "json", false, "print the result as JSON")
	flags.BoolVar(&o.list, "list", false, "list the rows and what each compares")
	flags.StringVar(&o.only, "only", "", "measure only the rows with this `name` in -list, or one row, such as throughput/library-100")
	flags.StringVar(&o.charts, "charts", "", "write charts (SVG) into this `folder`")
	flags.StringVar(&o.profile, "profile", "", "write CPU and block profiles of the library's throughput into this `folder`")
	flags.DurationVar(&o.trace, "trace-change", -1, "measure nothing; print the time line of a join and a leave among ten workers, with this `round trip` to the database, such as 10ms")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(usage, "usage: go run ./bench [flags]")
			flags.SetOutput(usage)
			flags.PrintDefaults()
		}
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if len(o.trials()) == 0 {
		return o, fmt.Errorf("-only %q: no such row; to see all rows: -list", o.only)
	}
	return o, nil
}

// trials returns the trials that the flags select.
func (o options) trials() (chosen []trial) {
	for _, t := range trials() {
		named := o.only == "" || t.name == o.only || strings.HasPrefix(t.name, o.only+"-") || strings.HasPrefix(o.only, t.name+"/")
		if named && (t.quick || !o.quick || o.only != "") {
			chosen = append(chosen, t)
		}
	}
	return chosen
}

// run runs the command and returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	o, err := parseOptions(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "bench: %v\nHelp: go run ./bench -h\n", err)
		return 2
	case o.list:
		for _, t := range o.trials() {
			fmt.Fprintf(stdout, "%-26s %s\n", t.name, t.about)
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.trace >= 0 {
		if err := traceChanges(ctx, o.trace, stdout); err != nil {
			fmt.Fprintf(stderr, "bench: %v\n", err)
			return 1
		}
		return 0
	}
	result, err := measure(ctx, o, stderr)
	if result != nil {
		if err := result.report(stdout, o); err != nil {
			fmt.Fprintf(stderr, "bench: %v\n", err)
			return 1
		}
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 1
	}
	return 0
}

// trialMax ends a trial that does not end by itself.
const trialMax = 4 * time.Minute

// measure runs the trials, one after the other. With an error, it also returns what was measured
// before.
func measure(ctx context.Context, o options, progress io.Writer) (_ *result, err error) {
	server, err := embedpg.Start(ctx, embedpg.Options{Fsync: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	b := &bench{server: server, options: o}
	defer func() { err = errors.Join(err, b.close(context.WithoutCancel(ctx))) }()
	r := &result{}
	if r.Machine, err = b.machine(ctx); err != nil {
		return nil, err
	}
	var failed []error
	for _, t := range o.trials() {
		began := time.Now()
		fmt.Fprintf(progress, "%-26s ", t.name)
		trialCtx, cancel := context.WithTimeout(ctx, trialMax)
		rows, err := t.run(trialCtx, b)
		cancel()
		r.Rows = append(r.Rows, rows...)
		fmt.Fprintf(progress, "%5.1fs\n", time.Since(began).Seconds())
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", t.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	r.Machine.LoadAfter = loadAverage()
	return r, errors.Join(failed...)
}
