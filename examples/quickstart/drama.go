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
	endMax    = 15 * time.Second // a process that was asked to stop
	verifyMax = time.Minute
)

// A drama is what happens to the workers while events are being appended. Its acts are
// written down here; what the user does with keys in between is in hands.go.
type drama struct {
	*display
	options   options
	stage     *stage.Stage
	processes *processes
	watch     *watch
	writers   *writers

	seen        int64 // the newest generation that was shown
	generations int64 // how many there were

	mu     sync.Mutex
	cast   []*process // the workers that should run, in the order of joining
	frozen []*freeze  // those that are frozen
	hands  hands
}

// A freeze is a worker that was frozen while it ran a generation.
type freeze struct {
	*process
	generation int64
	byUser     bool
}

// play has everything happen, and returns what the verification found. It leaves no
// process behind.
func play(ctx context.Context, o options, s *stage.Stage, d *display, keys <-chan byte, signals *signals) (v verdict, err error) {
	if sigStop == nil {
		return v, errors.New("this example freezes a process, which needs a Unix system")
	}
	ctx, fail := context.WithCancelCause(ctx)
	ps := &processes{url: s.URL, log: d.tell, fail: fail}
	dr := &drama{
		display: d, options: o, stage: s, processes: ps, watch: newWatch(s.DB, ps.named),
	}
	dr.writers = newWriters(s.DB, dr.watch, o)
	dr.hands = newHands(time.Now(), dr.writers.duration())
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
	helpers.Go(func() {
		if err := dr.obey(ctx, keys); err != nil {
			fail(err)
		}
	})

	for _, act := range []func(context.Context) error{dr.join, dr.crash, dr.freeze, dr.leave} {
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
		d.tell(green, "", "generation %d (%s), partitions %s", s.generation, s.reason, s.layout())
	}
	d.show(s, d.processes.all(), d.writers.appended.Load(), d.writers.goal())
}

// join starts the workers one by one.
func (d *drama) join(ctx context.Context) error {
	for i := range d.options.workers {
		if err := d.cue(ctx, 25*i/(d.options.workers-1)); err != nil || d.over() {
			return err
		}
		p, err := d.add("starts (process %d)")
		if err != nil {
			return err
		}
		if _, err := d.settle(ctx, p.name+" to join"); err != nil {
			return err
		}
	}
	return nil
}

// add starts one more worker. The text says so, with its process id.
func (d *drama) add(text string) (*process, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.addLocked(text)
}

func (d *drama) addLocked(text string) (*process, error) {
	p, err := d.processes.start()
	if err != nil {
		return nil, err
	}
	d.announce(p.name, text, p.cmd.Process.Pid)
	d.cast = append(d.cast, p)
	return p, nil
}

// crash kills a worker.
func (d *drama) crash(ctx context.Context) error {
	if err := d.cue(ctx, 35); err != nil || d.over() {
		return err
	}
	_, c, err := d.takeOver(ctx, 1, "is killed (SIGKILL); the end of its connection shows that", os.Kill, killed)
	if err != nil || !c.known {
		return err
	}
	d.tell(bold, "", "crash noticed after %s; every partition runs again after %s", c.noticed, c.handled)
	return nil
}

// leave asks the oldest worker to stop: no worker is more than the others.
func (d *drama) leave(ctx context.Context) error {
	if err := d.cue(ctx, 80); err != nil || d.over() {
		return err
	}
	p, c, err := d.takeOver(ctx, 0, "is asked to stop (SIGTERM)", syscall.SIGTERM, leaving)
	if err != nil {
		return err
	}
	if c.known {
		d.tell(bold, "", "every partition runs again after %s: a stop needs no timeout", c.handled)
	}
	return p.await(ctx, endMax)
}

// freeze stops a worker for longer than its lease, and wakes it when the others have its
// partition.
func (d *drama) freeze(ctx context.Context) error {
	if err := d.cue(ctx, 55); err != nil || d.over() {
		return err
	}
	if err := d.ready(ctx); err != nil {
		return err
	}
	f, err := d.stop(ctx)
	if err != nil {
		return err
	}
	d.say("", "its connection stays, so its lease has to end first (%s)", lease)
	if _, err := d.settle(ctx, "the others to take over from the frozen "+f.name); err != nil || d.over() {
		return err // finish wakes it
	}
	committed, err := d.committed(ctx, f)
	if err != nil {
		return err
	}
	if err := d.wake(ctx, f, "is woken (SIGCONT), and does not know that it lost its partition"); err != nil {
		return err
	}
	if _, err := d.settle(ctx, "the woken "+f.name+" to join again"); err != nil {
		return err
	}
	late, err := d.committed(ctx, f)
	switch {
	case err != nil:
		return err
	case late != committed:
		return fmt.Errorf("after %s was woken, it has committed %d effects under generation %d, which was superseded",
			f.name, late-committed, f.generation)
	}
	if f.generation == 0 { // the user has changed so much that it had nothing to do
		return nil
	}
	d.tell(bold, f.name, "has committed nothing since: its fencing token (%d) is superseded", f.generation)
	return nil
}

// stop freezes one of at least two workers.
func (d *drama) stop(ctx context.Context) (*freeze, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.atLeastTwo(); err != nil {
		return nil, err
	}
	return d.stopLocked(ctx, d.cast[1], "is frozen in the middle of its work (SIGSTOP)", false)
}

// stopLocked freezes a worker. It is noted which generation it may be running.
func (d *drama) stopLocked(ctx context.Context, p *process, text string, byUser bool) (*freeze, error) {
	d.announce(p.name, "%s", text)
	if err := d.part(p, sigStop, frozen); err != nil {
		return nil, err
	}
	s, err := d.watch.read(ctx)
	if err != nil {
		return nil, fmt.Errorf("read what %s holds: %w", p.name, err)
	}
	m, _ := s.member(p.name)
	f := &freeze{p, m.holds, byUser}
	d.frozen = append(d.frozen, f)
	return f, nil
}

// wake lets a frozen worker go on.
func (d *drama) wake(ctx context.Context, f *freeze, text string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wakeLocked(ctx, f, text)
}

func (d *drama) wakeLocked(ctx context.Context, f *freeze, text string) error {
	// From this moment on, the call that the worker had in hand may end.
	_, err := d.stage.DB.ExecContext(ctx, `INSERT INTO freezes (worker, generation) VALUES ($1, $2)`, f.name, f.generation)
	if err != nil {
		return fmt.Errorf("note when %s is woken: %w", f.name, err)
	}
	d.announce(f.name, "%s", text)
	d.frozen = slices.DeleteFunc(d.frozen, func(other *freeze) bool { return other == f })
	d.cast = append(d.cast, f.process)
	return f.signal(sigCont, running)
}

// wakeAll wakes the workers that are frozen, and starts one if none should run.
func (d *drama) wakeAll(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range slices.Clone(d.frozen) {
		if err := d.wakeLocked(ctx, f, "is woken (SIGCONT)"); err != nil {
			return err
		}
	}
	if len(d.cast) > 0 {
		return nil
	}
	_, err := d.addLocked("starts, since no other worker is there (process %d)")
	return err
}

// committed counts what the worker has committed under generations up to the one that it
// was frozen in, in the transactions that commit the checkpoint.
func (d *drama) committed(ctx context.Context, f *freeze) (n int64, err error) {
	err = d.stage.DB.QueryRowContext(ctx,
		`SELECT count(*) FROM effects WHERE worker = $1 AND generation <= $2 AND projection IN ('transactional', 'batch')`,
		f.name, f.generation).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count what %s has committed: %w", f.name, err)
	}
	return n, nil
}

// A change is how long a change of workers took, from its cause on, by the database's clock.
type change struct {
	noticed time.Duration // until the new generation was opened
	handled time.Duration // until it was active
	known   bool          // false: the user has changed more than this
}

// takeOver makes the worker at this place of the cast go.
func (d *drama) takeOver(ctx context.Context, place int, text string, s os.Signal, f fate) (p *process, c change, err error) {
	if err := d.ready(ctx); err != nil {
		return nil, c, err
	}
	var begun time.Time
	if err := d.stage.DB.QueryRowContext(ctx, `SELECT clock_timestamp()`).Scan(&begun); err != nil {
		return nil, c, fmt.Errorf("read the time: %w", err)
	}
	d.mu.Lock()
	actions := d.hands.actions
	if err = d.atLeastTwo(); err == nil {
		p = d.cast[place]
		d.announce(p.name, "%s", text)
		err = d.part(p, s, f)
	}
	d.mu.Unlock()
	if err != nil {
		return nil, c, err
	}
	after, err := d.settle(ctx, "the others to take over from "+p.name)
	if err != nil {
		return nil, c, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return p, change{
		noticed: after.opened.Sub(begun).Round(10 * time.Millisecond),
		handled: after.activated.Sub(begun).Round(10 * time.Millisecond),
		known:   actions == d.hands.actions && len(d.frozen) == 0 && after.runs(namesOf(d.cast)),
	}, nil
}

// finish has the rest appended and handled, and the workers stop.
func (d *drama) finish(ctx context.Context, signals *signals) error {
	d.announce("", "the last events are appended, and the workers catch up")
	if err := d.wakeAll(ctx); err != nil {
		return err
	}
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
	d.handsOff() // the workers are needed now
	if err := d.wakeAll(ctx); err != nil {
		return err
	}
	end, err := d.watch.await(ctx, "all events to be handled", d.patience(), func(s state) bool {
		return s.phase == "active" && s.lag() == 0
	})
	if err != nil {
		return err
	}
	d.generations = end.generation

	d.announce("", "all events are handled; all workers are asked to stop")
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

// hold goes on until it is released. The user may do to the workers what they like.
func (d *drama) hold(ctx context.Context, released <-chan struct{}) error {
	d.processes.loosen()
	d.announce("", "going on slowly until Ctrl-C; kill a worker, or read the tables:")
	d.quote(d.stage.Hint)
	if err := d.writers.trickle(ctx, released, d.quitted()); err != nil {
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

// verify compares what was written with the events.
func (d *drama) verify(ctx context.Context) (verdict, error) {
	d.say("", "%d positions have no event: their transactions were rolled back", d.writers.gaps.Load())
	ctx, cancel := context.WithTimeout(ctx, verifyMax)
	defer cancel()
	v, err := verify(ctx, d.stage.DB)
	v.generations = d.generations
	if appended := d.writers.appended.Load(); err == nil && v.events != appended {
		err = fmt.Errorf("verify: %d events were appended, and the table has %d", appended, v.events)
	}
	return v, err
}

// ready waits until two workers run: one can go, and another remains.
func (d *drama) ready(ctx context.Context) error {
	d.mu.Lock()
	before := len(d.cast)
	err := d.atLeastTwo()
	d.mu.Unlock()
	if err == nil && before < 2 {
		_, err = d.settle(ctx, "two workers to run")
	}
	return err
}

// atLeastTwo starts workers until one can go and another remains.
func (d *drama) atLeastTwo() error {
	for len(d.cast) < 2 {
		if _, err := d.addLocked("starts, so that one can go (process %d)"); err != nil {
			return err
		}
	}
	return nil
}

// part signals a worker after which it is not among those that should run.
func (d *drama) part(p *process, s os.Signal, f fate) error {
	d.cast = slices.DeleteFunc(d.cast, func(other *process) bool { return other == p })
	return p.signal(s, f)
}

// settle waits until a generation runs on exactly the workers that should run, and every
// projection has moved under it. It returns the first state of it. It ends as well when
// the drama is over.
func (d *drama) settle(ctx context.Context, what string) (state, error) {
	s, err := d.watch.await(ctx, what, d.changeMax(), func(s state) bool { return s.runs(d.names()) || d.over() })
	if err != nil {
		return s, err
	}
	_, err = d.watch.await(ctx, fmt.Sprintf("all projections to move under generation %d", s.generation), d.changeMax(),
		func(now state) bool { return now.moved(s) || d.over() })
	return s, err
}

// names are those of the workers that should run.
func (d *drama) names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return namesOf(d.cast)
}

func namesOf(workers []*process) (names []string) {
	for _, p := range workers {
		names = append(names, p.name)
	}
	return names
}

// cue waits until so many percent of the events are appended, or the drama is over.
func (d *drama) cue(ctx context.Context, percent int) error {
	n := d.writers.total * int64(percent) / 100
	_, err := d.watch.await(ctx, fmt.Sprintf("%d events to be appended", n), d.patience(),
		func(state) bool { return d.writers.appended.Load() >= n || d.over() })
	return err
}

// patience is how long all events may take.
func (d *drama) patience() time.Duration { return time.Minute + 4*d.writers.duration() }
