// Command quickstart shows the library at work and checks what it promises.
//
//	go run ./examples/quickstart
//
// It starts a PostgreSQL, appends events from concurrent writers, and has worker processes
// share them, while workers join, crash, freeze and stop. Then it compares, in SQL, what the
// projections have written with the events table. The exit status is 0 if no event was lost,
// duplicated, out of order, or handled by two workers at once.
//
// While it runs it serves the library's status page. On a terminal, keys kill, freeze and
// add workers.
//
// A program of your own needs what worker.go and projections.go have. The rest is the demo:
// what happens is in drama.go, the verification in verify.go.
//
// With DATABASE_URL set, that database is used, in a schema of its own, which is dropped at
// the end.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/getpup/pupsourcing-orchestrator/examples/internal/stage"
	"github.com/getpup/pupsourcing-orchestrator/internal/terminal"
)

// workerEnv is set, to the worker's name, in the processes that this program
// starts from itself.
const workerEnv = "QUICKSTART_WORKER"

func main() {
	if name := os.Getenv(workerEnv); name != "" {
		os.Exit(runWorker(name))
	}
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// runWorker is main in a worker process, and returns the exit status. When stdin ends, the
// process that started the worker is gone, and the worker stops.
func runWorker(name string) int {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if err := work(ctx, name, os.Getenv("DATABASE_URL")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// run is main in the process that runs the demo, and returns the exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, err := parseOptions(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "quickstart: %v (-h lists the flags)\n", err)
		return 2
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := listen(cancel)
	defer signals.stop()

	d := newDisplay(stdout)
	var tape *recorder
	switch {
	case o.record != "":
		fmt.Fprintf(stderr, "recording to %s; this takes less than a minute\n", o.record)
		tape = newRecorder()
		d.out, d.live, d.colour, d.recorded = tape, true, true, true
	case o.json:
		d = newDisplay(stderr)
	}
	v, err := show(ctx, o, signals, d, stdin)
	var signal signalError
	switch {
	case errors.As(context.Cause(ctx), &signal):
		fmt.Fprintf(stderr, "quickstart: %v\n", signal)
		return signal.exitStatus()
	case err != nil:
		fmt.Fprintf(stderr, "quickstart: %v\n", err)
		return 1
	}
	v.report(d)
	if o.json {
		text, _ := json.Marshal(v.summary()) // integers only
		fmt.Fprintln(stdout, string(text))
	}
	if err = v.err(); err == nil && tape != nil {
		fmt.Fprintln(stdout, v.summary())
		err = tape.save(o.record)
	}
	if err != nil {
		fmt.Fprintf(stderr, "quickstart: %v\n", err)
		return 1
	}
	return 0
}

// show makes the database, plays the drama in it, and removes the database.
func show(ctx context.Context, o options, signals *signals, d *display, stdin io.Reader) (v verdict, err error) {
	defer d.end()
	keys := make(chan byte, 8)
	hint, restore := typed(ctx, d, stdin, keys)
	defer restore()
	d.say("", "finding or starting a PostgreSQL")
	s, err := stage.Open(ctx, "quickstart", tables)
	if err != nil {
		return verdict{}, err
	}
	defer func() {
		if failed := s.Close(); failed != nil {
			d.say("", "%v", failed)
			err = errors.Join(err, failed)
		}
	}()
	s.DB.SetMaxIdleConns(writerCount + 4)
	d.say("", "%s", s.Source)

	page, stop, err := servePage(s.DB)
	if err != nil {
		return verdict{}, err
	}
	defer stop()
	footer := []string{"open " + page + " (the status page, live)"}
	d.tell(cyan, "", "%s", footer[0])
	if hint != "" {
		d.tell(cyan, "", "%s", hint)
		footer = append(footer, hint)
	}
	d.below(footer...)
	return play(ctx, o, s, d, keys, signals)
}

// typed sends what the user types to keys, if the display and stdin are terminals. hint says
// which keys there are, and restore makes the terminal as it was.
func typed(ctx context.Context, d *display, stdin io.Reader, keys chan<- byte) (hint string, restore func()) {
	if d.recorded {
		return keysHint, func() {} // as on a terminal; in a recording no key is pressed
	}
	in, ok := stdin.(*os.File)
	if !d.live || !ok || !terminal.Is(in) {
		return "", func() {}
	}
	restore, err := terminal.SingleKeys(in)
	if err != nil {
		d.say("", "keys don't work here: %v", err)
		return "", func() {}
	}
	go readKeys(ctx, in, keys) // it may be reading until the process ends
	return keysHint, restore
}

// Bounds of the flags.
const (
	minEvents  = 200 // fewer are over before there is anything to see
	minWorkers = 3   // one is killed, one is frozen and comes back, one stops
	maxWorkers = 32
)

// options are the flags.
type options struct {
	events, aggregates, workers int
	json, hold                  bool
	record                      string
}

func parseOptions(args []string, usage io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are returned
	flags.IntVar(&o.events, "events", 20000, "how many `events` to append")
	flags.IntVar(&o.aggregates, "aggregates", 500, "how many `aggregates` they belong to")
	flags.IntVar(&o.workers, "workers", 4, "how many worker `processes` to start")
	flags.BoolVar(&o.json, "json", false, "print the summary as JSON on the standard output, and all else on the standard error")
	flags.BoolVar(&o.hold, "hold", false, "at the end, go on slowly until Ctrl-C, and verify then")
	flags.StringVar(&o.record, "record", "", "write what a terminal would show to this `file`, an animated SVG")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(usage, "usage: go run ./examples/quickstart [flags]")
			flags.SetOutput(usage)
			flags.PrintDefaults()
		}
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.events < minEvents:
		return o, fmt.Errorf("-events is %d; the least is %d", o.events, minEvents)
	case o.aggregates < writerCount:
		return o, fmt.Errorf("-aggregates is %d; the least is %d, one for each writer", o.aggregates, writerCount)
	case o.workers < minWorkers || o.workers > maxWorkers:
		return o, fmt.Errorf("-workers is %d; it must be from %d to %d", o.workers, minWorkers, maxWorkers)
	}
	return o, nil
}

// signals turns the first signal into the end of ctx, or into the end of a
// hold if there is one.
type signals struct {
	c  chan os.Signal
	mu sync.Mutex
	// released is closed by a signal during a hold, and nil outside of one.
	released chan struct{}
}

// listen also takes SIGPIPE: when the reader of a pipe has gone, there is as much to clean
// up as after Ctrl-C.
func listen(cancel context.CancelCauseFunc) *signals {
	s := &signals{c: make(chan os.Signal, 4)}
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE} {
		if sig != syscall.SIGHUP || !signal.Ignored(sig) { // nohup ignores it
			signal.Notify(s.c, sig)
		}
	}
	go func() {
		for sig := range s.c {
			if !s.release() {
				cancel(signalError{sig})
			}
		}
	}()
	return s
}

func (s *signals) stop() {
	signal.Stop(s.c)
	close(s.c)
}

// hold returns a channel that the next signal closes, instead of ending ctx.
func (s *signals) hold() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released = make(chan struct{})
	return s.released
}

// release ends a hold, and reports whether there was one.
func (s *signals) release() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.released == nil {
		return false
	}
	close(s.released)
	s.released = nil
	return true
}

// A signalError is the reason to end early.
type signalError struct{ os.Signal }

func (e signalError) Error() string { return fmt.Sprintf("stopped by signal: %v", e.Signal) }

// exitStatus is what a shell expects: 130 after Ctrl-C.
func (e signalError) exitStatus() int {
	if n, ok := e.Signal.(syscall.Signal); ok {
		return 128 + int(n)
	}
	return 1
}
