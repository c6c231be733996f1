//go:build unix

package orchestrator_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// A pair is a primary and its standby, of which replay is waited for by each commit.
type pair struct {
	*stream
	standbyURL string
	standby    *sql.DB
	promote    func()
}

// newPair skips the test where the server's programs are not all there.
func newPair(t *testing.T) *pair {
	t.Helper()
	server, err := embedpg.Start(t.Context(), embedpg.Options{Own: true, Logger: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	found := regexp.MustCompile(`from (\S+/bin)`).FindStringSubmatch(server.Source())
	if found == nil {
		pgtest.Missing(t, "there is no folder with programs in %q", server.Source())
	}
	bin := found[1]
	if _, err := os.Stat(filepath.Join(bin, "pg_basebackup")); err != nil {
		pgtest.Missing(t, "there is no pg_basebackup: %v", err)
	}
	db, base := pgtest.DatabaseOn(t, server)
	p := &pair{stream: streamOn(t, db, base)}

	folder, err := os.MkdirTemp("", "standby")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	var as *syscall.SysProcAttr
	if os.Geteuid() == 0 { // which the server does not run as
		as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if u, err := user.Lookup("nobody"); err == nil {
			uid, _ := strconv.Atoi(u.Uid)
			gid, _ := strconv.Atoi(u.Gid)
			as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
		if err := os.Chown(folder, int(as.Credential.Uid), int(as.Credential.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(folder, "data")
	call := func(program string, args ...string) error {
		cmd := exec.Command(filepath.Join(bin, program), args...)
		cmd.SysProcAttr, cmd.Dir = as, folder
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", program, err, out)
		}
		return nil
	}
	if err := call("pg_basebackup", "-D", data, "-R", "-X", "stream", "-c", "fast", "-d", server.URL("postgres")); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	if err := call("pg_ctl", "-D", data, "-w", "-l", filepath.Join(folder, "log"), "-o", fmt.Sprintf("-p %d", port), "start"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := call("pg_ctl", "-D", data, "-m", "immediate", "stop"); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = fmt.Sprintf("127.0.0.1:%d", port)
	p.standbyURL = u.String()
	if p.standby, err = sql.Open("postgres", p.standbyURL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.standby.Close() })
	p.promote = func() {
		if err := call("pg_ctl", "-D", data, "-w", "promote"); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// replayed waits until the standby shows what the primary does.
func (p *pair) replayed() {
	p.t.Helper()
	lsn := ""
	if err := p.db.QueryRowContext(p.t.Context(), `SELECT pg_current_wal_insert_lsn()`).Scan(&lsn); err != nil {
		p.t.Fatal(err)
	}
	pgtest.Eventually(p.t, "the standby has replayed", func() bool {
		var done bool
		err := p.standby.QueryRowContext(p.t.Context(), `SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn`, lsn).Scan(&done)
		return err == nil && done
	})
}

// A switchboard is a name that leads to one server or the other, as DNS or a proxy has
// it for each new connection.
type switchboard struct {
	servers [2]driver.Connector
	next    func(n int64) int // which server the n-th connection leads to
	dialled atomic.Int64
}

func (p *pair) switchboard(next func(n int64) int) (*switchboard, *sql.DB) {
	p.t.Helper()
	s := &switchboard{next: next}
	for i, u := range []string{p.url, p.standbyURL} {
		c, err := pq.NewConnector(u)
		if err != nil {
			p.t.Fatal(err)
		}
		s.servers[i] = c
	}
	db := sql.OpenDB(s)
	p.t.Cleanup(func() { db.Close() })
	return s, db
}

func (s *switchboard) Connect(ctx context.Context) (driver.Conn, error) {
	return s.servers[s.next(s.dialled.Add(1))].Connect(ctx)
}

func (s *switchboard) Driver() driver.Driver { return s.servers[0].Driver() }

// Each statement leads to the primary or to the standby, which shows nobody who writes,
// in any order. No event is passed, a projection that starts now starts below 2, and once only the primary answers, all are read.
func TestTableOverTwoServers(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.insert()
	w := p.begin()
	p.insert()
	p.insert()
	p.replayed()
	var pattern, mixed atomic.Int64
	mixed.Store(1)
	_, db := p.switchboard(func(n int64) int {
		if mixed.Load() == 0 {
			return 0
		}
		return int(pattern.Load()>>(n%6)) & 1
	})
	db.SetMaxIdleConns(-1) // each statement on a connection of its own
	refused := 0
	for i := range int64(64) { // all that six statements can lead to
		pattern.Store(i)
		table := tableOf(t, db)
		for _, after := range []int64{0, 1, 1} {
			page, err := records(t.Context(), table, after, 10)
			if err != nil {
				refused++
				continue
			}
			var got []int64
			for _, r := range page {
				got = append(got, r.Position)
			}
			if after == 0 && !slices.Equal(got, []int64{1}) || after == 1 && len(got) > 0 {
				t.Fatalf("statements led to servers %06b, and %v was read after %d, while 2 was open", i, got, after)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		if final, err := tableOf(t, db).Final(ctx); err == nil && final > 1 {
			t.Fatalf("statements led to servers %06b, and all is final to %d, while 2 was open", i, final)
		}
		cancel()
	}
	t.Logf("%d readings were refused", refused)
	if refused == 0 {
		t.Error("none was refused: did any lead to the standby?")
	}
	w.exec(`COMMIT`)
	mixed.Store(0)
	table := tableOf(t, db)
	expectRead(t, "the primary alone", table, 0, 1, 2, 3, 4)
	if final, err := table.Final(t.Context()); err != nil || final != 4 {
		t.Errorf("the primary alone: final to %d, %v", final, err)
	}
	if final, err := tableOf(t, p.standby).Final(t.Context()); err == nil {
		t.Errorf("the standby alone: final to %d", final)
	}
}

// A standby takes over under a Table that knows the old primary: what was open there is
// gone, and what is open here is waited for.
func TestTableAfterPromotion(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for range 3 {
		p.insert()
	}
	lost := p.begin() // takes 4
	p.insert()
	p.replayed()
	var to atomic.Int64
	_, db := p.switchboard(func(int64) int { return int(to.Load()) })
	table := tableOf(t, db)
	expectRead(t, "before", table, 0, 1, 2, 3)
	expectWaiting(t, "before", table, 4, lost.backend)
	p.promote()
	to.Store(1)
	db.SetMaxIdleConns(-1) // the old primary has gone away
	db.SetMaxIdleConns(2)
	s := &stream{t, p.standby, p.standbyURL}
	expectRead(t, "after", table, 3, 5) // nobody fills 4 here
	w := s.begin()
	s.insert()
	at := w.position
	expectRead(t, "after", table, 5)
	expectWaiting(t, "after", table, 6, w.backend)
	w.exec(`COMMIT`)
	expectRead(t, "after", table, 5, at, at+1)
}

// A worker whose pool has come to lead to a standby heals by itself once the name leads
// to the primary again, also without a session of its own.
func TestSwitchover(t *testing.T) {
	t.Parallel()
	for _, leaseOnly := range []bool{true, false} {
		t.Run(fmt.Sprint("lease only ", leaseOnly), func(t *testing.T) {
			p := newPair(t)
			execute(t, p.db, `DROP TABLE events`)
			w := &world{testworld.SetUp(t, p.db, p.url)}
			w.Append(20)
			p.replayed()
			var to atomic.Int64
			_, db := p.switchboard(func(int64) int { return int(to.Load()) })
			cfg := w.Config(db, "set")
			cfg.LeaseOnly = leaseOnly
			testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
			w.CaughtUp("transactional")
			// The name leads to the standby, and the primary's connections are gone.
			to.Store(1)
			name := w.URL[strings.LastIndex(w.URL, "/")+1:]
			name, _, _ = strings.Cut(name, "?")
			execute(t, p.db, fmt.Sprintf(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '%s' AND pid <> pg_backend_pid()`, name))
			pgtest.Eventually(t, "the worker is at the standby", func() bool {
				var n int
				err := p.standby.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`).Scan(&n)
				return err == nil && n >= 2
			})
			to.Store(0)
			w.Append(20)
			w.CaughtUp("transactional")
			w.CheckEffects("transactional")
			pgtest.Eventually(t, "no connection leads to the standby", func() bool {
				var n int
				err := p.standby.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`).Scan(&n)
				return err == nil && n == 0
			})
		})
	}
}

// A worker's own session is one of the primary's, whichever of its connections a name
// has led to the standby: a lock there is none that the others see, nor would it see
// theirs, and each would remove the other.
func TestDedicatedConnectionIsAtThePrimary(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	execute(t, p.db, `DROP TABLE events`)
	w := &world{testworld.SetUp(t, p.db, p.url)}
	w.Append(20)
	p.replayed()
	testworld.Run(t, w.longLease(), testworld.Effects{Projection: "transactional"}.Transactional())
	w.CaughtUp("transactional")
	for k := range int64(4) {
		_, db := p.switchboard(func(n int64) int {
			if n == k+1 {
				return 1
			}
			return 0
		})
		cfg := w.longLease()
		cfg.DB = db
		r := testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
		pgtest.Eventually(t, "both have sessions at the primary", func() bool { return w.Number(held) == 2 })
		r.Stop()
		pgtest.Eventually(t, "it has left", func() bool { return w.Members() == 1 })
	}
}
