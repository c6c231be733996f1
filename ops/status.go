// Package ops shows and controls replica sets (consumer groups) while their workers run.
//
//	s, err := ops.Status(ctx, db, "main-projections")
//	if err != nil {
//		return err
//	}
//	for _, wait := range s.Waits {
//		fmt.Println(wait.Text) // what is stalled, and why
//	}
//
// To see what happens: [ReplicaSets], [Status], [History], and the page and JSON of
// [StatusHandler]. To give orders: [Pause], [Resume], [Rewind], [DrainWorker]. For the
// dead-letter queue of a projection: [Park], [Parked], [RetryParked], [DiscardParked]. For
// rebuilds: [Promote], [Retire], [Live].
//
// The rules:
//
//   - Any program that reaches the database can call these functions. They read and write
//     the library's tables. They don't connect to workers.
//   - Pause, Resume, Rewind and DrainWorker return the number of a generation. The order has
//     taken effect when that generation is active: see [AwaitGeneration].
//   - The worker that has the partition parks, retries or discards events: see [AwaitPark].
//   - Orders are idempotent.
//   - An order that can't be carried out returns [ErrRejected] and changes nothing.
//   - If the tables are in a PostgreSQL schema that the search path does not reach, pass
//     orchestrator.InSchema.
//
// The command orchestrator does the same from a shell.
package ops

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// ReplicaSetStatus is the state of a replica set at one moment: workers, partitions,
// checkpoints, lag, pending orders, and what is stalled.
type ReplicaSetStatus struct {
	ReplicaSet orchestrator.ReplicaSetName `json:"replica_set"`
	At         time.Time                   `json:"at"` // the database's time

	// Generation is the number of the newest generation. 0: there was none yet.
	Generation      int64      `json:"generation"`
	Phase           Phase      `json:"phase"`
	TotalPartitions int        `json:"total_partitions"`
	Reason          string     `json:"reason"` // why the generation was opened
	OpenedAt        *time.Time `json:"opened_at"`
	ActivatedAt     *time.Time `json:"activated_at"`

	// Paused are the projections that are paused by order. PausedAll: the whole set is.
	// Held are those of Paused that Promote holds while another version takes their place,
	// and until when. Rewinds take effect when the next generation is activated.
	Paused    []string             `json:"paused"`
	PausedAll bool                 `json:"paused_all"`
	Held      map[string]time.Time `json:"held"`    // projection → until when
	Rewinds   map[string]int64     `json:"rewinds"` // projection → position
	// ParkOrders are the orders of Park that no worker has carried out yet.
	ParkOrders []ParkOrder `json:"park_orders"`

	// Head is the highest position in the event stream that a worker has seen. 0: unknown.
	Head       int64             `json:"head"`
	Workers    []WorkerStatus    `json:"workers"`    // in the order in which they joined
	Partitions []PartitionStatus `json:"partitions"` // by projection and partition
	// Rebuilds are the versions of the set's projections that are not live, including
	// versions in other sets. They are sorted by live version and name.
	Rebuilds []RebuildStatus `json:"rebuilds"`
	// Waits are the reasons why something is stalled, the most urgent first.
	Waits []Wait `json:"waits"`
}

// Phase is the state of the newest generation of a replica set.
type Phase string

const (
	PhaseDraining Phase = "draining" // workers are stopping older generations
	PhaseActive   Phase = "active"   // the generation runs
)

// WorkerStatus is the state of one worker of a replica set.
type WorkerStatus struct {
	Worker   string    `json:"worker"`
	JoinedAt time.Time `json:"joined_at"`
	// LastHeartbeat is when the worker renewed its lease; of a Vacant place, when its worker
	// left.
	LastHeartbeat time.Time `json:"last_heartbeat"`
	LeaseUntil    time.Time `json:"lease_until"`
	Alive         bool      `json:"alive"` // its lease has not expired, and it has not left
	Partitions    []int     `json:"partitions"`
	// Holds is the generation that the worker must stop before a newer one can be
	// activated. 0: none.
	Holds   int64 `json:"holds"`
	Drained bool  `json:"drained"` // by DrainWorker
	// Vacant: the worker has left, and its partitions are reserved for a replacement
	// until LeaseUntil (Config.ReplacementWindow). It is not Alive.
	Vacant      bool                     `json:"vacant"`
	Projections []string                 `json:"projections"`
	State       orchestrator.WorkerState `json:"state"` // "": no report yet
	ReportedAt  *time.Time               `json:"reported_at"`
	Gap         *orchestrator.GapReport  `json:"gap,omitempty"`
	LeaseOnly   string                   `json:"lease_only,omitempty"` // as in WorkerReport
}

// PartitionStatus is the state of one projection on one partition.
type PartitionStatus struct {
	Projection      string    `json:"projection"`
	Partition       int       `json:"partition"`
	TotalPartitions int       `json:"total_partitions"`
	Generation      int64     `json:"generation"`
	Worker          string    `json:"worker"`   // "": none
	Position        int64     `json:"position"` // of the checkpoint
	UpdatedAt       time.Time `json:"updated_at"`
	Paused          bool      `json:"paused"`
	Parked          int       `json:"parked"` // number of parked events
	// ParkedSince is when the oldest parked event was parked.
	ParkedSince *time.Time `json:"parked_since,omitempty"`
	// Report is the latest report about this partition: of the worker that runs it, also
	// while it stops. If no worker does (LanePaused, LaneVacant, LaneStopped), it is derived
	// from the checkpoint: then BehindSeconds is -1 where it is not known. nil: its worker
	// has not reported yet.
	Report     *orchestrator.LaneReport `json:"report"`
	ReportedAt *time.Time               `json:"reported_at"`
}

// GenerationRecord is one generation in the history of a replica set.
type GenerationRecord struct {
	Generation      int64            `json:"generation"`
	Reason          string           `json:"reason"`
	TotalPartitions int              `json:"total_partitions"`
	Members         map[string][]int `json:"members"` // worker → partitions; if workers were replaced in a generation, the latest worker of each place
	OpenedAt        time.Time        `json:"opened_at"`
	// ActivatedAt is nil while the generation drains, and if it was superseded before it
	// was active.
	ActivatedAt *time.Time `json:"activated_at"`
	WaitedFor   []string   `json:"waited_for"` // workers that had to stop first
	// ParkOrders are the orders of Park that were given under this generation, the newest
	// first.
	ParkOrders []ParkOrder `json:"park_orders"`
}

// ErrNoReplicaSet is returned if no worker of the named replica set has ever run. Orders
// to such a set return ErrRejected instead.
var ErrNoReplicaSet = errors.New("orchestrator: no such replica set")

var (
	replicaSetsSQL = sqltext.New(`SELECT name FROM orchestrator_replica_sets ORDER BY name`)
	historySQL     = sqltext.New(`
SELECT generation, reason, total, members, opened_at, activated_at, waited_for
  FROM orchestrator_history WHERE replica_set = {set} ORDER BY generation DESC LIMIT {limit}`)
)

// ReplicaSets returns the names of all replica sets that workers have run, sorted.
func ReplicaSets(ctx context.Context, db *sql.DB, options ...orchestrator.TablesOption) ([]orchestrator.ReplicaSetName, error) {
	names := []orchestrator.ReplicaSetName{}
	t := store.TablesOf(db, options)
	tables, err := t.Locate(ctx)
	if err != nil {
		return nil, redact.Error(fmt.Errorf("list replica sets: %w", err))
	}
	err = query(ctx, t.DB, tables, replicaSetsSQL, nil, func(scan func(...any) error) error {
		var name orchestrator.ReplicaSetName
		err := scan(&name)
		names = append(names, name)
		return err
	})
	if err != nil {
		return nil, redact.Error(fmt.Errorf("list replica sets: %w", err))
	}
	return names, nil
}

// Status returns the state of a replica set at one moment, in one transaction. Lag and lane
// states are as the workers last reported them, about a HeartbeatInterval ago. It returns
// ErrNoReplicaSet if no worker of the set has ever run.
func Status(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, options ...orchestrator.TablesOption) (ReplicaSetStatus, error) {
	s := ReplicaSetStatus{
		ReplicaSet: set, Paused: []string{}, Held: map[string]time.Time{}, Rewinds: map[string]int64{}, ParkOrders: []ParkOrder{},
		Workers: []WorkerStatus{}, Partitions: []PartitionStatus{}, Rebuilds: []RebuildStatus{}, Waits: []Wait{},
	}
	if problem := store.NameProblem(string(set)); problem != "" {
		return s, fmt.Errorf("%w: its name %s", ErrNoReplicaSet, problem)
	}
	t := store.TablesOf(db, options)
	err := store.Foreseen(s.load(ctx, t))
	if store.Unstorable(err) && !storable(ctx, t.DB, string(set)) {
		err = ErrNoReplicaSet
	}
	if err != nil {
		return s, redact.Error(fmt.Errorf("status of replica set %q: %w", set, err))
	}
	return s, nil
}

func (s *ReplicaSetStatus) load(ctx context.Context, t store.Tables) error {
	tables, err := t.Locate(ctx)
	if err != nil {
		return err
	}
	tx, err := dbconn.Begin(ctx, t.DB, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return err
	}
	defer tx.Rollback() // nothing was written
	return s.read(func(set orchestrator.ReplicaSetName) querier {
		return func(statement sqltext.Statement, each func(scan func(...any) error) error) error {
			return query(ctx, tx, tables, statement, store.ParkOrderValues(sqltext.Values{"set": string(set)}), each)
		}
	})
}

// A querier runs a statement about a replica set. It calls each for every row.
type querier func(statement sqltext.Statement, each func(scan func(...any) error) error) error

// read reads each table once, and joins the rows here. It does not use the views: a server
// may scan one side of their joins again for each row of the other.
func (s *ReplicaSetStatus) read(of func(orchestrator.ReplicaSetName) querier) error {
	ask := of(s.ReplicaSet)
	var paused, rewinds, holds string
	found := false
	err := ask(statusSQL, func(scan func(...any) error) error {
		found = true
		return scan(&s.At, &s.Generation, &s.Phase, &s.TotalPartitions, &s.Reason, &s.OpenedAt, &s.ActivatedAt, &paused, &rewinds, &holds)
	})
	if err == nil && !found {
		return ErrNoReplicaSet
	}
	row := store.RowOf("replica_sets", string(s.ReplicaSet)).Scanned(err)
	if row.Err != nil {
		return row.Err
	}
	times(row.AtLeast("generation", s.Generation, 0).Total(s.TotalPartitions, 0), map[string]*time.Time{"opened_at": s.OpenedAt, "activated_at": s.ActivatedAt})
	names := store.Strings[string](row, "paused", paused)
	until := untilOf(row.Positions("holds", holds))
	if s.Rewinds = row.Positions("rewinds", rewinds); row.Err != nil {
		return row.Err
	}
	for name, at := range until {
		s.Held[name] = *at
	}
	s.Paused = slices.DeleteFunc(names, func(name string) bool { return name == "" })
	s.PausedAll = len(s.Paused) < len(names)
	reports, err := readReports(ask, s.ReplicaSet)
	if err != nil {
		return err
	}
	for _, r := range reports {
		s.Head = max(s.Head, r.Head)
	}
	owners, err := s.readWorkers(ask, reports)
	if err != nil {
		return err
	}
	parked, err := s.readParked(ask)
	if err == nil {
		err = s.readParkOrders(ask)
	}
	if err == nil {
		err = s.readPartitions(ask, owners, parked)
	}
	if err == nil {
		err = s.readRebuilds(of, reports)
	}
	if err != nil {
		return err
	}
	backends, err := s.readBackends(ask)
	if err != nil {
		return err
	}
	s.Waits = append(s.Waits, s.waits(backends)...)
	return nil
}

// The statements of Status.
var (
	statusSQL = sqltext.New(`
SELECT {clock}, generation, phase, total, reason, opened_at, activated_at, paused, rewinds, holds
  FROM orchestrator_replica_sets WHERE name = {set}`)
	statusReportsSQL = sqltext.New(`
SELECT r.worker, r.reported_at, r.report
  FROM orchestrator_reports r
  JOIN orchestrator_workers w ON w.replica_set = r.replica_set AND w.id = r.worker
 WHERE r.replica_set = {set}`)
	statusWorkersSQL = sqltext.New(`
SELECT id, joined_at, lease_until, lease_until > {clock}, generation, total, partitions, CASE WHEN vacant THEN 0 ELSE holds END, drained, vacant, lease_us, projections
  FROM orchestrator_workers WHERE replica_set = {set} ORDER BY seq`)
	statusParkedSQL = sqltext.New(`
SELECT c.projection, c.total, p.slot % c.total, count(*), min(p.parked_at) AS parked_since
  FROM (SELECT DISTINCT projection, total FROM orchestrator_checkpoints WHERE replica_set = {set}) c
  JOIN orchestrator_parked p ON p.projection = c.projection
 GROUP BY 1, 2, 3`)
	statusPartitionsSQL = sqltext.New(`
SELECT projection, partition, total, generation, position, updated_at
  FROM orchestrator_checkpoints WHERE replica_set = {set} ORDER BY projection, partition`)
)

// A reported is a worker's latest report.
type reported struct {
	orchestrator.WorkerReport
	at    time.Time
	lanes map[laneKey]*orchestrator.LaneReport
}

type laneKey struct {
	projection string
	partition  int
}

// readReports returns the latest report of each worker of a set.
func readReports(ask querier, set orchestrator.ReplicaSetName) (map[string]*reported, error) {
	reports := map[string]*reported{}
	err := ask(statusReportsSQL, func(scan func(...any) error) error {
		var worker string
		var text []byte
		r := &reported{lanes: map[laneKey]*orchestrator.LaneReport{}}
		err := scan(&worker, &r.at, &text)
		row := store.RowOf("reports", string(set), worker).Scanned(err)
		if err == nil {
			row.Time("reported_at", r.at).JSON("report", text, &r.WorkerReport)
		}
		for i := range r.Lanes {
			l := &r.Lanes[i]
			r.lanes[laneKey{l.Projection, l.Partition}] = l
		}
		reports[worker] = r
		return row.Err
	})
	return reports, err
}

// An ownership is a partition of a generation.
type ownership struct {
	generation int64
	partition  int
}

// An owner is the worker that has a partition, and its report if it is about the same generation.
type owner struct {
	worker string
	report *reported
	vacant *time.Time // when it left its place; nil: it has not left
}

// readWorkers reads the workers, and returns the owner of each partition.
func (s *ReplicaSetStatus) readWorkers(ask querier, reports map[string]*reported) (map[ownership]owner, error) {
	owners := map[ownership]owner{}
	err := ask(statusWorkersSQL, func(scan func(...any) error) error {
		var w WorkerStatus
		var total int
		var generation, lease int64
		var partitions, projections string
		err := scan(&w.Worker, &w.JoinedAt, &w.LeaseUntil, &w.Alive, &generation, &total, &partitions, &w.Holds, &w.Drained, &w.Vacant, &lease, &projections)
		row := store.RowOf("workers", string(s.ReplicaSet), w.Worker).Scanned(err)
		if err == nil {
			row.Total(total, 0).Time("joined_at", w.JoinedAt).Time("lease_until", w.LeaseUntil)
			w.Partitions = append([]int{}, row.Partitions("partitions", partitions, total)...)
			w.Projections = append([]string{}, store.Strings[string](row, "projections", projections)...)
		}
		w.LastHeartbeat = w.LeaseUntil.Add(-time.Duration(lease) * time.Microsecond)
		has := owner{worker: w.Worker}
		if w.Vacant {
			has.vacant, w.Alive = &w.LastHeartbeat, false
		}
		if r := reports[w.Worker]; r != nil {
			w.State, w.ReportedAt, w.Gap, w.LeaseOnly = r.State, &r.at, r.Gap, r.LeaseOnly
			if w.Gap != nil && w.Gap.Backends == nil {
				w.Gap.Backends = []int{}
			}
			if r.Generation == generation && !w.Vacant {
				has.report = r
			}
			if w.Holds != 0 && r.Generation == w.Holds && w.Holds != generation {
				// It has a place in the next generation, and runs this one until it has stopped.
				for lane := range r.lanes {
					owners[ownership{w.Holds, lane.partition}] = owner{worker: w.Worker, report: r}
				}
			}
		}
		for _, partition := range w.Partitions {
			owners[ownership{generation, partition}] = has
		}
		s.Workers = append(s.Workers, w)
		return row.Err
	})
	return owners, err
}

// A parkedKey is a partition of a projection, under the total of its checkpoint.
type parkedKey struct {
	laneKey
	total int
}

type parkedCount struct {
	events int
	oldest time.Time
}

// readParked counts parked events, in one pass over the table.
func (s *ReplicaSetStatus) readParked(ask querier) (map[parkedKey]parkedCount, error) {
	counts := map[parkedKey]parkedCount{}
	err := ask(statusParkedSQL, func(scan func(...any) error) error {
		var k parkedKey
		var c parkedCount
		err := scan(&k.projection, &k.total, &k.partition, &c.events, &c.oldest)
		row := store.RowOf("parked", k.projection).Scanned(err)
		if err == nil {
			row.Time("parked_at", c.oldest)
		}
		counts[k] = c
		return row.Err
	})
	return counts, err
}

func (s *ReplicaSetStatus) readPartitions(ask querier, owners map[ownership]owner, parked map[parkedKey]parkedCount) error {
	return ask(statusPartitionsSQL, func(scan func(...any) error) error {
		var p PartitionStatus
		err := scan(&p.Projection, &p.Partition, &p.TotalPartitions, &p.Generation, &p.Position, &p.UpdatedAt)
		row := store.RowOf("checkpoints", p.Projection, p.Partition).Scanned(err)
		if err == nil {
			row.Total(p.TotalPartitions, 1).Range("partition", int64(p.Partition), 0, int64(p.TotalPartitions)-1).
				AtLeast("position", p.Position, 0).Time("updated_at", p.UpdatedAt)
		}
		lane := laneKey{p.Projection, p.Partition}
		p.Paused = s.PausedAll || slices.Contains(s.Paused, p.Projection)
		if c, ok := parked[parkedKey{lane, p.TotalPartitions}]; ok {
			p.Parked, p.ParkedSince = c.events, &c.oldest
		}
		has := owners[ownership{p.Generation, p.Partition}]
		p.Worker = has.worker
		switch {
		case p.Paused && !stopping(has.report, lane):
			p.Report = s.unrunLane(p, orchestrator.LanePaused, nil)
		case has.vacant != nil:
			p.Report = s.unrunLane(p, orchestrator.LaneVacant, has.vacant)
		case has.worker == "":
			p.Report = s.unrunLane(p, orchestrator.LaneStopped, nil)
		}
		if r := has.report; r != nil {
			p.ReportedAt = &r.at
			if l := r.lanes[lane]; l != nil && l.State != "" {
				report := *l
				report.TotalPartitions, report.Parked = p.TotalPartitions, p.Parked
				p.Report = &report
			}
		}
		s.Partitions = append(s.Partitions, p)
		return row.Err
	})
}

// stopping reports whether a worker has a lane in hand.
func stopping(r *reported, lane laneKey) bool {
	return r != nil && r.lanes[lane] != nil && r.lanes[lane].State != "" && r.lanes[lane].State != orchestrator.LaneEnded
}

// unrunLane returns the report of a lane that no worker runs. Its position is that of the
// checkpoint, and its lag is measured against the head that workers have seen. since is when
// its worker left, if that is known.
func (s *ReplicaSetStatus) unrunLane(p PartitionStatus, state orchestrator.LaneState, since *time.Time) *orchestrator.LaneReport {
	r := &orchestrator.LaneReport{
		Projection: p.Projection, Partition: p.Partition, TotalPartitions: p.TotalPartitions, Position: p.Position,
		Behind: -1, State: state, Since: p.UpdatedAt, Parked: p.Parked,
	}
	if p.ParkedSince != nil {
		r.ParkedSeconds = max(0, s.At.Sub(*p.ParkedSince).Seconds())
	}
	if s.Head > 0 {
		r.Behind = max(0, s.Head-p.Position)
	}
	switch {
	case r.Behind > 0 && since != nil: // at least since the worker left
		r.BehindSeconds = max(0, s.At.Sub(*since).Seconds())
	case r.Behind != 0:
		r.BehindSeconds = -1
	}
	return r
}

// times checks the times that are not nil.
func times(row *store.Row, columns map[string]*time.Time) {
	for _, column := range slices.Sorted(maps.Keys(columns)) {
		if at := columns[column]; at != nil {
			row.Time(column, *at)
		}
	}
}

// History returns the latest generations of a replica set, the newest first. limit is the
// most to return, at least 1. About 1000 generations are kept. If the set has never run,
// the result is empty. Orders of Park open no generation: they are in the ParkOrders of the
// generation under which they were given.
func History(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, limit int, options ...orchestrator.TablesOption) ([]GenerationRecord, error) {
	if problem := store.NameProblem(string(set)); problem != "" {
		return nil, fmt.Errorf("history: %w: its name %s", ErrNoReplicaSet, problem)
	}
	if limit < 1 {
		return nil, fmt.Errorf("%w: History: the limit is %d; it must be at least 1", orchestrator.ErrInvalidConfig, limit)
	}
	t := store.TablesOf(db, options)
	records := []GenerationRecord{}
	tables, err := t.Locate(ctx)
	if err != nil {
		return nil, redact.Error(fmt.Errorf("history of replica set %q: %w", set, err))
	}
	err = query(ctx, t.DB, tables, historySQL, sqltext.Values{"set": string(set), "limit": limit}, func(scan func(...any) error) error {
		var r GenerationRecord
		var members, waited string
		err := scan(&r.Generation, &r.Reason, &r.TotalPartitions, &members, &r.OpenedAt, &r.ActivatedAt, &waited)
		row := store.RowOf("history", string(set), r.Generation).Scanned(err)
		if err == nil {
			times(row.Total(r.TotalPartitions, 0), map[string]*time.Time{"opened_at": &r.OpenedAt, "activated_at": r.ActivatedAt})
			r.Members = row.Members("members", members, r.TotalPartitions)
			r.WaitedFor = append([]string{}, store.Strings[string](row, "waited_for", waited)...)
		}
		r.ParkOrders = []ParkOrder{}
		records = append(records, r)
		return row.Err
	})
	if err == nil && len(records) > 0 {
		values := store.ParkOrderValues(sqltext.Values{"set": string(set), "limit": parkOrdersMax, "generation": records[len(records)-1].Generation})
		err = withParkOrders(func(statement sqltext.Statement, each func(scan func(...any) error) error) error {
			return query(ctx, t.DB, tables, statement, values, each)
		}, records)
	}
	if err != nil {
		return nil, redact.Error(fmt.Errorf("history of replica set %q: %w", set, err))
	}
	return records, nil
}

// query runs a statement and calls each for every row.
func query(ctx context.Context, db dbconn.Querier, tables sqltext.Names, statement sqltext.Statement, values sqltext.Values, each func(scan func(...any) error) error) error {
	text, args := tables.Bind(statement, values)
	rows, err := dbconn.QueryOn(ctx, db, text, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}
