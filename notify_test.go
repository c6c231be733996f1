package orchestrator_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/pqnotify"
)

// notifier returns a Notifier that listens at a URL.
func notifier(t testing.TB, url string) orchestrator.Notifier {
	t.Helper()
	n, err := pqnotify.New(url)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// hinted returns a configuration with which only hints make a worker look
// before the test is given up.
func (w *world) hinted(set orchestrator.ReplicaSetName) config {
	cfg := w.Config(w.DB, set)
	cfg.HeartbeatInterval, cfg.StaleWorkerTimeout = time.Hour, 3*time.Hour
	cfg.Notifier = notifier(w.T, w.URL)
	return cfg
}

// With notifications no worker waits for a heartbeat: not at a join, not at a leave, and not
// after the connection was lost. All workers of a process share one connection.
func TestNotificationsReplaceHeartbeats(t *testing.T) {
	w := newWorld(t)
	h := &testworld.History{}
	noticed := &testworld.Log{To: t.Output()}
	start := func() *testworld.Running {
		cfg := w.hinted("set")
		cfg.Logger = slog.New(slog.NewTextHandler(noticed, nil))
		return testworld.Run(t, cfg, w.All(w.DB, h)...)
	}
	one := func() {
		t.Helper()
		pgtest.Eventually(t, "one connection listens", func() bool { return w.Number(listening) == 1 })
	}
	a := start()
	w.Active("set", 1)
	one()
	testworld.Run(t, w.hinted("other"), named("p"))
	b := start()
	w.Active("set", 2)
	c := start()
	w.Active("set", 3)
	w.Append(500)
	w.CaughtUp(testworld.Names...)
	one()
	b.Stop()
	w.Active("set", 2)
	w.Append(500)
	w.CaughtUp(testworld.Names...)

	if n := w.Number(`SELECT count(pg_terminate_backend(pid)) FROM (` + strings.Replace(listening, "count(*)", "pid", 1) + `) l`); n != 1 {
		t.Errorf("%d connections listen", n)
	}
	noticed.Wait(t, "cannot listen for notifications")
	noticed.Wait(t, "listening for notifications again")
	c.Stop()
	w.Active("set", 1)
	w.Append(500)
	w.CaughtUp(testworld.Names...)
	a.Stop()
	h.Check(t)
	w.CheckEffects(testworld.Exact...)
}

const listening = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'`

// An event is heard of. The channel's name needs quotes.
func TestEventsChannel(t *testing.T) {
	w := newWorld(t)
	w.Exec(`CREATE FUNCTION announce() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NOTIFY "Events ""of"" mine"; RETURN NULL; END $$`)
	w.Exec(`CREATE TRIGGER announce AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION announce()`)
	events := &lookedAt{}
	cfg := w.hinted("set")
	cfg.EventStore, cfg.PollInterval, cfg.EventsChannel = events, time.Hour, `Events "of" mine`
	testworld.Run(t, w.hinted("other"), named("other"))
	pgtest.Eventually(t, "one connection listens, and not to this channel", func() bool { return w.Number(listening) == 1 })
	testworld.Run(t, cfg, named("p"))
	events.quiet(t)
	w.Append(1)
	events.awake(t)
}

// lookedAt is a stream without events, which notes when it is read.
type lookedAt struct {
	mu sync.Mutex
	at []time.Time
}

func (s *lookedAt) Read(context.Context, orchestrator.ReadRequest) (page orchestrator.Page[orchestrator.Event], err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = append(s.at, time.Now())
	return page, nil
}

func (s *lookedAt) looks() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.at)
}

// quiet waits until looks have become rare: it has taken as long as all before
// it until the next look, and takes twice that until the one after it.
func (s *lookedAt) quiet(t *testing.T) {
	t.Helper()
	pgtest.Eventually(t, "looks become rare", func() bool {
		n := s.looks()
		return len(n) > 2 && n[len(n)-1].Sub(n[len(n)-2]) > time.Second
	})
}

// awake waits for more looks than there would be, with twice the time between
// each two, before the test is given up.
func (s *lookedAt) awake(t *testing.T) {
	t.Helper()
	before := len(s.looks())
	pgtest.Eventually(t, "looks come quickly again", func() bool { return len(s.looks()) > before+6 })
}

// A notifierFunc is a Notifier. Its pointer is what is compared.
type notifierFunc func(ctx context.Context, channels []string, up func(), heard func(channel, payload string)) error

func (f *notifierFunc) Listen(ctx context.Context, channels []string, up func(), heard func(channel, payload string)) error {
	return (*f)(ctx, channels, up, heard)
}

// Notifications are never needed and never harmful: with all of them lost, without a
// connection, and with any number of wrong ones, workers join and leave, and every event is
// handled.
func TestNotificationsAreNeverNeeded(t *testing.T) {
	stuck := make(chan struct{})
	t.Cleanup(func() { close(stuck) })
	for name, listen := range map[string]notifierFunc{
		"all are lost": func(ctx context.Context, _ []string, up func(), _ func(channel, payload string)) error {
			up()
			<-ctx.Done()
			return ctx.Err()
		},
		"the connection is always away": func(context.Context, []string, func(), func(channel, payload string)) error {
			return errors.New("no such host")
		},
		"does not return when it should": func(context.Context, []string, func(), func(channel, payload string)) error {
			<-stuck
			return nil
		},
		"nonsense": func(ctx context.Context, channels []string, _ func(), heard func(channel, payload string)) error {
			for ctx.Err() == nil {
				for _, c := range append(channels, "", "none") {
					heard(c, "set")
					heard(c, "")
					heard(c, "no such set\x00\xff")
				}
			}
			return ctx.Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			h := &testworld.History{}
			cfg := w.Config(w.DB, "set")
			cfg.Notifier, cfg.EventsChannel = &listen, "events"
			w.Append(200)
			a := testworld.Run(t, cfg, w.All(w.DB, h)...)
			w.Active("set", 1)
			b := testworld.Run(t, cfg, w.All(w.DB, h)...)
			w.Active("set", 2)
			w.Append(200)
			w.CaughtUp(testworld.Names...)
			a.Stop()
			w.Active("set", 1)
			w.Append(200)
			w.CaughtUp(testworld.Names...)
			b.Stop()
			h.Check(t)
			w.CheckEffects(testworld.Names...)
		})
	}
}

// When the connection is back, all workers poll, since notifications were missed.
func TestNotificationsThatWereMissed(t *testing.T) {
	w := newWorld(t)
	again := make(chan struct{})
	listen := notifierFunc(func(ctx context.Context, _ []string, up func(), _ func(channel, payload string)) error {
		select {
		case <-again:
			up()
			<-ctx.Done()
		case <-ctx.Done():
		}
		return ctx.Err()
	})
	cfg := w.hinted("set")
	cfg.Notifier = &listen
	cfg.LeaseOnly = true // a worker that publishes its session asks soon after it has joined
	testworld.Run(t, cfg, named("p"))
	w.Active("set", 1)
	testworld.Run(t, cfg, named("p"))
	pgtest.Eventually(t, "the first is to stop, and was not told", func() bool {
		return w.Number(`SELECT count(*) FROM orchestrator_replica_sets WHERE phase = 'draining' AND total = 2`) == 1
	})
	close(again)
	w.Active("set", 2)
}

// While notifications of events arrive, the stream is polled less often; when they can't
// arrive any more, it is polled as without them. Many notifications without new events do not
// cause many statements.
func TestNotificationsReducePolling(t *testing.T) {
	const poll = 100 * time.Millisecond
	w := newWorld(t)
	storm, calm, away := make(chan struct{}), make(chan struct{}), make(chan struct{})
	listen := notifierFunc(func(ctx context.Context, channels []string, up func(), heard func(channel, payload string)) error {
		select {
		case <-away:
			return errors.New("away")
		default:
		}
		up()
		<-storm
		for c := calm; c != nil; {
			heard("events", "")
			select {
			case <-c:
				c = nil
			default:
			}
		}
		<-away
		return errors.New("away")
	})
	events := &lookedAt{}
	cfg := w.Config(w.DB, "set")
	cfg.EventStore, cfg.PollInterval, cfg.Notifier, cfg.EventsChannel = events, poll, &listen, "events"
	testworld.Run(t, cfg, named("p"))
	gaps := func() (gaps []time.Duration) {
		looks := events.looks()
		for i := range looks[min(1, len(looks)):] {
			gaps = append(gaps, looks[i+1].Sub(looks[i]))
		}
		return gaps
	}
	below := func(d time.Duration) func(time.Duration) bool {
		return func(gap time.Duration) bool { return gap < d }
	}
	regular := func(what string) { // more than there are on the way to the longest one
		t.Helper()
		from := len(gaps())
		pgtest.Eventually(t, what, func() bool {
			late := gaps()[from:]
			return len(late) >= 8 && !slices.ContainsFunc(late[len(late)-8:], func(gap time.Duration) bool { return gap > 3*poll })
		})
	}

	regular("nothing was heard yet: once in PollInterval")
	close(storm)
	from := len(gaps())
	pgtest.Eventually(t, "100 looks in the storm", func() bool { return len(gaps()) > from+100 })
	if i := slices.IndexFunc(gaps()[from+1:], below(4*time.Millisecond)); i >= 0 {
		t.Errorf("in the storm there are %v between two looks", gaps()[from+1+i])
	}
	close(calm)
	from = len(gaps())
	pgtest.Eventually(t, "hints come: looks become rare", func() bool {
		late := gaps()[from:]
		return len(late) >= 3 && !slices.ContainsFunc(late[len(late)-3:], below(4*poll)) // a busy machine is late now and then
	})
	close(away)
	regular("hints can't come: once in PollInterval")
}
