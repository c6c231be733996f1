package orchestratorpgx_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	orchestratorpgx "github.com/getpup/pupsourcing-orchestrator/pgx"
)

// A Notifier receives notifications, whatever the name of the channel, and returns its
// connection in a clean state: the next user of the connection receives none.
func TestNotifier(t *testing.T) {
	t.Parallel()
	_, url := pgtest.Database(t)
	pool, other := newPool(t, url, 1), newPool(t, url, 1)
	a, b, c := orchestratorpgx.NewNotifier(pool), orchestratorpgx.NewNotifier(pool), orchestratorpgx.NewNotifier(other)
	if a != b || a == c {
		t.Error("Notifiers of a pool are not equal, or those of two are")
	}
	const channel = `Odd "name"`
	ctx, cancel := context.WithCancel(t.Context())
	up, heard, ended, goOn := make(chan struct{}), make(chan string, 100), make(chan error, 1), make(chan struct{})
	go func() {
		ended <- orchestratorpgx.NewNotifier(pool).Listen(ctx, []string{"plain", channel},
			func() { close(up) }, func(c, payload string) {
				heard <- c + ": " + payload
				if payload == "b" {
					<-goOn
				}
			})
	}()
	<-up
	notify := func(channel, payload string) {
		t.Helper()
		if _, err := other.Exec(t.Context(), `SELECT pg_notify($1, $2)`, channel, payload); err != nil {
			t.Fatal(err)
		}
	}
	notify(channel, "a")
	notify("plain", "b")
	for _, want := range []string{channel + ": a", "plain: b"} {
		select {
		case got := <-heard:
			if got != want {
				t.Errorf("heard %q, want %q", got, want)
			}
		case <-time.After(testworld.Limit):
			t.Fatalf("%q is not heard", want)
		}
	}
	notify("plain", "which comes too late")
	notify(channel, "as this does")
	cancel()
	close(goOn)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Listen returned %v", err)
	}
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	var channels int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_listening_channels()`).Scan(&channels); err != nil || channels != 0 {
		t.Errorf("the next user of the connection listens to %d channels, %v", channels, err)
	}
	if n := pool.Stat().NewConnsCount(); n != 1 {
		t.Errorf("%d connections were made, want 1", n)
	}
	if n, err := conn.Conn().WaitForNotification(ctx); err == nil { // ctx has ended
		t.Errorf("the next user of the connection hears %+v", n)
	}
}

// If the connection ends or becomes silent, Listen returns an error, and is called again. The
// same happens with a pool that takes all notifications for itself, and with a pool without a
// free connection.
func TestNotifierFails(t *testing.T) {
	t.Parallel()
	db, url := pgtest.Database(t)
	pool := newPool(t, url, 1)
	up, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- orchestratorpgx.NewNotifier(pool).Listen(t.Context(), []string{"c"}, func() { close(up) }, func(string, string) {})
	}()
	<-up
	if _, err := db.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "the connection has ended") {
		t.Errorf("Listen returned %v", err)
	}
	if err := (orchestratorpgx.Notifier{}).Listen(t.Context(), nil, nil, nil); err == nil {
		t.Error("a zero Notifier listens")
	}
	taking := newPool(t, url, 1, func(c *pgxpool.Config) {
		c.ConnConfig.OnNotification = func(*pgconn.PgConn, *pgconn.Notification) {}
	})
	err := orchestratorpgx.NewNotifier(taking).Listen(t.Context(), []string{"c"}, func() {
		go db.Exec(`NOTIFY c`)
	}, func(string, string) {})
	if err == nil || !strings.Contains(err.Error(), "OnNotification takes all notifications") {
		t.Errorf("Listen returned %v", err)
	}
}

// Workers of a pool react to notifications about each other and about new events, also after the
// listening connection was lost. They share one listening connection.
func TestNotifications(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`
CREATE FUNCTION appended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NOTIFY appended; RETURN NULL; END $$;
CREATE TRIGGER appended AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION appended()`)
	var handled atomic.Int64
	start := func() *testworld.Running {
		cfg := w.config("set")
		cfg.HeartbeatInterval, cfg.StaleWorkerTimeout = time.Hour, 3*time.Hour // without notifications, nothing would happen in time
		cfg.PollInterval, cfg.LeaseOnly, cfg.EventsChannel = time.Hour, true, "appended"
		return testworld.Run(t, cfg, orchestrator.Plain("counts", func(context.Context, event) error { handled.Add(1); return nil }))
	}
	listening := func() int64 {
		return w.Number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`)
	}
	a := start()
	w.Active("set", 1)
	b := start()
	w.Active("set", 2)
	pgtest.Eventually(t, "they listen on one connection", func() bool { return listening() == 1 })
	w.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%' AND pid <> pg_backend_pid()`)
	pgtest.Eventually(t, "they listen again", func() bool { return listening() == 1 })
	w.Append(10)
	pgtest.Eventually(t, "what was appended is handled", func() bool { return handled.Load() == 10 })
	a.Stop()
	w.Active("set", 1)
	b.Stop()
	w.released()
	err := w.pool.AcquireFunc(t.Context(), func(c *pgxpool.Conn) error {
		rows, err := c.Query(t.Context(), `SELECT pg_listening_channels()`)
		if err != nil {
			return err
		}
		channels, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if len(channels) > 0 {
			return fmt.Errorf("a connection of the pool listens to %q", channels)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
