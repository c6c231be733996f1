package sim

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A postgres is a database on a real server, in a schema of its own: the store's own
// statements, under a clock that is not the server's.
//
// Nothing depends on real time. The store writes the world's time into its statements. A
// call that would wait for a lock is refused at once. The bounds on idling, which the
// server counts in real time, are set out of reach there and carried out here.
//
// It can't hold a coordination transaction before its COMMIT, and it does not prepare
// transactions: those would stay with their locks when a test is killed.
type postgres struct {
	*ownSchema

	clock  clock
	client client

	stores map[client]*store.Store // their SQL contains the time
	time   string
	starts starter // of the call under way

	connections  []*postgresConnection
	transactions int // open ones, and liveness connections
	appended     int // the number of events inserted so far
	rebuilds     map[string]string
	// commits are the transactions with effects, in the order of their commits.
	commits []string
	// trouble is the first error that is the real server's or network's own. A seed can't
	// repeat what comes after it.
	trouble error
}

// A client is the workers of a replica set, under the bounds of their store.
type client struct {
	set    string
	bounds store.Bounds
}

// clientOf puts the bounds out of the server's reach, except for the one on locks.
func clientOf(set string, bounds store.Bounds) client {
	return client{set, store.Bounds{Idle: bounds.Idle + unreachable, Lock: time.Millisecond, Handler: bounds.Handler + unreachable}}
}

const (
	// poolMax bounds the connections to the server. Each open transaction takes one, and
	// calls outside of them need some too.
	poolMax         = 60
	transactionsMax = poolMax - 10

	// unreachable is added to the bounds on idling, so that the server never applies them.
	// The bounds are still read from each transaction.
	unreachable = 20 * 24 * time.Hour

	schemaMax = 30 * time.Second // for creating and dropping the schema
)

// sessionSettings make the server answer at once, and alike on every server. Durability is
// useless: the server itself is never restarted.
var sessionSettings = map[string]string{
	"lock_timeout":                        "1ms", // the minimum
	"idle_in_transaction_session_timeout": "0",
	"statement_timeout":                   "60s", // only for a broken server
	"synchronous_commit":                  "off",
	"timezone":                            "UTC",
}

// effectTable is what projections do with events. No constraint makes an event's effect
// unique: the checker must find a second effect, not an error.
const effectTable = `
CREATE TABLE effects (
    projection text   NOT NULL,
    position   bigint NOT NULL,
    aggregate  text   NOT NULL,
    seq        bigserial
)`

// strictTables have a constraint that is checked at COMMIT.
const strictTables = `
CREATE TABLE parents (id integer PRIMARY KEY);
CREATE TABLE orphans (parent integer REFERENCES parents DEFERRABLE INITIALLY DEFERRED)`

// noVacuum keeps autovacuum off the tables: the time of its locks is not decided by the
// seed.
const noVacuum = `
DO $$
DECLARE t regclass;
BEGIN
    FOR t IN SELECT oid FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', t);
    END LOOP;
END $$`

// eventTable reads the events as orchestrator.Table does, statement by statement.
var eventTable = eventtable.New(eventtable.Config{
	Table: "events", Position: "global_position", Aggregate: "aggregate_id", AggregateType: "aggregate_type", EventType: "event_type",
})

// eventReader needs no types: all columns are text.
var eventReader = func() *eventtable.Reader {
	r, err := eventTable.Reader(nil, nil)
	if err != nil {
		panic(err)
	}
	return r
}()

const (
	// insertSQL contains eventTypeOf.
	insertSQL = `
INSERT INTO events (global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload, created_at)
SELECT position, 'sim', $5::text, $1::text, $2::bigint, $3::uuid, ($6::text[])[1 + (position / 2 % cardinality($6::text[]))::int], '', $4::timestamptz
  FROM nextval('events_global_position_seq') AS position
RETURNING global_position`
	effectSQL = `INSERT INTO effects (projection, position, aggregate) VALUES ($1, $2, $3) RETURNING xmin::text`
	idleSQL   = `SELECT (1000 * extract(epoch FROM current_setting('idle_in_transaction_session_timeout')::interval))::bigint`
)

// newPostgres creates a schema in the database of a URL, and in it the database of a
// replica set. The bounds are those of a world's store, except for the one on locks.
func newPostgres(ctx context.Context, base string, c clock, set string, bounds store.Bounds) (*postgres, error) {
	ctx, cancel := context.WithTimeout(ctx, schemaMax)
	defer cancel()
	s, err := newOwnSchema(ctx, base)
	if err != nil {
		return nil, err
	}
	p := &postgres{ownSchema: s, clock: c, client: clientOf(set, bounds)}
	for _, script := range []string{orchestrator.SchemaSQL(), eventtable.Layout, effectTable, strictTables, noVacuum} {
		if _, err := p.pool.ExecContext(ctx, script); err != nil {
			return nil, errors.Join(fmt.Errorf("create the tables in schema %s: %w", p.schema, err), p.close())
		}
	}
	return p, nil
}

// An ownSchema is a new schema in a database.
type ownSchema struct {
	admin  *sql.DB // creates and drops the schema
	schema string
	pool   *sql.DB // uses the schema
}

func newOwnSchema(ctx context.Context, base string) (*ownSchema, error) {
	s := &ownSchema{schema: "sim_" + strings.ToLower(rand.Text()[:12])}
	var err error
	if s.admin, err = openURL(base, nil); err != nil {
		return nil, err
	}
	settings := map[string]string{"search_path": s.schema}
	for name, value := range sessionSettings {
		settings[name] = value
	}
	if s.pool, err = openURL(base, settings); err != nil {
		return nil, errors.Join(err, s.admin.Close())
	}
	s.pool.SetMaxOpenConns(poolMax)
	s.pool.SetMaxIdleConns(poolMax)
	if _, err := s.admin.ExecContext(ctx, `CREATE SCHEMA `+s.schema); err != nil {
		return nil, errors.Join(fmt.Errorf("create a schema: %w", err), s.pool.Close(), s.admin.Close())
	}
	return s, nil
}

// drop drops the schema, and closes the pools.
func (s *ownSchema) drop() error {
	ctx, cancel := context.WithTimeout(context.Background(), schemaMax)
	defer cancel()
	closed := s.pool.Close()
	_, err := s.admin.ExecContext(ctx, `DROP SCHEMA `+s.schema+` CASCADE`)
	if err != nil {
		err = fmt.Errorf("drop schema %s: %w", s.schema, err)
	}
	return errors.Join(closed, err, s.admin.Close())
}

// openURL opens a database with settings of the session.
func openURL(base string, settings map[string]string) (*sql.DB, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("the database's URL: %w", err)
	}
	q := u.Query()
	for name, value := range settings {
		q.Set(name, value)
	}
	u.RawQuery = q.Encode()
	connector, err := pq.NewConnector(u.String())
	if err != nil {
		return nil, fmt.Errorf("the database's URL: %w", err)
	}
	return sql.OpenDB(connector), nil
}

func (p *postgres) connect() connection { return p.open(p.client) }

func (p *postgres) as(set string, bounds store.Bounds) database {
	return &postgresOf{p, clientOf(set, bounds)}
}

// A postgresOf is a postgres for other clients.
type postgresOf struct {
	*postgres
	client client
}

func (p *postgresOf) connect() connection { return p.open(p.client) }

func (p *postgres) open(by client) connection {
	c := &postgresConnection{db: p, client: by}
	p.connections = append(p.connections, c)
	return c
}

func (p *postgres) restart() {
	for _, c := range slices.Clone(p.connections) {
		c.close()
	}
}

// close drops the schema. It returns the errors that were not part of the world.
func (p *postgres) close() error {
	p.restart()
	dropped := p.drop()
	return errors.Join(p.trouble, dropped)
}

// store returns the client's store for the current time. The text of its statements
// contains the time: that costs no call, and all connections agree on it.
func (c *postgresConnection) store() *store.Store {
	p := c.db
	if now := p.clock.now().UTC().Format("2006-01-02 15:04:05.000000Z07:00"); now != p.time {
		p.time, p.stores = now, map[client]*store.Store{}
	}
	s := p.stores[c.client]
	if s == nil {
		s = store.New(p.pool, c.client.set, store.Options{Bounds: c.client.bounds, Schema: p.schema, Clock: "timestamptz '" + p.time + "'", Starts: p.start, Rebuilds: p.rebuilds})
		p.stores[c.client] = s
	}
	return s
}

// start is a store.Starts. It answers at once, since nothing depends on real time.
func (p *postgres) start(_ context.Context, projections []string) (positions map[string]int64, err error) {
	if p.starts == nil {
		return nil, nil
	}
	answered := false
	p.starts(projections, func(found map[string]int64, e error) { positions, err, answered = found, e, true })
	if !answered {
		panic("sim: PostgreSQL can't wait for the start of a projection")
	}
	return positions, err
}

// heard keeps errors that the world did not ask for.
func (p *postgres) heard(err error) error {
	if p.trouble == nil && store.Passing(err) && !store.LockTimeout(err) {
		p.trouble = fmt.Errorf("the real database failed, which a seed can't repeat: %w", err)
	}
	return err
}

// effects returns what committed transactions have written by effect, in the order of their
// commits.
func (p *postgres) effects() ([]effect, error) {
	rows, err := p.pool.QueryContext(context.Background(), `SELECT projection, position, xmin::text FROM effects ORDER BY seq`)
	if err != nil {
		return nil, fmt.Errorf("read the effects: %w", p.heard(err))
	}
	defer rows.Close()
	written := map[string][]effect{}
	n := 0
	for rows.Next() {
		var e effect
		var transaction string
		if err := rows.Scan(&e.projection, &e.position, &transaction); err != nil {
			return nil, fmt.Errorf("read an effect: %w", err)
		}
		written[transaction] = append(written[transaction], e)
		n++
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the effects: %w", p.heard(err))
	}
	var out []effect
	for _, transaction := range p.commits {
		out = append(out, written[transaction]...)
	}
	if len(out) != n {
		return nil, fmt.Errorf("%d effects are in the table, and %d were committed", n, len(out))
	}
	return out, nil
}

// A postgresConnection is a connection of the world, not of the pool: it holds one of the
// pool while its transaction is open.
type postgresConnection struct {
	db     *postgres
	client client
	open   *dbconn.Tx // the transaction; nil: none
	own    *ownSession
	// ended is the error of the next call after the connection has ended.
	ended error

	// bound is how long the transaction may idle; 0: no bound. stop stops the timer.
	bound time.Duration
	stop  func()
	// name of the transaction, once it has written an effect.
	name string
}

// errIdle is the error of the first call after the server has ended the connection. errFull
// is the server's error when it takes no more connections.
var (
	errIdle = &pq.Error{Severity: "FATAL", Code: "25P03", Message: "terminating connection due to idle-in-transaction timeout"}
	errFull = &pq.Error{Severity: "FATAL", Code: "53300", Message: "sorry, too many clients already"}
)

// alive returns the error of a call on a connection that has ended.
func (c *postgresConnection) alive() error {
	err := c.ended
	if err != nil {
		c.ended = driver.ErrBadConn
	}
	return err
}

// free is alive for calls that are not part of a transaction.
func (c *postgresConnection) free(call string) error {
	if c.open != nil {
		panic("sim: " + call + " on a connection with an open transaction")
	}
	return c.alive()
}

func (c *postgresConnection) sync(r protocol.Request, projections []string, starts starter, foreseen any, hold bool, done func(store.Result, error)) {
	if hold {
		panic("sim: PostgreSQL can't hold a coordination transaction before its COMMIT")
	}
	if err := c.free("sync"); err != nil {
		done(store.Result{}, err)
		return
	}
	f, _ := foreseen.(*store.Foresight)
	c.db.starts = starts
	result, err := c.store().SyncForeseen(context.Background(), r, projections, f)
	done(result, c.db.heard(err))
}

func (c *postgresConnection) foresee(id protocol.WorkerID, now time.Time, done func(any, error)) {
	if err := c.free("foresee"); err != nil {
		done(nil, err)
		return
	}
	done(c.store().Foresee(context.Background(), id, now), nil)
}

func (c *postgresConnection) load(l store.Lane, done func(protocol.Found, error)) {
	if err := c.free("load"); err != nil {
		done(protocol.Found{}, err)
		return
	}
	found, err := c.store().Load(context.Background(), l)
	done(found, c.db.heard(err))
}

func (c *postgresConnection) find(l store.Lane, done func(protocol.Found, error)) {
	if err := c.free("find"); err != nil {
		done(protocol.Found{}, err)
		return
	}
	found, err := c.store().Find(context.Background(), l)
	done(found, c.db.heard(err))
}

func (c *postgresConnection) begin(done func(error)) {
	err := c.free("begin")
	if err == nil {
		err = c.enter(c.store().BeginHandler)
	}
	if err == nil {
		err = c.run(c.look)
	}
	done(err)
}

func (c *postgresConnection) effect(projection string, e event) error {
	return c.run(func(ctx context.Context) error {
		return c.open.QueryRowContext(ctx, effectSQL, projection, e.position, e.aggregate).Scan(&c.name)
	})
}

func (c *postgresConnection) spoil() { c.exec(`SELECT 1 / 0`) }

func (c *postgresConnection) violate() { c.exec(`INSERT INTO orphans VALUES (1)`) }

func (c *postgresConnection) chain() {
	c.exec(`ROLLBACK AND CHAIN`)
	if c.open != nil {
		c.bound, c.name = 0, ""
		c.idles()
	}
}

// exec runs a statement and ignores its error.
func (c *postgresConnection) exec(query string) {
	_ = c.run(func(ctx context.Context) error {
		_, err := c.open.ExecContext(ctx, query)
		return err
	})
}

func (c *postgresConnection) write(l store.Lane, from, to protocol.Checkpoint, done func(error)) {
	if c.open == nil && c.ended == nil {
		if err := c.enter(c.store().BeginHandler); err != nil {
			done(err)
			return
		}
	}
	done(c.run(func(ctx context.Context) error {
		err := c.store().Commit(ctx, c.open.Tx, l, from, to)
		if err != nil && !errors.Is(err, store.ErrSuperseded) && !errors.Is(err, store.ErrTransactionEnded) {
			return err
		}
		return errors.Join(err, c.look(ctx))
	}))
}

func (c *postgresConnection) save(l store.Lane, from, to protocol.Checkpoint, done func(error)) {
	if err := c.free("save"); err != nil {
		done(err)
		return
	}
	done(c.db.heard(c.store().Save(context.Background(), l, from, to)))
}

func (c *postgresConnection) commit(done func(error)) {
	if err := c.alive(); err != nil {
		done(err)
		return
	}
	if c.open == nil {
		done(sql.ErrTxDone)
		return
	}
	name := c.name
	err := c.end((*dbconn.Tx).Commit)
	if err == nil && name != "" {
		c.db.commits = append(c.db.commits, name)
	}
	done(err)
}

func (c *postgresConnection) page(at eventtable.At, s scope, after, through int64, limit int) ([]event, error) {
	if err := c.free("page"); err != nil {
		return nil, err
	}
	r := eventtable.Range{After: after, Limit: limit, Through: through, At: at}
	if s != "" {
		r.Types, r.EventTypes = s.types(), s.eventTypes()
	}
	return c.db.events(r)
}

// events reads a range.
func (p *postgres) events(r eventtable.Range) ([]event, error) {
	r.Only = []eventtable.Part{eventtable.AggregateID}
	query, args := eventReader.Page(r)
	return collect(p, "read events", func(rows *sql.Rows) (e event, err error) {
		err = rows.Scan(&e.position, &e.aggregate)
		e.slot = protocol.SlotOf(e.aggregate)
		return e, err
	}, query, args...)
}

func (c *postgresConnection) ahead(at eventtable.At, after int64) (last, missing int64, err error) {
	if err := c.free("ahead"); err != nil {
		return 0, 0, err
	}
	last, missing, err = eventTable.Ahead(context.Background(), c.db.pool, at, after)
	return last, missing, c.db.heard(err)
}

func (c *postgresConnection) keys(at eventtable.At, after int64, limit int) ([]protocol.Key, error) {
	if err := c.free("keys"); err != nil {
		return nil, err
	}
	keys, err := eventReader.Keys(context.Background(), c.db.pool, eventtable.Range{After: after, Limit: limit, At: at})
	return keys, c.db.heard(err)
}

func (c *postgresConnection) rows(at eventtable.At, positions []int64) ([]event, error) {
	if err := c.free("rows"); err != nil {
		return nil, err
	}
	return c.db.events(eventtable.Range{Rows: positions, At: at})
}

func (c *postgresConnection) high(at eventtable.At) (high int64, err error) {
	if err := c.free("high"); err != nil {
		return 0, err
	}
	high, err = eventTable.High(context.Background(), c.db.pool, at)
	return high, c.db.heard(err)
}

func (c *postgresConnection) ask() (a protocol.ReadAnswer, err error) {
	if err := c.free("ask"); err != nil {
		return a, err
	}
	facts, holders, err := eventTable.Ask(context.Background(), c.db.pool)
	return protocol.ReadAnswer{Epoch: facts.Epoch, Broken: facts.Judge(), High: facts.Highest(), Holders: holders}, c.db.heard(err)
}

// collect runs a query outside of a transaction and scans its rows.
func collect[T any](p *postgres, what string, scan func(*sql.Rows) (T, error), query string, args ...any) ([]T, error) {
	rows, err := p.pool.QueryContext(context.Background(), query, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, p.heard(err))
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		out = append(out, v)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, p.heard(err))
	}
	return out, nil
}

func (c *postgresConnection) insert(aggregate string) (position int64, err error) {
	p := c.db
	if c.open == nil && c.ended == nil {
		begin := func(ctx context.Context) (*dbconn.Tx, error) { return dbconn.Begin(ctx, p.pool, nil) }
		if err := c.enter(begin); err != nil {
			return 0, err
		}
	}
	err = c.run(func(ctx context.Context) error {
		p.appended++ // also the version: it grows within the aggregate and is unique
		id := fmt.Sprintf("00000000-0000-4000-8000-%012x", p.appended)
		return c.open.QueryRowContext(ctx, insertSQL, aggregate, p.appended, id, p.clock.now(), typeOf(aggregate), pq.Array(eventTypes[:])).Scan(&position)
	})
	return position, err
}

var errNotPrepared = errors.New("transactions are not prepared on PostgreSQL in a simulation")

func (c *postgresConnection) prepare() (func(commit bool) error, error) {
	return nil, errNotPrepared
}

func (c *postgresConnection) close() {
	c.drop(driver.ErrBadConn)
}

// drop ends the connection. reason is the error of the next call.
func (c *postgresConnection) drop(reason error) {
	c.ended = reason
	if c.open != nil {
		// The server has released everything when this returns. If the real connection were
		// closed, it might not have.
		_ = c.end((*dbconn.Tx).Rollback)
	}
	p := c.db
	if c.own != nil {
		_ = p.heard(c.own.end())
		c.own = nil
		p.transactions--
	}
	p.connections = slices.DeleteFunc(p.connections, func(o *postgresConnection) bool { return o == c })
}

// enter opens a transaction.
func (c *postgresConnection) enter(begin func(context.Context) (*dbconn.Tx, error)) error {
	p := c.db
	if p.transactions == transactionsMax {
		return errFull // instead of waiting for the pool
	}
	tx, err := begin(context.Background())
	if err != nil {
		return p.heard(err)
	}
	p.transactions++
	c.open, c.bound, c.name, c.stop = tx, 0, "", func() {}
	return nil
}

// end ends the open transaction.
func (c *postgresConnection) end(how func(*dbconn.Tx) error) error {
	c.stop()
	tx := c.open
	c.open = nil
	c.db.transactions--
	return c.db.heard(how(tx))
}

// run runs a statement in the open transaction. Then the transaction idles again.
func (c *postgresConnection) run(statement func(context.Context) error) error {
	if err := c.alive(); err != nil {
		return err
	}
	if c.open == nil {
		return sql.ErrTxDone
	}
	err := statement(context.Background())
	if f := store.FactsOf(err); f.Failed && !f.Refused && !f.Ended {
		c.bound = 0 // a failed transaction loses its locks and its settings
	}
	c.idles()
	return c.db.heard(err)
}

// look reads how long the server lets the transaction idle. It asks the server: otherwise a
// world would not notice if the store forgot to set it.
func (c *postgresConnection) look(ctx context.Context) error {
	var millis int64
	if err := c.open.QueryRowContext(ctx, idleSQL).Scan(&millis); err != nil {
		return fmt.Errorf("read the bound on idling: %w", err)
	}
	c.bound = max(0, time.Duration(millis)*time.Millisecond-unreachable)
	return nil
}

// idles starts the time for which the transaction may idle.
func (c *postgresConnection) idles() {
	c.stop()
	c.stop = func() {}
	if c.bound > 0 {
		c.stop = c.db.clock.after(c.bound, func() { c.drop(errIdle) })
	}
}
