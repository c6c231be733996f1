package orchestratorpgx_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	orchestratorpgx "github.com/getpup/pupsourcing-orchestrator/pgx"
)

// Tests of crashes start the test binary again as a separate worker process.
const (
	childEnv    = "ORCHESTRATORPGX_TEST_CHILD"
	childURLEnv = "ORCHESTRATORPGX_TEST_DATABASE"
)

// A child is a worker in a process of its own.
type child struct {
	cmd   *exec.Cmd
	lines chan string // its output
}

func startChild(t *testing.T, url string) *child {
	t.Helper()
	c := &child{exec.Command(os.Args[0]), make(chan string, 100)}
	c.cmd.Env = append(os.Environ(), childEnv+"=hang", childURLEnv+"="+url)
	c.cmd.Stderr = t.Output()
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(out); s.Scan(); {
			c.lines <- s.Text()
		}
		close(c.lines)
		_ = c.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // an error means that it has ended
		<-done
	})
	return c
}

// says waits for a line of output of the child.
func (c *child) says(t *testing.T, want string) {
	t.Helper()
	limit := time.After(testworld.Limit)
	for {
		select {
		case line, more := <-c.lines:
			if line == want {
				return
			}
			if !more {
				t.Fatalf("the child ended before it said %q", want)
			}
		case <-limit:
			t.Fatalf("the child did not say %q", want)
		}
	}
}

// childMain is the main function of a worker process that hangs in the middle of a batch, when
// it has copied half of it.
func childMain() int {
	err := func() error {
		pool, err := pgxpool.New(context.Background(), os.Getenv(childURLEnv))
		if err != nil {
			return err
		}
		cfg, err := orchestratorpgx.Config(pool, "set")
		if err != nil {
			return err
		}
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
		o, err := orchestrator.New(cfg)
		if err != nil {
			return err
		}
		batches := 0
		return o.Run(context.Background(), []orchestrator.Projection[event]{
			orchestratorpgx.Batch("copying", func(ctx context.Context, tx pgx.Tx, events []event) error {
				rows := effects(ctx, "copying", events...)
				batches++
				_, err := tx.CopyFrom(ctx, pgx.Identifier{"effects"}, effectColumns, pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) {
					if batches == 3 && i == len(rows)/2 {
						fmt.Println("hanging")
						select {}
					}
					return rows[i], nil
				}))
				return err
			}),
		})
	}()
	fmt.Fprintln(os.Stderr, err)
	return 1
}
