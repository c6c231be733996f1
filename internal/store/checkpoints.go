package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// Checkpoints: read, moved behind the fence, and handed over at an activation. A checkpoint
// must never move but from the position, and under the generation, that its lane names.

// ErrSuperseded is returned by Commit if the checkpoint is not where the
// commit starts from, or is under another generation.
var ErrSuperseded = errors.New("generation superseded")

// ErrTransactionEnded is returned by Commit and Unpark if the transaction is not the
// one that BeginHandler has begun: the handler has ended that one. Nothing was written.
var ErrTransactionEnded = errors.New("the handler has ended its transaction (COMMIT, ROLLBACK, PREPARE TRANSACTION, RESET ALL): " +
	"what it wrote may be lost, or may be written twice; leave the end of the transaction to the library")

// A Lane names one projection on one partition, run under one generation.
type Lane struct {
	Projection string
	Assignment protocol.Assignment
}

// String returns the lane as "projection orders, generation 3 partition 0/2".
func (l Lane) String() string { return fmt.Sprintf("projection %s, %s", l.Projection, l.Assignment) }

// values returns what statements need of a lane.
func (l Lane) values() sqltext.Values {
	return sqltext.Values{
		"projection": l.Projection, "partition": int32(l.Assignment.Partition), "total": int32(l.Assignment.Total), "generation": l.Assignment.Generation,
	}
}

// Load returns the lane's checkpoint, and whether any events of its are parked, or
// ordered to be.
func (s *Store) Load(ctx context.Context, l Lane) (protocol.Found, error) {
	return s.find(ctx, l, loadSQL)
}

// Find returns the lane's checkpoint as it is once every transaction that has
// written it has ended. It does not return what is parked, nor what the projection follows: a
// statement that has waited for a row reads that row again, but everything else as it was
// before the wait.
func (s *Store) Find(ctx context.Context, l Lane) (protocol.Found, error) {
	return s.find(ctx, l, findCheckpointSQL)
}

var (
	loadSQL = sqltext.New(`
SELECT generation, position, ahead,
       ` + fmt.Sprintf(noneParkedText, "{total}") + `, ` + followsText + `
  FROM orchestrator_checkpoints c
 WHERE replica_set = {set} AND projection = {projection} AND partition = {partition}` + onPrimary)
	findCheckpointSQL = sqltext.New(`
SELECT generation, position, ahead, false, false FROM orchestrator_checkpoints
 WHERE replica_set = {set} AND projection = {projection} AND partition = {partition}` + onPrimary + ` FOR UPDATE`)
)

// noneParkedText is true if no event of a checkpoint's partition, of %s, is parked, and none of
// the projection is ordered to be.
const noneParkedText = `NOT EXISTS (SELECT FROM orchestrator_parked p WHERE p.projection = c.projection AND (p.slot %% %s) = c.partition)
   AND NOT EXISTS (SELECT FROM orchestrator_park_orders o WHERE o.projection = c.projection AND o.ended_at IS NULL)`

// onPrimary makes a statement fail on a standby, as in viewSQL: a checkpoint that a standby shows
// may be an old one, and its events would be handled again.
const onPrimary = ` AND (SELECT pg_current_wal_lsn()) IS NOT NULL`

func (s *Store) find(ctx context.Context, l Lane, statement sqltext.Statement) (protocol.Found, error) {
	var f protocol.Found
	var ahead sql.NullString
	err := s.row(ctx, s.db, statement, l.values(), &f.Generation, &f.Checkpoint.Position, &ahead, &f.NoneParked, &f.Follows)
	if errors.Is(err, sql.ErrNoRows) {
		return protocol.Found{}, nil
	}
	if err != nil {
		err = RowOf("checkpoints", l.Projection, l.Assignment.Partition).Scanned(err).Err
		return f, fmt.Errorf("read the checkpoint of %s: %w", l, err)
	}
	f.Exists = true
	if f.Generation != l.Assignment.Generation {
		return f, nil // of a layout that is not the lane's
	}
	row := RowOf("checkpoints", l.Projection, l.Assignment.Partition).AtLeast("position", f.Checkpoint.Position, 0)
	f.Checkpoint.Ahead = row.Marks(ahead, l.Assignment.Partition, l.Assignment.Total)
	if row.Err != nil {
		return f, fmt.Errorf("read the checkpoint of %s: %w", l, row.Err)
	}
	return f, nil
}

// BeginHandler begins a transaction for a handler to write in and for Commit. The
// server ends it when it waits for its client for the length of a lease: a
// process that is frozen inside its handler must not keep rows
// locked that its successor needs.
//
// It takes two round trips. The second is a statement without parameters: with one,
// lib/pq takes a third.
func (s *Store) BeginHandler(ctx context.Context) (*dbconn.Tx, error) {
	tx, err := dbconn.Begin(ctx, s.db, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	if _, err := s.exec(ctx, tx, beginHandlerSQL, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("bound the transaction: %w", err), tx.Rollback())
	}
	return tx, nil
}

// Commit moves the lane's checkpoint from one position to the next in tx,
// which the caller commits at once. tx must still be the transaction that
// BeginHandler has begun:
//  1. a handler rolls back, with a statement of its own, and returns nil;
//  2. the checkpoint is moved by a statement that commits by itself;
//  3. what the handlers of the batch wrote is lost.
//
// Like Save it has no parameters, so that it takes one round trip.
func (s *Store) Commit(ctx context.Context, tx *sql.Tx, l Lane, from, to protocol.Checkpoint) error {
	statement, values := commitSQL.of(l, from, to)
	query, err := s.text(ctx, tx, statement, values)
	if err != nil {
		return fmt.Errorf("commit %s at %d: %w", l, to.Position, err)
	}
	err = moved(l, to)(tx.ExecContext(ctx, query))
	if FactsOf(err).Refused {
		return s.why(ctx, tx, err)
	}
	return err
}

// why returns ErrTransactionEnded if that is why the fence has matched no row.
func (s *Store) why(ctx context.Context, tx *sql.Tx, refused error) error {
	var open bool
	if err := s.row(ctx, tx, stillOpenSQL, nil, &open); err != nil {
		return fmt.Errorf("%w: %w", refused, err)
	}
	if open {
		return refused
	}
	return ErrTransactionEnded
}

// Save moves the lane's checkpoint by itself. It is one statement that returns no
// rows, so that it takes one round trip, and works behind any pooler.
func (s *Store) Save(ctx context.Context, l Lane, from, to protocol.Checkpoint) error {
	statement, values := saveCheckpointSQL.of(l, from, to)
	return moved(l, to)(s.exec(ctx, s.db, statement, values))
}

// moved returns a function that turns the result of a move into an error; ErrSuperseded if no
// row has matched.
func moved(l Lane, to protocol.Checkpoint) func(sql.Result, error) error {
	return func(res sql.Result, err error) error {
		var n int64
		if err == nil {
			n, err = res.RowsAffected()
		}
		if err == nil && n == 0 {
			err = ErrSuperseded
		}
		if err != nil {
			return fmt.Errorf("commit %s at %d: %w", l, to.Position, err)
		}
		return nil
	}
}

// checkpointRow is a checkpoint as the statements take it.
type checkpointRow struct {
	Projection string          `json:"projection"`
	Partition  int             `json:"partition"`
	Position   int64           `json:"position"`
	Ahead      json.RawMessage `json:"ahead"`
}

// handOver rewrites the checkpoints of the set under the generation that is
// being activated. Afterwards every projection of the set has exactly the
// generation's partitions. A projection that is rewound gets the position of the rewind.
func (s *Store) handOver(ctx context.Context, tx *sql.Tx, g protocol.Group, rewinds []protocol.Rewind) error {
	projections, err := s.strings(ctx, tx, ownProjectionsSQL, nil)
	if err != nil {
		return fmt.Errorf("hand over %q: list projections: %w", s.set, err)
	}
	old, err := s.lockCheckpoints(ctx, tx)
	if err != nil {
		return fmt.Errorf("hand over %q: %w", s.set, err)
	}
	rows := handedOver(projections, old, rewinds, g.Total)
	for _, r := range rewinds {
		if slices.Contains(projections, r.Projection) {
			if err := s.DropParkedAbove(ctx, tx, r.Projection, r.Position); err != nil {
				return fmt.Errorf("hand over %q: %w", s.set, err)
			}
		}
	}
	_, err = s.exec(ctx, tx, handOverSQL, sqltext.Values{
		"generation": g.Generation, "total": int32(g.Total), "rows": sqltext.JSON{Value: rows},
	})
	if err != nil {
		return fmt.Errorf("hand over %q: write checkpoints: %w", s.set, err)
	}
	return nil
}

// handedOver returns the checkpoint rows of the next generation.
func handedOver(projections []string, old map[string][]protocol.Checkpoint, rewinds []protocol.Rewind, total int) []checkpointRow {
	rows := []checkpointRow{} // not nil, which is null in JSON: other sets may have taken all projections
	for _, p := range projections {
		for k, c := range protocol.Handoff(protocol.Rewound(p, old[p], rewinds), total) {
			rows = append(rows, checkpointRow{p, k, c.Position, encodeMarks(c.Ahead)})
		}
	}
	return rows
}

// layouts are checkpoints that are read, sorted by projection and partition.
type layouts struct {
	of     map[string][]protocol.Checkpoint
	totals map[string]int
}

func (l *layouts) add(projection string, partition, total int, c protocol.Checkpoint) error {
	if l.of == nil {
		l.of, l.totals = map[string][]protocol.Checkpoint{}, map[string]int{}
	}
	if partition != len(l.of[projection]) {
		return missingError(projection, len(l.of[projection]))
	}
	l.of[projection], l.totals[projection] = append(l.of[projection], c), total
	return nil
}

// complete returns the checkpoints of each projection by partition, if there are all.
func (l *layouts) complete() (map[string][]protocol.Checkpoint, error) {
	for projection, total := range l.totals {
		if len(l.of[projection]) != total {
			return nil, missingError(projection, len(l.of[projection]))
		}
	}
	return l.of, nil
}

// lockCheckpoints returns the checkpoints of each projection by partition.
func (s *Store) lockCheckpoints(ctx context.Context, tx *sql.Tx) (map[string][]protocol.Checkpoint, error) {
	rows, err := s.query(ctx, tx, lockCheckpointsSQL, nil)
	if err != nil {
		return nil, fmt.Errorf("lock checkpoints: %w", err)
	}
	defer rows.Close()
	var l layouts
	for rows.Next() {
		var projection string
		var partition, total int
		var c protocol.Checkpoint
		var ahead sql.NullString
		err := rows.Scan(&projection, &partition, &total, &c.Position, &ahead)
		if c, err = checkpointOf(projection, partition, total, c, ahead, err); err == nil {
			err = l.add(projection, partition, total, c)
		}
		if err != nil {
			return nil, err
		}
	}
	// A lock that could not be had ends the rows in the middle.
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("lock checkpoints: %w", err)
	}
	return l.complete()
}

func missingError(projection string, partition int) error {
	return fmt.Errorf("checkpoints of projection %s lack partition %d: rows were deleted by hand; restore them, or delete all checkpoints of the projection to start it as a new one", projection, partition)
}

// Marks are stored as [[slot, position], ...], or NULL for none.
func encodeMarks(marks []protocol.Mark) json.RawMessage {
	if len(marks) == 0 {
		return json.RawMessage("null")
	}
	pairs := make([][2]int64, len(marks))
	for i, m := range marks {
		pairs[i] = [2]int64{int64(m.Slot), m.Position}
	}
	text, _ := json.Marshal(pairs) // integers always encode
	return text
}

// checkpointOf returns the checkpoint of a row that was scanned.
func checkpointOf(projection string, partition, total int, c protocol.Checkpoint, ahead sql.NullString, scanned error) (protocol.Checkpoint, error) {
	row := RowOf("checkpoints", projection, partition).Scanned(scanned)
	if scanned == nil {
		row.Total(total, 1).Range("partition", int64(partition), 0, int64(total)-1).AtLeast("position", c.Position, 0)
		c.Ahead = row.Marks(ahead, partition, total)
	}
	return c, row.Err
}

var highestSQL = sqltext.New(`SELECT coalesce(max(position), 0) FROM orchestrator_checkpoints WHERE projection = {projection}`)

// Highest returns the highest position of a projection's checkpoints; 0 if it has none.
func Highest(ctx context.Context, t Tables, projection string) (position int64, err error) {
	names, err := t.Locate(ctx)
	if err == nil {
		query, args := names.Bind(highestSQL, sqltext.Values{"projection": projection})
		err = dbconn.QueryRow(ctx, t.DB, query, args...).Scan(&position)
	}
	if err != nil {
		return 0, fmt.Errorf("read the checkpoints of projection %q: %w", projection, err)
	}
	return position, nil
}
