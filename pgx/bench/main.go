// Command bench measures reading with the module pgx, side by side with bare loops over the same
// events:
//
//	go run ./bench            about a minute
//	go run ./bench -quick     fewer events and repetitions
//
// Each row is a ratio to the bare loop of lib/pq in the same run: contenders take turns on the
// same server and the same events of 1 KB. Every run checks that it got every event, once and in
// order.
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
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// options are the flags.
type options struct {
	quick         bool
	only, profile string
}

func run(args []string, stdout, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.BoolVar(&o.quick, "quick", false, "fewer events and repetitions")
	flags.StringVar(&o.only, "only", "", "only the row of this `name`, and what it is compared with")
	flags.StringVar(&o.profile, "profile", "", "write a CPU profile of the row that -only names into this `file`")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, o, stdout); err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 1
	}
	return 0
}

// measure lets the contenders take turns, and prints their rates.
func measure(ctx context.Context, o options, out io.Writer) (err error) {
	server, err := embedpg.Start(ctx, embedpg.Options{Fsync: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	events, repetitions := int64(200_000), 7
	if o.quick {
		events, repetitions = 100_000, 3
	}
	s, err := newStream(ctx, server, events)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()

	running := slices.DeleteFunc(contenders(), func(c contender) bool {
		return o.only != "" && c.name != o.only && c.name != floor && c.name != rawValues
	})
	rates, cpu := make([][]float64, len(running)), make([][]float64, len(running))
	for turn := range repetitions + 1 { // the first turn warms the server's cache
		for i, c := range running {
			runtime.GC()
			stop, err := profile(o, c, turn)
			if err != nil {
				return err
			}
			before := cpuTime()
			rate, err := c.run(ctx, s)
			took := cpuTime() - before
			stop()
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if turn > 0 {
				rates[i], cpu[i] = append(rates[i], rate), append(cpu[i], took.Seconds()*1e6/float64(events))
			}
		}
	}
	return report(out, running, rates, cpu)
}

// profile profiles the latest turn of a row, if the flags ask for it.
func profile(o options, c contender, turn int) (stop func(), err error) {
	if o.profile == "" || c.name != o.only {
		return func() {}, nil
	}
	f, err := os.Create(o.profile)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); _ = f.Close() }, nil
}

// report prints the medians and their ratios turn by turn. The client's CPU time shows how much
// a rate depends on the machine.
func report(out io.Writer, running []contender, rates, cpu [][]float64) error {
	of := func(name string) []float64 {
		return rates[slices.IndexFunc(running, func(c contender) bool { return c.name == name })]
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "row\tevents/s\tof lib/pq\tof raw values\tCPU µs/event\tgoal\tmet")
	for i, c := range running {
		toFloor, toRaw := ratio(rates[i], of(floor)), ratio(rates[i], of(rawValues))
		var goal, met string
		if c.goalFloor > 0 {
			goal = fmt.Sprintf("≥ %.1f, ≥ %.1f", c.goalFloor, c.goalRaw)
			met = map[bool]string{true: "yes", false: "no"}[toFloor >= c.goalFloor && toRaw >= c.goalRaw]
		}
		fmt.Fprintln(w, strings.Join([]string{c.name, fmt.Sprintf("%.0f", median(rates[i])), fmt.Sprintf("%.2f", toFloor), fmt.Sprintf("%.2f", toRaw), fmt.Sprintf("%.2f", median(cpu[i])), goal, met}, "\t"))
	}
	return w.Flush()
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// ratio returns the median of the ratios turn by turn.
func ratio(values, to []float64) float64 {
	var ratios []float64
	for i := range values {
		ratios = append(ratios, values[i]/to[i])
	}
	return median(ratios)
}
