package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/examples/internal/stage"
)

// Bounds on what the drama waits for.
const (
	changeMax = 30 * time.Second // a new generation, with a lease that has to end first
	endMax    = 15 * time.Second // a process that was asked to leave
	verifyMax = time.Minute
)

// A drama is what happens to the workers, while events are being appended.
type drama struct {
	*display
	options   options
	stage     *stage.Stage
	processes *processes
	watch     *watch
	writers   *writers

	cast        []*process // who should be running, in the order of joining
	seen        int64      // the newest generation that was shown
	generations int64      // how many there were
}

// play has everything happen, and returns what came out. It leaves no process
// behind.
func play(ctx context.Context, o options, s *stage.Stage, d *display, signals *signals) (v verdict, err error) {
	if freeze == nil {
		return v, errors.New("this example freezes a process, which needs a Unix system")
	}
	ctx, fail := context.WithCancelCause(ctx)
	ps := &processes{url: s.URL, say: d.say, fail: fail}
	dr := &drama{
		display: d, options: o, stage: s, processes: ps, watch: newWatch(s.DB, ps.named),
	}
	dr.writers = newWriters(s.DB, dr.watch, o)
	var helpers sync.WaitGroup
	defer func() {
		fail(nil)
		ps.kill()
		helpers.Wait()
	}()
	helpers.Go(func() {
		if err := dr.watch.run(ctx, dr.see); err != nil {
			fail(err)
		}
	})
	helpers.Go(func() { dr.writers.run(ctx, fail) })

	for _, act := range []func(context.Context) error{dr.join, dr.freeze, dr.kill, dr.leave} {
		if err := act(ctx); err != nil {
			return v, err
		}
	}
	if err := dr.finish(ctx, signals); err != nil {
		return v, err
	}
	return dr.verify(ctx)
}

// see shows a state, and tells of a new generation.
func (d *drama) see(s state) {
	if s.phase == "active" && s.generation > d.seen && len(s.members) > 0 {
		d.seen = s.generation
		d.say("", "generation %d %s: %s", s.generation, s.layout(), s.reason)
	}
	d.show(s, d.processes.all(), d.writers.appended.Load(), d.writers.total)
}

// join starts the workers one by one.
func (d *drama) join(ctx context.Context) error {
	for i := range d.options.workers {
		if err := d.cue(ctx, 25*i/(d.options.workers-1)); err != nil {
			return err
		}
		p, err := d.processes.start()
		if err != nil {
			return err
		}
		d.announce(p.name, "starts, process %d", p.cmd.Process.Pid)
		d.cast = append(d.cast, p)
		if _, err := d.settle(ctx, p.name+" to join"); err != nil {
			return err
		}
	}
	return nil
}

// freeze stops a worker for longer than its lease, and wakes it when the
// others have its partition.
func (d *drama) freeze(ctx context.Context) error {
	if err := d.cue(ctx, 35); err != nil {
		return err
	}
	p := d.cast[1]
	before, _ := d.watch.now()
	d.announce(p.name, "is frozen in the middle of whatever it does (SIGSTOP)")
	if err := d.part(p, freeze, frozen); err != nil {
		return err
	}
	if _, err := d.settle(ctx, "the others to take over from the frozen "+p.name); err != nil {
		return err
	}
	committed, err := d.committed(ctx, p, before.generation)
	if err != nil {
		return err
	}

	// From this moment on, what the worker had in hand may end.
	_, err = d.stage.DB.ExecContext(ctx, `INSERT INTO freezes (worker, generation) VALUES ($1, $2)`, p.name, before.generation)
	if err != nil {
		return fmt.Errorf("note when %s is woken: %w", p.name, err)
	}
	d.announce(p.name, "is woken, and believes that it still has its partition (SIGCONT)")
	if err := p.signal(wake, running); err != nil {
		return err
	}
	d.cast = append(d.cast, p)
	if _, err := d.settle(ctx, "the woken "+p.name+" to join again"); err != nil {
		return err
	}
	late, err := d.committed(ctx, p, before.generation)
	switch {
	case err != nil:
		return err
	case late != committed:
		return fmt.Errorf("after %s was woken, it has committed %d effects under generation %d, which was superseded",
			p.name, late-committed, before.generation)
	}
	d.say(p.name, "has committed nothing under generation %d since it was woken", before.generation)
	return nil
}

// committed counts what the process has committed under generations up to this
// one, in the transactions that commit the progress.
func (d *drama) committed(ctx context.Context, p *process, generation int64) (n int64, err error) {
	err = d.stage.DB.QueryRowContext(ctx,
		`SELECT count(*) FROM effects WHERE worker = $1 AND generation <= $2 AND projection IN ('transactional', 'batch')`,
		p.name, generation).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count what %s has committed: %w", p.name, err)
	}
	return n, nil
}

// kill ends a worker without warning.
func (d *drama) kill(ctx context.Context) error {
	if err := d.cue(ctx, 60); err != nil {
		return err
	}
	p := d.cast[1]
	d.announce(p.name, "is killed (SIGKILL)")
	took, err := d.takeOver(ctx, p, os.Kill, killed)
	if err != nil {
		return err
	}
	d.say("", "taken over after %s: its lease, %s from the last heartbeat, had to end", took, lease)
	return nil
}

// leave asks the oldest worker to leave: none is more than the others.
func (d *drama) leave(ctx context.Context) error {
	if err := d.cue(ctx, 80); err != nil {
		return err
	}
	p := d.cast[0]
	d.announce(p.name, "is asked to leave (SIGTERM)")
	took, err := d.takeOver(ctx, p, syscall.SIGTERM, leaving)
	if err != nil {
		return err
	}
	d.say("", "taken over after %s: who leaves is not waited for", took)
	return p.await(ctx, endMax)
}

// takeOver makes a worker go and returns how long it took, by the database's
// clock, until the others had its partition.
func (d *drama) takeOver(ctx context.Context, p *process, s os.Signal, f fate) (time.Duration, error) {
	var begun time.Time
	if err := d.stage.DB.QueryRowContext(ctx, `SELECT clock_timestamp()`).Scan(&begun); err != nil {
		return 0, fmt.Errorf("read the time: %w", err)
	}
	if err := d.part(p, s, f); err != nil {
		return 0, err
	}
	after, err := d.settle(ctx, "the others to take over from "+p.name)
	return after.activated.Sub(begun).Round(time.Millisecond), err
}

// finish has the rest appended and handled, and the workers leave.
func (d *drama) finish(ctx context.Context, signals *signals) error {
	d.announce("", "the last events are appended, and the workers catch up")
	close(d.writers.finale)
	select {
	case <-d.writers.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if d.options.hold {
		if err := d.hold(ctx, signals.hold()); err != nil {
			return err
		}
	}
	end, err := d.watch.await(ctx, "all events to be handled", d.patience(), func(s state) bool {
		return s.phase == "active" && s.lag() == 0
	})
	if err != nil {
		return err
	}
	d.generations = end.generation

	d.announce("", "everything is handled; all workers are asked to leave")
	for _, p := range d.processes.all() {
		if p.is() == running {
			if err := p.signal(syscall.SIGTERM, leaving); err != nil {
				return err
			}
		}
	}
	for _, p := range d.processes.all() {
		if err := p.await(ctx, endMax); err != nil {
			return err
		}
	}
	return nil
}

// hold goes on until it is released. What becomes of the workers meanwhile
// is for whoever watches.
func (d *drama) hold(ctx context.Context, released <-chan struct{}) error {
	d.processes.loosen()
	d.announce("", "going on slowly until Ctrl-C; look at it, or kill a worker:")
	d.say("", "%s", d.stage.Hint)
	if err := d.writers.trickle(ctx, released); err != nil {
		return err
	}
	if !slices.ContainsFunc(d.processes.all(), func(p *process) bool { return p.is() == running }) {
		d.say("", "no worker is left; one more is started for what they left")
		if _, err := d.processes.start(); err != nil {
			return err
		}
	}
	return nil
}

// verify says what has come of it all.
func (d *drama) verify(ctx context.Context) (verdict, error) {
	d.say("", "%d positions belong to transactions that were rolled back", d.writers.gaps.Load())
	ctx, cancel := context.WithTimeout(ctx, verifyMax)
	defer cancel()
	v, err := verify(ctx, d.stage.DB)
	v.generations = d.generations
	if appended := d.writers.appended.Load(); err == nil && v.events != appended {
		err = fmt.Errorf("verify: %d events were appended, and the table has %d", appended, v.events)
	}
	return v, err
}

// part signals a worker after which it is not among those that should run.
func (d *drama) part(p *process, s os.Signal, f fate) error {
	d.cast = slices.DeleteFunc(d.cast, func(other *process) bool { return other == p })
	return p.signal(s, f)
}

// settle waits until a generation runs on exactly the workers that should run,
// and every projection has moved under it. It returns the first state of it.
func (d *drama) settle(ctx context.Context, what string) (state, error) {
	var names []string
	for _, p := range d.cast {
		names = append(names, p.name)
	}
	s, err := d.watch.await(ctx, what, changeMax, func(s state) bool { return s.runs(names) })
	if err != nil {
		return s, err
	}
	_, err = d.watch.await(ctx, fmt.Sprintf("all projections to move under generation %d", s.generation), changeMax,
		func(now state) bool { return now.moved(s) })
	return s, err
}

// cue waits until so many percent of the events are appended.
func (d *drama) cue(ctx context.Context, percent int) error {
	n := d.writers.total * int64(percent) / 100
	_, err := d.watch.await(ctx, fmt.Sprintf("%d events to be appended", n), d.patience(),
		func(state) bool { return d.writers.appended.Load() >= n })
	return err
}

// patience is how long all events may take.
func (d *drama) patience() time.Duration { return time.Minute + 4*d.writers.duration() }
