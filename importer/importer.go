// Package importer takes over from processors that were run by hand, partition 0 of 3,
// 1 of 3 and so on, and from those of github.com/pupsourcing/core, which share segments: it
// makes their positions the starting point of a projection, so that no event is handled
// again and none is left out.
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
	// ErrCheckpointsExist is returned by Import when the projection
	// has checkpoints here already: an earlier import is done, or workers have
	// run it.
	ErrCheckpointsExist = errors.New("orchestrator: projection has checkpoints already")

	// ErrOldCheckpoints is returned by Import when rows of the old
	// table are missing, tell of another total, or have no position. The
	// message names each.
	ErrOldCheckpoints = errors.New("orchestrator: old checkpoints don't fit")

	// ErrStillMoving is returned by Import when an old processor is not stopped, or has
	// not given its segments back, or a transaction is open that may be one's. Stop it
	// and import again.
	ErrStillMoving = errors.New("orchestrator: old checkpoints are still moving")
)

// Config says whose progress to import, from where, and to where. DB, Projection,
// ReplicaSet and Total are required.
type Config struct {
	// DB is the database that holds the old checkpoints and the library's tables.
	DB *sql.DB
	// Projection is the name that the projection (or consumer) has had, and will have
	// here.
	Projection string
	// ReplicaSet is the group that is going to run it. It may be new, and it
	// may be running other projections.
	ReplicaSet orchestrator.ReplicaSetName
	// Schema is the PostgreSQL schema of the library's tables. Default: the schema that
	// the search path leads to.
	Schema string
	// Total is the number of partitions that the projection was run with; 1 is
	// alone. Of segments, it is the TotalSegments with which all processors ran to the
	// end: the hash goes by that, and not by the rows. At most 5040.
	Total int
	// Old says where the old checkpoints are. Default: where
	// github.com/getpup/pupsourcing has them.
	Old OldCheckpoints
	// Segments says that they are those of github.com/pupsourcing/core, and where; then
	// Old has to be empty. Default: nil.
	Segments *Segments
	// Strategy is the PartitionStrategy that the processors were given, if any. One that
	// does not do as this library does, FNV-1a mod Total, is refused. Default: nil, their
	// own default, which does.
	Strategy PartitionStrategy
	// Watch is how long the old checkpoints must stay still before they are
	// believed. A processor of pupsourcing that has something to do begins a batch
	// within 100ms of the last, and a batch that has begun is waited for however long
	// it takes: a hundred times that is for slower loops, and for events that come one
	// by one. Default: 10s.
	Watch time.Duration
	// DryRun has everything done but the commit: it takes the same time, meets
	// the same errors, and changes nothing.
	DryRun bool
}

// OldCheckpoints is a table with one row for each partition that was run by
// hand, where events belong to partition k of n if the 32-bit FNV-1a hash of
// their aggregate id mod n is k. Names are taken as they are written and quoted.
// Whoever imports needs the privileges to read and to update it: its rows are
// locked, and not changed.
type OldCheckpoints struct {
	// Table is looked up on the search path, or in Schema if that is set.
	// Default: projection_checkpoints.
	Schema, Table string
	// KeyColumn, as text, names the partition. Default: projection_name.
	KeyColumn string
	// PositionColumn is the position of the last event that was handled.
	// Default: last_global_position.
	PositionColumn string
	// Key makes the key of one partition of a total. It is also asked for
	// partitions that there should not be, whose rows would tell of another
	// total; "" is one that need not be looked for. Default: the projection's
	// name, followed by "_p" and the partition if the total is above 1.
	Key func(projection string, partition, total int) string
}

// Result is what an import did, or what a dry run would have done.
type Result struct {
	Projection string
	ReplicaSet orchestrator.ReplicaSetName
	// Partitions are the old ones, or segments, in order.
	Partitions []Partition
	// Lowest is the lowest of the old positions: nothing at or below it is
	// handled again.
	Lowest int64
	// Exact says that nothing at all is handled again.
	Exact  bool
	DryRun bool
}

// A Partition is what became of one old checkpoint.
type Partition struct {
	Key string
	// Position is where it was, and Start is from where its events are handled
	// here. Where Start is lower, those in between are handled again.
	Position, Start int64
}

// String shows the import in one line.
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

// Import makes the positions of processors of a fixed total, one for each partition or
// segment k, the starting point of a projection here.
// Stop them all, import, and start workers: the next generation of the replica
// set goes on where they stopped. The old checkpoints stay as they are.
//
// A total that divides 5040 (all to 10, and 12, 14, 15, 16, 18, 20, 21, 24, …)
// is imported exactly: nothing is handled again. With another one, an aggregate
// goes on from the lowest position of those partitions that it could have been
// in (k mod g, for the greatest common divisor g of total and 5040), so events
// above Result.Lowest may be handled again. Nothing is lost either way;
// but an event that the old processors passed by, because its transaction
// committed late, stays passed by, and one that they handled without
// committing the checkpoint is handled again, as it would have been by them.
//
// The import is refused, and nothing is changed, with
//   - ErrCheckpointsExist, where the projection has checkpoints here: it was
//     imported before, or workers have run it. After the latter, stop them, undo
//     what they have written, delete the projection's rows from
//     orchestrator_checkpoints, and import again. A worker that joins at the same
//     time comes either before the import, which is then refused, or after it,
//     and goes on from the imported positions;
//   - ErrOldCheckpoints, where old checkpoints are missing, have no position, or
//     tell of another total, or of several. The message names each key;
//   - ErrStillMoving, where an old processor is seen to move: it (or another
//     import) has its checkpoint locked, or wants to move it while the import
//     watches with the checkpoint locked, or may be in the midst of a batch,
//     having read the table in a transaction that does not end; or where a segment
//     has an owner, or a worker of the consumer gave a sign of life in the last 30s;
//   - ErrProjectionTaken, ErrSchema and ErrInvalidConfig.
//
// The watch can't see a processor that has nothing to do, reads its checkpoint
// outside of the transaction that writes it, or is started again later. Such a
// one goes on from its own checkpoint as if nothing had happened: it and the
// new workers both handle what comes. It can't disturb their progress, which is
// not in its table. So stop the old processors for certain, whatever the watch
// says.
//
// Any other error is the database's, or ctx.Err(). Where it leaves open whether the
// import was committed, call again: ErrCheckpointsExist says that it was.
//
// With an error, Result holds what was found until then. To go back to
// processors that are run by hand, see the section "Migrating from manual
// runners" of the README.
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
		err = fmt.Errorf("%w: %w (its lease is over; if it is dead, delete its row from orchestrator_workers)", orchestrator.ErrProjectionTaken, err)
	case taken != nil:
		err = fmt.Errorf("%w: %w", orchestrator.ErrProjectionTaken, err)
	case err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()): // the driver says it in its own words
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	case store.LockTimeout(err):
		err = fmt.Errorf("%w; nothing was changed, try again", err)
	}
	if err != nil {
		err = redact.Error(fmt.Errorf("import checkpoints of projection %q: %w", cfg.Projection, err))
	}
	return done, err
}

// A source is where old checkpoints are.
type source interface {
	table() store.OldTable
	// lock locks the rows of the projection and returns what each is called and its
	// position, in the order of the partitions, or what speaks against them.
	lock(ctx context.Context, c Config, i *store.Import) (keys []string, positions []int64, err error)
	// idle returns an error if a processor has given a sign of life lately.
	idle(ctx context.Context, c Config, i *store.Import) error
}

func (c Config) source() (source, error) {
	if c.Segments != nil {
		return *c.Segments, nil
	}
	return c.keys()
}

// errDry rolls a dry run back.
var errDry = errors.New("dry run")

// run is the import, in its transaction. The old rows are locked first, and for
// as long as the watch: that is in nobody's way but the old processors'. What
// workers wait for is locked last.
func (c Config) run(ctx context.Context, i *store.Import, from source, done *Result) error {
	if err := c.fresh(ctx, i); err != nil { // before the watch, to say so at once
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
	if err := from.idle(ctx, c, i); err != nil { // who was there when the watch began, and was silent
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

// fresh makes sure that the projection has no checkpoints here.
func (c Config) fresh(ctx context.Context, i *store.Import) error {
	set, err := i.Owner(ctx, c.Projection)
	if err != nil {
		return err
	}
	if set != "" {
		return fmt.Errorf("%w, in replica set %q: it was imported before, or workers have run it; to import all the same, stop them, undo what they have written, and delete its rows from orchestrator_checkpoints", ErrCheckpointsExist, set)
	}
	return nil
}

// watch looks at who uses the old table until it is clear whether it is still.
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
			return fmt.Errorf("%w: %s has read %s and is still in that transaction: perhaps a processor in the midst of a batch; end it, or wait until it has ended, then import", ErrStillMoving, backends(holders), table)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// backends names transactions as pg_stat_activity does.
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
			return c, importError("Segments", "is set, and so is Old; the checkpoints are in one of the two")
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
		return c, importError("Total", fmt.Sprintf("is %d; it must be between 1 (run alone) and %d", c.Total, protocol.Slots))
	case c.Watch < 0:
		return c, importError("Watch", fmt.Sprintf("is %s; it can't be negative", c.Watch))
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

// oldKeys are the keys that a projection has, and those that it could have.
type oldKeys struct {
	old   OldCheckpoints
	parts []string // of the partitions
	alone string   // of the only one, where the projection is run alone
	many  []string // of the partitions of as many as there may be
}

func (c Config) keys() (oldKeys, error) {
	k := oldKeys{old: c.Old, alone: c.Old.Key(c.Projection, 0, 1)}
	for p := range c.Total {
		key := c.Old.Key(c.Projection, p, c.Total)
		if key == "" {
			return k, importError("Old.Key", fmt.Sprintf("returns no key for partition %d of %d", p, c.Total))
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

// idle: these processors give no sign of life but what the watch sees.
func (k oldKeys) idle(context.Context, Config, *store.Import) error { return nil }

func (k oldKeys) all() []string {
	all := slices.Concat(k.parts, k.many, []string{k.alone})
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(key string) bool { return key == "" })
}

// positions returns the position of each partition, or everything that speaks
// against the rows.
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
		problems = append(problems, fmt.Sprintf("there is a row %s as well; if it is left over from an earlier total, delete it, and if it is another projection's, have Old.Key return \"\" for it", quoted(extra)))
	}
	if total := k.likely(found); len(missing)+len(extra) > 0 && total > 0 && total != len(k.parts) {
		problems = append(problems, fmt.Sprintf("the total seems to be %d", total))
	}
	if len(problems) > 0 {
		return nil, errors.New(strings.Join(problems, "; "))
	}
	return positions, nil
}

// likely returns the total that the rows tell of, 0 if they don't. Where there
// are rows of both kinds, those that went further were in use last.
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
