package sim

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// An outcome is the result of one world.
type outcome struct {
	plan      plan
	history   history
	violation *violation
	simulated time.Duration
}

// play runs a plan. With tracing, facts have texts.
func play(p plan, r rules, open opener, tracing bool) (outcome, error) {
	w, err := newWorld(p, r, open)
	if err != nil {
		return outcome{}, err
	}
	w.tracing = tracing
	err = w.run()
	return outcome{plan: p, history: w.history, violation: w.found, simulated: w.at}, errors.Join(err, w.db.close())
}

// An opener makes the database of a world.
type opener = func(w *world) (database, error)

// explain reports a plan that broke a promise. It shrinks the plan, with at most tries
// smaller plans, writes the trace and the timeline to files, checks that a second run gives
// the same trace, and returns the report.
func explain(o outcome, r rules, open opener, tries int, command, folder string) (string, error) {
	small, broken := shrink(o.plan, *o.violation, tries, func(p plan) *violation {
		tried, err := play(p, r, open, false)
		if err != nil {
			return nil
		}
		return tried.violation
	})
	first, err := play(small, r, open, true)
	if err != nil {
		return "", err
	}
	again, err := play(small, r, open, true)
	if err != nil {
		return "", err
	}
	var one, two bytes.Buffer
	trace(&one, first.history)
	trace(&two, again.history)
	replay := "identical"
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		replay = "DIFFERS: something in this world is not decided by the seed"
	}
	if first.violation != nil {
		broken = *first.violation
	}
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return "", err
	}
	path := filepath.Join(folder, fmt.Sprint(o.plan.seed))
	if err := os.WriteFile(path+".txt", append([]byte(command+"\n"), one.Bytes()...), 0o666); err != nil {
		return "", err
	}
	var page bytes.Buffer
	if err := timeline(&page, first.history, &broken, fmt.Sprintf("seed %d: %s", o.plan.seed, small.String())); err != nil {
		return "", err
	}
	if err := os.WriteFile(path+".html", page.Bytes(), 0o666); err != nil {
		return "", err
	}
	var out bytes.Buffer
	report(&out, failure{
		command: command, history: first.history, violation: broken, replay: replay,
		trace: show(path + ".txt"), timeline: show(path + ".html"),
		shrunk: fmt.Sprintf("%s from %s", small.size(), o.plan.size()),
	})
	return out.String(), nil
}

// show returns a path as seen from where go test was called, for a folder beside the
// package's.
func show(path string) string { return strings.TrimPrefix(path, "../") }
