// Package importer takes over the checkpoints of processors that ran without this library:
// processors with fixed partitions (0 of 3, 1 of 3, …), and processors of
// github.com/pupsourcing/core, which share segments. The projection then goes on where they
// stopped.
//
//	done, err := importer.Import(ctx, importer.Config{
//		DB: db, Projection: "search", ReplicaSet: "main-projections", Total: 3,
//	})
//	fmt.Println(done, err)
//
// The rules:
//
//   - Stop all old processors first. Then import. Then start workers.
//   - With a total that divides 5040, no event is handled again and none is skipped. With
//     another total, some events are handled again: see [Import].
//   - The old checkpoints are not changed.
//   - Run once with Config.DryRun to see what an import would do.
package importer

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

var (
	// ErrCheckpointsExist is returned by Import if the projection has checkpoints in
	// the library's tables already: it was imported before, or workers have run it.
	ErrCheckpointsExist = errors.New("orchestrator: projection has checkpoints already")

	// ErrOldCheckpoints is returned by Import if rows of the old table are missing, have
	// no position, or belong to another total. The message names each row.
	ErrOldCheckpoints = errors.New("orchestrator: old checkpoints don't fit")

	// ErrStillMoving is returned by Import if an old processor still runs or still owns
	// segments, or if a transaction is open that may belong to one. Stop the processor and
	// import again.
	ErrStillMoving = errors.New("orchestrator: old checkpoints are still moving")
)

// Config selects what Import imports, from where, and into which replica set. DB, Projection,
// ReplicaSet and Total are required.
type Config struct {
	// DB is the database that holds the old checkpoints and the library's tables.
	DB *sql.DB
	// Projection is the name of the projection (or consumer), before and after the
	// import.
	Projection string
	// ReplicaSet is the replica set that will run the projection. It may be new, or run
	// other projections already.
	ReplicaSet orchestrator.ReplicaSetName
	// Schema is the PostgreSQL schema of the library's tables. Default: the schema that
	// the search path leads to.
	Schema string
	// Total is the number of partitions of the old processors, from 1 to 5040. 1: there
	// was one processor, without partitions. For segments it is the TotalSegments that
	// all processors had at the end: their hash uses that number, whatever the rows say.
	Total int
	// Old is the table of the old checkpoints. Default: that of
	// github.com/getpup/pupsourcing.
	Old OldCheckpoints
	// Segments selects the tables of github.com/pupsourcing/core instead. Then Old must
	// be empty. Default: nil.
	Segments *Segments
	// Strategy is the PartitionStrategy of the old processors, if they had one of their
	// own. Import refuses a strategy other than 32-bit FNV-1a mod Total, which this library
	// uses. Default: nil, the processors' default, which is the same.
	Strategy PartitionStrategy
	// Watch is how long Import watches the old checkpoints. If a processor moves one
	// during that time, Import refuses. A busy processor of pupsourcing starts a batch
	// within 100ms of the last one. The default, 10s, leaves room for slower loops and rare
	// events. Import also waits for batches that started before.
	Watch time.Duration
	// DryRun does everything except the commit: it takes the same time, returns the same
	// errors, and changes nothing.
	DryRun bool
}

// OldCheckpoints describes a table with one row for each old partition. An event must belong
// to partition k of n if the 32-bit FNV-1a hash of its aggregate id, mod n, is k. Names are
// case-sensitive. The database user needs the privileges SELECT and UPDATE on the table:
// Import locks its rows, but does not change them.
type OldCheckpoints struct {
	// Table is the name of the table, in Schema or else on the search path. Default:
	// projection_checkpoints.
	Schema, Table string
	// KeyColumn is the column with the key of the partition, compared as text. Default:
	// projection_name.
	KeyColumn string
	// PositionColumn is the column with the position of the last handled event. Default:
	// last_global_position.
	PositionColumn string
	// Key returns the key of a partition. It is also called for partitions that should
	// not exist, to detect rows of another total. Return "" to skip that check. Default:
	// the projection's name, followed by "_p" and the partition if the total is above 1.
	Key func(projection string, partition, total int) string
}

// Result is what an import did, or what a dry run would do.
type Result struct {
	Projection string
	ReplicaSet orchestrator.ReplicaSetName
	// Partitions are the old partitions, or segments, in order.
	Partitions []Partition
	// Lowest is the lowest old position. No event at or below it is handled again.
	Lowest int64
	// Exact: no event is handled again.
	Exact  bool
	DryRun bool
}

// Partition is an old checkpoint and where its events start after the import.
type Partition struct {
	Key string
	// Position is the old checkpoint. Start is the position after which events of the
	// partition are handled. If Start is lower, the events between them are handled again.
	Position, Start int64
}

// String returns the result in one line.
func (i Result) String() string {
	var highest int64
	for _, p := range i.Partitions {
		highest = max(highest, p.Position)
	}
	what, how := "imported", "exact"
	if i.DryRun {
		what = "would be imported"
	}
	if !i.Exact {
		how = fmt.Sprintf("some events above %d are handled again", i.Lowest)
	}
	return fmt.Sprintf("projection %s %s into replica set %s: partitions %d, positions %d to %d, %s",
		i.Projection, what, i.ReplicaSet, len(i.Partitions), i.Lowest, highest, how)
}

// Import makes the checkpoints of the old processors the starting point of a projection. Stop
// all old processors, call Import, then start workers. The next generation of the replica
// set goes on where the old processors stopped. The old checkpoints are not changed.
//
// If Total divides 5040 (all up to 10, and 12, 14, 15, 16, 18, 20, 21, 24, …), the import is
// exact: no event is handled again. Otherwise an aggregate goes on from the lowest position
// of the old partitions that it could have been in (those that are equal mod the greatest
// common divisor of Total and 5040). Then events above Result.Lowest may be handled again. No
// event is lost by the import. An event that the old processors skipped because its
// transaction committed late stays skipped. An event that they handled without committing the
// checkpoint is handled again, as they would have done.
//
// Import refuses, and changes nothing, with these errors:
//   - ErrCheckpointsExist: the projection has checkpoints in the library's tables. If
//     workers have run it and you still want to import, stop them, undo what they have
//     written, and delete the projection's rows from orchestrator_checkpoints. If a worker
//     joins at the same time, then either the import is refused, or the worker starts from
//     the imported positions.
//   - ErrOldCheckpoints: old checkpoints are missing, have no position, or belong to another
//     total or to several. The message names each key.
//   - ErrStillMoving: an old processor still runs. It (or another import) has a checkpoint
//     locked, or waits to move one, or has read the table in a transaction that is still
//     open and may be in the middle of a batch. Or a segment has an owner, or a worker of
//     the consumer sent a heartbeat in the last 30s.
//   - ErrProjectionTaken, ErrSchema and ErrInvalidConfig.
//
// Import can't notice an old processor that has nothing to do, that reads its checkpoint outside
// of the transaction that writes it, or that is started later. Such a processor goes on from its
// own checkpoint: it and the new workers then handle the same events. It can't move the new
// checkpoints. So make sure that the old processors are stopped.
//
// Any other error is the database's, or ctx.Err(). If it is unclear whether the import was
// committed, call Import again: ErrCheckpointsExist means that it was.
//
// With an error, Result holds what was found so far. docs/pupsourcing.md describes the way
// back to the old processors.
func Import(ctx context.Context, cfg Config) (Result, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Result{}, err
	}
	from, err := cfg.source()
	if err != nil {
		return Result{}, err
	}
	s := store.New(cfg.DB, string(cfg.ReplicaSet), store.Options{Schema: cfg.Schema, Bounds: store.BoundsOf(30 * time.Second)})
	if err := s.Check(ctx); err != nil {
		return Result{}, redact.Error(err)
	}
	done := Result{Projection: cfg.Projection, ReplicaSet: cfg.ReplicaSet, DryRun: cfg.DryRun}
	err = s.Import(ctx, from.table(), func(i *store.Import) error { return cfg.run(ctx, i, from, &done) })
	switch taken := (*store.TakenError)(nil); {
	case errors.Is(err, errDry):
		err = nil
	case errors.As(err, &taken) && taken.Over:
		err = fmt.Errorf("%w: %w (its lease has expired; if it is dead, delete its row from orchestrator_workers)", orchestrator.ErrProjectionTaken, err)
	case taken != nil:
		err = fmt.Errorf("%w: %w", orchestrator.ErrProjectionTaken, err)
	case err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()): // the driver has an error of its own for it
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	case store.LockTimeout(err):
		err = fmt.Errorf("%w; nothing was changed, try again", err)
	}
	if err != nil {
		err = redact.Error(fmt.Errorf("import checkpoints of projection %q: %w", cfg.Projection, err))
	}
	return done, err
}

// A source reads old checkpoints.
type source interface {
	table() store.OldTable
	// lock locks the rows of the projection. It returns the key and position of each
	// partition, in order, or an error that lists all problems.
	lock(ctx context.Context, c Config, i *store.Import) (keys []string, positions []int64, err error)
	// idle returns an error if a processor has sent a heartbeat lately.
	idle(ctx context.Context, c Config, i *store.Import) error
}

func (c Config) source() (source, error) {
	if c.Segments != nil {
		return *c.Segments, nil
	}
	return c.keys()
}

// errDry makes a dry run roll back.
var errDry = errors.New("dry run")

// run does the import, in its transaction. It locks the old rows first and keeps them locked
// during the watch: that blocks only old processors. It locks the rows that workers need last.
func (c Config) run(ctx context.Context, i *store.Import, from source, done *Result) error {
	if err := c.fresh(ctx, i); err != nil { // before the watch, to fail at once
		return err
	}
	keys, positions, err := from.lock(ctx, c, i)
	if err != nil {
		return err
	}
	next := protocol.Adopt(positions)
	done.Lowest, done.Exact = slices.Min(positions), true
	for k, p := range positions {
		part := Partition{Key: keys[k], Position: p, Start: next[k%len(next)].Position}
		done.Partitions = append(done.Partitions, part)
		done.Exact = done.Exact && part.Start == part.Position
	}
	if err := c.watch(ctx, i, from.table().Name()); err != nil {
		return err
	}
	if err := from.idle(ctx, c, i); err != nil { // again: a worker may have been silent when the watch started
		return err
	}
	if err := i.Claim(ctx, c.Projection); err != nil {
		return err
	}
	if err := c.fresh(ctx, i); err != nil {
		return err
	}
	if err := i.Write(ctx, c.Projection, next); err != nil {
		return err
	}
	if c.DryRun {
		return errDry
	}
	return nil
}

// fresh returns an error if the projection has checkpoints in the library's tables.
func (c Config) fresh(ctx context.Context, i *store.Import) error {
	set, err := i.Owner(ctx, c.Projection)
	if err != nil {
		return err
	}
	if set != "" {
		return fmt.Errorf("%w, in replica set %q: it was imported before, or workers have run it; to import anyway, stop them, undo what they have written, and delete its rows from orchestrator_checkpoints", ErrCheckpointsExist, set)
	}
	return nil
}

// watch polls which transactions use the old table, until it is clear whether a processor runs.
func (c Config) watch(ctx context.Context, i *store.Import, table string) error {
	idle := protocol.IdleCheck{Watch: c.Watch}
	tick := time.NewTicker(min(c.Watch/10+time.Millisecond, 100*time.Millisecond))
	defer tick.Stop()
	for {
		users, err := i.Users(ctx)
		if err != nil {
			return err
		}
		idleness, holders := idle.Observe(time.Now(), users)
		switch idleness {
		case protocol.Still:
			return nil
		case protocol.Moving:
			return fmt.Errorf("%w: %s waits to move a checkpoint in %s; stop the processors, then import", ErrStillMoving, backends(holders), table)
		case protocol.Open:
			return fmt.Errorf("%w: %s has read %s in a transaction that is still open: it may be a processor in the middle of a batch; end it or wait for it, then import", ErrStillMoving, backends(holders), table)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// backends names transactions by their pid in pg_stat_activity.
func backends(holders []protocol.Holder) string {
	var names []string
	for _, h := range holders {
		if h.Backend == 0 {
			names = append(names, "a prepared transaction")
		} else {
			names = append(names, fmt.Sprintf("backend %d", h.Backend))
		}
	}
	return strings.Join(names, ", ")
}

func (c Config) withDefaults() (Config, error) {
	if c.DB == nil {
		return c, importError("DB", "is nil; open a database with sql.Open")
	}
	if c.Segments != nil {
		if c.Old.Schema != "" || c.Old.Table != "" || c.Old.KeyColumn != "" || c.Old.PositionColumn != "" || c.Old.Key != nil {
			return c, importError("Segments", "is set, and so is Old; set only one of them")
		}
		s := *c.Segments
		s.Table, s.WorkersTable = cmp.Or(s.Table, "consumer_segments"), cmp.Or(s.WorkersTable, "consumer_workers")
		c.Segments = &s
	}
	for _, d := range []struct {
		value    *string
		fallback string
	}{
		{&c.Old.Table, "projection_checkpoints"}, {&c.Old.KeyColumn, "projection_name"}, {&c.Old.PositionColumn, "last_global_position"},
	} {
		if *d.value == "" {
			*d.value = d.fallback
		}
	}
	if c.Old.Key == nil {
		c.Old.Key = pupsourcingKey
	}
	if c.Watch == 0 {
		c.Watch = 10 * time.Second
	}
	for _, n := range []struct{ field, name string }{
		{"Projection", c.Projection}, {"ReplicaSet", string(c.ReplicaSet)}, {"Old.Table", c.Old.Table},
		{"Old.KeyColumn", c.Old.KeyColumn}, {"Old.PositionColumn", c.Old.PositionColumn}, {"Old.Schema", c.Old.Schema},
	} {
		if problem := store.NameProblem(n.name); problem != "" && (n.field != "Old.Schema" || n.name != "") {
			return c, importError(n.field, problem)
		}
	}
	if s := c.Segments; s != nil {
		for _, n := range []struct{ field, name string }{
			{"Segments.Table", s.Table}, {"Segments.WorkersTable", s.WorkersTable}, {"Segments.Schema", cmp.Or(s.Schema, "public")},
		} {
			if problem := store.NameProblem(n.name); problem != "" {
				return c, importError(n.field, problem)
			}
		}
	}
	switch {
	case c.Total < 1 || c.Total > protocol.Slots:
		return c, importError("Total", fmt.Sprintf("is %d; it must be between 1 (one processor) and %d", c.Total, protocol.Slots))
	case c.Watch < 0:
		return c, importError("Watch", fmt.Sprintf("is %s; it must not be negative", c.Watch))
	}
	if c.Strategy != nil {
		if problem := strategyProblem(c.Strategy, c.Total); problem != "" {
			return c, importError("Strategy", problem)
		}
	}
	return c, nil
}

func importError(field, problem string) error {
	return fmt.Errorf("%w: importer.Config.%s %s", orchestrator.ErrInvalidConfig, field, problem)
}

func (o OldCheckpoints) table() store.OldTable {
	return store.OldTable{Schema: o.Schema, Table: o.Table, Key: o.KeyColumn, Position: o.PositionColumn}
}

func pupsourcingKey(projection string, partition, total int) string {
	if total == 1 {
		return projection
	}
	return fmt.Sprintf("%s_p%d", projection, partition)
}

// oldKeys are the keys of a projection under its total, and under other totals.
type oldKeys struct {
	old   OldCheckpoints
	parts []string // of the partitions under the given total
	alone string   // of a total of 1
	many  []string // of the partitions under the highest total
}

func (c Config) keys() (oldKeys, error) {
	k := oldKeys{old: c.Old, alone: c.Old.Key(c.Projection, 0, 1)}
	for p := range c.Total {
		key := c.Old.Key(c.Projection, p, c.Total)
		if key == "" {
			return k, importError("Old.Key", fmt.Sprintf("returns \"\" for partition %d of %d", p, c.Total))
		}
		if same := slices.Index(k.parts, key); same >= 0 {
			return k, importError("Old.Key", fmt.Sprintf("returns %q for both partition %d and partition %d of %d", key, same, p, c.Total))
		}
		k.parts = append(k.parts, key)
	}
	for p := range protocol.Slots {
		k.many = append(k.many, c.Old.Key(c.Projection, p, protocol.Slots))
	}
	return k, nil
}

func (k oldKeys) table() store.OldTable { return k.old.table() }

func (k oldKeys) lock(ctx context.Context, c Config, i *store.Import) (keys []string, positions []int64, err error) {
	rows, busy, err := i.Lock(ctx, k.all())
	if err != nil {
		return nil, nil, err
	}
	if len(busy) > 0 {
		return nil, nil, lockedError(k.table(), busy)
	}
	positions, err = k.positions(rows)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w (table %s, importer.Config.Total %d)", ErrOldCheckpoints, err, k.table().Name(), c.Total)
	}
	return k.parts, positions, nil
}

// idle returns nil: these processors send no heartbeats.
func (k oldKeys) idle(context.Context, Config, *store.Import) error { return nil }

func (k oldKeys) all() []string {
	all := slices.Concat(k.parts, k.many, []string{k.alone})
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(key string) bool { return key == "" })
}

// positions returns the position of each partition, or an error that lists all problems.
func (k oldKeys) positions(rows []store.OldRow) ([]int64, error) {
	var problems []string
	found := map[string]int64{}
	var extra []string
	for _, r := range rows {
		_, twice := found[r.Key]
		switch {
		case twice:
			problems = append(problems, fmt.Sprintf("there are two rows %q; delete one", r.Key))
		case !r.Position.Valid:
			problems = append(problems, fmt.Sprintf("row %q has no position (NULL); if the partition has handled nothing, set it to 0", r.Key))
		case r.Position.Int64 < 0:
			problems = append(problems, fmt.Sprintf("row %q has position %d, which is negative; if the partition has handled nothing, set it to 0", r.Key, r.Position.Int64))
		}
		found[r.Key] = r.Position.Int64
		if !twice && !slices.Contains(k.parts, r.Key) {
			extra = append(extra, r.Key)
		}
	}
	var positions []int64
	var missing []string
	for _, key := range k.parts {
		p, ok := found[key]
		if !ok {
			missing = append(missing, key)
		}
		positions = append(positions, p)
	}
	if len(missing) > 0 {
		problems = append(problems, fmt.Sprintf("there is no row %s; if such a partition has handled nothing, insert its row with position 0", quoted(missing)))
	}
	if len(extra) > 0 {
		problems = append(problems, fmt.Sprintf("there is a row %s as well; if it is left over from an earlier total, delete it; if it belongs to another projection, let Old.Key return \"\" for it", quoted(extra)))
	}
	if total := k.likely(found); len(missing)+len(extra) > 0 && total > 0 && total != len(k.parts) {
		problems = append(problems, fmt.Sprintf("the total seems to be %d", total))
	}
	if len(problems) > 0 {
		return nil, errors.New(strings.Join(problems, "; "))
	}
	return positions, nil
}

// likely returns the total that the rows suggest, or 0. If there are rows with and without
// partitions, those that went further were used last.
func (k oldKeys) likely(found map[string]int64) int {
	total := 0
	var furthest int64
	for ; total < len(k.many); total++ {
		p, ok := found[k.many[total]]
		if !ok {
			break
		}
		furthest = max(furthest, p)
	}
	if alone, ok := found[k.alone]; ok && (total < 2 || alone > furthest) {
		return 1
	}
	if total < 2 {
		return 0
	}
	return total
}

func quoted(names []string) string {
	var q []string
	for _, n := range names {
		q = append(q, fmt.Sprintf("%q", n))
	}
	return strings.Join(q, ", ")
}
