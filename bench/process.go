package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// workerEnv is set in the worker processes that this program starts.
const workerEnv = "BENCH_WORKER"

// A workerSpec tells a worker process what to do.
type workerSpec struct {
	URL, Set, Projection string
	Heartbeat, Window    time.Duration
	Hints, Leader        bool
}

// workerMain is the main function of a worker process. It prints "run" when it calls Run, and
// the number of each generation of which it handles an event. It leaves on SIGTERM, and when
// stdin ends, because then its parent has ended.
func workerMain(spec string) int {
	if err := work(spec); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func work(text string) error {
	var spec workerSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	signal.Ignore(os.Interrupt) // from the terminal; the parent ends this process
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	pool, err := (&database{url: spec.URL}).pool("worker")
	if err != nil {
		return err
	}
	defer pool.Close()
	if spec.Leader {
		fmt.Println("run")
		return leaderWork(ctx, pool, spec.Projection, func() { fmt.Println(1) })
	}
	cfg, err := config(pool, spec.Set)
	if err != nil {
		return err
	}
	f := &fleet{d: &database{url: spec.URL}, heartbeat: spec.Heartbeat, window: spec.Window, hints: spec.Hints}
	if err := f.configure(&cfg, spec.URL); err != nil {
		return err
	}
	var seen sync.Map
	o, err := orchestrator.New(cfg)
	if err != nil {
		return err
	}
	fmt.Println("run")
	return o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{inserting{spec.Projection, func(ctx context.Context, _ []orchestrator.Event) {
		a, _ := orchestrator.DeliveryFrom(ctx)
		if _, again := seen.LoadOrStore(a.Generation, true); !again {
			fmt.Println(a.Generation)
		}
	}}})
}

// joinProcess starts a worker in a process of its own, and returns when it has called Run.
func (f *fleet) joinProcess() (time.Time, error) {
	self, err := os.Executable()
	if err != nil {
		return time.Time{}, err
	}
	spec, err := json.Marshal(workerSpec{f.d.url, f.set, f.projection, f.heartbeat, f.window, f.hints, f.leader})
	if err != nil {
		return time.Time{}, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), workerEnv+"="+string(spec))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return time.Time{}, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return time.Time{}, err
	}
	if err := cmd.Start(); err != nil {
		return time.Time{}, err
	}
	var killed atomic.Bool
	// Only once: a second SIGTERM would kill a process that is ending.
	m := &member{done: make(chan struct{}), leave: sync.OnceFunc(func() { _ = cmd.Process.Signal(syscall.SIGTERM) })}
	m.kill = func() { killed.Store(true); _ = cmd.Process.Kill() }
	running := make(chan time.Time, 1)
	go func() {
		defer close(m.done)
		defer in.Close()
		for s := bufio.NewScanner(out); s.Scan(); {
			var generation int64
			if s.Text() == "run" {
				running <- time.Now()
			} else if _, err := fmt.Sscan(s.Text(), &generation); err == nil {
				f.reports <- report{m, generation, time.Now()}
			}
		}
		if err := cmd.Wait(); !killed.Load() {
			m.err = err
		}
	}()
	f.members = append(f.members, m)
	f.processes = true
	select {
	case at := <-running:
		return at, nil
	case <-m.done:
		return time.Time{}, fmt.Errorf("a worker process has ended: %w", m.err)
	}
}

// kill kills the process of a worker, as a crash would.
func (f *fleet) kill(i int) {
	m := f.members[i]
	f.members = append(f.members[:i:i], f.members[i+1:]...)
	f.ended = append(f.ended, m)
	m.kill()
}
