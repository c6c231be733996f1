package orchestrator_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// Tests of crashes start the test binary again as a worker of its own.
const (
	childEnv    = "ORCHESTRATOR_TEST_CHILD"
	childURLEnv = "ORCHESTRATOR_TEST_DATABASE"
)

// A child is a worker in a process of its own.
type child struct {
	t     testing.TB
	cmd   *exec.Cmd
	lines chan string // what it prints
	done  chan struct{}
	err   error
}

// startChild starts a worker whose behaviour is one of childMain's.
func startChild(w *world, behaviour string) *child {
	w.T.Helper()
	c := &child{t: w.T, cmd: exec.Command(os.Args[0]), lines: make(chan string, 100), done: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), childEnv+"="+behaviour, childURLEnv+"="+w.URL)
	c.cmd.Stderr = testOutput{w.T}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		w.T.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		w.T.Fatal(err)
	}
	go func() {
		defer close(c.done)
		for s := bufio.NewScanner(out); s.Scan(); {
			c.lines <- s.Text()
		}
		c.err = c.cmd.Wait()
	}()
	w.T.Cleanup(func() {
		_ = c.cmd.Process.Kill() // an error says that it has ended
		<-c.done
	})
	return c
}

// says waits for a line from the child.
func (c *child) says(want string) {
	c.t.Helper()
	for {
		select {
		case line := <-c.lines:
			if line == want {
				return
			}
		case <-c.done:
			for len(c.lines) > 0 {
				if <-c.lines == want {
					return
				}
			}
			c.t.Fatalf("the child ended before it said %q: %v", want, c.err)
		case <-time.After(testworld.Limit):
			c.t.Fatalf("the child did not say %q", want)
		}
	}
}

func (c *child) signal(s os.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

type testOutput struct{ t testing.TB }

func (o testOutput) Write(p []byte) (int, error) {
	o.t.Logf("child: %s", p)
	return len(p), nil
}

// childMain is a worker process. It says "running" when Run is about to be
// called and ends on SIGTERM.
func childMain(behaviour string) int {
	connector, err := pq.NewConnector(os.Getenv(childURLEnv))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	f := &testworld.Faults{}
	db := sql.OpenDB(f.Between(connector))
	events, err := orchestrator.NewEventTable(db, "")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg := childConfig
	cfg.DB, cfg.EventStore = db, events
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	p := testworld.Effects{Projection: "transactional"}
	var handled atomic.Int64
	if strings.HasSuffix(behaviour, ", with a long lease") {
		cfg.StaleWorkerTimeout = time.Hour
	}
	switch behaviour {
	case "hang in the middle of a batch", "hang in the middle of a batch, with a long lease":
		p.Hook = func(context.Context, orchestrator.Event) error {
			if handled.Add(1) == 250 {
				fmt.Println("hanging")
				select {}
			}
			return nil
		}
	case "freeze before COMMIT":
		p.Hook = func(context.Context, orchestrator.Event) error { handled.Add(1); return nil }
		f.OnCommit(func(do func() error) error {
			if handled.Load() >= 250 {
				handled.Store(-1 << 40)
				freeze()
			}
			return do()
		})
	}
	o, err := orchestrator.New(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fmt.Println("running")
	err = o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{p.Transactional()})
	fmt.Println("ended:", err)
	return 0
}

// childConfig has a lease that a loaded machine keeps, and that a test can
// wait for.
var childConfig = orchestrator.Config[orchestrator.Event]{
	ReplicaSet: "set", HeartbeatInterval: 50 * time.Millisecond, StaleWorkerTimeout: 2 * time.Second,
	CoordinationTimeout: 20 * time.Second, JoinWindow: time.Millisecond, PollInterval: 20 * time.Millisecond,
}
